"""What stands beside the weights in a Hugging Face folder: the tokenizer's files and README.md, the model card.

The tokenizer differs from transformers' own conversion of a LLaMA tokenizer in two things which that gets wrong: spaces
are spaces in the vocabulary, not ▁, so that a ▁ in the text falls back to its bytes; and text that looks like a special
piece, "<s>", is text (split_special_tokens), so that no sentence can hold a BOS.
"""

import json
import os

from lab.files import UserError, read_json
from model import parameter_counts
from tokenizer import SPACE

from huggingface_hub import EvalResult, ModelCardData
import jinja2
import tokenizers
from tokenizers import decoders, models, normalizers, processors

# ---------------------------------------------------------------------------------------------------------------------
# The tokenizer


def tokenizer_files(tokenizer, context):
    """{file name: content} with which AutoTokenizer gives the very ids of `tokenizer`, with BOS in front.

    context: how many tokens the model takes. Raises UserError for a tokenizer of another kind.
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
        "tokenizer.json": fast_tokenizer(tokenizer).to_str(),
        "tokenizer_config.json": json.dumps(settings, indent=2),
        "special_tokens_map.json": json.dumps(named, indent=2),
        "tokenizer.model": tokenizer.model_bytes,
    }


def fast_tokenizer(tokenizer):
    """The same byte-pair encoding in Hugging Face's tokenizers library."""
    sp = tokenizer.sp
    pieces = [sp.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    texts = {i: piece.replace(SPACE, " ") for i, piece in enumerate(pieces) if tokenizer.is_text(i)}
    vocab = {texts.get(i, piece): i for i, piece in enumerate(pieces)}
    best_first = [texts[i] for i in sorted(texts, key=sp.get_score, reverse=True)]
    unknown, bos = pieces[sp.unk_id()], pieces[tokenizer.bos_id]
    bpe = models.BPE(vocab, merges(best_first), unk_token=unknown, fuse_unk=True, byte_fallback=tokenizer.has_bytes)
    fast = tokenizers.Tokenizer(bpe)
    before = [] if tokenizer.has_bytes else [normalizers.Replace(SPACE, " ")]
    before.append(normalizers.Prepend(" "))  # in front of a text, as it is in front of any other word
    fast.normalizer = normalizers.Sequence(before)
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    fast.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, tokenizer.bos_id)]
    )
    special = [piece for i, piece in enumerate(pieces) if sp.is_control(i) or sp.is_unknown(i)]
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


# ---------------------------------------------------------------------------------------------------------------------
# The model card, by model_card.md.j2: what the model is, what it has read, how it scored, its limits

PLAIN = {"embedding": "full", "attention": "mha", "mlp": "full", "layer_sharing": "none"}
BABYLM = ("babylm", "babylm-100m")  # sources of text


def read_scores(path, key, command):
    """The dictionary in a JSON file that `command` wrote, known by one of its keys. Raises UserError."""
    scores = read_json(path, f"give what {command} wrote")
    if key not in scores:
        raise UserError(f"{path}: no `{key}` in it; give what {command} wrote")
    return scores


def model_card(ckpt, numbers, name, blimp=None, babylm=None, license="unknown", language=None):
    """The text of README.md. Raises UserError where the scores are another checkpoint's.

    ckpt: a Checkpoint; numbers: how many the exported weights are; blimp: what eval_blimp.py --json wrote; babylm: the
    scores.json of lab.hub.babylm, where `main` is ckpt.pt; language: codes with commas between them, None to go by the
    corpus.
    """
    blimp, babylm, made = blimp or {}, (babylm or {}).get("main", {}), ckpt.provenance
    scored = {blimp.get("sha256", {}).get("checkpoint"), *(result.get("checkpoint") for result in babylm.values())}
    if scored - {None, ckpt.sha256}:
        raise UserError("the scores of --blimp or --babylm are another checkpoint's; score this one")
    languages = ["en"] if made.get("data", {}).get("source") in (*BABYLM, "pocket") else []
    text = {
        "corpus": made.get("corpus", "unknown") + subset_of_corpus(made),
        "languages": language.split(",") if language else languages,
        "tricks": {key: value for key in PLAIN if (value := getattr(ckpt.config, key)) != PLAIN[key]},
        "grammar": benchmark(blimp),
        "license": license,
    }
    folder = jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__)))
    environment = jinja2.Environment(loader=folder, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["shown"] = shown
    return environment.get_template("model_card.md.j2").render(
        metadata=metadata(made, name, blimp, **text).to_yaml(),
        name=name,
        ckpt=ckpt,
        counts=parameter_counts(ckpt.config),
        numbers=numbers,
        blimp=blimp,
        babylm=babylm,
        **text,
    )


def metadata(made, name, blimp, corpus, languages, tricks, grammar, license):
    """The YAML header that the Hub reads."""
    tags = ["llama"]
    if tricks:
        tags.append("sllama")
    if made.get("data", {}).get("source") in BABYLM:
        tags.append("babylm")
    results = []
    for dataset, kind, metric, value in (
        (corpus, "validation", "loss", made.get("val_loss")),
        (corpus, "validation", "bits_per_byte", made.get("val_bits_per_byte")),
        (grammar, "minimal-pairs", "accuracy", blimp.get("accuracy")),
    ):
        if value is not None:
            results.append(EvalResult("text-generation", kind, dataset, metric, value))
    return ModelCardData(
        language=languages or None,
        license=license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
        model_name=name,
        eval_results=results or None,
    )


def shown(value):
    """A cell of a table: 1,234, 0.0003, null, true, or a text."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")


def subset_of_corpus(made):
    settings = made.get("settings", {}).get("data", {})
    limits = [f"data.{key} {shown(settings[key])}" for key in ("sources", "budget_mb") if settings.get(key) is not None]
    return f", a subset ({', '.join(limits)})" if limits else ""


def benchmark(blimp):
    """What eval_blimp.py scored: "BLiMP, a subset"."""
    rule = blimp.get("conventions", {})
    part = blimp.get("incomplete") or rule.get("split", "all") != "all" or rule.get("max_pairs_per_paradigm")
    return blimp.get("benchmark", "minimal pairs") + (", a subset" if part else "")
