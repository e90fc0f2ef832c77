"""Checkpoints: written whole or not at all, self-contained, and safe to open when they come from a stranger.

A checkpoint is one file that needs nothing beside it: model settings, weights, the tokenizer's bytes, and where it came
from. It loads with weights_only=True, so no code in it can run, and everything in it is checked before it is used.
"""
import json
import math
import os
import pickletools
import re
import zipfile
from dataclasses import asdict, dataclass

import torch
from torch.overrides import TorchFunctionMode

from lab.files import UserError, atomic_write, file_sha256
from lab.settings import ModelConfig, model_config
from model import Model, parameter_counts
from tokenizer import Tokenizer

FORMAT, VERSION = "sllama-lab", 1
TENSORS = re.compile(r"torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|collections OrderedDict")     # all that a pickle of tensors calls


@dataclass
class Checkpoint:
    config: ModelConfig
    weights: dict
    tokenizer: Tokenizer
    provenance: dict
    sha256: str
    path: str


def make(config, weights, tokenizer_bytes, provenance):
    """The dictionary that `save` writes; weights: name -> tensor; provenance: plain numbers, texts, lists and dictionaries."""
    return {"format": FORMAT, "version": VERSION, "model": asdict(config), "tokenizer": torch.frombuffer(bytearray(tokenizer_bytes), dtype=torch.uint8),
            "weights": {name: w.detach().to("cpu", copy=True).contiguous() for name, w in weights.items()}, "provenance": provenance}


def save(path, tree):
    atomic_write(path, lambda f: torch.save(tree, f))


def unpack(path):
    """What torch.save wrote, if it is tensors and plain data; else a UserError (without the path). Nothing in the file is executed, and
    what comes out is not much larger than the file. weights_only alone would run bytearray(10**12), or build twenty lists in each other."""
    try:
        size = os.path.getsize(path)
        with zipfile.ZipFile(path) as z:
            if sum(i.file_size for i in z.infolist()) > size:
                raise UserError("it unpacks to more than its size")
            if bad := z.testzip():
                raise UserError(f"damaged, says the checksum of {bad!r}")
            for i in z.infolist():
                if i.filename.lower().endswith(".pkl") and any("GLOBAL" in op.name and not TENSORS.fullmatch(arg or "") for op, arg, _ in pickletools.genops(z.read(i))):
                    raise UserError("it holds more than plain data, which is never executed")
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception:                                                   # torch.load raises nearly anything on a broken file
        raise UserError("damaged, truncated or of another kind") from None
    if not bounded(tree, 10 * size):
        raise UserError("it unfolds to more than its size")
    return tree


def bounded(tree, most):
    """Whether the tree, written out, has at most `most` parts and characters: a pickle holds a part that is used twice only once."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, (dict, list, tuple, str)):
            most -= len(node)
            if most < 0:
                return False
        if isinstance(node, dict):
            todo += node.keys()
            todo += node.values()
        elif isinstance(node, (list, tuple)):
            todo += node
    return True


def read(path):
    """The dictionary in a file written by `save`, or UserError."""
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file; train.py writes checkpoints to out/NAME/ckpt.pt")
    if not os.path.isfile(path):
        raise UserError(f"{path}: not a file; a checkpoint such as {os.path.join(path, 'ckpt.pt')} is expected")
    try:
        tree = unpack(path)
    except UserError as e:
        raise UserError(f"{path}: not a readable checkpoint ({e}); copy or train it again") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this project; export.py --from-hf converts a Hugging Face LLaMA folder")
    if tree.get("version") != VERSION:
        raise UserError(f"{path}: format version {tree.get('version')!r}, this code reads version {VERSION}; update the code")
    return tree


def load(path):
    """A Checkpoint, every part of it checked: settings that can be built, each weight with its shape and finite, a tokenizer
    of the model's size. Raises UserError."""
    tree = read(path)
    try:
        config = model_config(tree.get("model"))
        check_weights(config, tree.get("weights"))
        if not plain_tensor(tree.get("tokenizer")) or tree["tokenizer"].dtype != torch.uint8:
            raise UserError("it has no tokenizer")
        tokenizer = Tokenizer(tree["tokenizer"].numpy().tobytes())
        if tokenizer.vocab_size != config.vocab_size:
            raise UserError(f"its tokenizer has {tokenizer.vocab_size} pieces, its model {config.vocab_size}")
        check_provenance(tree.get("provenance"))
    except UserError as e:
        raise UserError(f"{path}: {''.join(c if c.isprintable() else '?' for c in str(e))[:1000]}") from None     # a stranger's names may hold anything
    return Checkpoint(config, tree["weights"], tokenizer, tree["provenance"], file_sha256(path), str(path))


def check_provenance(p):
    """UserError unless what a checkpoint says of its origin is plain data, with the parts that are looked into as they should be."""
    if not isinstance(p, dict) or not plain(p):
        raise UserError("it does not say in plain data where it came from (provenance)")
    data, settings = p.get("data") or {}, p.get("settings") or {}
    good = isinstance(p.get("corpus", ""), str) and isinstance(data, dict) and isinstance(settings, dict) and isinstance(settings.get("train") or {}, dict)
    sources = (data.get("sources") or []) if good else None
    if not isinstance(sources, list) or not all(isinstance(s, dict) for s in sources) or not isinstance(p.get("words") or 0, (int, float)):
        raise UserError("what it says of where it came from (provenance) is damaged")


def plain(tree):
    """Whether it is made of numbers, texts, lists and dictionaries only."""
    try:
        return json.dumps(tree) is not None
    except (TypeError, ValueError, RecursionError):
        return False


def plain_tensor(w):
    """Whether it is a tensor whose every number is there: a few bytes can pose as gigabytes."""
    return isinstance(w, torch.Tensor) and w.layout == torch.strided and w.device.type == "cpu" and w.numel() * w.element_size() <= w.untyped_storage().nbytes()


class Shapes(TorchFunctionMode):
    """Leaves out a drawing of weights that have only a shape: PyTorch would load its compiler for it, 70 MB and a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return kwargs["tensor"] if function is torch.nn.init.normal_ else function(*args, **(kwargs or {}))


def check_weights(config, weights):
    """UserError unless `weights` are exactly those of a model of this shape, all finite. Builds nothing: a huge declared size costs nothing."""
    if not isinstance(weights, dict) or not all(isinstance(name, str) and isinstance(w, torch.Tensor) for name, w in weights.items()):
        raise UserError("it has no weights")
    for name, w in weights.items():
        if not plain_tensor(w):
            raise UserError(f"weight {name} is not a plain tensor")
    held = sum(w.numel() for w in weights.values())
    declared = sum(parameter_counts(config).values())
    if held != declared:
        raise UserError(f"its settings need {declared:,} weights, it holds {held:,}")
    with torch.device("meta"), Shapes():
        expected = {name: p.shape for name, p in Model(config).named_parameters()}
    if missing := sorted(expected.keys() - weights.keys()):
        raise UserError(f"weight {missing[0]} is missing")
    for name, w in weights.items():
        if name not in expected or w.shape != expected[name] or not w.is_floating_point():
            raise UserError(f"weight {name}: {tuple(w.shape)} {w.dtype} does not fit the settings" + (f", {tuple(expected[name])} does" if name in expected else ""))
        if not math.isfinite(w.float().double().sum().item()):          # in double, finite numbers cannot add up to infinity
            raise UserError(f"weight {name} holds NaN or infinite numbers")


def pick_device(name, setting="--device", local_rank=0):
    """The device called `name`, `auto` for the best there is; UserError naming `setting` if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"{setting} {name}: cannot be used here ({str(e).splitlines()[0]}); try auto") from None


def load_model(path, device="cpu"):
    """(model in float32 and evaluation mode, Checkpoint)"""
    ckpt = load(path)
    model = Model(ckpt.config)
    model.load_state_dict({name: w.float() for name, w in ckpt.weights.items()})
    return model.to(pick_device(str(device))).eval(), ckpt
