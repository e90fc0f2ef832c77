"""Damaged input of every kind is refused in one line, or harmless: a short run of tests/fuzz.py."""

import os
import random

from lab.files import UserError
from tests import fuzz

import pytest


def test_every_kind_of_file(capsys):
    failures = fuzz.main(["--trials", "6", "--seed", "1"])
    out = capsys.readouterr().out
    assert not failures and all(kind in out for kind in fuzz.kinds()) and "failures: 0" in out, out


def reads(what):
    """A reader that treats the content `good` well and another one as `what` says."""

    def read():
        with open("file", "rb") as f:
            if f.read() == b"good" or what in ("accepted", "changed"):
                return
        if what == "refused":
            raise UserError("no")
        if what == "traceback":
            raise KeyError("x")
        if what == "memory":
            bytearray(2 * fuzz.MEMORY)
        while what == "hang":
            pass
        os._exit(3)

    return read


@pytest.mark.parametrize(
    "what, outcome, words",
    [
        ("accepted", "accepted", ""),
        ("changed", "changed", ""),
        ("refused", "refused", ""),
        ("hang", "hang", ""),
        ("traceback", "traceback", "KeyError"),
        ("memory", "traceback", "MemoryError"),
        ("death", "traceback", "status 3"),
    ],
)
def test_the_fuzzer_sees_what_it_looks_for(what, outcome, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz, "LIMIT", 1)
    os.mkdir("good")
    (tmp_path / "good" / "file").write_bytes(b"good")
    kind = fuzz.Kind("file", fuzz.damage, reads(what), bytes if what == "changed" else None)
    found, output = fuzz.trial("good", kind, b"bad")
    assert found == outcome and words in output, output
    assert fuzz.trial("good", kind, b"good")[0] == "accepted"


def test_mutations_follow_from_the_seed():
    good = bytes(range(200))
    mutants = [fuzz.damage(random.Random(n), good) for n in range(100)]
    assert mutants == [fuzz.damage(random.Random(n), good) for n in range(100)]
    assert sum(mutant != good for mutant in mutants) > 80
