"""Faults that any command may meet: Ctrl-C, a disk that is really full, a folder of another corpus, headers that lie."""
import json
import os
import shutil
import signal
import struct
import subprocess
import sys

import pytest
import torch

import export
import train
from conftest import ROOT, TINY, command, refused
from lab import checkpoint
from lab import settings as config
from lab.files import UserError
from model import Model


@pytest.fixture
def ckpt(project):
    """A checkpoint of an untrained model of the tiny corpus."""
    settings = config.load_config("sllama", TINY)
    *_, meta, tok = train.load_data(settings, 32)
    settings.model.vocab_size = meta["vocab_size"]
    checkpoint.save("ckpt.pt", checkpoint.make(settings.model, dict(Model(settings.model).named_parameters()), tok.model_bytes, {"corpus": meta["corpus"]}))
    return "ckpt.pt"


def interrupted_after(words, script, *args):
    """Starts the command, sends SIGINT as soon as it has printed `words`; checks that it ends with one line and status 130."""
    process = subprocess.Popen([sys.executable, str(ROOT / script), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while words not in process.stdout.readline() and process.poll() is None:
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130 and err.strip().splitlines()[-1] == "interrupted" and "Traceback" not in err, err


def test_ctrl_c_while_preparing_leaves_nothing_to_trust(project):
    args = ["--preset", "quick", "data.name=c", "data.pocket_words=300000"]
    interrupted_after("training the tokenizer", "prepare.py", *args)
    refused(command("train.py", *args, cwd=project), "data/c: no prepared corpus")
    assert not os.path.exists("data/c/meta.json")


def test_ctrl_c_while_scoring_leaves_no_scores(ckpt):
    os.mkdir("pairs")
    with open("pairs/x.jsonl", "w") as f:
        for i in range(30_000):
            f.write(json.dumps({"sentence_good": f"The cats see {i} dogs.", "sentence_bad": f"The cats sees {i} dogs.", "UID": "x", "pairID": str(i)}) + "\n")
    interrupted_after("30,000 pairs", "eval_blimp.py", ckpt, "--data", "pairs", "--json", "s.json", "--csv", "s.csv", "--device", "cpu")
    assert sorted(os.listdir()) == ["ckpt.pt", "config.yaml", "data", "pairs"]


def test_a_disk_that_is_full(project):
    """A file system of 500 kB: room for the first ckpt.pt, not for a last.pt beside it."""
    os.mkdir("disk")
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", "disk"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        refused(command("train.py", *TINY, "train.out=disk/a", cwd=project), "disk/a/last.pt", "cannot be written", "No space left", "free some space")
        assert checkpoint.load("disk/a/ckpt.pt") and not [name for name in os.listdir("disk/a") if name.endswith(".tmp")]
    finally:
        subprocess.run(["umount", "disk"], check=True)


def test_parts_of_another_corpus_are_refused(project):
    """Every file is whole, but they do not belong together."""
    settings = config.load_config("sllama", [*TINY, "data.name=mixed"])
    for name, other, words in (("train.bin", "val.bin", "train.bin: damaged"), ("val.bin", "train.bin", "val.bin: damaged"), ("tokenizer.model", "val.bin", "tokenizer.model")):
        shutil.copytree(os.path.realpath("data/tiny"), "data/mixed")
        shutil.copy(f"data/mixed/{other}", f"data/mixed/{name}")
        with pytest.raises(UserError, match=words):
            train.load_data(settings, 32)
        shutil.rmtree("data/mixed")


@pytest.mark.parametrize("a, b", [((0, 8), (4, 12)), ((0, 8), (0, 8)), ((0, 8), (12, 20)), ((8, 0), (0, 8)), ((0, 8), (8, 2**63))],
                         ids=["overlap", "same place", "gap", "backwards", "beyond the end"])
def test_safetensors_headers_that_lie(a, b, tmp_path):
    text = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": at} for name, at in (("a", a), ("b", b))}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(UserError, match="model.safetensors.*damaged"):
        export.read_weights(str(tmp_path))


def test_a_call_hidden_in_pytorch_model_bin(tmp_path):
    """weights_only would run it: harmless, but for the memory."""
    class Grow:
        def __reduce__(self):
            return bytearray, (2**28,)
    torch.save({"a": Grow()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="more than plain"):
        export.read_weights(str(tmp_path))
