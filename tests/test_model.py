"""model.py: equal to the released code's numbers, counted in closed form, causal, the same whichever way it is run."""

import copy
import dataclasses
import itertools
import json
import math
import os
import shutil
import subprocess
import sys

from conftest import ROOT
import export
from lab import checkpoint
import model as model_file
from model import KVCache, LinearCrossEntropy, Model, ModelConfig, apply_rotary_emb, drop, parameter_counts, rope_table

import numpy as np
import pytest
import torch
import torch.nn.functional as F

SLLAMA = {"embedding": "repeat", "attention": "pwa", "mlp": "shared_projection", "layer_sharing": "share"}
GOLDEN = os.path.join(os.path.dirname(__file__), "golden", "sllama_reference")
CASES = json.load(open(GOLDEN + ".json"))


@pytest.fixture(scope="module")
def arrays():
    with np.load(GOLDEN + ".npz") as z:
        return {name: torch.from_numpy(z[name]) for name in z.files}


def tiny(**settings):
    shape = {
        "vocab_size": 61,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    }
    return ModelConfig(**shape | settings)


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
        "attention": ("mha", "skqa", "pwa", "rra"),
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


EVERY = list(combinations())
IDS = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(1))


def label(config):
    c = config
    parts = (
        c.embedding,
        c.attention,
        c.mlp,
        c.layer_sharing,
        c.num_groups,
        c.tie_word_embeddings,
        c.num_key_value_heads,
    )
    return "-".join(map(str, parts))


# --- the released model


@pytest.mark.parametrize("case", CASES)
def test_golden(case, arrays):
    """Logits, loss, gradients and parameter count of the released code, by export.py's names."""
    config = export.our_config(CASES[case]["config"] | {"model_type": "sllama"}, case)
    held = {name.removeprefix(case + "/weight/"): w for name, w in arrays.items() if name.startswith(case + "/weight/")}
    model = Model(config)
    model.load_state_dict(export.fold(config, held, case))
    ids = arrays["input_ids"].long()
    assert (model(ids) - arrays[case + "/logits"]).abs().max() < 1e-5
    loss = model(ids[:, :-1], ids[:, 1:])
    assert abs(loss.item() - CASES[case]["loss_next_token"]) < 1e-6
    assert model.num_params() == sum(parameter_counts(config).values()) == CASES[case]["unique_parameters"]

    loss.backward()
    grads = {name.removeprefix(case + "/grad/"): g for name, g in arrays.items() if name.startswith(case + "/grad/")}
    assert bool(grads) == (case in ("pwa", "spmlp", "share_2groups", "reuse", "sllama_full", "gqa_plain"))
    if grads:
        ours = {name: p.grad for name, p in model.named_parameters()}
        places = {name: next(n for n in theirs if n in grads) for name, theirs in export.names(config).items()}
        assert sorted(places.values()) == sorted(grads)
        for name, place in places.items():
            assert (ours[name] - grads[place]).norm() <= 1e-4 * grads[place].norm(), name


def test_golden_has_all_cases():
    assert len(CASES) == 13 and sum(CASES[c]["config"]["tie_word_embeddings"] for c in CASES) == 0


def test_released_sizes():
    sllama = ModelConfig(32000, 64, 6, 4, 192, **SLLAMA)
    llama = ModelConfig(16000, 384, 6, 6, 1536, max_position_embeddings=512)
    for config, count in ((sllama, 2_585_792), (llama, 26_448_768)):
        with torch.device("meta"):
            assert Model(config).num_params() == count
        assert sum(parameter_counts(config).values()) == count


@pytest.mark.parametrize("shape", [(61, 16, 4, 4, 24, False, 2), (97, 48, 6, 6, 40, True, 4)], ids=str)
def test_parameter_counts_in_closed_form(shape):
    """Part by part, for every combination with 1, 2 and all key-value heads; some at another size, with QK-norm."""
    keys = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "qk_norm",
        "embedding_factor",
    )
    part_of = {
        "embed_tokens": "embedding",
        "projector": "embedding",
        "attention": "attention",
        "mlp": "mlp",
        "layers": "norms",
        "norm": "norms",
        "lm_head": "head",
    }
    seen = 0
    every = list(combinations(num_key_value_heads=(None, 1, 2)))
    for config in every if shape[0] == 61 else every[::4]:
        config = dataclasses.replace(config, **dict(zip(keys, shape)))
        if config.problems():
            continue
        with torch.device("meta"):
            counted = dict.fromkeys(("embedding", "attention", "mlp", "norms", "head"), 0)
            for name, p in Model(config).named_parameters():
                counted[part_of[name.split(".")[0]]] += p.numel()
        assert parameter_counts(config) == counted, label(config)
        seen += 1
    assert seen > (300 if shape[0] == 61 else 60)


@pytest.mark.parametrize("h", [64, 360, 384])
def test_pwa_picks(h):
    """The released rule up to h = 360; above, its 1440 numbers start again, which the released code can't do at all."""
    p = torch.tensor(list(itertools.permutations(range(6), 4))).flatten()
    attention = Model(tiny(hidden_size=h, attention="pwa")).attention[0]
    S = torch.randn_like(attention.shared_weights)
    attention.shared_weights.data.copy_(S)
    x = torch.randn(1, 3, h)
    for i, got in enumerate(attention.project(x)):
        rows = S[p[i * h : (i + 1) * h]] if h <= 360 else S[p[torch.arange(i * h, (i + 1) * h) % 1440]]
        assert torch.equal(attention.picks[i * h : (i + 1) * h], p[torch.arange(i * h, (i + 1) * h) % 1440])
        torch.testing.assert_close(got, x @ rows.T, rtol=1e-5, atol=1e-5)
    assert torch.linalg.matrix_rank(S[attention.picks]) == 6


def test_pwa_picks_of_grouped_heads():
    picks = Model(tiny(attention="pwa", num_key_value_heads=2)).attention[0].picks
    assert torch.equal(picks, Model(tiny(attention="pwa")).attention[0].picks[:32])  # 16 of q, 8 of k, 8 of v


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
    problems = tiny(**settings).problems()
    assert len(problems) == 1 and reason in problems[0]
    assert problems[0].split(":")[0] in ModelConfig.__dataclass_fields__
    with pytest.raises(ValueError, match=reason):
        Model(tiny(**settings))


# --- sharing


def shared_settings():
    return [("share", 1), ("share", 2), ("reuse", 1)]


@pytest.mark.parametrize("kind, groups", shared_settings())
def test_a_step_on_one_layer_moves_all_that_share(kind, groups, tmp_path):
    """After a step in a copy, compiled, or under checkpointing, the layers of a group still have one weight."""
    config = tiny(**SLLAMA | {"layer_sharing": kind, "num_groups": groups})
    first = random_model(config)
    path = str(tmp_path / "c.pt")
    torch.save(first.state_dict(), path)
    loaded = Model(config)
    loaded.load_state_dict(torch.load(path, weights_only=True))
    compiled = torch.compile(loaded, backend="eager") if groups == 2 else loaded
    for model in (first, copy.deepcopy(first), loaded, compiled):
        before = export.unfold(getattr(model, "_orig_mod", model))[1]
        model.loss(model.hidden(IDS, checkpointing=True), IDS.roll(-1, 1)).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
        after = export.unfold(getattr(model, "_orig_mod", model))[1]
        for rest in ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            weights = [after[f"model.layers.{i}.{rest}.weight"] for i in range(4)]
            assert not torch.equal(weights[0], before[f"model.layers.0.{rest}.weight"])
            pairs = [i * groups // 4 if kind == "share" else i // 2 for i in range(4)]
            for i, j in itertools.combinations(range(4), 2):
                assert torch.equal(weights[i], weights[j]) == (pairs[i] == pairs[j]), (rest, i, j)
        assert torch.equal(after["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.down_proj.weight"].T)


@pytest.mark.parametrize("kind, groups", shared_settings())
def test_a_saved_file_holds_each_weight_once(kind, groups, tmp_path):
    config = tiny(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=256,
        embedding="repeat",
        mlp="shared_projection",
        layer_sharing=kind,
        num_groups=groups,
    )
    model = random_model(config)
    path = str(tmp_path / "c.pt")
    checkpoint.save(path, checkpoint.make(config, model.state_dict(), b"x", {}))
    weights = checkpoint.read(path)["weights"]
    held = sum(w.numel() for w in weights.values())
    assert held == sum(parameter_counts(config).values()) == model.num_params()
    assert os.path.getsize(path) < 4 * sum(parameter_counts(config).values()) + 20_000
    again = Model(config)
    again.load_state_dict(weights)
    assert torch.equal(again.eval()(IDS), model(IDS))


def test_tied_head_is_the_embedding():
    model = random_model(tiny(tie_word_embeddings=True))
    assert "lm_head.weight" in dict(model.named_parameters()) and "embed_tokens.weight" not in model.state_dict()
    x = model.embed(IDS)
    assert torch.equal(x, model.lm_head.weight[IDS])
    assert torch.equal(copy.deepcopy(model)(IDS), model(IDS))


# --- invariances, each for every combination


@pytest.mark.parametrize("embedding", ["full", "repeat", "linear", "attention"])
def test_causal(embedding):
    """Other tokens from position t on change no logit before t, and do change those from t on."""
    for i, config in enumerate(c for c in EVERY if c.embedding == embedding):
        model, t = random_model(config), 1 + i % 11
        other = IDS.clone()
        other[:, t:] = (other[:, t:] + 1 + i % 60) % 61
        with torch.no_grad():
            a, b = model(IDS), model(other)
        assert torch.allclose(a[:, :t], b[:, :t], rtol=0, atol=1e-6), label(config)
        assert (a[:, t:] - b[:, t:]).abs().amax(-1).min() > 1e-4, label(config)


@pytest.mark.parametrize("embedding", ["full", "repeat", "linear", "attention"])
def test_cached_generation_equals_recomputation(embedding):
    """Token by token, with chunks of 3 and 4 tokens in between, which need a mask between new and cached tokens."""
    for config in (c for c in EVERY if c.embedding == embedding):
        model = random_model(config)
        with torch.no_grad():
            whole = model(IDS)
            cache, start = KVCache(), 0
            for n in (1, 1, 3, 1, 4, 1):
                step = model.step(IDS[:, start : start + n], cache)
                start += n
                assert torch.allclose(step, whole[:, start - 1], rtol=1e-4, atol=1e-4), (label(config), start)
            assert cache.length == 11


def test_greedy_generation_with_cache_picks_the_same_tokens():
    model = random_model(tiny(**SLLAMA), seed=4)
    ids, cache, new = IDS[:1, :3], KVCache(), IDS[:1, :3]
    for _ in range(20):
        new = model.step(new, cache).argmax(-1, keepdim=True)
        assert new.item() == model(ids)[0, -1].argmax().item()
        ids = torch.cat((ids, new), 1)
    with pytest.raises(ValueError, match="do not fit"):
        model.step(IDS[:1].repeat(1, 3)[:, : 32 - cache.length + 1], cache)


@pytest.mark.parametrize("config", EVERY[::9], ids=label)
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


@pytest.mark.parametrize("config", EVERY[::9], ids=label)
def test_a_tree_of_continuations_equals_separate_sequences(config):
    """Two continuations of one prefix in a single row, with positions and a mask, as eval_blimp.py packs them."""
    model = random_model(config)
    prefix, left, right = IDS[0, :4], IDS[0, 4:8], IDS[1, 4:9]
    row = torch.cat((prefix, left, right))[None]
    positions = torch.cat((torch.arange(8), torch.arange(4, 9)))
    mask = torch.ones(13, 13, dtype=torch.bool).tril()
    mask[8:, 4:8] = False
    with torch.no_grad():
        plain = model.hidden(row, positions=torch.arange(13))
        torch.testing.assert_close(plain, model.hidden(row), rtol=0, atol=0)
        tree = model.hidden(row, positions=positions[None], mask=mask[None, None])[0]
        apart = [model.hidden(torch.cat((prefix, branch))[None])[0] for branch in (left, right)]
    torch.testing.assert_close(tree[:8], apart[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tree[8:], apart[1][4:], rtol=1e-5, atol=1e-5)


def naive_attention(q, k, v, mask=None):
    """softmax(q k^T / sqrt(hs)) v as it is written in the paper."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])  # (B, nh, T, T)
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if mask is None else mask
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("config", EVERY[::9], ids=label)
def test_naive_attention_equals_sdpa(config, monkeypatch):
    results = []
    for naive in (False, True):
        if naive:
            monkeypatch.setattr(model_file, "attend", naive_attention)
        model = random_model(config)
        loss = model(IDS[:, :-1], IDS[:, 1:])
        loss.backward()
        results.append((model(IDS), loss, {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("config", EVERY[::27], ids=label)
def test_checkpointing_changes_nothing(config, dropout):
    results = []
    for on in (False, True):
        model = random_model(dataclasses.replace(config, dropout=dropout)).train()
        torch.manual_seed(7)
        loss = model.loss(model.hidden(IDS[:, :-1], checkpointing=on), IDS[:, 1:])
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compile_changes_no_loss():
    """Slow: one compilation, forward and backward, of the smallest full SLlama."""
    config = tiny(**SLLAMA, num_hidden_layers=2)
    results = []
    for compiled in (False, True):
        model = random_model(config)
        loss = (torch.compile(model) if compiled else model)(IDS[:, :-1], IDS[:, 1:])
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


# --- parts against their closed forms


def test_rope_is_a_rotation_of_complex_numbers():
    cos, sin = rope_table(50, 8, 10000.0)
    x = torch.randn(2, 50, 3, 8)
    y = apply_rotary_emb(x, cos[None, :, None], sin[None, :, None])
    frequency = 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    angles = torch.arange(50)[:, None] * frequency  # (T, hs/2)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]  # (T, 1, hs/2)
    z = torch.complex(x[..., :4].double(), x[..., 4:].double()) * turn
    torch.testing.assert_close(y.double(), torch.cat((z.real, z.imag), -1), rtol=1e-5, atol=1e-5)


def test_rope_scores_depend_on_the_distance_alone():
    cos, sin = rope_table(40, 16, 10000.0)
    q, k = torch.randn(2, 1, 1, 1, 16)

    def at(x, m):
        return apply_rotary_emb(x, cos[None, m : m + 1, None], sin[None, m : m + 1, None]).flatten()

    for distance in (0, 1, 7, 20):
        scores = torch.stack([at(q, m + distance) @ at(k, m) for m in range(20)])
        torch.testing.assert_close(scores, scores[:1].expand(20), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(at(q, 1) @ at(k, 0), at(q, 2) @ at(k, 0), atol=1e-3)
    assert torch.equal(at(q, 0), q.flatten())


def test_positions_shift_changes_nothing():
    model = random_model(tiny())
    shifted = model.hidden(IDS, positions=torch.arange(9, 21))
    torch.testing.assert_close(shifted, model.hidden(IDS), rtol=1e-4, atol=1e-4)
    both = model.hidden(IDS, positions=torch.stack((torch.arange(12), torch.arange(12) * 2)))
    torch.testing.assert_close(both[0], model.hidden(IDS)[0])
    assert not torch.allclose(both[1], model.hidden(IDS)[1], atol=1e-2)


@pytest.mark.parametrize("z_loss", [0.0, 0.05])
@pytest.mark.parametrize("chunk", [3, 64, 1000])
def test_chunked_loss_equals_cross_entropy(chunk, z_loss, monkeypatch):
    """Loss and both gradients, with unscored targets, a last chunk that is not full and an outer factor."""
    monkeypatch.setattr(model_file, "chunk_size", lambda *_: chunk)
    torch.manual_seed(0)
    targets = torch.randint(37, (100,))
    targets[::7] = -100
    x = torch.randn(100, 8, dtype=torch.float64, requires_grad=True)
    w = torch.randn(37, 8, dtype=torch.float64, requires_grad=True)
    logits = x @ w.T
    z = logits.logsumexp(-1)[targets >= 0]
    want = F.cross_entropy(logits, targets) + z_loss * z.square().mean()
    want_grads = torch.autograd.grad(3 * want, (x, w))
    loss = LinearCrossEntropy.apply(x, w, targets, z_loss, torch.float64, True)
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, (x, w)), want_grads, rtol=1e-5, atol=1e-6)
    alone = LinearCrossEntropy.apply(x.detach(), w.detach(), targets, z_loss, torch.float64, False)
    torch.testing.assert_close(alone, loss.detach())


@pytest.mark.parametrize("vocabulary", [61, 32000])
def test_bfloat16_loses_no_more_than_its_logits_do(vocabulary):
    """Loss and gradients beside those of the same rounded logits in float64: only p is rounded once more."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(80, 16, generator=generator), torch.randn(vocabulary, 16, generator=generator)
    x, w = (t.bfloat16().float().requires_grad_() for t in (x, w))
    targets = torch.randint(vocabulary, (80,), generator=generator)
    loss = LinearCrossEntropy.apply(x, w, targets, 0.0, torch.bfloat16, True)
    logits = (x.bfloat16() @ w.bfloat16().T).detach().double()
    assert loss.item() == pytest.approx(F.cross_entropy(logits, targets).item(), abs=1e-3)
    p = (logits.softmax(1) - F.one_hot(targets, vocabulary)) / 80
    for ours, exact in zip(torch.autograd.grad(loss, (x, w)), (p @ w.detach().double(), p.T @ x.detach().double())):
        assert (ours - exact).norm() < 4e-3 * exact.norm()


def test_loss_of_extreme_logits_and_of_nothing():
    """A probability of 0 counts as the least there is, 87 nats; the gradients do not notice."""
    x, w = torch.eye(2, requires_grad=True), (torch.eye(2) * 1e4).requires_grad_()
    loss = LinearCrossEntropy.apply(x, w, torch.tensor([0, 0]), 0.0, torch.float32, True)
    assert loss.item() == pytest.approx(-np.log(torch.finfo(torch.float32).tiny) / 2)  # of 0 and 10^4 nats
    loss.backward()
    exact = F.softmax(w.detach(), -1) - torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(x.grad, exact / 2 @ w.detach())
    torch.testing.assert_close(w.grad, exact.T / 2)
    model = random_model(tiny())
    loss = model(IDS, torch.full_like(IDS, -100))
    loss.backward()
    assert loss.item() == 0 and all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


def test_model_loss_is_the_cross_entropy_of_its_logits():
    model = random_model(tiny(embedding="linear", attention="rra", layer_sharing="reuse"))
    targets = IDS.roll(-1, 1)
    targets[:, -3:] = -100
    want = F.cross_entropy(model(IDS).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model(IDS, targets), want)
    torch.testing.assert_close(model.loss(model.hidden(IDS), targets), want)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS, targets), want)


# --- options


@pytest.mark.parametrize("settings", [{}, SLLAMA, {"embedding": "attention"}, {"num_key_value_heads": 2}])
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


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_each_element_alone_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(100, 33, 31, requires_grad=True)  # 102,300 elements: not a multiple of eight
    y = drop(x, p)
    y.sum().backward()
    kept = (y != 0).float()
    noise = 5 * math.sqrt(p * (1 - p) / x.numel())
    assert kept.mean() == pytest.approx(1 - p, abs=noise + 1 / 512)
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(x.grad, y) and len(y.unique()) == 2
    for dim in range(3):  # whether a neighbour is kept says nothing
        both = (kept * kept.roll(1, dim)).mean()
        assert both == pytest.approx(kept.mean().item() ** 2, abs=2 * noise), dim


def test_dropout_only_while_training():
    model, plain = random_model(tiny(dropout=0.5)), random_model(tiny())
    assert torch.equal(model(IDS), plain(IDS))
    model.train()
    assert not torch.equal(model(IDS), model(IDS))
    zero = random_model(tiny(dropout=0.0)).train()
    assert torch.equal(zero(IDS), plain(IDS))


@pytest.mark.parametrize("attention", ["mha", "skqa", "pwa", "rra"])
def test_qk_norm_makes_attention_blind_to_the_size_of_queries_and_keys(attention):
    def change(qk_norm):
        model = random_model(tiny(attention=attention, qk_norm=qk_norm))
        project, before = model.attention[0].project, model(IDS)
        model.attention[0].project = lambda x: (lambda q, k, v: (8 * q, 0.5 * k, v))(*project(x))
        return (model(IDS) - before).abs().max()

    assert change(True) < 1e-3 < 0.1 < change(False)


@pytest.mark.parametrize("shared", [False, True])
def test_relu2_and_silu_mlps(shared):
    x = torch.randn(5, 16)
    for act, function in (("relu2", lambda t: t.clamp(min=0) ** 2), ("silu", lambda t: t / (1 + torch.exp(-t)))):
        mlp = random_model(tiny(hidden_act=act, mlp="shared_projection" if shared else "full")).mlp[0]
        up = mlp.down_proj.weight.T if shared else mlp.up_proj.weight
        want = (function(x @ mlp.gate_proj.weight.T) * (x @ up.T)) @ mlp.down_proj.weight.T
        torch.testing.assert_close(mlp(x), want, rtol=1e-4, atol=1e-5)


def test_rmsnorm_closed_form():
    norm = model_file.RMSNorm(16, 1e-2)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 16)
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * norm.weight)


def test_initial_weights():
    """Matrices from N(0, 0.02), norms 1, biases 0; so the first loss is about log(vocabulary)."""
    torch.manual_seed(0)
    for attention, embedding in (("rra", "linear"), ("pwa", "repeat"), ("mha", "full"), ("skqa", "attention")):
        shape = {"vocab_size": 2000, "hidden_size": 64, "intermediate_size": 128}
        model = Model(tiny(**shape, attention=attention, embedding=embedding))
        for name, p in model.named_parameters():
            if p.dim() > 1:
                assert abs(p.std() - 0.02) < 0.002 and abs(p.mean()) < 0.003, name
            else:
                assert torch.equal(p.data, torch.zeros_like(p) if name.endswith("bias") else torch.ones_like(p)), name
        assert abs(model(IDS, IDS.roll(-1, 1)).item() - math.log(2000)) < 0.1


@pytest.mark.parametrize("embedding", ["full", "repeat", "linear", "attention"])
def test_the_residual_stream_is_float32_under_autocast(embedding):
    """Whatever the embedding, so that an ablation compares embeddings and not precisions; products are in bfloat16."""
    model, streams = random_model(tiny(embedding=embedding)), set()
    for reader in (*model.layers, model.norm):
        reader.register_forward_pre_hook(lambda module, args: streams.add(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert model.hidden(IDS).dtype == torch.bfloat16
    assert streams == {torch.float32}


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


# --- generation, and the file by itself


def test_generation_goes_on_past_the_context_and_follows_its_seed():
    model = random_model(tiny(), scale=0.1)
    texts = [list(model.generate([1], 60, seed=seed)) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2] and len(texts[0]) == 60  # the context is 32
    token, p = texts[0][0]
    assert p == pytest.approx(model(torch.tensor([[1]]))[0, -1].softmax(-1)[token].item(), rel=1e-5)


def test_generation_takes_the_tokens_that_pick_allows():
    """pick sees the logits and the ids so far; the probability that comes out is still the model's own."""
    model, seen = random_model(tiny()), []

    def likeliest(logits, ids):
        seen.append(list(ids))
        return F.one_hot(logits.argmax(), len(logits)).float()

    tokens = [token for token, _ in model.generate([1, 2], 5, pick=likeliest)]
    ids = [1, 2]
    for token in tokens:
        assert seen.pop(0) == ids
        logits = model(torch.tensor([ids]))[0, -1]
        assert token == logits.argmax()
        ids.append(token)


ALONE = """
import itertools, torch
from model import ATTENTION, Model, ModelConfig
torch.manual_seed(0)
ids = torch.randint(61, (2, 12))
built = 0
for embedding, attention, mlp, sharing in itertools.product(("full", "repeat", "linear", "attention"), ATTENTION,
                                                            ("full", "shared_projection"), ("none", "share", "reuse")):
    model = Model(ModelConfig(61, 16, 2, 2, 24, max_position_embeddings=16, embedding=embedding, attention=attention,
                              mlp=mlp, layer_sharing=sharing))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    losses = []
    for _ in range(5):
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0], (embedding, attention, mlp, sharing, losses)
    assert len(list(model.generate([1], 20))) == 20
    built += 1
print(built)
"""


def test_the_file_alone_builds_trains_and_generates_every_variant(tmp_path):
    shutil.copy(ROOT / "model.py", tmp_path)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "96\n", done.stderr
