"""Damaged input of every kind is refused in one line, or harmless: a short run of bench/fuzz.py, and the damages worth a name."""
import json
import math
import os
import random
import sys

import pytest
import torch

import train
from conftest import ROOT, TINY
from lab import checkpoint
from lab import settings as config
from lab.files import UserError

sys.path.insert(0, str(ROOT / "bench"))
import fuzz


def test_every_kind_of_file(capsys, tmp_path):
    assert fuzz.main(["--trials", "12", "--seed", "1", "--json", str(tmp_path / "fuzz.json")]) == 0, capsys.readouterr().out
    report = json.load(open(tmp_path / "fuzz.json"))
    assert len(report["kinds"]) == 20 and all(kind["trials"] == 12 and kind["refused"] for kind in report["kinds"]) and report["failures"] == []


def reader(what):
    def read():
        content = open("file", "rb").read()
        if content != b"good" and what == "traceback":
            raise KeyError("x")
        if content != b"good" and what == "hang":
            while True:
                pass
        if content != b"good" and what == "death":
            os._exit(3)
        if content != b"good" and what == "memory":
            bytearray(2 * fuzz.MEMORY)
        if content != b"good" and what == "refused":
            raise UserError("no")
        return content if what == "changed" else b""
    return read


@pytest.mark.parametrize("what, outcome, words", [("traceback", "traceback", "KeyError: 'x'"), ("hang", "hang", "-9"), ("death", "traceback", "status 3"),
                                                  ("memory", "traceback", "MemoryError"), ("refused", "refused", "no"), ("changed", "changed", ""), ("same", "same", "")])
def test_the_fuzzer_sees_what_it_looks_for(what, outcome, words, tmp_path, monkeypatch):
    if what == "memory" and sys.platform != "linux":
        pytest.skip("the limit of memory is Linux's")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz, "LIMIT", 0.3)
    (tmp_path / "file").write_bytes(b"good")
    results = fuzz.fuzz("kind", 2, 0, "file", lambda rng, data: b"bad", reader(what))
    assert [r[0] for r in results] == [outcome] * 2 and all(words in r[1] for r in results), results
    assert (tmp_path / "file").read_bytes() == b"good"


def test_mutations_follow_from_the_seed():
    a, b = ([fuzz.damage(random.Random(f"{seed} {n}"), bytes(range(200))) for n in range(100)] for seed in (0, 0))
    assert a == b and sum(x != bytes(range(200)) for x in a) > 80 and a != [fuzz.damage(random.Random(f"1 {n}"), bytes(range(200))) for n in range(100)]


@pytest.mark.parametrize("part, key, value", [("train", "bytes", 1), ("val", "bytes", 10**6), ("train", "words", "many"), (None, "tokens_per_word", 0),
                                              (None, "tokens_per_word", "2"), (None, "corpus", "another"), (None, "vocab_size", 999), (None, "meta_sha256", None)])
def test_an_edited_meta_is_refused(project, part, key, value):
    source = project / "data" / "tiny"
    meta = json.loads((source / "meta.json").read_text())
    (meta[part] if part else meta)[key] = value
    os.mkdir("data/edited")
    for name in ("train.bin", "val.bin", "tokenizer.model"):
        os.link(os.path.realpath(source / name), f"data/edited/{name}")
    (project / "data" / "edited" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="meta.json: damaged"):
        train.load_data(config.load_config("quick", [*TINY, "data.name=edited"]), 32)


SAVE = [*TINY, "train.max_steps=3", "train.save_every=3", "train.optimizer=muon", "train.ema=0.9", "train.sample_tokens=0", "train.out=out/run"]


@pytest.fixture
def last(project):
    """(run that nothing was continued in yet, the tree of a last.pt, a function that writes it)"""
    train.main(["--preset", "quick", *SAVE])
    run = train.Run(config.load_config("quick", SAVE), train.World())
    return run, checkpoint.read("out/run/last.pt"), lambda tree: checkpoint.save("out/run/last.pt", tree)


def first_state(t, optimizer=0):
    return t["optimizers"][optimizer]["state"][0]


EDITS = {
    "no step": lambda t: t.pop("step"), "a step that is text": lambda t: t.update(step="3"), "a step before the first": lambda t: t.update(step=-1),
    "a step of 400 digits": lambda t: t.update(step=10**400), "a best that is no number": lambda t: t.update(best=math.nan),
    "endless seconds": lambda t: t.update(seconds=math.inf),
    "rows without columns": lambda t: t.update(rows=[{}]), "rows of text": lambda t: t["rows"][0].update(words=""), "rows that are a number": lambda t: t.update(rows=5),
    "a tensor in the rows": lambda t: t["rows"][0].update(train_loss=torch.zeros(2)),
    "no optimizers": lambda t: t.update(optimizers=[]), "an optimiser that is a list": lambda t: t["optimizers"].__setitem__(0, [1]),
    "a moment of another shape": lambda t: first_state(t).update(exp_avg=torch.zeros(3)), "a moment that is NaN": lambda t: first_state(t)["exp_avg"].fill_(math.nan),
    "a moment missing": lambda t: first_state(t).pop("exp_avg_sq"), "a moment too many": lambda t: first_state(t, 1).update(extra=torch.zeros(1)),
    "a moment that poses as a gigabyte": lambda t: first_state(t).update(exp_avg=torch.zeros(1).expand(first_state(t)["exp_avg"].shape)),
    "a parameter's state missing": lambda t: t["optimizers"][1]["state"].pop(0), "a state that is null": lambda t: t["optimizers"][1].update(state=None),
    "averaged weights missing": lambda t: t.update(ema=None), "an averaged weight missing": lambda t: t["ema"].pop("lm_head.weight"),
    "an averaged weight of another shape": lambda t: t["ema"].update({"lm_head.weight": torch.zeros(2, 2)}), "a scaler that is text": lambda t: t.update(scaler="x"),
    "no scaler": lambda t: t.pop("scaler")}


def test_a_tampered_training_state_is_refused(last):
    run, tree, save = last
    whole = fuzz.plain(tree)
    for name, edit in EDITS.items():
        save(tree)
        broken = checkpoint.read("out/run/last.pt")
        edit(broken["training"])
        save(broken)
        with pytest.raises(UserError) as e:
            train.resume(run)
        assert "last.pt: " in str(e.value) and "train.resume=never" in str(e.value) and "\n" not in str(e.value), (name, str(e.value))
        assert run.step == 0 and run.rows == [], name
    for then in (None, 5, [], {"model": torch.zeros(2)}):
        tree["training"]["same_run"], good = then, tree["training"]["same_run"]
        save(tree)
        tree["training"]["same_run"] = good
        with pytest.raises(UserError, match="belongs to another run"):
            train.resume(run)
    assert fuzz.plain(tree) == whole
    save(tree)
    assert train.resume(run) and run.step == 3


def test_todays_settings_decide_the_optimiser(last):
    """Groups in the file, learning rates and all, are not believed."""
    run, tree, save = last
    for optimizer in tree["training"]["optimizers"]:
        optimizer["param_groups"] = "nonsense"
    save(tree)
    before = [{k: v for k, v in g.items() if k != "params"} for o in run.optimizers for g in o.param_groups]
    assert train.resume(run) and [{k: v for k, v in g.items() if k != "params"} for o in run.optimizers for g in o.param_groups] == before
    assert torch.equal(run.optimizers[0].state_dict()["state"][0]["exp_avg"], first_state(tree["training"])["exp_avg"])


def test_an_origin_that_is_no_plain_data_is_refused(last):
    _, tree, save = last
    origins = [{**tree["provenance"], key: value} for key, value in (("corpus", 5), ("data", "text"), ("data", {"sources": {"a": 1}}), ("data", {"sources": ["a"]}),
                                                                     ("settings", [1]), ("settings", {"train": 3}), ("words", "many"), ("words", torch.zeros(1)))]
    for origin in [*origins, "text", None]:
        save({**tree, "provenance": origin})
        with pytest.raises(UserError, match="provenance"):
            checkpoint.load("out/run/last.pt")


def test_weights_beyond_float32_are_refused(last):
    _, tree, save = last
    save({**tree, "weights": {**tree["weights"], "lm_head.weight": torch.full((1000, 32), 1e300, dtype=torch.float64)}})
    with pytest.raises(UserError, match="infinite"):
        checkpoint.load("out/run/last.pt")


@pytest.mark.parametrize("text", ["presets: [1]", "presets: {quick: 3}", "presets: {1: {}}", "preset: [quick]", "preset: 5", "preset: quick\nseed: !!int ''", "a: !!timestamp x",
                                  "[" * 2000, "preset: quick\npresets: {quick: {train: 5}}", "? [a]\n: b"])
def test_odd_settings_files(text, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match="c.yaml"):
        config.load_config(None, (), str(tmp_path / "c.yaml"))


def test_aliases_that_unfold_without_end(tmp_path):
    """Nine lines of YAML that would print as gigabytes."""
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    for key in ("clean: ", "seed: ", "boundary: ", "name: "):
        (tmp_path / "c.yaml").write_text("preset: p\npresets: {p: {}}\n" + "data:\n" + "".join(f"  {line}\n" for line in laughs.splitlines()) + f"  {key}*a8\n")
        with pytest.raises(UserError, match="expected") as e:
            config.load_config(None, (), str(tmp_path / "c.yaml"))
        assert len(str(e.value)) < 10000
