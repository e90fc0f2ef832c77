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
from torch.utils._pytree import tree_leaves
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


CHANGES = "attention=mha attention=pwa attention=skqa attention=rra mlp=shared_projection embedding=linear".split()


@pytest.mark.parametrize("change", CHANGES)
def test_flops_are_those_that_pytorch_counts(change):
    """Of the matrix products, forward and backward. Of attention PyTorch counts both halves, we the causal one: of
    eight tokens, each attends to 4.5 on average."""
    key, value = change.split("=")
    c = ModelConfig(50, 32, 2, 2, 24, max_position_embeddings=8, **{key: value})
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
    assert mfu == pytest.approx(rate * flops / peak, abs=1e-4) and float(figures["peak_memory_mb"]) > 100


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


def test_plain_loss_makes_a_tensor_of_all_logits_and_ours_does_not():
    """In float32 a chunk is 262 tokens of 32,000 pieces, a quarter of the 1,024 here."""
    model, ids = Model(ModelConfig(32000, 16, 1, 2, 16, max_position_embeddings=128)), torch.zeros(8, 128).long()

    def largest(loss):
        with Largest() as seen:
            loss(model, model.hidden(ids), ids).backward()
        return seen.elements

    assert largest(step.plain_loss) == 1024 * 32000 and largest(Model.loss) < 0.3 * 1024 * 32000


def test_throughput_beside_transformers(capsys):
    """From the same weights the losses stay together; the ratio is theirs over ours."""
    throughput.main([*SMALL, *"--batch 2 --rounds 2 --steps 1 --dtype float32 --threads 1 --same-allocator".split()])
    r = common.closing_block(capsys.readouterr().out)
    assert float(r["largest_loss_difference"]) < 1e-5
    least, median, most = map(float, r["times_as_fast"].split(" / "))
    assert 0 < least <= median <= most


def test_threads_alone_and_beside_busy_processes(capsys):
    short = "--presets quick --spins default 300 --rounds 1 --threads 1 --seconds 0.1".split()
    threads.main([*short, *SMALL[2:]])
    rates = r"[1-9][\d,]* \([\d,]+ - [\d,]+\)"
    rows = re.findall(rf"^\| `quick` \| (\w+) \| {rates} \| {rates} \|$", capsys.readouterr().out, re.M)
    assert rows == ["default", "300"]


def test_threads_wait_as_they_are_told():
    """What lab/cli.py sets does not come in between."""
    look = [sys.executable, "-c", "import os, lab.cli; print(os.environ.get('GOMP_SPINCOUNT'))"]
    for spins, value in {"default": "None", "300": "300"}.items():
        assert subprocess.check_output(look, env=threads.environment(spins), text=True).strip() == value


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
    entries = [{"name": "good", "preset": "quick"}, {"name": "bad", "preset": "quick", "set": ["train.optimizer=sgd"]}]
    (project / "list.yaml").write_text(json.dumps(entries))
    for _ in range(2):
        trials.main(["list.yaml", "--blimp", "mine.jsonl", *TINY])
    good, bad = trials.read("results/list.csv")
    assert good["steps"] == "12" and 0 <= float(good["accuracy"]) <= 1 and not good["failed"]
    assert "train.optimizer" in bad["failed"] and not bad["accuracy"]


def test_figures_show_presets_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = figures.ours()
    assert {"10m-words-3m", "2mb-3m", "sllama"} <= found.keys() and figures.text_of(found["sllama"][0]) == "10 M words"
    assert figures.core_minutes({"name": "sllama", "minutes": "3", "device": "cpu, x86_64, 2 threads"}) == 6
    written = {}
    monkeypatch.setattr(figures, "atomic_write", written.__setitem__)
    figures.main()
    assert len(written) == 3 and all(png.startswith(b"\x89PNG") for png in written.values())


# --- gpu.sh


def test_gpu_script_on_a_cpu():
    """From no data to BLiMP scores of a tiny model; the other stages are left out."""
    env = {**os.environ, "DEVICE": "cpu", "QUICK": "1", "STAGES": "sllama compiling", "SECONDS_ALLOWED": "5200"}
    command = ["bash", ROOT / "bench/gpu.sh", "gpu.json"]
    done = subprocess.run(command, env={**env, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stages = json.load(open("gpu.json"))["stages"]
    assert set(stages["data"]["stand_in"]) == {"babylm-2mb", "babylm-10mb", "babylm-10m"}
    record, scored = stages["sllama"]["sllama"], stages["sllama"]["sllama, scored"]
    assert record["status"] == 0 and record["closing_block"]["steps"] == 4 and len(record["losses"]) == 6, record
    assert scored["status"] == 0 and scored["closing_block"]["pairs"] > 0, scored
    assert stages["compiling"]["sllama, train.compile=false"]["tokens_per_second"] > 0


def test_gpu_script_records_failures_and_goes_on(tmp_path):
    def status(code, limit=60, until=1e9):
        record = gpu.call([sys.executable, "-c", code], limit, until, tmp_path)
        return f"{record['status']} {record.get('tail')} {record.get('errors')}"

    assert re.fullmatch(r"1 seen: 3\n broken\n", status("import sys; print('seen: 3'); sys.exit('broken')"))
    assert re.match("stopped.* begun", status("import time; print('begun', flush=True); time.sleep(60)", limit=6))
    assert status("", until=0).startswith("no time left")
    assert gpu.call(["no-such-program"], 60, 1e9, tmp_path)["status"].startswith("cannot be run")


def test_losses_by_kind_on_a_cpu(project, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "SHORT", [*TINY, "train.max_steps=20", "train.decay_steps=20", "train.save_every=10"])
    gpu.compare_runs()
    r = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(r) == {"float32 again", "bfloat16", "checkpointing", "stopped and continued"}
    assert all(kind["agrees"] for kind in r.values()), r
    assert r["stopped and continued"]["largest_difference"] == 0 < r["bfloat16"]["largest_difference"]


def test_closing_blocks_and_turns():
    assert common.closing_block("a: 1\nnot a key: 2\nb: x: y\n") == {"a": "1", "b": "x: y"}
    calls = []
    seconds = common.in_turns({"one": lambda: calls.append(1), "two": lambda: calls.append(2)}, rounds=2)
    assert calls == [1, 2, 2, 1, 1, 2] and [len(times) for times in seconds.values()] == [2, 2]
