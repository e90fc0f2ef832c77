"""Scores that can be written down by hand, and the fast ones beside the plain ones."""

import dataclasses
import math
import random

import export
from lab import checkpoint
from lab.files import UserError
from lab.score import scoring
from lab.text import pocket_english
from model import Model, ModelConfig
from stand_ins import KINDS, History, Table, V, Words, by_hand, lively, plainly, score, sentences, uniform
import tokenizer

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import torch


@pytest.mark.parametrize("value", [0, -300, 300, 1e4])
def test_uniform_model(value):
    scores = score(uniform(value), ["a", "a b", "h g f"])
    assert scores == pytest.approx([-math.log(V), -2 * math.log(V), -3 * math.log(V)], abs=1e-6)
    assert scores.dtype == np.float64


def test_order_duplicates_and_empty_input():
    texts = ["b a", "a", "b a", "c", "a"]
    scores = score(History(), texts)
    assert scores[0] == scores[2] and scores[1] == scores[4] and len(set(scores)) == 3
    assert scores == pytest.approx([by_hand(History(), [1, *ids], 1) for ids in Words().encode_batch(texts)], abs=1e-4)
    assert len(score(History(), [])) == 0


@pytest.mark.parametrize("factor, logit, value", [(math.nan, 1, "nan"), (2e38, 10, "nan"), (2e38, -10, "-inf")])
def test_nan_and_infinity_name_the_sentence(factor, logit, value):
    """What follows b is broken: only the sentence where something does is named."""
    table = np.zeros((V, V))
    table[4, 5] = logit  # b -> c
    model = Table(table)
    hidden = model.hidden
    model.hidden = lambda ids, *rest: hidden(ids) * torch.where(ids == 4, factor, 1.0)[..., None]
    with pytest.raises(UserError, match=f"log-likelihood of 'a b c' is {value}"):
        score(model, ["a b", "a b c", "c a"])


# ------------------------------------------------------------------------------------------------------ alternatives


def test_alternatives_in_a_context():
    """Any number in an item; a token that reaches into the text is scored, whichever side the space is on."""
    items = [
        [("", "a b"), ("", "b a")],
        [("a", " c"), ("b", " c")],
        [("a b", " c d"), ("a b ", "c d"), ("a b", " d"), ("a", " b c d")],
    ]
    tasks = [  # of each alternative, its tokens and the first one that is scored
        [([1, 3, 4], 1), ([1, 4, 3], 1)],
        [([1, 3, 5], 2), ([1, 4, 5], 2)],
        [([1, 3, 4, 5, 6], 3), ([1, 3, 4, 5, 6], 3), ([1, 3, 4, 6], 3), ([1, 3, 4, 5, 6], 2)],
    ]
    model = History()
    scores = scoring.score_items(model, Words(), items)
    means = scoring.score_items(model, Words(), items, per_token=True)
    for of_item, mean, alternatives in zip(scores, means, tasks, strict=True):
        assert of_item == pytest.approx([by_hand(model, *task) for task in alternatives], abs=1e-5)
        assert mean == pytest.approx(of_item / [len(ids) - start for ids, start in alternatives])
    assert scoring.score_items(model, Words(), []) == []


def test_where_tokens_end():
    """In bytes of the text; bytes of a character that is split are the character's, as in tokenizers' offsets."""
    lines = [line for line in pocket_english.text(5000, seed=1) if line]
    tok = tokenizer.train(lines, 500)
    for text in ("The cat", "  two  spaces", "é 🙂 7", "a\u2581b", "\u3042"):
        ids = tok.encode(text)
        ends = scoring.token_ends(tok, text, ids)
        assert ends[-1] == len(text.encode()) and (np.diff(ends) >= 0).all()
        for n, end in enumerate(ends, 1):
            whole = tok.decode(ids[:n]).encode()
            assert end == max(1, len(whole)) or "\ufffd" in whole.decode()
    with pytest.raises(UserError, match="does not keep every character of 'x y'"):
        scoring.token_ends(Words(), "x y", [3])


def test_the_first_scored_token_is_where_offsets_say(workplace):
    """As in BabyLM's pipelines: a token is scored if its offsets in transformers' tokenizer end beyond the context."""
    from transformers import AutoTokenizer

    export.export_folder("0.pt", "hf")
    hf, tok = AutoTokenizer.from_pretrained("hf"), checkpoint.load("0.pt").tokenizer
    whole = "The naïve  girl\u00a0says: 🙂 42 cups.\n\u3042 ran "
    for cut in range(len(whole)):
        encoded = hf(whole, return_offsets_mapping=True)
        scored = [i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > cut]
        sequences = scoring.tokenize(tok, [whole])
        assert list(sequences[0]) == encoded["input_ids"]
        assert scoring.first_scored(tok, [whole], [whole[:cut]], sequences) == [scored[0]]


def test_beyond_the_context():
    """The rotary angles go on, as those of a model with a longer context; afterwards the model is as it was."""
    model = lively()
    trained = model.cos
    longer = Model(dataclasses.replace(model.config, max_position_embeddings=40)).eval()
    longer.load_state_dict(model.state_dict())
    items = [[("a b c " * 10, "d"), ("a b c " * 10, "e")]]
    (expected,) = scoring.score_items(longer, Words(), items)
    (scores,) = scoring.score_items(model, Words(), items)
    assert scores == pytest.approx(expected, abs=1e-5) and model.cos is trained


# ------------------------------------------------------------------------------------------ our own models, fast


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
    assert score(model, texts) == pytest.approx(plainly(model, Words(), texts), abs=1e-4)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_any_sequences_in_any_layout(data):
    """However they share prefixes, in any row length and batch: the masks and positions are those of each alone."""
    ids = st.lists(st.integers(3, 5), min_size=1, max_size=9).map(lambda ids: (1, *ids))
    sequences = data.draw(st.lists(ids, min_size=1, max_size=30))
    starts = [data.draw(st.integers(1, len(ids))) for ids in sequences]
    model, sizes = History(data.draw(st.integers(0, 9))), (scoring.ROW, scoring.BLOCK)
    try:
        scoring.ROW = data.draw(st.sampled_from([1, 5, 16, 128]))
        scoring.BLOCK = data.draw(st.sampled_from([1, 7, 100]))
        batch_tokens = data.draw(st.sampled_from([1, 20, 4096]))
        scores = scoring.log_likelihoods(model, sequences, starts, batch_tokens=batch_tokens)
    finally:
        scoring.ROW, scoring.BLOCK = sizes
    assert scores == pytest.approx([by_hand(model, *one) for one in zip(sequences, starts)], abs=1e-4)


def test_the_trie_of_the_docstring():
    trie = scoring.Trie()
    for number, ids in enumerate([[1, 5, 6, 7], [1, 5, 6, 8], [1, 9, 6]]):
        trie.add(ids, 1, number)
    assert trie.tokens == [1, 5, 6, 9] and trie.depth == [0, 1, 2, 1] and trie.last == [3, 2, 2, 3]
    assert trie.scored == [(0, 5, 0), (1, 6, 0), (2, 7, 0), (0, 5, 1), (1, 6, 1), (2, 8, 1), (0, 9, 2), (3, 6, 2)]


def test_work_is_shared_and_hardly_padded():
    rng = random.Random(1)
    sequences = [(1, *rng.choices(range(3, 9), k=rng.randint(5, 14))) for _ in range(10000)]
    different = {ids[:n] for ids in sequences for n in range(1, len(ids))}
    rows = list(scoring.tries(sequences, [1] * len(sequences), np.argsort(np.array(sequences, dtype=object))))
    written = sum(len(row.tokens) for row in rows)
    assert len(different) <= written < 1.1 * len(different) < 0.7 * sum(map(len, sequences))
    cells = sum(batch.ids.size for batch in scoring.batches(sequences, [1] * len(sequences), 4096))
    assert written <= cells < 1.01 * written
    for row in rows[:20]:  # a real tree: every token's parent is the last one before it, one level up
        assert row.depth[0] == 0
        for place in range(1, len(row.tokens)):
            parent = max(p for p in range(place) if row.depth[p] == row.depth[place] - 1)
            assert row.last[parent] >= row.last[place] >= place


def test_batches_and_threads_change_nothing():
    model, texts = lively("sllama"), sentences(600)
    base = score(model, texts)
    others = [score(model, texts, batch_tokens=n) for n in (1, 130, 5000)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        others.append(score(model, texts))
    finally:
        torch.set_num_threads(threads)
    for other in others:
        assert np.abs(other - base).max() < 2e-5
        assert ((other[0::2] > other[1::2]) == (base[0::2] > base[1::2])).all()


def test_bfloat16_is_coarser():
    model, texts = lively(), sentences(200)
    base, coarse = (score(model, texts, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert 1e-3 < np.abs(base - coarse).max() < 10
    assert next(model.parameters()).dtype == torch.float32


def test_the_model_is_left_as_it_was():
    model = Model(ModelConfig(V, 16, 2, 2, 24, dropout=0.5)).train()
    torch.set_float32_matmul_precision("high")
    try:
        first = score(model, ["a b c", "a c"])
        assert model.training and torch.get_float32_matmul_precision() == "high"
        assert (first == score(model, ["a b c", "a c"])).all()  # dropout was off
        model(torch.tensor([[1, 3]]), torch.tensor([[3, 4]])).backward()  # and it trains on
    finally:
        torch.set_float32_matmul_precision("highest")
