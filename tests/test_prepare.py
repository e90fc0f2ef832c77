import functools
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys

from conftest import ROOT, command
from lab import corpus
from lab.files import UserError, file_sha256, sealed
from lab.run.data import load_data, require_as_asked
from lab.settings import load_config
import prepare
import tokenizer

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import sentencepiece

# eval.data exists: no network is asked
SMALL = ["data.name=t", "data.source=texts", "tokenizer.vocab_size=400", "eval.data=pairs"]
POCKET = """--preset quick data.name=t data.pocket_words=20000 tokenizer.vocab_size=600 data.validation_kb=4
eval.data=nowhere""".split()


def sentences(seed, n):
    rng, words = random.Random(seed), "cat dog tree house sees takes likes old red small under with never again".split()
    found = []
    for _ in range(n):
        start = " ".join(rng.choice(words) for _ in range(rng.randint(3, 12)))
        found.append(f"{start.capitalize()} {rng.randint(0, 9999)}.")
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with config.yaml and three sources: prose, dialogue with blank lines, and a short one."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(os.path.join(ROOT, "config.yaml"), tmp_path)
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "x.jsonl").write_text("{}\n")
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "wiki.train").write_text("\n".join(sentences(1, 4000)) + "\n")
    talk = [s + ("\n\n" if i % 5 == 4 else "\n") for i, s in enumerate(sentences(2, 3000))]
    (texts / "talk.train.txt").write_text("".join(talk))
    (texts / "short.txt").write_text("\n".join(sentences(3, 600)))
    return tmp_path


def make(*overrides, replace="--replace"):
    prepare.main(["--preset", "sllama", *SMALL, *overrides, *filter(None, [replace])])
    return json.load(open("data/t/meta.json"))


def files(folder="data/t"):
    names = [name for name in sorted(os.listdir(folder)) if os.path.isfile(os.path.join(folder, name))]
    return {name: file_sha256(os.path.join(folder, name)) for name in names}


def times(folder="data/t"):
    return {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in files(folder)}


def texts_of(part, tok=None):
    """The texts of a .bin file, one per BOS."""
    tok = tok or tokenizer.load("data/t/tokenizer.model")
    ids = np.fromfile(f"data/t/{part}.bin", "<u2")
    assert ids[0] == tok.bos_id
    return [tok.decode(text[1:]) for text in np.split(ids, np.flatnonzero(ids == tok.bos_id)[1:])]


# ---------------------------------------------------------------------------------------------------- the whole way


def test_everything_is_there_once(folder):
    meta = make()
    train, val = texts_of("train"), texts_of("val")
    originals = [line for name in os.listdir("texts") for line in open(f"texts/{name}").read().split("\n") if line]
    assert sorted(train + val) == sorted(originals) and not set(train) & set(val)  # three sources of distinct lines
    for part, lines in (("train", train), ("val", val)):
        assert meta[part]["lines"] == len(lines) and meta[part]["words"] == sum(len(line.split()) for line in lines)
        assert meta[part]["bytes"] == sum(len(line.encode()) + 1 for line in lines)
        assert meta[part]["tokens"] * 2 == os.path.getsize(f"data/t/{part}.bin")
        assert meta[part]["sha256"] == files()[part + ".bin"]
    assert meta["tokenizer_sha256"] == files()["tokenizer.model"]
    assert meta["vocab_size"] == 400 == tokenizer.load("data/t/tokenizer.model").vocab_size
    told = {"source": "texts", "corpus": "folder texts", "pairs": None, "seed": 0, "boundary": "line"}
    assert told.items() <= meta.items()
    assert [s["name"] for s in meta["sources"]] == ["short", "talk", "wiki"]
    assert not any(s["short"] for s in meta["sources"])
    assert meta["sources"][2]["sha256"] == hashlib.sha256(open("texts/wiki.train", "rb").read()).hexdigest()
    assert sum(s["bytes"] for s in meta["sources"]) == meta["train"]["bytes"]
    assert meta["tokens_per_word"] == meta["train"]["tokens"] / meta["train"]["words"]


@pytest.mark.slow
def test_copies_are_the_text_in_other_pieces(folder, capsys):
    once = make()
    os.rename("data/t", "data/once")
    meta = make("data.copies=3")
    assert "in 3 copies" in capsys.readouterr().out
    plain = np.fromfile("data/once/train.bin", "<u2")
    copies = np.fromfile("data/t/train.bin", "<u2")
    assert (copies[: len(plain)] == plain).all() and (copies[-len(plain) :] == plain).all()
    second = copies[len(plain) : -len(plain)]
    assert 1.05 < len(second) / len(plain) < 1.6  # longer: pieces that were not merged
    texts = texts_of("train")
    assert texts == 3 * texts[: once["train"]["lines"]]
    assert meta["tokens_per_word"] == meta["train"]["tokens"] / (3 * meta["train"]["words"])
    for key in ("bytes", "words", "lines"):
        assert meta["train"][key] == once["train"][key]
    assert files("data/t")["val.bin"] == files("data/once")["val.bin"]


@pytest.mark.slow
def test_same_settings_same_bytes(folder, capsys):
    make("data.copies=2")
    first, before = files(), times()
    make("data.copies=2", replace=None)
    assert "up to date" in capsys.readouterr().out and times() == before
    shutil.rmtree("data/t")
    arguments = ["--preset", "sllama", *SMALL, "data.copies=2"]
    result = command("prepare.py", *arguments, cwd=folder, env={"PYTHONHASHSEED": "5"})
    assert result.returncode == 0 and files() == first
    assert "folder texts" in result.stdout and "tokens_per_word: " in result.stdout
    make("data.copies=2", "data.seed=1")
    assert files()["train.bin"] != first["train.bin"]


@pytest.mark.parametrize("file", ["train.bin", "val.bin", "tokenizer.model", "meta.json"])
def test_what_is_damaged_or_missing_is_made_again(folder, file, capsys):
    make()
    good = files()
    raw = bytearray(open(f"data/t/{file}", "rb").read())
    raw[len(raw) // 2] ^= 1
    for damaged in (True, False):
        os.unlink(f"data/t/{file}")
        if damaged:
            with open(f"data/t/{file}", "wb") as f:
                f.write(raw)
        if damaged and file == "meta.json":  # says no longer what the others are
            with pytest.raises(UserError, match="data/t/meta.json: .*damaged"):
                make()
            continue
        capsys.readouterr()
        make(replace=None)
        assert "up to date" not in capsys.readouterr().out and files() == good


@pytest.mark.parametrize(
    "change, words",
    [
        ("data.source=pocket", "data.source: texts there, pocket now"),
        ("data.boundary=document", "data.boundary: line there, document now"),
        ("tokenizer.vocab_size=401", "tokenizer.vocab_size: 400 there, 401 now"),
        ("tokenizer.model=mine.model", "tokenizer.model: null there, sha256"),
        ("data.clean=[]", r"data.clean: \["),
        ("data.budget_mb=0.1", "data.budget_mb: null there, 0.1 now"),
        ("data.sources=[wiki]", "the text of `talk`: sha256 [0-9a-f]+ there, null now"),
        ("a line more", "the text of `wiki`: sha256"),
    ],
)
def test_another_corpus_is_kept_unless_asked(folder, change, words):
    """Each difference is named with both values, and both ways out; --replace takes one of them."""
    make()
    before = times()
    shutil.copy("data/t/tokenizer.model", "mine.model")
    if change == "a line more":
        with open("texts/wiki.train", "a") as f:
            f.write("One more line.\n")
    override = [change] if "=" in change else []
    with pytest.raises(UserError, match=r"(?s)data/t: .*--replace.*data.name=NAME.*" + words):
        make(*override, replace=None)
    assert times() == before
    if change != "data.source=pocket":
        make(*override)
        assert times() != before


@pytest.mark.parametrize("path", ["data/t/meta.json", "texts/wiki.train"])
def test_what_cannot_be_read_is_not_called_damaged(folder, monkeypatch, path):
    make()
    before, real = times(), open

    def denied(file, *args, **kwargs):
        if str(file) == path:
            raise PermissionError(13, "Permission denied", file)
        return real(file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", denied)
        with pytest.raises(UserError, match=f"{path}: .*Permission denied"):
            make()
    assert times() == before


@pytest.mark.slow
def test_budgets_are_equal_and_nested(folder):
    """Whole lines, at most a third of the budget each; less is the beginning of more; one validation text for all."""
    everything = make()
    val = files()["val.bin"]
    vals, trains = texts_of("val"), {}
    for mb in (0.03, 0.15):
        meta = make(f"data.budget_mb={mb}")
        trains[mb] = set(texts_of("train"))
        assert not trains[mb] & set(vals) and set(texts_of("val")) == set(vals)
        for s in meta["sources"]:
            assert s["budget_bytes"] == int(mb * 1e6 / 3)
            if s["short"]:
                whole = {source["name"]: source["bytes"] for source in everything["sources"]}
                assert s["bytes"] == whole[s["name"]] < s["budget_bytes"]
            else:
                assert s["budget_bytes"] - 100 < s["bytes"] <= s["budget_bytes"]
    assert [s["short"] for s in meta["sources"]] == [True, False, False]
    assert trains[0.03] < trains[0.15]
    shutil.copy("data/t/tokenizer.model", "kept.model")
    make("data.budget_mb=0.03", "tokenizer.model=kept.model")
    same = files()["val.bin"]
    make("data.budget_mb=0.15", "tokenizer.model=kept.model")
    assert files()["val.bin"] == same != val


def test_training_on_a_text_prepared_in_another_way_is_refused(folder):
    """Only what the command itself says is compared: it need not repeat how the text was prepared."""
    make("data.copies=2")
    for said in ([], ["data.copies=2"], ["data.source=auto"], ["data.source=moved/texts/"]):
        assert load_data(load_config("sllama", ["data.name=t", *said]))[2]["settings"]["data.copies"] == 2
    for said, words in (
        ("data.copies=3", "data.copies=2, and not 3"),
        ("data.source=pocket", "data.source=texts, and"),
    ):
        with pytest.raises(UserError, match=f"data/t: was prepared with {words}.*data.name=NAME"):
            load_data(load_config("sllama", ["data.name=t", said]))


def test_a_boundary_that_is_gone_names_its_last_commit(folder):
    """A corpus of before is trained on, whatever its boundary."""
    for boundary in ("line", "document"):
        meta = make(f"data.boundary={boundary}")
        assert load_data(load_config("sllama", ["data.name=t"]))[2] == meta
    with open("data/t/meta.json", "w") as f:
        json.dump(sealed({**meta, "boundary": "sentence"}), f)
    assert load_data(load_config("sllama", ["data.name=t"]))[2]["boundary"] == "sentence"
    with pytest.raises(UserError, match="^command line: data.boundary: 'sentence': expected one of .* b92dfc8"):
        make("data.boundary=sentence")


def test_documents(folder):
    make("data.boundary=document", "data.sources=[talk]")
    train = texts_of("train")
    originals = open("texts/talk.train.txt").read().split("\n\n")
    whole = [text for text in train if text in originals]
    assert len(whole) > 0.9 * len(train) and all(text.count("\n") == 4 for text in whole if text in originals[:-1])
    assert set("\n".join(train).split("\n")) < set(open("texts/talk.train.txt").read().split("\n"))


def test_an_existing_tokenizer(folder):
    make()
    shutil.copy("data/t/tokenizer.model", "mine.model")
    given = ["tokenizer.model=mine.model", "tokenizer.vocab_size=999", "data.sources=[short]"]
    meta = make(*given)
    require_as_asked(load_config("sllama", [*SMALL, *given]), meta)  # train.py, with the same settings, takes it
    assert meta["vocab_size"] == 400 and files()["tokenizer.model"] == meta["tokenizer_sha256"]
    assert "\n".join(texts_of("train"))
    with open("unigram.model", "wb") as f:
        lines = iter(sentences(1, 500))
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=f, vocab_size=200, minloglevel=2)
    with pytest.raises(UserError, match="data.copies"):
        make("tokenizer.model=unigram.model", "data.copies=2")


@pytest.mark.slow
def test_pocket_english_comes_with_pairs_and_asks_no_network(folder, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    prepare.main(POCKET)
    meta = json.load(open("data/t/meta.json"))
    assert meta["source"] == "pocket" and meta["corpus"] == "Pocket English (synthetic, seed 0, 20000 words)"
    said, names = set(texts_of("train")), os.listdir("data/t/pairs")
    assert len(names) >= 12 and os.listdir("data") == ["t"] and not os.path.exists("nowhere")
    for name in names:
        for pair in map(json.loads, open(f"data/t/pairs/{name}")):
            assert f"{pair['UID']}.jsonl" == name and pair["sentence_good"] not in said
    os.unlink("data/t/pairs/" + min(names))
    prepare.main(POCKET)
    assert sorted(os.listdir("data/t/pairs")) == sorted(names)  # a missing file is noticed


@pytest.mark.parametrize("last", ["tokenizer.model", "meta.json"])  # the first and the last that is written
def test_what_ends_before_its_last_file_leaves_nothing_to_trust(folder, monkeypatch, last):
    """As on a full disk, or killed: there is no meta.json, and the next run mends it."""
    make()
    want, real = files(), corpus.atomic_write
    make("data.seed=9")  # another corpus is there already

    def write(path, content):
        if os.path.basename(path) == last:
            open(path + ".abc.tmp", "w").close()  # what a kill in the middle of a write leaves
            raise UserError("No space left on device")
        real(path, content)

    with monkeypatch.context() as disk, pytest.raises(UserError, match="No space left"):
        disk.setattr(corpus, "atomic_write", write)
        make()
    assert not os.path.exists("data/t/meta.json")
    make()
    assert files() == want


@pytest.mark.parametrize(
    "override, words",
    [
        ("data.clean=[unicorn]", "data.clean: no step `unicorn`; known: unicode"),
        ("data.name=../x", "data.name"),
        ("data.name=downloads", "data.name"),
        ("data.name=''", "data.name"),
        ("eval.data=data/t", "data.name"),
        ("data.source=''", "data.source"),
        ("data.source=nowhere", "no folder `nowhere`"),
        ("data.source=pairs", "no .*file in this folder"),
        ("data.sources=[wikki]", "did you mean `wiki`"),
        ("data.sources=[zzz]", "known: short, talk, wiki"),
        ("data.sources=[wiki, wiki]", "twice"),
        ("data.sources=[]", "empty"),
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


def fault(content, *overrides, name="texts/bad.txt"):
    for other in os.listdir("texts"):
        os.unlink("texts/" + other)
    with open(name, "wb") as f:
        f.write(content)
    return make(*overrides)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "bad.txt: empty"),
        (b"\n \r\n\t\n", "bad.txt: empty"),
        (b"\xef\xbb\xbf", "bad.txt: empty"),
        (b"Good text.\ncaf\xe9 au lait\n", "bad.txt: not UTF-8 text at byte 14"),
        (b"cut off \xf0\x9f\x99", "byte 8"),
        ("Text\n".encode("utf-16"), "not UTF-8 text at byte 0"),
        (bytes(range(128)) * 100, "bad.txt: a binary file"),
        (b"\0" * 1000, "bad.txt: a binary file"),
        (b"= = = Heading = = =\n[music]\n", "cleaning leaves nothing of `bad`"),
        (b"Only one line without an end", "too little text"),
        (b"The same line.\n" * 500, "too little text"),
    ],
)
def test_unusable_texts_are_refused(folder, content, words):
    with pytest.raises(UserError, match=words):
        fault(content)
    assert not os.path.exists("data/t")


def test_same_name_and_same_text(folder):
    shutil.copy("texts/wiki.train", "texts/copy.txt")
    with pytest.raises(UserError, match="`copy` and `wiki` are the same text"):
        make()
    make("data.sources=[wiki, talk]")
    os.rename("texts/copy.txt", "texts/wiki.txt")
    with pytest.raises(UserError, match="wiki.train and wiki.txt are both called"):
        make()


# ---------------------------------------------------------------------------------------------------- split and mix

lines_st = st.lists(st.text("ab é", min_size=0, max_size=12).map(str.strip), max_size=120)


def flat(text_blocks):
    return [line.decode() for block in text_blocks for line in block.lines() if line]


def bytes_of(lines):
    return sum(len(line.encode()) + 1 for line in lines if line)


def blocks_of(lines):
    return prepare.blocks([("\n".join(lines) + "\n").encode()])


@given(lines_st, st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_blocks_are_the_text_in_order(lines, at):
    found = blocks_of(lines)
    assert flat(found) == [line for line in lines if line]
    for block in found:
        assert block.size == bytes_of(flat([block])) > 0
        assert not block.text.startswith(b"\n") and b"\n\n\n" not in block.text
    parts = [("\n".join(part) + "\n").encode() for part in (lines[:at], lines[at:]) if part]
    assert prepare.blocks(parts) == found or not lines  # wherever the text was cut


@pytest.mark.slow
@given(st.lists(lines_st.map(blocks_of).filter(bool), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_interleave_keeps_all_and_balances(sources):
    tagged = []
    for i, source in enumerate(sources):
        tagged.append([prepare.Block(b"%d " % i + block.text, block.size) for block in source])
    totals = [sum(block.size for block in source) for source in sources]
    largest = [max(block.size for block in source) for source in sources]
    given_so_far = [0] * len(sources)
    order = [[] for _ in sources]
    for block in prepare.interleave(tagged):
        i = int(block.text[:1])
        order[i].append(block)
        given_so_far[i] += block.size
        shares = [given / total for given, total in zip(given_so_far, totals)]
        assert max(shares) - min(shares) <= max(n / total for n, total in zip(largest, totals)) + 1e-9
    assert order == tagged  # all blocks, each source in its own order


@pytest.fixture(scope="module")
def tok():
    return tokenizer.train(sentences(0, 500), 330)


words_st = st.text("ab 12", min_size=1, max_size=9).map(str.strip)
texts_st = st.lists(st.lists(words_st, min_size=30, max_size=150), min_size=1, max_size=3)


@pytest.mark.slow
@given(texts_st, st.floats(0.0001, 0.002), st.integers(0, 2**60), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_corpus_keeps_the_promises(tok, texts, mb, seed, by_line):
    """Whatever the text: the same bytes twice, no validation line in training, no source over its budget, the same
    validation text at every budget."""
    boundary = "line" if by_line else "document"
    overrides = ["data.clean=[]", f"data.seed={seed}", f"data.boundary={boundary}"]
    config = load_config("sllama", overrides, os.path.join(ROOT, "config.yaml"))
    texts = ["\n".join([str(i), *lines]) + "\n" for i, lines in enumerate(texts)]
    sources = {f"s{i}": functools.partial(str.encode, text) for i, text in enumerate(texts)}

    def build(budget):
        config.data.budget_mb = budget
        try:
            return prepare.build(config, sources, tok)
        except UserError as e:
            assert "too little text" in str(e) or "data.budget_mb" in str(e)

    def lines(bytes_of_bin):
        ids = np.frombuffer(bytes_of_bin, "<u2")
        texts = np.split(ids, np.flatnonzero(ids == tok.bos_id)[1:])
        return "\n".join(tok.decode(text[1:].tolist()) for text in texts).split("\n")

    whole, part = build(None), build(mb)
    assert build(mb) == part
    for files, meta in filter(None, (whole, part)):
        train, val = lines(files["train.bin"]), lines(files["val.bin"])
        held_out, every = meta["val"]["bytes"], sum(len(text.encode()) for text in texts)
        assert not set(train) & set(val) and held_out <= every / 20
        assert (meta["train"]["lines"], meta["val"]["lines"]) == (len(train), len(val))
        assert all(s["budget_bytes"] is None or s["bytes"] <= s["budget_bytes"] for s in meta["sources"])
    if whole and part:
        assert whole[0]["val.bin"] == part[0]["val.bin"]


def test_validation_does_not_depend_on_the_other_sources(folder):
    make("data.sources=[wiki]", "tokenizer.vocab_size=330")
    alone = set(texts_of("val"))
    meta = make("data.sources=[wiki, talk]")
    assert [source["name"] for source in meta["sources"]] == ["wiki", "talk"]  # as they are asked for
    assert alone < set(texts_of("val"))


def test_it_starts_without_pytorch():
    code = "import sys, prepare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
