"""The processes of a run: one, or those that torchrun started."""

import os
import sys

from lab.files import UserError, first_line

import torch
import torch.distributed as dist


class Distributed:
    """Rank and number of the processes, and the sums they make together. A process alone needs no group and makes none.

    Whatever torchrun starts forms a group, also a single process: what runs there is what runs on eight.
    """

    def __init__(self):
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))  # on this machine: which of its GPUs is ours
        self.main = self.rank == 0
        self.launched = "RANK" in os.environ
        self.device = torch.device("cpu")  # where the tensors of a message have to be

    def connect(self, device):
        if not self.launched:
            return
        if device.type == "cuda":  # nccl knows no CPU tensors
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", device_id=device)
            self.device = device
        else:
            dist.init_process_group("gloo")

    def sum(self, tensor):
        """Replaces the tensor by its sum over the processes."""
        if not self.launched:
            return
        try:
            dist.all_reduce(tensor)
        except RuntimeError as e:
            raise UserError(
                f"another process of this run has ended, so this one ends too ({first_line(e)}); its own "
                "message says why. The same command continues from last.pt"
            ) from None

    def mean(self, tensors):
        """Replaces each tensor by its mean over the processes, all in one message."""
        if not self.launched:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        self.sum(flat)
        means = (flat / self.size).split([t.numel() for t in tensors])
        for tensor, mean in zip(tensors, means):
            tensor.copy_(mean.view_as(tensor))

    def total(self, *numbers):
        """The sums of plain numbers over the processes."""
        if not self.launched:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        self.sum(tensor)
        return tensor.tolist()

    def any(self, flag):
        """Whether the flag is set in any process."""
        return self.total(float(bool(flag)))[0] > 0

    def leave(self, status):
        """Ends this process. At the interpreter's own end, a thread of gloo's, not done yet, aborts one run in ten."""
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(status)
