"""The evaluator on models whose scores can be written down by hand, on invariances, and on everything a user can get wrong."""
import copy
import csv
import json
import math
import pathlib
import random
import re
import types

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import eval_blimp
from conftest import TINY, command, refused
from lab import checkpoint, report
from lab.files import UserError
from lab.settings import ModelConfig
from model import Model

WORDS = "a b c d e f g h".split()                                       # ids 3 to 10; 0, 1, 2 are unknown, BOS, EOS
V = 3 + len(WORDS)


class Words:
    """A tokenizer whose tokens are words; " a" is another first word than "a", so that a leading space shows."""
    bos_id, eos_id, vocab_size, sha256 = 1, 2, V, "0" * 64

    def encode_batch(self, texts):
        return [[0] * text.startswith(" ") + [3 + WORDS.index(word) for word in text.split()] for text in texts]


class Table(nn.Module):
    """A bigram model: the logits after token i are row i of a table, whatever came before. With equal rows it is a unigram model."""

    def __init__(self, table):
        super().__init__()
        self.lm_head = nn.Linear(len(table), len(table), bias=False)
        self.lm_head.weight.data = torch.as_tensor(table, dtype=torch.float32).T.contiguous()

    def hidden(self, ids, positions=None, mask=None):
        return F.one_hot(ids, self.lm_head.weight.shape[0]).float()


class History(nn.Module):
    """Logits from the number of times each token is visible, its own position included: wrong masks and positions show."""

    def __init__(self, seed=0, longest=400):
        super().__init__()
        torch.manual_seed(seed)
        self.lm_head = nn.Linear(V + longest, V, bias=False)
        nn.init.normal_(self.lm_head.weight, std=1.0)
        self.longest = longest

    def hidden(self, ids, positions=None, mask=None):
        seen = mask[:, 0].float() @ F.one_hot(ids, V).float()           # (B, T, V)
        return torch.cat((seen, F.one_hot(positions, self.longest).float()), dim=-1)


def by_hand(model, sequence, start):
    """log p(sequence[start:] | sequence[:start]) of a stand-in, in float64, one token after the other."""
    weight, total = model.lm_head.weight.double(), 0.0
    for t in range(start, len(sequence)):
        ids = torch.tensor([sequence[:t]])
        causal = torch.ones(t, t, dtype=torch.bool).tril()[None, None]
        logits = weight @ model.hidden(ids, torch.arange(t)[None], causal)[0, -1].double()
        total += (logits[sequence[t]] - logits.logsumexp(0)).item()
    return total


def uniform(value=0.0):
    return Table(np.full((V, V), value))


def pair(good, bad, **fields):
    return {"sentence_good": good, "sentence_bad": bad, **fields}


def write(folder, files):
    """{name: list of pairs or text} -> a folder of name.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def scored(model, rows, tmp_path, **options):
    return eval_blimp.evaluate(model, Words(), report.read_pairs(write(tmp_path / "pairs", rows))[0], **options)


# --------------------------------------------------------------------------------------------- scores


def test_uniform_model():
    scores = eval_blimp.score_sentences(uniform(), Words(), ["a", "a b", "h g f"])
    assert scores == pytest.approx([-math.log(V), -2 * math.log(V), -3 * math.log(V)], abs=1e-6)
    assert scores.dtype == np.float64


@pytest.mark.parametrize("value", [0, -300, 300, 1e4])
def test_constant_logits_of_any_size_are_uniform(value):
    assert eval_blimp.score_sentences(uniform(value), Words(), ["a b c"]) == pytest.approx(-3 * math.log(V), abs=1e-6)


def test_unigram_model():
    logits = np.full(V, -1e4)
    logits[3:7] = np.log([1 / 2, 1 / 4, 1 / 8, 1 / 8])                  # a b c d
    model = Table(np.tile(logits, (V, 1)))
    assert eval_blimp.score_sentences(model, Words(), ["a", "b a", "d c b a"]) == pytest.approx([-math.log(2), -3 * math.log(2), -9 * math.log(2)], abs=1e-5)


def test_bigram_model_reads_the_right_neighbour():
    table = np.zeros((V, V))
    table[1, 3], table[3, 4] = math.log(9 * V), math.log(9 * V)         # BOS -> a, a -> b: odds 9 V : V - 1
    likely, rest = 9 * V / (9 * V + V - 1), 1 / (9 * V + V - 1)
    scores = eval_blimp.score_sentences(Table(table), Words(), ["a b", "a a", "b a"])
    assert scores == pytest.approx([2 * math.log(likely), math.log(likely * rest), math.log(rest / V)], abs=1e-5)


def test_order_duplicates_and_empty_input():
    texts = ["b a", "a", "b a", "c", "a"]
    scores = eval_blimp.score_sentences(History(), Words(), texts)
    assert scores[0] == scores[2] and scores[1] == scores[4] and len(set(scores)) == 3
    assert scores == pytest.approx([by_hand(History(), [1, *ids], 1) for ids in Words().encode_batch(texts)], abs=1e-4)
    assert len(eval_blimp.score_sentences(History(), Words(), [])) == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tries_compute_what_one_sequence_at_a_time_does(data):
    """Any set of sequences, however they share prefixes, in any row length and batch: the masks and positions are those of each alone."""
    token = st.integers(3, 5)
    sequences = data.draw(st.lists(st.lists(token, min_size=1, max_size=9).map(lambda ids: [1, *ids]), min_size=1, max_size=30))
    starts = [data.draw(st.integers(1, len(ids))) for ids in sequences]
    model, sizes = History(data.draw(st.integers(0, 9))), (eval_blimp.ROW, eval_blimp.BLOCK)
    try:
        eval_blimp.ROW, eval_blimp.BLOCK = data.draw(st.sampled_from([1, 5, 16, 128])), data.draw(st.sampled_from([1, 7, 100]))
        scores = eval_blimp.log_likelihoods(model, sequences, starts, batch_tokens=data.draw(st.sampled_from([1, 20, 4096])))
    finally:
        eval_blimp.ROW, eval_blimp.BLOCK = sizes
    assert scores == pytest.approx([by_hand(model, ids, start) for ids, start in zip(sequences, starts)], abs=1e-4)


def test_a_sequence_longer_than_a_row():
    sequences = [[1, *random.Random(0).choices(range(3, V), k=300)] for _ in range(2)]
    assert eval_blimp.log_likelihoods(History(), sequences, [1, 290]) == pytest.approx([by_hand(History(), sequences[0], 1), by_hand(History(), sequences[1], 290)], abs=1e-3)


def test_work_is_shared_and_hardly_padded():
    rng = random.Random(1)
    sequences = [[1, *rng.choices(range(3, 9), k=rng.randint(5, 14))] for _ in range(10000)]
    tries = eval_blimp.Tries(sequences, [1] * len(sequences), sorted(range(len(sequences)), key=sequences.__getitem__))
    different = {tuple(ids[:n]) for ids in sequences for n in range(1, len(ids))}
    assert len(different) <= len(tries.token) < 1.1 * len(different) < 0.7 * sum(map(len, sequences))
    cells = sum(batch[0].size for batch in tries.batches(4096))
    assert cells < 1.01 * len(tries.token)
    # a real tree: every token's parent is the last one before it that is one less deep
    for first, end in zip(tries.first[:20], tries.first[1:]):
        for i in range(first + 1, end):
            parent = max(j for j in range(first, i) if tries.depth[j] == tries.depth[i] - 1)
            assert tries.last[parent] >= i - first and tries.depth[first] == 0


@pytest.mark.parametrize("options, expected", [
    ({}, ([(1, 3, 4)], [1])), ({"bos": False}, ([(3, 4)], [1])), ({"leading_space": True}, ([(1, 0, 3, 4)], [1])), ({"eos": True}, ([(1, 3, 4, 2)], [1])),
    ({"prefixes": ["a"]}, ([(1, 3, 4)], [2])), ({"prefixes": ["b"]}, ([(1, 3, 4)], [1])), ({"prefixes": ["a b"]}, ([(1, 3, 4)], [3])),
    ({"prefixes": [""], "bos": False}, ([(3, 4)], [1])), ({"prefixes": ["a b"], "eos": True}, ([(1, 3, 4, 2)], [3]))])
def test_conventions(options, expected):
    assert eval_blimp.tokenize(Words(), ["a b"], **options) == expected


def test_scores_under_each_convention():
    model, ids = History(), [3, 4, 5]
    def score(**options):
        return eval_blimp.score_sentences(model, Words(), ["a b c"], **options)[0]
    assert score(bos=False) == pytest.approx(by_hand(model, ids, 1), abs=1e-5)
    assert score(eos=True) == pytest.approx(by_hand(model, [1, *ids, 2], 1), abs=1e-5)
    assert score(leading_space=True) == pytest.approx(by_hand(model, [1, 0, *ids], 1), abs=1e-5)
    assert score(mean=True) == pytest.approx(by_hand(model, [1, *ids], 1) / 3, abs=1e-5)
    assert score(mean=True, bos=False) == pytest.approx(by_hand(model, ids, 1) / 2, abs=1e-5)
    assert score(prefixes=["a b"]) == pytest.approx(by_hand(model, [1, *ids], 3), abs=1e-5)
    assert eval_blimp.score_sentences(model, Words(), ["a"], bos=False)[0] == 0        # nothing is left to score


@pytest.mark.parametrize("factor, logit, score", [(math.nan, 1, "nan"), (2e38, 10, "nan"), (2e38, -10, "-inf")])
def test_nan_and_infinity_name_the_sentence(factor, logit, score):
    """What follows b is broken: only the sentence where something does is named."""
    table = np.zeros((V, V))
    table[4, 5] = logit                                                 # b -> c
    model = Table(table)
    hidden = model.hidden
    model.hidden = lambda ids, *rest: hidden(ids) * torch.where(ids == 4, factor, 1.0)[..., None]
    with pytest.raises(UserError, match=f"log-likelihood of 'a b c' is {score}"):
        eval_blimp.score_sentences(model, Words(), ["a b", "a b c", "c a"])


def test_too_long_and_foreign_tokens():
    model = uniform()
    model.config = types.SimpleNamespace(max_position_embeddings=3)
    assert len(eval_blimp.score_sentences(model, Words(), ["a b c"])) == 1              # BOS a b are fed in, c is a target only
    with pytest.raises(UserError, match="5 tokens, more than the model's context of 3"):
        eval_blimp.score_sentences(model, Words(), ["a b c d"])
    with pytest.raises(UserError, match="not the model's tokenizer"):
        eval_blimp.score_sentences(Table(np.zeros((5, 5))), Words(), ["a b c"])


def test_leaves_the_model_as_it_was():
    model = Model(ModelConfig(V, 16, 2, 2, 24, dropout=0.5)).train()
    torch.set_float32_matmul_precision("high")
    try:
        first = eval_blimp.score_sentences(model, Words(), ["a b c", "a c"])
        assert model.training and torch.get_float32_matmul_precision() == "high"
        assert (first == eval_blimp.score_sentences(model, Words(), ["a b c", "a c"])).all()        # dropout was off
        model(torch.tensor([[1, 3]]), torch.tensor([[3, 4]])).backward()                            # and it trains on
    finally:
        torch.set_float32_matmul_precision("highest")


# --------------------------------------------------------------------------------------------- real models

KINDS = {"llama": {}, "grouped": {"num_key_value_heads": 1}, "sllama": {"embedding": "repeat", "attention": "pwa", "mlp": "shared_projection", "layer_sharing": "share"},
         "embedding attention": {"embedding": "attention"}, "embedding linear": {"embedding": "linear"},
         "tied, rra, reuse": {"attention": "rra", "layer_sharing": "reuse", "tie_word_embeddings": True},
         "skqa, qk_norm": {"attention": "skqa", "qk_norm": True}}


def lively(kind="llama", seed=0):
    """A random model with differences between sentences."""
    torch.manual_seed(seed)
    model = Model(ModelConfig(V, 16, 4, 2, 24, max_position_embeddings=24, **KINDS[kind])).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(12)
    return model


def sentences(n=300, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS[:4], k=rng.randint(1, 12))) for _ in range(n)]


@pytest.mark.parametrize("kind", KINDS)
def test_models_in_tries_as_one_by_one(kind):
    model, texts = lively(kind), sentences()
    scores = eval_blimp.score_sentences(model, Words(), texts)
    for text, score in zip(texts[:60], scores):
        ids = torch.tensor([[1, *Words().encode_batch([text])[0]]])
        with torch.no_grad():
            logp = model(ids[:, :-1]).double().log_softmax(-1)
        assert score == pytest.approx(logp[0, range(ids.shape[1] - 1), ids[0, 1:]].sum().item(), abs=1e-4)


def float64_llama(model, ids):
    """Log-likelihood of ids by a LLaMA written out in NumPy's float64."""
    c, w = model.config, {k: v.detach().double().numpy() for k, v in model.state_dict().items()}
    heads, hs, T = c.num_attention_heads, c.hidden_size // c.num_attention_heads, len(ids) - 1

    def norm(x, g):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.rms_norm_eps) * g

    def turn(x):                                                        # (T, heads, hs)
        angle = np.outer(np.arange(T), c.rope_theta ** (-np.arange(0, hs, 2) / hs))[:, None]
        a, b = x[..., :hs // 2], x[..., hs // 2:]
        return np.concatenate((a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)), -1)
    x = w["embed_tokens.weight"][ids[:-1]]
    for i in range(c.num_hidden_layers):
        y = norm(x, w[f"layers.{i}.input_layernorm.weight"])
        q, k, v = ((y @ w[f"attention.{i}.{n}_proj.weight"].T).reshape(T, heads, hs) for n in "qkv")
        a = np.einsum("qhd,khd->hqk", turn(q), turn(k)) / np.sqrt(hs) + np.triu(np.full((T, T), -np.inf), 1)
        a = np.exp(a - a.max(-1, keepdims=True))
        y = np.einsum("hqk,khd->qhd", a / a.sum(-1, keepdims=True), v).reshape(T, -1)
        x = x + y @ w[f"attention.{i}.o_proj.weight"].T
        y = norm(x, w[f"layers.{i}.post_attention_layernorm.weight"])
        g, u = (y @ w[f"mlp.{i}.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (g / (1 + np.exp(-g)) * u) @ w[f"mlp.{i}.down_proj.weight"].T
    z = norm(x, w["norm.weight"]) @ w["lm_head.weight"].T
    top = z.max(-1, keepdims=True)
    return float((z[np.arange(T), ids[1:]] - (top + np.log(np.exp(z - top).sum(-1, keepdims=True)))[:, 0]).sum())


def test_float64_reference():
    model, texts = lively(), sentences()
    reference = [float64_llama(model, [1, *ids]) for ids in Words().encode_batch(texts)]
    assert np.abs(eval_blimp.score_sentences(model, Words(), texts) - reference).max() < 1e-4


def test_batches_order_and_threads_change_nothing():
    model, texts = lively("sllama"), sentences(600)
    base = eval_blimp.score_sentences(model, Words(), texts)
    shuffled = list(range(len(texts)))
    random.Random(5).shuffle(shuffled)
    back = np.empty(len(texts))
    back[shuffled] = eval_blimp.score_sentences(model, Words(), [texts[i] for i in shuffled])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        other_threads = eval_blimp.score_sentences(model, Words(), texts)
    finally:
        torch.set_num_threads(threads)
    decisions = base[0::2] > base[1::2]
    for other in [back, other_threads] + [eval_blimp.score_sentences(model, Words(), texts, batch_tokens=n) for n in (1, 130, 5000)]:
        assert np.abs(other - base).max() < 2e-5
        assert ((other[0::2] > other[1::2]) == decisions).all()


def test_files_and_lines_in_another_order(tmp_path):
    """The same pairs in other files and another order: every pair has its score (to rounding), every paradigm its accuracy."""
    rng, texts, model = random.Random(3), sentences(400), lively()
    rows = [pair(good, bad, UID=f"u{i % 3}", pairID=i) for i, (good, bad) in enumerate(zip(texts[0::2], texts[1::2]))]
    outcomes = []
    for folder in ("one", "other"):
        files = write(tmp_path / folder, {f"{rng.random()}": rows[k::4] for k in range(4)})
        result, details = eval_blimp.evaluate(model, Words(), report.read_pairs(files)[0])
        outcomes.append((result, {p["id"]: score for p, score in zip(details["pairs"], details["scores"])}))
        rng.shuffle(rows)
    (result, scores), (other, others) = outcomes
    assert list(scores) != list(others) and max(np.abs(scores[i] - others[i]).max() for i in scores) < 2e-5
    assert {u: g["accuracy"] for u, g in result["paradigms"].items()} == {u: other["paradigms"][u]["accuracy"] for u in result["paradigms"]}
    assert result["accuracy"] == pytest.approx(other["accuracy"], abs=1e-12)


def test_onednn_is_only_a_faster_way(monkeypatch):
    model, texts = lively("sllama"), sentences(50)
    base = eval_blimp.score_sentences(model, Words(), texts)

    class Plain(eval_blimp.OneDNN):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))
    monkeypatch.setattr(eval_blimp, "OneDNN", Plain)
    assert np.abs(eval_blimp.score_sentences(model, Words(), texts) - base).max() < 2e-5
    x, w, b = torch.randn(2, 3, 5), torch.randn(5, 4).T, torch.randn(4)
    monkeypatch.undo()
    with eval_blimp.OneDNN():
        assert torch.allclose(F.linear(x, w, b), x @ w.T + b, atol=1e-5) and torch.allclose(F.linear(x, w), x @ w.T, atol=1e-5)
        assert torch.allclose(F.linear(x.double(), w.double(), b.double()), x.double() @ w.T.double() + b)
    monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())                  # a PyTorch built without it
    with eval_blimp.OneDNN():
        assert torch.allclose(F.linear(x, w, b), x @ w.T + b, atol=1e-5)


def test_bfloat16_is_coarser():
    model, texts = lively(), sentences(200)
    base, coarse = (eval_blimp.score_sentences(model, Words(), texts, dtype=d) for d in ("float32", "bfloat16"))
    assert 1e-3 < np.abs(base - coarse).max() < 10 and next(model.parameters()).dtype == torch.float32


# --------------------------------------------------------------------------------------------- accuracy


def test_uniform_model_and_the_three_views_of_a_tie(tmp_path):
    """A uniform model prefers the shorter sentence and ties where both are as long: what counts ties as right takes that for grammar."""
    rows = {"one": [pair("a", "a b"), pair("a b", "c d"), pair("a b c", "d e f"), pair("a b c", "d e")], "two": [pair("a", "b")]}
    result, details = scored(uniform(), rows, tmp_path)
    assert result["accuracy"] == result["accuracy_strict"] == pytest.approx((1 / 4 + 0) / 2)
    assert result["accuracy_ties_half"] == pytest.approx((2 / 4 + 1 / 2) / 2) and result["accuracy_ties_correct"] == pytest.approx((3 / 4 + 1) / 2)
    assert result["accuracy_micro"] == pytest.approx(1 / 5) and (result["pairs"], result["ties"], result["nan"]) == (5, 3, 0)
    one = result["paradigms"]["one"]
    assert (one["accuracy"], one["pairs"], one["ties"], one["margin"]) == (0.25, 4, 2, pytest.approx(0)) and one["interval"] == pytest.approx(report.wilson(1, 4))
    assert result["by_length"] == {"shorter": {"accuracy": 1.0, "pairs": 1}, "as long": {"accuracy": 0.0, "pairs": 3}, "longer": {"accuracy": 0.0, "pairs": 1}}
    assert "3 ties in 5 pairs" in result["warnings"][0] and result["incomplete"] is False
    assert details["right"].tolist() == [True, False, False, False, False]
    lenient, _ = scored(uniform(), rows, tmp_path, ties_correct=True)
    assert lenient["accuracy"] == result["accuracy_ties_correct"] and lenient["accuracy_strict"] == result["accuracy"]


def test_identical_pairs_tie_and_are_no_sign_of_a_broken_model(tmp_path):
    rows = [pair("a b", "b a"), pair("b b a", "b b a"), pair("c a b", "a c b")]
    result, _ = scored(History(), {"p": rows}, tmp_path)
    assert result["ties"] == result["identical_pairs"] == 1 and result["warnings"] == []


def test_dev_and_test(tmp_path):
    """A model that is right about every pair whose id ends in 0, and no other."""
    rows = [pair("a", "a a", pairID=str(i)) if i % 10 == 0 else pair("a a", "a", pairID=str(i)) for i in range(40)]
    result, _ = scored(uniform(), {"p": rows}, tmp_path)
    assert (result["accuracy"], result["accuracy_dev"], result["accuracy_test"]) == (0.1, 1.0, 0.0)
    dev, _ = report.read_pairs(str(tmp_path / "pairs"), split="dev")
    test, _ = report.read_pairs(str(tmp_path / "pairs"), split="test")
    assert [p["id"] for p in dev] == ["0", "10", "20", "30"] and len(test) == 36
    assert eval_blimp.quick_accuracy(uniform(), Words(), str(tmp_path / "pairs"), 2) == 1.0
    only, _ = eval_blimp.evaluate(uniform(), Words(), test)
    assert only["accuracy_dev"] is None and only["accuracy_test"] == 0


def test_groups(tmp_path):
    rows = {"x": [pair("a", "a a", UID="u", linguistics_term="s-selection", field="syntax/semantics"),
                  pair("a", "b", UID="v", linguistics_term="argument_structure", field="syntax_semantics")],
            "y": [pair("a", "a a", phenomenon="other")]}
    result, _ = scored(uniform(), rows, tmp_path)
    assert list(result["paradigms"]) == ["u", "v", "y"]
    assert {k: (g["accuracy"], g["paradigms"]) for k, g in result["phenomena"].items()} == {"argument_structure": (0.5, 2), "other": (1.0, 1)}
    assert {k: g["pairs"] for k, g in result["fields"].items()} == {"syntax_semantics": 2}
    assert result["accuracy_phenomena"] == 0.75 and result["accuracy"] == pytest.approx(2 / 3) and result["accuracy_fields"] == 0.5


def test_too_long_pairs_are_left_out_and_said(tmp_path):
    model = uniform()
    model.config = types.SimpleNamespace(max_position_embeddings=2)
    result, details = scored(model, {"p": [pair("a", "a b"), pair("a b c", "a")]}, tmp_path)
    assert result["incomplete"] and result["pairs"] == 1 and "1 pairs left out: longer than the model's context of 2" in result["warnings"][0]
    model.config = types.SimpleNamespace(max_position_embeddings=1)
    with pytest.raises(UserError, match="no pair fits"):
        scored(model, {"p": [pair("a a", "a b")]}, tmp_path)


def test_prefix_methods(tmp_path):
    one = {"one_prefix_prefix": "a b", "one_prefix_word_good": "c", "one_prefix_word_bad": "d"}
    two = {"two_prefix_prefix_good": "a", "two_prefix_prefix_bad": "b", "two_prefix_word": " c"}
    rows = {"one": [pair("a b c e", "a b d e", **one)], "two": [pair("a c e", "b c e", **two)]}
    model = History()
    result, details = scored(model, rows, tmp_path, method="one-prefix")
    assert details["scores"][0] == pytest.approx([by_hand(model, [1, 3, 4, 5], 3), by_hand(model, [1, 3, 4, 6], 3)], abs=1e-5) and list(result["paradigms"]) == ["one"]
    result, details = scored(model, rows, tmp_path, method="two-prefix")
    assert details["scores"][0] == pytest.approx([by_hand(model, [1, 3, 5], 2), by_hand(model, [1, 4, 5], 2)], abs=1e-5) and list(result["paradigms"]) == ["two"]
    with pytest.raises(UserError, match="no pair has the fields"):
        scored(model, {"one": [pair("a", "b")], "two": [pair("a", "b")]}, tmp_path, method="two-prefix")


# --------------------------------------------------------------------------------------------- statistics


def test_wilson():
    assert report.wilson(8, 10) == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert report.wilson(0, 10) == pytest.approx([0, 0.2775], abs=1e-4) and report.wilson(10, 10) == pytest.approx([0.7225, 1], abs=1e-4)


def test_bootstrap_is_that_of_the_pairs():
    rng, outcomes = np.random.default_rng(1), [np.arange(40) < 30, np.arange(25) < 5]
    means = [np.mean([rng.choice(o, len(o)).mean() for o in outcomes]) for _ in range(4000)]
    assert report.bootstrap([30, 5], [40, 25]) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.012)
    assert report.bootstrap([7, 0], [7, 3]) == [0.5, 0.5]


def test_mcnemar():
    assert report.mcnemar(10, 2) == report.mcnemar(2, 10) == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert report.mcnemar(0, 0) == report.mcnemar(3, 3) == 1 and 0 <= report.mcnemar(20000, 10000) < 1e-300


def test_compare():
    pairs = [{"uid": u} for u in "xxxxyy"]
    c = report.compare(pairs, np.array([1, 1, 1, 0, 1, 0], bool), np.array([1, 0, 0, 1, 1, 0], bool))
    low, high = c["paradigms"]["x"].pop("interval")
    assert low == -0.5 and high == 1                                    # of 4 draws of +1, +1, -1, 0: P(sum <= -3) = 1.7 %, P(sum <= -2) = 4.3 %; P(sum = 4) = 6.3 %
    assert c["paradigms"] == {"x": {"difference": 0.25, "gained": 2, "lost": 1}, "y": {"difference": 0.0, "interval": [0, 0], "gained": 0, "lost": 0}}
    assert (c["difference"], c["gained"], c["lost"], c["changed"], c["pairs"]) == (0.125, 2, 1, 3, 6) and c["interval"][0] < 0 < c["interval"][1]
    same = report.compare(pairs, np.ones(6, bool), np.ones(6, bool))
    assert same["interval"] == [0, 0] and same["p_bootstrap"] == same["p_mcnemar"] == 1
    many = [{"uid": "x"}] * 1000
    assert report.compare(many, np.arange(1000) < 700, np.arange(1000) < 600)["p_bootstrap"] < 0.01


# --------------------------------------------------------------------------------------------- files of pairs

GOOD = json.dumps(pair("a b", "b a"))


@pytest.mark.parametrize("text, line, reason", [
    (GOOD + "\n" + GOOD[:20], 2, "cut short"), (GOOD + "\nnonsense\n", 2, "not valid JSON"), ("[1]\n", 1, "not an object"),
    (GOOD + "\n\n" + '{"sentence_good": "a"}', 3, "`sentence_bad` is missing"),
    (GOOD + "\n" + json.dumps(pair("a \ud800", "a")), 2, "not Unicode text"),
    (json.dumps(pair("", "a")), 1, "`sentence_good` is missing, empty"), (json.dumps(pair(["a"], "a")), 1, "`sentence_good` is missing, empty or not text"), ("[" * 100000, 1, "")])
def test_bad_lines_are_named(tmp_path, text, line, reason):
    folder = write(tmp_path / "pairs", {"fine": [pair("a", "b")], "spoilt": text})
    with pytest.raises(UserError, match=rf"spoilt\.jsonl:{line}: .*{reason}"):
        report.read_pairs(folder)


TEXT = st.text() | st.text(st.sampled_from("a \x00\n\ud800\u2028"))
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
KEYS = st.sampled_from("sentence_good sentence_bad UID pairID pair_id linguistics_term phenomenon field one_prefix_prefix one_prefix_word_good one_prefix_word_bad".split())
NEARLY = st.dictionaries(KEYS, TEXT, max_size=3).map(lambda row: json.dumps(pair("a b", "b a") | row).encode())
LINE = st.binary() | st.text().map(str.encode) | st.dictionaries(KEYS, JSON).map(lambda row: json.dumps(row).encode()) | NEARLY


@settings(max_examples=200, deadline=None)
@given(st.lists(NEARLY, min_size=1, max_size=2) | st.lists(LINE, min_size=1, max_size=4))
def test_any_line_is_a_pair_or_an_error_that_names_it(tmp_path_factory, lines):
    """Of any bytes: pairs that can be tokenised, printed and written, or a UserError of one line with the file's name, and the number of a line unless it is empty."""
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    content = b"\n".join(lines)
    path.write_bytes(content)
    try:
        pairs, _ = report.read_pairs(str(path))
    except UserError as e:
        named, = re.findall(r"x\.jsonl:(?:(\d+):)? ", str(e))
        assert "\n" not in str(e) and (1 <= int(named) <= len(content.splitlines()) if named else not content.strip())
    else:
        assert len(pairs) == sum(bool(line.strip()) for line in content.splitlines()) > 0
        for p in pairs:
            assert p["good"].strip() and p["bad"].strip() and p["uid"] and isinstance(p["dev"], bool)
            assert "".join(text for text in p.values() if isinstance(text, str)).encode()
        report.pairs_csv(pairs, np.zeros((len(pairs), 2)), np.zeros((len(pairs), 2)), np.zeros(len(pairs)))


def test_bad_folders(tmp_path):
    for path, reason in ((tmp_path / "missing", "no such folder"), (tmp_path, r"no \*.jsonl file"), (write(tmp_path / "e", {"empty": "\n"}), "empty.jsonl: empty")):
        with pytest.raises(UserError, match=reason):
            report.read_pairs(str(path))
    (tmp_path / "e" / "empty.jsonl").write_bytes(GOOD.encode() + b'\n{"sentence_good": "\xff"}')
    with pytest.raises(UserError, match="empty.jsonl:2: not UTF-8"):
        report.read_pairs(str(tmp_path / "e"))


def test_what_files_may_look_like(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n" + json.dumps(pair("c", "d", pairID="seven")).encode())
    pairs, info = report.read_pairs(str(tmp_path))
    assert [(p["good"], p["uid"], p["id"], p["dev"]) for p in pairs] == [("a b", "x", "0", True), ("c", "x", "seven", False)]
    assert info["benchmark"].endswith("not BLiMP") and not info["incomplete"] and report.read_pairs(str(tmp_path / "x.jsonl"))[0] == pairs
    before = info["sha256"]
    (tmp_path / "x.jsonl").write_text(GOOD)
    assert report.read_pairs(str(tmp_path))[1]["sha256"] != before


def test_limit_takes_the_first_of_each_paradigm(tmp_path):
    folder = write(tmp_path / "p", {"x": [pair(f"x{i}", "b", UID="xy"[i % 2]) for i in range(10)], "z": [pair("z", "b")]})
    pairs, info = report.read_pairs(folder, limit=2)
    assert [p["good"] for p in pairs] == ["x0", "x1", "x2", "x3", "z"] and "5 of 11" in info["warnings"][-1] and not info["incomplete"]
    with pytest.raises(UserError, match="split `test`"):
        report.read_pairs(write(tmp_path / "q", {"x": [pair("a", "b", pairID=0)]}), split="test")


def like_blimp(folder, sizes, **fields):
    return write(folder, {uid: [pair("a", "a b", UID=uid, linguistics_term="t", field="f", **{k: i for k in fields}) for i in range(n)] for uid, n in sizes.items()})


def test_blimp_is_recognised_and_what_is_missing_said(tmp_path):
    assert len(report.BLIMP) == 67 and sum(report.BLIMP.values()) == 59875 and (min(report.BLIMP.values()), max(report.BLIMP.values())) == (681, 986)
    _, info = report.read_pairs(like_blimp(tmp_path / "full", dict.fromkeys(report.BLIMP, 1000), pairID=0))
    assert info["benchmark"] == "BLiMP" and info["warnings"] == [] and not info["incomplete"]
    filtered = like_blimp(tmp_path / "filtered", report.BLIMP, pair_id=0)
    _, info = report.read_pairs(filtered)
    assert info["benchmark"] == "BLiMP, BabyLM's filtered subset" and not info["incomplete"]
    pathlib.Path(filtered, "wh_island.jsonl").unlink()
    lines = pathlib.Path(filtered, "transitive.jsonl").read_text().splitlines(True)
    pathlib.Path(filtered, "transitive.jsonl").write_text("".join(lines[:-3]))
    write(pathlib.Path(filtered), {"mine": [pair("a", "b")]})
    _, info = report.read_pairs(filtered)
    assert info["incomplete"] and "1 of BLiMP's 67 paradigms are missing: wh_island" in info["warnings"][0]
    assert "mine" in info["warnings"][1] and "transitive 865 instead of 868" in info["warnings"][2]


def test_pocket_english_is_never_called_blimp(tmp_path):
    folder = write(tmp_path / "pocket" / "pairs", {"p": [pair("a", "b")]})
    (tmp_path / "pocket" / "meta.json").write_text('{"source": "pocket"}')
    assert report.read_pairs(folder)[1]["benchmark"] == "POCKET ENGLISH PAIRS, NOT BLiMP"
    (tmp_path / "pocket" / "meta.json").write_text("broken")
    assert report.read_pairs(folder)[1]["benchmark"] == "pairs of pairs, not BLiMP"


# --------------------------------------------------------------------------------------------- the command


@pytest.fixture
def lab(project):
    """A working folder with two small checkpoints and a folder of pairs in BLiMP's fields."""
    from tokenizer import load
    tok = load("data/tiny/tokenizer.model")
    config = ModelConfig(tok.vocab_size, 32, 2, 2, 48, max_position_embeddings=32)
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = Model(config)
        for p in model.parameters():
            p.data.mul_(8 if p.dim() > 1 else 1)
        provenance = {"corpus": "tiny test corpus", "data": {"name": "tiny"}, "words": 1000 * (seed + 1), "steps": 5}
        checkpoint.save(f"{seed}.pt", checkpoint.make(config, dict(model.named_parameters()), tok.model_bytes, provenance))
    rng = random.Random(0)
    words = "the boy girls dog sees runs cup old and to".split()

    def sentence():
        return " ".join(rng.choices(words, k=rng.randint(3, 7))) + "."
    rows = {uid: [pair(sentence(), sentence(), UID=uid, linguistics_term=term, field="f", pairID=str(i)) for i in range(30)]
            for uid, term in (("alpha", "s-selection"), ("beta", "argument_structure"), ("gamma", "binding"))}
    write(project / "mine", rows)
    return project


def test_all_outputs_agree(lab, capsys):
    eval_blimp.main(["0.pt", "--data", "mine", "--json", "o/r.json", "--csv", "o/p.csv", "--predictions", "o/b.json", "--plot", "o/p.png", "--compare", "1.pt"])
    out = capsys.readouterr().out
    result = json.load(open("o/r.json"))
    keys = dict(line.split(": ", 1) for line in out.splitlines()[-20:] if ": " in line)
    assert float(keys["accuracy"]) == pytest.approx(result["accuracy"], abs=1e-6) and keys["pairs"] == "90" and keys["corpus"] == "tiny test corpus"
    assert {"accuracy", "accuracy_ties_half", "pairs", "ties", "nan", "paradigms", "seconds", "checkpoint", "data", "benchmark", "rule", "incomplete"} <= keys.keys()
    assert max(map(len, out.splitlines())) <= 100 and "mine" in out and "not BLiMP" in out
    assert {"accuracy", "accuracy_ties_half", "accuracy_ties_correct", "pairs", "ties", "paradigms", "phenomena", "fields", "corpus", "checkpoint", "seconds"} <= result.keys()
    assert result["paradigms"]["beta"].keys() >= {"accuracy", "pairs", "ties", "interval"} and result["incomplete"] is False
    assert result["sha256"].keys() == {"checkpoint", "tokenizer", "data"} and result["sha256"]["checkpoint"] == checkpoint.file_sha256("0.pt")
    assert result["conventions"] == {"method": "full", "bos": True, "leading_space": False, "eos": False, "mean": False, "ties_correct": False, "compat": None, "dtype": "float32",
                                     "split": "all", "max_pairs_per_paradigm": None}
    assert result["phenomena"].keys() == {"argument_structure", "binding"} and result["phenomena"]["argument_structure"]["paradigms"] == 2
    assert result["accuracy_interval"][0] < result["accuracy"] < result["accuracy_interval"][1] and len(result["hardest"]) == 10

    rows = list(csv.DictReader(open("o/p.csv")))
    assert {(r["checkpoint"], r["rule"]) for r in rows} == {(result["sha256"]["checkpoint"][:16], "BLiMP")}
    assert len(rows) == 90 and np.mean([np.mean([int(r["right"]) for r in rows if r["uid"] == u]) for u in ("alpha", "beta", "gamma")]) == pytest.approx(result["accuracy"])
    model, ckpt = checkpoint.load_model("0.pt")
    assert [float(r["score_good"]) for r in rows] == pytest.approx(eval_blimp.score_sentences(model, ckpt.tokenizer, [r["good"] for r in rows]), abs=1e-4)
    chosen = json.load(open("o/b.json"))
    assert [p["id"] for p in chosen["beta"]["predictions"]] == [f"beta_{i}" for i in range(30)]
    assert [p["pred"] for u in chosen for p in chosen[u]["predictions"]] == [r["good"] if r["right"] == "1" else r["bad"] for r in rows]
    png = open("o/p.png", "rb").read()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and result["sha256"]["data"].encode() in png
    assert result["comparison"]["with"] == "1.pt" and result["comparison"]["gained"] + result["comparison"]["lost"] > 0 and "McNemar" in out

    eval_blimp.main(["1.pt", "--data", "mine", "--compare", "o/p.csv", "--json", "o/c.json"])
    back = json.load(open("o/c.json"))["comparison"]
    assert (back["gained"], back["lost"]) == (result["comparison"]["lost"], result["comparison"]["gained"])


def test_bfloat16_says_how_many_decisions_it_changes(lab, capsys):
    eval_blimp.main(["0.pt", "--data", "mine", "--csv", "f32.csv"])
    capsys.readouterr()
    eval_blimp.main(["0.pt", "--data", "mine", "--dtype", "bfloat16", "--compare", "f32.csv"])
    out = capsys.readouterr().out
    assert "of 90 decisions changed" in out and "rule: dtype=bfloat16" in out


def test_more_than_one_percent_of_ties_is_said(lab, capsys):
    """Weights of zero: the model is uniform and ties on every pair of as many tokens."""
    tree = copy.deepcopy(checkpoint.read("0.pt"))
    tree["weights"]["lm_head.weight"].zero_()
    checkpoint.save("zero.pt", tree)
    eval_blimp.main(["zero.pt", "--data", "mine", "--json", "r.json"])
    result = json.load(open("r.json"))
    assert result["ties"] == result["by_length"]["as long"]["pairs"] > 0.01 * 90
    assert f"warning: {result['ties']} ties in 90 pairs: the model or the precision is degenerate" in capsys.readouterr().out
    eval_blimp.main(["0.pt", "--data", "mine"])
    assert "warning" not in capsys.readouterr().out


def test_training_scores_a_fixed_subset(lab, monkeypatch):
    """eval.blimp_every: at validations in those steps and at the end, the accuracy stands in losses.csv beside the loss and in curves.png; it is quick_accuracy's."""
    from matplotlib.axes import Axes

    import train
    twins, twinx = [], Axes.twinx
    monkeypatch.setattr(Axes, "twinx", lambda axes: twins.append(twinx(axes)) or twins[-1])
    train.main([*TINY, "train.out=out/t", "train.sample_tokens=0", "eval.data=mine", "eval.blimp_every=8", "eval.blimp_pairs=2"])
    rows = [row for row in csv.DictReader(open("out/t/losses.csv")) if row["blimp"]]
    scores = [float(row["blimp"]) for row in rows]
    assert [row["step"] for row in rows] == ["0", "8", "12"] and all(row["val_loss"] for row in rows)
    assert set(scores) <= {k / 6 for k in range(7)}                     # 3 paradigms of 2 pairs
    model, ckpt = checkpoint.load_model("out/t/ckpt.pt")
    assert ckpt.provenance["steps"] == 12 and scores[-1] == eval_blimp.quick_accuracy(model, ckpt.tokenizer, "mine", 2)
    line, = twins[-1].get_lines()
    assert line.get_ydata() == pytest.approx([100 * a for a in scores]) and list(line.get_xdata()) == [int(row["tokens"]) for row in rows]


def test_the_learning_curve_is_drawn_from_the_accuracies(lab, monkeypatch):
    import matplotlib.pyplot as plt
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    eval_blimp.main(["0.pt", "1.pt", "--data", "mine", "--json", "r.json", "--plot", "curve.png"])
    results = json.load(open("r.json"))["checkpoints"]
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figures[0].axes[0].get_lines()}
    for name in ("argument_structure", "binding"):
        assert lines[name.replace("_", " ")] == ([0.001, 0.002], [100 * r["phenomena"][name]["accuracy"] for r in results])
    assert lines["mean over paradigms"] == ([0.001, 0.002], [100 * r["accuracy"] for r in results])


def test_learning_curve(lab, capsys):
    eval_blimp.main(["0.pt", "1.pt", "--data", "mine", "--json", "r.json", "--plot", "curve.png", "--paradigms"])
    result = json.load(open("r.json"))
    assert [r["words"] for r in result["checkpoints"]] == [1000, 2000] and result["checkpoint"] == "1.pt" and result["accuracy"] == result["checkpoints"][1]["accuracy"]
    out = capsys.readouterr().out
    assert "words seen" in out and "alpha" in out and open("curve.png", "rb").read(4) == b"\x89PNG"


def test_other_rules(lab, capsys):
    texts = [p["good"] for p in report.read_pairs("mine")[0]]
    model, ckpt = checkpoint.load_model("0.pt")
    for flags, options in ((["--no-bos"], {"bos": False}), (["--leading-space"], {"leading_space": True}), (["--score-eos"], {"eos": True}), (["--mean-per-token"], {"mean": True}),
                           (["--compat", "lm-eval"], {"leading_space": True}), (["--compat", "babylm"], {})):
        eval_blimp.main(["0.pt", "--data", "mine", "--csv", "p.csv", "--json", "r.json", *flags])
        assert [float(r["score_good"]) for r in csv.DictReader(open("p.csv"))] == pytest.approx(eval_blimp.score_sentences(model, ckpt.tokenizer, texts, **options), abs=1e-4)
        assert json.load(open("r.json"))["conventions"]["ties_correct"] == ("--compat" in flags)
        assert "rule: BLiMP" not in capsys.readouterr().out


def test_which_data_is_scored(lab, capsys):
    eval_blimp.main(["0.pt", "eval.data=mine"])
    assert "90 pairs of mine (eval.data)" in capsys.readouterr().out
    with pytest.raises(UserError, match="data/blimp: no minimal pairs there, nor in data/tiny/pairs"):
        eval_blimp.main(["0.pt"])
    (lab / "data" / "own").mkdir()
    write(lab / "data" / "own" / "pairs", {"p": [pair("the cup.", "cup the.")]})
    (lab / "data" / "own" / "meta.json").write_text('{"source": "pocket"}')
    tree = checkpoint.read("0.pt")
    tree["provenance"]["data"]["name"] = "own"
    checkpoint.save("out/sllama/ckpt.pt", tree)
    eval_blimp.main([])                                                 # the preset's checkpoint, its own corpus's pairs
    out = capsys.readouterr().out
    assert "benchmark: POCKET ENGLISH PAIRS, NOT BLiMP" in out and f"data: {pathlib.Path('data/own/pairs')}" in out


@pytest.mark.parametrize("arguments, words", [
    (["missing.pt", "--data", "mine"], ["missing.pt", "no such file"]), (["0.pt", "--data", "nowhere"], ["nowhere", "no such folder"]),
    (["0.pt", "--data", "mine", "--device", "cuda:77"], ["--device cuda:77"]),
    (["0.pt", "--data", "mine", "--max-pairs-per-paradigm", "0"], ["--max-pairs-per-paradigm"]), (["0.pt", "--data", "mine", "--compare", "o.csv"], ["o.csv"]),
    (["0.pt", "--data", "mine", "--method", "one-prefix"], ["--method one-prefix"]), (["0.pt", "evil.data=mine"], ["eval"]), (["config.yaml", "--data", "mine"], ["config.yaml"]),
    (["0.pt", "--data", "mine", "--json", "0.pt/r.json"], ["0.pt/r.json"])])
def test_mistakes(lab, arguments, words):
    with pytest.raises(UserError) as e:
        eval_blimp.main(arguments)
    assert all(word in str(e.value) for word in words) and "\n" not in str(e.value)


def test_compare_wants_the_same_pairs(lab):
    eval_blimp.main(["0.pt", "--data", "mine", "--csv", "p.csv", "--max-pairs-per-paradigm", "3"])
    with pytest.raises(UserError, match="p.csv: holds 9 pairs, which are not the 90"):
        eval_blimp.main(["0.pt", "--data", "mine", "--compare", "p.csv"])


def test_as_a_user_types_it(lab):
    done = command("eval_blimp.py", "0.pt", "--data", "mine", "--max-pairs-per-paradigm", "5", cwd=lab)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.splitlines()[-1] == "checkpoint: 0.pt"
    (lab / "mine" / "beta.jsonl").write_text(GOOD + "\n{broken")
    refused(command("eval_blimp.py", "0.pt", "--data", "mine", "--json", "r.json", cwd=lab), "beta.jsonl:2")
    assert not (lab / "r.json").exists()


def test_broken_weights(lab):
    """Checkpoints with NaN are refused on loading; weights so large that the arithmetic breaks are found here."""
    tree = copy.deepcopy(checkpoint.read("0.pt"))
    tree["weights"]["lm_head.weight"].fill_(3e38)
    checkpoint.save("huge.pt", tree)
    with pytest.raises(UserError, match="log-likelihood of .* is nan"):
        eval_blimp.main(["huge.pt", "--data", "mine"])


# --------------------------------------------------------------------------------------------- BLiMP itself, where it is at hand

SHARED = pathlib.Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.mark.skipif(not (SHARED / "blimp").is_dir(), reason="needs BLiMP beside the project")
def test_blimp_itself():
    pairs, info = report.read_pairs(str(SHARED / "blimp"))
    assert info["warnings"] == [] and info["benchmark"] == "BLiMP" and len(pairs) == 67000
    assert len(report.group(pairs, "phenomenon")) == 12 and len(report.group(pairs, "field")) == 4 and sum(p["good"] == p["bad"] for p in pairs) == 7
    assert sum(p["dev"] for p in pairs) == 6700 and len({t for p in pairs for t in (p["good"], p["bad"])}) == 133945
    assert sum(p["one-prefix"] is not None for p in pairs) == sum(p["two-prefix"] is not None for p in pairs) == 20000


@pytest.mark.skipif(not (SHARED / "blimp_filtered").is_dir(), reason="needs BabyLM's filtered BLiMP beside the project")
def test_a_uniform_model_is_worth_91_9_where_ties_are_right():
    """What is published as 91.94 is what a model gets that knows nothing but the number of tokens."""
    from tokenizer import load
    pairs, info = report.read_pairs(str(SHARED / "blimp_filtered"))
    assert info["warnings"] == [] and len(pairs) == 59875
    sequences, _ = eval_blimp.tokenize(load(SHARED / "llama_tokenizer" / "tokenizer.model"), [t for p in pairs for t in (p["good"], p["bad"])])
    tokens = np.array([len(ids) for ids in sequences]).reshape(-1, 2)
    result = report.summarize(pairs, -math.log(32000) * tokens, tokens, tokens[:, 0] < tokens[:, 1])
    assert result["accuracy_ties_correct"] == pytest.approx(0.91944, abs=1e-5)
    assert result["accuracy_ties_half"] == pytest.approx(0.514, abs=1e-3) and result["accuracy"] == pytest.approx(0.109, abs=1e-3)
