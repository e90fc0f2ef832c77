"""README.md of an exported folder: Hugging Face's metadata, then what the model is, saw, scored, and cannot do."""

import json

from lab.files import UserError
from model import parameter_counts

import yaml

RUN = (
    "preset",
    "steps",
    "tokens",
    "words",
    "epochs",
    "train_loss",
    "val_loss",
    "val_bits_per_byte",
    "seconds",
    "device",
    "dtype",
)


def read_json(path):
    """The dictionary in a JSON file. Raises UserError."""
    try:
        with open(path, encoding="utf-8") as f:
            tree = json.load(f)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: is not a JSON dictionary; copy it again")
    return tree


def read_scores(path):
    """(accuracy, pairs, {group: (accuracy, pairs)}) of what eval_blimp.py --json wrote. Raises UserError."""
    tree = read_json(path)
    try:
        groups = tree.get("phenomena") or tree.get("paradigms") or {}
        groups = {name: (float(group["accuracy"]), int(group["pairs"])) for name, group in groups.items()}
        return float(tree["accuracy"]), int(tree["pairs"]), groups
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{path}: no accuracy in it; give what eval_blimp.py --json wrote") from None


def read_babylm(path):
    """{task: (accuracy, items)} of the last checkpoint, from the scores.json of lab.hub.babylm. Raises UserError."""
    try:
        tasks = read_json(path)["main"]
        return {task: (float(result["accuracy"]), int(result["items"])) for task, result in tasks.items()}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{path}: no scores in it; give what python -m lab.hub.babylm score wrote") from None


def shown(value):
    if value is None:
        return "unknown"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def table(header, *rows):
    """A Markdown table."""
    lines = [[shown(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def model_card(ckpt, numbers, name, blimp, babylm, license):
    """The text of README.md.

    ckpt: a Checkpoint; numbers: how many the exported weights are; blimp: what `read_scores` gives, or None; babylm:
    what `read_babylm` gives, or None.
    """
    config, made = ckpt.config, ckpt.provenance
    counts = parameter_counts(config)
    tricks = ("embedding", "attention", "mlp", "layer_sharing")
    return CARD.format(
        metadata=yaml.safe_dump(metadata(made, name, blimp, license), sort_keys=False, allow_unicode=True),
        name=name,
        corpus=made.get("corpus", "unknown"),
        c=config,
        kv=config.num_key_value_heads or config.num_attention_heads,
        tricks=", ".join(f"`{key}: {getattr(config, key)}`" for key in tricks),
        total=sum(counts.values()),
        parts=", ".join(f"{part} {count:,}" for part, count in counts.items()),
        numbers=numbers,
        data=data_text(made),
        run=run_table(made),
        scores=scores_table(blimp),
        babylm=babylm_table(babylm),
        license=license,
        sha=ckpt.sha256,
    )


def metadata(made, name, blimp, license):
    """The YAML header that the Hub reads."""
    corpus = made.get("corpus", "unknown")
    results = []
    for dataset, kind, metric, value in (
        (corpus, "validation", "loss", made.get("val_loss")),
        (corpus, "validation", "bits_per_byte", made.get("val_bits_per_byte")),
        ("BLiMP", "blimp", "accuracy", blimp[0] if blimp else None),
    ):
        if value is not None:
            results.append(
                {
                    "task": {"type": "text-generation"},
                    "dataset": {"name": dataset, "type": kind},
                    "metrics": [{"type": metric, "value": value}],
                }
            )
    header = {
        "language": ["en"],
        "license": license,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["babylm", "llama", "sllama"],
    }
    if results:
        header["metrics"] = sorted(result["metrics"][0]["type"] for result in results)
        header["model-index"] = [{"name": name, "results": results}]
    return header


def data_text(made):
    data = made.get("data", {})
    held, seen, sources = data.get("train", {}).get("words"), made.get("words"), data.get("sources")
    parts = []
    if held and seen:
        parts.append(f"{held:,} words, {seen:,} seen in all by the model.")
    if sources:
        rows = [[source.get("name"), source.get("bytes"), source.get("words")] for source in sources]
        parts.append(table(["source", "bytes", "words"], *rows))
    return "\n\n".join(parts) or "What it is made of is not recorded."


def run_table(made):
    rows = [[key, made[key]] for key in RUN if made.get(key) is not None]
    text = table(["", ""], *rows) if rows else "Not recorded."
    train = made.get("settings", {}).get("train", {})
    settings = [[key, value] for key, value in train.items() if key not in ("out", "resume", "device")]
    if settings:
        text += "\n\nSettings:\n\n" + table(["train.", ""], *settings)
    return text


def scores_table(blimp):
    if blimp is None:
        return "Not scored when this was exported."
    accuracy, pairs, groups = blimp
    rows = [[group, f"{100 * share:.2f}", count] for group, (share, count) in groups.items()]
    return (
        f"Strict accuracy (a tie is wrong), mean over paradigms: **{100 * accuracy:.2f} %** of {pairs:,} pairs.\n\n"
        + table(["", "accuracy, %", "pairs"], *rows)
    )


def babylm_table(babylm):
    if babylm is None:
        return ""
    rows = [[task, f"{100 * share:.2f}", items] for task, (share, items) in babylm.items()]
    return "\n\n## BabyLM 2026, zero-shot\nBy the challenge's rules: a coin decides a tie.\n\n" + table(
        ["", "accuracy, %", "items"], *rows
    )


CARD = """---
{metadata}---
# {name}

A small English language model, trained from scratch. Training text: {corpus}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
text = tokenizer("The cat", return_tensors="pt")
out = model.generate(**text, max_length=50, temperature=0.7, do_sample=True)[0]
print(tokenizer.decode(out, skip_special_tokens=True))
```

## Architecture
LLaMA with {c.num_hidden_layers} layers, hidden size {c.hidden_size}, {c.num_attention_heads} query and {kv} key-value
heads, MLP width {c.intermediate_size}, context {c.max_position_embeddings} tokens, vocabulary {c.vocab_size}
(SentencePiece BPE with byte fallback); {tricks}.

**{total:,} parameters** were trained: {parts}. This folder is the same function as a plain LLaMA, with shared and
compressed weights written out: {numbers:,} numbers.

## Data
{data}

## Training
{run}

## BLiMP
{scores}{babylm}

## Limitations
So small a model, of so little text, knows few facts and repeats the biases of its sources; it was not made to follow
instructions or to be safe. Each line (or document) of its training text began with BOS, as `tokenizer(text)` does, and
none ended with EOS: generation stops at max_length.

## Licence
`{license}`. The training texts have licences of their own.

## Citation
- SLlama: Omolaoye, Owoyele and de Melo, EMNLP 2025, doi:10.18653/v1/2025.emnlp-main.1198
- BLiMP: Warstadt, Parrish, Liu, Mohananey, Peng, Wang and Bowman, TACL 8 (2020), doi:10.1162/tacl_a_00321
- BabyLM: Warstadt, Mueller, Choshen et al., CoNLL 2023, doi:10.18653/v1/2023.conll-babylm.1

Written by export.py from the checkpoint with SHA-256 {sha}.
"""
