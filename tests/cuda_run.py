"""train.py from start to saved checkpoint on a fake GPU, in a group that knows no CPU tensors, as under nccl.

A test runs it in a process that fakeguard.start starts. Everything is train.py's own except the card's properties and
the sum over the processes, which refuses what nccl refuses and changes no tensor.
"""

import json
import os
import sys

from lab import checkpoint
from lab.devices import Distributed
from lab.files import atomic_write
from tests import fakeguard
import train

import numpy as np
import torch
import torch.distributed as dist

messages, groups, pinned = [], [], []


def all_reduce(tensor):
    if tensor.device.type != "cuda":  # nccl's words
        raise RuntimeError(f"No backend type associated with device type {tensor.device.type}")
    messages.append(tensor.numel())


def pin_memory(tensor):
    pinned.append(list(tensor.shape))
    return tensor


def any_flag(distributed, flag):
    ask(distributed, flag)  # the answer is a number, and there are none
    return bool(flag)


def tensor(numbers, dtype=None, device=None):
    """torch.tensor without the numbers, which FakeTensorMode would want to keep on the device."""
    array = np.asarray(numbers)
    return torch.zeros(array.shape, dtype=dtype or torch.from_numpy(array).dtype, device=device)


def save(path, tree):
    """A mark instead of the tensors that hold nothing; a checkpoint's weights have to be on the CPU."""
    assert all(w.device.type == "cpu" for w in tree["weights"].values())
    atomic_write(path, "saved")


def leave(distributed, status):
    print(json.dumps({"groups": groups, "messages": messages, "pinned": pinned, "strays": watch.strays}))
    sys.stdout.flush()
    os._exit(status)


os.environ.update(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0")
torch.cuda.is_available = lambda: True
torch.cuda.set_device = lambda device: None
torch.cuda.get_device_name = lambda device: "no card at all"
torch.cuda.max_memory_allocated = lambda device: 0
dist.init_process_group = lambda backend, device_id=None: groups.append([backend, str(device_id)])
dist.all_reduce = all_reduce
torch.tensor = tensor
torch.Tensor.pin_memory = pin_memory
ask, Distributed.any = Distributed.any, any_flag
Distributed.stop = property(lambda distributed: False, lambda distributed, stop: None)  # a number too
Distributed.leave = leave
checkpoint.save = save
with fakeguard.fake_cuda() as device, fakeguard.Watch() as watch:
    Model = train.Model

    def build(config):
        model = fakeguard.build(Model, config, device)
        model.to = lambda device: model  # it is there
        return model

    train.Model = build
    train.main(sys.argv[1:])
