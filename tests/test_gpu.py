"""What only a GPU can show; skipped without CUDA."""

import json
import math

from conftest import ROOT, TINY
import eval_blimp
from lab import checkpoint
from lab.score import pairs as blimp_pairs
from lab.score.scorers import Ours
from lab.settings import load_config
from lab.text import pocket_english
from model import Model, ModelConfig, parameter_counts
from stand_ins import load_csv
import tokenizer
import train

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
RUN = [*TINY, "train.device=cuda", "train.compile=false", "train.max_steps=20", "train.decay_steps=20"]


def losses(*options, out):
    assert train.main([*RUN, f"train.out=out/{out}", *options]) == 0
    return [float(row["train_loss"]) for row in load_csv(f"out/{out}/losses.csv") if row["train_loss"]]


def test_precisions_and_switches_follow_one_curve(project):
    base = losses(out="float32")
    assert losses("train.device=cpu", out="cpu") == pytest.approx(base, abs=1e-3)
    for option, tolerance in (
        ("train.dtype=bfloat16", 0.05),
        ("train.dtype=float16", 0.05),
        ("train.gradient_checkpointing=true", 1e-4),
        ("train.compile=true", 1e-3),
    ):
        assert losses(option, out=option) == pytest.approx(base, abs=tolerance), option


def test_float16_overflow_skips_the_step_and_goes_on(project, monkeypatch):
    """From 2^30 the scale has to be halved some ten times before a step is taken; twenty are made."""

    class Big(torch.amp.GradScaler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, init_scale=2.0**30, **kwargs)

    monkeypatch.setattr(torch.amp, "GradScaler", Big)
    found = losses("train.dtype=float16", out="a")
    last = checkpoint.read("out/a/last.pt")["training"]
    assert 0 < last["skipped"] < 19 and last["scaler"]["scale"] < 2.0**30
    assert found[-1] < found[0]  # so steps were taken too


def test_resume_is_exact_in_strict_mode(project):
    for name, options in (("float32", []), ("float16", ["train.dtype=float16"])):
        options = [*options, "train.deterministic=true", "model.dropout=0.1"]
        whole = losses(*options, out=f"{name}-whole")
        losses(*options, "train.max_steps=10", out=f"{name}-parts")
        assert losses(*options, out=f"{name}-parts") == whole
        a, b = (checkpoint.read(f"out/{name}-{which}/last.pt")["weights"] for which in ("whole", "parts"))
        assert all(torch.equal(a[n], b[n]) for n in a)


def test_a_run_moves_between_devices(project):
    whole = losses(out="whole")
    losses("train.max_steps=10", out="parts")
    assert losses("train.device=cpu", out="parts") == pytest.approx(whole, abs=1e-3)


def test_scores_are_those_of_a_cpu(tmp_path):
    """The weights are sharpened, so that scores differ widely; every decision that is not nearly a tie is the same."""
    tok = tokenizer.train([line for line in pocket_english.text(20000, seed=1) if line], 800)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    model = Model(ModelConfig(vocab_size=tok.vocab_size, **shape)).eval()
    for p in model.parameters():
        p.data *= 3 if p.dim() > 1 else 1
    for uid, lines in pocket_english.pairs(0, 40).items():
        (tmp_path / f"{uid}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in lines))
    pairs = blimp_pairs.read_pairs(str(tmp_path))[0]
    scores = [eval_blimp.evaluate(Ours(model.to(device), tok), pairs).scores for device in ("cpu", "cuda")]
    assert np.abs(scores[0] - scores[1]).max() < 1e-3
    margins = [s[:, 0] - s[:, 1] for s in scores]
    assert ((margins[0] > 0) == (margins[1] > 0))[np.abs(margins[0]) > 1e-3].all()


def test_memory_of_66m_parameters(project):
    """llama-66m at 16 x 512 with checkpointing and the chunked loss: under 4 GB in all."""
    config = load_config("llama-66m", path=str(ROOT / "config.yaml"))
    assert sum(parameter_counts(config.model).values()) == 66_331_136
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = Model(config.model).cuda()
    (optimizer,) = train.make_optimizers(model, config.train, torch.device("cuda"))
    ids = torch.randint(0, config.model.vocab_size, (16, 512), device="cuda")
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model.loss(model.hidden(ids, checkpointing=True), ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert math.isfinite(loss.item()) and torch.cuda.max_memory_allocated() < 4e9
