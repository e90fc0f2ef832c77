"""The CUDA path, run on a device that computes nothing (fakeguard.py), for every trick and every precision.

Training, validation, scoring and generation each fail here on what a GPU would refuse: tensors of two devices in one
call, an index that is on the CPU, a gradient of another type. And they are held to how often they may wait for the GPU.
"""

import functools
import itertools
import json
import re
import types

from lab.devices import Distributed
from lab.score import scoring
from lab.settings import load_config
from model import LinearCrossEntropy, Model, own_line
from tests import fakeguard
import train

import pytest
import torch

SHAPE = """model.vocab_size=61 model.hidden_size=16 model.num_hidden_layers=2 model.num_attention_heads=4
    model.intermediate_size=24 model.max_position_embeddings=8""".split()
PLAIN = "model.embedding=full model.attention=mha model.mlp=full model.layer_sharing=none"
CASES = [  # changes of the preset sllama
    "",
    "model.embedding=linear model.attention=skqa",
    "model.embedding=attention model.attention=rra",
    "model.attention=mha model.layer_sharing=reuse",
    "model.dropout=0.1",
    "train.gradient_checkpointing=true",
    PLAIN,
    f"{PLAIN} model.tie_word_embeddings=true model.num_key_value_heads=2",
    f"{PLAIN} train.optimizer=muon train.grad_clip=0",
    f"{PLAIN} train.isolate=true",
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
possible = pytest.mark.skipif(fakeguard.why_not() is not None, reason=str(fakeguard.why_not()))


# --- in the process that believes in CUDA


def faults(settings, dtype, device):
    """What goes wrong in the passes of one model, as texts."""
    config = load_config("sllama", [*SHAPE, *settings.split()])
    s = config.train
    model = fakeguard.build(Model, config.model, device)
    autocast = functools.partial(torch.autocast, "cuda", dtype, enabled=dtype != torch.float32)
    ids = torch.zeros(4, 8, dtype=torch.int64, device=device)
    batch = ids, ids, own_line(ids, 1 if s.isolate else None)

    streams = set()  # types of the residual stream, where it is read
    for reader in (*model.layers, model.norm):
        reader.register_forward_pre_hook(lambda module, args: streams.add(args[0].dtype))
    with fakeguard.Watch() as forward_and_backward:
        with autocast():
            loss = train.batch_loss(model, model.hidden, batch, s)
        loss.backward()
    expected = torch.float32, device
    gradients = {name: p.grad is not None and (p.grad.dtype, p.grad.device) for name, p in model.named_parameters()}

    run = types.SimpleNamespace(config=config, autocast=autocast, distributed=Distributed())
    optimizers = train.make_optimizers(model, s, device)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    with fakeguard.Watch() as step:
        loss = train.compute_gradients(model, model.hidden, [batch], scaler, run)
        waits_before_update = step.syncs.total()  # here the next batches are made
        train.update_weights(model, optimizers, scaler, loss, 1.0, run)
    allowed = 3 + (len(optimizers) if scaler.is_enabled() else 0)  # loss, norm, stop; the scaler reads each overflow

    model.eval()
    with fakeguard.Watch() as validation, torch.no_grad(), autocast():
        loss = model(ids, ids)
    with fakeguard.Watch() as inference, torch.no_grad():  # which is in float32
        tokens = next(scoring.batches([[1, 5, 6, 7], [1, 5, 6, 8], [1, 9, 6]], [1, 1, 1], 64))
        scores = scoring.token_log_probabilities(model, tokens)
        generated = list(model.generate([1, 2, 3, 4, 5], 5))  # and past the context of 8

    passes = {"training": forward_and_backward, "step": step, "validation": validation, "inference": inference}
    found = {f"{name}: CPU tensor in {watch.strays}": watch.strays for name, watch in passes.items()}
    found |= {f"the gradient of {name} is {gradient}": gradient != expected for name, gradient in gradients.items()}
    found |= {
        f"the residual stream is {streams}": streams != {torch.float32},
        f"a training pass waits: {forward_and_backward.syncs}": forward_and_backward.syncs.total(),
        "the next batches are made after a wait": waits_before_update,
        f"a step waits: {step.syncs}": step.syncs.total() > allowed,
        f"validation waits: {validation.syncs}": validation.syncs.total(),
        f"validation is {loss.dtype} on {loss.device}": (loss.dtype, loss.device) != expected,
        f"scores are {scores.dtype} on {scores.device}": (scores.dtype, scores.device) != expected,
        f"{len(generated)} tokens are generated": len(generated) != 5,
    }
    return [fault for fault, is_there in found.items() if is_there]


def report():
    """Prints {case: faults} in JSON."""
    results = {}
    with fakeguard.fake_cuda() as device:
        for settings, dtype in itertools.product(CASES, DTYPES):
            try:
                found = faults(settings, dtype, device)
            except Exception as e:  # what a GPU would refuse
                found = [f"{type(e).__name__}: {e}"[:500]]
            results[f"{settings} {dtype}"] = found
    print(json.dumps(results))


# --- the tests


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """python(arguments): such a process that has ended, with its output."""
    folder = tmp_path_factory.mktemp("guard")
    return lambda *arguments: fakeguard.start(arguments, folder, capture_output=True, text=True)


@possible
def test_every_trick_in_every_precision(python):
    done = python("-m", "tests.test_cuda_fake")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == len(CASES) * len(DTYPES)
    assert not any(results.values()), {case: found for case, found in results.items() if found}


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
    report()
