"""What a run writes so that it can go on, and so that its checkpoints say where they came from."""
import dataclasses
import math
import os
import platform
import subprocess
from dataclasses import dataclass, field

import numpy as np
import torch

from lab import checkpoint
from lab.devices import device_name, peak_memory_mb
from lab.files import UserError

BABYLM_WORDS = [*range(1, 10), *range(10, 101, 10)]   # millions of words seen at which the challenge wants a checkpoint


@dataclass
class State:
    """Where a run stands. last.pt keeps it, beside weights and optimisers."""
    step: int = 0
    evaluated: int = -1                                                 # the step of the last validation
    best: float = math.inf                                              # lowest validation loss
    skipped: int = 0                                                    # steps that overflowed in float16
    rows: list = field(default_factory=list)                            # of losses.csv
    seconds: float = 0.0                                                # spent in steps, of all parts of the run
    timed_tokens: int = 0                                              # those of steps without compilation and warm-up,
    timed_seconds: float = 0.0                                          # and the time they took
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
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=here)
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
        "commit": code_version(),                               # of the code that runs, whatever is committed meanwhile
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
    """The marks of train.checkpoint_words that the last step has passed, in millions of words."""
    if setting == "none":
        return []
    return [mark for mark in BABYLM_WORDS if plan.words(step - 1) < mark * 10**6 <= plan.words(step)]


# ---------------------------------------------------------------------------------------------------------------------
# last.pt


def same_run(config, meta, plan):
    """What must agree for a run to be continued."""
    return {"model": dataclasses.asdict(config.model), "data": meta["train"]["sha256"], "train.seed": config.train.seed,
            "train.optimizer": config.train.optimizer, "train.ema": bool(config.train.ema),
            "windows per step": plan.windows_per_step}


def training_state(identity, state, optimizers, scaler, ema, device):
    """What last.pt holds under "training", beside the weights. identity: of same_run."""
    state.peak_memory_mb = max(state.peak_memory_mb, peak_memory_mb(device))
    return {"same_run": identity, **dataclasses.asdict(state), "ema": ema,
            "optimizers": [o.state_dict() for o in optimizers], "scaler": scaler.state_dict()}


def refuse_nan(weights, path, step):
    """UserError if a weight is not a number: such a checkpoint must not replace a good one."""
    for name, w in weights.items():
        if not torch.isfinite(w).all():
            raise UserError(f"{path}: not written at step {step}, weight {name} holds NaN or infinite numbers; what "
                            "was there before is untouched. Try half the learning rate")


def greeting(folder, state, plan):
    if state.step >= plan.steps:
        return f"{folder}: this run has finished; its own figures follow. train.resume=never starts it anew"
    return f"continuing {folder} at step {state.step} of {plan.steps}"


def find_last(setting, folder, identity):
    """(path, dictionary) of the last.pt that train.resume asks for, (None, None) to start anew.

    UserError if it is not one of this run. identity: of same_run.
    """
    path = os.path.join(folder, "last.pt") if setting == "auto" else setting
    if setting == "never" or (setting == "auto" and not os.path.exists(path)):
        return None, None
    tree = checkpoint.read(path)
    training = tree.get("training")
    if not isinstance(training, dict):
        raise UserError(f"{path}: holds no training state; continue from a last.pt, or start anew with "
                        "train.resume=never")
    then = training.get("same_run") or {}
    different = [key for key, now in identity.items() if then.get(key) != now]
    if different:
        raise UserError(f"{path}: belongs to another run, {' and '.join(different)} differ; set train.resume=never to "
                        "start anew (this replaces it) or train.out=FOLDER to keep both")
    return path, tree


def restore(path, tree, model, optimizers, scaler, ema):
    """Puts what find_last gave into model, optimisers, scaler and averaged weights; returns the State."""
    training = tree["training"]
    try:
        model.load_state_dict(tree["weights"])
        for optimizer, saved in zip(optimizers, training["optimizers"], strict=True):
            groups = optimizer.state_dict()["param_groups"]             # today's learning rate, weight decay and betas
            optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        if training["scaler"]:                                          # none after a run in another precision
            scaler.load_state_dict(training["scaler"])
        for name, average in (ema or {}).items():
            average.copy_(training["ema"][name])
        known = {f.name for f in dataclasses.fields(State)}
        return State(**{key: value for key, value in training.items() if key in known})
    except Exception as e:                                           # PyTorch raises nearly anything on a damaged state
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise UserError(f"{path}: its training state is damaged ({reason}); go on from another copy, or start anew "
                        "with train.resume=never") from None
