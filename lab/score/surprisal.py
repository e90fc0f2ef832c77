"""Surprisal word by word, for studies of reading: eval_blimp.py CKPT --surprisal FILE --csv OUT.

    surprisal(word) = - sum over its tokens of log2 p(token | BOS and the tokens of the line before it)        in bits

A word is what stands between white space, punctuation included. A token belongs to the word in which it ends; spaces
alone belong to the word after them, and those at the end of a line to its last word. So the space before a word is part
of the word (what that does to surprisal: Oh and Schuler 2024, Pimentel and Meister 2024), and the words of a line add
up to the line's score by the rule of eval_blimp.py. minicons' token_score gives the same figures token by token.
"""

import csv
import io
import math
import re

from lab.files import UserError
from lab.score.scoring import require_scorable, score_sequences, token_ends, tokenize

import numpy as np

COLUMNS = ["sentence", "position", "word", "tokens", "surprisal"]


def read_lines(path):
    """The lines of a text file. Raises UserError."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            text = f.read()
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot be read ({reason}); give a text file with a sentence in each line") from None
    if not text.strip():
        raise UserError(f"{path}: no sentence in it; give a text file with a sentence in each line")
    return [line.rstrip("\r") for line in text.split("\n")]


def word_surprisals(model, tokenizer, lines, **how):
    """A row of COLUMNS for each word: the line's number and the word's in it, both from 1; how many tokens; bits.

    Lines without a word have no row. Raises UserError for a line that is longer than the model's context.
    """
    sequences = tokenize(tokenizer, lines)
    require_scorable(model, lines, sequences)
    rows, prefixes, starts, of_line = [], [], [], []
    for number, (line, ids) in enumerate(zip(lines, sequences), 1):
        words = list(re.finditer(r"\S+", line))
        if not words:
            continue
        ends = word_ends(tokenizer, line, words, ids)
        for position, (word, start, end) in enumerate(zip(words, [1, *ends], ends), 1):
            rows.append([number, position, word.group(), end - start])
            prefixes.append(ids[:end])  # log p(ids[start:end] | ids[:start]): the tries
            starts.append(start)  # compute a line once for all of its words
            of_line.append(line)
    scores = score_sequences(model, of_line, prefixes, starts, **how)
    return [[*row, -score / math.log(2)] for row, score in zip(rows, scores.tolist())]


def word_ends(tokenizer, line, words, ids):
    """For each word, the index in ids (which begin with BOS) after its last token."""
    in_bytes = [len(line[: word.end()].encode()) for word in words]
    ends = 1 + np.searchsorted(token_ends(tokenizer, line, ids[1:]), in_bytes, side="right")
    ends[-1] = len(ids)
    return ends.tolist()


def words_csv(rows):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return out.getvalue()
