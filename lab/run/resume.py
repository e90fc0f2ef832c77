"""What a run writes so that it can go on, and so that its checkpoints say where they came from."""

import dataclasses
from dataclasses import dataclass, field
import math
import os
import platform
import subprocess
import time

from lab import checkpoint
from lab.files import UserError, atomic_write, first_line
from lab.run.devices import device_name, peak_memory_mb
from lab.run.progress import bits_per_byte

import numpy as np
import torch
import yaml

# Millions of words seen at which the BabyLM challenge wants a checkpoint; its small tracks end at 100.
BABYLM_WORDS = [*range(1, 10), *range(10, 101, 10), *range(200, 1001, 100)]


@dataclass
class State:
    """Where a run stands. last.pt keeps it, beside weights and optimisers."""

    step: int = 0
    evaluated: int = -1  # the step of the last validation
    best: float = math.inf  # lowest validation loss
    skipped: int = 0  # steps that overflowed in float16
    rows: list = field(default_factory=list)  # of losses.csv
    seconds: float = 0.0  # spent in steps, of all parts of the run
    timed_tokens: int = 0  # those of steps without compilation and warm-up,
    timed_seconds: float = 0.0  # and the time they took
    peak_memory_mb: float = 0.0

    def last_val_loss(self):
        for row in reversed(self.rows):
            if row["val_loss"] != "":
                return row["val_loss"]
        return self.best

    def count_time(self, seconds, tokens, warm):
        """After a step: its time, and whether it shows the speed, as a warm step does."""
        self.seconds += seconds
        if warm:
            self.timed_seconds += seconds
            self.timed_tokens += tokens

    def tokens_per_second(self):
        """Of the steps so far, the first few aside; None before there are any."""
        return self.timed_tokens / self.timed_seconds if self.timed_seconds else None


# ---------------------------------------------------------------------------------------------------------------------
# Where a checkpoint came from


def code_version():
    """The commit of this code, -dirty if it was changed since; empty outside a git checkout."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, encoding="utf-8"
        )
    except OSError:
        return ""
    return done.stdout.strip()


def origin(config, meta, device, dtype, compiled, processes):
    """The part of a checkpoint's provenance that stays the same during the run, in plain data."""
    return {
        "corpus": meta["corpus"],
        "data": meta,
        "preset": config.preset,
        "settings": dataclasses.asdict(config),
        "device": device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "processes": processes,
        "compiled": compiled,
        "commit": code_version(),  # of the code that runs, whatever is committed meanwhile
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
    }


def provenance(origin, state, plan, val_loss, val_bits_per_byte):
    """`origin`, and how far the run has come."""
    return {
        **origin,
        "steps": state.step,
        "tokens": state.step * plan.tokens_per_step,
        "words": round(plan.words(state.step)),
        "epochs": state.step * plan.epochs_per_step,
        "train_loss": state.rows[-1]["train_loss"] if state.rows else None,
        "val_loss": val_loss,
        "val_bits_per_byte": val_bits_per_byte,
        "seconds": state.seconds,
    }


def passed_words(setting, step, plan):
    """The marks of train.checkpoint_words that the last step has passed, in millions of words.

    At its end a run has also passed the mark that one more step would: train.max_words ends it just short of that.
    """
    if setting == "none":
        return []
    seen = plan.words(step + 1 if step == plan.steps else step)
    return [mark for mark in BABYLM_WORDS if plan.words(step - 1) < mark * 10**6 <= seen]


# ---------------------------------------------------------------------------------------------------------------------
# last.pt


def same_run(config, meta, plan):
    """What must agree for a run to be continued."""
    return {
        "model": dataclasses.asdict(config.model),
        "data": meta["train"]["sha256"],
        "train.seed": config.train.seed,
        "train.optimizer": config.train.optimizer,
        "train.ema": bool(config.train.ema),
        "windows per step": plan.windows_per_step,
    }


def training_state(identity, state, optimizers, scaler, ema, device):
    """What last.pt holds under "training", beside the weights. identity: of same_run."""
    state.peak_memory_mb = max(state.peak_memory_mb, peak_memory_mb(device))
    return {
        "same_run": identity,
        **dataclasses.asdict(state),
        "ema": ema,
        "optimizers": [o.state_dict() for o in optimizers],
        "scaler": scaler.state_dict(),
    }


class RunFolder:
    """What a run writes into its folder, and when."""

    def __init__(self, config, meta, tokenizer, plan, origin, identity, state):
        self.config, self.meta, self.tokenizer, self.plan = config, meta, tokenizer, plan
        self.origin, self.identity, self.state = origin, identity, state
        self.saved_step, self.saved_at = state.step, time.monotonic()  # of last.pt

    def write_settings(self):
        """config.yaml, as it was resolved: --config out/NAME/config.yaml repeats the run."""
        settings = {**dataclasses.asdict(self.config), "presets": {self.config.preset: {}}}
        atomic_write(os.path.join(self.config.out_dir, "config.yaml"), yaml.safe_dump(settings, sort_keys=False))

    def save(self, name, model, val_loss, **more):
        """A self-contained checkpoint of the model's weights as they are now, if they are numbers."""
        path, state = os.path.join(self.config.out_dir, name), self.state
        bits = bits_per_byte(val_loss, self.meta["val"])
        weights = dict(model.named_parameters())
        try:
            checkpoint.check_finite(weights)
        except UserError as e:
            raise UserError(
                f"{path}: not written at step {state.step}, {e}; what was there before is untouched. "
                "Try half the learning rate"
            ) from None
        made = provenance(self.origin, state, self.plan, val_loss, bits)
        tree = checkpoint.make(self.config.model, weights, self.tokenizer.model_bytes, made)
        checkpoint.save(path, {**tree, **more})

    def last_is_due(self):
        """Every so many steps if train.save_every says so, else once a minute."""
        if self.config.train.save_every:
            return self.state.step % self.config.train.save_every == 0
        return time.monotonic() - self.saved_at > 60

    def save_last(self, model, optimizers, scaler, ema, device):
        """last.pt, unless nothing has happened since it was written."""
        if self.state.step == self.saved_step:
            return
        training = training_state(self.identity, self.state, optimizers, scaler, ema, device)
        self.save("last.pt", model, self.state.last_val_loss(), training=training)
        self.saved_step, self.saved_at = self.state.step, time.monotonic()


def greeting(folder, state, plan):
    if state.step >= plan.steps:
        return f"{folder}: this run has finished; its own figures follow. train.resume=never starts it anew"
    return f"continuing {folder} at step {state.step} of {plan.steps}"


def find_last(setting, folder, identity, distributed):
    """(path, dictionary) of the last.pt that train.resume asks for, (None, None) to start anew.

    UserError if it is not one of this run. identity: of same_run.
    """
    path = os.path.join(folder, "last.pt") if setting == "auto" else setting
    found = setting != "never" and (setting != "auto" or os.path.exists(path))
    if distributed.any(found) and not found:
        raise UserError(
            f"{folder}: another process of this run finds a last.pt there, this one does not; all machines "
            "must share the folder"
        )
    if not found:
        return None, None
    tree = checkpoint.read(path)
    training = tree.get("training")
    if not isinstance(training, dict):
        raise UserError(
            f"{path}: holds no training state; continue from a last.pt, or start anew with train.resume=never"
        )
    then = training.get("same_run") or {}
    different = [key for key, now in identity.items() if then.get(key) != now]
    if different:
        raise UserError(
            f"{path}: belongs to another run, {' and '.join(different)} differ; set train.resume=never to "
            "start anew (this replaces it) or train.out=FOLDER to keep both"
        )
    return path, tree


def restore(path, tree, model, optimizers, scaler, ema):
    """Puts what find_last gave into model, optimisers, scaler and averaged weights; returns the State."""
    training = tree["training"]
    try:
        model.load_state_dict(tree["weights"])
        for optimizer, saved in zip(optimizers, training["optimizers"], strict=True):
            groups = optimizer.state_dict()["param_groups"]  # today's learning rate, weight decay and betas
            optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        if training["scaler"]:  # none after a run in another precision
            scaler.load_state_dict(training["scaler"])
        for name, average in (ema or {}).items():
            average.copy_(training["ema"][name])
        known = {f.name for f in dataclasses.fields(State)}
        return State(**{key: value for key, value in training.items() if key in known})
    except Exception as e:  # PyTorch raises nearly anything on a damaged state
        raise UserError(
            f"{path}: its training state is damaged ({first_line(e)}); go on from another copy, or start "
            "anew with train.resume=never"
        ) from None
