"""What a SentencePiece model file says about itself, read without protobuf.

The package's own sentencepiece_model_pb2 runs with one version of protobuf only.
"""

# Names of the fields in sentencepiece_model.proto that the encoding of a text depends on
MODEL = {1: "piece", 2: "trainer_spec", 3: "normalizer_spec"}
PIECE = {3: "type"}
TRAINER = {3: "model_type", 24: "treat_whitespace_as_suffix"}
NORMALIZER = {2: "precompiled_charsmap", 3: "add_dummy_prefix", 4: "remove_extra_whitespaces", 5: "escape_whitespaces"}

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of a piece
BPE = 2  # a model type


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
            if wire_type == 2:  # bytes, text, another message
                size, at = varint(message, at)
            else:
                size = {1: 8, 5: 4}[wire_type]  # a double, a float
            value = message[at : at + size]
            at += size
        if number in names:
            yield names[number], value


def read_model(model_bytes):
    """(types of the pieces, trainer settings, normalizer settings) of a SentencePiece model, its defaults filled in.

    ValueError: it is not written as SentencePiece writes it.
    """
    types = []
    trainer = {"model_type": 1, "treat_whitespace_as_suffix": 0}
    normalizer = {
        "precompiled_charsmap": b"",
        "add_dummy_prefix": 1,
        "remove_extra_whitespaces": 1,
        "escape_whitespaces": 1,
    }
    try:
        for name, value in fields(model_bytes, MODEL):
            if name == "piece":
                types.append(dict(fields(value, PIECE)).get("type", NORMAL))
            elif name == "trainer_spec":
                trainer.update(fields(value, TRAINER))
            else:
                normalizer.update(fields(value, NORMALIZER))
    except (KeyError, IndexError, TypeError) as e:
        raise ValueError(f"not a SentencePiece model file: {e!r}") from None
    return types, trainer, normalizer


def is_plain_bpe(trainer, normalizer):
    """Whether a model with these settings is byte-pair encoding of the text as it is, with ▁ for a space."""
    return (
        trainer["model_type"] == BPE
        and not trainer["treat_whitespace_as_suffix"]
        and not normalizer["precompiled_charsmap"]
        and not normalizer["remove_extra_whitespaces"]
        and bool(normalizer["escape_whitespaces"])
    )
