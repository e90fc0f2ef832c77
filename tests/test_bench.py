"""The benchmarks in their smallest form: each runs, and prints and writes what it says."""

import json
import os
import re
import subprocess
import sys

from bench import common, gpu
from bench.experiments import figures, trials
from bench.speed import evaluators, step, threads, throughput
from conftest import ROOT, TINY
from lab.settings import load_config
from model import Model, ModelConfig

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
import yaml

SMALL = """
--preset quick tokenizer.vocab_size=300 model.hidden_size=16 model.num_hidden_layers=2 model.num_attention_heads=2
model.intermediate_size=24 model.max_position_embeddings=32 train.batch_size=2 train.gradient_accumulation_steps=2
train.device=cpu train.compile=false train.dtype=float32""".split()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- a training step, alone and beside a peer


@pytest.mark.parametrize(
    "change",
    [
        {"attention": "mha"},
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
    """Of the matrix products, forward and backward. Of attention PyTorch counts both halves, we the causal one: of
    eight tokens, each attends to 4.5 on average."""
    c = ModelConfig(50, 32, 2, 2, 24, max_position_embeddings=8, **change)
    flops = step.model_flops(c)
    assert flops.pop("attention") == 12 * 2 * 32 * 4.5
    model, ids = Model(c), torch.randint(0, 50, (3, 8))
    with FlopCounterMode(display=False) as counter:
        model(ids, ids).backward()
    counts = counter.get_flop_counts()["Global"]
    counted = sum(n for operation, n in counts.items() if not re.search("attention|bmm", str(operation)))
    assert counted == pytest.approx(24 * sum(flops.values()), rel=1e-6)


def test_a_step_is_measured(capsys):
    step.main([*SMALL, "--steps", "3"])
    figures = common.closing_block(capsys.readouterr().out)
    names = ("tokens_per_second", "model_flops_per_token", "peak_flops", "mfu")
    rate, flops, peak, mfu = (float(figures[name]) for name in names)
    assert mfu == pytest.approx(rate * flops / peak, abs=1e-4) and figures["device"].startswith("cpu")


def test_all_logits_at_once_need_more_memory():
    """By at least their size, in two processes; the loss is the same."""
    big = ["tokenizer.vocab_size=20000", "train.batch_size=160", "train.gradient_accumulation_steps=1"]
    found = {}
    for loss in ("ours", "plain"):
        command = common.module("bench.speed.step", "--loss", loss, "--steps", "2", *SMALL, *big)
        done = subprocess.run(command, env=common.ENVIRONMENT, capture_output=True, text=True)
        found[loss] = common.closing_block(done.stdout)
    more = float(found["plain"]["peak_memory_mb"]) - float(found["ours"]["peak_memory_mb"])
    assert more > 160 * 32 * 20000 * 4 / 1e6, found
    assert float(found["ours"]["loss"]) == pytest.approx(float(found["plain"]["loss"]), abs=1e-5)


class Largest(TorchDispatchMode):
    """The most elements that any tensor has which an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return out


def test_no_tensor_of_all_logits():
    """In float32 a chunk is 262 tokens of 32,000 pieces, a quarter of the 1,024 here."""
    model, ids = Model(ModelConfig(32000, 16, 1, 2, 16, max_position_embeddings=128)), torch.zeros(8, 128).long()
    with Largest() as seen:
        model(ids, ids).backward()
    assert seen.elements < 0.3 * ids.numel() * 32000
    with Largest() as seen:
        step.plain_loss(model, model.hidden(ids), ids).backward()
    assert seen.elements == ids.numel() * 32000


def test_throughput_beside_transformers(capsys):
    """From the same weights the losses stay together; the ratio is theirs over ours."""
    throughput.main([*SMALL, *"--batch 2 --rounds 2 --steps 1 --dtype float32 --threads 1 --same-allocator".split()])
    r = common.closing_block(capsys.readouterr().out)
    assert float(r["largest_loss_difference"]) < 1e-5 and "transformers LlamaForCausalLM, transformers " in r["peer"]
    least, median, most = map(float, r["times_as_fast"].split(" / "))
    assert 0 < least <= median <= most


@pytest.mark.parametrize("spins, expected", [("default", None), ("passive", None), ("300", "300")])
def test_threads_wait_as_they_are_told(spins, expected):
    """What lab/cli.py sets does not come in between."""
    look = "import os, lab.cli; print(os.environ.get('GOMP_SPINCOUNT'))"
    command = [sys.executable, "-c", look]
    done = subprocess.run(command, env=threads.environment(spins), cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(expected), done.stderr


def test_threads_alone_and_beside_busy_processes(capsys):
    short = "--presets quick --spins 2000 --rounds 1 --threads 1 --seconds 0.1".split()
    threads.main([*short, *SMALL[2:]])
    rates = r"[1-9][\d,]* \([\d,]+ - [\d,]+\)"
    assert re.search(rf"^\| `quick` \| 2000 \| {rates} \| {rates} \|$", capsys.readouterr().out, re.M)


def test_choices_of_every_kind_of_file():
    with open("theirs.json", "w") as f:
        json.dump({"a": {"predictions": [{"id": "a_0", "pred": "x"}, {"id": "a_1", "pred": "y"}]}, "b": ["z"]}, f)
    assert evaluators.choices("theirs.json") == {("a", 0): "x", ("a", 1): "y", ("b", 0): "z"}


# --- lists of trials, figures


def test_every_trial_has_settings_that_exist():
    for name in ("tuning", "final"):
        for entry in yaml.safe_load((ROOT / f"bench/experiments/{name}.yaml").read_text()):
            load_config(entry["preset"], entry.get("set", []), str(ROOT / "config.yaml"))


def test_a_trial_is_run_scored_and_kept_as_a_row_once(project, capsys):
    pair = {"sentence_good": "The cat saw two dogs.", "sentence_bad": "The cat see two dogs."}
    (project / "mine.jsonl").write_text(20 * (json.dumps(pair) + "\n"))
    (project / "list.yaml").write_text(
        "- {name: a, preset: sllama, split: all, set: [train.max_steps=2]}\n"
        "- {name: broken, preset: sllama, set: [train.max_steps=0]}\n"
    )
    command = ["list.yaml", "--blimp", "mine.jsonl", *(setting for setting in TINY if "max_steps" not in setting)]
    trials.main(command)
    good, broken = trials.read("results/list.csv")
    assert good["steps"] == "2" and 0 <= float(good["accuracy"]) <= 1 and not good["failed"]
    assert "max_steps" in broken["failed"] and not broken["accuracy"]
    capsys.readouterr()
    trials.main(command)
    assert "===" not in capsys.readouterr().out


def test_figures_show_presets_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = figures.ours()
    assert {"10m-words-3m", "2mb-3m", "sllama"} <= found.keys() and not any("tuned" in name for name in found)
    assert figures.text_of(found["sllama"][0]) == "10 M words"
    written = {}
    monkeypatch.setattr(figures, "atomic_write", written.__setitem__)
    figures.main()
    assert all(len(png) > 10_000 for png in written.values()) and len(written) == 2


# --- gpu.sh


def test_gpu_script_on_a_cpu():
    """The whole way from no data to BLiMP scores of tiny models; the longer stages are left out."""
    quick = dict(
        DEVICE="cpu",
        QUICK="1",
        STAGES="sllama compiling cards",
        BLIMP="",
        SECONDS_ALLOWED="5200",
        PYTHON=sys.executable,
    )
    command = ["bash", ROOT / "bench/gpu.sh", "gpu.json"]
    done = subprocess.run(command, env={**os.environ, **quick}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    r = json.load(open("gpu.json"))
    assert set(r["stages"]["data"]["stand_in"]) == {"babylm-2mb", "babylm-10mb", "babylm-10m"}
    for stage, preset in (("sllama", "sllama"), ("cards", "llama-26m"), ("cards", "llama-66m")):
        record, scored = r["stages"][stage][preset], r["stages"][stage][f"{preset}, scored"]
        assert record["status"] == 0 and record["closing_block"]["steps"] == 4 and len(record["losses"]) == 6, record
        assert scored["status"] == 0 and scored["closing_block"]["pairs"] > 0, scored
    assert r["stages"]["compiling"]["sllama, train.compile=false"]["tokens_per_second"] > 0
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
    short = "train.max_steps=20 train.decay_steps=20 train.eval_every=10 train.save_every=10".split()
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "SHORT", [*TINY, *short])
    gpu.compare_runs()
    r = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(r) == {"float32 again", "bfloat16", "checkpointing", "stopped and continued"}
    assert all(kind["agrees"] for kind in r.values()), r
    assert r["stopped and continued"]["largest_difference"] == 0 < r["bfloat16"]["largest_difference"]


def test_closing_block_and_turns():
    assert common.closing_block("a: 1\nnot a key: 2\nb: x: y\n") == {"a": "1", "b": "x: y"}
    assert common.spread([3, 1, 2]) == "1.00 / 2.00 / 3.00"
    calls = []
    seconds = common.in_turns({"one": lambda: calls.append(1), "two": lambda: calls.append(2)}, rounds=2)
    assert calls == [1, 2, 2, 1, 1, 2] and [len(times) for times in seconds.values()] == [2, 2]
