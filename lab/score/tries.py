"""Log-likelihoods of many token sequences, fast: what sequences have in common at their beginning is computed once.

What a causal model computes for a token depends only on the tokens before it, and the sentences of a BLiMP paradigm
begin alike. So the sequences are sorted, and runs of neighbours become tries; a trie is one row of a batch, in which
each token has the position of its depth and attends to its ancestors. The head is applied once to each token that
another one follows, a few hundred at a time. That leaves 59 % of BLiMP's tokens (32,000 pieces), and under 1 % of
padding.
"""

import contextlib
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
import torch.nn.functional as F
from tqdm import tqdm

ROW = 128  # tokens in a trie: the longer, the more is shared; the shorter, the less attention
BLOCK = 16384  # sequences laid out at once, so that memory does not grow with their number


@torch.no_grad()
def log_likelihoods(model, sequences, starts, dtype="float32", batch_tokens=None, progress=False):
    """log p(sequence[start:] | sequence[:start]) of each sequence of token ids, in nats: float64 (N).

    model: a module with hidden(ids, positions, mask) -> (B, T, h) and lm_head.weight (V, h), such as model.Model.
    dtype: float32 or bfloat16, of the matrix products; the sums over a sentence are in float64.
    A score that comes out NaN or infinite ends the work: what was not reached is left at 0.
    """
    device = model.lm_head.weight.device
    if batch_tokens is None:
        batch_tokens = 2048 if device.type == "cpu" else 65536
    half = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    bar = tqdm(total=len(sequences), desc="scoring", unit="sentence", disable=None if progress else True, leave=False)

    scores = np.zeros(len(sequences))
    with evaluation_mode(model), half, bar:
        for batch in batches(sequences, starts, batch_tokens):
            log_p = token_log_probabilities(model, batch)
            np.add.at(scores, batch.sequence, log_p.cpu().double().numpy())
            bar.update(len(np.unique(batch.sequence)))  # a sequence is in one batch, whole
            if not np.isfinite(scores[batch.sequence]).all():
                break
    return scores


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
    """Batches of about `tokens` tokens in which every sequence is once."""
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
def evaluation_mode(model):
    """No dropout and no TF32 inside, whatever training uses, and as before outside.

    Nor cuDNN's attention, which plans anew for each shape: here nearly every batch has its own.
    """
    training, precision = model.training, torch.get_float32_matmul_precision()
    model.eval()
    torch.set_float32_matmul_precision("highest")
    try:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            yield
    finally:
        model.train(training)
        torch.set_float32_matmul_precision(precision)
