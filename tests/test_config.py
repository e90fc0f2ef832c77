"""Settings, and the files and ends that every command has in common."""

import argparse
import dataclasses
import os
import shutil
import signal
import subprocess
import sys

from conftest import ROOT
from lab import files
from lab.files import UserError
from lab.settings import convert, load_config, parse_args

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import yaml

FILE = str(ROOT / "config.yaml")


def load(*overrides, preset=None, path=FILE):
    return load_config(preset, overrides, path)


def complaint(*overrides, **kwargs):
    with pytest.raises(UserError) as e:
        load(*overrides, **kwargs)
    return str(e.value)


def resolved(config):
    """The text of out/NAME/config.yaml."""
    return yaml.safe_dump({**dataclasses.asdict(config), "presets": {config.preset: {}}})


def test_presets_are_the_published_shapes():
    m, t = load().model, load().train
    assert (m.hidden_size, m.num_hidden_layers, m.num_attention_heads, m.intermediate_size) == (64, 6, 4, 192)
    assert (m.embedding, m.attention, m.mlp, m.layer_sharing, m.num_groups) == (
        "repeat",
        "pwa",
        "shared_projection",
        "share",
        1,
    )
    assert t.batch_size * t.gradient_accumulation_steps * m.max_position_embeddings == 65536 and t.max_steps == 3000
    a, b = load(preset="llama-26m"), load(preset="llama-66m")
    assert (a.model.hidden_size, a.model.intermediate_size, a.tokenizer.vocab_size) == (384, 1536, 16000)
    assert (a.data.budget_mb, a.train.epochs) == (2, 5)
    assert (b.model.hidden_size, b.model.num_hidden_layers, b.tokenizer.vocab_size) == (512, 8, 32000)
    assert b.data.budget_mb == 10 and load(preset="quick").data.source == "pocket"


def test_overrides_win_and_are_typed():
    c = load(
        "train.learning_rate=3e-4",
        "train.max_steps=null",
        "train.epochs=2",
        "train.compile=true",
        "data.sources=[a, b]",
        "data.name=10",
        preset="quick",
    )
    assert c.train.learning_rate == 3e-4 and c.train.max_steps is None and c.train.epochs == 2.0
    assert c.train.compile is True and c.data.sources == ["a", "b"] and c.data.name == "10"
    assert c.data_dir == os.path.join("data", "10")


def test_everything_wrong_is_said_at_once():
    text = complaint("model.hiden_size=3", "train.seed=x", "train.grad_clip=-1", "trian.seed=1", "nonsense")
    assert "5 problems" in text and text.count("\n") == 5
    for word in ("hidden_size", "whole number", "at least 0", "did you mean `train`", "nonsense"):
        assert word in text


def test_epochs_alone_are_enough_and_so_are_steps(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, config = parse_args(argparse.ArgumentParser(), ["train.epochs=1"])
    assert config.train.max_steps is None and config.train.epochs == 1
    assert capsys.readouterr().out == "train.epochs: 1 takes the place of train.max_steps, 3000\n"
    assert load("train.max_steps=9", preset="llama-26m").train.epochs is None
    assert "max_steps" in complaint("train.epochs=1", "train.max_steps=9")


def test_the_next_command_has_the_settings_of_this_one(tmp_path, monkeypatch):
    """It works when pasted: quoted, with the file of settings, and from any folder."""
    monkeypatch.chdir(ROOT)
    _, config = parse_args(argparse.ArgumentParser(), ["data.name=my texts", "--preset", "quick", "--replace"])
    assert config.command("train.py") == "python train.py --preset quick 'data.name=my texts'"
    assert load(path="config.yaml").command("train.py") == "python train.py"
    monkeypatch.chdir(tmp_path)
    shutil.copy(FILE, "my.yaml")
    assert load(path="my.yaml").command("train.py") == f"python {ROOT}/train.py --config my.yaml"


@pytest.mark.parametrize(
    "override, words",
    [
        ("model.num_attention_heads=5", "does not divide hidden_size"),
        ("model.num_key_value_heads=3", "does not divide num_attention_heads"),
        ("model.embedding_factor=5", "embedding_factor"),
        ("model.tie_word_embeddings=true", "tie_word_embeddings"),
        ("model.num_groups=7", "7 groups for 6 layers"),
        ("model.hidden_size=20", "must be even"),
        ("model.hidden_size=0", "model.hidden_size: 0 must be at least 1"),
        ("model.dropout=1", "must be at most 0.9"),
        ("model.attention=mla", "expected one of mha, skqa, pwa, rra"),
        ("model.dropout=[1", "YAML"),
        ("train.batch_size=0", "at least 1"),
        ("train.betas=[0.9]", "betas"),
        ("train.max_steps=null", "max_steps"),
        ("train.lr=1", "did you mean `learning_rate`?"),
        ("train.wd=1", "did you mean `weight_decay`?"),
        ("train.bs=1", "did you mean `batch_size`?"),
        ("model.heads=1", "did you mean `num_attention_heads` or `num_key_value_heads`?"),
        ("model.n_layers=1", "`num_hidden_layers`"),
        ("train.dtype=fp8", "one of auto, float32"),
        ("train.learning_rate=nan", "a number"),
        ("train.learning_rate=1e400", "a number"),
        ("train.learning_rate=0", "above 0"),
        ("train.batch_size=1.5", "whole number"),
        ("train.batch_size=true", "whole number"),
        ("train.min_learning_rate=1", "above learning_rate"),
        ("train.compile=maybe", "one of auto, true, false"),
        ("tokenizer.vocab_size=70000", "at most 65536"),
        ("data.sources=abc", "a list"),
    ],
)
def test_wrong_values(override, words):
    assert words in complaint(override)


def test_combinations_that_cannot_be():
    assert "skqa" in complaint("model.attention=skqa", "model.num_key_value_heads=2")
    assert "reuse" in complaint("model.layer_sharing=reuse", "model.num_hidden_layers=5")


def test_file_faults(tmp_path):
    path = tmp_path / "c.yaml"
    good = (ROOT / "config.yaml").read_text(encoding="utf-8")
    for text, words in (
        ("preset: a\npreset: b\n", "line 2: not valid YAML: key `preset` is given twice"),
        ("a: [1\n", "not valid YAML"),
        ("\t- :", "not valid YAML"),
        ("", "expected the sections"),
        (good.replace("preset: sllama", "preset: slama"), "did you mean `sllama`"),
        (good.replace("  seed: 0  ", "  sed: 0  ", 1), "unknown key; did you mean `seed`"),
        (good.replace("train:\n", "train: 3\nx:\n", 1), "expected settings below it"),
    ):
        path.write_text(text)
        assert words in complaint(path=str(path)), words
    path.write_bytes(b"\xff\xfe")
    assert "UTF-8" in complaint(path=str(path))
    assert "cannot be read" in complaint(path=str(tmp_path / "none.yaml"))


def test_every_preset_comes_back_from_its_resolved_file(tmp_path):
    path = tmp_path / "resolved.yaml"
    for preset in yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))["presets"]:
        path.write_text(resolved(load("train.seed=5", preset=preset)))
        assert load(path=str(path)) == load("train.seed=5", preset=preset)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**60),
    rate=st.floats(1e-9, 1),
    name=st.text(max_size=20),
    tied=st.booleans(),
    sources=st.none() | st.lists(st.text(max_size=9), max_size=3),
    budget=st.none() | st.floats(1e-6, 1e6),
)
def test_any_settings_come_back_from_their_file(tmp_path_factory, seed, rate, name, sources, budget, tied):
    """Also names that YAML might take for something else: null, 1e3, yes, a: b."""
    c = load("model.embedding=full", "train.min_learning_rate=0")
    c.data.name, c.data.sources, c.data.budget_mb = name, sources, budget
    c.model.tie_word_embeddings, c.train.seed, c.train.learning_rate = tied, seed, rate
    path = tmp_path_factory.mktemp("c") / "resolved.yaml"
    path.write_text(resolved(c), encoding="utf-8")
    assert load(path=str(path)) == c


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60))
def test_any_override_is_taken_or_refused(text):
    for item in (text, "train.seed=" + text, "data.name=" + text):
        try:
            load(item)
        except UserError as e:
            assert str(e)


@given(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12)),
    st.sampled_from([int, float, bool, str]),
)
def test_convert_gives_the_type_or_says_what_it_wanted(value, kind):
    try:
        out = convert(value, kind)
    except ValueError as e:
        assert "expected" in str(e)
    else:
        assert type(out) is kind
        assert kind is not int or out == (value if isinstance(value, int) else float(value))


# --- how commands end


def python(code, **kwargs):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, **kwargs)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's")
def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        done = python("from lab import cli; cli.run(lambda: print('x'))", stdout=full)
    assert done.returncode == 2 and done.stderr == "error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    "locale",
    [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0"}],
    ids=str,
)
def test_output_is_utf8_whatever_the_locale(locale):
    code = r"from lab import cli; cli.run(lambda: print('\u00e4 \u65e5'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, env={**os.environ, **locale})
    assert done.returncode == 0 and done.stdout.decode("utf-8").strip() == "ä 日"


AT_IMPORT = """
import os, signal, sys

class PressesCtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, PressesCtrlC())
"""
AT_ARGUMENTS = """
import argparse, os, signal
argparse.ArgumentParser.parse_intermixed_args = lambda *_: os.kill(os.getpid(), signal.SIGINT)
"""


def pressed(code, script, folder):
    """The command, in a Python that runs `code` before it."""
    (folder / "sitecustomize.py").write_text(code)
    return subprocess.run(
        [sys.executable, str(ROOT / script)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )


@pytest.mark.parametrize(
    "script, module",
    [
        ("prepare.py", "sentencepiece"),
        ("eval_blimp.py", "numpy"),
        ("train.py", "torch"),
        ("train.py", "torch.nn"),
        ("sample.py", "torch"),
        ("export.py", "torch"),
    ],
)
def test_ctrl_c_while_python_imports(script, module, tmp_path):
    done = pressed(AT_IMPORT.format(module=module), script, tmp_path)
    assert done.returncode == 130 and done.stderr == "interrupted\n"


@pytest.mark.parametrize("script", ["prepare.py", "train.py"])
def test_ctrl_c_while_arguments_are_read(script, tmp_path):
    done = pressed(AT_ARGUMENTS, script, tmp_path)
    assert done.returncode == 130 and done.stderr == "interrupted\n"


def test_ctrl_c_again_while_ending_is_ignored():
    done = python(
        "import atexit, os, signal\n"
        "from lab import cli\n"
        "press = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "atexit.register(press)\n"
        "cli.run(press)"
    )
    assert done.returncode == 130 and done.stderr == "interrupted\n"


def test_a_second_ctrl_c_does_not_wait_for_the_first():
    done = python(
        "import os, signal, time\n"
        "from lab import cli\n"
        "press = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "def main():\n"
        "    try:\n"
        "        press()\n"
        "    finally:\n"
        "        press()\n"
        "        time.sleep(60)\n"
        "cli.run(main)",
        timeout=30,
    )
    assert done.returncode == 130 and done.stderr == "interrupted\n"


def test_a_command_in_the_background_leaves_ctrl_c_ignored():
    """As under nohup, which has SIGINT ignored before Python starts."""
    code = "import os, signal\nfrom lab import cli\ncli.run(lambda: os.kill(os.getpid(), signal.SIGINT))"
    done = python(code, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert done.returncode == 0 and done.stderr == ""


# --- files


def test_atomic_write_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: events.append(f"{os.fstat(handle).st_size} bytes"))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append("rename") or replace(a, b))
    files.atomic_write(tmp_path / "file", "12345")
    assert events == ["5 bytes", "rename"]


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "file"
    files.atomic_write(path, "old")

    def breaks(f):
        f.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        files.atomic_write(path, breaks)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]
