"""A CUDA device that computes nothing: it shows what a GPU would refuse on a machine without one.

FakeTensorMode runs a model on tensors that have a shape, a type and a device, but no numbers. Where PyTorch has no
CUDA, fakeguard.cpp is compiled and preloaded, so that autograd finds the device that the tensors claim to be on. In a
process started that way (see `start`), `fake_cuda` is the mode, and `Watch` counts what a GPU would have to do.
"""

import collections
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HERE = pathlib.Path(__file__).resolve().parent
NO_KERNEL = set(
    """_reshape_alias _unsafe_view alias as_strided detach device empty empty_like empty_permuted empty_strided expand
    narrow new_empty new_empty_strided permute reshape scalar_tensor select slice split split_with_sizes squeeze t
    transpose unbind unsqueeze view""".split()
)


def why_not():
    """Why this machine cannot pretend to have CUDA; None if it can."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda or torch.version.hip or sys.platform != "linux":
        return "needs Linux and a CPU build of PyTorch, or a GPU"
    return None if shutil.which("g++") else "needs g++"


def start(arguments, folder, **kwargs):
    """Runs Python with these arguments in a process that believes in CUDA; folder: for the compiled guard."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    if not torch.cuda.is_available():
        libraries = pathlib.Path(torch.__file__).parent / "lib"
        guard = pathlib.Path(folder) / "fakeguard.so"
        if not guard.exists():
            include = pathlib.Path(torch.__file__).parent / "include"
            compiler = ["g++", "-shared", "-fPIC", "-std=c++20", f"-I{include}", HERE / "fakeguard.cpp"]
            subprocess.run([*compiler, f"-L{libraries}", "-lc10", "-ltorch_cpu", "-o", guard], check=True)
        environment["LD_PRELOAD"] = f"{libraries}/libc10.so {libraries}/libtorch_cpu.so {guard}"
    return subprocess.run([sys.executable, *arguments], env=environment, **{"cwd": HERE.parent, **kwargs})


class RMSNorm(torch.autograd.Function):
    """One call forward and one backward, as on CUDA; without CUDA, PyTorch would compute it in pieces."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad * x, torch.empty_like(weight)


class SiLU(torch.autograd.Function):
    """Likewise."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.ops.aten.silu(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


def attention(q, k, v, attn_mask=None, is_causal=False, enable_gqa=False):
    """One call forward and one backward, as on CUDA."""
    if enable_gqa:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    if attn_mask is not None:
        bias = torch.zeros(attn_mask.shape, dtype=q.dtype, device=q.device).masked_fill(~attn_mask, -torch.inf)
        attn_mask = bias.expand(*q.shape[:3], k.shape[2])
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    return fused(q, k, v, attn_mask, torch.is_grad_enabled(), 0.0, is_causal)[0]


@contextlib.contextmanager
def fake_cuda():
    """New tensors hold no numbers, and autocast and the gradient scaler take CUDA for present."""
    torch.nn.functional.rms_norm = lambda x, shape, weight, eps: RMSNorm.apply(x, weight)
    torch.nn.functional.scaled_dot_product_attention = attention
    torch.nn.functional.silu = SiLU.apply
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: True
    torch.cuda.get_device_capability = lambda device: (9, 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda:0")


def build(model_class, config, device):
    """A model on the fake device, where nn.Module.to cannot bring one."""
    with torch.device(device):
        model = model_class(config)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model


class Watch(TorchDispatchMode):
    """Counts the kernels that a GPU would start and how often the CPU would wait for it, by name.

    A kernel is a call of an ATen function that computes something on the device. What waits: a number that is read
    (item, bool, float), a copy to the CPU. `strays` are the calls that mix in a CPU tensor of one dimension or more.
    """

    def __init__(self):
        super().__init__()
        self.kernels, self.syncs, self.strays = collections.Counter(), collections.Counter(), collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.partition("::")[2]
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        on_device = any(t.device.type == "cuda" for t in given)
        if name == "_local_scalar_dense":
            self.syncs[name] += on_device
            return 1 if not given[0].is_floating_point() else 1.0
        result = function(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        if name in ("_to_copy", "copy_") and on_device and any(t.device.type == "cpu" for t in made):
            self.syncs[name] += 1
        elif name not in NO_KERNEL and (on_device or any(t.device.type == "cuda" for t in made)):
            self.kernels[name] += 1
            if name not in ("_to_copy", "copy_") and any(t.device.type == "cpu" and t.dim() for t in given):
                self.strays[name] += 1
        return result
