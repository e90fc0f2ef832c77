"""Faults that any command may meet: Ctrl-C, a folder of another corpus."""

import os
import shutil
import signal
import subprocess
import sys

from conftest import ROOT, TINY, command, refused
from lab import settings
from lab.files import UserError
from lab.run.data import load_data
from stand_ins import pair, save_checkpoint, write

import pytest


def interrupted_after(words, script, *args):
    """Starts the command, sends SIGINT as soon as it has printed `words`; it ends with one line and status 130."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / script), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while words not in process.stdout.readline() and process.poll() is None:
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert err.strip().splitlines()[-1] == "interrupted", err


def test_ctrl_c_while_preparing_leaves_nothing_to_trust(project):
    args = ["--preset", "quick", "data.name=c", "data.pocket_words=300000"]
    interrupted_after("training the tokenizer", "prepare.py", *args)
    refused(command("train.py", *args, cwd=project), "data/c: no prepared corpus")
    assert not os.path.exists("data/c/meta.json")


def test_ctrl_c_while_scoring_leaves_no_scores(project):
    save_checkpoint("ckpt.pt")
    rows = [pair(f"The cats see {i} dogs.", f"The cats sees {i} dogs.") for i in range(30_000)]
    write(project / "pairs", {"x": rows})
    files = ["--data", "pairs", "--json", "s.json", "--csv", "s.csv"]
    interrupted_after("30,000 pairs", "eval_blimp.py", "ckpt.pt", "--device", "cpu", *files)
    assert sorted(os.listdir()) == ["ckpt.pt", "config.yaml", "data", "pairs"]


@pytest.mark.parametrize("name, other", [("train.bin", "val.bin"), ("tokenizer.model", "val.bin"), ("meta.json", None)])
def test_parts_of_another_corpus_are_refused(project, name, other):
    """Every file is whole, but they do not belong together."""
    mixed = shutil.copytree(os.path.realpath("data/tiny"), project / "data/mixed")
    if other:
        shutil.copy(mixed / other, mixed / name)
    else:  # an edited one
        text = (mixed / "meta.json").read_text()
        (mixed / "meta.json").write_text(text.replace('"words": ', '"words": 1'))
    with pytest.raises(UserError, match=f"data/mixed/{name}: "):
        load_data(settings.load_config("sllama", [*TINY, "data.name=mixed"]))
