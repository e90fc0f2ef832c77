import dataclasses
import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT
from lab import files
from lab.files import UserError
from lab.settings import convert, load_config

FILE = str(ROOT / "config.yaml")


def load(*overrides, preset=None, path=FILE):
    return load_config(preset, overrides, path)


def complaint(*overrides, **kwargs):
    with pytest.raises(UserError) as e:
        load(*overrides, **kwargs)
    return str(e.value)


def test_presets_are_the_published_shapes():
    s, a, b = load(), load(preset="llama-26m"), load(preset="llama-66m")
    assert s.preset == "sllama" and (s.model.hidden_size, s.model.num_hidden_layers, s.model.num_attention_heads, s.model.intermediate_size) == (64, 6, 4, 192)
    assert (s.model.embedding, s.model.attention, s.model.mlp, s.model.layer_sharing, s.model.num_groups) == ("repeat", "pwa", "shared_projection", "share", 1)
    assert s.train.batch_size * s.train.gradient_accumulation_steps * s.model.max_position_embeddings == 65536 and s.train.max_steps == 3000
    assert (a.model.hidden_size, a.model.intermediate_size, a.tokenizer.vocab_size, a.data.budget_mb, a.train.epochs) == (384, 1536, 16000, 2, 5)
    assert (b.model.hidden_size, b.model.num_hidden_layers, b.tokenizer.vocab_size, b.data.budget_mb) == (512, 8, 32000, 10)
    assert load(preset="quick").data.source == "pocket"


def test_overrides_win_and_are_typed():
    c = load("train.learning_rate=3e-4", "train.max_steps=null", "train.epochs=2", "train.compile=true", "data.sources=[a, b]", "data.name=10", preset="quick")
    assert c.train.learning_rate == 3e-4 and c.train.max_steps is None and c.train.epochs == 2.0
    assert c.train.compile is True and c.data.sources == ["a", "b"] and c.data.name == "10" and c.data_dir == "data/10"


def test_everything_wrong_is_said_at_once():
    text = complaint("model.hiden_size=3", "train.seed=x", "train.grad_clip=-1", "trian.seed=1", "nonsense")
    assert "5 problems" in text and text.count("\n") == 5
    for word in ("hidden_size", "whole number", "at least 0", "did you mean `train`", "nonsense"):
        assert word in text


@pytest.mark.parametrize("override, words", [
    ("model.num_attention_heads=5", "does not divide hidden_size"), ("model.embedding_factor=5", "embedding_factor"), ("model.tie_word_embeddings=true", "tie_word_embeddings"),
    ("model.num_groups=7", "7 groups for 6 layers"), ("model.hidden_size=20", "must be even"), ("train.batch_size=0", "at least 1"), ("train.betas=[0.9]", "betas"),
    ("train.max_steps=null", "max_steps"), ("train.epochs=3", "max_steps"), ("tokenizer.vocab_size=70000", "at most 65536"), ("train.dtype=fp8", "one of auto, float32"),
    ("train.learning_rate=nan", "a number"), ("train.learning_rate=1e400", "a number"), ("train.batch_size=1.5", "whole number"), ("train.batch_size=true", "whole number"),
    ("data.sources=abc", "a list"), ("model.dropout=[1", "YAML"), ("train.min_learning_rate=1", "above learning_rate"), ("train.compile=maybe", "one of auto, true, false")])
def test_wrong_values(override, words):
    assert words in complaint(override)


def test_skqa_and_groups_of_keys():
    assert "skqa" in complaint("model.attention=skqa", "model.num_key_value_heads=2")
    assert "reuse" in complaint("model.layer_sharing=reuse", "model.num_hidden_layers=5")
    assert "does not divide" in complaint("model.num_key_value_heads=3")


def test_file_faults(tmp_path):
    path = tmp_path / "c.yaml"
    good = (ROOT / "config.yaml").read_text()
    for text, words in (("preset: a\npreset: b\n", "line 2: not valid YAML: key `preset` is given twice"), ("a: [1\n", "not valid YAML"), ("", "expected the sections"),
                        (good.replace("preset: sllama", "preset: slama"), "did you mean `sllama`"),
                        (good.replace("  seed: 0  ", "  sed: 0  ", 1), "unknown key; did you mean `seed`"),
                        (good.replace("train:\n", "train: 3\nx:\n", 1), "expected settings below it"), ("\t- :", "YAML")):
        path.write_text(text)
        assert words in complaint(path=str(path)), words
    path.write_bytes(b"\xff\xfe")
    assert "UTF-8" in complaint(path=str(path))
    assert "cannot be read" in complaint(path=str(tmp_path / "none.yaml"))


def test_a_resolved_config_is_a_config(tmp_path):
    import yaml
    c = load("train.seed=5", preset="llama-26m")
    path = tmp_path / "resolved.yaml"
    path.write_text(yaml.safe_dump({**dataclasses.asdict(c), "presets": {c.preset: {}}}))
    assert load(path=str(path)) == c


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**60), rate=st.floats(1e-9, 1), name=st.text(max_size=20), sources=st.none() | st.lists(st.text(max_size=9), max_size=3),
       budget=st.none() | st.floats(1e-6, 1e6), tied=st.booleans(), betas=st.lists(st.floats(0, 0.999), min_size=2, max_size=2))
def test_any_settings_come_back_from_their_file(tmp_path_factory, seed, rate, name, sources, budget, tied, betas):
    """Also names that YAML might take for something else: null, 1e3, yes, a: b."""
    import yaml
    c = load("model.embedding=full", "train.min_learning_rate=0")
    c.data.name, c.data.sources, c.data.budget_mb, c.model.tie_word_embeddings, c.train.seed, c.train.learning_rate, c.train.betas = name, sources, budget, tied, seed, rate, betas
    path = tmp_path_factory.mktemp("c") / "resolved.yaml"
    path.write_text(yaml.safe_dump({**dataclasses.asdict(c), "presets": {c.preset: {}}}), encoding="utf-8")
    assert load(path=str(path)) == c


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60))
def test_any_override_is_taken_or_refused(text):
    for item in (text, "train.seed=" + text, "data.name=" + text):
        try:
            load(item)
        except UserError as e:
            assert str(e)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12)), st.sampled_from([int, float, bool, str, int | None, list[float]]))
def test_convert_gives_the_type_or_says_what_it_wanted(value, kind):
    try:
        out = convert(value, kind)
    except ValueError as e:
        assert "expected" in str(e)
    else:
        assert out is None or isinstance(out, kind if kind is not int | None else int) if kind != list[float] else isinstance(out, list)
        if kind is int:
            assert not isinstance(out, bool) and float(out) == float(value)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's")
def test_output_that_cannot_be_written_is_one_line():
    done = subprocess.run([sys.executable, "-c", "from lab import commands; commands.run(lambda: print('x'))"], stdout=open("/dev/full", "w"), stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "error: [Errno 28] No space left on device" in done.stderr


def test_ctrl_c_again_while_ending_is_ignored():
    code = "import atexit, os, signal; from lab import commands; press = lambda: os.kill(os.getpid(), signal.SIGINT); atexit.register(press); commands.run(press)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 130 and done.stderr == "interrupted\n"


def test_atomic_write_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Content synced, then renamed, then the folder synced, so that the new name survives a power cut too."""
    events, fsync, replace = [], os.fsync, os.replace

    def synced(handle):
        events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"{os.fstat(handle).st_size} bytes")
        fsync(handle)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda a, b: events.append("rename") or replace(a, b))
    files.atomic_write(tmp_path / "file", "12345")
    assert events == ["5 bytes", "rename", "folder"]


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "file"
    files.atomic_write(path, "old")

    def breaks(f):
        f.write(b"half")
        raise OSError(28, "No space left on device")
    with pytest.raises(UserError, match="No space left"):
        files.atomic_write(path, breaks)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]
