"""train.py: its numbers, going on to the same bits, settings that change, and what can end a run."""

import collections
import errno
import hashlib
import itertools
import json
import math
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

from conftest import ROOT, TINY, needs_a_compiler
import eval_blimp
from kill import differences, same
from lab import checkpoint
from lab.devices import Distributed
from lab.files import UserError, sealed
from lab.run import progress
from lab.run import run as surroundings
from lab.run.data import TokenDataset, load_data
from lab.settings import REMOVED, load_config
from lab.text import pocket_english
from model import Model
from stand_ins import folder_bytes, load_csv, load_json, pair, write
from tests import fakeguard
import train

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import torch


def run(*overrides, out="out/a"):
    """Trains in this process; returns (exit status, last.pt's dictionary, rows of losses.csv)."""
    status = train.main([*TINY, f"train.out={out}", *overrides])
    return status, checkpoint.read(f"{out}/last.pt"), load_csv(f"{out}/losses.csv")


def before_steps(monkeypatch, act):
    """Calls act(number of the step, from 1 on) before each step of the runs to come."""
    compute, numbers = train.compute_gradients, itertools.count(1)

    def watched(*args):
        act(next(numbers))
        return compute(*args)

    monkeypatch.setattr(train, "compute_gradients", watched)


def train_command(*options, change, processes=1):
    """Runs train.py with TINY in processes of its own; `change` is Python that they run before their third step."""
    pathlib.Path("changed.py").write_text(CHANGED.replace("CHANGE", change))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    args = [sys.executable, *(launcher if processes > 1 else []), "changed.py", *TINY, *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(args, env=env, capture_output=True, text=True, timeout=300)


CHANGED = """
import os, signal, sys, train
from lab import cli
compute, calls = train.compute_gradients, []
def changed(*args):
    calls.append(1)
    if len(calls) == 3:
        CHANGE
    return compute(*args)
train.compute_gradients = changed
cli.run(lambda: train.main(sys.argv[1:]))
"""


def column(rows, name):
    return [float(row[name]) for row in rows if row[name]]


def copy_corpus(folder, **changes):
    """The tiny corpus in another folder, with changes in meta.json."""
    shutil.copytree("data/tiny", folder)
    path = pathlib.Path(folder, "meta.json")
    path.write_text(json.dumps(sealed({**load_json(path), **changes})))


# --- schedule and data


def settings_of(preset, *overrides):
    return load_config(preset, overrides, path=str(ROOT / "config.yaml")).train


def test_schedule_of_the_release():
    s = settings_of("sllama")
    rate = [s.learning_rate * train.schedule(i, s, 3000) for i in range(3000)]
    assert rate[0] == pytest.approx(4e-4 / 200) and rate[199] == max(rate) == pytest.approx(4e-4)
    assert rate[-1] == pytest.approx(1.73e-4, abs=1e-6)  # the release's last learning rate
    assert train.schedule(5000, s, 3000) == train.schedule(9000, s, 3000) == pytest.approx(0.1)


def test_schedule_shapes():
    def fractions(shape, warmup, *steps):
        s = settings_of("quick", f"train.schedule={shape}", f"train.warmup={warmup}", "train.min_learning_rate=0")
        return [train.schedule(step, s, 100) for step in steps]

    assert fractions("linear", 0.1, 0, 9, 55, 99) == pytest.approx([0.1, 1, 0.5, 1 / 90])
    assert fractions("constant", 0.1, 0, 99) == pytest.approx([0.1, 1])
    assert fractions("cosine", 0, 0, 50) == pytest.approx([1, 0.5])
    assert fractions("cosine", 200, 99) == pytest.approx([0.5])  # a warm-up that is longer than the run


SIZES = {"tokens": st.integers(9, 400), "T": st.integers(2, 8), "size": st.integers(1, 7)}


@settings(max_examples=25)
@given(**SIZES, world=st.sampled_from([1, 2, 3]), seed=st.integers(0, 3))
def test_each_window_once_an_epoch_at_any_world_size(tmp_path_factory, tokens, T, size, world, seed):
    path = str(tmp_path_factory.mktemp("w") / "x.bin")
    np.arange(tokens, dtype="<u2").tofile(path)
    alone = TokenDataset(path, T, seed)
    ranks = [TokenDataset(path, T, seed) for _ in range(world)]
    seen, n = [], len(alone)
    for step in range(2 * n // (size * world) + 1):
        first = step * size * world
        whole = alone.get_batch(first, size * world)  # (size * world, T + 1)
        assert torch.equal(whole, whole[:, :1] + torch.arange(T + 1))  # the file counts upwards
        parts = [rank.get_batch(first + i, size, world) for i, rank in enumerate(ranks)]
        assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)  # together the processes see the same windows
        seen += whole[:, 0].tolist()
    starts = [i * T for i in range(n)]
    one, two = seen[:n], seen[n : 2 * n]
    assert sorted(one) == starts and (len(seen) < 2 * n or sorted(two) == starts)
    assert n < 20 or (one != starts and one != two)  # shuffled, and anew


# --- the numbers of a run


def test_loss_of_a_tiny_run_is_pinned(project):
    """Any change to initialisation, data order, model, optimiser or schedule shows here."""
    status, last, rows = run("train.max_steps=8")
    assert status == 0 and column(rows, "step") == list(range(9))
    assert float(rows[0]["val_loss"]) == pytest.approx(math.log(1000), abs=0.05)
    assert float(rows[-1]["val_loss"]) == pytest.approx(6.183916, abs=2e-4)
    assert last["training"]["best"] == float(rows[-1]["val_loss"])
    made = checkpoint.load("out/a/ckpt.pt").provenance
    assert made["corpus"] == "tiny test corpus" and made["steps"] == 8 and os.path.getsize("out/a/curves.png") > 5000


TOLERANCES = {  # of the losses, by what is switched
    "train.batch_size=2 train.gradient_accumulation_steps=4": 2e-5,
    "train.gradient_checkpointing=true": 2e-5,
    "train.compile=true": 2e-5,
    "train.dtype=bfloat16": 0.02,
}


@needs_a_compiler
@pytest.mark.parametrize("switch", TOLERANCES)
def test_switches_change_no_loss(project, switch):
    one, two = (column(rows, "train_loss") for *_, rows in (run(), run(*switch.split(), out="out/b")))
    assert two == pytest.approx(one, abs=TOLERANCES[switch])
    assert "bfloat16" not in switch or two != one


def test_the_seed_covers_initialisation_data_order_and_dropout(project, monkeypatch):
    """Each alone: everything else being equal, another seed of the one gives another step, the same one the same."""
    seed_dropout = train.seed_dropout

    def weights_after_a_step(initialisation, order, dropout, *options):
        def ordered(config):
            data, *others = load_data(config)
            data.seed = order
            return data, *others

        monkeypatch.setattr(surroundings, "load_data", ordered)
        monkeypatch.setattr(train, "seed_dropout", lambda seed, step, rank: seed_dropout(dropout, step, rank))
        return run(f"train.seed={initialisation}", "train.max_steps=1", "--replace", *options)[1]["weights"]

    on = "model.dropout=0.1"
    base = weights_after_a_step(0, 0, 0, on)
    assert same(weights_after_a_step(0, 0, 0, on), base)
    for seeds in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2**60)):
        assert not same(weights_after_a_step(*seeds, on), base), seeds
    assert same(weights_after_a_step(0, 0, 1), weights_after_a_step(0, 0, 0))


def test_deterministic_is_pytorchs_strict_mode(project, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    strict = []
    before_steps(monkeypatch, lambda step: strict.append(torch.are_deterministic_algorithms_enabled()))
    for setting in ("false", "true"):
        run("train.max_steps=1", f"train.deterministic={setting}", "--replace")
        strict.append("CUBLAS_WORKSPACE_CONFIG" in os.environ)
    assert strict == [False, False, True, True]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_muon_takes_the_hidden_matrices_and_only_matrices_decay(optimizer):
    """Each parameter has one optimiser; embedding, its projector and head stay with AdamW."""
    settings = ["model.attention=rra", "model.embedding=linear", "train.weight_decay=0.1", "model.vocab_size=1000"]
    config = load_config("sllama", [*settings, f"train.optimizer={optimizer}"])
    model, found = Model(config.model), {}
    names = {id(p): name for name, p in model.named_parameters()}
    for made in train.make_optimizers(model, config.train, torch.device("cpu")):
        for group in made.param_groups:
            for p in group["params"]:
                found[names.pop(id(p))] = type(made).__name__, group["weight_decay"]  # KeyError: in two of them
    assert not names
    for name, p in model.named_parameters():
        muon = optimizer == "muon" and p.dim() == 2 and name.startswith(("attention.", "mlp."))
        assert found[name] == ("Muon" if muon else "AdamW", 0.1 if p.dim() == 2 else 0), name


# --- the length of a run


def test_epochs_as_the_budget(project):
    """An epoch is one copy: where half of the file is the text, and half the text again, two are as long as one."""
    meta = load_json("data/tiny/meta.json")
    copy_corpus("data/half", name="half", copies=2, tokens_per_word=meta["tokens_per_word"] / 2)
    _, one, _ = run("train.max_steps=null", "train.epochs=0.1", out="out/one")
    _, two, _ = run("train.max_steps=null", "train.epochs=0.2", "data.name=half", out="out/two")
    windows = (meta["train"]["tokens"] - 1) // 32
    assert one["training"]["step"] == two["training"]["step"] == math.ceil(0.1 * windows / (4 * 2))
    assert two["provenance"]["epochs"] == pytest.approx(2 * one["provenance"]["epochs"])
    assert two["provenance"]["words"] == pytest.approx(2 * one["provenance"]["words"], abs=1)


def test_a_budget_in_words(project, monkeypatch):
    """train.max_words ends a run within a step of that many words, with schedule and checkpoints fitted to it."""
    monkeypatch.setattr(checkpoint, "BABYLM_WORDS", [0.0005, 0.001, 0.002])
    schedule = ["train.decay_steps=5", "train.schedule=linear", "train.min_learning_rate=0"]
    _, last, rows = run("train.max_words=2000", *schedule, "train.checkpoint_words=babylm")
    words, per_step = last["provenance"]["words"], int(rows[1]["words"])
    assert words <= 2000 < words + per_step + 1
    assert float(rows[-1]["lr"]) == pytest.approx(1e-2 / (len(rows) - 1 - 2))  # after it, zero
    assert checkpoint.load("out/a/chck_0.002M.pt").provenance["words"] == words
    for least in (500, 1000):
        seen = checkpoint.load(f"out/a/chck_{least / 1e6:g}M.pt").provenance["words"]
        assert least <= seen < least + per_step + 1
    assert len([name for name in os.listdir("out/a") if name.startswith("chck")]) == 3


# --- what it shows


def test_the_last_lines_can_be_read_and_pasted(project, capsys):
    """The block of `key: value`, and the command in it, with a folder and a name that a shell would take apart."""
    write(project / "my pairs", {"it": [pair("The cat sees it.", "The cat see it.")]})
    run("eval.data=my pairs", out="out/a run")
    block = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines()[-13:])
    assert block["steps"] == "12" and block["tokens"] == str(12 * 4 * 2 * 32)
    assert {"train_loss", "val_loss", "seconds", "peak_memory_mb"} <= block.keys()
    assert float(block["tokens_per_second"]) > 0 and os.path.exists(block["checkpoint"])
    done = subprocess.run([sys.executable, *shlex.split(block["next"])[1:]], capture_output=True, text=True)
    assert done.returncode == 0 and "my pairs" in done.stdout, done.stderr


def test_what_a_run_warns_of_before_its_first_step(project):
    def said(setting):
        with surroundings.Run([*TINY, setting]) as it:
            it.compile(None)
            return progress.banner(it)

    warmup = "WARNING: the warm-up of 200 steps is longer than the run of 12: the learning rate ends at 0.0006, below"
    assert warmup in said("train.warmup=200") and "WARNING" not in said("train.warmup=0.5")
    quick = "--preset quick takes minutes"
    assert "40 steps of 8 windows x 32 = 256 tokens" in said("train.max_steps=40")
    assert quick in said(f"train.max_steps={10**8}") and quick not in said("train.max_steps=100")
    assert not os.path.exists("out/sllama")  # nothing was written, so nothing is left


def test_its_config_repeats_a_run(project):
    one = run()[2]
    train.main(["--config", "out/a/config.yaml", "train.out=out/b"])
    assert column(load_csv("out/b/losses.csv"), "train_loss") == column(one, "train_loss")


def test_a_run_that_is_not_on_a_terminal_speaks_of_this_session(project, monkeypatch, capsys):
    """A line every so many seconds (here: always) with the speed of this session; at the end that of the whole run.

    Steps of 256 tokens take 10 seconds in the first session and 2 in the second; the first three of each do not count.
    """
    clock = {"now": 0, "step": 10}
    before_steps(monkeypatch, lambda step: clock.update(now=clock["now"] + clock["step"]))
    monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(progress, "SILENCE", -1)
    run("train.max_steps=6", "train.decay_steps=12")
    first = capsys.readouterr().out
    clock["step"] = 2
    run("train.decay_steps=12")
    second = capsys.readouterr().out
    assert all(f"step {step} of 6  loss " in first for step in range(1, 7))
    assert "  26 tokens/s  00:20 left" in first and "tokens_per_second: 26\n" in first
    assert "step 10 of 12  loss" in second and "  128 tokens/s  00:04 left" in second and "  26 tokens/s" not in second
    assert "seconds: 72.0" in second and f"tokens_per_second: {6 * 256 / (3 * 10 + 3 * 2):.0f}\n" in second


LOGS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}  # train.log, its module


@pytest.mark.parametrize("kind", LOGS)
def test_log_sends_the_curves(kind, project, monkeypatch):
    """With the accuracy on the first pairs of each paradigm, at validations in the steps asked for and at the end."""
    module, sent = mock.MagicMock(), collections.defaultdict(dict)
    monkeypatch.setitem(sys.modules, LOGS[kind], module)
    write(project / "pairs", pocket_english.pairs(0, 3))
    rows = run(f"train.log={kind}", "eval.data=pairs", "eval.blimp_every=8", "eval.blimp_pairs=2")[2]
    if kind == "tensorboard":
        opened, closed = module.SummaryWriter, module.SummaryWriter.return_value.close
        scalars = [call.args for call in module.SummaryWriter.return_value.add_scalar.call_args_list]
    else:
        opened, closed = module.init, module.finish
        logged = [(*call.args, *call.kwargs.values()) for call in module.log.call_args_list]
        scalars = [(name, value, step) for numbers, step in logged for name, value in numbers.items()]
    for name, value, step in scalars:
        sent[name][step] = value
    assert "out/a" in str(opened.call_args) and closed.called
    assert [*sent["train_loss"]] == [*range(1, 13)]
    assert [*sent["val_loss"]] == [*sent["bits_per_byte"]] == [0, 4, 8, 12] and [*sent["blimp"]] == [0, 8, 12]
    assert sent["lr"][2] == pytest.approx(1e-2) and sent["tokens_per_second"]
    model, ckpt = checkpoint.load_model("out/a/ckpt.pt")  # the last step's is the best
    assert sent["blimp"][12] == eval_blimp.quick_accuracy(model, ckpt.tokenizer, "pairs", 2)
    assert column(rows, "blimp") == [*sent["blimp"].values()]


@pytest.mark.parametrize("kind", LOGS)
def test_log_without_its_package(kind, project, monkeypatch):
    monkeypatch.setitem(sys.modules, LOGS[kind], None)  # as if it were not installed
    with pytest.raises(UserError, match=f"pip install {kind}"):
        run(f"train.log={kind}")


# --- going on

HARD = ["model.dropout=0.1", "model.max_position_embeddings=512"]
KINDS = {
    "plain": [],
    "muon": [*HARD, "train.optimizer=muon", "train.isolate=true"],
    "bfloat16": [*HARD, "train.dtype=bfloat16", "model.layer_sharing=none", "train.save_every=3"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_exact(project, kind, monkeypatch):
    """Interrupted after steps 5 and 7, the run reaches the bits of the uninterrupted one.

    The text ends between, for all but `plain`.
    """

    _, whole, _ = run(*KINDS[kind], out="out/whole")

    def stopped_after(steps):
        with monkeypatch.context() as m:
            before_steps(m, lambda step: step == steps and os.kill(os.getpid(), signal.SIGTERM))
            assert run(*KINDS[kind], out="out/parts")[0] == 143

    stopped_after(5)
    stopped_after(2)
    assert run(*KINDS[kind], out="out/parts")[0] == 0 and differences("out/whole", "out/parts") == []
    epochs = whole["provenance"]["epochs"] / 12
    assert kind == "plain" or 5 * epochs < 1 < 7 * epochs


def test_a_finished_run_says_so_and_repeats_its_figures(project, capsys):
    run()
    figures, before = capsys.readouterr().out.splitlines()[-12:], folder_bytes("out/a")
    run("train.sample_tokens=3")
    out = capsys.readouterr().out
    assert "this run has finished" in out and out.splitlines()[-12:] == figures and folder_bytes("out/a") == before


CHANGES = {
    "train.learning_rate=5e-3": "0.01 then, 0.005 now",
    "train.isolate=true": "False then, True now",
    "train.eval_windows=4": "8 then, 4 now",
    "train.dtype=bfloat16": "float32 then, bfloat16 now",
    "model.rope_theta=5000": "10000.0 then, 5000.0 now",
}


@pytest.mark.parametrize("steps", [12, 5], ids=["finished", "unfinished"])
def test_a_changed_setting_is_never_ignored(project, steps):
    run(f"train.max_steps={steps}")
    before = folder_bytes("out/a")
    for setting, difference in CHANGES.items():
        key = setting.partition("=")[0]
        with pytest.raises(UserError, match=f"out/a/last.pt: .*{key}: {difference}.*--replace.*train.out.*=changed"):
            run(setting)
    assert folder_bytes("out/a") == before


def test_another_text_is_another_setting(project):
    run("train.max_steps=5")
    tokens = np.fromfile("data/tiny/train.bin", dtype="<u2")[:4000]
    train_part = load_json("data/tiny/meta.json")["train"]
    sha256 = hashlib.sha256(tokens.tobytes()).hexdigest()
    copy_corpus("data/other", train={**train_part, "tokens": 4000, "sha256": sha256})
    tokens.tofile("data/other/train.bin")
    with pytest.raises(UserError, match=r"train.bin: [\d,]+ tokens of tiny test corpus.* then, 4,000 tokens"):
        run("data.name=other")


def test_what_changes_no_number_may_differ(project):
    run("train.max_steps=5")
    copy_corpus("data/same")
    free = ["train.sample_tokens=0", "train.save_every=null", "train.gradient_checkpointing=true", "eval.blimp_pairs=7"]
    split = ["train.batch_size=2", "train.gradient_accumulation_steps=4"]
    status, last, _ = run(*free, *split, "data.name=same", "train.max_steps=5")
    assert status == 0 and last["training"]["changes"] == []


def test_going_on_with_changed_settings_is_noted(project, capsys):
    run("train.max_steps=5", "train.schedule=constant")
    constant = ["train.schedule=constant", "train.resume=changed"]
    _, last, rows = run(*constant, "train.learning_rate=5e-3")
    line = "at step 5: train.learning_rate: 0.01 then, 0.005 now"
    assert line in last["training"]["changes"] and line in checkpoint.load("out/a/ckpt.pt").provenance["changes"]
    assert f"changed {line}" in capsys.readouterr().out and float(rows[-1]["lr"]) == 5e-3
    assert last["training"]["best"] == min(column(rows, "val_loss"))
    with pytest.raises(UserError, match="12 steps are trained already, 12 are asked for, so nothing is left to train"):
        run(*constant)
    with pytest.raises(UserError, match=r"does not fit the changed settings \(size mismatch for \w+"):
        run(*constant, "train.learning_rate=5e-3", "train.max_steps=14", "model.hidden_size=64")


def test_a_loss_on_other_text_is_not_compared(project, monkeypatch):
    run("train.max_steps=5")
    validate, losses = train.validate, []
    monkeypatch.setattr(train, "validate", lambda *args: losses.append(9 + validate(*args)) or losses[-1])
    _, last, rows = run("train.isolate=true", "train.resume=changed")
    assert float(rows[5]["val_loss"]) == losses[0] and last["training"]["best"] == min(losses)
    assert checkpoint.load("out/a/ckpt.pt").provenance["val_loss"] == min(losses)


def test_a_run_of_another_length_says_what_becomes_of_the_schedule(project, capsys):
    run("train.max_steps=8")
    rows = run("train.max_steps=12")[2]
    out = capsys.readouterr().out
    assert "changed at step 8: train.max_steps: 8 then, 12 now" in out
    before, after = float(rows[8]["lr"]), float(rows[9]["lr"])
    assert f"learning rate {after:.3g}; it was {before:.3g} in the step before the change" in out
    with pytest.raises(UserError, match="12 steps are trained already, 5 are asked for"):
        run("train.max_steps=5")


@pytest.mark.parametrize("lost, resume", [("ckpt.pt", "never"), ("last.pt", "never"), ("last.pt", "auto")])
def test_no_checkpoint_is_replaced_unasked(project, lost, resume):
    run("train.max_steps=2")
    os.unlink(f"out/a/{lost}")
    before = folder_bytes("out/a")
    text = pathlib.Path("config.yaml").read_text()
    pathlib.Path("config.yaml").write_text(text.replace("resume: auto", f"resume: {resume}"))
    complaint = "ckpt.pt but no last.pt to go on from" if lost == "last.pt" else "last.pt of another run"
    with pytest.raises(UserError, match=f"out/a: holds {complaint}; --replace"):
        run("train.max_steps=1")
    assert folder_bytes("out/a") == before
    open("out/a/chck_1M.pt", "w").close()
    assert run("train.max_steps=1", "--replace")[1]["training"]["step"] == 1
    assert not os.path.exists("out/a/chck_1M.pt")  # of the run that is gone
    assert run("train.max_steps=3", "train.resume=never")[1]["training"]["step"] == 3


def test_a_run_goes_on_in_another_folder(project):
    run("train.max_steps=8")
    status, last, _ = run("train.resume=out/a/last.pt", out="out/b")
    assert status == 0 and last["training"]["step"] == 12
    assert checkpoint.load("out/b/ckpt.pt").provenance["val_loss"] == last["training"]["best"]
    with pytest.raises(UserError, match="out/b: holds ckpt.pt, last.pt of another run"):
        run("train.resume=out/a/last.pt", out="out/b")


def test_what_was_made_before_settings_were_removed_goes_on_if_they_were_off(project):
    """Otherwise it is an error that names the last commit that has them."""
    run("train.max_steps=5")
    tree = checkpoint.read("out/a/last.pt")
    for key, (off, commit) in REMOVED.items():
        section = "model" if key in ("hidden_act", "qk_norm") else "train"
        words = f"{section}.{key}: this setting is gone; {commit} is the last commit that has it"
        with pytest.raises(UserError, match=words):
            load_config("quick", [f"{section}.{key}=on"])
        load_config("quick", [f"{section}.{key}={off}"])
        tree["provenance"]["settings"][section][key] = "on"
        checkpoint.save("out/a/last.pt", tree)
        with pytest.raises(UserError, match=f"out/a/last.pt: {words}"):
            run()
        tree["provenance"]["settings"][section][key] = off
    tree["model"] |= {"hidden_act": "silu", "qk_norm": False}
    checkpoint.save("out/a/last.pt", tree)
    checkpoint.load_model("out/a/last.pt")
    assert run()[1]["training"]["changes"] == ["at step 5: train.max_steps: 5 then, 12 now"]


# --- faults

REFUSED = {
    "train.sed=1": "seed",
    "data.name=none": r"data/none: no prepared corpus; run: .*prepare.py .*data.name=none",
    "train.resume=nothing.pt": "nothing.pt: cannot be read",
    "train.dtype=float16": "float16 needs CUDA",
    "model.max_position_embeddings=4096": "val.bin.*less than one window",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_refused_command_leaves_no_folder(project, setting):
    os.mkdir("mine")
    for out in ("new/a/b", "mine/a"):
        with pytest.raises(UserError, match=REFUSED[setting]):
            run(setting, out=out)
    assert sorted(os.listdir()) == ["config.yaml", "data", "mine"] and os.listdir("mine") == []


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nowhere", "folder"])
def test_a_folder_that_cannot_be_written_is_found_before_training(project, out, monkeypatch):
    open("file", "w").close()
    os.makedirs("folder/config.yaml")
    before_steps(monkeypatch, lambda step: pytest.fail("trained"))
    with pytest.raises(UserError, match=f"{out}.*cannot be written.*choose another folder"):
        run(out=out)


def test_a_second_run_is_kept_out(project):
    with surroundings.own_folder("out/a"), pytest.raises(UserError, match="another run"):
        run()
    assert run()[0] == 0


def test_a_file_system_without_locks(project, monkeypatch, capsys):
    import fcntl

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    os.makedirs("out/a")
    for name in ("mine.tmp", "last.pt.k2j4h6g8.tmp"):  # a user's own, and what a killed write left
        open(f"out/a/{name}", "w").close()
    assert (
        run("train.max_steps=1")[0] == 0 and "No locks available); do not start a second run" in capsys.readouterr().out
    )
    assert [name for name in os.listdir("out/a") if name.endswith(".tmp")] == ["mine.tmp"]


def test_processes_that_do_not_share_the_folder_are_told_so(project, monkeypatch):
    monkeypatch.setattr(Distributed, "any", lambda distributed, flag: True)  # the other one resumed
    with pytest.raises(UserError, match="another process finds a last.pt there"):
        run()


def test_a_nan_stops_the_run_where_it_happens(project, monkeypatch):
    run("train.max_steps=5", "train.save_every=2")
    loss = Model.loss
    monkeypatch.setattr(Model, "loss", lambda *args: loss(*args) * (math.nan if torch.is_grad_enabled() else 1))
    with pytest.raises(UserError, match=r"step 5: loss nan.*at learning rate 0.0.*intact.*train.grad_clip"):
        run("train.max_steps=9")
    assert checkpoint.load("out/a/last.pt").provenance["steps"] == 5


@pytest.fixture
def overflow(monkeypatch):
    """overflow(steps): a gradient scaler as for float16, here on a CPU; in those steps a gradient is NaN."""
    mean, make_scaler, numbers = Distributed.mean_gradients, torch.amp.GradScaler, itertools.count(1)

    def overflow(steps):
        def broken_mean(distributed, params, loss):
            if next(numbers) in steps:
                params[1].grad[0] = math.nan
            return mean(distributed, params, loss)

        monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: make_scaler(device, enabled=True))
        monkeypatch.setattr(Distributed, "mean_gradients", broken_mean)

    return overflow


def test_a_step_that_overflows_is_skipped_whole(project, overflow):
    """The third of four: neither weights nor moments move, and the scale is halved for the fourth."""
    overflow({3})
    options = ["train.optimizer=muon", "train.decay_steps=4"]
    second, third, fourth = (run(*options, f"train.max_steps={steps}")[1] for steps in (2, 3, 4))
    assert same(second["weights"], third["weights"]) and not same(third["weights"], fourth["weights"])
    before, after = second["training"], third["training"]
    assert same(before["optimizers"], after["optimizers"]) and after["scaler"]["scale"] == before["scaler"]["scale"] / 2
    assert [tree["training"]["skipped"] for tree in (second, third, fourth)] == [0, 1, 1]


def test_a_run_that_only_skips_is_stopped(project, overflow):
    overflow(range(3, 100))
    with pytest.raises(UserError, match="step 22: loss 6.*, gradient norm nan"):
        run("train.optimizer=muon", "train.max_steps=60")
    assert checkpoint.load("out/a/last.pt").provenance["steps"] == 20


def test_weights_that_are_no_numbers_do_not_replace_good_ones(project, monkeypatch):
    update, numbers = train.update_weights, itertools.count(1)

    def broken(model, *args):
        if next(numbers) == 3:
            model.norm.weight.data[0] = math.nan
        return update(model, *args)

    monkeypatch.setattr(train, "update_weights", broken)
    with pytest.raises(UserError, match="last.pt: not written at step 3, weight norm.weight holds NaN"):
        run("train.save_every=1")
    assert checkpoint.load("out/a/last.pt").provenance["steps"] == 2


ON_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
ON_CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory")
ON_APPLE = RuntimeError("MPS backend out of memory (MPS allocated: 9 GiB)")


@pytest.mark.parametrize("error", [ON_GPU, ON_CPU, ON_APPLE], ids=["GPU", "CPU", "Apple"])
def test_out_of_memory_is_one_line(project, monkeypatch, error):
    """Its advice continues from where the run stopped. A model that never fitted leaves no folder."""

    def full(*_):
        raise error

    with monkeypatch.context() as m, pytest.raises(UserError, match="step 0: out of memory"):
        m.setattr(train, "Model", full)
        run()
    assert not os.path.exists("out/a")
    less = "add train.gradient_checkpointing=true, or halve train.batch_size and double train.gradient_acc"
    with monkeypatch.context() as m, pytest.raises(UserError, match=f"step 2: out of memory.*{less}.*out/a/last.pt"):
        before_steps(m, lambda step: full() if step == 3 else None)
        run("train.save_every=1")
    assert checkpoint.load("out/a/last.pt").provenance["steps"] == 2
    halved = ["train.batch_size=2", "train.gradient_accumulation_steps=4"]
    assert run("train.gradient_checkpointing=true", *halved)[0] == 0


def test_last_pt_and_losses_are_written_once_a_minute_unless_asked(project, monkeypatch):
    saved, clock = [], {"now": 0}

    def step_takes_25_seconds(step):
        clock["now"] += 25
        saved.append(checkpoint.read("out/a/last.pt")["training"]["step"])
        assert len(open("out/a/losses.csv").readlines()) == saved[-1] + 2  # the header, and step 0

    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    before_steps(monkeypatch, step_takes_25_seconds)
    run("train.save_every=null", "train.eval_every=100")
    assert saved == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9]


def test_a_full_disk_leaves_the_last_checkpoint_whole(project):
    """RLIMIT_FSIZE makes every larger write fail, as a full disk does, at any point of it."""
    import resource

    run("train.max_steps=4")
    before, limits = checkpoint.read("out/a/last.pt"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize("out/a/ckpt.pt") // 2, limits[1]))
    try:
        with pytest.raises(UserError, match="out/a.* cannot be written.*free some space"):
            run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(checkpoint.read("out/a/last.pt"), before)
    assert not [name for name in os.listdir("out/a") if name.endswith(".tmp")]
    assert run()[1]["training"]["step"] == 12


PRESS = "os.kill(os.getpid(), signal.SIGINT)"


def test_a_signal_ends_after_the_step_and_the_run_goes_on(project, monkeypatch):
    """Here also without a C++ compiler: a notice says why the run is not compiled, before its first step."""
    monkeypatch.setenv("PATH", str(project))
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(project / "cache"))
    done = train_command("train.out=out/a", "train.compile=true", change=PRESS)
    assert done.returncode == 130 and "the same command continues" in done.stdout, done.stdout + done.stderr
    assert checkpoint.load("out/a/last.pt").provenance["steps"] == 3 and "Traceback" not in done.stderr
    assert "notice: torch.compile does not work here" in done.stdout and "compile off" in done.stdout

    # What would start anew, or from elsewhere, is not to be repeated
    done = train_command("train.out=out/b", "train.resume=out/a/last.pt", "--replace", change=PRESS)
    again = "the same command without --replace train.resume=out/a/last.pt continues from out/b/last.pt"
    assert done.returncode == 130 and again in done.stdout, done.stdout + done.stderr
    assert checkpoint.load("out/b/ckpt.pt").provenance["val_loss"] < 9 and "val_loss: inf" not in done.stdout


def test_a_second_ctrl_c_ends_at_once(project):
    """In the middle of a step: one line, and last.pt is that of the step before."""
    done = train_command("train.save_every=1", "train.out=out/a", change=f"{PRESS}; {PRESS}")
    assert done.returncode == 130 and done.stderr.strip().splitlines()[-1] == "interrupted", done.stderr
    assert "Traceback" not in done.stderr and checkpoint.load("out/a/last.pt").provenance["steps"] == 2
    assert run()[0] == 0


# --- several processes


def test_two_processes_follow_the_curve_of_one_and_resume_exactly(project):
    """Stopped after 6 of 12 steps and continued, they reach the bits of two that never stopped; the text ends between.

    The losses are those of one process, which can also continue from their last.pt.
    """
    options = ["model.max_position_embeddings=512", "train.decay_steps=12", "train.eval_every=2"]

    def two_processes(out, steps):
        done = train_command(*options, f"train.out={out}", f"train.max_steps={steps}", change="pass", processes=2)
        assert done.returncode == 0 and done.stdout.count("val_loss:") == 1, done.stderr[-2000:]  # only rank 0 speaks

    two_processes("out/whole", 12)
    two_processes("out/parts", 6)
    shutil.copytree("out/parts", "out/mixed")
    two_processes("out/parts", 12)
    assert differences("out/whole", "out/parts") == []
    _, last, one = run(*options, out="out/one")
    assert last["provenance"]["epochs"] > 1
    for rows in (load_csv("out/whole/losses.csv"), run(*options, out="out/mixed")[2]):
        for name in ("train_loss", "val_loss"):
            assert column(rows, name) == pytest.approx(column(one, name), abs=1e-4)


def test_a_dying_process_ends_the_run_with_a_message(project):
    dies = 'os.environ["RANK"] == "1" and os.kill(os.getpid(), signal.SIGKILL)'
    done = train_command("train.save_every=1", "train.out=out/a", change=dies, processes=2)
    assert done.returncode != 0 and "another process of this run has ended" in done.stderr, done.stdout + done.stderr
    assert checkpoint.load("out/a/last.pt").provenance["steps"] == 2


@pytest.mark.skipif(fakeguard.why_not() is not None, reason=str(fakeguard.why_not()))
def test_a_run_under_nccl(project, tmp_path_factory):
    """On a fake GPU, with a group that refuses CPU tensors: validation, steps, last.pt and the end of the run."""
    options = ["train.optimizer=muon", "model.dropout=0.1", "train.dtype=float16"]
    device = ["train.device=cuda", "train.compile=false", "train.sample_tokens=4"]
    args = [str(ROOT / "tests" / "cuda_run.py"), *TINY, *device, *options]
    folder = tmp_path_factory.getbasetemp()
    done = fakeguard.start(args, folder, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["groups"] == [["nccl", "cuda:0"]] and seen["strays"] == {}
    assert seen["pinned"].count([4, 33]) == 13  # both batches of a step at once, and of one step that does not come
    gradients = [numbers for numbers in seen["messages"] if numbers > 1000]
    assert len(gradients) == 12 and len(seen["messages"]) == 12 + 1 + 4  # beside them: is there a last.pt; validations
    assert os.path.exists("out/sllama/last.pt") and os.path.exists("out/sllama/ckpt.pt")
