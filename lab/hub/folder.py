"""What stands beside the weights in a Hugging Face folder."""

import json
import os

from lab.files import UserError, read_json
from model import parameter_counts
from tokenizer import SPACE

import jinja2
import tokenizers
from tokenizers import decoders, models, normalizers, processors
import yaml


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


PLAIN = {"embedding": "full", "attention": "mha", "mlp": "full", "layer_sharing": "none"}
RUN = """preset steps tokens words epochs train_loss val_loss val_bits_per_byte seconds device dtype""".split()


def read_blimp(path):
    """What eval_blimp.py --json wrote. Raises UserError."""
    tree = read_json(path, required=True)
    if "accuracy" not in tree or "pairs" not in tree:
        raise UserError(f"{path}: no accuracy in it; give what eval_blimp.py --json wrote")
    return tree


def read_babylm(path):
    """{task: {"accuracy", "items", "checkpoint", ...}} of ckpt.pt in lab.hub.babylm's scores.json. Raises UserError."""
    tree = read_json(path, required=True)
    if "main" not in tree:
        raise UserError(f"{path}: no scores in it; give what python -m lab.hub.babylm score wrote")
    return tree["main"]


def model_card(ckpt, numbers, name, blimp=None, babylm=None, license="unknown", language=None):
    """The text of README.md. Raises UserError where the scores are another checkpoint's.

    ckpt: a Checkpoint; numbers: how many the exported weights are; blimp: of `read_blimp`; babylm: of `read_babylm`;
    language: codes with commas between, None where the corpus is to say.
    """
    blimp, babylm, made = blimp or {}, babylm or {}, ckpt.provenance
    scored = {blimp.get("sha256", {}).get("checkpoint"), *(result.get("checkpoint") for result in babylm.values())}
    if scored - {None, ckpt.sha256}:
        raise UserError("the scores of --blimp or --babylm are another checkpoint's; score this one")
    text = {
        "corpus": made.get("corpus", "unknown") + subset_of_corpus(made),
        "languages": language.split(",") if language else languages(made),
        "tricks": {key: value for key in PLAIN if (value := getattr(ckpt.config, key)) != PLAIN[key]},
        "grammar": benchmark(blimp) if blimp else None,
    }
    folder = jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__)))
    environment = jinja2.Environment(loader=folder, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["shown"] = shown
    return environment.get_template("model_card.md.j2").render(
        metadata=yaml.safe_dump(metadata(made, name, blimp, license, **text), sort_keys=False, allow_unicode=True),
        name=name,
        c=ckpt.config,
        has_bytes=ckpt.tokenizer.has_bytes,
        counts=parameter_counts(ckpt.config),
        numbers=numbers,
        made=made,
        data=made.get("data", {}),
        run={key: made[key] for key in RUN if key in made},
        settings=made.get("settings", {}).get("train", {}),
        blimp=blimp,
        babylm=babylm,
        license=license,
        sha256=ckpt.sha256,
        **text,
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


def languages(made):
    """Those of the texts whose language we know, or none."""
    source = made.get("data", {}).get("source")
    return ["en"] if source in ("babylm", "babylm-100m", "pocket") else []


def benchmark(blimp):
    """What eval_blimp.py scored: "BLiMP, a subset"."""
    rule = blimp.get("conventions", {})
    part = blimp.get("incomplete") or rule.get("split", "all") != "all" or rule.get("max_pairs_per_paradigm")
    return blimp.get("benchmark", "minimal pairs") + (", a subset" if part else "")


def metadata(made, name, blimp, license, corpus, languages, tricks, grammar):
    """The YAML header that the Hub reads."""
    header = {"language": languages} if languages else {}
    header |= {"license": license, "library_name": "transformers", "pipeline_tag": "text-generation"}
    header["tags"] = ["llama"]
    if tricks:
        header["tags"].append("sllama")
    if made.get("data", {}).get("source") in ("babylm", "babylm-100m"):
        header["tags"].append("babylm")
    results = []
    for dataset, kind, metric, value in (
        (corpus, "validation", "loss", made.get("val_loss")),
        (corpus, "validation", "bits_per_byte", made.get("val_bits_per_byte")),
        (grammar, "minimal-pairs", "accuracy", blimp.get("accuracy")),
    ):
        if value is not None:
            what, number = {"name": dataset, "type": kind}, {"type": metric, "value": value}
            results.append({"task": {"type": "text-generation"}, "dataset": what, "metrics": [number]})
    if results:
        header["metrics"] = sorted(result["metrics"][0]["type"] for result in results)
        header["model-index"] = [{"name": name, "results": results}]
    return header
