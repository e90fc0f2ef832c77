"""The benchmarks in their smallest form: each runs, and prints and writes what it says."""

import json
import os
import re
import subprocess
import sys

from bench import common, gpu
from bench.experiments import trials
from bench.speed import attention, loss, memory, roofline, throughput
from conftest import ROOT, TINY
from lab.settings import load_config
from model import LinearCrossEntropy, Model, ModelConfig

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
import yaml

SMALL = [
    "--preset",
    "quick",
    "tokenizer.vocab_size=300",
    "model.hidden_size=16",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=24",
    "model.max_position_embeddings=32",
]
PLAIN = dict(embedding="full", attention="mha", mlp="full", layer_sharing="none")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- roofline ---


def test_work_equals_a_hand_computation():
    """h 8, two heads of 4, MLP 12, 20 pieces, 3 layers, windows of 4; 10 tokens a pass, 2 passes a step, bfloat16."""
    c = ModelConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=4,
        **PLAIN,
    )
    P = 2 * 20 * 8 + 3 * (4 * 64 + 3 * 96) + 7 * 8
    work = roofline.work(c, tokens=10, itemsize=2, passes=2)
    flops = {
        "embedding": 0,
        "attention matrices": 6 * 3 * 4 * 64,
        "attention": 6 * 3 * 2 * 8 * (1 + 2 + 3 + 4) / 4,
        "MLP": 6 * 3 * 3 * 96,
        "norms, rope": 12 * 7 * 8 + 6 * 3 * 16,
        "head, loss": 6 * 160,
        "optimiser": 15 * P / 20,
    }
    assert {part: flops for part, (flops, _, _) in work.items()} == pytest.approx(flops)
    assert work["MLP"][1] == pytest.approx(3 * 2 * (5 * 8 + 4 * 12) + 12 * 3 * 288 / 10)
    assert work["optimiser"][1] == pytest.approx(40 * P / 20)
    exponentials = [work[part][2] for part in ("attention", "MLP", "head, loss")]
    assert exponentials == [2 * 3 * 2 * 2.5, 2 * 3 * 12, 20]
    products = ("attention matrices", "attention", "MLP", "head, loss")
    assert roofline.model_flops(c) == sum(flops[part] for part in products)
    assert list(work) == roofline.PARTS


@pytest.mark.parametrize(
    "change",
    [
        {"attention": "pwa"},
        {"attention": "skqa"},
        {"attention": "rra"},
        {"embedding": "linear"},
        {"mlp": "shared_projection"},
        {"num_key_value_heads": 1},
    ],
    ids=str,
)
def test_flops_are_those_that_pytorch_counts(change):
    """Matrix products of a forward and backward pass; attention left out, of which PyTorch counts both halves: one
    operation, or where the keys are shared, before 2.9, batched products."""
    shape = dict(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=8,
    )
    c = ModelConfig(**{**shape, **PLAIN, **change})
    model, ids = Model(c), torch.randint(0, 50, (3, 8))
    with FlopCounterMode(display=False) as counter:
        model(ids, ids).backward()
    counts = counter.get_flop_counts()["Global"]
    counted = sum(n for operation, n in counts.items() if not re.search("attention|bmm", str(operation)))
    work = roofline.work(c, 24)
    expected = 24 * sum(work[part][0] for part in ("embedding", "attention matrices", "MLP", "head, loss"))
    assert counted == pytest.approx(expected, rel=1e-6)


def test_roofline_table(monkeypatch, capsys):
    monkeypatch.setattr(roofline, "LEAST", 0)
    roofline.main([*SMALL, "--batch", "2", "--small", "--dtype", "bfloat16", "--peak", "1e12", "--json", "r.json"])
    out, r = capsys.readouterr().out, json.load(open("r.json"))
    assert all(len(line) <= 100 for line in out.splitlines()) and all(part in out for part in roofline.PARTS)
    assert set(r["parts"]) == set(roofline.PARTS) and len(r["ceilings"]) == 8
    assert r["mfu"] == pytest.approx(r["model_flops"] * r["tokens_per_second"] / 1e12)
    assert all(p["measured"] > 0 and p["least"] > 0 for p in r["parts"].values())
    multiply = {part for part, p in r["parts"].items() if p["bounds"]["products"] > 0}
    assert multiply == {"attention matrices", "attention", "MLP", "head, loss"}  # not the norms, nor AdamW


# --- throughput, attention, loss ---


def test_throughput_beside_transformers(capsys):
    short = ["--batch", "2", "--rounds", "2", "--steps", "1", "--dtype", "float32", "--threads", "1"]
    throughput.main([*SMALL, *short, "--json", "t.json"])
    r = json.load(open("t.json"))
    assert r["largest_loss_difference"] < 1e-5 and r["torch"] == str(torch.__version__)
    assert "transformers LlamaForCausalLM, transformers " in r["peer"]
    out = capsys.readouterr().out
    for key in ("ratio_min_median_max", "processor_ratio_min_median_max"):
        assert r[key] == sorted(r[key]) and r[key][0] > 0 and f"{key}: {r[key]}" in out


NANOGPT = """
from dataclasses import dataclass
import torch

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, ids, targets):
        logits = self.table(ids)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
"""


def test_throughput_beside_nanogpt(capsys):
    """Here beside a stand-in with the interface of its model.py."""
    os.mkdir("nano")
    with open("nano/model.py", "w", encoding="utf-8") as f:
        f.write(NANOGPT)
    throughput.main(
        [
            *SMALL,
            "--batch",
            "2",
            "--rounds",
            "1",
            "--steps",
            "1",
            "--threads",
            "1",
            "--nanogpt",
            "nano",
            "--same-allocator",
        ]
    )
    out = capsys.readouterr().out
    assert "peer: nanoGPT" in out and "our_allocator_for_both: True" in out and "ratio_min_median_max: [" in out


def test_loss_curves_stay_together():
    throughput.main([*SMALL, "--batch", "2", "--curve", "12", "--json", "t.json"])
    r = json.load(open("t.json"))
    assert r["largest_loss_difference_float32"] < 1e-5 < r["largest_loss_difference_bfloat16"] < 0.02
    assert r["last_loss"] < r["first_loss"] and len(r["curves"]["bfloat16"]["peer"]) == 12


def test_attention_and_loss_at_a_small_size(monkeypatch, capsys):
    monkeypatch.setattr(attention, "SHAPES", {"tiny": (2, 2, 8, 4)})
    monkeypatch.setattr(loss, "SHAPES", {"tiny": (300, 8, 50)})
    attention.main()
    loss.main(["--rounds", "1", "--dtype", "float32"])
    out = capsys.readouterr().out
    assert "tiny: 2 x 2 x 8 x 4" in out and "tiny: 300 x 8 x 50" in out
    errors = [float(line.rsplit(" ", 1)[1]) for line in out.splitlines() if "relative error" in line]
    assert errors and max(errors) < 1e-5


# --- memory ---


class Largest(TorchDispatchMode):
    """The most elements that any tensor has which an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return out


def largest(loss, B=8, T=128, V=32000, h=16):
    """Elements of the largest tensor of a forward and backward pass, over those of all logits."""
    torch.manual_seed(0)
    x, w = torch.randn(B * T, h, requires_grad=True), torch.randn(V, h, requires_grad=True)
    targets = torch.randint(0, V, (B * T,))
    with Largest() as seen:
        loss(x, w, targets).backward()
    return seen.elements / (B * T * V)


def test_no_tensor_of_all_logits():
    """In float32 a chunk is 262 tokens of 32,000 pieces, a quarter of the 1,024 here."""
    assert largest(lambda x, w, t: LinearCrossEntropy.apply(x, w, t, 0.0, torch.float32, True)) < 0.3
    assert largest(lambda x, w, t: F.cross_entropy(x @ w.T, t)) == 1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_tensor_of_all_logits_in_a_training_step(checkpointing):
    c = ModelConfig(
        vocab_size=32000,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=128,
    )
    model, ids = Model(c), torch.randint(0, 32000, (8, 128))
    with Largest() as seen:
        model.loss(model.hidden(ids, checkpointing=checkpointing), ids).backward()
    assert seen.elements < 0.3 * ids.numel() * c.vocab_size


def test_the_plain_loss_needs_more_memory():
    """By at least the logits, in two runs of train.py, each in a process of its own."""
    big = [
        "tokenizer.vocab_size=20000",
        "model.hidden_size=16",
        "model.num_hidden_layers=1",
        "model.num_attention_heads=2",
        "model.intermediate_size=16",
        "model.max_position_embeddings=64",
        "train.compile=false",
        "train.device=cpu",
        "train.batch_size=80",
        "train.gradient_accumulation_steps=1",
        "train.max_steps=1",
        "train.eval_windows=1",
        "train.sample_tokens=0",
        "train.dtype=float32",
    ]
    chunked, plain = (memory.measure(loss, ["--preset", "quick", *big]) for loss in ("chunked", "plain"))
    logits_mb = 80 * 64 * 20000 * 4 / 1e6
    assert float(plain["peak_memory_mb"]) - float(chunked["peak_memory_mb"]) > logits_mb, (chunked, plain)
    assert chunked["train_loss"][:5] == plain["train_loss"][:5] and float(chunked["first_step_seconds"]) > 0
    assert "train.btch" in memory.measure("chunked", ["--preset", "quick", "train.btch=1"])["failed"]


def test_memory_table_leaves_out_what_does_not_fit(monkeypatch, capsys):
    """llama-26m: 16 x 512 x 16,000 logits of 25 bytes are 3.3 GB."""
    monkeypatch.setattr(memory, "free_memory", lambda: 3.2e9)
    found = {"seconds": "4.0", "steps": "2", "peak_memory_mb": "1234"}
    monkeypatch.setattr(memory, "measure", lambda loss, arguments: found)
    assert memory.main(["--presets", "llama-26m", "--set", "train.device=cpu", "--json", "m.json"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[3:] for row in rows] == [["1234", "2.0"], ["left", "out:", "about", "3", "GB"]] * 2
    cells = [(cell["checkpointing"], cell["loss"]) for cell in json.load(open("m.json"))]
    assert cells == [(True, "chunked"), (True, "plain"), (False, "chunked"), (False, "plain")]
    assert memory.main(["--presets", "llama-26m", "--batch", "8"]) == 0
    assert "left out" not in capsys.readouterr().out


# --- lists of trials ---


def test_every_trial_has_settings_that_exist():
    for name in ("tuning", "final"):
        for entry in yaml.safe_load((ROOT / f"bench/experiments/{name}.yaml").read_text()):
            load_config(entry["preset"], entry.get("set", []), str(ROOT / "config.yaml"))


def test_a_trial_is_run_scored_and_kept_as_a_row_once(project, capsys):
    pairs = project / "pairs"
    pairs.mkdir()
    lines = [
        json.dumps({"sentence_good": f"The cat saw {i} dogs.", "sentence_bad": f"The cat see {i} dogs."})
        for i in range(20)
    ]
    (pairs / "mine.jsonl").write_text("\n".join(lines) + "\n")
    (project / "list.yaml").write_text(
        "- {name: a, preset: sllama, split: all, set: [train.max_steps=2]}\n"
        "- {name: broken, preset: sllama, set: [train.max_steps=0]}\n"
    )
    command = ["list.yaml", "--blimp", str(pairs), *(s for s in TINY if "max_steps" not in s)]
    trials.main(command)
    good, broken = trials.read("results/list.csv")
    assert good["steps"] == "2" and 0 <= float(good["accuracy"]) <= 1 and not good["failed"]
    assert "max_steps" in broken["failed"] and not broken["accuracy"]
    capsys.readouterr()
    trials.main(command)
    assert "===" not in capsys.readouterr().out


# --- gpu.sh ---


def test_gpu_script_on_a_cpu(tmp_path):
    """The whole way from no data to BLiMP scores of tiny models; the longer stages are left out."""
    quick = {
        "DEVICE": "cpu",
        "QUICK": "1",
        "STAGES": "recipes",
        "BLIMP": "",
        "SECONDS_ALLOWED": "5200",
        "PYTHON": sys.executable,
    }
    done = subprocess.run(
        ["bash", ROOT / "bench/gpu.sh", "gpu.json"], env={**os.environ, **quick}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    r = json.load(open("gpu.json"))
    assert set(r["stages"]["data"]["stand_in"]) == {"babylm-2mb", "babylm-10mb", "babylm-10m"}
    for preset in ("sllama", "llama-26m", "llama-66m"):
        record = r["stages"]["recipes"][preset]
        assert record["status"] == 0 and record["closing_block"]["steps"] == 4 and len(record["losses"]) == 6, record
    assert os.listdir(".") == ["gpu.json"]


def test_gpu_script_records_failures_and_goes_on(tmp_path):
    code = "import sys; print('seen: 3'); sys.exit('broken')"
    failed = gpu.call([sys.executable, "-c", code], 60, 1e9, tmp_path)
    assert failed["status"] == 1 and "broken" in failed["errors"] and gpu.block(failed) == {"seen": 3.0}
    assert gpu.call(["no-such-program"], 60, 1e9, tmp_path)["status"].startswith("cannot be run")
    slow = gpu.call([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"], 6, 1e9, tmp_path)
    assert slow["status"].startswith("stopped") and "begun" in slow["tail"]
    assert gpu.call([sys.executable], 60, 0, tmp_path)["status"] == "no time left"


def test_losses_by_kind_on_a_cpu(project, monkeypatch, capsys):
    short = ["train.max_steps=20", "train.decay_steps=20", "train.eval_every=10", "train.save_every=10"]
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "SHORT", [*TINY, *short])
    gpu.compare_runs()
    r = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(r) == {"float32 again", "bfloat16", "checkpointing", "stopped and continued"}
    assert all(kind["agrees"] for kind in r.values()), r
    assert r["stopped and continued"]["largest_difference"] == 0 < r["bfloat16"]["largest_difference"]


def test_closing_block_and_spread():
    assert common.closing_block("a: 1\nnot a key: 2\nb: x: y\n") == {"a": "1", "b": "x: y"}
    assert common.spread([3, 1, 2]) == "1.00 / 2.00 / 3.00"
    calls = []
    seconds = common.in_turns({"one": lambda: calls.append(1), "two": lambda: calls.append(2)}, rounds=2)
    assert calls == [1, 2] * 3 and [len(times) for times in seconds.values()] == [2, 2]
