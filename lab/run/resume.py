"""What a run writes so that it can go on, and so that its checkpoints say where they came from."""

import dataclasses
from dataclasses import dataclass, field
import glob
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
    changes: list = field(default_factory=list)  # of settings on the way, one line each
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


def origin(config, meta, device, dtype, processes):
    """The part of a checkpoint's provenance that stays the same during the run, in plain data."""
    return {
        "corpus": meta["corpus"],
        "data": meta,
        "preset": config.preset,
        "settings": dataclasses.asdict(config),
        "device": device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "processes": processes,
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
        "changes": state.changes,
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


# Settings below train that may differ when a run goes on.
CHANGE_NO_NUMBER = {
    *("device", "compile", "gradient_checkpointing", "deterministic"),  # the same numbers, up to rounding
    *("out", "resume", "log", "save_every", "checkpoint_words", "sample_tokens"),  # what is kept and shown, and where
    *("batch_size", "gradient_accumulation_steps"),  # what decides is their product
    *("max_steps", "epochs", "max_words"),  # a longer or shorter run of the same
}
LENGTH = ("max_steps", "epochs", "max_words")


def decisive(provenance):
    """{setting: value} of all that decides the numbers of a run, or which of them is its best, ckpt.pt.

    One exception: another split of a step's windows into batches draws other dropout and other gaps.
    """
    settings, data = provenance["settings"], provenance["data"]
    train = settings["train"]
    found = {f"model.{key}": value for key, value in settings["model"].items()}
    found |= {f"train.{key}": value for key, value in train.items() if key not in CHANGE_NO_NUMBER}
    found["train.dtype"] = provenance["dtype"]  # what `auto` came to
    windows = train["batch_size"] * train["gradient_accumulation_steps"]
    found["train.batch_size x train.gradient_accumulation_steps"] = windows
    for part in ("train", "val"):
        digest = data[part]["sha256"][:8]
        found[f"{part}.bin"] = f"{data[part]['tokens']:,} tokens of {data['corpus']} (sha256 {digest}...)"
    found["tokenizer.model"] = f"{data['vocab_size']:,} pieces (sha256 {data['tokenizer_sha256'][:8]}...)"
    return found


def differences(then, now):
    """`key: value then, value now` of each key whose values differ; a setting that is missing is one that is off."""
    keys = [*now, *(key for key in then if key not in now)]
    return [
        f"{key}: {then.get(key)} then, {now.get(key)} now"
        for key in keys
        if (then.get(key) or None) != (now.get(key) or None)
    ]


def training_state(state, optimizers, scaler, ema, device):
    """What last.pt holds under "training", beside the weights."""
    state.peak_memory_mb = max(state.peak_memory_mb, peak_memory_mb(device))
    return {
        **dataclasses.asdict(state),
        "ema": ema,
        "optimizers": [o.state_dict() for o in optimizers],
        "scaler": scaler.state_dict(),
    }


class RunFolder:
    """What a run writes into its folder, and when."""

    def __init__(self, config, meta, tokenizer, plan, origin, state):
        self.config, self.meta, self.tokenizer, self.plan = config, meta, tokenizer, plan
        self.origin, self.state = origin, state
        self.saved_step, self.saved_at = state.step, time.monotonic()  # of last.pt

    def begin(self, model, optimizers, scaler, ema, device):
        """Training starts: nothing of another run stays, and last.pt is there before any ckpt.pt."""
        out = self.config.out_dir
        self.write_settings()
        if self.state.step == 0:
            for old in glob.glob(os.path.join(glob.escape(out), "chck_*M.pt")):
                os.unlink(old)
        if self.state.step == 0 or not os.path.exists(os.path.join(out, "last.pt")):
            self.write_last(model, optimizers, scaler, ema, device)

    def write_settings(self):
        """config.yaml, as it was resolved: --config out/NAME/config.yaml repeats the run."""
        settings = {**dataclasses.asdict(self.config), "presets": {self.config.preset: {}}}
        settings["train"]["resume"] = "auto"  # `never` and `changed` are said once
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
        if self.state.step != self.saved_step:
            self.write_last(model, optimizers, scaler, ema, device)

    def write_last(self, model, optimizers, scaler, ema, device):
        training = training_state(self.state, optimizers, scaler, ema, device)
        self.save("last.pt", model, self.state.last_val_loss(), training=training)
        self.saved_step, self.saved_at = self.state.step, time.monotonic()


def find_last(config, origin, distributed, replace):
    """(path, dictionary) of the last.pt that train.resume asks for, (None, None) to start anew.

    UserError if it is there and is of other settings, or if starting anew would replace what another run has left.
    """
    setting, folder = config.train.resume, config.out_dir
    own = os.path.join(folder, "last.pt")
    path = own if setting in ("auto", "changed") else setting
    anew = setting == "never" or (path == own and (replace or not os.path.exists(own)))
    if distributed.any(not anew) and anew:
        raise UserError(
            f"{folder}: another process of this run finds a last.pt there, this one does not; all machines "
            "must share the folder"
        )
    here = not anew and os.path.exists(path) and os.path.exists(own) and os.path.samefile(path, own)
    if distributed.main and not here and not replace:
        left = sorted(name for name in os.listdir(folder) if name.endswith(".pt"))
        if left:
            raise UserError(
                f"{folder}: holds {', '.join(left)} of another run; --replace starts anew and replaces it, "
                "train.out=FOLDER keeps both"
            )
    if anew:
        return None, None
    tree = checkpoint.read(path)
    if not isinstance(tree.get("training"), dict):
        raise UserError(f"{path}: holds no training state; continue from a last.pt, or start anew with --replace")
    with checkpoint.reading(path):
        different = differences(decisive(tree["provenance"]), decisive(origin))
    if different and setting != "changed":
        raise UserError(
            f"{path}: was trained with other settings: {'; '.join(different)}. --replace starts anew here, "
            f"train.out=FOLDER keeps both, train.resume=changed goes on from {own} with the new ones"
        )
    return path, tree


def note_changes(tree, origin, state, plan):
    """Adds what differs from here on to state.changes. UserError if it comes too late."""
    folder = origin["settings"]["train"]["out"] or "this folder"
    if plan.steps < state.step:
        raise UserError(
            f"{folder}: {state.step} steps are trained already, {plan.steps} are asked for; train.out=FOLDER "
            "for a shorter run, or --replace to start anew here"
        )
    different = differences(decisive(tree["provenance"]), decisive(origin))
    if different and state.step == plan.steps:
        raise UserError(
            f"{folder}: this run has finished, so nothing is left to train with other settings: "
            f"{'; '.join(different)}. More train.max_steps make it longer, train.out=FOLDER keeps it"
        )
    then, now = ({key: p["settings"]["train"].get(key) for key in LENGTH} for p in (tree["provenance"], origin))
    different += [f"train.{line}" for line in differences(then, now)]
    state.changes += [f"at step {state.step}: {line}" for line in different]


def greeting(folder, state, plan, rate):
    """What a run that goes on says first. rate: the learning rate of its next step."""
    if state.step == plan.steps == state.evaluated:
        lines = [f"{folder}: this run has finished; its own figures follow. --replace starts it anew"]
    else:
        lines = [f"continuing {folder} at step {state.step} of {plan.steps}"]
        if state.changes and state.rows:
            lines.append(f"learning rate {state.rows[-1]['lr']:.3g} in the last step, {rate:.3g} in the next")
    return "\n".join([*(f"changed {line}" for line in state.changes), *lines])


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
    except Exception as e:  # PyTorch raises nearly anything on a state that is damaged, or of another shape
        raise UserError(
            f"{path}: its training state is damaged, or does not fit the changed settings ({first_line(e)}); go on "
            "from another copy or with the old settings, or start anew with --replace"
        ) from None
