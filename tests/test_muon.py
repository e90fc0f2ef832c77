"""lab/run/muon.py is torch.optim.Muon, in batches."""

from conftest import ROOT
from lab import devices
from lab.run.muon import Muon
from lab.settings import load_config
from model import Model
import train

import pytest
import torch

SHAPES = [(32, 32)] * 3 + [(48, 32), (32, 48), (48, 32), (6, 32)]  # square, tall, wide, and one of its own
theirs = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon is new in PyTorch 2.9")


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def steps(params, optimizer, n):
    for number in range(n):
        generator = torch.Generator().manual_seed(number)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        params[number % 2].grad = None  # like a part that the loss does not reach
        optimizer.step()


@theirs
def test_equals_pytorchs():
    """In what it does and in its state, so that either can continue from a last.pt of the other."""
    ours, reference = parameters(), parameters()
    optimizers = Muon(ours, lr=0.02, weight_decay=0.1), torch.optim.Muon(reference, lr=0.02, weight_decay=0.1)
    steps(ours, optimizers[0], 5)
    steps(reference, optimizers[1], 5)
    torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-3)  # products in bfloat16, in another order
    torch.testing.assert_close(*(optimizer.state_dict()["state"] for optimizer in optimizers))


def test_in_float32_an_update_is_the_polynomial_of_its_singular_values():
    """Newton-Schulz moves each singular value as it would move alone, and no singular vector; the matrix is tall."""
    p, gradient = torch.nn.Parameter(torch.zeros(48, 32)), torch.randn(48, 32, generator=torch.manual_seed(0))
    p.grad = gradient.clone()
    Muon([p], lr=1.0, weight_decay=0.0, dtype=torch.float32).step()
    u, values, v = torch.linalg.svd(gradient.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = -((48 / 32) ** 0.5) * (u * values) @ v
    torch.testing.assert_close(p.detach().double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "precision, dtype", [("bfloat16", torch.bfloat16), ("float16", torch.float32), ("float32", torch.float32)]
)
def test_a_run_multiplies_in_bfloat16_where_the_hardware_does(monkeypatch, precision, dtype):
    monkeypatch.setattr(devices, "best_precision", lambda device: precision)
    config = load_config("10m-words-3m", ["model.num_hidden_layers=1"], str(ROOT / "config.yaml"))
    config.model.vocab_size = 64
    model = Model(config.model)
    assert train.make_optimizers(model, config.train, torch.device("cpu"))[1].dtype == dtype
