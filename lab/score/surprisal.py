"""Surprisal word by word, for studies of reading: eval_blimp.py MODEL --surprisal FILE --csv OUT.

    surprisal(word) = - sum over its tokens of log2 p(token | BOS and the tokens of the line before it)        in bits

A word is whatever stands between white space, punctuation included. A token belongs to the word in which it ends; a
token of spaces alone belongs to the word after it, and at the end of a line to the last word. So the space before a
word is part of the word, and the words of a line add up to the line's score by the rule of eval_blimp.py (of a masked
model: to its pseudo-log-likelihood). minicons' token_score gives the same figures token by token.

`--whitespace trailing`: the space after a word is part of it instead, because a reader sees that the word has ended
(Pimentel and Meister 2024; Oh and Schuler 2024). With B the tokens that begin with a space:

    surprisal(word) + log2 p(B | what is before the word) - log2 p(B | the word and what is before it)

the first correction only from the second word on. minicons calls this bow_correction.
"""

import csv
from dataclasses import astuple, dataclass, fields
import functools
import io
import itertools
import math
import re

from lab.files import UserError, read_text
from lab.score import scoring
from lab.score.scorers import Tokens

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence


@dataclass
class Word:
    """A line of the CSV. sentence, position: numbers of the line and of the word in it, both from 1."""

    sentence: int
    position: int
    word: str
    tokens: int  # how many
    surprisal: float | None  # bits; None where the first token has no score
    window: int  # which of the overlapping windows of a line that is longer than the context, from 1


def read_lines(path):
    """The lines of a text file. Raises UserError."""
    remedy = "give a text file with a sentence in each line"
    text = read_text(path, remedy)
    if not text.strip():
        raise UserError(f"{path}: no sentence in it; {remedy}")
    return text.split("\n")


def word_surprisals(model, lines, score_tokens, whitespace="leading", **how):
    """A list of the Words of some lines.

    model: a Scorer; score_tokens: eval_blimp's; how: dtype, progress. Raises UserError for a line in which its tokens
    cannot be found, and for scores that are NaN or infinite.
    """
    trailing = whitespace == "trailing"
    begins = begin_with_a_space(model) if trailing else None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    encoded = model.encode([line for _, line in numbered])
    all_ends = [model.ends(line) for _, line in numbered]
    all_windows = [windows(model, tokens, len(ends), trailing) for tokens, ends in zip(encoded, all_ends)]
    every = list(itertools.chain.from_iterable(all_windows))
    scores = dict(zip(every, score_tokens(model, every, **how)))
    spaces = {}
    if trailing:
        spaces = dict(zip(every, scoring.in_batches(functools.partial(log_p_space, begins), model, every, **how)))

    found = []
    for (number, line), tokens, ends, own in zip(numbered, encoded, all_ends, all_windows):
        logp = np.concatenate([scores[window] for window in own])
        scoring.require_finite([line], logp.sum(keepdims=True))
        unscored = len(ends) - len(logp)  # 1 where nothing stands before the first token
        logp = np.concatenate([np.full(unscored, np.nan), logp])
        last_of_window = unscored + np.cumsum([len(scores[window]) for window in own]) - 1
        words = list(re.finditer(r"\S+", line))
        stops = np.searchsorted(ends, [word.end() for word in words], side="right").tolist()
        stops[-1] = len(ends)
        if trailing:
            logp += correction(begins, tokens.ids[tokens.end - len(ends) :], stops, [spaces[window] for window in own])
        for position, (word, start, stop) in enumerate(zip(words, [0, *stops], stops), 1):
            bits = float(-logp[start:stop].sum() / math.log(2))
            window = 1 + int(np.searchsorted(last_of_window, max(start, stop - 1)))  # that of its last token
            found.append(Word(number, position, word.group(), stop - start, None if math.isnan(bits) else bits, window))
    return found


def windows(model, tokens, n, room_for_next):
    """Tokens of a line of n tokens in the model's context: themselves if they fit, else overlapping windows of which
    each has the text before, half a context of it, and scores what the windows before did not."""
    start = tokens.end - n  # of the text, after BOS or [CLS]
    only_predicted = 0 if model.masked or room_for_next else 1
    room = model.context - (len(tokens.ids) - n) + only_predicted
    if n <= room:
        return [tokens]
    found, done = [], tokens.first - start
    while done < n:
        low = max(0, min(done - room // 2, n - room))
        high = min(n, low + room)
        parts = []
        for whole in (tokens.ids, tokens.words):
            parts.append((*whole[:start], *whole[start + low : start + high], *whole[tokens.end :]))
        ids, words = parts
        found.append(Tokens(ids, start + done - low, start + high - low, words))
        done = high
    return found


def begin_with_a_space(model):
    """Whether each token of the vocabulary does: bool (V). Raises UserError for models of which none does."""
    begins = np.array([str(piece).startswith((" ", "Ġ", "▁")) for piece in model.pieces()])
    if model.masked or not begins.any():
        raise UserError(
            f"--whitespace trailing: {model.name} is not a causal model whose tokens begin with the space before a word"
        )
    return begins


@torch.no_grad()
def log_p_space(begins, model, batch):
    """log p that the token at each scored place, and the one after the last, begins with a space, in nats."""
    ids = pad_sequence([torch.tensor(tokens.ids) for tokens in batch], batch_first=True).to(model.device)  # (N, T)
    places = torch.from_numpy(np.flatnonzero(begins)).to(model.device)
    logp = model.logits(ids).log_softmax(-1)[..., places].logsumexp(-1)  # (N, T): of the token after t
    return [row[tokens.first - 1 : tokens.end] for row, tokens in zip(logp.cpu().double().numpy(), batch)]


def correction(begins, text, stops, spaces):
    """What `--whitespace trailing` adds to the log p of each token of a line: a word's last token gains the log p of a
    space after it, and the next word's first token loses it.

    text: ids, the line's n first; stops: where words end, the last one at n; spaces: what log_p_space gives for the
    line's windows.
    """
    n = stops[-1]
    log_space = np.concatenate([*(of_window[:-1] for of_window in spaces), spaces[-1][-1:]])
    log_space = np.concatenate([np.zeros(n + 1 - len(log_space)), log_space])  # before each token, and at last
    added = np.zeros(n)
    added[-1] = log_space[-1]
    for stop in set(stops):
        if 0 < stop < n and begins[text[stop]]:
            added[stop - 1] += log_space[stop]
            added[stop] -= log_space[stop]
    return added


def words_csv(rows):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(field.name for field in fields(Word))
    writer.writerows(astuple(row) for row in rows)
    return out.getvalue()


def block(rows, model, whitespace):
    """The `key: value` lines that scripts read."""
    known = [row.surprisal for row in rows if row.surprisal is not None]
    lines = [
        f"sentences: {len({row.sentence for row in rows})}",
        f"words: {len(rows)}",
        f"tokens: {sum(row.tokens for row in rows)}",
        f"bits_per_word: {sum(known) / max(1, len(known)):.6f}",
    ]
    if any(row.window > 1 for row in rows):
        lines.append(f"windows: lines longer than the context of {model.context} tokens, see the column `window`")
    lines.append(f"rule: method={model.method} whitespace={whitespace}")
    lines.append(f"before_first_token: {model.before}")
    return "\n".join(lines)
