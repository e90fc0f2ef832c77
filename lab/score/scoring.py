"""Scores of sentences, and of alternatives in a context: text in, log-likelihoods out.

The rule is eval_blimp.py's `log_probabilities`; of our own models lab/score/tries.py computes the same, faster.
"""

import contextlib
import ctypes
import math

from lab.files import UserError
from lab.score.tries import evaluation_mode, log_likelihoods
from model import rope_table

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm


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
    require_finite(sentences, scores)
    return scores


def in_batches(rule, model, sentences, dtype="float32", batch_tokens=None, progress=False):
    """[rule(model, batch)] of lab.score.scorers.Tokens in batches of about one length, a list of arrays.

    Equal ones are computed once, so that they tie exactly. batch_tokens: default what a bound on the logits allows.
    """
    different = dict.fromkeys(sentences)
    longest_first = sorted(different, key=lambda tokens: len(tokens.ids), reverse=True)  # one too large fails at once
    most = batch_tokens or tokens_at_once(model)
    half = torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    total, hidden = len(longest_first), None if progress else True
    bar = tqdm(total=total, desc="scoring", unit="sentence", disable=hidden, leave=False)
    found, batches = {}, 0
    with evaluation_mode(model.model), half, bar:
        while len(found) < total:
            start = len(found)
            batch = longest_first[start : start + max(1, most // model.work(longest_first[start]))]
            for tokens, scores in zip(batch, rule(model, batch)):
                found[tokens] = scores.copy()  # a view would keep the whole batch's array alive
            bar.update(len(batch))
            batches += 1
            if batches % 32 == 0:
                give_back_freed_memory()
    return [found[tokens] for tokens in sentences]


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
    logp = torch.cat(logp).double().cpu().numpy()
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
