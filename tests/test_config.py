"""lab/settings.py: every setting is taken as it was meant, or refused with what is wrong and where it stands."""

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


def saved_and_loaded(config, folder):
    """The settings that out/NAME/config.yaml of a run with `config` gives."""
    path = folder / "resolved.yaml"
    path.write_text(yaml.safe_dump({**dataclasses.asdict(config), "presets": {config.preset: {}}}), encoding="utf-8")
    return load(path=str(path))


SHAPES = {  # facts of the released code and of both model cards
    "sllama": "64 wide, 6 layers, 4 heads, MLP 192, 32000 pieces, 65536 tokens a step",
    "llama-26m": "384 wide, 6 layers, 6 heads, MLP 1536, 16000 pieces, 32768 tokens a step",
    "llama-66m": "512 wide, 8 layers, 8 heads, MLP 2048, 32000 pieces, 32768 tokens a step",
}


@pytest.mark.parametrize("preset", SHAPES)
def test_presets_are_the_published_shapes(preset):
    config = load(preset=preset)
    m, t = config.model, config.train
    tokens = t.batch_size * t.gradient_accumulation_steps * m.max_position_embeddings
    shape = f"{m.hidden_size} wide, {m.num_hidden_layers} layers, {m.num_attention_heads} heads, "
    shape += f"MLP {m.intermediate_size}, {m.vocab_size} pieces, {tokens} tokens a step"
    assert shape == SHAPES[preset]


def test_overrides_win_and_are_typed():
    given = ["train.learning_rate=3e-4", "train.compile=true", "data.sources=[a, b]", "data.name=10"]
    c = load(*given, preset="quick")
    assert c.train.learning_rate == 3e-4 and c.train.compile is True
    assert c.data.sources == ["a", "b"] and c.data_dir == os.path.join("data", "10")


def test_the_length_typed_takes_the_place_of_the_file_s(tmp_path):
    assert load("train.epochs=1").train.max_steps is None
    assert load("train.max_steps=9", preset="llama-26m").train.epochs is None
    assert "either max_steps or epochs" in complaint("train.epochs=1", "train.max_steps=9")
    words = saved_and_loaded(load("train.max_words=5e6"), tmp_path)
    assert words.train.max_words == 5e6
    assert load("train.max_steps=9", path=str(tmp_path / "resolved.yaml")).train.max_words is None


def test_everything_wrong_is_said_at_once_and_where_it_stands(tmp_path):
    path = str(tmp_path / "mine.yaml")
    with open(path, "w") as f:
        f.write(TEXT.replace("  copies: 1 ", "  copies: 0 "))
    typed = ["model.hiden_size=3", "train.seed=x", "train.grad_clip=-1", "trian.seed=1"]
    first, *lines = complaint(*typed, path=path).splitlines()
    assert first == "5 problems" and {*lines} == {
        "  - command line: model.hiden_size: unknown key; did you mean `hidden_size`?",
        "  - command line: train.grad_clip: -1: must be at least 0",
        "  - command line: train.seed: 'x': expected a whole number",
        "  - command line: trian: unknown key; did you mean `train`?",
        f"  - {path}: data.copies: 0: must be at least 1",
    }


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
        ("nonsense", "`nonsense`: expected section.key=value"),
        ("model.dropout=[1", "model.dropout=[1: line 1: not valid YAML"),
        ("model.attention=mla", "model.attention: 'mla': expected one of mha, skqa, pwa, rra"),
        ("model.hidden_size=20", "num_attention_heads: hidden_size/heads = 5 must be even"),
        ("train.lr=1", "did you mean `learning_rate`?"),
        ("model.n_heads=1", "did you mean `num_attention_heads` or `num_key_value_heads`?"),
        ("model.layers=1", "did you mean `num_hidden_layers` or `layer_sharing`?"),
        ("train.seed=!!timestamp x", "not valid YAML"),
        ("train.min_learning_rate=1", "1.0 is above learning_rate 0.0004"),
        ("train.betas=[0.9]", "betas: [0.9] is not two numbers"),
        ("train.max_steps=null", "either max_steps or epochs"),
        ("train.learning_rate=1e400", "expected a number"),
        ("train.learning_rate=0", "must be above 0"),
        ("train.batch_size=1.5", "expected a whole number"),
        ("train.batch_size=true", "expected a whole number"),
        ("train.compile=maybe", "expected one of auto, true, false"),
        ("tokenizer.vocab_size=70000", "must be at most 65536"),
        ("data.sources=abc", "expected a list"),
    ],
)
def test_wrong_values(override, words):
    found = complaint(override)
    assert words in found and found.startswith("command line: ")


@pytest.mark.parametrize(
    "text, words",
    [
        ("preset: a\npreset: b\n", "line 2: not valid YAML: key `preset` is given twice"),
        ("a: [1\n", "not valid YAML"),
        ("[" * 500, "not valid YAML"),
        ("", "expected the sections"),
        ("preset: quick\npresets: {quick: 3}", "there is no preset `quick`"),
        (TEXT.replace("preset: sllama", "preset: slama"), "there is no preset `slama`; did you mean `sllama`?"),
        (TEXT.replace("  seed: 0  ", "  sed: 0  ", 1), "unknown key; did you mean `seed`"),
        (TEXT.replace("train:\n", "train: 3\nx:\n", 1), "expected settings below it"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "cannot be read"),
    ],
    ids=range(10),
)
def test_faults_of_the_file(text, words, tmp_path):
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = complaint(path=str(path))
    assert words in found and str(path) in found and "command line" not in found


@pytest.mark.slow
@settings(max_examples=30)
@given(
    preset=st.sampled_from([*yaml.safe_load(TEXT)["presets"]]),
    seed=st.integers(0, 2**60),
    rate=st.floats(1e-9, 1),
    name=st.text(max_size=20),
    sources=st.none() | st.lists(st.text(max_size=9), max_size=3),
)
def test_any_settings_come_back_from_their_file(tmp_path_factory, preset, seed, rate, name, sources):
    """Also names that YAML might take for something else: null, 1e3, yes, a: b."""
    c = load("train.min_learning_rate=0", preset=preset)
    c.data.name, c.data.sources, c.train.seed, c.train.learning_rate = name, sources, seed, rate
    assert saved_and_loaded(c, tmp_path_factory.mktemp("c")) == c


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
