"""The five commands where things are missing or odd: no POSIX modules, no glibc, another locale, folder names."""

import json
import os
import shutil
import subprocess
import sys

from conftest import ROOT, TINY

import pytest

# What Windows lacks, taken away before a command starts. `runpy` makes it the __main__ it usually is.
WINDOWS = f"""
import ctypes, os, runpy, signal, sys
import torch  # with numpy, which takes this for the Linux that it is
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("uname", "sysconf", "fork", "getuid", "fchmod"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGPIPE", "pthread_sigmask"):
    if hasattr(signal, name):
        delattr(signal, name)
def no_library(*_, **__):
    raise OSError("no such library")
ctypes.CDLL = no_library
sys.argv = sys.argv[1:]
sys.path.insert(0, {str(ROOT)!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TEXT = ["Le café était fermé — naïvement, « nous » attendions.", "猫は魚を食べた。犬は寝ていた。", "Zażółć gęślą jaźń."]
MADE_OF_IT = "data.source=my texts,data.name=odd,tokenizer.vocab_size=420,eval.data=my pairs,train.max_steps=4"
TINY_TEXT = [*TINY, *MADE_OF_IT.split(",")]
CKPT = "out/a run/ckpt.pt"
TOUR = [  # from text to an exported folder
    ["prepare.py", *TINY_TEXT],
    ["train.py", *TINY_TEXT, "train.out=out/a run"],
    ["eval_blimp.py", CKPT, "--data", "my pairs", "--csv", "pairs of it.csv", "--json", "it.json"],
    ["sample.py", CKPT, "--max-tokens", "5", "--prompt", "猫は"],
    ["export.py", CKPT, "an export"],
]


@pytest.fixture
def odd_folder(tmp_path, monkeypatch):
    """A folder with a space, a backslash and more in its name, and in it text and minimal pairs beyond ASCII."""
    folder = tmp_path / "my \\folder é"
    (folder / "my texts").mkdir(parents=True)
    (folder / "my pairs").mkdir()
    shutil.copy(ROOT / "config.yaml", folder)
    lines = [f"{i} {line}\n" for i in range(400) for line in TEXT]
    (folder / "my texts" / "text.txt").write_text("".join(lines), encoding="utf-8")
    pairs = [{"sentence_good": line, "sentence_bad": line[::-1]} for line in TEXT]
    lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs]
    (folder / "my pairs" / "odd.jsonl").write_text("".join(lines), encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def test_without_posix_and_glibc_under_an_ascii_locale(odd_folder):
    """Files are UTF-8 whatever the locale says: each open() says so. cp1252 would spoil what ASCII refuses."""
    env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    start = [sys.executable, "-X", "utf8=0", "-X", "warn_default_encoding", "-c", WINDOWS]
    for script, *args in TOUR:
        done = subprocess.run([*start, str(ROOT / script), *args], capture_output=True, env=env, timeout=300)
        output = done.stdout.decode() + done.stderr.decode()  # UTF-8 whatever the locale
        assert done.returncode == 0, f"{script}: {output[-3000:]}"
        warned = [line for line in output.splitlines() if "EncodingWarning" in line and "site-packages" not in line]
        assert not warned and "Traceback" not in output, output[-3000:]
    assert os.path.exists("an export/model.safetensors") and "猫" in open("pairs of it.csv", encoding="utf-8").read()
