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
from lab.files import UserError, atomic_write, first_line, require_writable
from lab.run import progress, resume
from lab.run.data import load_data, plan

import torch
import yaml

MOST_SKIPPED = 20  # steps in a row: at a millionth of its size, the scale is not what is wrong


class Run:
    """A run from its command line to its exit status, as one of its processes sees it. Use it as `with Run() as run`.

    config: every setting; device, dtype: where and in what the products are computed; train_data, val_data,
    tokenizer; line_start: the token that no other may look back past, if any; steps: how many there will be;
    distributed: rank, size, and the sums over the processes.
    """

    def __init__(self, argv=None):
        parser = argparse.ArgumentParser(description="Train a model on a prepared corpus.")
        args, self.config = settings.parse_args(parser, argv)
        self.replace = args.replace or "train.resume=never" in args.overrides
        self.again = settings.same_command(args)
        self.distributed = devices.Distributed()
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
        return self

    def __exit__(self, kind, error, trace):
        self.exits.close()
        # What PyTorch's errors have in common is their text: that of a CPU, that of a GPU
        if "can't allocate memory" in str(error) or "out of memory" in str(error):
            raise UserError(
                f"step {self.state.step}: out of memory ({first_line(error)[:200]}). For the same steps in less, add "
                "train.gradient_checkpointing=true, or halve train.batch_size and double "
                f"train.gradient_accumulation_steps; {self.again} then continues from {self.out}/last.pt if it is there"
            ) from None
        if kind is None and self.main:
            print(progress.closing_block(self))
        if kind is None and self.distributed.launched:
            self.distributed.leave(self.status)

    def autocast(self):
        """A context in which products are computed in the run's precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def compile(self, function):
        """The function, compiled if train.compile says so or, for `auto`, if it pays."""
        tokens = self.steps * self.plan.tokens_per_step
        setting = self.config.train.compile
        self.compiled, self.why = devices.pick_compile(self.device, setting, tokens, self.dtype)
        self.provenance["compiled"] = self.compiled
        return torch.compile(function) if self.compiled else function

    def path(self, name):
        return os.path.join(self.out, name)

    # -----------------------------------------------------------------------------------------------------------------
    # Starting and continuing

    def restore(self, model, optimizers, scaler):
        """The State that the run starts from: a new one, or that of last.pt, which is loaded into the arguments too."""
        here = self.last_path == self.path("last.pt")
        if self.last:
            self.state = resume.restore(self.last_path, self.last, model, optimizers, scaler)
            self.last = None  # it holds a second copy of the weights
        state = self.state
        if not os.path.exists(self.path("ckpt.pt")):  # lost, or in the folder that the run came from
            state.best, state.evaluated = math.inf, -1
        self.start = dataclasses.replace(state)  # where this session begins
        self.saved_step, self.saved_at = state.step if here else None, time.monotonic()  # of last.pt
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, self.end_after_step)
            self.exits.callback(signal.signal, number, before)
        finished = state.step == self.steps == state.evaluated
        if self.main:
            print(progress.banner(self, finished))
            self.shown = self.exits.enter_context(contextlib.closing(progress.Progress(self)))
        if self.main and not finished:
            self.write_settings()
            if not here:
                for old in glob.glob(os.path.join(glob.escape(self.out), "chck_*M.pt")):
                    os.unlink(old)
            self.save_last(state, model, optimizers, scaler)  # there before any ckpt.pt
        self.clock = time.perf_counter()
        return state

    def end_after_step(self, number, frame):
        """Handles SIGINT and SIGTERM: the first asks for an end after this step, a second SIGINT ends at once."""
        if self.distributed.told_to_stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.distributed.told_to_stop = number  # the next message of gradients says so
        with contextlib.suppress(OSError):  # not print: the signal may have come in the middle of one
            os.write(2, b"\nending after this step; Ctrl-C again ends at once\n")

    def write_settings(self):
        """config.yaml, as it was resolved: --config out/NAME/config.yaml repeats the run."""
        tree = {**dataclasses.asdict(self.config), "presets": {self.config.preset: {}}}
        tree["train"]["resume"] = "auto"  # `never` and `changed` are said once
        atomic_write(self.path("config.yaml"), yaml.safe_dump(tree, sort_keys=False))

    # -----------------------------------------------------------------------------------------------------------------
    # The three parts of the loop

    def evaluation_is_due(self, state):
        due = state.step % self.config.train.eval_every == 0 or state.step == self.steps
        return state.evaluated < 0 or (due and state.evaluated != state.step)  # below 0: there is no ckpt.pt yet

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
                self.save("ckpt.pt", state, model)
        self.clock = time.perf_counter()

    def is_over(self, state):
        """Whether all steps are done, or a signal asks for an end in any process."""
        stopped = self.distributed.stop and state.step < self.steps
        if stopped:
            self.status = 128 + (self.distributed.told_to_stop or signal.SIGTERM)
        return stopped or state.step == self.steps

    def save_is_due(self, state):
        """Every so many steps if train.save_every says so, else once a minute."""
        every = self.config.train.save_every
        due = state.step % every == 0 if every else time.monotonic() - self.saved_at > 60
        return self.main and due

    def save(self, name, state, model, **more):
        """Writes a self-contained checkpoint of the model as it is now. UserError if a weight is not a number."""
        weights = dict(model.named_parameters())
        try:
            checkpoint.check_finite(weights)
        except UserError as e:
            raise UserError(f"{self.path(name)}: not written at step {state.step}, {e}; try a lower rate") from None
        made = {**self.provenance, **resume.how_far(state, self.plan, self.meta)}
        tree = checkpoint.make(self.config.model, weights, self.tokenizer.model_bytes, made)
        checkpoint.save(self.path(name), {**tree, **more})

    def save_last(self, state, model, optimizers, scaler):
        """Writes last.pt, from which the run can continue, and losses.csv, unless no step was taken since."""
        if not self.main or state.step == self.saved_step:
            return
        state.peak_memory_mb = max(state.peak_memory_mb, devices.peak_memory_mb(self.device))
        self.save("last.pt", state, model, training=resume.training_state(state, optimizers, scaler))
        self.shown.write_csv()
        self.saved_step, self.saved_at = state.step, time.monotonic()
        self.clock = time.perf_counter()

    def trained(self, state, loss, norm, rate, skipped):
        """After a step: counts it and shows it. UserError if its loss is not a number, or if every step overflows."""
        elapsed = time.perf_counter() - self.clock
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        diverged = not math.isfinite(loss + norm) and not skipped
        if diverged or self.skipped_in_a_row > MOST_SKIPPED:
            raise UserError(
                f"step {state.step}: loss {loss}, gradient norm {norm} at learning rate {rate:.3g}. The checkpoints in "
                f"{self.out} are intact; try half that rate, a longer train.warmup, train.grad_clip=1 or "
                "train.dtype=float32"
            )
        state.step += 1
        state.skipped += skipped
        state.seconds += elapsed
        if state.step > self.start.step + 3:  # the first steps compile and warm up
            state.timed_seconds += elapsed
            state.timed_tokens += self.plan.tokens_per_step
        if self.main:
            self.shown.trained(loss, rate)
        self.clock = time.perf_counter()

    def checkpoints_due(self, state):
        """Names of the checkpoints that train.checkpoint_words wants at this number of words."""
        if not self.main or self.config.train.checkpoint_words == "none":
            return []
        return [f"chck_{millions}M.pt" for millions in resume.passed_words(state.step, self.plan)]


# ---------------------------------------------------------------------------------------------------------------------
# One run a folder


@contextlib.contextmanager
def own_folder(folder):
    """Makes the folder if necessary and keeps other runs out of it; removes it again if nothing was written there."""
    lock = os.path.join(folder, ".lock")
    require_writable(lock, "choose another folder with train.out=FOLDER")
    os.makedirs(folder, exist_ok=True)
    with open(lock, "wb") as handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another run is writing here; wait for it, or choose train.out=FOLDER") from None
        except (ImportError, OSError) as e:  # Windows, and some network file systems
            print(f"notice: {folder} cannot be locked ({first_line(e)}); do not start a second run there")
        for leftover in glob.glob(os.path.join(glob.escape(folder), "*.*.????????.tmp")):  # of a write that was killed
            os.unlink(leftover)
        yield
        with contextlib.suppress(OSError):  # Windows
            if os.listdir(folder) == [".lock"]:
                os.unlink(lock)
                os.rmdir(folder)
