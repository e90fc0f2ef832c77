"""SentencePiece BPE with byte fallback: any text in, the same text out.

    >>> tok = train(lines, 16000)
    >>> tok.encode("Hello  🙂\\n")
    [1234, 259, 243, 162, 153, 133, 13]
    >>> tok.decode(tok.encode("Hello  🙂\\n"))
    'Hello  🙂\\n'

Pieces 0, 1, 2 are <unk>, <s> (BOS) and </s> (EOS), 3 to 258 the bytes, then merged pieces, then single characters:
Llama 2's layout and options, so that a trained model converts to Hugging Face's LlamaTokenizer without a difference.
No normalisation; a space in front of the text is part of the first piece, as it is of any other word ("▁The"), and
decoding takes it away again.
"""

import collections
import functools
import hashlib
import io
import itertools
import os
import re

from lab.files import UserError
from lab.hub import model_proto

import numpy as np
import sentencepiece

LONGEST_LINE = 16_384  # characters: SentencePiece's trainer counts the characters of a word in 16 bits
SPACE = "\u2581"  # ▁, what SentencePiece writes for a space
RESERVED = "\u2585"  # ▅, its sign for the unknown: it does not train on lines that hold one
WORD = re.compile(r" +[^ ]*(?: \Z)?")  # with the spaces before it, and one at the end of the text
MOST_PIECES = 65_536  # a token is stored in 16 bits
DROPOUT = 0.1  # of BPE's merges


class VocabularyError(UserError):
    """A vocabulary that the text does not support; `possible` is the nearest size that it does."""

    def __init__(self, message, possible):
        super().__init__(message)
        self.possible = possible


class Tokenizer:
    """A SentencePiece model. `encode` adds no BOS; text that looks like a special piece ("<s>", "<0x0A>") is text."""

    def __init__(self, model_bytes, where="tokenizer"):
        """UserError if it is no SentencePiece model with a BOS and at most 65,536 pieces; `where` names it there."""
        self.model_bytes = bytes(model_bytes)
        self.sha256 = hashlib.sha256(self.model_bytes).hexdigest()
        self.sp = sentencepiece.SentencePieceProcessor()
        try:
            good = bool(self.model_bytes) and self.sp.LoadFromSerializedProto(self.model_bytes)
        except (RuntimeError, OSError, ValueError):
            good = False
        if not good or self.sp.vocab_size() < 1:
            raise UserError(f"{where}: not a SentencePiece model; give the tokenizer.model file of one")

        self.vocab_size = self.sp.vocab_size()
        self.bos_id = self.sp.bos_id()
        self.eos_id = self.sp.eos_id()
        if self.bos_id < 0:
            raise UserError(
                f"{where}: the tokenizer has no BOS piece, and every line starts with one; "
                "use a model trained with bos_id >= 0"
            )
        if self.vocab_size > MOST_PIECES:
            raise UserError(
                f"{where}: {self.vocab_size} pieces do not fit the 16 bits of a token; "
                f"use a tokenizer of at most {MOST_PIECES}"
            )
        self.bytes_of_space = self.byte_ids(SPACE)
        self.has_bytes = all(self.sp.is_byte(i) for i in self.bytes_of_space)

    def byte_ids(self, text):
        """The pieces of the text's bytes."""
        return [self.sp.piece_to_id(f"<0x{byte:02X}>") for byte in text.encode()]

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
        if SPACE in text and self.has_bytes:
            return self.encode_space_sign(text)
        return self.sp.encode(text)

    def encode_batch(self, texts, threads=None):
        """list of str -> list of lists of ids, on `threads` cores (default all)."""
        encoded = self.sp.encode(texts, num_threads=threads or os.cpu_count() or 1)
        for i, text in enumerate(texts):
            if SPACE in text:
                encoded[i] = self.encode(text)
        return encoded

    def encode_space_sign(self, text):
        """A ▁ in the text would come back as a space. So: encode with a character in its place that no piece holds and
        that is not in the text, which becomes four byte pieces; then put the three bytes of ▁ there."""
        candidates = map(chr, range(0x10FFFD, 0xF0000, -1))
        stand_in = next(c for c in candidates if c not in text and self.sp.piece_to_id(c) == self.sp.unk_id())
        four = self.byte_ids(stand_in)
        ids = []
        for i in self.sp.encode(text.replace(SPACE, stand_in)):
            ids.append(i)
            if ids[-4:] == four:
                ids[-4:] = self.bytes_of_space
        return ids

    def decode(self, ids):
        """List of ids -> str; special pieces are dropped, bytes that are no UTF-8 become U+FFFD.

        IndexError for an id out of range.
        """
        return self.sp.decode([int(i) for i in ids])


# ---------------------------------------------------------------------------------------------------- whole corpora


class CorpusEncoder:
    """Tokenizer.encode for millions of texts, to bytes: uint16, little-endian, as a .bin file holds them.

    With a tokenizer whose pieces never go past a space, a text's tokens are those of its words one after the other, and
    each word is encoded once. With any other, the texts are encoded one by one.
    """

    def __init__(self, model_bytes):
        self.tokenizer = Tokenizer(model_bytes)
        self.bos = id_bytes([self.tokenizer.bos_id])
        self.words = Words(self.tokenizer)
        self.by_word = bool(cuts_at_spaces(self.tokenizer))

    def encode(self, texts, rng=None):
        """BOS and the tokens of each text; with a random.Random, the words of most texts are cut by BPE dropout."""
        tokens_of = self.words.__getitem__ if rng is None else BpeDropout(self.tokenizer, rng)
        tokens = []
        for text in texts:
            tokens.append(self.bos)
            if self.by_word and SPACE not in text:
                tokens.extend(map(tokens_of, split_words(text)))
            else:
                tokens.append(id_bytes(self.tokenizer.encode(text)))
        return b"".join(tokens)


class Words(dict):
    """{word: its tokens as bytes}, filled as they are asked for."""

    MOST = 500_000  # words, about 100 MB
    LONGEST = 40  # characters: where nothing is written between words, a "word" is a line, and comes once

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __missing__(self, word):
        tokens = id_bytes(self.tokenizer.encode(word))
        if len(self) >= self.MOST:
            self.clear()
        if len(word) <= self.LONGEST:
            self[word] = tokens
        return tokens


class BpeDropout:
    """A word -> its tokens as bytes, each time other ones.

    BPE starts from single characters and merges the two neighbours whose piece was learnt first, until there is nothing
    to merge. Here each possible merge is overlooked with probability `dropout`, every time anew, so that a model sees
    what words are made of (Provilkov, Emelianenko and Voita 2020, arXiv:1910.13267).
    """

    def __init__(self, tokenizer, rng, dropout=DROPOUT):
        self.tokenizer, self.rng, self.dropout = tokenizer, rng, dropout
        sp = tokenizer.sp
        normal = [i for i in range(tokenizer.vocab_size) if not (sp.is_byte(i) or sp.is_control(i) or sp.is_unknown(i))]
        self.ids = {sp.id_to_piece(i): i for i in normal}
        self.learnt = {piece: -sp.get_score(i) for piece, i in self.ids.items()}

    def __call__(self, word):
        parts = list(SPACE + word.replace(" ", SPACE))
        while True:
            pairs = [a + b for a, b in zip(parts, parts[1:])]
            merges = [
                (self.learnt[pair], at)
                for at, pair in enumerate(pairs)
                if pair in self.learnt and self.rng.random() >= self.dropout
            ]
            if not merges:
                break
            _, at = min(merges)
            parts[at : at + 2] = [pairs[at]]
        return id_bytes([i for part in parts for i in self.ids_of(part)])

    def ids_of(self, part):
        """One id, or for a character that is no piece those of its bytes."""
        if part in self.ids:
            return [self.ids[part]]
        return self.tokenizer.byte_ids(part)


def split_words(text):
    """Where SentencePiece cuts a text, before spaces. One space goes without saying: it is put before any text.

    >>> split_words("the cat"), split_words("the  cat")
    (['the', 'cat'], ['the', ' cat'])
    """
    words = text.split(" ")
    if "" in words:  # several spaces together, or one at an end
        words = [word[1:] for word in WORD.findall(" " + text)]
    return words


def id_bytes(ids):
    return np.array(ids, "<u2").tobytes()


def cuts_at_spaces(tokenizer):
    """Is the encoding of a text that of its words, one after the other?"""
    try:
        _, trainer, normalizer = model_proto.read_model(tokenizer.model_bytes)
    except ValueError:
        return False
    pieces = map(tokenizer.sp.id_to_piece, range(tokenizer.vocab_size))
    return (
        model_proto.is_plain_bpe(trainer, normalizer)
        and normalizer["add_dummy_prefix"]
        and not any(SPACE in piece.lstrip(SPACE) for piece in pieces)
    )


# ---------------------------------------------------------------------------------------------------- training


def count_words(lines):
    """How often each word is in the lines: all that BPE learns from.

    >>> count_words(["the cat", "the  cat"])
    Counter({'the': 2, 'cat': 1, ' cat': 1})
    """
    words = (split_words(line.replace(SPACE, " ")) for line in lines if line and RESERVED not in line)
    return collections.Counter(itertools.chain.from_iterable(words))


def train(lines, vocab_size):
    """A Tokenizer of exactly `vocab_size` pieces from an iterable of str (each at most LONGEST_LINE characters).

    Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909), digits split, one thread: the same text gives the
    same bytes. UserError naming the largest (or smallest) vocabulary if the text does not support `vocab_size`.
    """
    return train_on_counts(count_words(lines), vocab_size)


def train_on_counts(counts, vocab_size):
    """train() on count_words() of the lines. SentencePiece's model is the same as from the lines themselves."""
    if any("\t" in word for word in counts):  # a tab separates word and count below: so repeat
        sentences = itertools.chain.from_iterable(map(itertools.repeat, counts.keys(), counts.values()))
        form = {}
    else:
        sentences = (f"{word}\t{count}" for word, count in counts.items())
        form = {"input_format": "tsv"}
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            **form,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9999,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=LONGEST_LINE * 4,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as e:
        raise training_error(str(e), vocab_size) from None
    return Tokenizer(model_proto.without_input_format(model.getvalue()))


def training_error(message, vocab_size):
    """What to raise for an error of SentencePiece's trainer."""
    if "KeyboardInterrupt" in message:  # Ctrl-C while it was asking for the next line comes back as its own error
        return KeyboardInterrupt()
    if most := re.search(r"too high .*<= (\d+)", message):
        return VocabularyError(
            f"tokenizer.vocab_size: {vocab_size} is more than this text supports; the largest possible is {most[1]}",
            int(most[1]),
        )
    if least := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return VocabularyError(
            f"tokenizer.vocab_size: {vocab_size} is less than bytes and characters alone need; "
            f"the smallest possible is {least[1]}",
            int(least[1]),
        )
    return UserError(f"tokenizer: SentencePiece cannot train on this text: {message}")


def load(path):
    """The Tokenizer in a file. UserError if it cannot be read or used."""
    try:
        with open(path, "rb") as f:
            return Tokenizer(f.read(), path)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
