"""lab/muon.py is torch.optim.Muon, in batches."""
import pytest
import torch

from lab.muon import Muon

SHAPES = [(32, 32)] * 3 + [(48, 32), (32, 48), (48, 32), (6, 32)]        # square, tall, wide, and one of its own
theirs = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon is new in PyTorch 2.9")


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def steps(params, optimizer, numbers):
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        params[number % 2].grad = None                                  # as of a part that a loss does not reach
        optimizer.step()


@theirs
def test_equals_pytorchs():
    ours, reference = parameters(), parameters()
    steps(ours, Muon(ours, lr=0.02, weight_decay=0.1), range(5))
    steps(reference, torch.optim.Muon(reference, lr=0.02, weight_decay=0.1), range(5))
    torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-3)   # products in bfloat16, in whichever order


@theirs
def test_goes_on_from_a_state_of_pytorchs():
    """As a last.pt holds it that was written with torch.optim.Muon; and the other way round."""
    for first, second in ((torch.optim.Muon, Muon), (Muon, torch.optim.Muon)):
        whole, parts = parameters(), parameters()
        optimizer = torch.optim.Muon(whole, lr=0.02, weight_decay=0.1)
        steps(whole, optimizer, range(4))
        before, after = (kind(parts, lr=0.02, weight_decay=0.1) for kind in (first, second))
        steps(parts, before, range(2))
        own = after.state_dict()["param_groups"]
        after.load_state_dict({"state": before.state_dict()["state"], "param_groups": own})
        steps(parts, after, range(2, 4))
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-3)


def test_an_update_has_singular_values_around_one_and_tall_matrices_move_further():
    params = parameters()
    before = [p.detach().clone() for p in params]
    generator = torch.Generator().manual_seed(1)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    Muon(params, lr=0.01, weight_decay=0.0).step()
    for p, old in zip(params, before):
        rows, columns = p.shape
        values = torch.linalg.svdvals((old - p).detach()) / (0.01 * max(1, rows / columns) ** 0.5)
        assert 0.3 < values.median() < 1.3 and values.max() < 1.4
