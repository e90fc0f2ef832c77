import io
import os
import struct
import subprocess
import sys

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tokenizer
from lab.files import UserError

LINES = ["The cats chase the mice, and the mice hide.", "A dog  barks at 1024 trees!", "Who do the girls think that the boys saw?", "\tJosé said: \"naïve\" – twice."] * 5


@pytest.fixture(scope="module")
def tok():
    return tokenizer.train(LINES, 420)


def other_model(**options):
    """A SentencePiece model with other options than ours."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=model, minloglevel=2, hard_vocab_limit=False, **options)
    return model.getvalue()


# pieces that stand for something else, where texts break
odd = st.sampled_from(["▁", " ", "  ", "\t", "\n", "\r\n", "\0", "<s>", "</s>", "<unk>", "<0x0A>", "▁▁", "🙂", "👩‍👩‍👧", "é", "e\u0301", "\u2028", "\ufeff",
                       "\U0010fffd", "\U0010ffff", "cat", "The"])
anything = st.lists(odd | st.text(max_size=5), max_size=12).map("".join)


@given(anything)
@example("")
@example("▁ leading and trailing ▁")
@example("".join(map(chr, range(256))))
@example("\U0010fffd▁\U0010fffc")
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back(tok, text):
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert all(0 <= i < tok.vocab_size for i in ids) and tok.bos_id not in ids and tok.eos_id not in ids and 0 not in ids


@given(st.lists(anything, max_size=5))
@settings(max_examples=50, deadline=None)
def test_a_batch_is_its_texts_one_by_one(tok, texts):
    assert tok.encode_batch(texts, threads=2) == [tok.encode(text) for text in texts]


def test_layout_of_pieces(tok):
    assert (tok.vocab_size, tok.bos_id, tok.eos_id) == (420, 1, 2)
    assert [tok.sp.id_to_piece(i) for i in (0, 1, 2, 3, 258)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    assert tok.encode("\n") == [tok.sp.piece_to_id("▁"), 3 + 10]


def test_sentence_start_and_middle_share_words(tok):
    assert tok.encode("mice")[0] == tok.encode("the mice")[-len(tok.encode("mice"))]


def test_digits_are_single(tok):
    assert [tok.sp.id_to_piece(i) for i in tok.encode("1024")] == ["▁", "1", "0", "2", "4"]


def test_special_pieces_decode_to_nothing(tok):
    assert tok.decode([tok.bos_id, *tok.encode("The cats"), tok.eos_id]) == "The cats"


def test_half_a_character_decodes(tok):
    assert "\ufffd" in tok.decode(tok.encode("🙂")[:-1])


def test_same_text_same_bytes(tok):
    assert tokenizer.train(LINES, 420).model_bytes == tok.model_bytes
    code = f"import tokenizer; print(tokenizer.train({LINES!r}, 420).sha256)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.path.dirname(tokenizer.__file__),
                           env={**os.environ, "PYTHONHASHSEED": "7"})
    assert other.stdout.strip() == tok.sha256
    assert tokenizer.train(LINES + ["another line"], 420).sha256 != tok.sha256


def test_long_lines_are_trained_on():
    """SentencePiece skips lines over 4192 bytes unless told otherwise."""
    tok = tokenizer.train(["an aardvark " * (tokenizer.LONGEST_LINE // 12), "🙂" * tokenizer.LONGEST_LINE], 290)
    assert {"▁aardvark", "🙂🙂"} < {tok.sp.id_to_piece(i) for i in range(290)}


def test_vocabulary_too_large_names_the_largest():
    with pytest.raises(tokenizer.VocabularyError, match="tokenizer.vocab_size: 5000 .* largest possible is") as e:
        tokenizer.train(LINES, 5000)
    assert tokenizer.train(LINES, e.value.possible).vocab_size == e.value.possible
    with pytest.raises(UserError):
        tokenizer.train(LINES, e.value.possible + 1)


def test_vocabulary_too_small_names_the_smallest():
    with pytest.raises(tokenizer.VocabularyError, match="smallest possible") as e:
        tokenizer.train(LINES, 262)
    assert tokenizer.train(LINES, e.value.possible).vocab_size == e.value.possible


def test_nothing_to_train_on():
    with pytest.raises(UserError):
        tokenizer.train([], 300)


def test_ctrl_c_between_two_lines_stays_ctrl_c():
    def lines():
        yield "a line"
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        tokenizer.train(lines(), 300)


def test_file_round_trip(tok, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tok.model_bytes)
    assert tokenizer.load(path).sha256 == tok.sha256


@pytest.mark.parametrize("content", [b"", b"not a model", b"\0" * 1000, None])
def test_broken_files_are_refused(tok, tmp_path, content):
    path = tmp_path / "bad.model"
    path.write_bytes(tok.model_bytes[: len(tok.model_bytes) // 2] if content is None else content)
    with pytest.raises(UserError, match="bad.model"):
        tokenizer.load(path)
    with pytest.raises(UserError, match="missing.model"):
        tokenizer.load(tmp_path / "missing.model")


def test_models_that_cannot_serve_are_refused():
    with pytest.raises(UserError, match="no BOS"):
        tokenizer.Tokenizer(other_model(vocab_size=100, bos_id=-1))


def test_more_pieces_than_16_bits_are_refused(tok):
    def piece(n):                               # as protobuf has it: field 1 of the model, in it field 1, the text, and 2, the score
        return b"\n\x0e" + b"\n\x07" + b"x%06d" % n + b"\x15" + struct.pack("<f", -n)
    model = tok.model_bytes + b"".join(map(piece, range(420, 65536)))
    assert tokenizer.Tokenizer(model).vocab_size == 65536
    with pytest.raises(UserError, match="65537"):
        tokenizer.Tokenizer(model + piece(65536))


def test_a_model_without_byte_pieces_still_works():
    tok = tokenizer.Tokenizer(other_model(vocab_size=100, model_type="unigram"))
    assert tok.decode(tok.encode("The▁cats")) == "The cats"
