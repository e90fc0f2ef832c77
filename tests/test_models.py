"""The model that comes with the repository is the one that its card describes, and knows some English."""

import os
import pathlib

from lab import checkpoint
from lab.cli import ROOT
from lab.text import pocket_english
from stand_ins import score

import torch


def test_the_model_is_what_its_card_says():
    path = os.path.join(ROOT, "models", "llama-3m.pt")
    model, ckpt = checkpoint.load_model(path)
    card = pathlib.Path(ROOT, "models", "README.md").read_text(encoding="utf-8")
    assert ckpt.sha256 in card and f"{model.num_params():,}" in card
    assert os.path.getsize(path) < 7e6 and {w.dtype for w in ckpt.weights.values()} == {torch.bfloat16}
    rows = [row for found in pocket_english.pairs(0, 10).values() for row in found]
    good, bad = (score(model, [row[f"sentence_{which}"] for row in rows], ckpt.tokenizer) for which in ("good", "bad"))
    assert (good > bad).mean() > 0.6
