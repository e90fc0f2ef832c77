"""Scores of sentences: text in, log-likelihoods out. What eval_blimp.py and train.py call.

The rule is eval_blimp.py's `log_likelihoods_plainly`; the arithmetic is lab/tries.py's, which computes the same faster.
"""
import math

import numpy as np

from lab.files import UserError
from lab.tries import log_likelihoods


def score_sentences(model, tokenizer, sentences, leading_space=False, **how):
    """log p(sentence | BOS) of each sentence in nats, float64 (N). how: dtype, batch_tokens, progress.

    Raises UserError for a sentence longer than the model's context and for a score that is NaN or infinite.
    """
    return score_sequences(model, sentences, tokenize(tokenizer, sentences, leading_space), **how)


def tokenize(tokenizer, sentences, leading_space=False):
    """BOS and the token ids of each sentence, a list of tuples. leading_space: those of " " + sentence."""
    if leading_space:
        sentences = [" " + sentence for sentence in sentences]
    return [(tokenizer.bos_id, *ids) for ids in tokenizer.encode_batch(sentences)]


def score_sequences(model, sentences, sequences, **how):
    """score_sentences of what `tokenize` returned. Equal sequences are computed once, so that they tie exactly."""
    vocab_size, context = len(model.lm_head.weight), context_of(model)
    for sentence, ids in zip(sentences, sequences):
        if len(ids) - 1 > context:
            raise UserError(f"a sentence has {len(ids)} tokens, more than the model's context of {context}: "
                            f"{sentence[:100]!r}")
        if max(ids) >= vocab_size:
            raise UserError(f"token {max(ids)} of {sentence[:100]!r} is not in the model's vocabulary of {vocab_size}: "
                            "this is not the model's tokenizer")
    unique = list(dict.fromkeys(sequences))
    index = {ids: i for i, ids in enumerate(unique)}
    scores = log_likelihoods(model, unique, [1] * len(unique), **how)
    scores = scores[[index[ids] for ids in sequences]] if sequences else scores
    broken = np.flatnonzero(~np.isfinite(scores))
    if len(broken):
        raise UserError(f"the log-likelihood of {sentences[broken[0]]!r} is {scores[broken[0]]}: "
                        "the weights are broken, or the precision is too low for them")
    return scores


def context_of(model):
    """The most tokens that the model can be given; a stand-in without a config takes any number."""
    return model.config.max_position_embeddings if hasattr(model, "config") else math.inf
