"""Every command and example of README.md and docs/, in their order, in one empty folder: as written, but small."""

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

from conftest import ROOT
from export import unfold
from lab import files
from lab import settings as config
from lab.text import pocket_english
import model

import pytest
import torch

PAGES = [
    "README.md",
    "docs/commands.md",
    "docs/own_text.md",
    "docs/cluster.md",
    "docs/faq.md",
    "docs/robustness.md",
    "bench/README.md",
]
# Only read, not run: they need the network, several machines, another project or many minutes; likewise the modules
# that SMALL does not know. Their shell is parsed, and what they give to our files is checked.
ONLY_READ = (
    "python eval_blimp.py bert-base-uncased",
    "pip install",
    "uv ",
    "git clone",
    "cd ",
    "bash ",
    "for ",
    "torchrun",
    "hf ",
    "python -m venv",
)
DATA = ["data.pocket_words=20000", "data.validation_kb=4", "data.budget_mb=null", "tokenizer.vocab_size=400"]
TRAIN = [
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=48",
    "model.max_position_embeddings=32",
    "train.batch_size=4",
    "train.max_steps=4",
    "train.epochs=null",
    "train.max_words=null",
    "train.eval_every=4",
    "train.save_every=4",
    "train.eval_windows=4",
    "train.warmup=1",
    "train.device=cpu",
    "train.resume=never",
]
SMALL = {
    "prepare.py": [*DATA, "--replace"],  # the pages prepare one name from several sources
    "train.py": TRAIN,
    "eval_blimp.py": ["--max-pairs-per-paradigm", "2"],
    "sample.py": ["--max-tokens", "5"],
    "export.py": [],
    "bench.experiments.uniform": ["--data", "data/pocket/pairs"],
    "tests.kill": ["--kills", "1", "--steps", "3"],
}


def is_only_read(line):
    module = re.match(r"python -m (\S+)", line)
    return line.startswith(ONLY_READ) or bool(module and module[1] not in SMALL)


def pages():
    """{name: text} of the pages that are there."""
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES if (ROOT / name).exists()}


def examples(text):
    """(kind, text) of all that a page shows.

    Each line of an `sh` block, commands in the text and in tables, whole blocks of the other kinds.
    """
    pattern = r"^```(\w*)\n(.*?)^```$|`((?:python|pip|uv|torchrun|for) [^`\n]+)`"
    for language, body, inline in re.findall(pattern, text, re.S | re.M):
        if inline:
            yield "sh", inline
        elif language == "sh":
            for line in body.replace("\\\n", " ").splitlines():
                yield "sh", line
        else:
            yield language, body


def expanded(line, cwd):
    """The words of a command line after the shell's quotes, globs and substitutions, and what is piped into it."""
    piped, command = "", line.split("python ", 1)[-1]
    if " | python " in line:
        piped, command = line.split(" | python ", 1)
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], cwd=cwd, capture_output=True, check=True)
    given = subprocess.run(["bash", "-c", piped], capture_output=True, check=True)
    return words.stdout.decode().split("\0")[:-1], given.stdout


@pytest.fixture
def walk(tmp_path, monkeypatch):
    """An empty folder with what the pages ask the reader to bring: texts, the challenge's data."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "models", tmp_path / "models")
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "my_texts").mkdir()
    for seed, name in enumerate(("simple_wiki", "bnc_spoken", "open_subtitles")):
        lines = [line + "\n" for line in pocket_english.text(8000, seed=seed) if line]
        (tmp_path / "FOLDER" / f"{name}.train").write_text("".join(lines))
    shutil.copy("FOLDER/simple_wiki.train", "my_texts")
    (tmp_path / "sentences.txt").write_text("The cats run.\nA dog sleeps.\n")
    for folder in ("data/blimp", "my_pairs"):
        (tmp_path / folder).mkdir(parents=True)
        pair = {"sentence_good": "The cats run.", "sentence_bad": "The cats runs."}
        (tmp_path / folder / "mine.jsonl").write_text(json.dumps(pair) + "\n")
    monkeypatch.setattr(model, "ATTENTION", dict(model.ATTENTION))  # an example adds to it
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for s, handler in handlers.items():
        signal.signal(s, handler)


def run_command(line, cwd, monkeypatch, capsys):
    """Runs one of our files in this process, as its command line would; returns what it printed."""
    words, piped = expanded(line, cwd)
    name = words.pop(0)
    if name == "-m":
        name = words.pop(0)
    if "--surprisal" not in words:  # which takes no setting of pairs
        words += SMALL[name]
    if name == "prepare.py" and not any(word.startswith("data.source=") for word in words):
        words.append("data.source=pocket")  # instead of the network
    if name == "bench.experiments.uniform":
        shutil.copy(next(cwd.glob("data/*/tokenizer.model")), "tokenizer.model")
    if name == "tests.kill":  # forks: a process of its own
        done = subprocess.run([sys.executable, "-m", name, *words], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout
    module = importlib.import_module(name.removesuffix(".py"))
    monkeypatch.setattr(sys, "argv", [name, *words])
    read, write = os.pipe()
    os.write(write, piped)
    os.close(write)
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert module.main() in (None, 0)
    return capsys.readouterr().out


def only_read(line):
    """The shell takes the line, and torchrun and config.yaml take what is in it; modules are there."""
    subprocess.run(["bash", "-n"], input=line, text=True, check=True)
    for module in re.findall(r"python -m ((?:bench|tests)[\w.]+)", line):
        assert importlib.util.find_spec(module), line
    for command in re.findall(r"torchrun [^|;\n]*", line.replace("\\\n", " ")):
        from torch.distributed.run import get_args_parser

        args = get_args_parser().parse_args(shlex.split(command, comments=True)[1:])
        assert (ROOT / args.training_script).exists()
        options = args.training_script_args
        preset = options[options.index("--preset") + 1] if "--preset" in options else None
        config.load_config(preset, [o for o in options if "=" in o], str(ROOT / "config.yaml"))


def first_run():
    """The commands that `make` runs."""
    found = re.findall(r"^\t\$\(V\) (\w+\.py .*)$", (ROOT / "Makefile").read_text(), re.M)
    assert [line.split()[0] for line in found] == ["prepare.py", "train.py", "eval_blimp.py", "sample.py"]
    return found


def test_every_command_and_example(walk, monkeypatch, capsys):
    printed, ran, read = {}, 0, 0
    for name, page in pages().items():
        for kind, text in examples(page):
            if kind == "python" and "class " in text:  # a new trick, written into model.py
                exec(text, vars(model))
            elif kind == "python":
                exec(text, {})
            elif kind == "sbatch":
                only_read(text)
            elif kind == "text" or not text.split("#")[0].strip():  # what a command prints; an empty line
                pass
            elif kind == "sh" and text.split("#")[0].strip() == "make":
                for line in first_run():
                    run_command(f"python {line}", walk, monkeypatch, capsys)
            elif kind == "sh" and is_only_read(text):
                only_read(text)
                read += 1
            elif kind == "sh":
                printed[text] = run_command(text, walk, monkeypatch, capsys)
                ran += 1
            else:
                pytest.fail(f"{name}: a block of kind `{kind}`, which nothing here runs: {text[:60]}")
    assert ran >= 20 and read >= 5
    esperanto = next(out for line, out in printed.items() if "--data esperanto_pairs" in line)
    assert "agreement" in esperanto and "data/mine" not in esperanto
    first = next(out for line, out in printed.items() if "--probabilities" in line).strip().splitlines()
    assert len(first) == 6 and all(re.fullmatch(r" *\d\.\d{4}  .*", line) for line in first[1:])
    assert pathlib.Path("blimp.png").stat().st_size > 5000


def readme_trick():
    """The code of the new attention in README.md."""
    return next(text for kind, text in examples(pages()["README.md"]) if kind == "python" and "class " in text)


def test_the_new_trick_is_a_whole_one(walk):
    """README's attention: counted, causal, the same with a cache, and exported like any other."""
    exec(readme_trick(), vars(model))
    shape = dict(
        vocab_size=61,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    full = sum(model.parameter_counts(model.ModelConfig(**shape)).values())
    for kv in (4, 2):
        c = config.model_config({**shape, "num_key_value_heads": kv, "attention": "skv"})
        torch.manual_seed(0)
        m = model.Model(c).eval()
        assert sum(model.parameter_counts(c).values()) == sum(p.numel() for p in m.parameters()) < full
        ids = torch.randint(61, (2, 12))
        out, changed = m(ids), ids.clone()
        changed[:, 8:] = (ids[:, 8:] + 1) % 61
        assert torch.allclose(m(changed)[:, :8], out[:, :8], atol=1e-6)
        assert not torch.allclose(m(changed)[:, 8:], out[:, 8:], atol=1e-3)
        cache = model.KVCache()
        m.step(ids[:, :5], cache)
        assert torch.allclose(m.step(ids[:, 5:], cache), out[:, -1], atol=1e-5)
        plain = model.Model(config.model_config({**shape, "num_key_value_heads": kv})).eval()
        weights = unfold(m)[1]
        for name, p in plain.named_parameters():
            theirs = re.sub(r"^attention\.(\d+)", r"layers.\1.self_attn", name)
            theirs = re.sub(r"^mlp\.(\d+)", r"layers.\1.mlp", theirs)
            p.data.copy_(weights[theirs if name == "lm_head.weight" else f"model.{theirs}"])
        assert torch.allclose(plain(ids), out, atol=1e-5)


def test_an_unknown_attention_is_a_mistake():
    with pytest.raises(files.UserError, match="attention: 'none': expected one of mha, skqa, pwa, rra"):
        config.load_config(None, ["model.attention=none"], str(ROOT / "config.yaml"))


def test_the_evidence_that_robustness_names_exists():
    evidence = re.findall(r"`(\w+)::(test_\w+)`", pages()["docs/robustness.md"])
    assert len(evidence) > 20
    for name, test in evidence:
        assert f"def {test}(" in (ROOT / f"tests/test_{name}.py").read_text(encoding="utf-8"), f"{name}::{test}"


def test_an_installed_pytorch_stays_and_make_pins_its_own():
    """What the project wants is a range; the version of the published numbers comes with the tests only."""
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (pinned,) = re.findall(r'"torch==(\d+\.\d+\.\d+)"', declared)
    assert '"torch>=' in declared and declared.count("==") == 1
    assert f"PyTorch {pinned}" in " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())


def test_links_lead_somewhere():
    """Files and headings that README.md, RESULTS.md, results/, docs/ and bench/README.md link to."""
    results = [f"results/{path.name}" for path in (ROOT / "results").glob("*.md")]
    for page in (*pages(), "RESULTS.md", *results):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
            path, _, heading = target.partition("#")
            linked = (ROOT / page).parent / path if path else ROOT / page
            assert linked.exists(), f"{page}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.M)
                anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
                assert heading in anchors, f"{page}: {target}"
    assert all(path.stat().st_size < 150_000 for path in (ROOT / "assets").iterdir())
