"""SentencePiece BPE with byte fallback: any text in, the same text out.

    >>> tok = train(lines, 16000)
    >>> tok.encode("Hello  🙂\\n")
    [1234, 259, 243, 162, 153, 133, 13]
    >>> tok.decode(tok.encode("Hello  🙂\\n"))
    'Hello  🙂\\n'

Pieces 0, 1, 2 are <unk>, <s> (BOS) and </s> (EOS), 3 to 258 the bytes, then merged pieces, then single characters: Llama 2's
layout and options, so that a trained model converts to Hugging Face's LlamaTokenizer without a difference. No normalisation;
a space in front of the text is part of the first piece, as it is of any other word ("▁The"), and decoding takes it away again.
"""
import functools
import hashlib
import io
import os
import re

import numpy as np
import sentencepiece

from lab.files import UserError

LONGEST_LINE = 16_384   # characters: SentencePiece's trainer counts the characters of a word in 16 bits
SPACE = "\u2581"        # ▁, what SentencePiece writes for a space


class VocabularyError(UserError):
    """A vocabulary that the text does not support; `possible` is the nearest size that it does."""

    def __init__(self, message, possible):
        super().__init__(message)
        self.possible = possible


class Tokenizer:
    """A SentencePiece model. `encode` adds no BOS; text that looks like a special piece ("<s>", "<0x0A>") is text."""

    def __init__(self, model_bytes, where="tokenizer"):
        """UserError if `model_bytes` is no SentencePiece model with a BOS and at most 65,536 pieces; `where` names it."""
        self.model_bytes = bytes(model_bytes)
        self.sha256 = hashlib.sha256(self.model_bytes).hexdigest()
        self.sp = sentencepiece.SentencePieceProcessor()
        try:
            good = bool(self.model_bytes) and self.sp.LoadFromSerializedProto(self.model_bytes)
        except (RuntimeError, OSError, ValueError):
            good = False
        if not good or self.sp.vocab_size() < 1:
            raise UserError(f"{where}: not a SentencePiece model; give the tokenizer.model file of one")
        self.vocab_size, self.bos_id, self.eos_id = self.sp.vocab_size(), self.sp.bos_id(), self.sp.eos_id()
        if self.bos_id < 0:
            raise UserError(f"{where}: the tokenizer has no BOS piece, and every line starts with one; use a model trained with bos_id >= 0")
        if self.vocab_size > 65536:
            raise UserError(f"{where}: {self.vocab_size} pieces do not fit the 16 bits of a token; use a tokenizer of at most 65536")
        self.bytes_of_space = [self.sp.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]
        self.has_bytes = all(self.sp.is_byte(i) for i in self.bytes_of_space)

    @functools.cached_property
    def byte_lengths(self):
        """How many bytes of a text each piece stands for, its space included; 0 for BOS, EOS and unknown characters."""
        lengths = np.zeros(self.vocab_size, int)
        for i in range(self.vocab_size):
            if self.sp.is_byte(i):
                lengths[i] = 1
            elif not self.sp.is_control(i) and not self.sp.is_unknown(i):
                lengths[i] = len(self.sp.id_to_piece(i).replace(SPACE, " ").encode())
        return lengths

    def encode(self, text):
        """str -> list of ids, such that decode gives `text` back."""
        return self._encode_odd(text) if SPACE in text else self.sp.encode(text)

    def encode_batch(self, texts, threads=None):
        """list of str -> list of lists of ids, on `threads` cores (default all)."""
        out = self.sp.encode(texts, num_threads=threads or os.cpu_count() or 1)
        for i, text in enumerate(texts):
            if SPACE in text:
                out[i] = self._encode_odd(text)
        return out

    def _encode_odd(self, text):
        """A ▁ in the text would come back as a space. So: encode with a character in its place that no piece holds and that
        is not in the text, which becomes four byte pieces; then put the three bytes of ▁ there."""
        if not self.has_bytes:
            return self.sp.encode(text)
        stand_in = next(c for c in map(chr, range(0x10FFFD, 0xF0000, -1)) if c not in text and self.sp.piece_to_id(c) == self.sp.unk_id())
        four, out = [self.sp.piece_to_id(f"<0x{b:02X}>") for b in stand_in.encode()], []
        for i in self.sp.encode(text.replace(SPACE, stand_in)):
            out.append(i)
            if out[-4:] == four:
                out[-4:] = self.bytes_of_space
        return out

    def decode(self, ids):
        """List of ids -> str; special pieces are dropped, bytes that are no UTF-8 become U+FFFD. IndexError for an id out of range."""
        return self.sp.decode([int(i) for i in ids])


def train(lines, vocab_size):
    """A Tokenizer of exactly `vocab_size` pieces from an iterable of str (each at most LONGEST_LINE characters).

    Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909), digits split, one thread: the same text gives the same bytes.
    UserError naming the largest (or smallest) vocabulary if the text does not support `vocab_size`.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=vocab_size, model_type="bpe", byte_fallback=True,
            normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            split_digits=True, character_coverage=0.9999, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
            max_sentence_length=LONGEST_LINE * 4, num_threads=1, minloglevel=2)
    except (RuntimeError, OSError) as e:
        if "KeyboardInterrupt" in str(e):  # Ctrl-C while SentencePiece was asking for the next line comes back as its own error
            raise KeyboardInterrupt from None
        if most := re.search(r"too high .*<= (\d+)", str(e)):
            raise VocabularyError(f"tokenizer.vocab_size: {vocab_size} is more than this text supports; the largest possible is {most[1]}", int(most[1])) from None
        if least := re.search(r"smaller than required_chars. \d+ vs (\d+)", str(e)):
            raise VocabularyError(f"tokenizer.vocab_size: {vocab_size} is less than bytes and characters alone need; the smallest possible is {least[1]}", int(least[1])) from None
        raise UserError(f"tokenizer: SentencePiece cannot train on this text: {e}") from None
    return Tokenizer(model.getvalue())


def load(path):
    """The Tokenizer in a file. UserError if it cannot be read or used."""
    try:
        with open(path, "rb") as f:
            return Tokenizer(f.read(), path)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
