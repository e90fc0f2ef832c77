"""The model that comes with the repository is the one that its card describes, and knows some English."""

import os
import pathlib

from lab import checkpoint
from lab.cli import ROOT
from stand_ins import score

import torch

PAIRS = """
The cats are asleep. | The cats is asleep.
She was very happy. | She were very happy.
They were at home. | They was at home.
I have seen him. | I has seen him.
He can see these dogs. | He can see this dogs.
I want to go home. | I want to goes home.
This book is new. | These book is new.
The boy hurt himself. | The boy hurt herself.
She has gone away. | She has went away.
There is a man at the door. | There is every man at the door.
What did you see? | What did you saw?
We do not know him. | We does not know him.
"""


def test_the_model_is_what_its_card_says():
    path = os.path.join(ROOT, "models", "llama-3m.pt")
    model, ckpt = checkpoint.load_model(path)
    card = pathlib.Path(ROOT, "models", "README.md").read_text(encoding="utf-8")
    assert ckpt.sha256 in card and f"{model.num_params():,}" in card
    assert os.path.getsize(path) < 7e6 and {w.dtype for w in ckpt.weights.values()} == {torch.bfloat16}
    sentences = [sentence.strip() for pair in PAIRS.strip().splitlines() for sentence in pair.split("|")]
    good, bad = score(model, sentences, ckpt.tokenizer).reshape(-1, 2).T
    assert (good > bad).sum() >= 10, list(zip(PAIRS.strip().splitlines(), good > bad))
