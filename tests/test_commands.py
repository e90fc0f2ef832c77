"""The command lines as a user types them, from no data to a score, in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import time
import types

from conftest import ROOT, TINY, command, refused
from lab import files
from lab import settings as config
from lab.run import progress
import train

import pytest

SMALL = [
    "--preset",
    "quick",
    "data.pocket_words=30000",
    "data.validation_kb=4",
    "tokenizer.vocab_size=600",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=48",
    "model.max_position_embeddings=64",
    "train.max_steps=40",
    "train.eval_every=20",
    "train.device=cpu",
]


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """An empty folder after prepare and train."""
    folder = tmp_path_factory.mktemp("walk")
    for script in ("prepare.py", "train.py"):
        done = command(script, *SMALL, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def write_pairs(path, good, bad, **more):
    """Twenty minimal pairs that differ in a number."""
    pairs = [
        {"sentence_good": good.format(i), "sentence_bad": bad.format(i), "pairID": str(i), **more} for i in range(20)
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def ok(done):
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout


def test_prepare_says_what_it_took_and_is_up_to_date_the_second_time(walk):
    def contents():
        return {path.name: path.read_bytes() for path in (walk / "data/pocket").iterdir() if path.is_file()}

    before = contents()
    assert "up to date" in ok(command("prepare.py", *SMALL, cwd=walk))
    assert before == contents()


def test_training_leaves_what_the_docs_name(walk):
    left = {path.name for path in (walk / "out/quick").iterdir()}
    assert {"ckpt.pt", "last.pt", "config.yaml", "losses.csv", "curves.png"} <= left


def test_evaluation_takes_the_corpus_own_pairs_and_says_so(walk):
    out = ok(command("eval_blimp.py", "out/quick/ckpt.pt", "--json", "scores.json", "--plot", "bars.png", cwd=walk))
    block = dict(line.split(": ", 1) for line in out.splitlines()[-24:] if ": " in line)
    scores = json.loads((walk / "scores.json").read_text())
    assert float(block["accuracy"]) == pytest.approx(scores["accuracy"], abs=1e-4) and 0.3 < scores["accuracy"] < 1
    assert "Pocket English" in scores["corpus"] and "pocket" in out.lower() and "NOT BLIMP" in out.upper()
    assert {
        "accuracy_ties_half",
        "accuracy_ties_correct",
        "pairs",
        "ties",
        "paradigms",
        "phenomena",
        "fields",
        "checkpoint",
        "seconds",
    } <= scores.keys()
    assert len(scores["phenomena"]) == 12 and (walk / "bars.png").stat().st_size > 5000


def test_sample_and_export_and_back(walk):
    def sample(path, *args):
        return ok(command("sample.py", path, *args, cwd=walk))

    assert sample("out/quick/ckpt.pt", "--prompt", "The cat", "--max-tokens", 8).startswith("The cat")
    ok(command("export.py", "out/quick/ckpt.pt", "hf", cwd=walk))
    ok(command("export.py", "--from-hf", "hf", "back.pt", cwd=walk))
    assert sample("out/quick/ckpt.pt", "--max-tokens", 12) == sample("back.pt", "--max-tokens", 12)


def test_mistakes_about_pairs(walk):
    pairs = walk / "data/pocket/pairs"
    bad = walk / "bad"
    shutil.rmtree(bad, ignore_errors=True)
    bad.mkdir()
    refused(command("eval_blimp.py", "out/quick/ckpt.pt", "--data", "nowhere", cwd=walk), "nowhere")
    refused(command("eval_blimp.py", "out/quick/ckpt.pt", "--data", "bad", cwd=walk), "bad")
    name = sorted(p.name for p in pairs.iterdir())[0]
    text = (pairs / name).read_bytes()
    (bad / name).write_bytes(text[: len(text) // 2])  # ends in the middle of a line
    refused(command("eval_blimp.py", "out/quick/ckpt.pt", "--data", "bad", cwd=walk), f"bad/{name}:")
    refused(command("eval_blimp.py", "out/quick/tokenizer.pt", cwd=walk), "out/quick/tokenizer.pt", "no such file")


def test_a_missing_paradigm_is_an_error_unless_asked_for(walk):
    blimp = walk / "blimp"
    blimp.mkdir(exist_ok=True)
    for uid in ("wh_island", "passive_1"):
        write_pairs(blimp / f"{uid}.jsonl", "The cat saw dog {}.", "The cat dog saw {}.", UID=uid)
    args = ("eval_blimp.py", "out/quick/ckpt.pt", "--data", "blimp", "--json", "part.json")
    refused(command(*args, cwd=walk), "65 of BLiMP's 67 paradigms are missing", "--allow-incomplete")
    assert not (walk / "part.json").exists()
    assert "incomplete: true" in ok(command(*args, "--allow-incomplete", cwd=walk)).lower()
    assert json.loads((walk / "part.json").read_text())["incomplete"] is True


def test_mistakes_about_text(walk):
    texts = walk / "texts"
    shutil.rmtree(texts, ignore_errors=True)
    texts.mkdir()

    def prepare(*overrides):
        return command("prepare.py", *SMALL, "data.name=mine", "data.source=texts", *overrides, cwd=walk)

    refused(command("prepare.py", *SMALL, "data.source=missing", "data.name=mine", cwd=walk), "missing")
    refused(prepare(), "texts")
    (texts / "a.txt").write_bytes(b"")
    refused(prepare(), "a.txt")
    (texts / "a.txt").write_bytes(bytes(range(256)) * 500)
    refused(prepare(), "a.txt")
    (texts / "a.txt").write_bytes("Ein schöner Satz.\n".encode("latin-1") * 500)
    refused(prepare(), "a.txt", "UTF-8")
    (texts / "a.txt").write_text("".join(f"The cat saw dog number {i} near a small house.\n" for i in range(1000)))
    refused(prepare("tokenizer.vocab_size=20000", "--replace"), "tokenizer.vocab_size", "largest possible")
    refused(prepare("data.sources=[b]"), "data.sources", "a")


# --- training shows itself


def test_start_tells_the_length(project, capsys):
    train.main([*TINY, "train.gradient_accumulation_steps=2"])
    out = capsys.readouterr().out
    for text in ("parameters    this model", "12 steps of 8 windows x 32 = 256 tokens", "words seen"):
        assert text in out, text


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "trackio"])
def test_log_sends_the_curves(kind, project, monkeypatch):
    sent = {}

    class Writer:
        def __init__(self, *args, **settings):
            sent["opened"] = settings or args

        def log(self, numbers, step):
            for name, value in numbers.items():
                sent.setdefault(name, {})[step] = value

        def add_scalar(self, name, value, step):
            self.log({name: value}, step)

        def close(self):
            sent["closed"] = True

        finish = close

    if kind in ("wandb", "trackio"):

        def init(**settings):
            writer = Writer(**settings)
            sys.modules[kind].log, sys.modules[kind].finish = writer.log, writer.finish

        monkeypatch.setitem(sys.modules, kind, types.SimpleNamespace(init=init))
    else:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    pairs = project / "pairs"
    pairs.mkdir()
    write_pairs(pairs / "mine.jsonl", "The cat saw {} dogs.", "The cat see {} dogs.")
    train.main([*TINY, f"train.log={kind}", "eval.blimp_every=4", f"eval.data={pairs}"])
    assert sorted(sent["train_loss"]) == list(range(1, 13))
    for name in ("val_loss", "bits_per_byte", "blimp"):
        assert sorted(sent[name]) == [0, 4, 8, 12], name
    assert sent["lr"][2] == pytest.approx(1e-2) and sent["tokens_per_second"]
    assert sent["closed"] and "out/sllama" in str(sent["opened"])


@pytest.mark.parametrize(
    "kind, module", [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")]
)
def test_log_without_its_package(kind, module, project, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(files.UserError, match=f"pip install {kind}"):
        train.main([*TINY, f"train.log={kind}"])
    assert progress.open_log(config.load_config(None, TINY)) == (None, None)  # off: none is missed


def test_a_log_file_shows_each_line_at_once(tmp_path):
    """Without PYTHONUNBUFFERED, what is printed before a long wait is in the file during that wait."""
    script = tmp_path / "waits.py"
    script.write_text(
        "import time\n"
        "from lab import cli\n"
        "def main():\n"
        "    print('banner \\U0001f642')\n"
        "    time.sleep(60)\n"
        "cli.run(main)\n"
    )
    env = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(ROOT)}
    env.pop("PYTHONUNBUFFERED", None)
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=env)
    began = time.monotonic()
    assert process.stdout.readline() == b"banner ?\n" and time.monotonic() - began < 30
    process.kill()
