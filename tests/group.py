"""train.py, saying at its end in what group of processes it ran; for a test under torchrun."""

import sys

from lab.run.devices import Distributed
import train

import torch.distributed as dist

leave = Distributed.leave


def tell(distributed, status):
    print(f"in a group of {dist.get_world_size()}")
    leave(distributed, status)


Distributed.leave = tell
train.main(sys.argv[1:])
