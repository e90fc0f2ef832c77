"""Any text comes back, a corpus is encoded like its texts, and training on counts is training on lines."""

import random

from lab.files import UserError, load_tokenizer
from stand_ins import sentencepiece_model
import tokenizer

from hypothesis import example, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

LINES = (
    """The cats chase the mice, and the mice hide.
A dog  barks at 1024 trees!
Who do the girls think that the boys saw?
\tJosé said: "naïve" – twice.
""".splitlines()
    * 5
)


@pytest.fixture(scope="module")
def tok():
    return tokenizer.train(LINES, 420)


# pieces that stand for something else, where texts break
ODD = ["▁", " ", "  ", "\t", "\n", "\r\n", "\0", "<s>", "</s>", "<unk>", "<0x0A>", "▁▁", "🙂", "👩‍👩‍👧", "é", "e\u0301"]
odd = st.sampled_from([*ODD, "\u2028", "\ufeff", "\U0010fffd", "\U0010ffff", "cat", "The"])
anything = st.lists(odd | st.text(max_size=5), max_size=12).map("".join)


@given(anything)
@example("")
@example("▁ leading and trailing ▁")
@example("".join(map(chr, range(256))))
@example("\U0010fffd▁\U0010fffc")
@settings(max_examples=300)
def test_any_text_comes_back(tok, text):
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert all(0 <= i < tok.vocab_size for i in ids)
    assert not {tok.bos_id, tok.eos_id, tok.sp.unk_id()} & set(ids)


OTHERS = {
    "of ours": {},
    "past spaces": {"split_by_whitespace": False},
    "with normalisation": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    "unigram": {"model_type": "unigram"},
    "without prefix": {"add_dummy_prefix": False},
}


@pytest.fixture(scope="module", params=OTHERS)
def corpus_encoder(tok, request):
    options = OTHERS[request.param]
    encoder = tokenizer.CorpusEncoder(sentencepiece_model(LINES, 100, **options) if options else tok.model_bytes)
    assert encoder.tokenizer.cuts_at_spaces == (not options)
    return encoder


@given(texts=st.lists(anything, max_size=5))
@settings(max_examples=50)
def test_a_corpus_is_encoded_like_its_texts(corpus_encoder, texts):
    """Word by word where that is the same: twice, so that the second time the words are known."""
    tok = corpus_encoder.tokenizer
    one_by_one = [tok.encode(text) for text in texts]
    assert tok.encode_batch(texts) == one_by_one
    expected = sum(([tok.bos_id, *ids] for ids in one_by_one), [])
    for _ in range(2):
        assert np.frombuffer(corpus_encoder.encode(texts), "<u2").tolist() == expected


def test_bpe_dropout(tok):
    """Without dropout it is BPE, word for word; with it, all the text in more pieces, the same for the same seed."""

    def tokens(dropout, seed=0):
        cut = tokenizer.BpeDropout(tok, random.Random(seed), dropout)
        return [np.frombuffer(cut(word), "<u2").tolist() for word in words]

    words = [word for text in [*LINES, "🙂 Zürich  ab", "  aaaaaa"] for word in tokenizer.split_words(text)]
    assert tokens(0.0) == tok.encode_batch(words)
    some, every = tokens(0.3), tokens(1.0)
    assert some == tokens(0.3) != tokens(0.3, seed=1)
    assert sum(map(len, tokens(0.0))) < sum(map(len, some)) < sum(map(len, every))
    assert [tok.decode(ids) for ids in some] == [tok.decode(ids) for ids in every] == words


@given(texts=st.lists(anything, max_size=5))
@settings(max_examples=50)
def test_any_text_comes_back_from_other_pieces(tok, texts):
    tokens = tokenizer.CorpusEncoder(tok.model_bytes).encode(texts, random.Random(0))
    ids = np.frombuffer(tokens, "<u2")
    assert [tok.decode(part[1:]) for part in np.split(ids, np.flatnonzero(ids == tok.bos_id))[1:]] == texts


def test_pieces(tok):
    """Llama 2's layout; digits apart, the same word everywhere, specials that decode to nothing, half a character."""
    assert tok.vocab_size == 420 and tok.bos_id == 1 and tok.eos_id == 2
    assert [tok.sp.id_to_piece(i) for i in (0, 1, 2, 3, 258)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    assert tok.encode("\n") == [tok.sp.piece_to_id("▁"), 3 + 10]
    assert [tok.sp.id_to_piece(i) for i in tok.encode("1024")] == ["▁", "1", "0", "2", "4"]
    assert tok.encode("mice")[0] == tok.encode("the mice")[-len(tok.encode("mice"))]
    assert tok.decode([tok.bos_id, *tok.encode("The cats"), tok.eos_id]) == "The cats"
    assert "\ufffd" in tok.decode(tok.encode("🙂")[:-1])


@pytest.mark.parametrize("odd", ["▁", "  ", " ", "\t", "\0", "é", "🙂", "▅", "\u3000", "<s>"])
def test_counts_of_words_teach_what_the_lines_teach(odd, monkeypatch):
    """The same bytes as SentencePiece's own training on lines, wherever `odd` stands in them."""
    rng = random.Random(odd)
    words = ["the", "cat", "dog", "ab", " ", " ", odd]
    for _ in range(5):
        lines = ["a cat"] + ["".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(60)]
        model = tokenizer.train(lines, 300).model_bytes
        with monkeypatch.context() as patch:
            patch.setattr(tokenizer, "lines_of", lambda _, lines=lines: iter(lines))
            assert tokenizer.train(lines, 300).model_bytes == model


def test_long_lines_are_trained_on():
    """SentencePiece skips lines over 4192 bytes unless told otherwise."""
    tok = tokenizer.train(["an aardvark " * (tokenizer.LONGEST_LINE // 12), "🙂" * tokenizer.LONGEST_LINE], 290)
    assert {"▁aardvark", "🙂🙂"} < {tok.sp.id_to_piece(i) for i in range(290)}


@pytest.mark.parametrize("size, words", [(5000, "largest possible"), (262, "smallest possible")])
def test_a_vocabulary_that_cannot_be_names_the_nearest(size, words):
    with pytest.raises(tokenizer.VocabularyError, match=f"vocab_size: .* {size}; the {words} is") as e:
        tokenizer.train(LINES, size)
    possible = e.value.possible
    assert tokenizer.train(LINES, possible).vocab_size == possible
    with pytest.raises(ValueError):
        tokenizer.train(LINES, possible + (1 if size > possible else -1))


def test_nothing_to_train_on():
    with pytest.raises(ValueError):
        tokenizer.train([], 300)


def test_ctrl_c_between_two_lines_stays_ctrl_c():
    def lines():
        yield "a line"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenizer.train(lines(), 300)


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_broken_files_are_refused(tok, tmp_path, content):
    path = tmp_path / "bad.model"
    path.write_bytes(tok.model_bytes[: len(tok.model_bytes) // 2] if content is None else content)
    with pytest.raises(UserError, match="bad.model: not a SentencePiece model"):
        load_tokenizer(path)
    with pytest.raises(UserError, match="missing.model: cannot be read"):
        load_tokenizer(tmp_path / "missing.model")


def test_models_that_cannot_serve_are_refused():
    with pytest.raises(ValueError, match="no BOS"):
        tokenizer.Tokenizer(sentencepiece_model(LINES, 100, bos_id=-1))


def test_more_pieces_than_16_bits_hold_are_refused(tok, monkeypatch):
    assert tokenizer.MOST_PIECES == np.iinfo("<u2").max + 1
    monkeypatch.setattr(tokenizer, "MOST_PIECES", 420)  # as many as this one has
    tokenizer.Tokenizer(tok.model_bytes)
    monkeypatch.setattr(tokenizer, "MOST_PIECES", 419)
    with pytest.raises(ValueError, match="mine: 420 pieces, but 16 bits hold 419"):
        tokenizer.Tokenizer(tok.model_bytes, "mine")


def test_a_model_without_byte_pieces_still_works():
    tok = tokenizer.Tokenizer(sentencepiece_model(LINES, 100, model_type="unigram"))
    assert tok.decode(tok.encode("The▁cats")) == "The cats"
