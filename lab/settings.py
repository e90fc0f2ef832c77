"""config.yaml -> typed settings.

One file holds every setting; a preset is a set of overrides; the command line has the last word:

    python train.py --preset llama-26m train.seed=1 model.num_hidden_layers=4

Values are converted to the type that each field below declares (PyYAML reads 3e-4 as a string), so a wrong key, type
or range is found before anything starts, and everything that is wrong is reported at once.
"""

import contextlib
from dataclasses import MISSING, dataclass, field, fields
import difflib
import math
import operator
import os
import shlex
import types
from typing import Literal, get_args, get_origin

from lab.cli import ROOT
from lab.files import UserError, read_text

import yaml

RULES = {"at_least": operator.ge, "at_most": operator.le, "above": operator.gt}


def number(default=MISSING, **limits):
    """A numeric setting and its limits: at_least, at_most, above."""
    return field(default=default, metadata=limits)


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
    # settings that came later have a default, so that older runs can be continued with their own config.yaml
    isolate: bool = False
    max_words: float | None = number(above=0, default=None)
    log: Literal["none", "tensorboard", "wandb", "trackio"] = "none"

    def problems(self):
        """What is wrong with the settings taken together, each as `key: reason`."""
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

    arguments = ()  # of the command line: not a setting, so not a field

    def command(self, script):
        """`script` with the preset and overrides of this command, ready to be pasted into a shell."""
        return command_line(script, *self.arguments)

    @property
    def data_dir(self):
        return os.path.join("data", self.data.name)

    @property
    def out_dir(self):
        return self.train.out or os.path.join("out", self.preset)


SECTIONS = {f.name: f.type for f in fields(Config) if f.name != "preset"}

# Settings that are gone because they gained nothing (results/log.md), each with the value that switched it off, with
# which files still load, and the last commit that has it.
REMOVED = {
    "hidden_act": ("silu", "b92dfc8"),
    "qk_norm": (False, "b92dfc8"),
    "z_loss": (0, "b92dfc8"),
    "ema": (0, "b92dfc8"),
    "mntp": (0, "822c223"),
}
REMOVED_VALUES = ["sentence"]  # of data.boundary
IN_HISTORY = "{} is the last commit that has it"


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
    except yaml.MarkedYAMLError as e:
        raise UserError(f"{where}: line {e.problem_mark.line + 1}: not valid YAML: {e.problem}") from None
    except Exception as e:  # a bad tag makes PyYAML raise nearly anything
        raise UserError(f"{where}: not valid YAML: {type(e).__name__}") from None


def convert(value, kind):
    """`value` as the declared type `kind`; ValueError says what was expected.

    >>> convert("3e-4", float), convert(None, int | None), convert("true", bool)
    (0.0003, None, True)
    """
    if isinstance(kind, types.UnionType):  # such as int | None
        return None if value is None else convert(value, get_args(kind)[0])
    if get_origin(kind) is list:
        if not isinstance(value, list):
            raise ValueError("expected a list, such as [a, b]")
        return [convert(item, get_args(kind)[0]) for item in value]
    if kind is bool:
        kind = Literal[True, False]
    if get_origin(kind) is Literal:
        choices = {str(choice).lower(): choice for choice in get_args(kind)}
        if str(value).lower() not in choices:
            raise ValueError("expected one of " + ", ".join(choices))
        return choices[str(value).lower()]
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            if kind is str:
                return str(value)
            number = value if isinstance(value, int) else float(value)  # float(2**60 + 1) would be 2**60
            if math.isfinite(number) and (kind is float or number == int(number)):
                return kind(number)
    raise ValueError("expected " + {int: "a whole number", float: "a number", str: "text"}[kind])


# ----------------------------------------------------------------------------------------------------------------------
# Values -> settings, with all complaints together


def nearest(name, known):
    """Suggests known names: one that looks like `name`, or has its initials (lr), or all with its last word (n_heads).

    Lists them all if there is none.
    """
    name, known = str(name), [str(other) for other in known]
    close = difflib.get_close_matches(name, known, 1, cutoff=0.65)
    close = close or [other for other in known if "".join(word[:1] for word in other.split("_")) == name]
    word = name.split("_")[-1].rstrip("s")
    if not close and len(word) > 3:
        close = [other for other in known if word in other]
    if close:
        return "did you mean " + " or ".join(f"`{other}`" for other in close) + "?"
    return f"known: {', '.join(known)}"


def take_out_removed(values):
    """Takes the REMOVED settings out of a section's values; returns complaints about those that did something."""
    gone = [(key, commit) for key, (off, commit) in REMOVED.items() if values.pop(key, off) != off]
    return [f"{key}: this setting is gone; {IN_HISTORY.format(commit)}" for key, commit in gone]


def build(section, values):
    """(its dataclass or None, complaints): converts and checks the values of one section."""
    cls = SECTIONS[section]
    if section == "model":
        from model import ModelConfig as cls  # here: it brings PyTorch, a second or two, and prepare.py does without
    declared = {f.name: f for f in fields(cls)}
    settings = {}
    complaints = take_out_removed(values)
    complaints += [f"{key}: unknown key; {nearest(key, declared)}" for key in values if key not in declared]
    for name, f in declared.items():
        if name in values:
            try:
                settings[name] = value = convert(values[name], f.type)
                for rule, limit in f.metadata.items():
                    if value is not None and not RULES[rule](value, limit):
                        raise ValueError(f"must be {rule.replace('_', ' ')} {limit}")
            except ValueError as e:
                gone = f"; {IN_HISTORY.format('b92dfc8')}" if values[name] in REMOVED_VALUES else ""
                complaints.append(f"{name}: {repr(values[name])[:80]}: {e}{gone}")
        elif f.default is MISSING:
            complaints.append(f"{name}: missing")
    if complaints:
        return None, complaints
    made = cls(**settings)
    return made, list(made.problems()) if hasattr(made, "problems") else []


def model_config(values):
    """ModelConfig from a checkpoint's dictionary; UserError if it does not describe a model we can build."""
    config, complaints = build("model", values)
    if complaints:
        raise UserError("bad model settings: " + "; ".join(complaints))
    return config


def resolve(layers, model=True):
    """({section: its dataclass}, complaints) of layers {section: {key: value}}; later ones override earlier ones.

    model=False leaves the values of that section unchecked.
    """
    values = {name: {} for name in SECTIONS}
    complaints = []
    for layer in layers:
        for name, section in layer.items():
            if name not in SECTIONS:
                complaints.append(f"{name}: unknown key; {nearest(name, SECTIONS)}")
            elif not isinstance(section, dict):
                complaints.append(f"{name}: expected settings below it")
            else:
                values[name].update(section)
    values["model"].setdefault("vocab_size", values["tokenizer"].get("vocab_size"))  # train.py takes the corpus's
    sections = dict(values)
    for name in SECTIONS:
        if model or name != "model":
            sections[name], found = build(name, values[name])
            complaints += [f"{name}.{complaint}" for complaint in found]
    return sections, complaints


# ----------------------------------------------------------------------------------------------------------------------
# File, preset, command line


def read_tree(path):
    """The file as {"preset": name, "presets": {name: {section: {key: value}}}, section: {key: value}, ...}."""
    if path == "config.yaml" and not os.path.exists(path):  # run from another folder: the project's own
        path = os.path.join(ROOT, path)
    tree = parse_yaml(read_text(path, "give another with --config FILE"), path)
    if not isinstance(tree, dict) or not isinstance(tree.get("presets"), dict):
        raise UserError(f"{path}: expected the sections preset, {', '.join(SECTIONS)}, presets")
    return tree


def tree_of(overrides):
    """section.key=value words as {section: {key: value}}."""
    tree = {}
    for item in overrides:
        place, equals, text = item.partition("=")
        section, dot, key = place.partition(".")
        if not equals or not dot:
            raise UserError(f"command line: `{item}`: expected section.key=value, such as train.seed=1")
        tree.setdefault(section, {})[key] = parse_yaml(text, f"command line: {item}")
    length = tree.get("train", {})
    if length.get("epochs") is not None or length.get("max_steps") is not None:  # in place of what the file has
        for key in ("epochs", "max_steps", "max_words"):
            length.setdefault(key, None)
    return tree


def load_config(preset=None, overrides=(), path="config.yaml", model=True) -> Config:
    """The settings of `path` under `preset` (default: the one the file names), then `section.key=value` overrides.

    model=False leaves that section unchecked, a dictionary. Raises UserError listing every unknown key, wrong type,
    value out of range and impossible combination, and whether the file or the command line has it.
    """
    tree = read_tree(path)
    presets = {str(name): layer or {} for name, layer in tree.pop("presets").items()}
    named = tree.pop("preset", None)
    name = str(preset or named)
    if not isinstance(presets.get(name), dict):
        raise UserError(f"{path}: there is no preset `{name}`; {nearest(name, presets)}")
    in_file = [tree, presets[name]]
    sections, complaints = resolve([*in_file, tree_of(overrides)], model)
    if complaints:
        _, of_file = resolve(in_file, model)  # the rest comes from the command line
        lines = [f"{path if line in of_file else 'command line'}: {line}" for line in complaints]
        if len(lines) > 1:
            lines.insert(0, f"{len(lines)} problems")
        raise UserError("\n  - ".join(lines))
    config = Config(name, **sections)
    arguments = ["--preset", preset] if preset else []
    if path != "config.yaml":
        arguments += ["--config", path]
    config.arguments = [*arguments, *overrides]
    return config


def command_line(script, *words):
    """One of our commands, quoted for a shell in the current folder: python train.py --preset quick 'data.name=a b'."""
    path = script if os.path.samefile(ROOT, os.curdir) else os.path.join(ROOT, script)
    return shlex.join(["python", path, *words])


def same_command(args):
    """What continues a run: the same command, without the words that would start it anew or from another folder."""
    gone = ["--replace"] if args.replace else []
    known = ("train.resume=auto", "train.resume=changed")
    gone += [word for word in args.overrides if word.startswith("train.resume=") and word not in known]
    return "the same command without " + " ".join(gone) if gone else "the same command"


def parse_args(parser, argv=None, model=True):
    """Adds --preset, --config, --replace and section.key=value to an argparse parser; returns (args, Config)."""
    parser.add_argument("--preset", help="a preset of config.yaml")
    parser.add_argument("--config", default="config.yaml", help="settings file (default: config.yaml)")
    parser.add_argument("--replace", action="store_true", help="replace what was made with other settings")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that override the file's, e.g. train.seed=1"
    )
    args = parser.parse_intermixed_args(argv)
    return args, load_config(args.preset, args.overrides, args.config, model)
