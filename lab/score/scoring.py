"""Scores of sentences, and of alternatives in a context: text in, log-likelihoods out.

The rule is eval_blimp.py's `score_plainly`; the arithmetic is that of lab/score/tries.py, the same numbers faster.
"""

import contextlib
import math

from lab.files import UserError
from lab.score.tries import log_likelihoods
from model import rope_table

import numpy as np


def score_sentences(model, tokenizer, sentences, leading_space=False, **how):
    """log p(sentence | BOS) of each sentence in nats, float64 (N). how: dtype, batch_tokens, progress.

    Raises UserError for a sentence longer than the model's context and for a score that is NaN or infinite.
    """
    return score_sequences(model, sentences, tokenize(tokenizer, sentences, leading_space), **how)


def score_items(model, tokenizer, items, per_token=False, beyond_context=False, **how):
    """Of each item, the scores of its alternatives: a list of float64 arrays, nats.

    An item is a list of alternatives (context, text), as many as it likes. An alternative's score is

        log p(text | BOS, context)          per_token: divided by the number of tokens that are scored, at least 1

    context + text is tokenised as one string, so a space between the two is part of either; a token that reaches into
    `text` is scored, the tokens before it are given. Examples:

        a minimal pair              [("", good), ("", bad)]
        two contexts, one target    [(context1, " " + target), (context2, " " + target)]
        n continuations             [(prompt, " " + solution) for solution in solutions]

        scores = score_items(model, tokenizer, items)
        chosen = [best(of_item)[0] for of_item in scores]         # the first of those that tie, as np.argmax

    beyond_context: score what is longer than the model's context by letting its rotary positions go on, as Hugging
    Face's Llama does; else it is a UserError that names the text. how: dtype, batch_tokens, progress.
    """
    sentences, contexts = [], []
    for item in items:
        for context, text in item:
            sentences.append(context + text)
            contexts.append(context)
    sequences = tokenize(tokenizer, sentences)
    starts = first_scored(tokenizer, sentences, contexts, sequences)
    longest = max(map(len, sequences), default=1) - 1
    with longer_context(model, longest) if beyond_context else contextlib.nullcontext():
        scores = score_sequences(model, sentences, sequences, starts, **how)
    if per_token:
        scores = scores / [max(1, len(ids) - start) for ids, start in zip(sequences, starts)]
    remaining = iter(scores)
    return [np.array([next(remaining) for _ in item]) for item in items]


def best(scores):
    """Indices of the highest of an item's scores: several if they tie."""
    return np.flatnonzero(scores == scores.max())


def tokenize(tokenizer, sentences, leading_space=False):
    """BOS and the token ids of each sentence, a list of tuples. leading_space: those of " " + sentence."""
    if leading_space:
        sentences = [" " + sentence for sentence in sentences]
    return [(tokenizer.bos_id, *ids) for ids in tokenizer.encode_batch(sentences)]


def first_scored(tokenizer, sentences, contexts, sequences):
    """The index, in each sequence, of the first token that reaches beyond its context."""
    starts = []
    for sentence, context, ids in zip(sentences, contexts, sequences):
        given = 0
        if context:
            ends = token_ends(tokenizer, sentence, ids[1:])
            given = int(np.searchsorted(ends, len(context.encode()), side="right"))
        starts.append(1 + given)  # BOS is always given
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


def score_sequences(model, sentences, sequences, starts=None, **how):
    """score_sentences of what `tokenize` returned; starts: the first token of each that is scored, default the first
    after BOS. Equal sequences are computed once, so that they tie exactly."""
    require_scorable(model, sentences, sequences)
    tasks = list(zip(sequences, starts or [1] * len(sequences)))
    index = {}  # task -> its place among the different ones
    for task in tasks:
        index.setdefault(task, len(index))
    scores = np.zeros(0)
    if tasks:
        scores = log_likelihoods(model, *zip(*index), **how)[[index[task] for task in tasks]]
    broken = np.flatnonzero(~np.isfinite(scores))
    if len(broken):
        raise UserError(
            f"the log-likelihood of {sentences[broken[0]]!r} is {scores[broken[0]]}: "
            "the weights are broken, or the precision is too low for them"
        )
    return scores


def require_scorable(model, sentences, sequences):
    """UserError if a sequence is longer than the model's context or holds a token that the model does not know."""
    vocab_size, context = len(model.lm_head.weight), context_of(model)
    for sentence, ids in zip(sentences, sequences):
        if len(ids) - 1 > context:
            raise UserError(
                f"a sentence has {len(ids)} tokens, more than the model's context of {context}: {sentence[:100]!r}"
            )
        if max(ids) >= vocab_size:
            raise UserError(
                f"token {max(ids)} of {sentence[:100]!r} is not in the model's vocabulary "
                f"of {vocab_size}: this is not the model's tokenizer"
            )


def context_of(model):
    """The most tokens that the model can be given; a stand-in without positions takes any number."""
    return len(model.cos) if hasattr(model, "cos") else math.inf


@contextlib.contextmanager
def longer_context(model, tokens):
    """Inside, the model takes so many tokens: its rotary angles go on to positions that it was not trained on."""
    config, trained = model.config, (model.cos, model.sin)
    if tokens > len(model.cos):
        head_dim = config.hidden_size // config.num_attention_heads
        cos, sin = rope_table(tokens, head_dim, config.rope_theta)
        model.cos, model.sin = cos.to(model.cos.device), sin.to(model.sin.device)
    try:
        yield
    finally:
        model.cos, model.sin = trained
