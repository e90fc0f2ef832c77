"""What cleaning removes and what it leaves; the same in parts as in one piece, and on all cores as on one."""

import os
import random
import re
import signal
import subprocess
import sys
import time

from conftest import ROOT
from lab.files import UserError
from lab.text import cleaning, pocket_english
from lab.text.cleaning import CLEANING, WORTH, Cores, clean, in_parts
import tokenizer

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

STEPS = list(CLEANING)
WRAPPED = """A paragraph whose lines were broken at the usual width
of a page, so that a sentence goes on in the next line,
ends here.

A verse
is not"""
UNWRAPPED = WRAPPED.replace("\nof", " of").replace("\nends", " ends")


def cleaned(text, steps=STEPS):
    return cleaned_in_parts([text], steps)


def cleaned_in_parts(parts, steps):
    return b"".join(clean([part.encode() for part in parts], steps)).decode()


KEPT = "Title: A story\nI saw B: it was red.\n*ouch*"


@pytest.mark.parametrize(
    "step, before, after",
    [
        ("unicode", "Marks &amp; Sparks &#150; caf&eacute; AT&T", "Marks & Sparks – café AT&T"),
        ("unicode", "e\u0301 \xa0\u2009\u3000\u200b\ufeff\xad\x07\x00x", "é    x"),
        ("unicode", "one\u2028two\x85three", "one\ntwo\nthree"),
        ("unicode", "\u2018It\u2019s\u2019 \u201cso\u201d\u2026", "'It's' \"so\"..."),
        ("speaker_tags", "A:\tWell, yes.\n*MOT:\tlook there .\nB: No.", "Well, yes.\nlook there .\nNo."),
        ("speaker_tags", "*SI1:\twell .\n*MOT:\n%mor:\tadv|well .\nEnd", "well .\n\nEnd"),
        ("speaker_tags", "the [//] a dog [: doggie] [she] .", "the a dog [she] ."),
        ("speaker_tags", KEPT, KEPT),
        ("markup", "= = = LAN switching = = =\nLAN is.\n== History ==\n\nEnd", "LAN is.\n\nEnd"),
        ("markup", "<i>Go</i> <laughter>.\n{\\pos(192,210)}If 3 < 4 and 5 > 4", "Go .\nIf 3 < 4 and 5 > 4"),
        ("markup", "- Thank you.\n-Yes.\n-ish\n— Newton", "Thank you.\nYes.\n-ish\nNewton"),
        ("markup", "♪ la la ♪\n# la la #\n#1 of it", " la la \nla la\n#1 of it"),
        ("markup", "[door opens]\nHe [sic] went.\n-------\n. . .\n{| class=x\n| cell\n|}\nEnd", "He [sic] went.\nEnd"),
        ("markup", "Subtitles by X\n== sync, corrected by Y ==\nSync and corrections by Z\nEnd", "End"),
        ("markup", "www.addic7ed.com\nTranslated by Me\nHe was corrected by her.", "He was corrected by her."),
        ("markup", "It is _very_ odd, snake_case_name _", "It is very odd, snake_case_name _"),
        ("markup", "Is that so?\n\n?\n7\n\n", "Is that so?\n\n7\n\n"),
        ("unwrap", WRAPPED, UNWRAPPED),
        ("unwrap", "A short line.\n" * 40 + WRAPPED, "A short line.\n" * 40 + WRAPPED),
        ("unwrap", f"\n  \n{WRAPPED}\n\n", f"\n\n{UNWRAPPED}\n\n"),
        ("spaces", "  two \t words  \nend ", "two words\nend"),
        ("spaces", 'Stop ! Who , me ? . . . Yes : "no ." 3 .5 :)', 'Stop! Who, me?... Yes: "no." 3 .5 :)'),
        ("spaces", "I do n't know , it 's John 's .", "I don't know, it's John's."),
        ("spaces", "It ca n't 've . The 's , call 'd", "It can't 've. The's, call 'd"),
    ],
)
def test_cleaning_steps(step, before, after):
    assert cleaned(before + "\n", [step]) == after + "\n"


def test_cleaning_leaves_plain_english_alone():
    """BLiMP-like sentences pass every step unchanged."""
    lines = [line for line in pocket_english.text(3000, seed=3) if line]
    lines += ["Who hadn't Anne's sister's friend disliked?", "It's 5:30 - or 6.", "What a day..."]
    lines += ["\"Come in!\" said the king; the king's men (all 3) didn't."]
    text = "\n".join(lines) + "\n"
    assert cleaned(text) == text


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
odd_text = st.text("=-_#[]{}|<>\\*A:. \t\n'&;♪", max_size=40)


@given(any_text | odd_text)
@settings(max_examples=300)
def test_cleaning_always_ends_in_lines(text):
    """No step breaks, invents characters of lines, or leaves what a second pass of `spaces` would change."""
    once = cleaned(text.replace("\r", "\n") + "\n")
    assert "\0" not in once and all(line == line.strip() for line in once.split("\n"))
    assert cleaned(once, ["spaces"]) == once


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["|", *"=/= /[/<a/_/ /#/ #/-/{\\/*A/&/'s / ,/%a/sync /w".split("/"), "[/"])
def test_cleaning_takes_linear_time(unit):
    """A line of 400 kB of what the patterns begin with; quadratic patterns would take minutes."""
    units = unit * (400_000 // len(unit))
    assert cleaned(f"x{units}\n{units}x\n").endswith("\n")


def test_long_lines_are_cut_at_spaces():
    longest = tokenizer.LONGEST_LINE
    words = "word " * longest + "x" * (2 * longest + 1)
    lines = cleaned(words + "\n", []).removesuffix("\n").split("\n")
    assert max(map(len, lines)) <= longest and len(lines) == 9
    assert "".join(lines).replace(" ", "") == words.replace(" ", "")
    assert cleaned("y" * longest + "\n \t\n", []) == "y" * longest + "\n\n"


PIECES = "= = = Heading = = =|*MOT:\tlook there .|It 's _so_ odd , is n't it ?||  |[music]|caf&eacute;".split("|")
PIECES += [WRAPPED + "\n", WRAPPED + "\n", "Short.\n"]


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_cleaned_like_the_whole(seed):
    """Cut after empty lines; without `unwrap`, after any line."""
    lines = [piece + "\n" for piece in random.Random(seed).choices(PIECES, k=60)]
    text = "".join(lines)
    parts = re.findall(r"(?s).*?\n\n|.+", text)
    assert len(parts) > 3 and cleaned_in_parts(parts, STEPS) == cleaned(text)
    without = [step for step in STEPS if step != "unwrap"]
    assert cleaned_in_parts(lines, without) == cleaned(text, without)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_any_newline_any_part(monkeypatch, newline):
    """The parts are the text, each of whole lines and if possible of whole documents."""
    monkeypatch.setattr(cleaning, "PART", 40)
    lines = [f"Line number {i}" if i % 4 else "" for i in range(1, 40)] + ["x" * 500]
    parts = list(in_parts(("\ufeff" + newline.join(lines)).encode()))
    assert b"".join(parts).decode() == "\n".join(lines) + "\n"
    assert all(part.endswith(b"\n") for part in parts)
    if newline != "\r":  # with which no line ends, so that there is nowhere to cut
        assert len(parts) > 5 and all(part.endswith(b"\n\n") for part in parts[:-1])


# ---------------------------------------------------------------------------------------------------- all cores


def test_the_same_as_map_and_in_order():
    with Cores(2) as cores:
        assert list(cores.map(int, map(str, range(50)))) == list(range(50))
        assert cores.executor
        assert list(cores.map(len, [])) == []


@pytest.mark.parametrize("count, parts", [(2, WORTH - 1), (1, 99)])
def test_few_parts_or_one_core_need_no_processes(count, parts):
    with Cores(count) as cores:
        assert list(cores.map(str.upper, ["a"] * parts)) == ["A"] * parts
        assert not cores.executor


@pytest.mark.parametrize(
    "function, last, error, words",
    [(int, "x", ValueError, "invalid literal"), (os._exit, 1, UserError, "a helper process was killed")],
)
def test_what_goes_wrong_in_a_process_is_one_error(function, last, error, words):
    with Cores(2) as cores, pytest.raises(error, match=words):
        list(cores.map(function, [1] * 20 + [last]))


PARENT = """
import time
from lab.cli import run
from lab.text.cleaning import Cores

def main():
    with Cores(2) as cores:
        results = cores.map(time.sleep, [0.5] * 1000)
        next(results)  # every part has been handed over; from here on it only waits
        print(*cores.executor._processes, flush=True)
        list(results)

if __name__ == "__main__":
    run(main)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_they_end_with_their_parent(tmp_path, how):
    """Ctrl-C goes to all processes of a terminal at once; only the parent may speak of it."""
    (tmp_path / "parent.py").write_text(PARENT)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    parent = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, env=env, **pipes)
    children = parent.stdout.readline().split()
    assert len(children) == 2
    kill = os.killpg if how == signal.SIGINT else os.kill
    kill(parent.pid, how)
    _, err = parent.communicate(timeout=100)
    if how == signal.SIGINT:
        assert parent.returncode == 130 and err == "interrupted\n"
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
