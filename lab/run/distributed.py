"""The processes of a run: one, or those that torchrun started."""

import os
import sys

from lab.files import UserError, first_line

import torch
import torch.distributed as dist


class Distributed:
    """Rank and number of the processes, and the sums they form together.

    Whatever torchrun starts forms a group, even a single process, so that what runs on one is what runs on eight.
    Without torchrun there is no group, and nothing is sent.
    """

    def __init__(self):
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))  # on this machine: which of its GPUs is ours
        self.main = self.rank == 0
        self.launched = "RANK" in os.environ
        self.device = torch.device("cpu")  # where the tensors of a message must be
        self.told_to_stop = False  # this process
        self.stop = False  # all of them, as the last message of gradients said

    def connect(self, device):
        if not self.launched:
            return
        if device.type == "cuda":  # nccl knows no CPU tensors
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", device_id=device)
            self.device = device
        else:
            dist.init_process_group("gloo")

    def reduce(self, tensor, operation="SUM"):
        """Replaces the tensor by its sum over the processes."""
        try:
            dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
        except RuntimeError as e:
            raise UserError(
                f"another process of this run has ended, so this one ends too ({first_line(e)}); its own "
                "message says why. The same command continues from last.pt"
            ) from None

    def mean_gradients(self, params, loss):
        """Replaces each gradient by its mean over the processes; returns the mean loss, and above 0 if any is to stop.

        All of it travels in one message, and from then on the gradients are views of that message, not copies.
        """
        if not self.launched:
            return loss, torch.zeros_like(loss)
        parts = [*(p.grad for p in params), loss, torch.full_like(loss, self.told_to_stop)]
        message = torch.cat([part.flatten() for part in parts])
        if self.device.type == "cuda":
            self.reduce(message, "AVG")
        else:  # gloo has no mean
            self.reduce(message)
            message /= self.size
        means = message.split([part.numel() for part in parts])
        *gradients, loss, stop = (mean.view_as(part) for mean, part in zip(means, parts))
        for p, gradient in zip(params, gradients):
            p.grad = gradient
        return loss, stop

    def total(self, *numbers):
        """The sums of plain numbers over the processes."""
        if not self.launched:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self.reduce(tensor)
        return tensor.tolist()

    def any(self, flag):
        """Whether the flag is set in any process."""
        return self.total(float(bool(flag)))[0] > 0

    def leave(self, status):
        """Ends this process here: at the interpreter's end, a thread of gloo's still at work aborts one run in ten."""
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(status)
