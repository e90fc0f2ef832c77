"""What a run asks of the machine: device, precision of the products, compiler, memory."""

import contextlib
import ctypes
import hashlib
import os
import platform
import sys
import tempfile
import time

from lab.files import UserError, first_line

import numpy as np
import torch

try:
    import resource
except ImportError:  # Windows
    resource = None


def pick_device(name, setting="--device", distributed=None):
    """The device called `name`, `auto` for the best there is; UserError naming `setting` if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" or (name.startswith("cuda:") and distributed and distributed.size > 1):
        name = f"cuda:{distributed.local_rank if distributed else 0}"  # each process of a machine has a GPU of its own
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"{setting} {name}: cannot be used here ({first_line(e)}); try auto") from None
    return torch.device(name)


def pick_precision(device, dtype):
    """device, train.dtype -> (dtype of matrix products, whether gradients need a scaler).

    auto is bfloat16 where the hardware multiplies it (CUDA from compute capability 8, CPUs with avx512_bf16 or AMX),
    float16 on the CUDA cards before (V100, T4), else float32.
    """
    if dtype == "auto":
        dtype = best_precision(device)
    if dtype == "float16" and device.type != "cuda":
        raise UserError(f"train.dtype: float16 needs CUDA, the device is {device.type}; use bfloat16 or float32")
    return getattr(torch, dtype), dtype == "float16"


def best_precision(device):
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        if major >= 8:
            return "bfloat16"
        return "float16" if major == 7 else "float32"
    if device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "bfloat16"
    return "float32"


LONG_RUN = {"cpu": 150, "cuda": 120}  # seconds that pay back those of compiling
LONG_RUN_AGAIN = 30  # the same where PyTorch has kept the result


def pick_compile(device, setting, as_before, seconds, step):
    """(whether to compile, why).

    as_before: whether the run that goes on was compiled, None for a new one; seconds(): how long the run would take
    without; step: what decides on its code.

    Compiling takes 25 to 60 seconds, 3 where the same was compiled before, and makes a step 1.15 to 1.4 times as fast
    on a CPU: `auto` does it where the run ends sooner so. A compiler that does not work (none installed, no Triton, a
    card too old for it) is found out here, on a tiny function, and not in the first step.
    """
    mark = compiled_mark(device, step)
    if setting == "auto" and as_before is not None:
        wanted, why = as_before, "as this run began"
    elif setting == "auto" and device.type in LONG_RUN:
        again = os.path.exists(mark)  # asked before processes wait for each other
        run = seconds()
        wanted = run > (LONG_RUN_AGAIN if again else LONG_RUN[device.type])
        length = f"{run / 60:.0f} min" if run > 90 else f"{run:.0f} s"
        why = f"not compiled, the run would take about {length}" if wanted else f"the run takes about {length} without"
    else:
        wanted = setting is True
        why = f"train.compile={str(setting).lower()}"
    if not wanted:
        return False, why
    try:
        torch.compile(lambda x: (x + 1).relu())(torch.ones(64, device=device))
    except Exception as e:  # each backend has errors of its own
        reason = f"{type(e).__name__}: {first_line(e)}"[:200]
        print(f"notice: torch.compile does not work here ({reason}); running without", flush=True)
        return False, "it does not work here"
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(mark), exist_ok=True)
        open(mark, "w").close()
    return True, why


def compiled_mark(device, step):
    """An empty file beside what PyTorch keeps of its compiler's work: it says that this step is among it."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir()
    key = f"{step} {device.type} {torch.get_num_threads()} {torch.__version__}"
    return os.path.join(folder, "sllama-lab-" + hashlib.sha256(key.encode()).hexdigest()[:16])


def seconds_without_compiling(model, data, s, autocast, steps, distributed):
    """How long so many steps would take, reckoned from a small batch forward and backward; the mean over processes."""
    device = model.lm_head.weight.device
    size = max(1, s.batch_size // 8)
    ids, targets = (t.to(device) for t in data.take(np.arange(size) % len(data)))
    for _ in range(2):  # the first is for the machine to get ready
        start = time.perf_counter()
        with autocast():
            loss = model(ids, targets)
        loss.backward()
        loss.item()
    model.zero_grad(set_to_none=True)
    per_window = (time.perf_counter() - start) / size
    (total,) = distributed.total(per_window * s.batch_size * s.gradient_accumulation_steps * steps)
    return total / distributed.size**2  # each process has its share of the batch


M_MXFAST, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = 1, -1, -3, -4  # glibc's malloc.h


def keep_freed_memory(limit=None):
    """Lets glibc keep freed blocks, those of up to `limit` MB; 1.2 times the speed on a CPU.

    Given back, each step pays again for zeroed pages. No "fast bins": their slivers beside aligned blocks keep free
    blocks apart.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MXFAST, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        if limit:
            mallopt(M_MMAP_THRESHOLD, limit << 20)
        else:
            mallopt(M_MMAP_MAX, 0)


def strict_mode():
    """PyTorch's deterministic algorithms: slower, the same bits on the same GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def device_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}, {torch.get_num_threads()} threads"


def peak_memory_mb(device):
    """Most memory used so far, in 10^6 bytes; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if resource is None:
        return 0.0
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
