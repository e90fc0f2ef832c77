"""Trains a model on a prepared corpus.

    python train.py [--preset NAME] [section.key=value ...]                          one process
    torchrun --nproc_per_node=N train.py [--preset NAME] [section.key=value ...]     N processes, same numbers

Set up, optimisers, schedule, step, validate, loop. What it does:
- mixed precision (bfloat16; float16 with a gradient scaler), gradient accumulation and checkpointing, torch.compile
- epochs without replacement: which windows a step sees follows from (seed, step) alone, however many processes
- AdamW, or Muon for the hidden matrices; warm-up, then cosine, linear or constant; clipping; averaged weights; z-loss
- ckpt.pt is the best on a fixed set of validation windows; last.pt continues a run to the bits it would have reached
- Ctrl-C, a scheduler's SIGTERM, a full disk, a NaN: ends with a message and a checkpoint to go on from

What is not a lesson in training lives in lab/: data.py (windows of tokens), distributed.py (processes), devices.py,
resume.py (last.pt), interrupts.py (Ctrl-C), progress.py (everything shown), mntp.py (an objective that fills gaps).
"""

import argparse
import contextlib
import functools
import math
import signal
import time

from lab import cli, settings
from lab.files import UserError
from lab.run import devices, interrupts, mntp, progress, resume
from lab.run.data import load_data, plan
from lab.run.distributed import Distributed
from lab.run.failures import Diverged, explained
from lab.run.muon import Muon
from model import Model, own_line

import numpy as np
import torch

# ---------------------------------------------------------------------------------------------------------------------
# Optimisers and schedule


def make_optimizers(model, s, device):
    """AdamW, and Muon for the matrices of attention and MLP if asked. Each group remembers its peak learning rate."""
    hidden, others = [], []
    for name, p in model.named_parameters():
        is_hidden = p.dim() == 2 and name.startswith(("attention.", "mlp."))
        (hidden if is_hidden and s.optimizer == "muon" else others).append(p)
    groups = [
        {"params": [p for p in others if p.dim() > 1], "weight_decay": s.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]  # norms and biases
    groups = [group for group in groups if group["params"]]
    fused = device.type in ("cuda", "cpu")
    optimizers = [torch.optim.AdamW(groups, lr=s.learning_rate, betas=tuple(s.betas), fused=fused)]
    if hidden:
        dtype = torch.bfloat16 if devices.best_precision(device) == "bfloat16" else torch.float32
        optimizers.append(Muon(hidden, lr=s.muon_learning_rate, weight_decay=s.weight_decay, dtype=dtype))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def schedule(step, s, steps):
    """Fraction of the peak learning rate in step 0, 1, ...: a linear warm-up, not starting at 0, then the decay."""
    warmup = s.warmup if s.warmup >= 1 else s.warmup * steps
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if s.schedule == "constant":
        return 1.0
    planned = steps if s.max_words else s.decay_steps or steps
    done = min(1.0, (step - warmup) / max(1, planned - warmup))
    shape = 0.5 * (1 + math.cos(math.pi * done)) if s.schedule == "cosine" else 1 - done
    floor = s.min_learning_rate / s.learning_rate
    return floor + (1 - floor) * shape


# ---------------------------------------------------------------------------------------------------------------------
# One step


def step_batches(data, step, s, line_start, distributed, device):
    """This process's micro-batches of a step: a list of (ids (B, T), targets (B, T), mask or None, gaps or None)."""
    size = s.batch_size // distributed.size
    first = step * s.gradient_accumulation_steps * s.batch_size + distributed.rank
    tokens = data.get_batch(first, s.gradient_accumulation_steps * size, stride=distributed.size)
    tokens = devices.send(tokens, device)  # (gradient_accumulation_steps * B, T + 1)
    batches = []
    for micro, windows in enumerate(tokens.split(size)):
        ids, targets = windows[:, :-1], windows[:, 1:]
        gaps = mntp.draw_gaps(s.mntp, ids.shape, [s.seed, step, micro], distributed.rank, distributed.size)
        gaps = None if gaps is None else devices.send(gaps, device)
        batches.append((ids, targets, own_line(ids, line_start), gaps))
    return batches


def seed_dropout(seed, step, rank):
    """Dropout follows from the step, like everything random in it: there is nothing to save for resume."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def batch_loss(model, hidden, batch, s):
    """Mean next-token loss; of the windows that have gaps, the loss of filling them. hidden: model.hidden."""
    ids, targets, mask, gaps = batch
    if gaps is not None:
        return mntp.loss(model, hidden, batch, s)
    return model.loss(hidden(ids, mask=mask, checkpointing=s.gradient_checkpointing), targets, s.z_loss)


def train_step(model, hidden, batches, optimizers, scaler, autocast, rate, s, distributed, meanwhile=lambda: None):
    """One optimiser step at `rate` times the peak learning rate; returns (loss, gradient norm).

    meanwhile(): what the CPU does while a GPU is still busy with the step.
    The norm is infinite where float16 overflowed: then the step was left out, and the next has half the scale.
    """
    model.train()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate

    total = 0.0
    for batch in batches:
        with autocast():
            loss = batch_loss(model, hidden, batch, s) / len(batches)
        scaler.scale(loss).backward()
        total += loss.detach()

    params = [p for p in model.parameters() if p.grad is not None]
    total, stop = distributed.mean_gradients(params, total)
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(params, s.grad_clip or math.inf)
    meanwhile()
    loss, norm, stop = torch.stack((total, norm, stop)).tolist()  # here, and only here, we wait for the device
    distributed.stop = stop > 0

    overflow = scaler.is_enabled() and math.isfinite(loss) and not math.isfinite(norm)
    if not math.isfinite(loss + norm) and not overflow:
        raise Diverged(loss, norm, optimizers[0].param_groups[0]["lr"])
    for optimizer in optimizers:
        if not overflow:
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return loss, norm


# ---------------------------------------------------------------------------------------------------------------------
# Validation


@contextlib.contextmanager
def averaged_weights(model, ema):
    """The model with its averaged weights, if there are any."""
    if not ema:
        yield
        return
    current = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.load_state_dict(ema)
    yield
    model.load_state_dict(current)


@torch.no_grad()
def validate(model, data, s, line_start, autocast, distributed, device):
    """Mean loss over at most `eval_windows` fixed windows, which are spread evenly over the held-out text."""
    model.eval()
    mine = data.spread(s.eval_windows)[distributed.rank :: distributed.size]
    total = 0.0
    for i in range(0, len(mine), s.batch_size):
        windows = data.take(mine[i : i + s.batch_size]).to(device)
        ids, targets = windows[:, :-1], windows[:, 1:]
        with autocast():
            loss = batch_loss(model, model.hidden, (ids, targets, own_line(ids, line_start), None), s)
        total += loss.item() * len(ids)
    total, windows = distributed.total(total, len(mine))
    return total / windows


def score_blimp(model, tokenizer, config, meta):
    """Accuracy on a fixed subset of minimal pairs, to watch; never used to choose anything."""
    from eval_blimp import quick_accuracy
    from lab.score.pairs import find_data

    folder, _ = find_data(config.eval.data, meta)
    return quick_accuracy(model, tokenizer, folder, config.eval.blimp_pairs)


# ---------------------------------------------------------------------------------------------------------------------
# The run

MOST_SKIPPED = 20  # steps in a row: a millionth of the scale, so it was not the scale


def main(argv=None):
    args, config = settings.parse_args(argparse.ArgumentParser(description="Train a model on a prepared corpus."), argv)
    replace = args.replace or "train.resume=never" in args.overrides
    distributed = Distributed()
    with interrupts.own_folder(config.out_dir) if distributed.main else contextlib.nullcontext():
        return run(config, distributed, replace)


def run(config, distributed, replace):
    s = config.train

    # device and precision
    device = devices.pick_device(s.device, "train.device", distributed)
    dtype, scaled = devices.pick_precision(device, s.dtype)
    autocast = functools.partial(torch.autocast, device.type, dtype, enabled=dtype != torch.float32)
    distributed.connect(device)
    if s.batch_size % distributed.size:
        raise UserError(
            f"train.batch_size: {s.batch_size} windows cannot be shared equally by {distributed.size} processes"
        )
    if device.type == "cpu":
        devices.keep_freed_memory(12 if s.gradient_checkpointing else None)  # MB: holes of larger ones add up
    if s.deterministic:
        devices.strict_mode()

    # data
    train_data, val_data, meta, tokenizer = load_data(config)
    config.model.vocab_size = meta["vocab_size"]
    length = plan(config, train_data, meta)

    # go on from last.pt, if there is one
    origin = resume.origin(config, meta, device, dtype, distributed.size)
    last_path, last = resume.find_last(config, origin, distributed, replace)

    # model and optimisers
    torch.manual_seed(s.seed)
    model = Model(config.model).to(device)  # initialised on the CPU: the same weights on every device
    line_start = tokenizer.bos_id if s.isolate else None  # a token that none may look past, if any
    tokens = length.steps * length.tokens_per_step
    compiled, why = devices.pick_compile(device, s.compile, tokens, dtype)
    hidden = torch.compile(model.hidden) if compiled else model.hidden  # validation and files use the model as it is
    optimizers = make_optimizers(model, s, device)
    scaler = torch.amp.GradScaler(device.type, enabled=scaled)
    ema = {name: p.detach().clone() for name, p in model.named_parameters()} if s.ema else None

    state = resume.restore(last_path, last, model, optimizers, scaler, ema) if last else resume.State()
    first_step, skipped_in_a_row = state.step, 0
    origin["compiled"] = compiled
    folder = resume.RunFolder(config, meta, tokenizer, length, origin, state)
    if last:
        resume.note_changes(last, origin, state, length)
    if distributed.main:
        last_rate = s.learning_rate * schedule(length.steps - 1, s, length.steps)
        print(progress.banner(config, meta, length, origin, scaled, why, last_rate))
        if last:
            rate = s.learning_rate * schedule(state.step, s, length.steps)
            print(resume.greeting(config.out_dir, state, length, rate))
    if state.step == length.steps == state.evaluated:
        if distributed.main:
            print(progress.closing_block(config, meta, length, state, stopped=False))
        if distributed.launched:
            distributed.leave(0)
        return 0
    signals = interrupts.Signals()

    @functools.lru_cache(2)  # this step's, and the next one's, which are made while a GPU works
    def batches_of(step):
        return step_batches(train_data, step, s, line_start, distributed, device)

    if distributed.main:
        folder.begin(model, optimizers, scaler, ema, device)
    shown = progress.Progress(config, meta, length, state, device, show=distributed.main)
    with contextlib.closing(shown), explained(config, state):
        while True:  # one round more than steps: the end is evaluated and saved
            last_step = state.step >= length.steps

            # evaluate
            if (state.step % s.eval_every == 0 or last_step) and state.evaluated != state.step:
                with averaged_weights(model, ema):
                    val_loss = validate(model, val_data, s, line_start, autocast, distributed, device)
                    state.evaluated = state.step
                    blimp, sample = "", ""
                    if distributed.main:
                        if config.eval.blimp_every and (state.step % config.eval.blimp_every == 0 or last_step):
                            blimp = score_blimp(model, tokenizer, config, meta)
                        sample = progress.sample_text(model, tokenizer, s.sample_tokens, seed=state.step)
                    shown.evaluated(val_loss, blimp, sample)
                    if val_loss < state.best:
                        state.best = val_loss
                        if distributed.main:
                            folder.save("ckpt.pt", model, val_loss)
            shown.append_csv()

            # save
            stop = distributed.stop if distributed.launched else signals.caught
            if distributed.main and (folder.last_is_due() or last_step or stop):
                folder.save_last(model, optimizers, scaler, ema, device)
            if last_step or stop:
                break

            # train
            start = time.perf_counter()
            if config.model.dropout:
                seed_dropout(s.seed, state.step, distributed.rank)
            rate = schedule(state.step, s, length.steps)
            batches, next_batches = batches_of(state.step), functools.partial(batches_of, state.step + 1)
            distributed.told_to_stop = bool(signals.caught)
            loss, norm = train_step(
                model, hidden, batches, optimizers, scaler, autocast, rate, s, distributed, next_batches
            )
            overflow = not math.isfinite(norm)
            skipped_in_a_row = skipped_in_a_row + 1 if overflow else 0
            if skipped_in_a_row > MOST_SKIPPED:
                raise Diverged(loss, norm, s.learning_rate * rate)
            if ema:
                torch._foreach_lerp_(list(ema.values()), [p.detach() for p in model.parameters()], 1 - s.ema)
            state.step += 1
            state.skipped += overflow
            elapsed = time.perf_counter() - start
            state.count_time(elapsed, length.tokens_per_step, warm=state.step > first_step + 3)
            shown.trained(loss, s.learning_rate * rate, elapsed, compiled)
            if distributed.main:
                for millions in resume.passed_words(s.checkpoint_words, state.step, length):
                    with averaged_weights(model, ema):
                        folder.save(f"chck_{millions}M.pt", model, state.last_val_loss())

    ended_by = None if last_step else signals.caught or signal.SIGTERM
    if distributed.main:
        print(progress.closing_block(config, meta, length, state, stopped=not last_step))
    status = 128 + ended_by if ended_by else 0
    if distributed.launched:
        distributed.leave(status)
    return status


if __name__ == "__main__":
    cli.run(main)
