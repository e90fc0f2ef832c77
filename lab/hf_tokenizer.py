"""A SentencePiece model as the tokenizer files of a Hugging Face folder.

`tokenizer_files` writes them itself, without transformers. Two things differ from the usual conversion of a LLaMA
tokenizer, which gets them wrong: spaces are spaces in the vocabulary, not ▁, so a ▁ in the text falls back to its
bytes; and text that looks like a special piece, "<s>", is text (split_special_tokens), so no sentence holds a BOS.
"""
import json

from lab.files import UserError
from tokenizer import SPACE

# Names of the fields in sentencepiece_model.proto that a conversion depends on. They are read here, because the
# package's own sentencepiece_model_pb2 runs with one version of protobuf only.
MODEL = {1: "piece", 2: "trainer_spec", 3: "normalizer_spec"}
PIECE = {3: "type"}
TRAINER = {3: "model_type", 24: "treat_whitespace_as_suffix"}
NORMALIZER = {2: "precompiled_charsmap", 3: "add_dummy_prefix", 4: "remove_extra_whitespaces", 5: "escape_whitespaces"}

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6     # types of a piece
BPE = 2                                                                     # a model type


def varint(data, at):
    """(the number written at data[at], where it ends): seven bits a byte, the lowest first; the eighth means go on."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at


def fields(message, names):
    """(name, value) of each field of a protobuf message that `names` {number: name} has; a value is an int or bytes."""
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, at = varint(message, at)
        else:
            if wire_type == 2:                                              # bytes, text, another message
                size, at = varint(message, at)
            else:
                size = {1: 8, 5: 4}[wire_type]                              # a double, a float
            value = message[at:at + size]
            at += size
        if number in names:
            yield names[number], value


def read_model(model_bytes):
    """(types of the pieces, trainer settings, normalizer settings) of a SentencePiece model, its defaults filled in."""
    types = []
    trainer = {"model_type": 1, "treat_whitespace_as_suffix": 0}
    normalizer = {"precompiled_charsmap": b"", "add_dummy_prefix": 1, "remove_extra_whitespaces": 1,
                  "escape_whitespaces": 1}
    for name, value in fields(model_bytes, MODEL):
        if name == "piece":
            types.append(dict(fields(value, PIECE)).get("type", NORMAL))
        elif name == "trainer_spec":
            trainer.update(fields(value, TRAINER))
        else:
            normalizer.update(fields(value, NORMALIZER))
    return types, trainer, normalizer


def tokenizer_files(tokenizer, context):
    """{file name: content} by which AutoTokenizer gives the very ids of `tokenizer`, BOS in front. Raises UserError."""
    try:
        types, trainer, normalizer = read_model(tokenizer.model_bytes)
    except (KeyError, IndexError):
        raise UserError("the tokenizer is not written as SentencePiece writes it; it cannot be exported") from None
    texts = [tokenizer.sp.id_to_piece(i) for i in range(len(types))]
    texts = [text.replace(SPACE, " ") if kind == NORMAL else text for text, kind in zip(texts, types)]
    is_plain_bpe = (
        trainer["model_type"] == BPE
        and not trainer["treat_whitespace_as_suffix"]
        and not normalizer["precompiled_charsmap"]
        and not normalizer["remove_extra_whitespaces"]
        and normalizer["escape_whitespaces"]
        and USER_DEFINED not in types
        and UNUSED not in types
        and len(set(texts)) == tokenizer.vocab_size
    )
    if not is_plain_bpe:
        raise UserError("the tokenizer is not plain byte-pair encoding (it is of another kind, normalises text or has "
                        "pieces defined by hand); it cannot be exported")

    named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "unk_token": tokenizer.sp.unk_id(),
             "pad_token": tokenizer.eos_id}                                 # fine-tuning pads; no text has an EOS
    named = {name: texts[i] for name, i in named.items() if i >= 0}
    special = {i: special_token(texts[i]) for i, kind in enumerate(types) if kind in (UNKNOWN, CONTROL)}
    settings = named | {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "add_eos_token": False,
        "split_special_tokens": True, "clean_up_tokenization_spaces": False, "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "added_tokens_decoder": {str(i): token for i, token in special.items()}}
    fast = fast_tokenizer(tokenizer, texts, types, special, named, bool(normalizer["add_dummy_prefix"]))
    return {
        "tokenizer.json": json.dumps(fast, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(settings, indent=2),
        "special_tokens_map.json": json.dumps(named, indent=2),
        "tokenizer.model": tokenizer.model_bytes,
    }


def special_token(text):
    return {"content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True}


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
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i} | token for i, token in special.items()],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [put_bos, text_a],
            "pair": [put_bos, text_a, put_bos, text_b],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}}},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": named.get("unk_token"), "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": tokenizer.has_bytes, "ignore_merges": False,
            "vocab": vocab, "merges": merges(tokenizer, texts, types)}}


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
