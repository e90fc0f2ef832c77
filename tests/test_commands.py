"""The command lines as a user types them, from no data to a score, in an empty folder."""

import collections
import json
import sys
from unittest import mock

from conftest import TINY, command, refused
from lab.files import UserError
import train

import pytest

SMALL = "--preset quick data.pocket_words=30000 data.validation_kb=4".split() + TINY[2:]
LOGS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}  # train.log, its module


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """An empty folder after prepare and train."""
    folder = tmp_path_factory.mktemp("walk")
    for script in ("prepare.py", "train.py"):
        said = done(command(script, *SMALL, "tokenizer.vocab_size=600", "train.max_steps=40", cwd=folder))
    (folder / "said").write_text(said, encoding="utf-8")
    return folder


def done(process):
    assert process.returncode == 0 and "Traceback" not in process.stderr, process.stdout + process.stderr
    return process.stdout


def write_pairs(path, good, bad, **more):
    """Twenty minimal pairs that differ in a number."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "w") as f:
        for i in range(20):
            pair = {"sentence_good": good.format(i), "sentence_bad": bad.format(i), "pairID": str(i), **more}
            print(json.dumps(pair), file=f)


def test_training_says_its_length_and_leaves_what_the_docs_name(walk):
    said = (walk / "said").read_text(encoding="utf-8")
    assert "40 steps of 4 windows x 32 = 128 tokens" in said and "parameters    this model" in said
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
    write_pairs(walk / "blimp/wh_island.jsonl", "The cat saw dog {}.", "The cat dog saw {}.", UID="wh_island")
    args = ("eval_blimp.py", "out/quick/ckpt.pt", "--data", "blimp", "--json", "part.json")
    refused(command(*args, cwd=walk), "66 of BLiMP's 67 paradigms are missing", "--allow-incomplete")
    assert not (walk / "part.json").exists()
    assert "incomplete: true" in done(command(*args, "--allow-incomplete", cwd=walk))
    assert json.loads((walk / "part.json").read_text())["incomplete"] is True


@pytest.mark.parametrize("kind", LOGS)
def test_log_sends_the_curves(kind, project, monkeypatch):
    module, sent = mock.MagicMock(), collections.defaultdict(dict)
    monkeypatch.setitem(sys.modules, LOGS[kind], module)
    write_pairs(project / "pairs/mine.jsonl", "The cat saw {} dogs.", "The cat see {} dogs.")
    train.main([*TINY, f"train.log={kind}", "eval.blimp_every=4", "eval.data=pairs"])
    if kind == "tensorboard":
        opened, closed = module.SummaryWriter, module.SummaryWriter.return_value.close
        scalars = [call.args for call in module.SummaryWriter.return_value.add_scalar.call_args_list]
    else:
        opened, closed = module.init, module.finish
        logged = [(*call.args, *call.kwargs.values()) for call in module.log.call_args_list]
        scalars = [(name, value, step) for numbers, step in logged for name, value in numbers.items()]
    for name, value, step in scalars:
        sent[name][step] = value
    assert "out/sllama" in str(opened.call_args) and closed.called
    assert [*sent["train_loss"]] == [*range(1, 13)]
    assert all([*sent[name]] == [0, 4, 8, 12] for name in ("val_loss", "bits_per_byte", "blimp"))
    assert sent["lr"][2] == pytest.approx(1e-2) and sent["tokens_per_second"]


@pytest.mark.parametrize("kind", LOGS)
def test_log_without_its_package(kind, project, monkeypatch):
    monkeypatch.setitem(sys.modules, LOGS[kind], None)  # as if it were not installed
    with pytest.raises(UserError, match=f"pip install {kind}"):
        train.main([*TINY, f"train.log={kind}"])
