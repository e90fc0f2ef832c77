"""A SentencePiece model as the tokenizer files of a Hugging Face folder.

`tokenizer_files` writes them itself, without transformers. Two things differ from the usual conversion of a LLaMA
tokenizer, which gets them wrong: spaces are spaces in the vocabulary, not ▁, so a ▁ in the text falls back to its
bytes; and text that looks like a special piece, "<s>", is text (split_special_tokens), so no sentence holds a BOS.
"""

import json

from lab.files import UserError
from lab.hub.model_proto import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, is_plain_bpe, read_model
from tokenizer import SPACE


def tokenizer_files(tokenizer, context):
    """{file name: content} by which AutoTokenizer gives the very ids of `tokenizer`, BOS in front. Raises UserError."""
    try:
        types, trainer, normalizer = read_model(tokenizer.model_bytes)
    except ValueError:
        raise UserError("the tokenizer is not written as SentencePiece writes it; it cannot be exported") from None
    texts = [tokenizer.sp.id_to_piece(i) for i in range(len(types))]
    texts = [text.replace(SPACE, " ") if kind == NORMAL else text for text, kind in zip(texts, types)]
    by_hand = USER_DEFINED in types or UNUSED in types or len(set(texts)) != tokenizer.vocab_size
    if by_hand or not is_plain_bpe(trainer, normalizer):
        raise UserError(
            "the tokenizer is not plain byte-pair encoding (it is of another kind, normalises text or has "
            "pieces defined by hand); it cannot be exported"
        )

    named = {
        "bos_token": tokenizer.bos_id,
        "eos_token": tokenizer.eos_id,
        "unk_token": tokenizer.sp.unk_id(),
        "pad_token": tokenizer.eos_id,
    }  # fine-tuning pads; no text has an EOS
    named = {name: texts[i] for name, i in named.items() if i >= 0}
    special = {i: special_token(texts[i]) for i, kind in enumerate(types) if kind in (UNKNOWN, CONTROL)}
    settings = named | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "added_tokens_decoder": {str(i): token for i, token in special.items()},
    }
    fast = fast_tokenizer(tokenizer, texts, types, special, named, bool(normalizer["add_dummy_prefix"]))
    return {
        "tokenizer.json": json.dumps(fast, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(settings, indent=2),
        "special_tokens_map.json": json.dumps(named, indent=2),
        "tokenizer.model": tokenizer.model_bytes,
    }


def special_token(text):
    return {
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def fast_tokenizer(tokenizer, texts, types, special, named, prefix):
    """The content of tokenizer.json; `prefix`: whether a space is put in front of the text, as in front of any word."""
    vocab = {text: i for i, text in enumerate(texts)}
    normalizers = [] if tokenizer.has_bytes else [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    decoders = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        normalizers.append({"type": "Prepend", "prepend": " "})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})

    bos = named["bos_token"]
    put_bos = {"SpecialToken": {"id": bos, "type_id": 0}}
    text_a, text_b = ({"Sequence": {"id": text, "type_id": 0}} for text in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i} | token for i, token in special.items()],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [put_bos, text_a],
            "pair": [put_bos, text_a, put_bos, text_b],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": named.get("unk_token"),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": tokenizer.has_bytes,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges(tokenizer, texts, types),
        },
    }


def merges(tokenizer, texts, types):
    """[left, right] of all pairs of pieces that make a piece, in SentencePiece's order, the best score first."""
    known = set(texts)
    normal = [i for i, kind in enumerate(types) if kind == NORMAL]
    pairs = []
    for i in sorted(normal, key=lambda i: -tokenizer.sp.get_score(i)):
        for cut in range(len(texts[i]) - 1, 0, -1):
            left, right = texts[i][:cut], texts[i][cut:]
            if left in known and right in known:
                pairs.append([left, right])
    return pairs
