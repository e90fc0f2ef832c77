"""Every command and example of README.md, in its order, in one empty folder: as written, plus settings that make it small."""
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import model
import train
from conftest import ROOT
from export import unfold
from lab import files, pocket_english
from lab import settings as config

README = (ROOT / "README.md").read_text(encoding="utf-8")
# Not run here, only read: they need the network, several machines, another project or half an hour. Their shell is parsed, and what they give to our files is checked.
ONLY_READ = ("pip install", "git clone", "cd pipeline", "bash ", "for r in", "torchrun", "python bench/fuzz.py")
DATA = ["data.pocket_words=20000", "data.validation_kb=4", "data.budget_mb=null", "tokenizer.vocab_size=400"]
TRAIN = ["model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=2", "model.intermediate_size=48", "model.max_position_embeddings=32",
         "train.batch_size=4", "train.max_steps=4", "train.epochs=null", "train.eval_every=4", "train.save_every=4", "train.eval_windows=4", "train.warmup=1",
         "train.device=cpu", "train.resume=never"]
SMALL = {"prepare.py": DATA, "train.py": TRAIN, "eval_blimp.py": ["--max-pairs-per-paradigm", "2"], "sample.py": ["--max-tokens", "5"], "export.py": [],
         "bench/sampling.py": ["--rounds", "1", "--tokens", "4"], "bench/uniform.py": ["--data", "data/pocket/pairs"], "bench/kill.py": ["--kills", "1", "--steps", "3"],
         "bench/tricks.py": ["--out", "tricks.png"]}


def examples():
    """(kind, text) of all that README shows: each line of an `sh` block, commands in the text and in tables, whole blocks of the other kinds."""
    for language, body, inline in re.findall(r"^```(\w*)\n(.*?)^```$|`((?:python|pip|torchrun|for) [^`\n]+)`", README, re.S | re.M):
        if inline:
            yield "sh", inline
        elif language == "sh":
            yield from (("sh", line) for line in body.splitlines())
        else:
            yield language, body


def expanded(line, cwd):
    """The words of a command line after the shell's quotes, globs and substitutions, and what is piped into it."""
    piped, _, line = line.rpartition(" | python ") if " | python " in line else ("", "", line.split("python ", 1)[-1])
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], cwd=cwd, capture_output=True, check=True, text=True).stdout.split("\0")[:-1]
    return words, subprocess.run(["bash", "-c", piped], capture_output=True, check=True, text=True).stdout


@pytest.fixture
def walk(tmp_path, monkeypatch):
    """An empty folder with what README asks the reader to bring: texts, a tokenizer, the challenge's data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    for seed, name in enumerate(("simple_wiki", "bnc_spoken", "open_subtitles")):
        (tmp_path / "FOLDER" / f"{name}.train").write_text("".join(line + "\n" for line in pocket_english.text(8000, seed=seed) if line))
    for folder in ("pipeline/evaluation_data/full_eval/blimp_filtered", "pipeline/evaluation_data/fast_eval/blimp_fast", "data/blimp"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "mine.jsonl").write_text(json.dumps({"sentence_good": "The cats run.", "sentence_bad": "The cats runs."}) + "\n")
    monkeypatch.setattr(train.Run, "words", lambda run, step: step * 500_000)       # 4 steps pass the marks at 1 and 2 million words
    monkeypatch.setitem(model.ATTENTION, "mha", model.ATTENTION["mha"])             # an example adds to it: put back at the end
    monkeypatch.setattr(model, "ATTENTION", dict(model.ATTENTION))
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for s, handler in handlers.items():
        signal.signal(s, handler)


def run_command(line, cwd, monkeypatch, capsys):
    """Runs one of our files in this process, as its command line would; returns what it printed."""
    (script, *words), piped = expanded(line, cwd)
    words += SMALL[script]
    if script == "prepare.py" and not any(w.startswith("data.source=") for w in words):
        words.append("data.source=pocket")                              # instead of the network
    if script == "bench/uniform.py":
        shutil.copy(next(cwd.glob("data/*/tokenizer.model")), "tokenizer.model")
    if script == "bench/kill.py":                                       # forks: a process of its own
        done = subprocess.run([sys.executable, ROOT / script, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout
    spec = importlib.util.spec_from_file_location("command_" + pathlib.Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec) if script != "train.py" else train
    if script != "train.py":
        spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [script, *words])
    read, write = os.pipe()
    os.write(write, piped.encode())
    os.close(write)
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert module.main() in (None, 0)
    return capsys.readouterr().out


def only_read(line):
    """The shell takes the line, and torchrun and config.yaml take what is in it."""
    subprocess.run(["bash", "-n"], input=line, text=True, check=True)
    for command in re.findall(r"torchrun [^|;\n]*", line):
        from torch.distributed.run import get_args_parser
        args = get_args_parser().parse_args(shlex.split(command, comments=True)[1:])
        assert (ROOT / args.training_script).exists()
        options = args.training_script_args
        config.load_config(options[options.index("--preset") + 1], [o for o in options if "=" in o], str(ROOT / "config.yaml"))


def test_every_command_and_example(walk, monkeypatch, capsys):
    printed, ran, read = {}, 0, 0
    for kind, text in examples():
        if kind == "python" and "class " in text:                       # a new trick, written into model.py
            exec(text, vars(model))
        elif kind == "python":
            exec(text, {})
        elif kind == "sbatch":
            only_read(text)
        elif kind == "sh" and text.split("#")[0].strip() == "make":
            wanted = subprocess.run(["make", "-n", "-C", ROOT], capture_output=True, text=True).stdout if shutil.which("make") else README
            assert all(f"{script}.py" in wanted for script in ("prepare", "train", "eval_blimp", "sample"))
        elif kind == "sh" and text.startswith(ONLY_READ):
            only_read(text)
            read += 1
        elif kind == "sh" and text.strip():
            printed[text] = run_command(text, walk, monkeypatch, capsys)
            ran += 1
        else:
            assert not text.strip(), f"README: a block of kind `{kind}`, which nothing here runs: {text[:60]}"
    assert ran >= 25 and read >= 8
    assert sorted(os.listdir("my-babylm")) == ["chck_1M", "chck_2M", "main"] and os.listdir("my-babylm/main") == ["my-babylm"]
    assert all(len(rows["predictions"]) for rows in json.loads(pathlib.Path("predictions.json").read_text()).values())
    assert pathlib.Path("tricks.png").stat().st_size > 5000 and pathlib.Path("words.png").exists() and pathlib.Path("blimp.png").exists()
    esperanto = next(out for line, out in printed.items() if "--data my_pairs" in line)
    assert "agreement" in esperanto and "data/mine" not in esperanto
    first = next(out for line, out in printed.items() if "--probabilities" in line)
    assert all(re.fullmatch(r" *\d\.\d{4}  .*", line) for line in first.strip().splitlines()[1:]) and len(first.strip().splitlines()) == 6


def test_the_new_trick_is_a_whole_one(walk):
    """README's attention: counted, causal, the same with a cache, and exported like any other."""
    exec(next(text for kind, text in examples() if kind == "python" and "class " in text), vars(model))
    shape = dict(vocab_size=61, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, max_position_embeddings=32)
    for kv in (4, 2):
        c = config.model_config({**shape, "num_key_value_heads": kv, "attention": "skv"})
        torch.manual_seed(0)
        m = model.Model(c).eval()
        assert sum(model.parameter_counts(c).values()) == sum(p.numel() for p in m.parameters()) < sum(model.parameter_counts(config.ModelConfig(**shape)).values())
        ids = torch.randint(61, (2, 12))
        out, changed = m(ids), ids.clone()
        changed[:, 8:] = (ids[:, 8:] + 1) % 61
        assert torch.allclose(m(changed)[:, :8], out[:, :8], atol=1e-6) and not torch.allclose(m(changed)[:, 8:], out[:, 8:], atol=1e-3)
        cache = model.KVCache()
        m.step(ids[:, :5], cache)
        assert torch.allclose(m.step(ids[:, 5:], cache), out[:, -1], atol=1e-5)
        plain = model.Model(config.model_config({**shape, "num_key_value_heads": kv})).eval()
        weights = unfold(m)[1]
        for name, p in plain.named_parameters():
            ours = re.sub(r"^(attention|mlp)\.(\d+)", lambda found: f"layers.{found[2]}.{'self_attn' if found[1] == 'attention' else 'mlp'}", name)
            p.data.copy_(weights[ours if name == "lm_head.weight" else f"model.{ours}"])
        assert torch.allclose(plain(ids), out, atol=1e-5)


def test_an_unknown_attention_is_a_mistake():
    with pytest.raises(files.UserError, match="attention: 'none': expected one of mha, skqa, pwa, rra"):
        config.load_config(None, ["model.attention=none"], str(ROOT / "config.yaml"))


def test_pictures_and_files_that_the_readme_names_exist():
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / name).exists(), name
    assert all(path.stat().st_size < 150_000 for path in (ROOT / "assets").iterdir())
