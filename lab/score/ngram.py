"""Interpolated Kneser-Ney n-grams (Chen and Goodman 1999, section 3) of lines of tokens, each from BOS:

    p(w | h) = (max(c(h w) - D, 0) + D t(h) p(w | h without its first token)) / c(h)

c: how often an n-gram occurs, and below the highest order in how many contexts (of those that begin with BOS: how
often); c(h): the sum of c(h w) over w; t(h): over how many w; D = n1 / (n1 + 2 n2) of the n-grams of an order that have
c = 1 and c = 2. Where h was never seen, p(w | h) is p(w | h without its first token); below one token 1 / V.
"""

import numpy as np

ORDER = 5


class KneserNey:
    """n-grams are numbered from 1 to ORDER: one of n tokens is a pair (number of its first n - 1 tokens, last token),
    written as one integer, number * V + token."""

    def __init__(self, ids, bos, vocab_size, order=ORDER):
        """ids (N): lines of tokens, each with a BOS before it; vocab_size: V."""
        self.bos, self.V = bos, vocab_size
        depth = places(ids, bos)
        seen = []  # of each order: (its n-grams, sorted; number of each in the text, -1 where a line is too short)
        number = np.zeros(len(ids), np.int64)
        for n in range(1, order + 1):
            keys = np.roll(number, 1) * self.V + ids if n > 1 else ids
            inside = depth >= n - 1
            grams, inverse = np.unique(keys[inside], return_inverse=True)
            number = np.full(len(ids), -1)
            number[inside] = inverse
            seen.append((grams, number))
        self.levels = []  # of each order: (n-grams, their c, D, and of each context: c(h), t(h))
        for n, (grams, number) in enumerate(seen, 1):
            inside = number >= 0
            count = np.bincount(number[inside], minlength=len(grams))
            if n < order:
                longer = seen[n][1]
                _, first = np.unique(longer, return_index=True)  # one place of each n-gram of the next order
                first = first[longer[first] >= 0]
                contexts = np.bincount(number[first], minlength=len(grams))
                count = np.where(begins_a_line(number, depth, n, len(grams)), count, contexts)
            if n == 1:
                count[grams == bos] = 0  # BOS is given, never predicted
            once, twice = (count == 1).sum(), (count == 2).sum()
            discount = once / max(1, once + 2 * twice) or 0.5  # so that nothing is impossible
            context = grams // self.V if n > 1 else np.zeros(len(grams), np.int64)
            size = len(seen[n - 2][0]) if n > 1 else 1
            total = np.bincount(context, count, size)
            kinds = np.bincount(context, count > 0, size)
            self.levels.append((grams, count, discount, total, kinds))

    def log_probabilities(self, ids):
        """log p of each token (N) of lines that begin with BOS, given those before it in its line; of BOS itself 0."""
        depth = places(ids, self.bos)
        p = np.full(len(ids), 1 / self.V)
        number = np.zeros(len(ids), np.int64)  # of the n - 1 tokens that end at each place, -1: never seen
        for n, (grams, count, discount, total, kinds) in enumerate(self.levels, 1):
            context = np.roll(number, 1) if n > 1 else number
            keys = context * self.V + ids
            at = np.minimum(np.searchsorted(grams, keys), len(grams) - 1)
            usable = (depth >= n - 1) & (context >= 0)
            found = usable & (grams[at] == keys)
            usable &= total[np.maximum(context, 0)] > 0
            here = context[usable]
            c = np.where(found, count[at], 0)[usable]
            p[usable] = (np.maximum(c - discount, 0) + discount * kinds[here] * p[usable]) / total[here]
            number = np.where(found, at, -1)
        p[depth == 0] = 1
        return np.log(p)


def places(ids, bos):
    """How many tokens stand before each one in its line; of BOS 0."""
    index = np.arange(len(ids))
    return index - np.maximum.accumulate(np.where(ids == bos, index, 0))


def begins_a_line(number, depth, n, size):
    """Whether each n-gram begins with BOS."""
    begins = np.zeros(size, bool)
    begins[number[(number >= 0) & (depth == n - 1)]] = True
    return begins
