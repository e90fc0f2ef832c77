"""What can end a run, in one line that says what to do."""

import contextlib

from lab.files import UserError, first_line

import torch


class Diverged(Exception):
    """A loss or gradient that is not a number: Diverged(loss, gradient norm, learning rate)."""


@contextlib.contextmanager
def explained(config, state):
    """Turns what may go wrong in a step into a UserError."""
    saved = f"The checkpoints in {config.out_dir} are intact"
    try:
        yield
    except Diverged as e:
        loss, norm, rate = e.args
        losses = [row["train_loss"] for row in state.rows if row["train_loss"] != ""]
        raise UserError(
            f"step {state.step}: loss {loss}, gradient norm {norm} at learning rate {rate:.3g}; last good "
            f"loss {losses[-1] if losses else 'none'}. {saved}; "
            "try half the learning rate, a longer train.warmup, train.grad_clip=1 or "
            "train.dtype=float32"
        ) from None
    except RuntimeError as e:  # PyTorch's error for a GPU is one, and its only one for a CPU
        if not (isinstance(e, torch.OutOfMemoryError) or "can't allocate memory" in str(e)):
            raise
        s = config.train
        smaller = (
            f"train.batch_size={max(1, s.batch_size // 2)} "
            f"train.gradient_accumulation_steps={2 * s.gradient_accumulation_steps}"
        )
        checkpointing = "" if s.gradient_checkpointing else " or train.gradient_checkpointing=true"
        reason = first_line(e)[:200]
        raise UserError(
            f"step {state.step}: out of memory ({reason}). {saved}; the same steps in less memory: "
            f"{smaller}{checkpointing}. The command so changed continues from last.pt"
        ) from None
