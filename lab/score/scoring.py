"""Scores of sentences, and of alternatives in a context: text in, log-likelihoods out.

The rule is eval_blimp.py's `log_probabilities`; `in_batches` applies it to any model. `log_likelihoods` computes the
same for our own models, faster: what sequences have in common at their beginning is computed once.
"""

import contextlib
import ctypes
from dataclasses import dataclass
from operator import itemgetter

from lab.files import UserError
from model import rope_table

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
import torch.nn.functional as F
from tqdm import tqdm

ROW = 128  # tokens in a trie: the longer, the more is shared; the shorter, the less attention
BLOCK = 16384  # sequences laid out at once, so that memory does not grow with their number


def score_items(model, tokenizer, items, per_token=False, **how):
    """Of each item, the scores of its alternatives: a list of float64 arrays, nats.

    An item is a list of any number of alternatives (context, text). An alternative's score is

        log p(text | BOS, context)          per_token: divided by the number of tokens that are scored, at least 1

    context + text is tokenised as one string, so a space between the two may belong to either; a token that reaches
    into `text` is scored, the tokens before it are given. Examples:

        a minimal pair              [("", good), ("", bad)]
        two contexts, one target    [(context1, " " + target), (context2, " " + target)]
        n continuations             [(prompt, " " + solution) for solution in solutions]

        scores = score_items(model, tokenizer, items)
        chosen = [best(of_item)[0] for of_item in scores]         # of those that tie the first, as np.argmax does

    What is longer than the model's context is scored too: its rotary positions go on, as Hugging Face's Llama lets
    them. how: dtype, batch_tokens, progress. Raises UserError for a score that is NaN or infinite.
    """
    sentences, contexts = [], []
    for item in items:
        for context, text in item:
            sentences.append(context + text)
            contexts.append(context)
    sequences = tokenize(tokenizer, sentences)
    starts = first_scored(tokenizer, sentences, contexts, sequences)
    with longer_context(model, max(map(len, sequences), default=1) - 1):
        scores = log_likelihoods(model, sequences, starts, **how)
    require_finite(sentences, scores)
    if per_token:
        scores = scores / [max(1, len(ids) - start) for ids, start in zip(sequences, starts)]
    remaining = iter(scores)
    return [np.array([next(remaining) for _ in item]) for item in items]


def best(scores):
    """Indices of the highest of an item's scores: several if they tie."""
    return np.flatnonzero(scores == scores.max())


def tokenize(tokenizer, sentences):
    """BOS and the token ids of each sentence, a list of tuples."""
    return [(tokenizer.bos_id, *ids) for ids in tokenizer.encode_batch(sentences)]


def first_scored(tokenizer, sentences, contexts, sequences):
    """The index, in each sequence, of the first token that reaches beyond its context."""
    starts = []
    for sentence, context, ids in zip(sentences, contexts, sequences):
        ends = token_ends(tokenizer, sentence, ids[1:]) if context else []
        given = np.searchsorted(ends, len(context.encode()), side="right")
        starts.append(1 + int(given))  # BOS is always given
    return starts


def token_ends(tokenizer, sentence, ids):
    """Where in the sentence each token ends, in bytes, at least 1: the first may be the space put before a text.

    UserError if the tokens do not spell the sentence: a tokenizer that normalises, or has no bytes for a character.
    """
    ends = np.cumsum(tokenizer.byte_lengths[list(ids)])
    added = ends[-1] - len(sentence.encode()) if len(ends) else 0
    if added not in (0, 1):
        raise UserError(
            f"the tokenizer does not keep every character of {sentence[:100]!r}, so where its words begin "
            "is not known; use a tokenizer without normalisation and with byte fallback"
        )
    return np.maximum(ends - added, 1)


def in_batches(rule, model, sentences, dtype="float32", batch_tokens=None, progress=False):
    """What rule(model, batch) gives for each sentence (lab.score.scorers.Tokens), in batches of about equal length.

    Equal ones are computed once, so that they tie exactly. batch_tokens: default what a bound on the logits allows.
    """
    # Longest first: a batch that is too large fails at once
    different = sorted(dict.fromkeys(sentences), key=lambda tokens: -len(tokens.ids))
    at_once = batch_tokens or tokens_at_once(model)
    found, batches = {}, 0
    with evaluation_mode(model.model, model.device.type, dtype), progress_bar(len(different), progress) as bar:
        while len(found) < len(different):
            start = len(found)
            batch = different[start : start + max(1, at_once // model.work(different[start]))]
            for tokens, scores in zip(batch, rule(model, batch)):
                found[tokens] = scores.copy()  # a view would keep the whole batch's array alive
            bar.update(len(batch))
            batches += 1
            if batches % 32 == 0:
                give_back_freed_memory()
    return [found[tokens] for tokens in sentences]


def progress_bar(sentences, shown):
    """A bar that counts sentences, on a terminal if it is to be shown, and nowhere else."""
    return tqdm(total=sentences, desc="scoring", unit="sentence", disable=None if shown else True, leave=False)


def give_back_freed_memory():
    """To the system: logits have another size in every batch, and leave gigabytes of holes in glibc's heap."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@torch.no_grad()
def pseudo_log_probabilities(model, batch):
    """log p of each token of each sentence (Tokens) given all the others (Salazar et al. 2020), in nats.

    A sentence of n tokens is given n times, each time with another one masked; where its `words` are known, with what
    follows in the same word too (Kauf and Ivanova 2023), because the end of a rare word gives its beginning away.
    """
    T = max(len(sentence.ids) for sentence in batch)
    copies, attended, places, targets = [], [], [], []
    for sentence in batch:
        ids = torch.tensor(sentence.ids)  # (t)
        place = torch.arange(sentence.first, sentence.end)  # (n)
        hidden = torch.arange(len(ids)) == place[:, None]  # (n, t)
        if sentence.words:
            words = torch.tensor([-1 if word is None else word for word in sentence.words])  # (t)
            hidden |= (words == words[place, None]) & (torch.arange(len(ids)) > place[:, None])
        copy = ids.repeat(len(place), 1).masked_fill(hidden, model.tokenizer.mask_token_id)  # (n, t)
        copies.append(F.pad(copy, (0, T - len(ids))))
        attended.append(F.pad(torch.ones_like(copy), (0, T - len(ids))))
        places.append(place)
        targets.append(ids[place])

    rows = max(1, tokens_at_once(model) // T)
    chunks = [torch.cat(parts).to(model.device).split(rows) for parts in (copies, attended, places, targets)]
    logp = []
    for ids, mask, place, target in zip(*chunks):
        logits = model.logits_at(place, ids, mask)  # (rows, V)
        logp.append(logits.log_softmax(-1).gather(-1, target[:, None]).squeeze(-1))
    logp = torch.cat(logp).cpu().double().numpy()
    return np.split(logp, np.cumsum([sentence.end - sentence.first for sentence in batch])[:-1])


def tokens_at_once(model):
    """How many tokens a model is given at once: as many as make 8 MB of logits on a CPU, at least 256; else 1 GB.

    A masked model has few logits, at one place in each copy of a sentence.
    """
    cpu = model.device.type == "cpu"
    if model.masked:
        return 2048 if cpu else 16384
    if cpu:
        return max(256, min(2048, 2**21 // model.vocab_size))
    return min(65536, 2**28 // model.vocab_size)


def require_finite(sentences, scores):
    """UserError if a score is NaN or infinite."""
    broken = np.flatnonzero(~np.isfinite(scores))
    if len(broken):
        raise UserError(
            f"the log-likelihood of {sentences[broken[0]]!r} is {scores[broken[0]]}: "
            "the weights are broken, or the precision is too low for them"
        )


@contextlib.contextmanager
def longer_context(model, tokens):
    """Inside, the model takes that many tokens: its rotary angles go on to positions that it was not trained on."""
    trained = model.cos, model.sin
    if tokens > len(model.cos):
        config = model.config
        cos, sin = rope_table(tokens, config.hidden_size // config.num_attention_heads, config.rope_theta)
        model.cos, model.sin = cos.to(model.cos.device), sin.to(model.sin.device)
    try:
        yield
    finally:
        model.cos, model.sin = trained


# ---------------------------------------------------------------------------------------------------------------------
# Our own models, fast
#
# What a causal model computes for a token depends only on the tokens before it, and the sentences of a BLiMP paradigm
# begin alike. So the sequences are sorted, and runs of neighbours become tries; a trie is one row of a batch, in which
# each token has the position of its depth and attends to its ancestors. The head is applied once to each token that
# another one follows, a few hundred at a time. That leaves 59 % of BLiMP's tokens (32,000 pieces), and under 1 % of
# padding.


@torch.no_grad()
def log_likelihoods(model, sequences, starts=None, dtype="float32", batch_tokens=None, progress=False):
    """log p(sequence[start:] | sequence[:start]) of each sequence, a tuple of token ids, in nats: float64 (N).

    model: a module with hidden(ids, positions, mask) -> (B, T, h) and lm_head.weight (V, h), such as model.Model.
    starts: default 1, all after BOS. dtype: float32 or bfloat16, of the matrix products; a sentence's sum is in
    float64. Equal sequences are computed once, so that they tie exactly.
    """
    device = model.lm_head.weight.device
    if batch_tokens is None:
        batch_tokens = 2048 if device.type == "cpu" else 65536
    tasks = list(zip(sequences, starts or [1] * len(sequences)))
    number = {task: i for i, task in enumerate(dict.fromkeys(tasks))}
    sequences, starts = [ids for ids, _ in number], [start for _, start in number]
    scores = np.zeros(len(number))
    with evaluation_mode(model, device.type, dtype), progress_bar(len(number), progress) as bar:
        for batch in batches(sequences, starts, batch_tokens):
            log_p = token_log_probabilities(model, batch)
            np.add.at(scores, batch.sequence, log_p.cpu().double().numpy())
            bar.update(len(np.unique(batch.sequence)))  # a sequence is in one batch, whole
    return scores[[number[task] for task in tasks]]


def token_log_probabilities(model, batch):
    """log p of each scored token of a Batch given those before it, in nats: float32 (m)."""
    weight = model.lm_head.weight  # (V, h)
    device = weight.device
    ids, depth, last = (torch.from_numpy(array).to(device) for array in (batch.ids, batch.depth, batch.last))
    key = torch.arange(ids.shape[1], device=device)  # (T)
    query = key[:, None]  # (T, 1)
    descends = (key <= query) & (query <= last[:, None, None])  # (B, 1, T, T): query is key or its descendant
    hidden = model.hidden(ids, depth, descends)[batch.followed]  # (n, h)

    logits_at_once = 2**21 if device.type == "cpu" else 2**27  # 8 MB, a CPU's cache; else 512 MB
    size = max(1, logits_at_once // len(weight) // 64) * 64  # tokens in a chunk
    parts = []
    for start in range(0, len(hidden), size):
        log_p = F.linear(hidden[start : start + size], weight).float().log_softmax(1)  # (chunk, V)
        first, end = np.searchsorted(batch.node, [start, start + size])  # the scored tokens that follow these
        node = torch.from_numpy(batch.node[first:end] - start).to(device)
        target = torch.from_numpy(batch.target[first:end]).to(device)
        parts.append(log_p[node, target])
    return torch.cat(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Tries, and batches of them


class Trie:
    """A row of a batch: token sequences that share what they begin with. They are added in sorted order.

    A token is written once for all sequences that begin alike up to it. Parents come before children (preorder), so a
    token's descendants are the ones right after it, up to `last`. A sequence's last token is only ever predicted, and
    not written.

        [1, 5, 6, 7]        1 - 5 - 6 (7)           tokens   1  5  6  9
        [1, 5, 6, 8]     =        |   (8)           depth    0  1  2  1
        [1, 9, 6]           |                       last     3  2  2  3
                            9 (6)                   scored   5 after 0, 6 after 1, 7 after 2, 8 after 2, ...

    (From a start of 1, each sequence has its own entry for 5 after 0: its own score is summed from it.)
    """

    def __init__(self):
        self.tokens = []  # ids
        self.depth = []  # of each token: its position in its sequences
        self.last = []  # of each token: where its last descendant stands, itself if it has none
        self.scored = []  # (where the token before stands, id, number of its sequence) of each scored token
        self.path = []  # where the tokens of the latest sequence stand

    def shared(self, ids):
        """How many leading tokens `ids` has in common with the latest sequence."""
        count = 0
        for place, token in zip(self.path, ids[:-1]):
            if self.tokens[place] != token:
                break
            count += 1
        return count

    def add(self, ids, start, number):
        """Adds sequence `number`, of which ids[start:] are scored."""
        del self.path[self.shared(ids) :]
        for depth in range(len(self.path), len(ids) - 1):
            self.path.append(len(self.tokens))
            self.tokens.append(ids[depth])
            self.depth.append(depth)
            self.last.append(None)
        for place in self.path:
            self.last[place] = len(self.tokens) - 1
        for t in range(start, len(ids)):
            self.scored.append((self.path[t - 1], ids[t], number))


def tries(sequences, starts, numbers):
    """Tries of about ROW tokens with the sequences `numbers`, which are in sorted order."""
    trie = Trie()
    for number in numbers:
        ids = sequences[number]
        new = len(ids) - 1 - trie.shared(ids)
        if trie.tokens and len(trie.tokens) + new > ROW:
            yield trie
            trie = Trie()
        trie.add(ids, starts[number], number)
    yield trie


@dataclass
class Batch:
    """B tries, padded to T tokens. n tokens are followed by a scored one, many of them by several; m tokens are scored.

    n is filled up to a multiple of 64 with repetitions: few different sizes, as oneDNN sets itself up anew for each.
    """

    ids: np.ndarray  # (B, T)
    depth: np.ndarray  # (B, T)
    last: np.ndarray  # (B, T)
    followed: tuple  # (rows (n), columns (n)) of the n tokens
    node: np.ndarray  # (m), ascending: which of the n the scored token follows
    target: np.ndarray  # (m): its id
    sequence: np.ndarray  # (m): the number of its sequence


def batches(sequences, starts, tokens):
    """Batches of about `tokens` tokens; every sequence is in one of them."""
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    for start in range(0, len(order), BLOCK):
        rows = list(tries(sequences, starts, order[start : start + BLOCK]))
        rows.sort(key=lambda trie: len(trie.tokens))  # neighbours of a size need little padding
        while rows:
            count = 1
            while count < len(rows) and (count + 1) * len(rows[count].tokens) <= tokens:
                count += 1
            if any(trie.scored for trie in rows[:count]):
                yield pack(rows[:count])
            del rows[:count]


def pack(rows):
    """A Batch of tries, the longest last."""
    T = max(1, len(rows[-1].tokens))
    ids = np.zeros((len(rows), T), int)
    depth = np.zeros((len(rows), T), int)
    last = np.tile(np.arange(T), (len(rows), 1))  # padding sees itself
    scored = []
    for row, trie in enumerate(rows):
        size = len(trie.tokens)
        ids[row, :size] = trie.tokens
        depth[row, :size] = trie.depth
        last[row, :size] = trie.last
        scored += [(row * T + place, token, number) for place, token, number in trie.scored]
    place, target, sequence = np.array(sorted(scored, key=itemgetter(0))).T  # (m) each
    followed, node = np.unique(place, return_inverse=True)
    followed = np.pad(followed, (0, -len(followed) % 64), mode="edge")
    return Batch(ids, depth, last, np.divmod(followed, T), node, target, sequence)


# ---------------------------------------------------------------------------------------------------------------------
# Surroundings


@contextlib.contextmanager
def evaluation_mode(model, device_type, dtype):
    """Inside, no dropout and no TF32, whatever training uses; afterwards all is as before. dtype: float32 or bfloat16.

    Nor cuDNN's attention, which plans anew for each shape: here nearly every batch has a shape of its own.
    """
    training, precision = model.training, torch.get_float32_matmul_precision()
    half = torch.autocast(device_type, torch.bfloat16, enabled=dtype == "bfloat16")
    attention = sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    model.eval()
    torch.set_float32_matmul_precision("highest")
    try:
        with half, attention:
            yield
    finally:
        model.train(training)
        torch.set_float32_matmul_precision(precision)
