"""lab/run/distributed.py: what processes tell each other. Whole runs under torchrun are in test_train.py."""

from lab.run.devices import Distributed

import torch
import torch.distributed as dist


def test_gradients_travel_in_one_message_and_are_not_copied_back(monkeypatch):
    """Two processes, the other one simulated: its gradients are 10, its loss is 5, and it was told to stop."""
    messages = []

    def all_reduce(tensor, operation):
        messages.append(tensor)
        tensor += torch.tensor([10.0] * 6 + [10.0] * 4 + [5.0, 1.0])

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    distributed = Distributed()
    distributed.launched, distributed.size = True, 2
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 2), (4,))]
    for p, value in zip(params, (2.0, 4.0)):
        p.grad = torch.full_like(p, value)
    loss, stop = distributed.mean_gradients(params, torch.tensor(1.0))
    assert torch.equal(params[0].grad, torch.full((3, 2), 6.0)) and torch.equal(params[1].grad, torch.full((4,), 7.0))
    assert loss == 3 and stop > 0
    (message,) = messages
    assert all(p.grad.untyped_storage().data_ptr() == message.untyped_storage().data_ptr() for p in params)


def test_a_process_alone_sends_nothing(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", None)
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    loss, stop = Distributed().mean_gradients([p], torch.tensor(1.0))
    assert p.grad.tolist() == [1, 1] and loss == 1 and stop == 0
