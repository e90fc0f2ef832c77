"""A SentencePiece model as the tokenizer files of a Hugging Face folder.

Two things differ from transformers' own conversion of a LLaMA tokenizer, which gets them wrong: spaces are spaces in
the vocabulary, not ▁, so a ▁ in the text falls back to its bytes; and text that looks like a special piece, "<s>", is
text (split_special_tokens), so no sentence holds a BOS.
"""

import json

from lab.files import UserError
from tokenizer import SPACE

import tokenizers
from tokenizers import decoders, models, normalizers, processors


def tokenizer_files(tokenizer, context):
    """{file name: content} with which AutoTokenizer gives the very ids of `tokenizer`, BOS in front. Raises UserError.

    context: how many tokens the model takes.
    """
    if not tokenizer.cuts_at_spaces:
        raise UserError(
            "the tokenizer is not plain byte-pair encoding of words (it is of another kind, normalises text, puts no "
            "space in front or has pieces defined by hand); it cannot be exported"
        )
    piece = tokenizer.sp.id_to_piece
    named = {"bos_token": piece(tokenizer.bos_id), "unk_token": piece(tokenizer.sp.unk_id())}
    if tokenizer.eos_id >= 0:
        named |= dict.fromkeys(("eos_token", "pad_token"), piece(tokenizer.eos_id))  # fine-tuning pads its batches
    settings = named | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return {
        "tokenizer.json": fast_tokenizer(tokenizer, **named).to_str(),
        "tokenizer_config.json": json.dumps(settings, indent=2),
        "special_tokens_map.json": json.dumps(named, indent=2),
        "tokenizer.model": tokenizer.model_bytes,
    }


def fast_tokenizer(tokenizer, bos_token, unk_token, **_):
    """The same byte-pair encoding, as Hugging Face's tokenizers library has it."""
    pieces = [tokenizer.sp.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    texts = {i: piece.replace(SPACE, " ") for i, piece in enumerate(pieces) if tokenizer.is_text(i)}
    vocab = {texts.get(i, piece): i for i, piece in enumerate(pieces)}
    best_first = sorted(texts, key=tokenizer.sp.get_score, reverse=True)
    fast = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges([texts[i] for i in best_first]),
            unk_token=unk_token,
            fuse_unk=True,
            byte_fallback=tokenizer.has_bytes,
        )
    )
    before = [] if tokenizer.has_bytes else [normalizers.Replace(SPACE, " ")]
    before.append(normalizers.Prepend(" "))  # in front of a text, as it is in front of any other word
    fast.normalizer = normalizers.Sequence(before)
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    fast.post_processor = processors.TemplateProcessing(
        single=[bos_token, "$A"],
        pair=[bos_token, "$A", bos_token, "$B"],
        special_tokens=[(bos_token, vocab[bos_token])],
    )
    special = [piece for i, piece in enumerate(pieces) if tokenizer.sp.is_control(i) or tokenizer.sp.is_unknown(i)]
    fast.add_special_tokens([tokenizers.AddedToken(piece, normalized=False) for piece in special])
    return fast


def merges(texts):
    """All pairs of pieces that make a piece, those of the first piece first."""
    known = set(texts)
    pairs = []
    for text in texts:
        for cut in range(len(text) - 1, 0, -1):
            if text[:cut] in known and text[cut:] in known:
                pairs.append((text[:cut], text[cut:]))
    return pairs
