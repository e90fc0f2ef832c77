"""Trains a model on a prepared corpus.

    python train.py [--preset NAME] [section.key=value ...]                          one process
    torchrun --nproc_per_node=N train.py [--preset NAME] [section.key=value ...]     N processes, same numbers

Optimisers, schedule, batches, step, validation, loop. What it does:
- mixed precision (bfloat16; float16 with a gradient scaler), gradient accumulation and checkpointing, torch.compile
- epochs without replacement: which windows a step sees follows from (seed, step) alone, however many processes run
- AdamW, or Muon for the hidden matrices; warm-up, then cosine, linear or constant; clipping
- ckpt.pt is the best on a fixed set of validation windows; last.pt continues a run to the bits it would have reached
- Ctrl-C, a scheduler's SIGTERM, a full disk or a NaN ends a run with a message and a checkpoint to continue from

Whatever changes no number is in `run` (lab/run/): settings, processes, device, data, folder, signals, screen.
"""

import math

from lab import cli, devices
from lab.run.muon import Muon
from lab.run.run import Run
from model import Model, own_line

import numpy as np
import torch

# ---------------------------------------------------------------------------------------------------------------------
# Optimisers and schedule


def make_optimizers(model, s, device):
    """AdamW, with Muon for the matrices of attention and MLP if asked. Each group remembers its peak learning rate."""
    hidden, matrices, vectors = [], [], []
    for name, p in model.named_parameters():
        if p.dim() == 1:  # norms and biases
            vectors.append(p)
        elif s.optimizer == "muon" and name.startswith(("attention.", "mlp.")):
            hidden.append(p)
        else:
            matrices.append(p)
    groups = [{"params": matrices, "weight_decay": s.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
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
    """The fraction of the peak learning rate in step 0, 1, ...: a linear warm-up from above 0, then the decay."""
    warmup = s.warmup if s.warmup >= 1 else s.warmup * steps
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if s.schedule == "constant":
        return 1.0
    planned = s.decay_steps if s.decay_steps and not s.max_words else steps  # a run may stop halfway down, on purpose
    done = min(1.0, (step - warmup) / max(1, planned - warmup))
    decay = 0.5 * (1 + math.cos(math.pi * done)) if s.schedule == "cosine" else 1 - done  # from 1 to 0
    lowest = s.min_learning_rate / s.learning_rate
    return lowest + (1 - lowest) * decay


# ---------------------------------------------------------------------------------------------------------------------
# One step


def make_batch(windows, run):
    """windows (B, T + 1) -> (ids (B, T), targets (B, T), mask).

    With train.isolate the mask lets no token look back past the BOS of its own line; without, it is None.
    """
    ids = windows[:, :-1]
    return ids, windows[:, 1:], own_line(ids, run.line_start)


def step_batches(run, step):
    """This process's batches of a step, one for each pass of gradient accumulation."""
    s, rank, processes = run.config.train, run.distributed.rank, run.distributed.size
    size = s.batch_size // processes
    first = step * s.gradient_accumulation_steps * s.batch_size + rank
    tokens = run.train_data.get_batch(first, s.gradient_accumulation_steps * size, stride=processes)
    tokens = devices.send(tokens, run.device)  # (gradient_accumulation_steps * B, T + 1)
    return [make_batch(windows, run) for windows in tokens.split(size)]


def seed_dropout(seed, step, rank):
    """Dropout follows from the step, like everything random in it, so a run that continues needs no saved state."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def batch_loss(model, hidden, batch, s):
    """Mean next-token loss. hidden: model.hidden, or the same compiled."""
    ids, targets, mask = batch
    return model.loss(hidden(ids, mask=mask, checkpointing=s.gradient_checkpointing), targets)


def compute_gradients(model, hidden, batches, scaler, run):
    """Forward and backward over a step's batches; returns the mean loss, a tensor that the device may still compute."""
    model.train()
    total = 0.0
    for batch in batches:
        with run.autocast():
            loss = batch_loss(model, hidden, batch, run.config.train) / len(batches)
        scaler.scale(loss).backward()
        total += loss.detach()
    return total


def update_weights(model, optimizers, scaler, loss, rate, run):
    """One step of the optimisers at `rate` times their peak; returns (loss, gradient norm, whether it was skipped).

    If float16 overflowed (a finite loss, whose scaled gradient is not), the whole step is skipped and the scale is
    halved for the next one. A loss that is not finite itself ends the run, in run.trained.
    """
    params = [p for p in model.parameters() if p.grad is not None]
    loss, stop = run.distributed.mean_gradients(params, loss)
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
    norm = torch.nn.utils.clip_grad_norm_(params, run.config.train.grad_clip or math.inf)
    loss, norm, stop = torch.stack((loss, norm, stop)).tolist()  # the one place where we wait for the device
    run.distributed.stop = stop > 0

    skipped = scaler.is_enabled() and math.isfinite(loss) and not math.isfinite(norm)
    for optimizer in optimizers:
        if not skipped:
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return loss, norm, skipped


# ---------------------------------------------------------------------------------------------------------------------
# Validation


@torch.no_grad()
def validate(model, run):
    """Mean loss over at most `eval_windows` windows, always the same, spread evenly over the held-out text."""
    s, rank, size = run.config.train, run.distributed.rank, run.distributed.size
    model.eval()
    mine = run.val_data.spread(s.eval_windows)[rank::size]
    total = 0.0
    for i in range(0, len(mine), s.batch_size):
        windows = run.val_data.take(mine[i : i + s.batch_size]).to(run.device)
        with run.autocast():
            loss = batch_loss(model, model.hidden, make_batch(windows, run), s)
        total += loss.item() * len(windows)
    total, count = run.distributed.total(total, len(mine))
    return total / count


def score_blimp(model, run):
    """Accuracy on a fixed subset of minimal pairs, to watch; never used to choose anything."""
    from eval_blimp import quick_accuracy
    from lab.score.pairs import find_data

    folder, _ = find_data(run.config.eval.data, run.meta)
    return quick_accuracy(model, run.tokenizer, folder, run.config.eval.blimp_pairs)


# ---------------------------------------------------------------------------------------------------------------------
# The run


def main(argv=None):
    with Run(argv) as run:
        s = run.config.train
        torch.manual_seed(s.seed)
        model = Model(run.config.model).to(run.device)  # initialised on the CPU: the same weights on every device
        hidden = run.compile(model.hidden)  # for training; validation and files use the model as it is
        optimizers = make_optimizers(model, s, run.device)
        scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
        state = run.restore(model, optimizers, scaler)  # a new one, or last.pt's
        batches = step_batches(run, state.step)  # of the first step; those of the next are made while it is computed

        while True:  # one round more than there are steps: the end is evaluated and saved
            # evaluate
            if run.evaluation_is_due(state):
                val_loss = validate(model, run)
                blimp = score_blimp(model, run) if run.blimp_is_due(state) else None
                run.evaluated(state, model, val_loss, blimp)

            # save
            over = run.is_over(state)
            if over or run.save_is_due(state):
                run.save_last(state, model, optimizers, scaler)
            if over:
                break

            # train
            if run.config.model.dropout:
                seed_dropout(s.seed, state.step, run.distributed.rank)
            rate = schedule(state.step, s, run.steps)
            loss = compute_gradients(model, hidden, batches, scaler, run)
            batches = step_batches(run, state.step + 1)  # while the device computes
            loss, norm, skipped = update_weights(model, optimizers, scaler, loss, rate, run)
            run.trained(state, loss, norm, s.learning_rate * rate, skipped)  # from here on, state.step is the next
            for name in run.checkpoints_due(state):
                run.save(name, state, model)
    return run.status


if __name__ == "__main__":
    cli.run(main)
