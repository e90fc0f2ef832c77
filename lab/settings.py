"""config.yaml -> typed settings.

One file holds every setting; a preset is a set of overrides; the command line has the last word:

    python train.py --preset llama-26m train.seed=1 model.num_hidden_layers=4

Values are converted by the type each field declares below (PyYAML reads 3e-4 as a string), so a wrong key, type or
range is found before anything starts, and everything that is wrong is reported at once.
"""

import contextlib
import dataclasses
from dataclasses import dataclass
import difflib
import math
import operator
import os
import pathlib
import reprlib
import shlex
import types
import typing
from typing import Literal

from lab.cli import ROOT
from lab.files import UserError, read_text

import yaml

RULES = {"at_least": operator.ge, "at_most": operator.le, "above": operator.gt}


def number(default=dataclasses.MISSING, **limits):
    """A numeric setting and what it is limited by: at_least, at_most, above."""
    return dataclasses.field(default=default, metadata=limits)


@dataclass
class DataConfig:
    name: str
    source: str
    sources: list[str] | None
    budget_mb: float | None = number(above=0)
    validation_kb: float = number(above=0)
    clean: list[str]
    boundary: Literal["line", "document"]
    copies: int = number(at_least=1)
    pocket_words: int = number(at_least=1000)
    seed: int = number(at_least=0, at_most=2**60)


@dataclass
class TokenizerConfig:
    vocab_size: int = number(at_least=260, at_most=65536)
    model: str | None


@dataclass
class TrainConfig:
    out: str | None
    seed: int = number(at_least=0, at_most=2**60)
    device: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    compile: Literal["auto", True, False]
    gradient_checkpointing: bool
    batch_size: int = number(at_least=1)
    gradient_accumulation_steps: int = number(at_least=1)
    max_steps: int | None = number(at_least=1)
    epochs: float | None = number(above=0)
    optimizer: Literal["adamw", "muon"]
    learning_rate: float = number(above=0)
    muon_learning_rate: float = number(above=0)
    min_learning_rate: float = number(at_least=0)
    warmup: float = number(at_least=0)
    schedule: Literal["cosine", "linear", "constant"]
    decay_steps: int | None = number(at_least=1)
    weight_decay: float = number(at_least=0)
    betas: list[float]
    grad_clip: float = number(at_least=0)
    eval_every: int = number(at_least=1)
    eval_windows: int = number(at_least=1)
    save_every: int | None = number(at_least=1)
    checkpoint_words: Literal["none", "babylm"]
    sample_tokens: int = number(at_least=0, at_most=1000)
    resume: str
    deterministic: bool
    # later settings have a default, so that older runs can be continued with their own config.yaml
    mntp: float = number(at_least=0, at_most=1, default=0.0)
    isolate: bool = False
    max_words: float | None = number(above=0, default=None)
    log: Literal["none", "tensorboard", "wandb", "trackio"] = "none"

    def problems(self):
        """What is wrong with the settings together, each as `key: reason`."""
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            yield f"betas: {self.betas} is not two numbers in [0, 1)"
        if not self.max_words and (self.max_steps is None) == (self.epochs is None):
            yield "max_steps: give the length of the run as either max_steps or epochs, and set the other to null"
        if self.min_learning_rate > self.learning_rate:
            yield f"min_learning_rate: {self.min_learning_rate} is above learning_rate {self.learning_rate}"


@dataclass
class EvalConfig:
    data: str
    blimp_every: int | None = number(at_least=1)
    blimp_pairs: int = number(at_least=1)


@dataclass
class Config:
    preset: str
    data: DataConfig
    tokenizer: TokenizerConfig
    model: object  # model.py's ModelConfig
    train: TrainConfig
    eval: EvalConfig

    arguments = ()  # of the command line: no setting, so no field
    notes = ()  # what the user is to know about them

    def command(self, script):
        """`script` with the preset and overrides of this command, ready to be pasted into a shell."""
        return command_line(script, *self.arguments)

    @property
    def data_dir(self):
        return os.path.join("data", self.data.name)

    @property
    def out_dir(self):
        return self.train.out or os.path.join("out", self.preset)


# Settings of before that gained nothing (results/log.md): the value that did nothing, with which a file still loads,
# and the last commit that knows others.
REMOVED = {
    "model": {"hidden_act": ("silu", "b92dfc8"), "qk_norm": (False, "b92dfc8")},
    "train": {"z_loss": (0, "b92dfc8"), "ema": (0, "b92dfc8")},
}
REMOVED_VALUES = {"boundary=sentence": "b92dfc8"}

SECTIONS = {field.name: field.type for field in dataclasses.fields(Config) if field.name != "preset"}


# ----------------------------------------------------------------------------------------------------------------------
# YAML text -> values of the declared types


class Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (PyYAML silently keeps the last)."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for i, (key, _) in enumerate(node.value):
            if key.value in keys[:i]:
                raise yaml.MarkedYAMLError(problem=f"key `{key.value}` is given twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text, where):
    try:
        return yaml.load(text, Loader)
    except Exception as e:  # a bad tag makes PyYAML raise nearly anything
        mark = getattr(e, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{where}: {line}not valid YAML: {getattr(e, 'problem', None) or type(e).__name__}") from None


def convert(value, kind):
    """`value` as the declared type `kind`; ValueError says what was expected.

    >>> convert("3e-4", float), convert(None, int | None), convert("true", bool)
    (0.0003, None, True)
    """
    if isinstance(kind, types.UnionType):  # such as int | None
        return None if value is None else convert(value, typing.get_args(kind)[0])
    if typing.get_origin(kind) is Literal:
        choices = {str(choice).lower(): choice for choice in typing.get_args(kind)}
        if str(value).lower() not in choices:
            raise ValueError("expected one of " + ", ".join(choices))
        return choices[str(value).lower()]
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            raise ValueError("expected a list, such as [a, b]")
        return [convert(item, typing.get_args(kind)[0]) for item in value]
    if kind is bool:
        return convert(value, Literal[True, False])
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            if kind is str:
                return str(value)
            if kind is int and float(value) == int(float(value)):
                return value if isinstance(value, int) else int(float(value))  # a float has no 2**60 + 1
            if kind is float and math.isfinite(float(value)):
                return float(value)
    raise ValueError("expected " + {int: "a whole number", float: "a number", str: "text"}[kind])


# ----------------------------------------------------------------------------------------------------------------------
# Values -> settings, with all complaints together


def nearest(name, known):
    """A hint at known names that look like this one, have these initials (lr) or share a word (heads, n_layers)."""
    known = [str(name) for name in known]
    close = difflib.get_close_matches(str(name), known, 1)
    if not close:
        close = [other for other in known if "".join(word[0] for word in other.split("_")) == str(name)]
    if not close:
        words = [word.rstrip("s") for word in str(name).split("_") if len(word) > 3]
        close = [other for other in known if any(word in other for word in words)]
    if close:
        return "did you mean " + " or ".join(f"`{other}`" for other in close) + "?"
    return f"known: {', '.join(known)}"


def take_out_removed(section, values):
    """Takes what REMOVED lists out of a section's values; returns complaints, of settings that did something."""
    complaints = []
    for key, (off, commit) in REMOVED.get(section, {}).items():
        if values.pop(key, off) != off:
            complaints.append(f"{key}: this setting is gone; {commit} is the last commit that has it")
    return complaints


def build(section, values):
    """(its dataclass or None, complaints): converts and checks the values of one section."""
    cls = section_class(section)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    settings = {}
    complaints = take_out_removed(section, values)
    complaints += [f"{key}: unknown key; {nearest(key, fields)}" for key in values if key not in fields]
    for name, field in fields.items():
        if name in values:
            try:
                settings[name] = value = convert(values[name], field.type)
            except ValueError as e:
                complaint = f"{name}: {reprlib.repr(values[name])[:80]}: {e}"
                if commit := REMOVED_VALUES.get(f"{name}={values[name]}"):
                    complaint += f"; {commit} is the last commit that has this one"
                complaints.append(complaint)
                continue
            for rule, limit in field.metadata.items():
                if value is not None and not RULES[rule](value, limit):
                    complaints.append(f"{name}: {value} must be {rule.replace('_', ' ')} {limit}")
        elif field.default is dataclasses.MISSING:
            complaints.append(f"{name}: missing")
    if complaints:
        return None, complaints
    made = cls(**settings)
    return made, list(made.problems()) if hasattr(made, "problems") else []


def section_class(name):
    if name == "model":
        from model import ModelConfig  # here: it brings PyTorch, a second or two, and prepare.py needs neither

        return ModelConfig
    return SECTIONS[name]


def model_config(values):
    """ModelConfig from a checkpoint's dictionary; UserError if it does not describe a model we can build."""
    config, complaints = build("model", values)
    if complaints:
        raise UserError("bad model settings: " + "; ".join(complaints))
    return config


def read_tree(path):
    """The file as {"preset": name, "presets": {name: {section: {key: value}}}, section: {key: value}, ...}."""
    if path == "config.yaml" and not os.path.exists(path):  # in another folder: the project's own
        path = pathlib.Path(__file__).resolve().parent.parent / path
    tree = parse_yaml(read_text(path, "give another with --config FILE"), path)
    presets = tree.get("presets") if isinstance(tree, dict) else None
    if not isinstance(presets, dict) or not all(isinstance(layer or {}, dict) for layer in presets.values()):
        raise UserError(f"{path}: expected the sections preset, {', '.join(SECTIONS)}, presets")
    return tree


def load_config(preset=None, overrides=(), path="config.yaml", model=True):
    """The settings of `path` under `preset` (default: the one the file names), then `section.key=value` overrides.

    model=False leaves that section as it is, neither converted nor checked.
    Raises UserError listing every unknown key, wrong type, value out of range and impossible combination.
    """
    arguments = ["--preset", preset] if preset else []
    if path != "config.yaml":
        arguments += ["--config", path]
    tree = read_tree(path)
    presets = {str(name): layer or {} for name, layer in tree.pop("presets").items()}
    named = tree.pop("preset", None)
    preset = str(preset or named)
    if preset not in presets:
        raise UserError(f"{path}: preset `{preset}` is unknown; {nearest(preset, presets)}")
    last_word, complaints = tree_of(overrides)

    values = {name: {} for name in SECTIONS}
    for layer in (tree, presets[preset], last_word):
        for name, section in layer.items():
            if name not in SECTIONS:
                complaints.append(f"{name}: unknown key; {nearest(name, SECTIONS)}")
            elif not isinstance(section, dict):
                complaints.append(f"{name}: expected settings below it")
            else:
                values[name].update(section)
    notes = one_length(values["train"], last_word.get("train", {}))

    values["model"].setdefault("vocab_size", values["tokenizer"].get("vocab_size"))  # train.py: the prepared data's
    sections = dict(values)
    for name in SECTIONS:
        if model or name != "model":
            sections[name], found = build(name, values[name])
            complaints += [f"{name}.{complaint}" for complaint in found]
    if len(complaints) == 1:
        raise UserError(f"{path}: {complaints[0]}")
    if complaints:
        raise UserError(f"{path}: {len(complaints)} problems\n" + "\n".join("  - " + line for line in complaints))
    config = Config(preset, **sections)
    config.arguments, config.notes = [*arguments, *overrides], notes
    return config


def tree_of(overrides):
    """({section: {key: value}} of section.key=value words, complaints about other words)."""
    tree, complaints = {}, []
    for item in overrides:
        place, equals, text = item.partition("=")
        section, dot, key = place.partition(".")
        if equals and dot:
            tree.setdefault(section, {})[key] = parse_yaml(text, item)
        else:
            complaints.append(f"`{item}`: expected section.key=value, such as train.seed=1")
    return tree, complaints


def one_length(train, given):
    """Given alone on the command line, train.epochs takes the place of max_steps, and the other way round: a note."""
    for key, other in (("epochs", "max_steps"), ("max_steps", "epochs")):
        if given.get(key) is not None and other not in given and train.get(other) is not None:
            replaced, train[other] = train[other], None
            return [f"train.{key}: {train[key]} takes the place of train.{other}, {replaced}"]
    return []


def command_line(script, *words):
    """One of our commands, quoted for a shell in the current folder: python train.py --preset quick 'data.name=a b'."""
    path = script if os.path.samefile(ROOT, os.curdir) else os.path.join(ROOT, script)
    return shlex.join(["python", path, *words])


def parse_args(parser, argv=None, model=True):
    """Adds --preset, --config, --replace and section.key=value to an argparse parser; returns (args, Config)."""
    parser.add_argument("--preset", help="a preset of config.yaml")
    parser.add_argument("--config", default="config.yaml", help="settings file (default: config.yaml)")
    parser.add_argument("--replace", action="store_true", help="replace what other settings have made")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that override the file's, e.g. train.seed=1"
    )
    args = parser.parse_intermixed_args(argv)
    config = load_config(args.preset, args.overrides, args.config, model)
    if model and os.environ.get("RANK", "0") == "0":  # prepare.py trains nothing; of many processes one speaks
        print("".join(note + "\n" for note in config.notes), end="")
    return args, config
