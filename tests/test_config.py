"""lab/settings.py: every setting is taken as it was meant, or refused with what is wrong."""

import argparse
import dataclasses
import os
import shutil

from conftest import ROOT
from lab.files import UserError
from lab.settings import convert, load_config, parse_args

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import yaml

FILE = str(ROOT / "config.yaml")
TEXT = (ROOT / "config.yaml").read_text(encoding="utf-8")


def load(*overrides, preset=None, path=FILE):
    return load_config(preset, overrides, path)


def complaint(*overrides, **kwargs):
    with pytest.raises(UserError) as e:
        load(*overrides, **kwargs)
    return str(e.value)


def resolved(config):
    """The text of out/NAME/config.yaml."""
    return yaml.safe_dump({**dataclasses.asdict(config), "presets": {config.preset: {}}})


SHAPES = {  # facts of the released code and of both model cards
    "sllama": ["64 wide", "6 layers", "4 heads", "MLP 192", "32000 pieces", "65536 tokens a step"],
    "llama-26m": ["384 wide", "6 layers", "6 heads", "MLP 1536", "16000 pieces", "32768 tokens a step"],
    "llama-66m": ["512 wide", "8 layers", "8 heads", "MLP 2048", "32000 pieces", "32768 tokens a step"],
}


@pytest.mark.parametrize("preset", SHAPES)
def test_presets_are_the_published_shapes(preset):
    config = load(preset=preset)
    m, t = config.model, config.train
    tokens = t.batch_size * t.gradient_accumulation_steps * m.max_position_embeddings
    shape = [f"{m.hidden_size} wide", f"{m.num_hidden_layers} layers", f"{m.num_attention_heads} heads"]
    shape += [f"MLP {m.intermediate_size}", f"{m.vocab_size} pieces", f"{tokens} tokens a step"]
    assert shape == SHAPES[preset]


def test_overrides_win_and_are_typed():
    given = ["train.learning_rate=3e-4", "train.compile=true", "data.sources=[a, b]", "data.name=10"]
    c = load(*given, preset="quick")
    assert c.train.learning_rate == 3e-4 and c.train.compile is True
    assert c.data.sources == ["a", "b"] and c.data_dir == os.path.join("data", "10")


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
        ("model.attention=skqa model.num_key_value_heads=2", "skqa"),
        ("model.embedding_factor=5", "embedding_factor"),
        ("model.tie_word_embeddings=true", "tie_word_embeddings"),
        ("model.num_groups=7", "7 groups for 6 layers"),
        ("model.layer_sharing=reuse model.num_hidden_layers=5", "reuse"),
        ("model.hidden_size=20", "must be even"),
        ("model.hidden_size=0", "model.hidden_size: 0 must be at least 1"),
        ("model.dropout=1", "must be at most 0.9"),
        ("model.attention=mla", "expected one of mha, skqa, pwa, rra"),
        ("model.dropout=[1", "YAML"),
        ("train.betas=[0.9]", "betas"),
        ("train.max_steps=null", "max_steps"),
        ("train.lr=1", "did you mean `learning_rate`?"),
        ("train.wd=1", "did you mean `weight_decay`?"),
        ("model.heads=1", "did you mean `num_attention_heads` or `num_key_value_heads`?"),
        ("model.n_layers=1", "`num_hidden_layers`"),
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
    assert words in complaint(*override.split())


@pytest.mark.parametrize(
    "text, words",
    [
        ("preset: a\npreset: b\n", "line 2: not valid YAML: key `preset` is given twice"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("[" * 500, "not valid YAML"),
        ("", "expected the sections"),
        ("presets: {quick: 3}", "expected the sections"),
        (TEXT.replace("preset: sllama", "preset: slama"), "did you mean `sllama`"),
        (TEXT.replace("  seed: 0  ", "  sed: 0  ", 1), "unknown key; did you mean `seed`"),
        (TEXT.replace("train:\n", "train: 3\nx:\n", 1), "expected settings below it"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "cannot be read"),
    ],
    ids=range(11),
)
def test_faults_of_the_file(text, words, tmp_path):
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = complaint(path=str(path))
    assert words in found and str(path) in found


@pytest.mark.parametrize("preset", yaml.safe_load(TEXT)["presets"])
def test_every_preset_comes_back_from_its_resolved_file(preset, tmp_path):
    config = load("train.seed=5", preset=preset)
    (tmp_path / "resolved.yaml").write_text(resolved(config))
    assert load(path=str(tmp_path / "resolved.yaml")) == config


@pytest.mark.slow
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


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60))
def test_any_override_is_taken_or_refused(text):
    for item in (text, "train.seed=" + text, "data.name=" + text):
        try:
            load(item)
        except UserError as e:
            assert str(e)


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12))


@given(VALUES, st.sampled_from([int, float, bool, str]))
def test_convert_gives_the_type_or_says_what_it_wanted(value, kind):
    try:
        out = convert(value, kind)
    except ValueError as e:
        assert "expected" in str(e)
    else:
        assert type(out) is kind
        assert kind is not int or out == (value if isinstance(value, int) else float(value))
