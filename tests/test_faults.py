"""Faults that any command may meet: Ctrl-C, a disk that is really full, a folder of another corpus."""

import json
import os
import shutil
import signal
import subprocess
import sys

from conftest import ROOT, TINY, command, refused
from lab import checkpoint, settings
from lab.files import UserError
from lab.run.data import load_data
from stand_ins import save_checkpoint

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
    os.mkdir("pairs")
    with open("pairs/x.jsonl", "w") as f:
        for i in range(30_000):
            pair = {"sentence_good": f"The cats see {i} dogs.", "sentence_bad": f"The cats sees {i} dogs."}
            f.write(json.dumps({**pair, "UID": "x", "pairID": str(i)}) + "\n")
    files = ["--data", "pairs", "--json", "s.json", "--csv", "s.csv"]
    interrupted_after("30,000 pairs", "eval_blimp.py", "ckpt.pt", "--device", "cpu", *files)
    assert sorted(os.listdir()) == ["ckpt.pt", "config.yaml", "data", "pairs"]


def test_a_disk_that_is_full(project):
    """A file system of 500 kB: room for the first last.pt, not for a ckpt.pt beside it."""
    os.mkdir("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", "disk"]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        ended = command("train.py", *TINY, "train.out=disk/a", cwd=project)
        refused(ended, "disk/a/ckpt.pt", "cannot be written", "No space left", "free some space")
        assert checkpoint.load("disk/a/last.pt") and not [name for name in os.listdir("disk/a") if ".tmp" in name]
    finally:
        subprocess.run(["umount", "disk"], check=True)


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
