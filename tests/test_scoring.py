"""Scores that can be written down by hand, and what ends in an error."""

import dataclasses
import math

import export
from lab import checkpoint
from lab.files import UserError
from lab.score import scoring
from lab.text import pocket_english
from model import Model
from stand_ins import History, Table, V, Words, by_hand, lively, uniform
from test_eval_blimp import workplace  # noqa: F401  (a fixture)
import tokenizer

import numpy as np
import pytest
import torch


def score(model, texts, **options):
    return scoring.score_sentences(model, Words(), texts, **options)


@pytest.mark.parametrize("value", [0, -300, 300, 1e4])
def test_uniform_model(value):
    scores = score(uniform(value), ["a", "a b", "h g f"])
    assert scores == pytest.approx([-math.log(V), -2 * math.log(V), -3 * math.log(V)], abs=1e-6)
    assert scores.dtype == np.float64


def test_unigram_model():
    logits = np.full(V, -1e4)
    logits[3:7] = np.log([1 / 2, 1 / 4, 1 / 8, 1 / 8])  # a b c d
    model = Table(np.tile(logits, (V, 1)))
    scores = score(model, ["a", "b a", "d c b a"])
    assert scores == pytest.approx([-math.log(2), -3 * math.log(2), -9 * math.log(2)], abs=1e-5)


def test_bigram_model_reads_the_correct_neighbour():
    table = np.zeros((V, V))
    table[1, 3], table[3, 4] = math.log(9 * V), math.log(9 * V)  # BOS -> a, a -> b: odds 9 V : V - 1
    likely, rest = 9 * V / (9 * V + V - 1), 1 / (9 * V + V - 1)
    scores = score(Table(table), ["a b", "a a", "b a"])
    assert scores == pytest.approx([2 * math.log(likely), math.log(likely * rest), math.log(rest / V)], abs=1e-5)


def test_order_duplicates_and_empty_input():
    texts = ["b a", "a", "b a", "c", "a"]
    scores = score(History(), texts)
    assert scores[0] == scores[2] and scores[1] == scores[4] and len(set(scores)) == 3
    assert scores == pytest.approx([by_hand(History(), [1, *ids], 1) for ids in Words().encode_batch(texts)], abs=1e-4)
    assert len(score(History(), [])) == 0


def test_leading_space():
    assert scoring.tokenize(Words(), ["a b"]) == [(1, 3, 4)]
    assert scoring.tokenize(Words(), ["a b"], leading_space=True) == [(1, 0, 3, 4)]
    by_the_word = by_hand(History(), [1, 0, 3, 4], 1)
    assert score(History(), ["a b"], leading_space=True) == pytest.approx([by_the_word], abs=1e-5)


# ------------------------------------------------------------------------------------------------------ alternatives


def test_alternatives_in_a_context():
    """As many as an item likes; a token that reaches into the text is scored, whichever side the space is on."""
    model = History()
    items = [
        [("", "a b"), ("", "b a")],
        [("a", " c"), ("b", " c")],
        [("a b", " c d"), ("a b ", "c d"), ("a b", " d"), ("a", " b c d")],
    ]
    expected = [
        [by_hand(model, ids, 1) for ids in ([1, 3, 4], [1, 4, 3])],
        [by_hand(model, ids, 2) for ids in ([1, 3, 5], [1, 4, 5])],
        [
            by_hand(model, ids, start)
            for ids, start in (([1, 3, 4, 5, 6], 3), ([1, 3, 4, 5, 6], 3), ([1, 3, 4, 6], 3), ([1, 3, 4, 5, 6], 2))
        ],
    ]
    scores = scoring.score_items(model, Words(), items)
    for of_item, values in zip(scores, expected, strict=True):
        assert of_item == pytest.approx(values, abs=1e-5)
    lengths = [[2, 2], [1, 1], [2, 2, 1, 3]]
    means = scoring.score_items(model, Words(), items, per_token=True)
    for of_item, values, n in zip(means, expected, lengths, strict=True):
        assert of_item == pytest.approx(np.divide(values, n), abs=1e-5)
    assert scoring.score_items(model, Words(), []) == []


def test_the_best_and_what_ties_with_it():
    assert scoring.best(np.array([-3.0, -1.0, -2.0])).tolist() == [1]
    assert scoring.best(np.array([-1.0, -2.0, -1.0])).tolist() == [0, 2]


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


def test_the_first_scored_token_is_where_offsets_say(workplace):  # noqa: F811
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
    longer = Model(dataclasses.replace(model.config, max_position_embeddings=40)).eval()
    longer.load_state_dict(model.state_dict())
    items = [[("a b c " * 10, "d"), ("a b c " * 10, "e")]]
    expected = scoring.score_items(longer, Words(), items)
    assert scoring.score_items(model, Words(), items, beyond_context=True)[0] == pytest.approx(expected[0], abs=1e-5)
    with pytest.raises(UserError, match="more than the model's context of 24"):
        scoring.score_items(model, Words(), items)


# ------------------------------------------------------------------------------------------------------ errors


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


def test_too_long_and_foreign_tokens():
    model = uniform()
    model.cos = torch.zeros(3, 1)
    assert len(score(model, ["a b c"])) == 1  # BOS a b are fed in, c is only predicted
    with pytest.raises(UserError, match="5 tokens, more than the model's context of 3"):
        score(model, ["a b c d"])
    with pytest.raises(UserError, match="not the model's tokenizer"):
        score(Table(np.zeros((5, 5))), ["a b c"])
