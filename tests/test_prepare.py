"""From text to bins: everything once and in order, the same bytes for the same settings, and nothing half made."""

import functools
import itertools
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tracemalloc
import unicodedata

from conftest import ROOT, command
from lab import corpus
from lab.files import UserError, file_sha256, sealed
from lab.run.data import load_data, require_as_asked
from lab.settings import load_config
import prepare
from stand_ins import load_json, sentencepiece_model
import tokenizer

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

# eval.data exists: no network is asked
SMALL = ["data.name=t", "data.source=texts", "tokenizer.vocab_size=400", "eval.data=pairs"]
POCKET = """--preset quick data.name=t data.pocket_words=20000 tokenizer.vocab_size=600 data.validation_kb=4
eval.data=nowhere""".split()
WORDS = "cat dog tree house sees takes likes old red small under with never again".split()


def sentences(seed, n):
    rng, found = random.Random(seed), []
    for _ in range(n):
        start = " ".join(rng.choices(WORDS, k=rng.randint(3, 12)))
        found.append(f"{start.capitalize()} {rng.randint(0, 9999)}.")
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with config.yaml and three sources: prose, dialogue with blank lines, and a short one."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "config.yaml", tmp_path)
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "x.jsonl").write_text("{}\n")
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "wiki.train").write_text("\n".join(sentences(1, 1300)) + "\n")
    talk = [s + ("\n\n" if i % 5 == 4 else "\n") for i, s in enumerate(sentences(2, 1000))]
    (texts / "talk.train.txt").write_text("".join(talk))
    (texts / "short.txt").write_text("\n".join(sentences(3, 200)))
    return tmp_path


def make(*overrides, replace=True):
    prepare.main(["--preset", "sllama", *SMALL, *overrides, *(["--replace"] if replace else [])])
    return load_json("data/t/meta.json")


def files():
    return {path.name: file_sha256(path) for path in pathlib.Path("data/t").iterdir() if path.is_file()}


def times():
    return {path.name: path.stat().st_mtime_ns for path in pathlib.Path("data/t").iterdir()}


def texts_of(part):
    """The texts of a .bin file, one per BOS."""
    tok = tokenizer.load("data/t/tokenizer.model")
    ids = np.fromfile(f"data/t/{part}.bin", "<u2")
    assert ids[0] == tok.bos_id
    return [tok.decode(text[1:]) for text in np.split(ids, np.flatnonzero(ids == tok.bos_id)[1:])]


# ---------------------------------------------------------------------------------------------------- the whole way


def test_everything_is_there_once(folder):
    meta = make()
    train, val = texts_of("train"), texts_of("val")
    originals = "\n".join(path.read_text() for path in pathlib.Path("texts").iterdir()).split("\n")
    assert sorted(train + val) == sorted(filter(None, originals)) and not set(train) & set(val)
    for part, lines in (("train", train), ("val", val)):
        assert meta[part] == {
            "bytes": len("\n".join(lines)) + 1,
            "words": len(" ".join(lines).split()),
            "lines": len(lines),
            "tokens": os.path.getsize(f"data/t/{part}.bin") / 2,
            "sha256": files()[part + ".bin"],
        }
    told = {"source": "texts", "corpus": "folder texts", "pairs": None, "vocab_size": 400}
    assert told.items() <= meta.items() and meta["tokenizer_sha256"] == files()["tokenizer.model"]
    assert meta["tokens_per_word"] == meta["train"]["tokens"] / meta["train"]["words"]
    for source, name in zip(meta["sources"], ("short.txt", "talk.train.txt", "wiki.train"), strict=True):
        assert source["name"] == name.split(".")[0] and source["sha256"] == file_sha256(f"texts/{name}")
        assert not source["short"] and source["budget_bytes"] is None


@pytest.mark.slow
def test_copies_are_the_text_in_other_pieces(folder, capsys):
    once, val = make(), files()["val.bin"]
    plain = np.fromfile("data/t/train.bin", "<u2")
    meta = make("data.copies=3")
    assert "in 3 copies" in capsys.readouterr().out and files()["val.bin"] == val
    copies = np.fromfile("data/t/train.bin", "<u2")
    assert (copies[: len(plain)] == plain).all() and (copies[-len(plain) :] == plain).all()
    second = copies[len(plain) : -len(plain)]
    assert 1.05 < len(second) / len(plain) < 1.6  # longer: pieces that were not merged
    texts = texts_of("train")
    assert texts == 3 * texts[: once["train"]["lines"]]
    assert meta["tokens_per_word"] == meta["train"]["tokens"] / (3 * meta["train"]["words"])
    for key in ("bytes", "words", "lines"):
        assert meta["train"][key] == once["train"][key]


@pytest.mark.slow
def test_same_settings_same_bytes(folder, capsys):
    make("data.copies=2")
    first, before = files(), times()
    make("data.copies=2", replace=False)
    assert "up to date" in capsys.readouterr().out and times() == before
    shutil.rmtree("data/t")
    arguments = ["--preset", "sllama", *SMALL, "data.copies=2"]
    result = command("prepare.py", *arguments, cwd=folder, env={"PYTHONHASHSEED": "5"})
    assert result.returncode == 0 and files() == first
    assert "folder texts" in result.stdout and "tokens_per_word: " in result.stdout
    make("data.copies=2", "data.seed=1")
    assert files()["train.bin"] != first["train.bin"]


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.slow
def test_what_is_damaged_or_missing_is_made_again(folder, capsys):
    make()
    good, there = files(), folder / "data" / "t"
    damages = {"train.bin": flip, "val.bin": os.unlink, "tokenizer.model": flip, "meta.json": os.unlink}
    for name, damage in damages.items():
        damage(there / name)
        capsys.readouterr()
        make(replace=False)
        assert "up to date" not in capsys.readouterr().out and files() == good
    flip(there / "meta.json")  # it no longer says what the others must be
    with pytest.raises(UserError, match="data/t/meta.json: .*damaged"):
        make()


CHANGES = {
    "data.source=pocket": "data.source: texts there, pocket now",
    "data.boundary=document": "data.boundary: line there, document now",
    "tokenizer.vocab_size=401": "tokenizer.vocab_size: 400 there, 401 now",
    "tokenizer.model=mine.model": "tokenizer.model: null there, sha256",
    "data.clean=[]": r"data.clean: \[",
    "data.budget_mb=0.1": "data.budget_mb: null there, 0.1 now",
    "data.sources=[wiki]": "the text of `talk`: sha256 [0-9a-f]+ there, null now",
}


def test_another_corpus_is_kept_unless_asked(folder):
    """Each difference is named with both values, and both ways out; --replace takes one of them."""

    def is_kept(override, words):
        with pytest.raises(UserError, match=r"(?s)data/t: .*--replace.*data.name=NAME.*" + words):
            make(*override, replace=False)
        assert times() == before

    make()
    before = times()
    shutil.copy("data/t/tokenizer.model", "mine.model")
    for override, words in CHANGES.items():
        is_kept([override], words)
    with open("texts/wiki.train", "a") as f:
        f.write("One more line.\n")
    is_kept([], "the text of `wiki`: sha256")
    make()
    assert "One more line." in texts_of("train") + texts_of("val")


@pytest.mark.parametrize("path", ["data/t/meta.json", "texts/wiki.train"])
def test_what_cannot_be_read_is_not_called_damaged(folder, path):
    make()
    os.unlink(path)
    os.mkdir(path)
    before = times()
    with pytest.raises(UserError, match=f"{path}: .*Is a directory"):
        make()
    assert times() == before


def test_training_on_a_text_prepared_in_another_way_is_refused(folder):
    """Only what the command itself says is compared: it need not repeat how the text was prepared."""
    make("data.copies=2")
    for said in ([], ["data.copies=2"], ["data.source=auto"], ["data.source=moved/texts/"]):
        assert load_data(load_config("sllama", ["data.name=t", *said]))[2]["settings"]["data.copies"] == 2
    for said, words in (
        ("data.copies=3", "data/t: was prepared with data.copies=2, and not 3"),
        ("data.source=pocket", "data/t: was prepared with data.source=texts, and"),
        ("model.vocab_size=999", "model.vocab_size: data/t has 400 pieces; leave it out"),
    ):
        with pytest.raises(UserError, match=f"{words}.*data.name=NAME"):
            load_data(load_config("sllama", ["data.name=t", said]))


def test_a_boundary_that_is_gone_names_its_last_commit(folder):
    meta = make()
    with open("data/t/meta.json", "w") as f:
        json.dump(sealed({**meta, "boundary": "sentence"}), f)
    assert load_data(load_config("sllama", ["data.name=t"]))[2]["boundary"] == "sentence"
    with pytest.raises(UserError, match="^command line: data.boundary: 'sentence': expected one of .* b92dfc8"):
        make("data.boundary=sentence")


def test_documents(folder):
    meta = make("data.boundary=document", "data.sources=[talk]")
    assert load_data(load_config("sllama", ["data.name=t"]))[2] == meta
    train, text = texts_of("train"), open("texts/talk.train.txt").read()
    whole = [document for document in train if document in text.split("\n\n")]
    assert len(whole) > 0.9 * len(train) and all(document.count("\n") == 4 for document in whole)
    assert set("\n".join(train).split("\n")) < set(text.split("\n"))


def test_an_existing_tokenizer(folder):
    make()
    shutil.copy("data/t/tokenizer.model", "mine.model")
    given = ["tokenizer.model=mine.model", "tokenizer.vocab_size=999", "data.sources=[short]"]
    meta = make(*given)
    require_as_asked(load_config("sllama", [*SMALL, *given]), meta)  # train.py, with the same settings, takes it
    assert meta["vocab_size"] == 400 and files()["tokenizer.model"] == meta["tokenizer_sha256"]
    assert len(texts_of("train")) == meta["train"]["lines"]
    unigram = sentencepiece_model(sentences(1, 500), 200, model_type="unigram")
    (folder / "unigram.model").write_bytes(unigram)
    with pytest.raises(UserError, match="data.copies: .*plain BPE"):
        make("tokenizer.model=unigram.model", "data.copies=2")


LANGUAGES = {  # subjects, objects, verbs; how they are put together
    "georgian": ("ბიჭი გოგო ძაღლი მეფე", "სახლს ხეს წიგნს მთვარეს მდინარეს", "ხედავს, ხატავს", "{0} {1} {2}."),
    "hindi": ("लड़का राजा कुत्ता बच्चा", "घर पेड़ चाँद फूल तारा", "देखता है, ढूँढता है", "{0} {1} {2}।"),
    "arabic": ("الولد الملك الكلب الطفل", "البيت الشجرة الكتاب القمر النهر", "يرى, يرسم", "{0} {2} {1}."),
    "chinese": ("男孩 国王 小狗 孩子", "房子 树 书 月亮 河", "看见了, 画了", "{0}{2}{1}。"),
    "persian": ("پسر پادشاه سگ کودک", "خانه درخت کتاب ماه رود", "را می\u200cبیند, را می\u200cکشد", "{0} {1} {2}."),
}


def sentences_in(language):
    subjects, objects, verbs, frame = LANGUAGES[language]
    for number, *words in itertools.product(range(1, 8), subjects.split(), objects.split(), verbs.split(", ")):
        yield unicodedata.normalize("NFC", f"{number} {frame.format(*words)}")


def test_every_script_comes_back_from_its_tokens(folder):
    (folder / "languages").mkdir()
    for language in LANGUAGES:
        text = "".join(line + "\n" for line in sentences_in(language))
        (folder / "languages" / f"{language}.txt").write_text(text, encoding="utf-8")
    clean = "data.clean=[unicode_joiners, speaker_tags, markup, unwrap, spaces]"
    make(clean, "data.source=languages", "data.validation_kb=2", "tokenizer.vocab_size=500")
    found = [*texts_of("train"), *texts_of("val")]
    assert sorted(found) == sorted(itertools.chain(*map(sentences_in, LANGUAGES)))
    assert any("\u200c" in line for line in found)  # which Persian is spelled with


@pytest.mark.slow
def test_pocket_english_comes_with_pairs_and_asks_no_network(folder, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    prepare.main(POCKET)
    meta = load_json("data/t/meta.json")
    assert meta["source"] == "pocket" and meta["corpus"] == "Pocket English (synthetic, seed 0, 20000 words)"
    names = os.listdir("data/t/pairs")
    assert len(names) >= 12 and os.listdir("data") == ["t"] and not os.path.exists("nowhere")
    os.unlink("data/t/pairs/" + min(names))
    prepare.main(POCKET)
    assert sorted(os.listdir("data/t/pairs")) == sorted(names)  # a missing file is noticed


@pytest.mark.slow
def test_what_ends_before_its_last_file_leaves_nothing_to_trust(folder, monkeypatch):
    """As on a full disk, or killed: there is no meta.json, and the next run mends it."""
    make()
    want, real = files(), corpus.atomic_write
    for last in ("tokenizer.model", "meta.json"):  # the first and the last that is written

        def write(path, content, last=last):
            if os.path.basename(path) == last:
                open(path + ".abc.tmp", "w").close()  # what a kill in the middle of a write leaves
                raise UserError("No space left on device")
            real(path, content)

        with monkeypatch.context() as disk, pytest.raises(UserError, match="No space left"):
            disk.setattr(corpus, "atomic_write", write)
            make("data.seed=9")
        assert not os.path.exists("data/t/meta.json")
        make(replace=False)
        assert files() == want


@pytest.mark.parametrize(
    "override, words",
    [
        ("data.name=../x", "data.name"),
        ("data.name=downloads", "data.name"),
        ("eval.data=data/t", "data.name"),
        ("data.source=nowhere", "`nowhere` is not a folder"),
        ("data.source=./pocket/", "rename the folder.* our own source `pocket`"),
        ("data.source=pairs", "`pairs` is not a folder of .*, nor one of auto, pocket, babylm, babylm-100m"),
        ("data.sources=[wikki]", "did you mean `wiki`"),
        ("data.sources=[zzz]", "known: short, talk, wiki"),
        ("data.sources=[wiki, wiki]", "each source once"),
        ("data.sources=[]", "at least one"),
        ("data.budget_mb=0.00001", "data.budget_mb"),
        ("tokenizer.vocab_size=60000", "tokenizer.vocab_size: .* largest possible"),
        ("tokenizer.model=nothere.model", "nothere.model: cannot be read"),
        ("tokenizer.model=texts/wiki.train", "not a SentencePiece model"),
    ],
)
def test_settings_that_cannot_be(folder, override, words):
    with pytest.raises(UserError, match=words):
        make(override)
    assert not os.path.exists("data/t")


# ---------------------------------------------------------------------------------------------------- faulty texts


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "bad.txt: empty"),
        (b"\xef\xbb\xbf\n \r\n\t\n", "bad.txt: empty"),
        (b"Good text.\ncaf\xe9 au lait\n", "bad.txt: not UTF-8 text at byte 14"),
        ("Text\n".encode("utf-16"), "bad.txt: not UTF-8 text at byte 0"),
        (bytes(range(128)) * 100, "bad.txt: a binary file"),
        (b"= = = Heading = = =\n[music]\n", "cleaning leaves nothing of `bad`"),
        (b"Only one line without an end", "too little text"),
        (b"The same line.\n" * 500, "too little text"),
    ],
)
def test_unusable_texts_are_refused(folder, content, words):
    (folder / "texts" / "bad.txt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        make("data.sources=[bad]")
    assert not os.path.exists("data/t")


def test_same_name_and_same_text(folder):
    shutil.copy("texts/wiki.train", "texts/copy.txt")
    with pytest.raises(UserError, match="`copy` and the text of `wiki` are the same"):
        make()
    make("data.sources=[wiki, talk]")
    os.rename("texts/copy.txt", "texts/wiki.txt")
    with pytest.raises(UserError, match="wiki.train and texts/wiki.txt are both called `wiki`"):
        make()


# ---------------------------------------------------------------------------------------------------- split and mix

lines_st = st.lists(st.text("ab é", min_size=0, max_size=12).map(str.strip), max_size=120)


def flat(text_blocks):
    return [line.decode() for block in text_blocks for line in block.lines() if line]


def joined(lines):
    return ("\n".join(lines) + "\n").encode()


@given(lines_st, st.integers(1, 50))
@settings(max_examples=200)
def test_blocks_are_the_text_in_order(lines, at):
    found = prepare.blocks([joined(lines)])
    assert flat(found) == [line for line in lines if line]
    for block in found:
        assert block.size == len(joined(flat([block]))) > 1
        assert not block.text.startswith(b"\n") and b"\n\n\n" not in block.text
    parts = [joined(part) for part in (lines[:at], lines[at:]) if part]
    assert prepare.blocks(parts) == found or not lines  # wherever the text was cut


@given(st.lists(st.lists(st.integers(1, 50), min_size=1), min_size=1, max_size=5))
@settings(max_examples=200)
def test_interleave_keeps_all_and_balances(sizes):
    sources = [[prepare.Block(i, size) for size in sizes_of_one] for i, sizes_of_one in enumerate(sizes)]
    largest, shares = max(max(source) / sum(source) for source in sizes), [0] * len(sizes)
    mixed = prepare.interleave(sources)
    for i, size in mixed:
        shares[i] += size / sum(sizes[i])
        assert max(shares) - min(shares) <= largest + 1e-9
    assert [[block for block in mixed if block.text == i] for i in range(len(sizes))] == sources


@pytest.fixture(scope="module")
def tok():
    return tokenizer.train(sentences(0, 500), 330)


words_st = st.text("ab 12", min_size=1, max_size=9).map(str.strip)
texts_st = st.lists(st.lists(words_st, min_size=30, max_size=150), min_size=1, max_size=3)


@pytest.mark.slow
@given(texts_st, st.floats(0.0001, 0.002), st.integers(0, 2**60), st.sampled_from(["line", "document"]))
@settings(max_examples=40)
def test_any_corpus_keeps_the_promises(tok, texts, mb, seed, boundary):
    """Whatever the text: the same bytes twice; no validation line in training; budgets that are equal, used up and not
    exceeded; a smaller one takes a part of what a larger one takes, and validates on the same text."""
    overrides = ["data.clean=[]", f"data.seed={seed}", f"data.boundary={boundary}"]
    config = load_config("sllama", overrides, ROOT / "config.yaml")
    texts = ["\n".join([str(i), *lines]) + "\n" for i, lines in enumerate(texts)]
    sources = {f"s{i}": functools.partial(str.encode, text) for i, text in enumerate(texts)}

    def build(budget):
        config.data.budget_mb = budget
        try:
            return prepare.build(config, sources, tok)
        except UserError as e:
            assert "too little text" in str(e) or "data.budget_mb" in str(e)

    def lines(ids):
        parts = np.split(ids, np.flatnonzero(ids == tok.bos_id)[1:])
        return "\n".join(tok.decode(part[1:]) for part in parts).split("\n")

    whole, part = build(None), build(mb)
    assert build(mb) == part
    trains = []
    for files, meta in filter(None, (whole, part)):
        train, val = (lines(np.frombuffer(files[name], "<u2")) for name in ("train.bin", "val.bin"))
        trains.append(set(train))
        assert not set(train) & set(val) and meta["val"]["bytes"] <= len("".join(texts).encode()) / 20
        assert (meta["train"]["lines"], meta["val"]["lines"]) == (len(train), len(val))
    if whole and part:
        assert whole[0]["val.bin"] == part[0]["val.bin"] and trains[1] <= trains[0]
        for every, taken in zip(whole[1]["sources"], part[1]["sources"]):
            budget = int(1e6 * mb / len(texts))
            assert taken["budget_bytes"] == budget and taken["short"] == (every["bytes"] < budget)
            assert min(every["bytes"], budget - 9) <= taken["bytes"] <= budget  # a line has at most ten bytes


def test_validation_does_not_depend_on_the_other_sources(folder):
    make("data.sources=[wiki]", "tokenizer.vocab_size=330")
    alone = set(texts_of("val"))
    meta = make("data.sources=[wiki, talk]")
    assert [source["name"] for source in meta["sources"]] == ["wiki", "talk"]  # as they are asked for
    assert alone < set(texts_of("val"))


@pytest.mark.slow
def test_one_enormous_line(tok):
    """No newline in a megabyte: it is cut at spaces, nothing is lost, and it is held a few times at once, not often."""
    line = " ".join(random.Random(0).choices(WORDS, k=200_000))
    config = load_config("sllama", [], ROOT / "config.yaml")
    raw = line.encode()
    tracemalloc.start()
    files, meta = prepare.build(config, {"line": lambda: raw}, tok)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * len(line)
    assert meta["train"]["words"] + meta["val"]["words"] == 200_000
    assert meta["train"]["bytes"] + meta["val"]["bytes"] == len(line) + 1
    assert len(line) / tokenizer.LONGEST_LINE <= meta["train"]["lines"] + meta["val"]["lines"] < 100


def test_it_starts_without_pytorch():
    """Which takes longer to import than everything else together, and only the model's settings need it."""
    code = "import sys; sys.modules['torch'] = None; import prepare; prepare.main(['data.clean=[unicorn]'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "UserError: data.clean: no step `unicorn`; known: unicode" in done.stderr
