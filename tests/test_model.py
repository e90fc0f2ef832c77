"""model.py: equal to the released code's numbers, counted in closed form, causal, the same whichever way it is run."""

import csv
import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys

from conftest import ROOT, TINY
import export
import model as model_file
from model import ATTENTION, KVCache, Model, ModelConfig, drop, linear_cross_entropy, parameter_counts

import numpy as np
import pytest
import torch
import torch.nn.functional as F

SLLAMA = {"embedding": "repeat", "attention": "pwa", "mlp": "shared_projection", "layer_sharing": "share"}
SHAPE = dict(vocab_size=61, hidden_size=16, num_hidden_layers=4, num_attention_heads=4, intermediate_size=24)
GOLDEN = str(ROOT / "tests" / "golden" / "sllama_reference")
CASES = json.load(open(GOLDEN + ".json"))
ARRAYS = {name: torch.from_numpy(array) for name, array in np.load(GOLDEN + ".npz").items()}
IDS = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(1))


def tiny(**settings):
    return ModelConfig(**SHAPE | {"max_position_embeddings": 32} | settings)


def random_model(config, seed=0, scale=0.3):
    """Weights large enough that every part of the model matters; norms and biases are drawn as well."""
    torch.manual_seed(seed)
    model = Model(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * scale + (p.dim() == 1))
    return model


CHOICES = {
    "embedding": ("full", "repeat", "linear", "attention"),
    "attention": tuple(ATTENTION),
    "mlp": ("full", "shared_projection"),
    "layer_sharing": ("none", "share", "reuse"),
    "num_groups": (1, 2),
    "tie_word_embeddings": (False, True),
    "num_key_value_heads": (None, 2),
}


def every_model():
    """Every combination of the tricks that can be built, with tying and grouped key-value heads."""
    for values in itertools.product(*CHOICES.values()):
        config = tiny(**dict(zip(CHOICES, values)))
        if not config.problems() and (config.num_groups == 1 or config.layer_sharing == "share"):
            yield config


def label(config):
    return f"{config.embedding}-{config.attention}-{config.mlp}-{config.layer_sharing}"


EVERY = list(every_model())
each_attention = pytest.mark.parametrize("attention", ATTENTION)  # of EVERY, a quarter a test
some_models = pytest.mark.parametrize("config", EVERY[::23], ids=label)


def loss_and_gradients(model, loss):
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters()}


# --- the released model


def of_case(case, kind):
    """The arrays "case/kind/NAME" as {NAME: array}"""
    start = f"{case}/{kind}/"
    return {name.removeprefix(start): array for name, array in ARRAYS.items() if name.startswith(start)}


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    """Logits, loss, gradients and parameter count of the released code, by export.py's names."""
    config = export.our_config(CASES[case]["config"] | {"model_type": "sllama"})
    model = Model(config)
    model.load_state_dict(export.fold(config, of_case(case, "weight")))
    ids = ARRAYS["input_ids"].long()
    assert (model(ids) - ARRAYS[case + "/logits"]).abs().max() < 1e-5
    loss, ours = loss_and_gradients(model, model(ids[:, :-1], ids[:, 1:]))
    assert abs(loss.item() - CASES[case]["loss_next_token"]) < 1e-6
    assert model.num_params() == sum(parameter_counts(config).values()) == CASES[case]["unique_parameters"]
    gradients = of_case(case, "grad")
    if gradients:  # of six cases
        theirs = export.fold(config, gradients)
        assert theirs.keys() == ours.keys()
        for name, gradient in theirs.items():
            assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_released_sizes():
    assert Model(ModelConfig(32000, 64, 6, 4, 192, **SLLAMA)).num_params() == 2_585_792


@pytest.mark.parametrize("attention", ["mha", "skqa", "pwa", "rra"])
def test_parameter_counts_are_the_closed_forms(attention):
    """Part by part, for every combination."""
    V, h, f, e = 61, 16, 24, 4
    for c in (config for config in EVERY if config.attention == attention):
        h_kv = h * (c.num_key_value_heads or 4) // 4
        layers = 2 if c.layer_sharing == "reuse" else 4
        groups = c.num_groups if c.layer_sharing == "share" else layers
        embeddings = {"full": V * h, "repeat": V * e, "linear": V * e + (e + 1) * h}
        embeddings["attention"] = embeddings["linear"] + 2 * (e + 1) * e
        attentions = {"mha": 2 * h * h + 2 * h * h_kv, "skqa": 3 * h * h, "pwa": 6 * h}
        attentions["rra"] = 2 * (h + 1) * (h // 4) + 2 * (h + 1) * (h_kv // 4)
        assert parameter_counts(c) == {
            "embedding": 0 if c.tie_word_embeddings else embeddings[c.embedding],
            "attention": groups * attentions[attention],
            "mlp": groups * h * f * (2 if c.mlp == "shared_projection" else 3),
            "norms": (2 * layers + 1) * h,
            "head": V * h,
        }, c


def test_pwa_starts_the_permutations_again():
    """Beyond 1440 numbers, where the released code, which has no more of them, ends in an error."""
    numbers = torch.tensor(list(itertools.permutations(range(6), 4))).flatten()
    attention = Model(tiny(hidden_size=384, attention="pwa")).attention[0]
    table, x = attention.shared_weights, torch.randn(1, 3, 384)
    for i, got in enumerate(attention.project(x)):
        rows = table[numbers[torch.arange(i * 384, (i + 1) * 384) % 1440]]
        torch.testing.assert_close(got, x @ rows.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"dropout": math.nan}, "must be at most 0.9"),
        ({"embedding": "narrow"}, "expected one of full, repeat, linear, attention"),
        ({"num_attention_heads": 3}, "does not divide hidden_size"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "must be even"),
        ({"num_key_value_heads": 3}, "does not divide num_attention_heads"),
        ({"num_key_value_heads": 2, "attention": "skqa"}, "one matrix for queries and keys"),
        ({"embedding": "repeat", "embedding_factor": 3}, "does not divide hidden_size"),
        ({"embedding": "linear", "tie_word_embeddings": True}, "narrower"),
        ({"hidden_size": 6, "num_attention_heads": 1, "attention": "rra"}, "multiple of 4"),
        ({"layer_sharing": "share", "num_groups": 5}, "5 groups for 4 layers"),
        ({"layer_sharing": "reuse", "num_hidden_layers": 3}, "must be even"),
    ],
)
def test_invalid_combinations_are_refused(settings, reason):
    (problem,) = tiny(**settings).problems()
    assert reason in problem and problem.split(":")[0] in ModelConfig.__dataclass_fields__
    with pytest.raises(ValueError, match=reason):
        Model(tiny(**settings))


# --- invariances


@each_attention
def test_causal(attention):
    """Other tokens from position t on change no logit before t, and do change those from t on."""
    for i, config in enumerate(c for c in EVERY if c.attention == attention):
        model, t = random_model(config), 1 + i % 11
        other = IDS.clone()
        other[:, t:] = (other[:, t:] + 1 + i % 60) % 61
        with torch.no_grad():
            change = (model(IDS) - model(other)).abs().amax(-1)  # (B, T)
        assert change[:, :t].max() < 1e-6 and change[:, t:].min() > 1e-4, config


@each_attention
def test_cached_generation_equals_recomputation(attention):
    """Token by token, with chunks of 3 and 4 tokens in between, which need a mask between new and cached tokens."""
    for config in (c for c in EVERY if c.attention == attention):
        model, cache = random_model(config), KVCache()
        with torch.no_grad():
            whole = model(IDS)
        for tokens in IDS.split((1, 1, 3, 1, 4, 1, 1), dim=1):
            step = model.step(tokens, cache)
            torch.testing.assert_close(step, whole[:, cache.length - 1], rtol=1e-4, atol=1e-4, msg=str(config))
        with pytest.raises(ValueError, match="36 tokens do not fit into the context of 32"):
            model.step(IDS.repeat(1, 2), cache)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@some_models
def test_checkpointing_changes_nothing(config, dropout):
    results = []
    for on in (False, True):
        model = random_model(dataclasses.replace(config, dropout=dropout)).train()
        torch.manual_seed(7)
        results.append(loss_and_gradients(model, model.loss(model.hidden(IDS, checkpointing=on), IDS.roll(-1, 1))))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("settings, checkpointing", [(SLLAMA, False), ({"embedding": "attention"}, True)], ids=str)
def test_compile_takes_the_layers_as_one_graph(settings, checkpointing):
    """With a mask and dropout, in bfloat16: a break of the graph would be an error."""
    model = random_model(tiny(**settings, dropout=0.1)).train()
    hidden = torch.compile(model.hidden, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        hidden(IDS, mask=model_file.own_line(IDS, 1), checkpointing=checkpointing).sum().backward()


# --- parts against their closed forms


@pytest.mark.parametrize("chunk", [3, 64, 1000])
def test_chunked_loss_equals_cross_entropy(chunk, monkeypatch):
    """Loss and both gradients, with unscored targets, a last chunk that is not full and an outer factor."""
    monkeypatch.setattr(model_file, "chunk_size", lambda *_: chunk)
    torch.manual_seed(0)
    targets = torch.randint(37, (100,))
    targets[::7] = -100
    x = torch.randn(100, 8, dtype=torch.float64, requires_grad=True)
    w = torch.randn(37, 8, dtype=torch.float64, requires_grad=True)
    want = F.cross_entropy(x @ w.T, targets)
    want_grads = torch.autograd.grad(3 * want, (x, w))
    loss = model_file.linear_cross_entropy(x, w, targets)
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, (x, w)), want_grads, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(model_file.linear_cross_entropy(x, w, targets), loss)


@pytest.mark.parametrize("vocabulary", [61, 32000])
def test_bfloat16_loses_no_more_than_its_logits_do(vocabulary):
    """Loss and gradients beside those of the same rounded logits in float64: only p is rounded once more."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 16, generator=generator, dtype=torch.bfloat16, requires_grad=True)
    w = torch.randn(vocabulary, 16, generator=generator, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(vocabulary, (80,), generator=generator)
    loss = linear_cross_entropy(x, w, targets)
    logits = (x @ w.T).detach().double()
    assert loss.item() == pytest.approx(F.cross_entropy(logits, targets).item(), abs=1e-3)
    p = (logits.softmax(1) - F.one_hot(targets, vocabulary)) / 80
    for ours, exact in zip(torch.autograd.grad(loss, (x, w)), (p @ w.double(), p.T @ x.double())):
        assert (ours - exact).norm() < 4e-3 * exact.norm()


def test_loss_of_extreme_logits_and_of_nothing():
    """A probability of 0 counts as the least there is, 87 nats; the gradients do not notice."""
    x, w = torch.eye(2, requires_grad=True), (torch.eye(2) * 1e4).requires_grad_()
    loss = linear_cross_entropy(x, w, torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(-np.log(torch.finfo(torch.float32).tiny) / 2)  # of 0 and 10^4 nats
    dx, dw = torch.autograd.grad(loss, (x, w))
    exact = (F.softmax(w.detach(), -1) - torch.tensor([[1.0, 0.0], [1.0, 0.0]])) / 2
    torch.testing.assert_close((dx, dw), (exact @ w.detach(), exact.T))
    nothing = linear_cross_entropy(x, w, torch.tensor([-100, -100]))
    assert nothing.item() == 0 and all(not grad.any() for grad in torch.autograd.grad(nothing, (x, w)))


@pytest.mark.parametrize("settings", [{}, SLLAMA, {"attention": "rra", "embedding": "linear"}], ids=str)
def test_initial_weights(settings):
    """Matrices from N(0, 0.02), norms 1, biases 0; so the first loss is about log(vocabulary)."""
    torch.manual_seed(0)
    model = Model(tiny(vocab_size=2000, hidden_size=64, intermediate_size=128, **settings))
    for name, p in model.named_parameters():
        if p.dim() > 1:
            assert abs(p.std() - 0.02) < 0.002 and abs(p.mean()) < 0.003, name
        else:
            assert (p == (0 if name.endswith("bias") else 1)).all(), name
    assert abs(model(IDS, IDS.roll(-1, 1)).item() - math.log(2000)) < 0.1


@pytest.mark.parametrize("settings", [{}, SLLAMA, {"embedding": "attention"}, {"num_key_value_heads": 2}], ids=str)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_a_line_that_is_isolated_is_as_it_is_alone(settings, dtype, tolerance):
    model = random_model(tiny(**settings), scale=0.1)
    end, a, b, c = (torch.randint(2, 61, (n,)) for n in (5, 1, 11, 7))  # a window begins with the end of a line
    for line in (a, b, c):
        line[0] = 1
    rows = [(end, a, b, c), (end, c, a, b)]
    window = torch.stack([torch.cat(row) for row in rows])
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        isolated = model.hidden(window, mask=model_file.own_line(window, 1)).float()
    for row, states in zip(rows, isolated):
        alone = torch.cat([model.hidden(line[None])[0] for line in row])
        torch.testing.assert_close(states, alone, atol=tolerance, rtol=tolerance)
    assert not torch.allclose(model.hidden(window), isolated, atol=0.05)


# --- what a CPU needs


@pytest.mark.parametrize("T, hs", [(40, 16), (256, 64)])
def test_attention_in_bfloat16_on_a_cpu(T, hs):
    """Output and gradients beside those of PyTorch's kernel in float32, which is not written out."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 3, T, hs, dtype=torch.bfloat16, requires_grad=True) for _ in range(4))
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        y = model_file.attend(q.to(dtype), k.to(dtype), v.to(dtype))
        results.append((y.float(), *torch.autograd.grad(y, (q, k, v), grad.to(dtype))))
    for rough, exact in zip(*results):
        assert (rough - exact).norm() < 0.015 * exact.norm()


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_dropout_drops_each_element_alone_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(100, 33, 31, requires_grad=True)  # 102,300 elements: not a multiple of eight
    y = drop(x, p)
    y.sum().backward()
    assert torch.equal(x.grad, y) and len(y.unique()) == 2
    kept, noise = (y != 0).float(), 5 * math.sqrt(p * (1 - p) / x.numel())
    assert kept.mean().item() == pytest.approx(1 - p, abs=noise + 1 / 512)
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    for dim in range(3):  # whether a neighbour is kept says nothing
        both = (kept * kept.roll(1, dim)).mean().item()
        assert both == pytest.approx(kept.mean().item() ** 2, abs=2 * noise), dim


def test_dropout_only_while_training():
    model, plain = random_model(tiny(dropout=0.5)), random_model(tiny()).train()
    assert torch.equal(model(IDS), plain(IDS))
    model.train()
    assert not torch.equal(model(IDS), model(IDS))


# --- generation


def test_generation_goes_on_past_the_context_and_follows_its_seed():
    model = random_model(tiny(), scale=0.1)
    texts = [list(model.generate([1], 60, seed=seed)) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2] and len(texts[0]) == 60  # the context is 32


@pytest.mark.slow
def test_generation_draws_by_the_models_probabilities():
    model = random_model(tiny(vocab_size=5), scale=0.2)
    p = model(torch.tensor([[1, 2]]))[0, -1].softmax(-1)
    counts = torch.zeros(5)
    for seed in range(800):
        token, probability = next(model.generate([1, 2], 1, seed=seed))
        assert probability == pytest.approx(p[token].item(), rel=1e-5)
        counts[token] += 1
    torch.testing.assert_close(counts / 800, p, atol=0.06, rtol=0)


def test_generation_takes_the_tokens_that_pick_allows():
    """pick sees the logits and the ids so far; here it is greedy, and recomputation without a cache agrees."""
    model, ids = random_model(tiny()), [1, 2]

    def likeliest(logits, so_far):
        assert so_far == ids
        return F.one_hot(logits.argmax(), len(logits)).float()

    for token, _ in model.generate([1, 2], 15, pick=likeliest):
        assert token == model(torch.tensor([ids]))[0, -1].argmax()
        ids.append(token)
    assert len(ids) == 17


# --- the file by itself, and a fork


def run_alone(folder, *words):
    """Python in another folder, where nothing of ours is but what was put there."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)


@pytest.mark.slow
def test_the_file_alone_loads_the_model_that_comes_along(tmp_path):
    """By the lines of its docstring, with nothing beside it; and it trains and generates."""
    shutil.copy(ROOT / "model.py", tmp_path)
    shutil.copytree(ROOT / "models", tmp_path / "models")
    lines = re.search(r"( +saved = .*\n)( +model = .*\n)( +model\.load.*\n)", model_file.__doc__).groups()
    use = "model(torch.tensor([[1, 5, 6]]), torch.tensor([[5, 6, 7]])).backward(); print(*model.generate([1], 3))"
    code = "import torch\nfrom model import Model, ModelConfig\n" + "".join(map(str.lstrip, lines)) + use
    assert run_alone(tmp_path, "-c", code).count("(") == 3


@pytest.mark.slow
def test_a_fork_by_the_letter_of_the_pages(tmp_path, tiny_corpus):
    """README's trick and the changes of docs/fork.md, in a copy of the project: its tests run over the trick at once;
    in a run, the setting reaches the loss, optimiser and schedule are the new ones.
    """
    left_out = shutil.ignore_patterns(".*", "__pycache__", "assets", "data", "models", "notebooks", "out", "results")
    fork = shutil.copytree(ROOT, tmp_path / "fork", ignore=left_out)
    (trick,) = [block for block in blocks("README.md", "python") if block.startswith("class ")]
    with open(fork / "model.py", "a", encoding="utf-8") as f:
        f.write("\n\n" + trick)
    for diff in blocks("docs/fork.md", "diff"):
        name, *lines = diff.removeprefix("# ").splitlines()
        before = "\n".join(line[1:] for line in lines if line[0] != "+")
        after = "\n".join(line[1:] for line in lines if line[0] != "-")
        code = (fork / name).read_text(encoding="utf-8")
        assert code.count(before) == 1, diff
        (fork / name).write_text(code.replace(before, after), encoding="utf-8")

    tests = ["tests/test_model.py", "tests/test_export.py", "-k", "skv or golden or sizes"]
    done = run_alone(fork, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert int(re.search(r"(\d+) passed", done)[1]) >= 3 + 13 + 1

    (fork / "data").symlink_to(tiny_corpus)
    options = [*TINY, "train.optimizer=nadam", "train.schedule=stable", "train.max_steps=10"]
    run_alone(fork, "train.py", *options, "train.activation_penalty=1", "train.out=out")
    with open(fork / "out/losses.csv", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    # untrained, log(vocabulary) and the mean square of what comes from an RMSNorm
    assert float(rows[0]["val_loss"]) == pytest.approx(math.log(1000) + 1, abs=0.05)
    rates = [float(row["lr"]) for row in rows if row["lr"]]
    assert max(rates) == pytest.approx(1e-2) and rates[-1] == pytest.approx(1e-2 / 2)
