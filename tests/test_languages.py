"""Text in any script, on any system: nothing is lost on the way to tokens, whatever the locale and the folder's name.

All sentences are made here, by a rule for each language; the bad one of a pair breaks agreement or the order of words.
"""

import builtins
import itertools
import json
import os
import unicodedata

from conftest import ROOT, TINY, command
import prepare
import tokenizer

import numpy as np
import pytest

WORDS = {  # subjects, objects, verbs that fit, verbs that don't; how they are put together
    "georgian": (
        ["ბიჭი", "გოგო", "ძაღლი", "მეფე"],
        ["სახლს", "ხეს", "წიგნს", "მთვარეს", "მდინარეს"],
        ["ხედავს", "ხატავს"],
        ["ხედავენ", "ხატავენ"],
        "{0} {1} {2}.",
    ),
    "hindi": (
        ["लड़का", "राजा", "कुत्ता", "बच्चा"],
        ["घर", "पेड़", "चाँद", "फूल", "तारा"],
        ["देखता है", "ढूँढता है"],
        ["देखते हैं", "ढूँढते हैं"],
        "{0} {1} {2}।",
    ),
    "arabic": (
        ["الولد", "الملك", "الكلب", "الطفل"],
        ["البيت", "الشجرة", "الكتاب", "القمر", "النهر"],
        ["يرى", "يرسم"],
        ["ترى", "ترسم"],
        "{0} {2} {1}.",
    ),
    "chinese": (
        ["男孩", "国王", "小狗", "孩子"],
        ["房子", "树", "书", "月亮", "河"],
        ["看见了", "画了"],
        ["了看见", "了画"],
        "{0}{2}{1}。",
    ),
    "persian": (
        ["پسر", "پادشاه", "سگ", "کودک"],
        ["خانه", "درخت", "کتاب", "ماه", "رود"],
        ["را می\u200cبیند", "را می\u200cکشد"],
        ["را می\u200cبینند", "را می\u200cکشند"],
        "{0} {1} {2}.",
    ),
}


def sentences(language):
    """All (good, bad) of a language."""
    subjects, objects, good, bad, frame = WORDS[language]
    for number, subject, thing, i in itertools.product(range(1, 8), subjects, objects, range(2)):
        start = f"{number} " if language != "chinese" else f"{number}、"
        pair = (start + frame.format(subject, thing, verb[i]) for verb in (good, bad))
        yield tuple(unicodedata.normalize("NFC", sentence) for sentence in pair)


OVERRIDES = [
    *TINY,
    "data.name=languages",
    "data.source=my texts",
    "data.validation_kb=2",
    "tokenizer.vocab_size=500",
    "eval.data=my pairs",
    "data.clean=[unicode_joiners, speaker_tags, markup, unwrap, spaces]",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder, with a space in its name, that holds a text and pairs for each language."""
    folder = tmp_path / "my lab"
    (folder / "my texts").mkdir(parents=True)
    (folder / "my pairs").mkdir()
    monkeypatch.chdir(folder)
    (folder / "config.yaml").write_bytes((ROOT / "config.yaml").read_bytes())
    for language in WORDS:
        pairs = list(sentences(language))
        text = "".join(good + "\n" for good, _ in pairs)
        (folder / "my texts" / f"{language}.txt").write_text(text, encoding="utf-8")
        with open(folder / "my pairs" / f"{language}.jsonl", "w", encoding="utf-8") as f:
            for i, (good, bad) in enumerate(pairs[:20]):
                pair = {"sentence_good": good, "sentence_bad": bad, "UID": language, "pairID": str(i)}
                f.write(json.dumps(pair, ensure_ascii=False) + "\n")
    return folder


def prepared_files():
    names = ("train.bin", "val.bin", "tokenizer.model")
    return [open(f"data/languages/{name}", "rb").read() for name in names]


def test_every_script_comes_back_from_its_tokens(folder):
    prepare.main(OVERRIDES)
    tok = tokenizer.load("data/languages/tokenizer.model")
    found = []
    for part in ("train", "val"):
        ids = np.fromfile(f"data/languages/{part}.bin", "<u2")
        lines = np.split(ids, np.flatnonzero(ids == tok.bos_id)[1:])
        found += [tok.decode(line[1:]) for line in lines]
    assert sorted(found) == sorted(good for language in WORDS for good, _ in sentences(language))
    assert any("\u200c" in line for line in found)  # which Persian is spelled with


def test_pairs_in_any_script_are_scored(folder):
    for script, args in (
        ("prepare.py", OVERRIDES),
        ("train.py", [*OVERRIDES, "train.out=my run"]),
        ("eval_blimp.py", ["my run/ckpt.pt", "--data", "my pairs", "--json", "my scores.json"]),
    ):
        done = command(script, *args, cwd=folder)
        assert done.returncode == 0, done.stderr
    scores = json.load(open("my scores.json", encoding="utf-8"))
    assert set(scores["paradigms"]) == set(WORDS) and scores["pairs"] == 20 * len(WORDS)


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}], ids=str)
def test_the_locale_changes_nothing(folder, locale):
    prepare.main(OVERRIDES)
    expected = prepared_files()
    os.unlink("data/languages/meta.json")
    env = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **locale}
    done = command("prepare.py", *OVERRIDES, cwd=folder, env=env)
    assert done.returncode == 0 and done.stderr == "" and prepared_files() == expected


def test_files_are_utf8_where_the_system_thinks_cp1252(folder, monkeypatch):
    """Windows: open() without an encoding means the system's there."""
    real = open

    def windows_open(file, mode="r", buffering=-1, encoding=None, *rest, **options):
        if "b" not in mode:
            encoding = encoding or "cp1252"
        return real(file, mode, buffering, encoding, *rest, **options)

    prepare.main(OVERRIDES)
    expected = prepared_files()
    os.unlink("data/languages/meta.json")
    with monkeypatch.context() as windows:
        windows.setattr(builtins, "open", windows_open)
        prepare.main(OVERRIDES)
        prepare.main(OVERRIDES)  # and finds it up to date
    assert prepared_files() == expected
