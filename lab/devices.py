"""Device, precision, compiler and memory of this machine, and the processes of a run."""

import contextlib
import ctypes
import math
import os
import platform
import sys
import warnings

from lab.files import UserError, first_line

import torch
import torch.distributed as dist

# ---------------------------------------------------------------------------------------------------------------------
# Device


def pick_device(name, setting="--device", distributed=None):
    """The device called `name`, or for `auto` the best one here; UserError naming `setting` if it cannot be used.

    If a GPU does not work, `auto` says so and takes the CPU; not if there are several processes, which must all agree.
    """
    local_rank, processes = (distributed.local_rank, distributed.size) if distributed else (0, 1)
    auto = name == "auto"
    if auto:
        name = best_device()
    if name == "cuda" or (name.startswith("cuda:") and processes > 1):
        name = f"cuda:{local_rank}"  # each process of a machine has a GPU of its own
    if problem := why_unusable(name):
        if not auto or processes > 1:
            raise UserError(f"{setting} {name}: cannot be used here ({problem}); try {'cpu' if auto else 'auto'}")
        print(f"notice: {name} cannot be used ({problem}); running on the CPU", flush=True)
        name = "cpu"
    return torch.device(name)


def best_device():
    if torch.cuda.is_available():  # PyTorch itself warns of a driver that is too old
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def why_unusable(name):
    """None if PyTorch can compute on the device, else what it says, in one line.

    Making a tensor is not enough: a card too old for PyTorch's kernels can do that.
    """
    try:
        with warnings.catch_warnings():  # many lines about an old card
            warnings.simplefilter("ignore")
            (torch.ones(1, device=name) + 1).item()
    except Exception as e:  # each kind of device has errors of its own
        return first_line(e)


def send(tensor, device):
    """The tensor on the device. A GPU fetches it from pinned memory while the CPU goes on."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)  # Apple's would read the memory after it has been freed (pytorch#189690)


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {platform.machine()}, {threads} thread{'s' if threads > 1 else ''}"


# ---------------------------------------------------------------------------------------------------------------------
# Precision and compiler


def pick_precision(device, dtype) -> torch.dtype:
    """device, train.dtype -> dtype of the matrix products; float16 needs a gradient scaler.

    auto is bfloat16 where the hardware multiplies it (CUDA from compute capability 8, CPUs with avx512_bf16 or AMX),
    float16 on older CUDA cards (T4), else float32.
    """
    if dtype == "auto":
        dtype = best_precision(device)
    if dtype == "float16" and device.type != "cuda":
        raise UserError(f"train.dtype: float16 needs CUDA, the device is {device.type}; use bfloat16 or float32")
    return getattr(torch, dtype)


def best_precision(device):
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        if major >= 8:
            return "bfloat16"
        return "float16" if major == 7 else "float32"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bfloat16"
    return "float32"


COMPILED_FROM = {"cpu": 2.5e6, "cuda": 250e6}  # tokens of a run from which `auto` compiles


def pick_compile(device, setting, tokens, dtype):
    """(whether to compile, why). tokens: of the whole run; dtype: of its products.

    Compiling takes 25 to 60 seconds, 3 where PyTorch has kept the result, and makes a step 1.15 to 1.9 times as fast
    on a CPU (results/speed.md); what it gains on a GPU is estimated, not measured. The whole run counts, so that a
    resumed one compiles again and reaches the same bits. A compiler that does not work (none installed, no Triton, a
    card without bfloat16) is found here, on a tiny function, and not in the first step.
    """
    wanted, why = setting, f"train.compile={str(setting).lower()}"
    if setting == "auto":
        bound = COMPILED_FROM.get(device.type, math.inf)
        wanted = tokens >= bound
        why = f"{tokens / 1e6:,.1f} M tokens; on {device.type} it pays from {bound / 1e6:g} M"
    if wanted and (problem := why_not_compiled(device, dtype)):
        print(f"notice: torch.compile does not work here ({problem}); running without", flush=True)
        return False, "it does not work here"
    return wanted, why


def why_not_compiled(device, dtype):
    """None if a tiny function can be compiled, else what went wrong, in one line."""
    try:
        torch.compile(lambda x: (x + 1).relu())(torch.ones(64, dtype=dtype, device=device))
    except Exception as e:  # each backend has errors of its own
        while e.__cause__:  # Dynamo's and Inductor's own errors wrap what happened
            e = e.__cause__
        return first_line(e)[:200]


def strict_mode():
    """PyTorch's deterministic algorithms: slower, the same bits on the same GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


# ---------------------------------------------------------------------------------------------------------------------
# Memory

M_MXFAST, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = 1, -1, -3, -4  # glibc's malloc.h


def keep_freed_memory(limit=None):
    """Lets glibc keep freed blocks, of up to `limit` MB if it is given; 1.2 times the speed on a CPU.

    Otherwise each step pays again for zeroed pages. No "fast bins": their slivers beside aligned blocks keep free
    blocks from merging.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MXFAST, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        if limit:
            mallopt(M_MMAP_THRESHOLD, limit << 20)
        else:
            mallopt(M_MMAP_MAX, 0)


def peak_memory_mb(device):
    """Peak memory so far, in 10^6 bytes; 0 if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# ---------------------------------------------------------------------------------------------------------------------
# The processes of a run: one, or those that torchrun started


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
        self.told_to_stop = 0  # this process: the signal it was sent
        self.stop = False  # all of them, as the last message of gradients said

    def connect(self, device):
        if not self.launched:
            return
        if device.type == "cuda":  # nccl knows no CPU tensors
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", device_id=device)
            self.device = device
        elif device.type == "mps":
            raise UserError("train.device: gloo knows no mps tensors; leave torchrun out, or take train.device=cpu")
        else:
            dist.init_process_group("gloo")

    def sum(self, tensor):
        """Replaces the tensor by its sum over the processes."""
        try:
            dist.all_reduce(tensor)
        except RuntimeError as e:
            raise UserError(
                f"another process of this run has ended, so this one ends too ({first_line(e)}); its own "
                "message says why. The same command (without --replace) continues from last.pt"
            ) from None

    def mean_gradients(self, params, loss):
        """Replaces each gradient by its mean over the processes. Returns (mean loss, above 0 if any is to stop).

        All of it travels in one message, and from then on the gradients are views of that message, not copies.
        """
        told_to_stop = torch.full_like(loss, self.told_to_stop)
        if not self.launched:
            return loss, told_to_stop
        parts = [*(p.grad for p in params), loss, told_to_stop]
        message = torch.cat([part.flatten() for part in parts])
        self.sum(message)
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
        self.sum(tensor)
        return tensor.tolist()

    def any(self, flag):
        """Whether the flag is set in any process."""
        return self.total(float(bool(flag)))[0] > 0

    def leave(self, status):
        """Ends this process at once: gloo's threads may still be at work, and then one exit in ten is an abort."""
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(status)
