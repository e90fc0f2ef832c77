"""What the benchmarks share: commands in processes of their own, a training step, timing in turns, printing."""

import multiprocessing
import os
import statistics
import sys
import time
from unittest import mock

from lab.files import UserError

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENVIRONMENT = {**os.environ, "PYTHONPATH": ROOT}  # lets `python -m bench...` start in any folder


def script(name, *arguments):
    """The command line of one of the project's commands: script("train.py", "--preset", "quick")."""
    return [sys.executable, os.path.join(ROOT, name), *arguments]


def module(name, *arguments):
    """The command line of a benchmark; outside the checkout it needs ENVIRONMENT."""
    return [sys.executable, "-m", name, *arguments]


def closing_block(output):
    """{key: value} of the `key: value` lines with which our commands end."""
    found = {}
    for line in output.splitlines()[-30:]:
        key, colon, value = line.partition(": ")
        if colon and key.isidentifier():
            found[key] = value
    return found


def random_ids(seed, batch, length, vocabulary):
    """Windows (batch, length) of random tokens, which take as long to train on as text does."""
    return torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def training_step(loss, batches, parameters, optimizers, dtype):
    """Forward, backward, clipping and update, as in train.py but without its checks; returns the last batch's loss.

    loss(ids (B, T)) -> the mean loss of a micro-batch; batches: those of one step.
    """
    for ids in batches:
        with torch.autocast(ids.device.type, dtype, enabled=dtype != torch.float32):
            value = loss(ids)
        (value / len(batches)).backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return value.item()


def contestant(serve, *args, env=None):
    """Starts serve(pipe, *args) in a process of its own, in the environment `env`; returns our end of its pipe."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with mock.patch.dict(os.environ, env or {}, clear=env is not None):
        context.Process(target=serve, args=(theirs, *args), daemon=True).start()
    theirs.close()  # so that its end is noticed here
    return ours


def ask(pipe, question):
    """A contestant's answer; UserError if its process has ended."""
    pipe.send(question)
    try:
        return pipe.recv()
    except EOFError:
        raise UserError("the process of a contestant ended; its message is above") from None


def in_turns(ways, rounds):
    """{name: [seconds]}: calls each function of `ways` {name: function} once a round; a first round is not counted.

    In turns, and every other round in the opposite order, so that a machine that is busy with other work or gets warm
    is so for all of them.
    """
    seconds = {name: [] for name in ways}
    order = list(ways)
    for _ in range(rounds + 1):
        for name in order:
            start = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
        order.reverse()
    return {name: times[1:] for name, times in seconds.items()}


def spread(values):
    """Text: least / median / most."""
    return f"{min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f}"


def show(figures):
    """Prints `key: value` lines."""
    for key, value in figures.items():
        print(f"{key}: {value}")
