"""Surprisal word by word, for studies of reading: eval_blimp.py MODEL --surprisal FILE --csv OUT.

    surprisal(word) = - sum over its tokens of log2 p(token | BOS and the tokens of the line before it)        in bits

A word is what stands between white space, punctuation included. A token belongs to the word in which it ends; spaces
alone belong to the word after them, and those at the end of a line to its last word. So the space before a word is part
of the word, and the words of a line add up to the line's score by the rule of eval_blimp.py (of a masked model: to its
pseudo-log-likelihood). minicons' token_score gives the same figures token by token.

`--whitespace trailing`: the space after a word is part of it instead, as its reader sees that the word has ended
(Pimentel and Meister 2024; Oh and Schuler 2024). With B the tokens that begin with a space:

    surprisal(word) + log2 p(B | what is before the word) - log2 p(B | the word and what is before it)

the first of them only for words after the first. minicons calls that bow_correction.
"""

import csv
import functools
import io
import math
import re

from lab.files import UserError, read_text
from lab.score import scoring
from lab.score.scorers import Tokens

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

COLUMNS = ["sentence", "position", "word", "tokens", "surprisal", "window"]


def read_lines(path):
    """The lines of a text file. Raises UserError."""
    remedy = "give a text file with a sentence in each line"
    text = read_text(path, remedy)
    if not text.strip():
        raise UserError(f"{path}: no sentence in it; {remedy}")
    return text.split("\n")


def word_surprisals(model, lines, score_tokens, whitespace="leading", where="line", **how):
    """A row of COLUMNS for each word: the line's number and the word's in it, both from 1; how many tokens; bits, None
    where the first token has no score; in which of the overlapping windows of a line that is longer than the context.

    model: a Scorer; score_tokens: eval_blimp's; where: the file, for errors; how: dtype, progress. Lines without a word
    have no row. Raises UserError naming the line.
    """
    trailing = whitespace == "trailing"
    begins = begin_with_a_space(model) if trailing else None
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    texts = [lines[number - 1] for number in numbers]
    encoded = model.encode(texts)
    pieces, of_line = [], []  # windows, and for each line where its own are among them
    all_ends = []
    for number, text, tokens in zip(numbers, texts, encoded):
        try:
            all_ends.append(model.ends(text))
        except UserError as e:
            raise UserError(f"{where}:{number}: {e}") from None
        found = windows(model, tokens, len(all_ends[-1]), trailing)
        of_line.append(range(len(pieces), len(pieces) + len(found)))
        pieces += found

    scores = score_tokens(model, pieces, **how)
    if trailing:
        spaces = scoring.in_batches(functools.partial(log_p_space, begins), model, pieces, **how)
    rows = []
    for number, text, tokens, ends, own in zip(numbers, texts, encoded, all_ends, of_line):
        logp = np.concatenate([scores[i] for i in own])
        if not np.isfinite(logp).all():
            raise UserError(f"{where}:{number}: a log-probability is not finite; the weights are broken")
        unscored = len(ends) - len(logp)  # 1 where nothing stands before the first token
        logp = np.concatenate([np.full(unscored, np.nan), logp])
        window = np.repeat(np.arange(1, len(own) + 1), [len(scores[i]) for i in own])
        window = np.concatenate([np.ones(unscored, int), window])
        words = list(re.finditer(r"\S+", text))
        stops = np.searchsorted(ends, [word.end() for word in words], side="right")
        stops[-1] = len(ends)
        if trailing:
            in_text = tokens.ids[tokens.end - len(ends) : tokens.end]
            logp = logp + correction(begins, in_text, stops.tolist(), [spaces[i] for i in own])
        for position, (word, start, stop) in enumerate(zip(words, [0, *stops], stops), 1):
            bits = -logp[start:stop].sum() / math.log(2)
            rows.append(
                [
                    number,
                    position,
                    word.group(),
                    int(stop - start),
                    None if np.isnan(bits) else float(bits),
                    int(window[max(start, stop - 1)]),
                ]
            )
    return rows


def windows(model, tokens, n, room_for_next):
    """Tokens of a line of n tokens in the model's context: themselves if they fit, else overlapping windows of which
    each has the text before, half a context of it, and scores what the windows before did not."""
    start = tokens.end - n  # of the text, after BOS or [CLS]
    before, text, after = tokens.ids[:start], tokens.ids[start : tokens.end], tokens.ids[tokens.end :]
    only_predicted = 0 if model.masked or room_for_next else 1
    room = model.context - len(before) - len(after) + only_predicted
    if n <= room:
        return [tokens]
    found, done = [], tokens.first - start
    while done < n:
        low = max(0, min(done - room // 2, n - room))
        high = min(n, low + room)
        words = tokens.words
        if words:
            words = (*words[:start], *words[start + low : start + high], *words[tokens.end :])
        ids = (*before, *text[low:high], *after)
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
    return [row[tokens.first - 1 : tokens.end] for row, tokens in zip(logp.double().cpu().numpy(), batch)]


def correction(begins, text, stops, spaces):
    """What `--whitespace trailing` adds to the log p of each token of a line: to a word's last token log p of a space
    after it, which is taken from the next word's first token.

    text: ids (n); stops: where words end; spaces: what log_p_space gives for the line's windows.
    """
    log_space = np.concatenate([*(of_window[:-1] for of_window in spaces), spaces[-1][-1:]])
    log_space = np.concatenate([np.zeros(len(text) + 1 - len(log_space)), log_space])  # before each token, and at last
    added = np.zeros(len(text))
    added[-1] = log_space[-1]
    for stop in set(stops):
        if 0 < stop < len(text) and begins[text[stop]]:
            added[stop - 1] += log_space[stop]
            added[stop] -= log_space[stop]
    return added


def words_csv(rows):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return out.getvalue()


def block(rows, model, whitespace):
    """The `key: value` lines that scripts read."""
    known = [row[4] for row in rows if row[4] is not None]
    lines = [
        f"sentences: {len({row[0] for row in rows})}",
        f"words: {len(rows)}",
        f"tokens: {sum(row[3] for row in rows)}",
        f"bits_per_word: {sum(known) / max(1, len(known)):.6f}",
    ]
    if rows and max(row[5] for row in rows) > 1:
        lines.append(f"windows: lines longer than the context of {model.context} tokens, see the column `window`")
    lines.append(f"rule: method={model.method} whitespace={whitespace}")
    lines.append(f"before_first_token: {model.before}")
    return "\n".join(lines)
