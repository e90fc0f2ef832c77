"""The CUDA path, run on a device that computes nothing (fakeguard.py), for every trick and every precision.

Training, validation, scoring and generation each fail here on what a GPU would refuse: tensors of two devices in one
call, an index that is on the CPU, a gradient of another type. And they are held to how often they may wait for the GPU.
"""

import functools
import json
import re
import sys
import types

from lab.score import scoring
from model import LinearCrossEntropy
from tests import fakeguard

import pytest
import torch

SHAPE = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"intermediate_size": 24, "max_position_embeddings": 8}
SLLAMA = {"embedding": "repeat", "attention": "pwa", "mlp": "shared_projection", "layer_sharing": "share"}
CASES = {  # name: (model settings, training settings)
    "plain": ({}, {}),
    "sllama": (SLLAMA, {}),
    "linear": (SLLAMA | {"embedding": "linear"}, {}),
    "attention": (SLLAMA | {"embedding": "attention"}, {}),
    "mha": (SLLAMA | {"attention": "mha"}, {}),
    "skqa": (SLLAMA | {"attention": "skqa"}, {}),
    "rra": (SLLAMA | {"attention": "rra"}, {}),
    "reuse": (SLLAMA | {"layer_sharing": "reuse"}, {}),
    "tied, grouped": ({"tie_word_embeddings": True, "num_key_value_heads": 2}, {}),
    "dropout": ({"dropout": 0.1}, {}),
    "muon": ({}, {"optimizer": "muon", "grad_clip": 0.0}),
    "checkpointing": (SLLAMA, {"gradient_checkpointing": True}),
    "mntp": ({}, {"mntp": 0.5}),
    "isolate": ({}, {"isolate": True}),
}
DTYPES = ["bfloat16", "float16", "float32"]
possible = pytest.mark.skipif(fakeguard.why_not() is not None, reason=str(fakeguard.why_not()))


# --- in the process that believes in CUDA


def faults(model_settings, train_settings, dtype, device):
    """What goes wrong in the passes of one model, as texts."""
    from lab.devices import Distributed
    from lab.run import mntp
    from lab.settings import load_config
    from model import Model, ModelConfig, own_line
    import train

    config = load_config("quick", [f"train.{key}={value}" for key, value in train_settings.items()])
    s = config.train
    model = fakeguard.build(Model, ModelConfig(**SHAPE, **model_settings), device)
    autocast = functools.partial(torch.autocast, "cuda", dtype, enabled=dtype != torch.float32)
    ids = torch.zeros(4, 8, dtype=torch.int64, device=device)
    gaps = mntp.draw_gaps(s.mntp, ids.shape, [0])
    gaps = gaps if gaps is None else gaps.to(device)
    batch = ids, ids, own_line(ids, 1 if s.isolate else None), gaps
    found = []

    streams = set()  # types of the residual stream, where it is read
    for reader in (*model.layers, model.norm):
        reader.register_forward_pre_hook(lambda module, args: streams.add(args[0].dtype))
    with fakeguard.Watch() as watch:
        with autocast():
            loss = train.batch_loss(model, model.hidden, batch, s)
        loss.backward()
    if streams != {torch.float32}:
        found.append(f"the residual stream is {streams}")
    if watch.syncs:
        found.append(f"a training pass waits: {dict(watch.syncs)}")
    for name, p in model.named_parameters():
        if p.grad is None or p.grad.dtype != torch.float32 or p.grad.device != device:
            found.append(f"the gradient of {name} is {p.grad if p.grad is None else (p.grad.dtype, p.grad.device)}")
    found += [f"training: CPU tensor in {name}" for name in watch.strays]

    run = types.SimpleNamespace(config=config, autocast=autocast, distributed=Distributed())
    optimizers = train.make_optimizers(model, s, device)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    with fakeguard.Watch() as watch:
        loss = train.compute_gradients(model, model.hidden, [batch], scaler, run)
        if watch.syncs:
            found.append("the next batches are made after a wait")
        train.update_weights(model, optimizers, scaler, loss, 1.0, run)
    allowed = 3 + (len(optimizers) if scaler.is_enabled() else 0)  # loss, norm, stop; the scaler reads each overflow
    if watch.syncs.total() > allowed:
        found.append(f"a step waits {watch.syncs.total()} times")
    found += [f"step: CPU tensor in {name}" for name in watch.strays]

    model.eval()
    with fakeguard.Watch() as watch, torch.no_grad(), autocast():
        loss = model(ids, ids)
    if loss.device != device or loss.dtype != torch.float32 or watch.syncs:
        found.append(f"validation: {loss.dtype} on {loss.device}, waits: {dict(watch.syncs)}")
    found += [f"validation: CPU tensor in {name}" for name in watch.strays]
    return found if dtype != torch.float32 else found + inference_faults(model, device)


def inference_faults(model, device):
    """The same of scoring and generation, which are in float32."""
    with fakeguard.Watch() as watch, torch.no_grad():
        batch = next(scoring.batches([[1, 5, 6, 7], [1, 5, 6, 8], [1, 9, 6]], [1, 1, 1], 64))
        scores = scoring.token_log_probabilities(model, batch)
        tokens = list(model.generate([1, 2, 3, 4, 5], 5))  # and past the context of 8
    found = [f"inference: CPU tensor in {name}" for name in watch.strays]
    if scores.device != device or scores.dtype != torch.float32:
        found.append(f"scores: {scores.dtype} on {scores.device}")
    if len(tokens) != 5:
        found.append(f"{len(tokens)} tokens generated")
    return found


def report(dtype):
    """Prints {case: faults} in JSON."""
    results = {}
    with fakeguard.fake_cuda() as device:
        for name, case in CASES.items():
            try:
                results[name] = faults(*case, getattr(torch, dtype), device)
            except Exception as e:  # what a GPU would refuse
                results[name] = [f"{type(e).__name__}: {e}"[:500]]
    print(json.dumps(results))


# --- the tests


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """python(arguments): such a process that has ended, with its output."""
    folder = tmp_path_factory.mktemp("guard")
    return lambda *arguments: fakeguard.start(arguments, folder, capture_output=True, text=True)


@possible
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_trick(dtype, python):
    done = python("-m", "tests.test_cuda_fake", dtype)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == len(CASES) and not any(results.values()), {k: v for k, v in results.items() if v}


@possible
def test_kernels_and_waits_of_a_step(python):
    """Of the released model at its full size, and of Muon's launches; counted by bench/speed/kernels.py."""
    done = python("-m", "bench.speed.kernels", "--inside", "--preset", "sllama", "--preset", "2mb-3m")
    assert done.returncode == 0, done.stderr
    sllama, tuned = done.stdout.splitlines()
    assert int(re.search(r"(\d+) kernels a micro-batch", sllama)[1]) <= 460
    assert int(re.search(r"optimiser (\d+)", tuned)[1]) <= 200  # torch.optim.Muon: 913
    for line in (sllama, tuned):
        assert int(re.search(r"(\d+) syncs a step", line)[1]) <= 3  # loss, norm, stop: read at once


MISTAKES = """if True:
    import torch
    from tests import fakeguard
    with fakeguard.fake_cuda() as device, fakeguard.Watch() as watch:
        x = torch.ones(3, 3, device=device, requires_grad=True)
        x[torch.zeros(2, dtype=torch.long)].sum().backward()
        assert watch.strays and not watch.syncs
        assert x.sum() > 0 and watch.syncs.total() == 1
        x.detach().cpu()
        assert watch.syncs.total() == 2
        x @ torch.ones(3, 3)
"""


@possible
def test_the_device_refuses_what_a_gpu_would(python):
    """A tensor of the CPU in a product, and as an index, and a number that is read: each is noticed."""
    done = python("-c", MISTAKES)
    assert done.returncode == 1 and "two devices, cuda:0 and cpu" in done.stderr, done.stderr


def test_scoring_leaves_cudnns_attention_alone():
    """A new shape a batch is a new plan each; the other fused kernels stay, the CPU's among them."""
    with scoring.evaluation_mode(torch.nn.Linear(1, 1), "cpu", "float32"):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


def test_the_loss_is_cut_into_equal_chunks(monkeypatch):
    """128 x 256 tokens and 32,000 pieces in bfloat16, on a device without numbers that is no CPU."""
    softmax, rows = torch.softmax, []
    monkeypatch.setattr(torch, "softmax", lambda x, *args, **kwargs: rows.append(len(x)) or softmax(x, *args, **kwargs))
    with torch.device("meta"):
        x, weight = torch.empty(128 * 256, 64), torch.empty(32000, 64)
        targets = torch.empty(128 * 256, dtype=torch.int64)
        LinearCrossEntropy.apply(x, weight, targets, torch.bfloat16, True)
    assert rows == [8192] * 4


if __name__ == "__main__":
    report(*sys.argv[1:])
