"""model.py: equal to the released code's numbers, counted in closed form, causal, the same whichever way it is run."""

import copy
import csv
import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

from conftest import ROOT, TINY
import export
import model as model_file
from model import ATTENTION, KVCache, LinearCrossEntropy, Model, ModelConfig, drop, parameter_counts

import numpy as np
import pytest
import torch
import torch.nn.functional as F

SLLAMA = {"embedding": "repeat", "attention": "pwa", "mlp": "shared_projection", "layer_sharing": "share"}
SHAPE = dict(vocab_size=61, hidden_size=16, num_hidden_layers=4, num_attention_heads=4, intermediate_size=24)
GOLDEN = os.path.join(os.path.dirname(__file__), "golden", "sllama_reference")
CASES = json.load(open(GOLDEN + ".json"))
IDS = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def arrays():
    with np.load(GOLDEN + ".npz") as z:
        return {name: torch.from_numpy(z[name]) for name in z.files}


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


def combinations(**more):
    """Every valid combination of the tricks with tying, grouped key-value heads and whatever `more` adds."""
    choices = {
        "embedding": ("full", "repeat", "linear", "attention"),
        "attention": tuple(ATTENTION),
        "mlp": ("full", "shared_projection"),
        "sharing": (("none", 1), ("share", 1), ("share", 2), ("reuse", 1)),
        "tie_word_embeddings": (False, True),
        "num_key_value_heads": (None, 2),
    } | more
    for values in itertools.product(*choices.values()):
        settings = dict(zip(choices, values))
        settings["layer_sharing"], settings["num_groups"] = settings.pop("sharing")
        config = tiny(**settings)
        if not config.problems():
            yield config


def label(config):
    return f"{config.embedding}-{config.attention}-{config.mlp}-{config.layer_sharing}"


EVERY = list(combinations())
each_attention = pytest.mark.parametrize("attention", ATTENTION)
some_models = pytest.mark.parametrize("config", EVERY[::23], ids=label)


def loss_and_gradients(model, loss):
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters()}


# --- the released model


@pytest.mark.parametrize("case", CASES)
def test_golden(case, arrays):
    """Logits, loss, gradients and parameter count of the released code, by export.py's names."""
    config = export.our_config(CASES[case]["config"] | {"model_type": "sllama"})
    held = {name.removeprefix(case + "/weight/"): w for name, w in arrays.items() if name.startswith(case + "/weight/")}
    model = Model(config)
    model.load_state_dict(export.fold(config, held))
    ids = arrays["input_ids"].long()
    assert (model(ids) - arrays[case + "/logits"]).abs().max() < 1e-5
    loss, ours = loss_and_gradients(model, model(ids[:, :-1], ids[:, 1:]))
    assert abs(loss.item() - CASES[case]["loss_next_token"]) < 1e-6
    assert model.num_params() == sum(parameter_counts(config).values()) == CASES[case]["unique_parameters"]

    grads = {name.removeprefix(case + "/grad/"): g for name, g in arrays.items() if name.startswith(case + "/grad/")}
    assert bool(grads) == (case in ("pwa", "spmlp", "share_2groups", "reuse", "sllama_full", "gqa_plain"))
    if grads:
        theirs = export.fold(config, grads)
        assert theirs.keys() == ours.keys()
        for name, g in theirs.items():
            assert (ours[name] - g).norm() <= 1e-4 * g.norm(), name


def test_released_sizes():
    sllama = ModelConfig(32000, 64, 6, 4, 192, **SLLAMA)
    llama = ModelConfig(16000, 384, 6, 6, 1536, max_position_embeddings=512)
    assert [sum(parameter_counts(config).values()) for config in (sllama, llama)] == [2_585_792, 26_448_768]


ATTENTION_SIZES = {
    "mha": lambda h, h_kv: 2 * h * h + 2 * h * h_kv,
    "skqa": lambda h, h_kv: 3 * h * h,
    "pwa": lambda h, h_kv: 6 * h,
    "rra": lambda h, h_kv: 2 * (h + 1) * (h // 4) + 2 * (h + 1) * (h_kv // 4),
}


@pytest.mark.parametrize("attention", ATTENTION_SIZES)
def test_parameter_counts_are_the_closed_forms(attention):
    """Part by part, for every combination with 1, 2 and all key-value heads."""
    V, h, f, L = 61, 16, 24, 4
    e = h // 4
    for c in combinations(attention=(attention,), num_key_value_heads=(None, 1, 2)):
        embedding = {"full": V * h, "repeat": V * e, "linear": V * e + (e + 1) * h}
        embedding["attention"] = V * e + 2 * (e + 1) * e + (e + 1) * h
        groups = {"none": L, "share": c.num_groups, "reuse": L // 2}[c.layer_sharing]
        layers = L // 2 if c.layer_sharing == "reuse" else L
        assert parameter_counts(c) == {
            "embedding": 0 if c.tie_word_embeddings else embedding[c.embedding],
            "attention": groups * ATTENTION_SIZES[attention](h, h * (c.num_key_value_heads or 4) // 4),
            "mlp": groups * {"full": 3, "shared_projection": 2}[c.mlp] * h * f,
            "norms": (2 * layers + 1) * h,
            "head": V * h,
        }, c


@pytest.mark.parametrize("h", [64, 360, 384])
def test_pwa_picks(h):
    """The released rule up to h = 360; above, its 1440 numbers start again, which the released code can't do at all."""
    numbers = torch.tensor(list(itertools.permutations(range(6), 4))).flatten()
    attention = Model(tiny(hidden_size=h, attention="pwa")).attention[0]
    table = torch.nn.init.normal_(attention.shared_weights.data)
    x = torch.randn(1, 3, h)
    for i, got in enumerate(attention.project(x)):
        rows = table[numbers[torch.arange(i * h, (i + 1) * h) % 1440]]
        torch.testing.assert_close(got, x @ rows.T, rtol=1e-5, atol=1e-5)
    assert torch.linalg.matrix_rank(table[attention.picks]) == 6


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"hidden_size": 0}, "must be at least 1"),
        ({"dropout": math.nan}, "must be at most 0.9"),
        ({"attention": "mla"}, "expected one of mha, skqa, pwa, rra"),
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


# --- sharing


@pytest.mark.parametrize("kind, groups", [("share", 1), ("share", 2), ("reuse", 1)])
def test_layers_that_share_weights_share_them_for_good(kind, groups):
    """After a step of a model or of its copy, the layers of a group still have one weight, and other groups another."""
    first = random_model(tiny(**SLLAMA | {"layer_sharing": kind, "num_groups": groups}))
    for model in (first, copy.deepcopy(first)):
        before = export.unfold(model)[1]
        model.loss(model.hidden(IDS, checkpointing=True), IDS.roll(-1, 1)).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        after = export.unfold(model)[1]
        for matrix in ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            weights = [after[f"model.layers.{i}.{matrix}.weight"] for i in range(4)]
            assert not torch.equal(weights[0], before[f"model.layers.0.{matrix}.weight"])
            group = [i * groups // 4 if kind == "share" else i // 2 for i in range(4)]
            for i, j in itertools.combinations(range(4), 2):
                assert torch.equal(weights[i], weights[j]) == (group[i] == group[j]), (matrix, i, j)
        assert torch.equal(after["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.down_proj.weight"].T)


# --- invariances


@each_attention
def test_causal(attention):
    """Other tokens from position t on change no logit before t, and do change those from t on."""
    for i, config in enumerate(c for c in EVERY if c.attention == attention):
        model, t = random_model(config), 1 + i % 11
        other = IDS.clone()
        other[:, t:] = (other[:, t:] + 1 + i % 60) % 61
        with torch.no_grad():
            a, b = model(IDS), model(other)
        assert torch.allclose(a[:, :t], b[:, :t], rtol=0, atol=1e-6), config
        assert (a[:, t:] - b[:, t:]).abs().amax(-1).min() > 1e-4, config


@each_attention
def test_cached_generation_equals_recomputation(attention):
    """Token by token, with chunks of 3 and 4 tokens in between, which need a mask between new and cached tokens."""
    for config in (c for c in EVERY if c.attention == attention):
        model = random_model(config)
        with torch.no_grad():
            whole = model(IDS)
        cache, start = KVCache(), 0
        for n in (1, 1, 3, 1, 4, 1):
            step = model.step(IDS[:, start : start + n], cache)
            start += n
            assert torch.allclose(step, whole[:, start - 1], rtol=1e-4, atol=1e-4), (config, start)
        assert cache.length == 11
        with pytest.raises(ValueError, match="33 tokens do not fit into the context of 32"):
            model.step(IDS[:, :11].repeat(1, 2), cache)


@some_models
def test_batch_and_padding_change_nothing(config):
    """Alone, in a batch, with rubbish after it, and with rubbish before it that a mask and positions hide."""
    model = random_model(config)
    with torch.no_grad():
        one = model(IDS[:1, :7])
        torch.testing.assert_close(model(IDS[:, :7])[:1], one, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(IDS)[:1, :7], one, rtol=1e-5, atol=1e-5)
        padded = torch.cat((IDS[:1, 7:], IDS[:1, :7]), 1)  # 5 tokens of padding on the left
        positions = torch.cat((torch.zeros(5), torch.arange(7))).long()
        mask = torch.ones(12, 12, dtype=torch.bool).tril()
        mask[5:, :5] = False
        logits = model.lm_head(model.hidden(padded, positions=positions, mask=mask))
        torch.testing.assert_close(logits[:, 5:], one, rtol=1e-5, atol=1e-5)


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
    assert all(p.grad.isfinite().all() for p in model.layers.parameters())


# --- parts against their closed forms


def test_rope_is_a_rotation_of_complex_numbers():
    cos, sin = model_file.rope_table(50, 8, 10000.0)
    x = torch.randn(2, 50, 3, 8)
    y = model_file.apply_rotary_emb(x, cos[None, :, None], sin[None, :, None])
    frequency = 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    angles = torch.arange(50)[:, None] * frequency  # (T, hs/2)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]  # (T, 1, hs/2)
    z = torch.complex(x[..., :4].double(), x[..., 4:].double()) * turn
    torch.testing.assert_close(y.double(), torch.cat((z.real, z.imag), -1), rtol=1e-5, atol=1e-5)


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
    x, w = torch.randn(80, 16, generator=generator), torch.randn(vocabulary, 16, generator=generator)
    x, w = (t.bfloat16().float().requires_grad_() for t in (x, w))
    targets = torch.randint(vocabulary, (80,), generator=generator)
    loss = LinearCrossEntropy.apply(x, w, targets, torch.bfloat16, True)
    logits = (x.bfloat16() @ w.bfloat16().T).detach().double()
    assert loss.item() == pytest.approx(F.cross_entropy(logits, targets).item(), abs=1e-3)
    p = (logits.softmax(1) - F.one_hot(targets, vocabulary)) / 80
    for ours, exact in zip(torch.autograd.grad(loss, (x, w)), (p @ w.detach().double(), p.T @ x.detach().double())):
        assert (ours - exact).norm() < 4e-3 * exact.norm()


def test_loss_of_extreme_logits_and_of_nothing():
    """A probability of 0 counts as the least there is, 87 nats; the gradients do not notice."""
    x, w = torch.eye(2, requires_grad=True), (torch.eye(2) * 1e4).requires_grad_()
    loss = model_file.linear_cross_entropy(x, w, torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(-np.log(torch.finfo(torch.float32).tiny) / 2)  # of 0 and 10^4 nats
    loss.backward()
    exact = F.softmax(w.detach(), -1) - torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(x.grad, exact / 2 @ w.detach())
    torch.testing.assert_close(w.grad, exact.T / 2)
    model = random_model(tiny())
    loss, grads = loss_and_gradients(model, model(IDS, torch.full_like(IDS, -100)))
    assert loss.item() == 0 and all(grad.abs().max() == 0 for grad in grads.values())


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
    window = torch.randint(2, 61, (2, 24))
    starts = [[0, 5, 6, 17], [0, 9]]  # the first line of a window is the end of one
    for row, places in enumerate(starts):
        window[row, places[1:]] = 1
    together = model.hidden(window)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        isolated = model.hidden(window, mask=model_file.own_line(window, 1))
    for row, places in enumerate(starts):
        for start, end in zip(places, [*places[1:], 24]):
            alone = model.hidden(window[row : row + 1, start:end])[0]
            torch.testing.assert_close(isolated[row, start:end].float(), alone, atol=tolerance, rtol=tolerance)
            assert start == 0 or not torch.allclose(together[row, start:end], alone, atol=0.05)


# --- what a CPU needs


@pytest.mark.parametrize("T, hs", [(40, 16), (256, 64)])
def test_bfloat16_attention_on_a_cpu_is_as_close_to_float32_as_the_fused_kernel(T, hs):
    torch.manual_seed(0)
    exact = [torch.randn(2, 3, T, hs).bfloat16().float().requires_grad_() for _ in range(3)]
    grad = torch.randn(2, 3, T, hs).bfloat16()

    def output_and_grads(f, tensors, grad):
        out = f(*tensors)
        return out, *torch.autograd.grad(out, tensors, grad)

    def fused(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def errors(f):
        rough = output_and_grads(f, [t.detach().bfloat16().requires_grad_() for t in exact], grad)
        return torch.stack([(a.float() - b).norm() / b.norm() for a, b in zip(rough, truth)])

    truth = output_and_grads(fused, exact, grad.float())
    ours, theirs = errors(model_file.attend), errors(fused)
    assert (ours < 1.5 * theirs + 1e-3).all() and ours.max() < 0.015, (ours, theirs)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_dropout_drops_each_element_alone_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(100, 33, 31, requires_grad=True)  # 102,300 elements: not a multiple of eight
    y = drop(x, p)
    y.sum().backward()
    kept = (y != 0).float()
    noise = 5 * math.sqrt(p * (1 - p) / x.numel())
    rate = round(256 * p) / 256 or p
    assert kept.mean() == pytest.approx(1 - rate, abs=noise) and abs(rate - p) <= 1 / 512
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(x.grad, y) and len(y.unique()) == 2
    for dim in range(3):  # whether a neighbour is kept says nothing
        both = (kept * kept.roll(1, dim)).mean()
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
    drawn = [next(model.generate([1, 2], 1, seed=seed)) for seed in range(800)]
    assert all(probability == pytest.approx(p[token].item(), rel=1e-5) for token, probability in drawn)
    counts = torch.bincount(torch.tensor([token for token, _ in drawn]), minlength=5)
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


@pytest.mark.slow
def test_the_file_alone_loads_the_model_that_comes_along(tmp_path):
    """By the lines of its docstring, with nothing beside it; and it trains and generates."""
    shutil.copy(ROOT / "model.py", tmp_path)
    shutil.copytree(ROOT / "models", tmp_path / "models")
    lines = re.findall(r"^    (saved = .*\n)    (model = .*\n)    (model\.load.*\n)", model_file.__doc__, re.M)
    use = "model(torch.tensor([[1, 5, 6]]), torch.tensor([[5, 6, 7]])).backward(); print(*model.generate([1], 3))"
    code = "import torch\nfrom model import Model, ModelConfig\n" + "".join(lines[0]) + use
    assert run_alone(tmp_path, "-c", code).count("(") == 3


@pytest.fixture
def fork(tmp_path):
    """A copy of the project, to be changed."""
    left_out = shutil.ignore_patterns(".*", "__pycache__", "assets", "data", "models", "notebooks", "out", "results")
    return pathlib.Path(shutil.copytree(ROOT, tmp_path / "fork", ignore=left_out))


@pytest.mark.slow
def test_a_trick_by_readmes_letter_leaves_the_tests_green(fork):
    """They run over it at once, as over every other."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (trick,) = re.findall(r"^```python\n(class .*?)^```$", text, re.S | re.M)
    with open(fork / "model.py", "a", encoding="utf-8") as f:
        f.write("\n\n" + trick)
    tests = "skv or refused or golden or sizes"
    done = run_alone(fork, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_model.py", "-k", tests)
    assert int(re.search(r"(\d+) passed", done)[1]) >= 4 + 13 + 13
    done = run_alone(fork, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_export.py", "-k", "skv")
    assert re.search(r"1 (passed|skipped)", done)  # skipped without transformers


@pytest.mark.slow
def test_the_changes_that_docs_fork_shows(fork, tiny_corpus):
    """Written in as shown, and run: the setting reaches the loss, optimiser and schedule are the new ones."""
    for diff in re.findall(r"^```diff\n(.*?)^```$", (ROOT / "docs/fork.md").read_text(encoding="utf-8"), re.S | re.M):
        name, *lines = diff.removeprefix("# ").splitlines()
        before = "\n".join(line[1:] for line in lines if line[0] != "+")
        after = "\n".join(line[1:] for line in lines if line[0] != "-")
        code = (fork / name).read_text(encoding="utf-8")
        assert code.count(before) == 1, diff
        (fork / name).write_text(code.replace(before, after), encoding="utf-8")
    (fork / "data").symlink_to(tiny_corpus / "data")
    options = [*TINY, "train.optimizer=nadam", "train.schedule=stable", "train.max_steps=10"]
    losses = {}
    for penalty in (0, 1):
        out = f"train.out=out/{penalty}"
        run_alone(fork, "train.py", *options, out, f"train.activation_penalty={penalty}")
        with open(fork / f"out/{penalty}/losses.csv", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        losses[penalty] = float(rows[0]["val_loss"])
        rates = [float(row["lr"]) for row in rows if row["lr"]]
        assert max(rates) == pytest.approx(1e-2) and rates[-1] == pytest.approx(1e-2 / 2)
    assert losses[1] - losses[0] == pytest.approx(1, abs=0.01)  # the mean square of what comes from an RMSNorm
