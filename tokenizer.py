"""SentencePiece BPE with byte fallback: any text in, the same text out.

    >>> tok = train(lines, 16000)
    >>> tok.encode("Hello  🙂\\n")
    [1234, 259, 243, 162, 156, 133, 13]
    >>> tok.decode(tok.encode("Hello  🙂\\n"))
    'Hello  🙂\\n'

Pieces 0, 1, 2 are <unk>, <s> (BOS) and </s> (EOS), 3 to 258 the bytes, then merged pieces, then single characters:
Llama 2's layout and options, so that a trained model converts to Hugging Face's LlamaTokenizer without a difference.
There is no normalisation. Encoding puts a space in front of the text, so that its first word has the same pieces as
anywhere else ("▁The"), and decoding takes it away again.
"""

import collections
import functools
import hashlib
import io
import os
import re

import numpy as np
import sentencepiece

LONGEST_LINE = 16_384  # characters: SentencePiece's trainer counts the characters of a word in 16 bits
SPACE = "\u2581"  # ▁, what SentencePiece writes for a space
RESERVED = "\u2585"  # ▅, its sign for the unknown: it does not train on lines that hold one
WORD = re.compile(r" +[^ ]*(?: \Z)?")  # with the spaces before it, and one at the end of the text
MOST_PIECES = 65_536  # a token is stored in 16 bits
MOST_WORDS = 500_000  # whose tokens a process remembers: about 100 MB
DROPOUT = 0.1  # the share of BPE's merges that are skipped


class Tokenizer:
    """A SentencePiece model. `encode` adds no BOS; text that looks like a special piece ("<s>", "<0x0A>") is text."""

    def __init__(self, model_bytes, where="tokenizer"):
        """ValueError, naming `where`, unless it is a SentencePiece model with a BOS and at most 65,536 pieces."""
        self.model_bytes = bytes(model_bytes)
        self.sha256 = hashlib.sha256(self.model_bytes).hexdigest()
        self.sp = sentencepiece.SentencePieceProcessor()
        try:
            self.sp.LoadFromSerializedProto(self.model_bytes)
        except Exception:  # RuntimeError, as a rule
            raise ValueError(f"{where}: not a SentencePiece model; give the tokenizer.model file of one") from None
        self.vocab_size = self.sp.vocab_size()
        self.bos_id = self.sp.bos_id()
        self.eos_id = self.sp.eos_id()
        if self.bos_id < 0:
            raise ValueError(f"{where}: no BOS piece, and every line starts with one; use a model that has it")
        if self.vocab_size > MOST_PIECES:
            raise ValueError(f"{where}: {self.vocab_size} pieces, but 16 bits hold {MOST_PIECES}; use a smaller one")
        self.bytes_of_space = self.byte_ids(SPACE)
        self.has_bytes = all(self.sp.is_byte(self.bytes_of_space))

    def byte_ids(self, text):
        """The pieces of the text's bytes."""
        return self.sp.piece_to_id([f"<0x{byte:02X}>" for byte in text.encode()])

    def is_text(self, i):
        """Is piece i a piece of text, and not a byte, BOS, EOS or <unk>?"""
        return not (self.sp.is_byte(i) or self.sp.is_control(i) or self.sp.is_unknown(i))

    @functools.cached_property
    def byte_lengths(self):
        """How many bytes of a text each piece stands for, its space included; 0 for BOS, EOS and unknown characters."""
        lengths = np.zeros(self.vocab_size, int)
        for i in range(self.vocab_size):
            if self.sp.is_byte(i):
                lengths[i] = 1
            elif self.is_text(i):
                lengths[i] = len(self.sp.id_to_piece(i).replace(SPACE, " ").encode())
        return lengths

    def encode(self, text):
        """str -> list of ids, from which decode gives `text` back."""
        if SPACE in text and self.has_bytes:
            return self.encode_space_sign(text)
        return self.sp.encode(text)

    def encode_batch(self, texts):
        """list of str -> list of lists of ids, on all cores."""
        encoded = self.sp.encode(texts, num_threads=os.cpu_count() or 1)
        return [self.encode(text) if SPACE in text else ids for text, ids in zip(texts, encoded)]

    def encode_space_sign(self, text):
        """A ▁ in the text would come back as a space. So a character that occurs in no piece and not in the text takes
        its place while encoding; its four byte pieces then give way to the three of ▁."""
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
        """List of ids -> str without special pieces; bytes that are not UTF-8 become U+FFFD. IndexError: no such id."""
        return self.sp.decode([int(i) for i in ids])

    @functools.cached_property
    def cuts_at_spaces(self):
        """Does it encode word by word, by BPE, without normalising?

        The model does not say so, but it shows: the score of a BPE piece is its rank, a whole number, and that of other
        pieces a log-probability; a piece defined by hand gets 0, which is the first rank.
        """
        text = f"  {''.join(map(chr, range(1, 0xD800)))}  e\u0301 "  # whatever normalising might replace
        if self.sp.normalize(text) != SPACE + text.replace(" ", SPACE):
            return False
        ids = [i for i in range(self.vocab_size) if self.is_text(i)]
        scores = self.sp.get_score(ids)
        past_spaces = any(SPACE in piece.lstrip(SPACE) for piece in self.sp.id_to_piece(ids))
        return not past_spaces and all(score.is_integer() for score in scores) and scores.count(0) <= 1


def load(path):
    """The Tokenizer in a file. OSError if it cannot be read, ValueError if it cannot be used."""
    with open(path, "rb") as f:
        return Tokenizer(f.read(), path)


# ---------------------------------------------------------------------------------------------------- whole corpora


class CorpusEncoder:
    """Tokenizer.encode for millions of texts, to bytes: uint16, little-endian, as a .bin file holds them.

    Where no piece crosses a space, a text's tokens are those of its words one after the other, and each word is encoded
    once. Otherwise the texts are encoded one by one.
    """

    def __init__(self, model_bytes):
        self.tokenizer = Tokenizer(model_bytes)
        self.bos = id_bytes([self.tokenizer.bos_id])
        self.word_bytes = functools.lru_cache(MOST_WORDS)(self.text_bytes)

    def text_bytes(self, text):
        return id_bytes(self.tokenizer.encode(text))

    def encode(self, texts, rng=None):
        """BOS and the tokens of each text; with a random.Random, the words of most texts are cut by BPE dropout."""
        tokens_of = self.word_bytes if rng is None else BpeDropout(self.tokenizer, rng)
        tokens = bytearray()
        for text in texts:
            tokens += self.bos
            if self.tokenizer.cuts_at_spaces and SPACE not in text:
                tokens += b"".join(map(tokens_of, split_words(text)))
            else:
                tokens += self.text_bytes(text)
        return tokens


class BpeDropout:
    """A word -> its tokens as bytes, different ones each time.

    BPE starts from single characters and merges the two neighbours whose piece was learnt first, until there is nothing
    to merge. Here each possible merge is skipped with probability `dropout`, drawn anew every time, so that a model
    sees what words are made of (Provilkov, Emelianenko and Voita 2020, arXiv:1910.13267).
    """

    def __init__(self, tokenizer, rng, dropout=DROPOUT):
        self.tokenizer, self.rng, self.dropout = tokenizer, rng, dropout
        sp = tokenizer.sp
        self.ids = {sp.id_to_piece(i): i for i in range(tokenizer.vocab_size) if tokenizer.is_text(i)}
        self.rank = {piece: -sp.get_score(i) for piece, i in self.ids.items()}

    def __call__(self, word):
        parts = list(SPACE + word.replace(" ", SPACE))
        while True:
            pairs = [a + b for a, b in zip(parts, parts[1:])]
            merges = []
            for at, pair in enumerate(pairs):
                if pair in self.rank and self.rng.random() >= self.dropout:
                    merges.append((self.rank[pair], at))
            if not merges:
                break
            _, at = min(merges)
            parts[at : at + 2] = [pairs[at]]
        ids = []
        for part in parts:
            ids += [self.ids[part]] if part in self.ids else self.tokenizer.byte_ids(part)
        return id_bytes(ids)


def split_words(text):
    """The words that SentencePiece cuts a text into, before each space; the one space that every word has is left out.

    >>> split_words("the cat"), split_words("the  cat")
    (['the', 'cat'], ['the', ' cat'])
    """
    words = text.split(" ")
    if "" in words:  # there are several spaces in a row, or one at an end
        words = [word[1:] for word in WORD.findall(" " + text)]
    return words


def id_bytes(ids):
    return np.array(ids, "<u2").tobytes()


# ---------------------------------------------------------------------------------------------------- training


class VocabularyError(ValueError):
    """A vocabulary size that the text does not support; `possible` is the nearest one that it does."""

    def __init__(self, vocab_size, possible):
        limit = "largest" if possible < vocab_size else "smallest"
        super().__init__(f"vocab_size: this text does not support {vocab_size}; the {limit} possible is {possible}")
        self.possible = possible


def count_words(lines):
    """How often each word occurs in the lines, which is all that BPE learns from.

    >>> count_words(["the cat", "the  cat"])
    Counter({'the': 2, 'cat': 1, ' cat': 1})
    """
    counts = collections.Counter()
    for line in lines:
        if line and RESERVED not in line:
            counts.update(split_words(line.replace(SPACE, " ")))
    return counts


def lines_of(counts):
    """Lines in which each word occurs as often as `counts` says."""
    for word, count in counts.items():
        many = LONGEST_LINE // (len(word) + 1)
        if word.endswith(" ") or not many:  # it can only end a line, or fills one
            many = 1
        for start in range(0, count, many):
            yield " ".join([word] * min(many, count - start))


def train(lines, vocab_size):
    """A Tokenizer of exactly `vocab_size` pieces from an iterable of str (each at most LONGEST_LINE characters).

    Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909), digits split, one thread: the same text gives the
    same bytes. VocabularyError if the text does not support `vocab_size`, ValueError if there is nothing to learn.
    """
    return train_on_counts(count_words(lines), vocab_size)


def train_on_counts(counts, vocab_size):
    """train() on what count_words() found in the lines: the model is the same as from the lines themselves."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines_of(counts),
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
            max_sentence_length=LONGEST_LINE * 4,  # bytes
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as e:
        if "KeyboardInterrupt" in str(e):  # Ctrl-C while it was asking for the next line comes back as its own error
            raise KeyboardInterrupt from None
        if limit := re.search(r"(too high .*<= |smaller than required_chars. \d+ vs )(\d+)", str(e)):
            raise VocabularyError(vocab_size, int(limit[2])) from None
        raise ValueError(f"SentencePiece cannot train on this text: {e}") from None
    return Tokenizer(model.getvalue())
