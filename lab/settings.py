"""config.yaml -> typed settings.

One file holds every setting; a preset is a set of overrides; the command line has the last word:

    python train.py --preset llama-26m train.seed=1 model.num_hidden_layers=4

Values are converted by the type each field declares below (PyYAML reads 3e-4 as a string), so a wrong key, type or
range is found before anything starts, and everything that is wrong is reported at once.
"""
import dataclasses
import difflib
import os
import types
import typing
from dataclasses import dataclass, field
from typing import Literal

import yaml

from lab.files import UserError


def setting(low=None, high=None, above=None, default=dataclasses.MISSING):
    """A number with its allowed range: low <= x <= high, x > above."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


@dataclass
class DataConfig:
    name: str
    source: str
    sources: list[str] | None
    budget_mb: float | None = setting(above=0)
    validation_kb: float = setting(above=0)
    clean: list[str]
    boundary: Literal["line", "sentence", "document"]
    pocket_words: int = setting(1000)
    seed: int = setting(0, 2**60)


@dataclass
class TokenizerConfig:
    vocab_size: int = setting(260, 65536)
    model: str | None


@dataclass
class ModelConfig:
    """Shape and tricks of a model; Hugging Face's names, plus the SLlama ones. The defaults here are a plain LLaMA's."""
    vocab_size: int = setting(2, 2**20)
    hidden_size: int = setting(1, 2**16)
    num_hidden_layers: int = setting(1, 1024)
    num_attention_heads: int = setting(1, 1024)
    intermediate_size: int = setting(1, 2**18)
    num_key_value_heads: int | None = setting(1, 1024, default=None)
    max_position_embeddings: int = setting(2, 2**17, default=256)
    rms_norm_eps: float = setting(above=0, high=0.1, default=1e-6)
    rope_theta: float = setting(above=0, default=10000.0)
    tie_word_embeddings: bool = False
    embedding: Literal["full", "repeat", "linear", "attention"] = "full"
    embedding_factor: int = setting(1, 1024, default=4)
    attention: str = "mha"                                              # a name in model.py's ATTENTION
    mlp: Literal["full", "shared_projection"] = "full"
    layer_sharing: Literal["none", "share", "reuse"] = "none"
    num_groups: int = setting(1, 1024, default=1)
    hidden_act: Literal["silu", "relu2"] = "silu"
    qk_norm: bool = False
    dropout: float = setting(0, 0.9, default=0.0)

    def problems(self):
        """What cannot be built, each as `key: reason`."""
        h, heads, kv, out = self.hidden_size, self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads, []
        if h % heads:
            out.append(f"num_attention_heads: {heads} does not divide hidden_size {h}")
        elif (h // heads) % 2:
            out.append(f"num_attention_heads: hidden_size/heads = {h // heads} must be even, RoPE turns pairs of numbers")
        elif self.max_position_embeddings * (h // heads) > 2**25:
            out.append(f"max_position_embeddings: {self.max_position_embeddings} positions x {h // heads} numbers of a head are more than 2^25")
        if heads % kv:
            out.append(f"num_key_value_heads: {kv} does not divide num_attention_heads {heads}")
        if kv != heads and self.attention == "skqa":
            out.append("num_key_value_heads: attention `skqa` uses one matrix for queries and keys, so it needs as many key as query heads")
        if self.embedding != "full" and h % self.embedding_factor:
            out.append(f"embedding_factor: {self.embedding_factor} does not divide hidden_size {h}")
        if self.embedding != "full" and self.tie_word_embeddings:
            out.append(f"tie_word_embeddings: the head is vocab x hidden_size, the table of embedding `{self.embedding}` is narrower; set false")
        if self.attention == "rra" and (h // heads * kv) % 4:
            out.append(f"attention: `rra` repeats a quarter of the width four times, and {h // heads * kv} is not a multiple of 4")
        if self.layer_sharing == "share" and self.num_groups > self.num_hidden_layers:
            out.append(f"num_groups: {self.num_groups} groups for {self.num_hidden_layers} layers")
        if self.layer_sharing == "reuse" and self.num_hidden_layers % 2:
            out.append(f"layer_sharing: `reuse` runs each of L/2 layers twice, so num_hidden_layers {self.num_hidden_layers} must be even")
        return out


@dataclass
class TrainConfig:
    out: str | None
    seed: int = setting(0, 2**60)
    device: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    compile: Literal["auto", True, False]
    gradient_checkpointing: bool
    batch_size: int = setting(1)
    gradient_accumulation_steps: int = setting(1)
    max_steps: int | None = setting(1)
    epochs: float | None = setting(above=0)
    optimizer: Literal["adamw", "muon"]
    learning_rate: float = setting(above=0)
    muon_learning_rate: float = setting(above=0)
    min_learning_rate: float = setting(0)
    warmup: float = setting(0)
    schedule: Literal["cosine", "linear", "constant"]
    decay_steps: int | None = setting(1)
    weight_decay: float = setting(0)
    betas: list[float]
    grad_clip: float = setting(0)
    z_loss: float = setting(0)
    ema: float = setting(0, 0.99999)
    eval_every: int = setting(1)
    eval_windows: int = setting(1)
    save_every: int = setting(1)
    checkpoint_words: Literal["none", "babylm"]
    sample_tokens: int = setting(0, 1000)
    resume: str
    deterministic: bool
    masked: float = setting(0, 1, default=0.0)
    log: Literal["none", "tensorboard", "wandb"] = "none"               # a default: runs from before it can be continued with their own config.yaml

    def problems(self):
        out = []
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            out.append(f"betas: {self.betas} is not two numbers in [0, 1)")
        if (self.max_steps is None) == (self.epochs is None):
            out.append("max_steps: give the length of the run as either max_steps or epochs, and set the other to null")
        if self.min_learning_rate > self.learning_rate:
            out.append(f"min_learning_rate: {self.min_learning_rate} is above learning_rate {self.learning_rate}")
        return out


@dataclass
class EvalConfig:
    data: str
    blimp_every: int | None = setting(1)
    blimp_pairs: int = setting(1)


@dataclass
class Config:
    preset: str
    data: DataConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    train: TrainConfig
    eval: EvalConfig

    @property
    def data_dir(self):
        return os.path.join("data", self.data.name)

    @property
    def out_dir(self):
        return self.train.out or os.path.join("out", self.preset)


SECTIONS = {f.name: f.type for f in dataclasses.fields(Config) if f.name != "preset"}


class Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (PyYAML silently keeps the last)."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise UserError(f"line {key.start_mark.line + 1}: key `{key.value}` is given twice; keep one")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def parse_yaml(text, where):
    try:
        return yaml.load(text, Loader)
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
    except Exception as e:                                              # a bad tag, `!!int ''`, makes PyYAML raise nearly anything
        problem = getattr(e, "problem", None) or str(e).split("\n")[0] or type(e).__name__
        mark = getattr(e, "problem_mark", None)
        raise UserError(f"{where}: " + (f"line {mark.line + 1}: " if mark else "") + f"not valid YAML: {problem}") from None


def convert(value, kind):
    """`value` as the declared type `kind`; ValueError says what was expected.

    >>> convert("3e-4", float), convert(None, int | None), convert("true", bool)
    (0.0003, None, True)
    """
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        for choice in choices:
            if not isinstance(value, (list, dict)) and str(value).lower() == str(choice).lower():
                return choice
        raise ValueError("expected one of " + ", ".join(str(c).lower() if isinstance(c, bool) else str(c) for c in choices))
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            raise ValueError("expected a list, such as [a, b]")
        return [convert(v, typing.get_args(kind)[0]) for v in value]
    if kind is bool and isinstance(value, (bool, str)) and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if kind is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    if kind in (int, float) and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
            if kind is int and number == int(number):
                return int(value) if isinstance(value, (int, str)) and str(value).lstrip("+-").isdigit() else int(number)
            if kind is float and abs(number) != float("inf") and number == number:
                return number
        except (ValueError, OverflowError):
            pass
    raise ValueError({int: "expected a whole number", float: "expected a number", bool: "expected true or false", str: "expected text"}[kind])


def out_of_range(value, meta):
    """What the range in a field's metadata says against `value`, or None."""
    if value is None or not meta:
        return None
    if meta["low"] is not None and value < meta["low"]:
        return f"must be at least {meta['low']}"
    if meta["above"] is not None and value <= meta["above"]:
        return f"must be above {meta['above']}"
    if meta["high"] is not None and value > meta["high"]:
        return f"must be at most {meta['high']}"
    return None


def unknown(key, known):
    near = difflib.get_close_matches(str(key), known, 1)
    return f"{key}: unknown key" + (f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(known)}")


def build(cls, values, where=""):
    """(cls(**values) or None, problems): convert and check one section."""
    problems, out = [], {}
    fields = {f.name: f for f in dataclasses.fields(cls)}
    problems += [where + unknown(key, list(fields)) for key in values if key not in fields]
    for name, f in fields.items():
        if name not in values:
            if f.default is dataclasses.MISSING:
                problems.append(f"{where}{name}: missing")
            continue
        try:
            out[name] = convert(values[name], f.type)
        except ValueError as e:
            value = values[name]
            nested = isinstance(value, dict) or isinstance(value, list) and any(isinstance(v, (list, dict)) for v in value)     # YAML's aliases can make one endless
            problems.append(f"{where}{name}: {'nested values' if nested else repr(value)}: {e}")
            continue
        if reason := out_of_range(out[name], f.metadata):
            problems.append(f"{where}{name}: {values[name]!r} {reason}")
    if problems:
        return None, problems
    section = cls(**out)
    return section, [where + p for p in section.problems()] if hasattr(section, "problems") else []


def model_config(values):
    """ModelConfig from a checkpoint's dictionary; UserError if it does not describe a model we can build."""
    config, problems = build(ModelConfig, values) if isinstance(values, dict) else (None, ["not a dictionary"])
    if problems:
        raise UserError("bad model settings: " + "; ".join(problems))
    return config


def load_config(preset=None, overrides=(), path="config.yaml"):
    """The settings of `path` under `preset` (default: the one the file names), then `section.key=value` overrides.

    Raises UserError listing every unknown key, wrong type, value out of range and impossible combination.
    """
    if path == "config.yaml" and not os.path.exists(path):              # outside the project's folder: the project's own
        path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), path)
    try:
        with open(path, encoding="utf-8") as f:
            tree = parse_yaml(f.read(), path)
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or 'not UTF-8 text'}); give another with --config FILE") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected the sections preset, {', '.join(SECTIONS)}, presets")
    presets = tree.pop("presets", None) or {}
    named = tree.pop("preset", None)
    preset = preset or named
    if not isinstance(presets, dict) or not all(isinstance(name, str) and isinstance(layer or {}, dict) for name, layer in presets.items()):
        raise UserError(f"{path}: presets: expected names with sections below them")
    if isinstance(preset, (list, dict)):
        raise UserError(f"{path}: preset: expected the name of one")
    if preset not in presets:
        near = difflib.get_close_matches(str(preset), list(presets), 1)
        raise UserError(f"{path}: preset `{preset}` is unknown; " + (f"did you mean `{near[0]}`? " if near else "") + f"known: {', '.join(presets)}")

    problems, values = [], {name: {} for name in SECTIONS}
    for layer, where in ((tree, ""), (presets[preset], f"presets.{preset}.")):
        for name, section in (layer or {}).items():
            if name not in SECTIONS:
                problems.append(where + unknown(name, list(SECTIONS)))
            elif not isinstance(section, dict):
                problems.append(f"{where}{name}: expected settings below it")
            else:
                values[name].update(section)
    for item in overrides:
        key, equals, text = item.partition("=")
        name, dot, sub = key.partition(".")
        if not equals or not dot or name not in SECTIONS:
            near = difflib.get_close_matches(name, list(SECTIONS), 1)
            hint = f"; did you mean `{near[0]}`?" if near and name not in SECTIONS else ""
            problems.append(f"`{item}`: expected section.key=value with section one of {', '.join(SECTIONS)}{hint}")
        else:
            values[name][sub] = parse_yaml(text, item)

    sections = {}
    values["model"].setdefault("vocab_size", values["tokenizer"].get("vocab_size"))   # prepare.py's tokenizer may have another: train.py sets it
    for name, cls in SECTIONS.items():
        sections[name], found = build(cls, values[name], name + ".")
        problems += found
    if problems:
        raise UserError(f"{path}: {problems[0]}" if len(problems) == 1 else f"{path}: {len(problems)} problems\n" + "\n".join("  - " + p for p in problems))
    return Config(preset, **sections)


def parse_args(parser, argv=None):
    """Adds --preset, --config and section.key=value to an argparse parser; returns (args, Config)."""
    parser.add_argument("--preset", help="a preset of config.yaml")
    parser.add_argument("--config", default="config.yaml", help="settings file (default: config.yaml)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file's, e.g. train.seed=1")
    args = parser.parse_intermixed_args(argv)
    return args, load_config(args.preset, args.overrides, args.config)
