"""Checkpoints: written whole or not at all, self-contained, and safe to open when they come from a stranger.

A checkpoint is one file that needs nothing beside it: model settings, weights, the tokenizer's bytes, and where it
came from. It is read with weights_only=True, so nothing in it is executed; its weights are exactly those of its model,
and all of them are finite. There is one boundary, `reading`: whatever else is wrong in a file comes out of it as one
UserError that names the file.
"""

import contextlib
from dataclasses import asdict, dataclass
import os
import shlex
import zipfile

from lab.devices import pick_device
from lab.files import UserError, atomic_write, file_sha256
from lab.settings import model_config
from model import Model, ModelConfig
from tokenizer import Tokenizer

import torch

FORMAT, VERSION = "sllama-lab", 1

# Millions of words seen at which the BabyLM challenge wants a checkpoint; its small tracks end at 100.
BABYLM_WORDS = [*range(1, 10), *range(10, 101, 10), *range(200, 1001, 100)]


@dataclass
class Checkpoint:
    """What a file holds, and which file it is."""

    config: ModelConfig
    weights: dict[str, torch.Tensor]
    tokenizer: Tokenizer
    provenance: dict
    sha256: str
    path: str


def make(config, weights, tokenizer_bytes, provenance):
    """The dictionary that `save` writes; weights: {name: tensor}; provenance: numbers, texts, lists, dictionaries."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": asdict(config),
        "tokenizer": torch.frombuffer(bytearray(tokenizer_bytes), dtype=torch.uint8),
        "weights": {name: w.detach().to("cpu", copy=True).contiguous() for name, w in weights.items()},
        "provenance": provenance,
    }


def save(path, tree):
    atomic_write(path, lambda f: torch.save(tree, f))


@contextlib.contextmanager
def reading(path):
    """The boundary: whatever goes wrong inside with what `path` holds becomes one UserError that names it."""
    try:
        yield
    except UserError as e:
        raise UserError(f"{path}: {' '.join(str(e).split())}") from None
    except (FileNotFoundError, PermissionError) as e:
        ours = "train.py writes checkpoints to out/NAME/ckpt.pt"
        raise UserError(f"{path}: cannot be read ({e.strerror}); {ours}") from None
    except Exception:  # a broken file and what is built from it can raise nearly anything
        raise UserError(
            f"{path}: not a readable checkpoint (damaged, cut short or of another kind); copy or train it again"
        ) from None


def read(path):
    """The dictionary in a file that `save` wrote. Raises UserError."""
    with reading(path):
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        if os.path.isdir(path) or str(path).endswith(".safetensors"):
            raise UserError(
                f"not a checkpoint; give one, such as {os.path.join(folder, 'ckpt.pt')}, or convert a Hugging Face "
                f"folder first: python export.py --from-hf {shlex.quote(str(folder) or '.')} converted.pt"
            )
        with zipfile.ZipFile(path) as z:
            if z.testzip():  # torch.load does not look at the checksums in its own format
                raise ValueError
        tree = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise UserError("not a checkpoint of this project; export.py --from-hf converts Hugging Face folders")
        if tree["version"] != VERSION:
            raise UserError(f"format version {tree['version']}, this code reads version {VERSION}; update the code")
        return tree


def load(path) -> Checkpoint:
    """The Checkpoint in a file. Raises UserError."""
    tree = read(path)
    with reading(path):
        config = model_config(tree["model"])
        check_finite(tree["weights"])
        tokenizer = Tokenizer(tree["tokenizer"].numpy().tobytes())
        if tokenizer.vocab_size != config.vocab_size:
            raise UserError(f"its tokenizer has {tokenizer.vocab_size} pieces, its model {config.vocab_size}")
        return Checkpoint(config, tree["weights"], tokenizer, tree["provenance"], file_sha256(path), str(path))


def load_model(path, device="cpu") -> tuple[Model, Checkpoint]:
    """(model in float32 and evaluation mode, Checkpoint). Raises UserError."""
    ckpt = load(path)
    with reading(path):
        model = build_model(ckpt.config, ckpt.weights)
    return model.to(pick_device(str(device))).eval(), ckpt


def build_model(config, weights):
    """A Model in float32 with these weights. Raises UserError if one is missing, left over or of another shape."""
    model = Model(config)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as e:
        raise UserError(f"its weights do not fit its settings: {e}") from None
    return model


def check_finite(weights):
    """UserError if a weight is NaN or infinite, in float32."""
    for name, w in weights.items():
        if not w.float().isfinite().all():
            raise UserError(f"weight {name} holds NaN or infinite numbers")
