"""What a run writes so that it can be continued, and so that its checkpoints say where they came from."""

import contextlib
import dataclasses
from dataclasses import dataclass, field
import glob
import math
import os
import platform
import subprocess

from lab import checkpoint
from lab.cli import ROOT
from lab.devices import device_name
from lab.files import UserError, first_line
from lab.run.data import bits_per_byte
from lab.settings import take_out_removed

import numpy as np
import torch


@dataclass
class State:
    """Where a run stands; in last.pt, beside the weights and the state of the optimisers."""

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

    def last(self, column):
        """The last number in a column of losses.csv; NaN before there is one."""
        return next((row[column] for row in reversed(self.rows) if row[column] != ""), math.nan)

    def tokens_per_second(self, since):
        """In the steps since that State, the first few of each session aside; None before there are any."""
        seconds = self.timed_seconds - since.timed_seconds
        return (self.timed_tokens - since.timed_tokens) / seconds if seconds else None


# ---------------------------------------------------------------------------------------------------------------------
# Where a checkpoint came from


def code_version():
    """The commit of this code, -dirty if it was changed since; empty outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):  # no git
        return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8").stdout.strip()
    return ""


def provenance(run):
    """Where a run's checkpoints come from, in plain data: the part that stays the same."""
    return {
        "corpus": run.meta["corpus"],
        "data": run.meta,
        "preset": run.config.preset,
        "settings": dataclasses.asdict(run.config),
        "device": device_name(run.device),
        "dtype": str(run.dtype).removeprefix("torch."),
        "processes": run.distributed.size,
        "commit": code_version(),  # of the code that runs, whatever is committed meanwhile
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
    }


def how_far(state, plan, meta):
    """The other part: how far the run has come."""
    val_loss = state.last("val_loss")
    return {
        "steps": state.step,
        "tokens": state.step * plan.tokens_per_step,
        "words": round(plan.words(state.step)),
        "epochs": state.step * plan.epochs_per_step,
        "train_loss": state.last("train_loss"),
        "val_loss": val_loss,
        "val_bits_per_byte": bits_per_byte(val_loss, meta["val"]),
        "seconds": state.seconds,
        "changes": state.changes,
    }


def passed_words(step, plan):
    """Those of checkpoint.BABYLM_WORDS that the last step has passed.

    At its end a run has also passed the mark that one more step would: train.max_words ends it just short of that.
    """
    seen = plan.words(step + 1 if step == plan.steps else step)
    return [mark for mark in checkpoint.BABYLM_WORDS if plan.words(step - 1) < mark * 10**6 <= seen]


# ---------------------------------------------------------------------------------------------------------------------
# last.pt

# Settings of the section train that may differ when a run continues.
CHANGE_NO_NUMBER = {
    *("device", "compile", "gradient_checkpointing", "deterministic"),  # the same numbers, up to rounding
    *("out", "resume", "log", "save_every", "checkpoint_words", "sample_tokens"),  # what is kept and shown, and where
    *("batch_size", "gradient_accumulation_steps"),  # what decides is their product
    *("max_steps", "epochs", "max_words"),  # a longer or shorter run of the same
}
LENGTH = ("max_steps", "epochs", "max_words")
# What a validation loss is measured with.
YARDSTICK = ("val.bin", "train.eval_windows", "train.isolate", "model.max_position_embeddings")


def decisive(provenance):
    """{setting: value} of all that decides the numbers of a run, or which of them is its best, ckpt.pt.

    One exception: another split of a step's windows into batches draws other dropout.
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
    """`key: value then, value now` of each key whose values differ; a missing setting counts as off."""
    changed = [key for key in now | then if (then.get(key) or None) != (now.get(key) or None)]
    return [f"{key}: {then.get(key)} then, {now.get(key)} now" for key in changed]


def training_state(state, optimizers, scaler):
    """What last.pt holds under "training", beside the weights."""
    states = [optimizer.state_dict() for optimizer in optimizers]
    return {**dataclasses.asdict(state), "optimizers": states, "scaler": scaler.state_dict()}


WAYS_OUT = "--replace starts anew here, train.out=FOLDER keeps both"


def find_last(run):
    """(path, dictionary) of the last.pt that train.resume asks for, (None, None) to start anew.

    Notes in it what changes from here on. UserError if it was trained with other settings or for more steps than are
    asked for, or if starting anew would replace what another run has left.
    """
    setting, folder = run.config.train.resume, run.out
    own = os.path.join(folder, "last.pt")
    path = own if setting in ("auto", "changed", "never") else setting
    anew = setting == "never" or (path == own and (run.replace or not os.path.exists(own)))
    if run.distributed.any(not anew) and anew:
        raise UserError(f"{folder}: another process finds a last.pt there, this one does not; share the folder")
    here = not anew and os.path.realpath(path) == os.path.realpath(own)
    left = sorted(glob.glob("*.pt", root_dir=folder))
    if left and run.main and not here and not run.replace:
        whose = "of another run" if "last.pt" in left or path != own else "but no last.pt to go on from"
        raise UserError(f"{folder}: holds {', '.join(left)} {whose}; {WAYS_OUT}")
    if anew:
        return None, None
    tree = checkpoint.read(path)
    with checkpoint.reading(path):
        if "training" not in tree:
            raise UserError("holds no training state; continue from a last.pt, or start anew with --replace")
        for section in ("model", "train"):
            if gone := take_out_removed(tree["provenance"]["settings"][section]):
                raise UserError(f"{section}.{gone[0]}")
        tree["training"]["changes"] += changes(run, tree["provenance"], tree["training"]["step"])
        then, now = decisive(tree["provenance"]), decisive(run.provenance)
        if differences(*({key: made.get(key) for key in YARDSTICK} for made in (then, now))):
            tree["training"] |= {"best": math.inf, "evaluated": -1}  # the old losses and the new cannot be compared
    return own if here else path, tree


def changes(run, then, step):
    """What differs between now and a last.pt with the provenance `then`, one line each; UserError if it may not."""
    now = run.provenance
    different = differences(decisive(then), decisive(now))
    if different and run.config.train.resume != "changed":
        go_on = "train.resume=changed continues with the new ones"
        raise UserError(f"was trained with other settings: {'; '.join(different)}. {WAYS_OUT}, {go_on}")
    if any(line.startswith("tokenizer.model") for line in different):
        raise UserError("learned the pieces of another tokenizer; train another model with train.out=FOLDER")
    if run.steps < step or (different and run.steps == step):
        asked = f"{step} steps are trained already, {run.steps} are asked for"
        raise UserError(f"{asked}, so nothing is left to train; {WAYS_OUT}")
    lengths = ({f"train.{key}": made["settings"]["train"].get(key) for key in LENGTH} for made in (then, now))
    return [f"at step {step}: {line}" for line in different + differences(*lengths)]


def restore(path, tree, model, optimizers, scaler):
    """Loads what find_last found into model, optimisers and scaler; returns the State."""
    training = tree["training"]
    try:
        model.load_state_dict(tree["weights"])
        for optimizer, saved in zip(optimizers, training["optimizers"], strict=True):
            groups = optimizer.state_dict()["param_groups"]  # today's learning rate, weight decay and betas
            optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        if training["scaler"]:  # none after a run in another precision
            scaler.load_state_dict(training["scaler"])
        known = {f.name for f in dataclasses.fields(State)}
        return State(**{key: value for key, value in training.items() if key in known})
    except Exception as e:  # PyTorch raises nearly anything for a state that is damaged or of another shape
        reason = first_line(str(e).removeprefix("Error(s) in loading state_dict for Model:"))
        raise UserError(f"{path}: is damaged, or does not fit the changed settings ({reason}); {WAYS_OUT}") from None
