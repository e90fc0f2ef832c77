"""The fast scores are the plain ones: any sequences, every kind of model, any layout, order and threads."""

import copy
import math
import random

from lab.score import scoring, tries
from model import Model, ModelConfig
from stand_ins import KINDS, History, StandIn, Table, V, Words, by_hand, lively, plainly, sentences

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import torch


@pytest.mark.parametrize("kind", [*KINDS, "bigram", "history"])
def test_scores_are_the_plain_ones(kind):
    rng = np.random.default_rng(0)
    if kind == "bigram":
        model = Table(rng.normal(size=(V, V)))
    elif kind == "history":
        model = History()
    else:
        model = lively(kind)
    texts = sentences()
    plain = plainly(model, Words(), texts)
    assert scoring.score_sentences(model, Words(), texts) == pytest.approx(plain, abs=1e-4)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_sequences_in_any_layout(data):
    """However they share prefixes, in any row length and batch: the masks and positions are those of each alone."""
    ids = st.lists(st.integers(3, 5), min_size=1, max_size=9).map(lambda ids: [1, *ids])
    sequences = data.draw(st.lists(ids, min_size=1, max_size=30))
    starts = [data.draw(st.integers(1, len(ids))) for ids in sequences]
    model, sizes = History(data.draw(st.integers(0, 9))), (tries.ROW, tries.BLOCK)
    try:
        tries.ROW = data.draw(st.sampled_from([1, 5, 16, 128]))
        tries.BLOCK = data.draw(st.sampled_from([1, 7, 100]))
        batch_tokens = data.draw(st.sampled_from([1, 20, 4096]))
        scores = tries.log_likelihoods(model, sequences, starts, batch_tokens=batch_tokens)
    finally:
        tries.ROW, tries.BLOCK = sizes
    assert scores == pytest.approx([by_hand(model, *one) for one in zip(sequences, starts)], abs=1e-4)


def test_a_sequence_longer_than_a_row():
    sequences = [[1, *random.Random(seed).choices(range(3, V), k=300)] for seed in (0, 0)]
    scores = tries.log_likelihoods(History(), sequences, [1, 290])
    expected = [by_hand(History(), sequences[0], 1), by_hand(History(), sequences[1], 290)]
    assert scores == pytest.approx(expected, abs=1e-3)


def test_the_trie_of_the_docstring():
    trie = tries.Trie()
    for number, ids in enumerate([[1, 5, 6, 7], [1, 5, 6, 8], [1, 9, 6]]):
        trie.add(ids, 1, number)
    assert (trie.tokens, trie.depth, trie.last) == ([1, 5, 6, 9], [0, 1, 2, 1], [3, 2, 2, 3])
    assert trie.scored == [(0, 5, 0), (1, 6, 0), (2, 7, 0), (0, 5, 1), (1, 6, 1), (2, 8, 1), (0, 9, 2), (3, 6, 2)]


def test_work_is_shared_and_hardly_padded():
    rng = random.Random(1)
    sequences = [(1, *rng.choices(range(3, 9), k=rng.randint(5, 14))) for _ in range(10000)]
    different = {ids[:n] for ids in sequences for n in range(1, len(ids))}
    rows = list(tries.tries(sequences, [1] * len(sequences), np.argsort(np.array(sequences, dtype=object))))
    written = sum(len(row.tokens) for row in rows)
    assert len(different) <= written < 1.1 * len(different) < 0.7 * sum(map(len, sequences))
    cells = sum(batch.ids.size for batch in tries.batches(sequences, [1] * len(sequences), 4096))
    assert written <= cells < 1.01 * written
    for row in rows[:20]:  # a real tree: every token's parent is the last one before it that is one less deep
        assert row.depth[0] == 0
        for place in range(1, len(row.tokens)):
            parent = max(p for p in range(place) if row.depth[p] == row.depth[place] - 1)
            assert row.last[parent] >= row.last[place] >= place


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_products_in_float64_give_the_same():
    """Token by token, from the definition; only RMSNorm takes float32."""
    model, texts = lively(), sentences()
    exact = copy.deepcopy(model).double()
    expected = [by_hand(exact, [1, *ids], 1) for ids in Words().encode_batch(texts)]
    assert scoring.score_sentences(model, Words(), texts) == pytest.approx(expected, abs=1e-4)


def test_batches_order_and_threads_change_nothing():
    model, texts = lively("sllama"), sentences(600)

    def score(texts, **how):
        return scoring.score_sentences(model, Words(), texts, **how)

    base = score(texts)
    others = [score(texts, batch_tokens=n) for n in (1, 130, 5000)]
    shuffled = random.Random(5).sample(range(len(texts)), len(texts))
    back = np.empty(len(texts))
    back[shuffled] = score([texts[i] for i in shuffled])
    others.append(back)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        others.append(score(texts))
    finally:
        torch.set_num_threads(threads)
    for other in others:
        assert np.abs(other - base).max() < 2e-5
        assert ((other[0::2] > other[1::2]) == (base[0::2] > base[1::2])).all()


def test_bfloat16_is_coarser():
    model, texts = lively(), sentences(200)
    base, coarse = (scoring.score_sentences(model, Words(), texts, dtype=d) for d in ("float32", "bfloat16"))
    assert 1e-3 < np.abs(base - coarse).max() < 10
    assert next(model.parameters()).dtype == torch.float32


def test_the_model_is_left_as_it_was():
    model = Model(ModelConfig(V, 16, 2, 2, 24, dropout=0.5)).train()
    torch.set_float32_matmul_precision("high")
    try:
        first = scoring.score_sentences(model, Words(), ["a b c", "a c"])
        assert model.training and torch.get_float32_matmul_precision() == "high"
        assert (first == scoring.score_sentences(model, Words(), ["a b c", "a c"])).all()  # dropout was off
        model(torch.tensor([[1, 3]]), torch.tensor([[3, 4]])).backward()  # and it trains on
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_score_that_is_not_finite_ends_the_work():
    class Counting(StandIn):
        calls = 0

        def __init__(self):
            super().__init__()
            self.lm_head = torch.nn.Linear(V, V, bias=False)

        def hidden(self, ids, positions=None, mask=None):
            Counting.calls += 1
            return torch.full((*ids.shape, V), math.nan)

    sequences = [(1, 3 + i % 8, 3 + i // 8) for i in range(64)]
    scores = tries.log_likelihoods(Counting(), sequences, [1] * 64, batch_tokens=1)
    assert Counting.calls == 1 and np.isnan(scores).any()
