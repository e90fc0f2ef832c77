"""lab/devices.py: which device, precision and compiler a run takes, on simulated cards and compilers; and what its
processes tell each other (whole runs under torchrun are in test_train.py).
"""

from lab import devices
from lab.devices import Distributed
from lab.files import UserError

import pytest
import torch
import torch.distributed as dist

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
OLD_CARD = "CUDA error: no kernel image is available for execution on the device"


class Card:
    """Stands in for a tensor on a GPU. One that is too old takes tensors and computes nothing."""

    works = True

    def __add__(self, other):
        if not self.works:
            raise RuntimeError(f"{OLD_CARD}\nSearch for ...")
        return torch.tensor(2.0)


@pytest.fixture
def card(monkeypatch):
    """A machine with GPUs; returns what they are like."""
    ones = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda n, device: Card() if device.startswith("cuda") else ones(n))
    monkeypatch.setattr(Card, "works", True)
    return Card


def of_processes(size, local_rank):
    distributed = Distributed()
    distributed.size, distributed.local_rank = size, local_rank
    return distributed


# --- device


def test_each_process_of_a_machine_takes_a_gpu_of_its_own(card):
    for name in ("auto", "cuda", "cuda:1"):
        assert devices.pick_device(name, "train.device", of_processes(4, 3)) == torch.device("cuda:3")
    assert devices.pick_device("cuda:1", "train.device", of_processes(1, 0)) == torch.device("cuda:1")


def test_a_card_that_cannot_run_the_kernels_is_passed_over_and_named(card, monkeypatch, capsys):
    """Not by one of several processes: the others would wait for ever for one that went to the CPU."""
    monkeypatch.setattr(card, "works", False)
    assert devices.pick_device("auto") == CPU
    assert capsys.readouterr().out == f"notice: cuda:0 cannot be used ({OLD_CARD}); running on the CPU\n"
    with pytest.raises(UserError, match=r"train.device cuda:1: cannot be used here \(CUDA error.*\); try auto$"):
        devices.pick_device("cuda:1", "train.device")
    with pytest.raises(UserError, match="train.device cuda:3: .*; try cpu$"):
        devices.pick_device("auto", "train.device", of_processes(4, 3))


def test_a_device_that_does_not_exist():
    with pytest.raises(UserError, match="train.device toaster: cannot be used here"):
        devices.pick_device("toaster", "train.device")


@pytest.mark.parametrize("threads, words", [(1, "1 thread"), (2, "2 threads")])
def test_a_cpu_is_named_with_its_threads(monkeypatch, threads, words):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert devices.device_name(CPU).endswith(f", {words}")


# --- processes


def params_with_gradients(device="cpu"):
    params = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in ((3, 2), (4,))]
    for p, value in zip(params, (2.0, 4.0)):
        p.grad = torch.full_like(p, value)
    return params


def test_gradients_travel_in_one_message_and_are_not_copied_back(monkeypatch):
    """Two processes, the other one simulated: its gradients are 10, its loss is 5, and it was told to stop."""
    messages = []

    def all_reduce(tensor):
        messages.append(tensor)
        tensor += torch.tensor([10.0] * 6 + [10.0] * 4 + [5.0, 1.0])

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    distributed = of_processes(2, 0)
    distributed.launched, params = True, params_with_gradients()
    loss, stop = distributed.mean_gradients(params, torch.tensor(1.0))
    assert torch.equal(params[0].grad, torch.full((3, 2), 6.0)) and torch.equal(params[1].grad, torch.full((4,), 7.0))
    assert loss == 3 and stop > 0
    (message,) = messages
    assert all(p.grad.untyped_storage().data_ptr() == message.untyped_storage().data_ptr() for p in params)


NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
GROUP = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # any port


@pytest.mark.parametrize("device, backend", [("cpu", "gloo"), pytest.param("cuda:0", "nccl", marks=NO_CUDA)])
def test_a_process_that_torchrun_starts_alone_makes_a_group_and_changes_nothing(device, backend, monkeypatch):
    """So that what is planned on one GPU meets nccl; without torchrun, nothing is sent."""
    for name, value in GROUP.items():
        monkeypatch.setenv(name, value)
    params, alone = params_with_gradients(device), params_with_gradients(device)
    loss = torch.tensor(1.0, device=device)
    distributed = Distributed()
    distributed.connect(torch.device(device))
    try:
        assert dist.get_world_size() == 1 and dist.get_backend() == backend
        assert distributed.any(True) and not distributed.any(False) and distributed.total(1.5, 2) == [1.5, 2]
        sent = distributed.mean_gradients(params, loss)
    finally:
        dist.destroy_process_group()
    monkeypatch.delenv("RANK")
    assert Distributed().mean_gradients(alone, loss) == sent == (1, 0)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(params, alone))


# --- precision


@pytest.mark.parametrize("capability, best", [(9, "bfloat16"), (8, "bfloat16"), (7, "float16"), (6, "float32")])
def test_auto_precision_follows_the_card(monkeypatch, capability, best):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    assert devices.pick_precision(GPU, "auto") == getattr(torch, best)


def test_precisions_of_a_cpu():
    assert devices.pick_precision(CPU, "bfloat16") == torch.bfloat16
    assert devices.pick_precision(CPU, "auto") in (torch.float32, torch.bfloat16)
    with pytest.raises(UserError, match="train.dtype: float16 needs CUDA"):
        devices.pick_precision(CPU, "float16")


# --- compiler


@pytest.fixture
def probes(monkeypatch):
    """The types that the compiler is tried in. It refuses bfloat16, as Inductor does for a T4."""
    tried, ones = [], torch.ones

    def compile(function):
        def compiled(x):
            tried.append(x.dtype)
            if x.dtype == torch.bfloat16:
                cause = RuntimeError("BF16 is not supported")
                raise RuntimeError("backend='inductor' raised:\nSkipFrame: ...") from cause

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(torch, "ones", lambda n, dtype, device: ones(n, dtype=dtype))
    return tried


SHORT = {"cpu": 1_024_000, "cuda:1": 196_608_000, "mps": 10**12}  # quick, sllama
LONG = {"cpu": 2_785_280, "cuda:1": 290_000_000}  # llama-26m, strict-100m


@pytest.mark.parametrize("tokens, compiled", [(SHORT, False), (LONG, True)], ids=["short", "long"])
def test_auto_compiles_the_runs_that_are_long_enough(probes, tokens, compiled):
    for device, n in tokens.items():
        wanted, why = devices.pick_compile(torch.device(device), "auto", n, torch.float32)
        assert wanted == compiled == bool(probes) and f"{n / 1e6:,.1f} M tokens" in why


def test_a_setting_is_obeyed(probes):
    assert devices.pick_compile(CPU, True, 1, torch.float32) == (True, "train.compile=true")
    assert devices.pick_compile(CPU, False, 1e12, torch.float32) == (False, "train.compile=false")


def test_the_compiler_is_tried_in_the_runs_own_type(probes, capsys):
    """A card without bfloat16 is no reason against float16; the notice says the cause, not what wraps it."""
    assert devices.pick_compile(CPU, True, 1, torch.float16)[0]
    assert not devices.pick_compile(CPU, True, 1, torch.bfloat16)[0]
    assert "notice: torch.compile does not work here (BF16 is not supported); running" in capsys.readouterr().out
    assert probes == [torch.float16, torch.bfloat16]
