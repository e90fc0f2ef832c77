"""Masked next-token prediction (GPT-BERT, Charpentier and Samuel 2024), for a part of each batch.

Attention looks both ways, some tokens are hidden behind <unk>, and each is predicted where the token before it stands,
so that one model learns from gaps and from the next token with the same weights.
"""

import numpy as np
import torch
import torch.nn.functional as F

GAPS = 0.2  # of the tokens of a masked window


def draw_gaps(fraction, shape, key, rank=0, size=1):
    """(n, T) bool: True where the next token is hidden, for the first n = fraction * B of a process's windows (B, T).

    The draw follows from `key`, a list of whole numbers, as everything random in a step does. As many in each window,
    so that processes weigh the same. None if fraction is 0.
    """
    B, T = shape
    n = round(fraction * B)
    if not n:
        return None
    draw = np.random.default_rng(key).random((B * size, T - 1))
    rank_in_window = draw[rank::size][:n].argsort(1).argsort(1)
    gaps = torch.from_numpy(rank_in_window < GAPS * (T - 1))
    return F.pad(gaps, (0, 1))  # after the last token nothing is known


def loss(model, hidden, batch, s):
    """Mean loss of a batch (B, T): its first n windows fill the gaps (n, T), the others predict the next token."""
    ids, targets, mask, gaps = batch
    n, B, T = len(gaps), *ids.shape
    both_ways = torch.ones(T, T, dtype=torch.bool, device=ids.device)
    hidden_tokens = gaps.roll(1, dims=1)
    filled = hidden(ids[:n].masked_fill(hidden_tokens, 0), mask=both_ways, checkpointing=s.gradient_checkpointing)
    total = n * model.loss(filled, targets[:n].masked_fill(~gaps, -100))
    if n < B:
        mask = mask if mask is None else mask[n:]
        causal = hidden(ids[n:], mask=mask, checkpointing=s.gradient_checkpointing)
        total = total + (B - n) * model.loss(causal, targets[n:])
    return total / B
