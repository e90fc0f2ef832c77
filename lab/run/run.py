"""What surrounds the model in a run: settings, processes, device, data, folder, signals, screen.

Nothing here changes a number: no weights, no optimiser and no loss live here.
"""

import argparse
import contextlib
import dataclasses
import glob
import math
import os
import signal
import time

from lab import checkpoint, devices, settings
from lab.devices import Distributed
from lab.files import UserError, atomic_write, first_line
from lab.run import progress, resume
from lab.run.data import load_data, plan

import torch
import yaml

MOST_SKIPPED = 20  # steps in a row: a millionth of the scale, so it was not the scale


class Diverged(Exception):
    """A loss or gradient that is not a number: Diverged(loss, gradient norm, learning rate)."""


class Run:
    """A run from its command line to its exit status, in this one of its processes. Use it as `with Run() as run`.

    config: every setting; device, dtype: where and in what the products are computed; train_data, val_data,
    tokenizer; line_start: the token that no other may look back past, if any; steps: how many there will be;
    distributed: rank, size, and the sums over the processes.
    """

    def __init__(self, argv=None):
        parser = argparse.ArgumentParser(description="Train a model on a prepared corpus.")
        args, self.config = settings.parse_args(parser, argv)
        self.replace = args.replace or "train.resume=never" in args.overrides
        self.distributed = Distributed()
        self.main = self.distributed.main  # the process that writes and speaks
        self.out, s, processes = self.config.out_dir, self.config.train, self.distributed.size
        self.state, self.exits = resume.State(), contextlib.ExitStack()
        self.skipped_in_a_row = self.status = 0

        self.device = devices.pick_device(s.device, "train.device", self.distributed)
        self.dtype = devices.pick_precision(self.device, s.dtype)
        self.distributed.connect(self.device)
        if s.batch_size % processes:
            raise UserError(f"train.batch_size: {s.batch_size} windows cannot be shared by {processes} processes")
        if self.device.type == "cpu":
            devices.keep_freed_memory(12 if s.gradient_checkpointing else None)  # MB: holes of larger ones add up
        if s.deterministic:
            devices.strict_mode()
        self.train_data, self.val_data, self.meta, self.tokenizer = load_data(self.config)
        self.config.model.vocab_size = self.meta["vocab_size"]
        self.line_start = self.tokenizer.bos_id if s.isolate else None
        self.plan = plan(self.config, self.train_data, self.meta)
        self.steps = self.plan.steps
        self.provenance = resume.provenance(self)
        self.last_path, self.last = resume.find_last(self)

    def __enter__(self):
        if self.main:
            self.exits.enter_context(own_folder(self.out))
        self.exits.enter_context(explained(self))
        return self

    def __exit__(self, kind, error, trace):
        self.exits.__exit__(kind, error, trace)
        if kind is None and self.main:
            print(progress.closing_block(self))
        if kind is None and self.distributed.launched:
            self.distributed.leave(self.status)

    def autocast(self):
        """In it, products are computed in the run's precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def compile(self, function):
        """The function, compiled if train.compile says so or if that pays."""
        tokens = self.steps * self.plan.tokens_per_step
        setting = self.config.train.compile
        self.compiled, self.why = devices.pick_compile(self.device, setting, tokens, self.dtype)
        self.provenance["compiled"] = self.compiled
        return torch.compile(function) if self.compiled else function

    # -----------------------------------------------------------------------------------------------------------------
    # Beginning, and going on

    def restore(self, model, optimizers, scaler):
        """The State that the run starts from: a new one, or last.pt's, which also fills the three arguments."""
        here = self.last_path == self.path("last.pt")
        if self.last:
            self.state = resume.restore(self.last_path, self.last, model, optimizers, scaler)
            self.last = None  # no need of a second copy of the weights
        if not os.path.exists(self.path("ckpt.pt")):  # lost, or in the folder that the run came from
            self.state.best, self.state.evaluated = math.inf, -1
        self.first_step = self.state.step
        self.saved_step, self.saved_at = self.state.step if here else -1, time.monotonic()  # of last.pt
        self.signals = Signals(self.exits, self.distributed)
        finished = self.state.step == self.steps == self.state.evaluated
        if self.main:
            print(progress.banner(self, finished))
        if self.main and not finished:
            self.write_settings()
            if not here:
                for old in glob.glob(os.path.join(glob.escape(self.out), "chck_*M.pt")):
                    os.unlink(old)
            self.save_last(self.state, model, optimizers, scaler)  # there before any ckpt.pt
        self.shown = self.exits.enter_context(contextlib.closing(progress.Progress(self, show=self.main)))
        self.clock = time.perf_counter()
        return self.state

    def write_settings(self):
        """config.yaml, as it was resolved: --config out/NAME/config.yaml repeats the run."""
        tree = {**dataclasses.asdict(self.config), "presets": {self.config.preset: {}}}
        tree["train"]["resume"] = "auto"  # `never` and `changed` are said once
        atomic_write(self.path("config.yaml"), yaml.safe_dump(tree, sort_keys=False))

    def path(self, name):
        return os.path.join(self.out, name)

    # -----------------------------------------------------------------------------------------------------------------
    # The three parts of the loop

    def evaluation_is_due(self, state):
        due = state.step % self.config.train.eval_every == 0 or state.step == self.steps
        return due and state.evaluated != state.step

    def blimp_is_due(self, state):
        every = self.config.eval.blimp_every
        return self.main and every and (state.step % every == 0 or state.step == self.steps)

    def evaluated(self, state, model, val_loss, blimp):
        """After a validation: shows it, and keeps the model as it is now if it is the best so far."""
        state.evaluated = state.step
        if self.main:
            sample = progress.sample_text(model, self.tokenizer, self.config.train.sample_tokens, seed=state.step)
            self.shown.evaluated(val_loss, blimp, sample)
        if val_loss < state.best:
            state.best = val_loss
            if self.main:
                self.save("ckpt.pt", state, model, val_loss)
        self.clock = time.perf_counter()

    def is_over(self, state):
        """Whether all steps are done, or a signal asks for an end in any process."""
        self.shown.between_steps()
        stop = self.distributed.stop if self.distributed.launched else self.signals.caught
        if stop and state.step < self.steps:
            self.status = 128 + (self.signals.caught or signal.SIGTERM)
        return bool(stop) or state.step == self.steps

    def save_is_due(self, state):
        """Every so many steps if train.save_every says so, else once a minute."""
        every = self.config.train.save_every
        due = state.step % every == 0 if every else time.monotonic() - self.saved_at > 60
        return self.main and due

    def save(self, name, state, model, val_loss, **more):
        """A self-contained checkpoint of the model's weights as they are now, if they are numbers."""
        weights = dict(model.named_parameters())
        try:
            checkpoint.check_finite(weights)
        except UserError as e:
            raise UserError(f"{self.path(name)}: not written at step {state.step}, {e}; try a lower rate") from None
        bits = progress.bits_per_byte(val_loss, self.meta["val"])
        made = {**self.provenance, **resume.how_far(state, self.plan, val_loss, bits)}
        tree = checkpoint.make(self.config.model, weights, self.tokenizer.model_bytes, made)
        checkpoint.save(self.path(name), {**tree, **more})

    def save_last(self, state, model, optimizers, scaler):
        """last.pt, from which the run can go on, unless nothing has happened since it was written."""
        if not self.main or state.step == self.saved_step:
            return
        state.peak_memory_mb = max(state.peak_memory_mb, devices.peak_memory_mb(self.device))
        training = resume.training_state(state, optimizers, scaler)
        self.save("last.pt", state, model, state.last_val_loss(), training=training)
        self.saved_step, self.saved_at = state.step, time.monotonic()
        self.clock = time.perf_counter()

    def trained(self, state, loss, norm, rate, skipped):
        """After a step: counts it, shows it, and ends a run in which every step overflows."""
        elapsed = time.perf_counter() - self.clock
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.skipped_in_a_row > MOST_SKIPPED:
            raise Diverged(loss, norm, rate)
        state.step += 1
        state.skipped += skipped
        state.seconds += elapsed
        if state.step > self.first_step + 3:  # the first steps compile and warm up
            state.timed_seconds += elapsed
            state.timed_tokens += self.plan.tokens_per_step
        self.shown.trained(loss, rate)
        self.clock = time.perf_counter()

    def checkpoints_due(self, state):
        """Names of the checkpoints that are kept for the words seen, see train.checkpoint_words."""
        if not self.main or self.config.train.checkpoint_words == "none":
            return []
        return [f"chck_{millions}M.pt" for millions in resume.passed_words(state.step, self.plan)]


# ---------------------------------------------------------------------------------------------------------------------
# One run a folder


def own_folder(folder):
    """Makes the folder, if need be, and locks it against a second run until the file that it returns is closed."""
    try:
        os.makedirs(folder, exist_ok=True)
        handle = open(os.path.join(folder, ".lock"), "wb")
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror}); choose another with train.out=FOLDER") from None
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        pass
    except BlockingIOError:
        raise UserError(f"{folder}: another run is writing here; wait for it, or choose train.out=FOLDER") from None
    except OSError as e:  # some network file systems
        print(f"notice: {folder}: this file system has no locks ({e.strerror}); let no second run write here")
    for leftover in glob.glob(os.path.join(glob.escape(folder), "*.*.????????.tmp")):  # of a write that was killed
        os.unlink(leftover)
    return handle


# ---------------------------------------------------------------------------------------------------------------------
# What can end it


class Signals:
    """The first SIGINT or SIGTERM asks for an end after this step; a second SIGINT ends at once."""

    def __init__(self, exits, distributed):
        self.caught, self.distributed = None, distributed
        for number in (signal.SIGINT, signal.SIGTERM):
            exits.callback(signal.signal, number, signal.signal(number, self.handle))  # as before, in the end

    def handle(self, number, frame):
        if self.caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = number
        self.distributed.told_to_stop = True  # the next message of gradients says so
        with contextlib.suppress(OSError):  # not print: the signal may have come in the middle of one
            os.write(2, b"\nending after this step; Ctrl-C again ends at once\n")


@contextlib.contextmanager
def explained(run):
    """Turns what can go wrong in a step into a UserError that says what to do."""
    try:
        yield
    except Diverged as e:
        loss, norm, rate = e.args
        losses = [row["train_loss"] for row in run.state.rows if row["train_loss"] != ""]
        raise UserError(
            f"step {run.state.step}: loss {loss}, gradient norm {norm} at learning rate {rate:.3g}; last good "
            f"loss {losses[-1] if losses else 'none'}. The checkpoints in {run.out} are intact; try half the "
            "learning rate, a longer train.warmup, train.grad_clip=1 or train.dtype=float32"
        ) from None
    except RuntimeError as e:  # the class of PyTorch's error for a GPU is one, and all that there is for a CPU
        if not (isinstance(e, torch.OutOfMemoryError) or "can't allocate memory" in str(e)):
            raise
        s = run.config.train
        raise UserError(
            f"step {run.state.step}: out of memory ({first_line(e)[:200]}). The checkpoints in {run.out} are intact; "
            f"the same steps in less memory: train.batch_size={max(1, s.batch_size // 2)} "
            f"train.gradient_accumulation_steps={2 * s.gradient_accumulation_steps}, or "
            "train.gradient_checkpointing=true. The command so changed continues from last.pt"
        ) from None
