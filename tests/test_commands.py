"""The command lines as a user types them, from no data to a score, in an empty folder."""

import json
import os
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

SMALL = "--preset quick data.pocket_words=30000 data.validation_kb=4".split() + TINY[2:]
LOGS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}  # train.log, its module


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """An empty folder after prepare and train."""
    folder = tmp_path_factory.mktemp("walk")
    for script in ("prepare.py", "train.py"):
        done(command(script, *SMALL, "tokenizer.vocab_size=600", "train.max_steps=40", cwd=folder))
    return folder


def done(process):
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stdout + process.stderr
    return process.stdout


def write_pairs(path, good, bad, **more):
    """Twenty minimal pairs that differ in a number."""
    with open(path, "w") as f:
        for i in range(20):
            pair = {"sentence_good": good.format(i), "sentence_bad": bad.format(i), "pairID": str(i), **more}
            print(json.dumps(pair), file=f)


def test_training_leaves_what_the_docs_name(walk):
    left = {path.name for path in (walk / "out/quick").iterdir()}
    assert {"ckpt.pt", "last.pt", "config.yaml", "losses.csv", "curves.png"} <= left


def test_evaluation_takes_the_corpus_own_pairs_and_says_so(walk):
    out = done(command("eval_blimp.py", "out/quick/ckpt.pt", "--json", "scores.json", "--plot", "bars.png", cwd=walk))
    block = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    scores = json.loads((walk / "scores.json").read_text())
    assert float(block["accuracy"]) == pytest.approx(scores["accuracy"], abs=1e-4) and 0.3 < scores["accuracy"] < 1
    assert "Pocket English" in scores["corpus"] and "POCKET ENGLISH PAIRS, NOT BLiMP" in out
    promised = "accuracy_ties_half accuracy_ties_correct pairs ties paradigms phenomena fields checkpoint seconds"
    assert {*promised.split()} <= scores.keys()
    assert len(scores["phenomena"]) == 12 and (walk / "bars.png").stat().st_size > 5000


def test_sample_and_export_and_back(walk):
    def sample(path, *args):
        return done(command("sample.py", path, *args, cwd=walk))

    assert sample("out/quick/ckpt.pt", "--prompt", "The cat", "--max-tokens", 8).startswith("The cat")
    done(command("export.py", "out/quick/ckpt.pt", "hf", cwd=walk))
    done(command("export.py", "--from-hf", "hf", "back.pt", cwd=walk))
    assert sample("out/quick/ckpt.pt", "--max-tokens", 12) == sample("back.pt", "--max-tokens", 12)


def test_a_missing_paradigm_is_an_error_unless_asked_for(walk):
    (walk / "blimp").mkdir()
    for uid in ("wh_island", "passive_1"):
        write_pairs(walk / f"blimp/{uid}.jsonl", "The cat saw dog {}.", "The cat dog saw {}.", UID=uid)
    args = ("eval_blimp.py", "out/quick/ckpt.pt", "--data", "blimp", "--json", "part.json")
    refused(command(*args, cwd=walk), "65 of BLiMP's 67 paradigms are missing", "--allow-incomplete")
    assert not (walk / "part.json").exists()
    assert "incomplete: true" in done(command(*args, "--allow-incomplete", cwd=walk))
    assert json.loads((walk / "part.json").read_text())["incomplete"] is True


# --- training shows itself


def test_start_tells_the_length(project, capsys):
    train.main([*TINY, "train.gradient_accumulation_steps=2"])
    out = capsys.readouterr().out
    for text in ("parameters    this model", "12 steps of 8 windows x 32 = 256 tokens", "words seen"):
        assert text in out, text


@pytest.mark.parametrize("kind", LOGS)
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

    module = types.SimpleNamespace(SummaryWriter=Writer)

    def init(**settings):  # wandb's and trackio's: the module itself takes the numbers
        writer = Writer(**settings)
        module.log, module.finish = writer.log, writer.finish

    module.init = init
    monkeypatch.setitem(sys.modules, LOGS[kind], module)
    pairs = project / "pairs"
    pairs.mkdir()
    write_pairs(pairs / "mine.jsonl", "The cat saw {} dogs.", "The cat see {} dogs.")
    train.main([*TINY, f"train.log={kind}", "eval.blimp_every=4", f"eval.data={pairs}"])
    assert sorted(sent["train_loss"]) == list(range(1, 13))
    for name in ("val_loss", "bits_per_byte", "blimp"):
        assert sorted(sent[name]) == [0, 4, 8, 12], name
    assert sent["lr"][2] == pytest.approx(1e-2) and sent["tokens_per_second"]
    assert sent["closed"] and "out/sllama" in str(sent["opened"])


@pytest.mark.parametrize("kind", LOGS)
def test_log_without_its_package(kind, project, monkeypatch):
    monkeypatch.setitem(sys.modules, LOGS[kind], None)  # as if it were not installed
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
