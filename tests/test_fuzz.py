"""Damaged input of every kind is refused in one line, or harmless: a short run of tests/fuzz.py."""

import os
import pathlib
import random
import time

from lab.files import UserError
from tests import fuzz

import pytest


def test_every_kind_of_file(capsys):
    failures = fuzz.main(["--trials", "6", "--seed", "1"])
    out = capsys.readouterr().out
    assert not failures and all(kind in out for kind in fuzz.kinds()) and "failures: 0" in out, out


def refuse():
    raise UserError("no")


def fail():
    raise KeyError("x")


def hoard():
    bytearray(2 * fuzz.MEMORY)


def die():
    os._exit(3)


def hang():
    time.sleep(60)


OUTCOMES = {int: "accepted", refuse: "refused", fail: "traceback", hoard: "traceback", die: "traceback", hang: "hang"}


@pytest.mark.parametrize("do", OUTCOMES)
def test_the_fuzzer_sees_what_bad_content_does(do, tmp_path, monkeypatch):
    def read():
        if pathlib.Path("file").read_bytes() == b"bad":
            do()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz, "LIMIT", 1)
    os.mkdir("good")
    pathlib.Path("good/file").write_bytes(b"good")
    kind = fuzz.Kind("file", fuzz.damage, read)
    assert fuzz.trial("good", kind, b"good")[0] == "accepted"
    assert fuzz.trial("good", kind, b"bad")[0] == OUTCOMES[do]
    assert fuzz.trial("good", fuzz.Kind("file", fuzz.damage, int, bytes), b"bad")[0] == "changed"


def test_mutations_follow_from_the_seed():
    good = bytes(range(200))
    mutants = [fuzz.damage(random.Random(n), good) for n in range(100)]
    assert mutants == [fuzz.damage(random.Random(n), good) for n in range(100)]
    assert sum(mutant != good for mutant in mutants) > 80
