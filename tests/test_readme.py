"""Every command and example of README.md and docs/, in their order, in one empty folder: as written, but small."""

import argparse
import importlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import subprocess
import sys

from conftest import ROOT, TINY
from lab import settings
from lab.text import pocket_english
import model
import tokenizer

import pytest

NAMES = "README docs/commands docs/own_text docs/cluster docs/faq docs/robustness bench/README".split()
PAGES = {f"{name}.md": (ROOT / f"{name}.md").read_text(encoding="utf-8") for name in NAMES}
# These are read and not run: they need the network, several machines, another project or many minutes. The shell parses
# them, and what they give to our files is checked.
ONLY_READ = re.compile(
    r"python eval_blimp.py bert|python -m (?!bench\.experiments\.uniform)|pip |uv |git |cd |bash |for |torchrun|hf "
)
TRAIN = "train.resume=never train.max_steps=4 train.epochs=null train.max_words=null train.eval_every=4 train.warmup=1"
SMALL = {  # what each command is given besides
    "prepare.py": "data.pocket_words=20000 data.validation_kb=4 data.budget_mb=null tokenizer.vocab_size=400 --replace",
    "train.py": " ".join([*TINY[2:], TRAIN]),
    "eval_blimp.py": "--max-pairs-per-paradigm 2",
    "sample.py": "--max-tokens 5",
    "export.py": "",
    "bench.experiments.uniform": "--data data/pocket/pairs",
}


def examples(text):
    """(kind, text) of everything that a page shows.

    Each line of an `sh` block, commands in the text and in tables, whole blocks of the other kinds; for `make`, what it
    runs first.
    """
    pattern = r"^```(\w*)\n(.*?)^```$|`((?:python|pip|uv|torchrun|for) [^`\n]+)`"
    for language, body, inline in re.findall(pattern, text, re.S | re.M):
        if not inline and language != "sh":
            yield language, body
            continue
        for line in (inline or body).replace("\\\n", " ").splitlines():
            if line.split("#")[0].strip() == "make":
                makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
                yield from (("sh", f"python {run}") for run in re.findall(r"^\t\$\(V\) (\w+\.py .*)$", makefile, re.M))
            elif line.split("#")[0].strip():
                yield "sh", line


@pytest.fixture
def walk(tmp_path, monkeypatch, handlers):
    """An empty folder with what the pages ask the reader to bring: texts, pairs, a tokenizer."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "models", "models")
    shutil.copytree(ROOT / "docs", "docs")
    (tmp_path / "FOLDER").mkdir()
    for seed, name in enumerate(("simple_wiki", "bnc_spoken", "open_subtitles")):
        lines = [line for line in pocket_english.text(8000, seed=seed) if line]
        (tmp_path / "FOLDER" / f"{name}.train").write_text("\n".join(lines) + "\n")
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.train(lines, 400).model_bytes)
    (tmp_path / "sentences.txt").write_text("The cats run.\nA dog sleeps.\n")
    (tmp_path / "data/blimp").mkdir(parents=True)
    pair = {"sentence_good": "The cats run.", "sentence_bad": "The cats runs."}
    (tmp_path / "data/blimp/mine.jsonl").write_text(json.dumps(pair) + "\n")
    monkeypatch.setattr(model, "ATTENTION", dict(model.ATTENTION))  # an example adds to it
    return tmp_path


def shell(line, folder):
    """Runs a line with a `python` that only notes its arguments and what is piped into it; returns both."""
    noting = "python() { printf '%s\\0' \"$@\" > words; if [ -p /dev/stdin ]; then cat; fi; }"
    (folder / "words").write_text("")
    command = ["bash", "-c", f"{noting}\n{line}"]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return (folder / "words").read_text().split("\0")[:-1], done.stdout.decode()


def run(line, folder, monkeypatch, capsys):
    """Runs a line of a page, one of our commands in this process; returns what it printed."""
    words, piped = shell(line, folder)
    if not words:  # not one of ours: mkdir, echo, ...
        return piped
    if words[0] == "-m":
        del words[0]
    name = words[0]
    if "--surprisal" not in words:  # which takes no setting of pairs
        words += SMALL[name].split()
    if name == "eval_blimp.py":
        words.append("--replace")  # the pages share a folder
    if name == "prepare.py" and not any(word.startswith("data.source=") for word in words):
        words.append("data.source=pocket")  # instead of the network
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
    assert importlib.import_module(name.removesuffix(".py")).main() in (None, 0)
    return capsys.readouterr().out


def only_read(line):
    """The shell takes the line, and torchrun and config.yaml take what is in it; modules are there."""
    subprocess.run(["bash", "-n"], input=line, text=True, check=True)
    for module in re.findall(r"python -m ((?:bench|tests)[\w.]+)", line):
        assert importlib.util.find_spec(module), line
    for command in re.findall(r"torchrun ([^|;\n]*)", line.replace("\\\n", " ")):
        from torch.distributed.run import get_args_parser

        args = get_args_parser().parse_args(shlex.split(command, comments=True))
        assert (ROOT / args.training_script).exists()
        settings.parse_args(argparse.ArgumentParser(), args.training_script_args)


def test_every_command_and_example(walk, monkeypatch, capsys):
    printed, read = {}, 0
    for name, page in PAGES.items():
        for kind, text in examples(page):
            if kind == "python":  # a trick is written into model.py, anything else runs by itself
                exec(text, vars(model) if "class " in text else {})
            elif kind == "sbatch" or (kind == "sh" and ONLY_READ.match(text)):
                only_read(text)
                read += 1
            elif kind == "sh":
                printed[text] = run(text, walk, monkeypatch, capsys)
            else:  # what a command prints
                assert kind == "text", f"{name}: a block of kind `{kind}`, which nothing here runs: {text[:60]}"
    assert len(printed) >= 24 and read >= 6
    esperanto = next(out for line, out in printed.items() if "--data esperanto_pairs" in line)
    assert "agreement" in esperanto and "data/mine" not in esperanto
    first = next(out for line, out in printed.items() if "--probabilities" in line).strip().splitlines()
    assert len(first) == 6 and all(re.fullmatch(r" *\d\.\d{4}  .*", line) for line in first[1:])
    assert (walk / "blimp.png").stat().st_size > 5000


def test_links_lead_somewhere():
    """Files and headings that the pages at the top, in results/, docs/ and bench/ link to, and the tests that
    docs/robustness.md names as evidence.
    """
    for page in [path for folder in ("", "results", "docs", "bench") for path in (ROOT / folder).glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text(encoding="utf-8")):
            path, _, heading = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), f"{page}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.M)
                anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
                assert heading in anchors, f"{page}: {target}"
    for name, test in re.findall(r"`(\w+)::(test_\w+)`", PAGES["docs/robustness.md"]):
        assert f"def {test}(" in (ROOT / f"tests/test_{name}.py").read_text(encoding="utf-8"), f"{name}::{test}"
