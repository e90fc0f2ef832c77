import functools
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tracemalloc

from conftest import ROOT, command, refused
from lab.files import UserError, file_sha256
from lab.run.data import load_data
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
POCKET = [
    "--preset",
    "quick",
    "data.name=t",
    "data.pocket_words=20000",
    "tokenizer.vocab_size=600",
    "data.validation_kb=4",
    "eval.data=nowhere",
]


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
    assert [(s["name"], s["short"]) for s in meta["sources"]] == [("short", False), ("talk", False), ("wiki", False)]
    assert meta["sources"][2]["sha256"] == hashlib.sha256(open("texts/wiki.train", "rb").read()).hexdigest()
    assert sum(s["bytes"] for s in meta["sources"]) == meta["train"]["bytes"]
    assert meta["tokens_per_word"] == meta["train"]["tokens"] / meta["train"]["words"]


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


def test_copies_follow_from_the_seed(folder):
    make("data.copies=2")
    first = files()["train.bin"]
    shutil.rmtree("data/t")
    result = command("prepare.py", "--preset", "sllama", *SMALL, "data.copies=2", cwd=folder)  # another process
    assert result.returncode == 0 and files()["train.bin"] == first
    make("data.copies=2", "data.seed=1")
    assert files()["train.bin"] != first


def test_same_settings_same_bytes(folder, capsys):
    make()
    first, before = files(), times()
    make(replace=None)
    assert "up to date" in capsys.readouterr().out and times() == before
    shutil.rmtree("data/t")
    result = command("prepare.py", "--preset", "sllama", *SMALL, cwd=folder, env={"PYTHONHASHSEED": "5"})
    assert result.returncode == 0, result.stderr
    assert files() == first
    make("data.seed=1")
    assert files()["train.bin"] != first["train.bin"]


@pytest.mark.parametrize("file", ["train.bin", "val.bin", "tokenizer.model", "meta.json", "no meta.json"])
def test_what_is_damaged_is_made_again(folder, file, capsys):
    make()
    good = files()
    if file == "no meta.json":
        os.unlink("data/t/meta.json")
    else:
        raw = bytearray(open("data/t/" + file, "rb").read())
        raw[len(raw) // 2] ^= 1
        open("data/t/" + file, "wb").write(raw if file != "meta.json" else raw[: len(raw) // 2])
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


def test_what_cannot_be_read_is_not_called_damaged(folder, monkeypatch):
    make()
    before, real = times(), open

    def denied(path, *args, **kwargs):
        if str(path).endswith(("meta.json", "train.bin")):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", denied)
        with pytest.raises(UserError, match="data/t/meta.json: cannot be read .Permission denied"):
            make()
    assert times() == before


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
    for said in ([], ["data.copies=2"], ["data.source=auto"]):
        assert load_data(load_config("sllama", ["data.name=t", *said]))[2]["settings"]["data.copies"] == 2
    with pytest.raises(UserError, match="data/t: was prepared with data.copies=2, and not 3; .*data.name=NAME"):
        load_data(load_config("sllama", ["data.name=t", "data.copies=3"]))


def test_any_stretch_holds_every_source(folder):
    make("data.budget_mb=0.09")
    origin = {line: name for name in os.listdir("texts") for line in open(f"texts/{name}").read().split("\n")}
    train = [origin[line] for line in texts_of("train")]
    for part in (train[: len(train) // 4], train[len(train) // 2 : 3 * len(train) // 4]):
        shares = [part.count(name) / len(part) for name in os.listdir("texts")]
        assert all(0.23 < share < 0.43 for share in shares)


def test_order_of_sources_and_unknown_ones(folder):
    meta = make("data.sources=[wiki, short]")
    assert [s["name"] for s in meta["sources"]] == ["wiki", "short"]
    mistakes = {
        "[wikki]": "did you mean `wiki`",
        "[zzz]": "known: short, talk, wiki",
        "[wiki, wiki]": "twice",
        "[]": "empty",
    }
    for wanted, words in mistakes.items():
        with pytest.raises(UserError, match=words):
            make("data.sources=" + wanted)


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
    meta = make("tokenizer.model=mine.model", "tokenizer.vocab_size=999", "data.sources=[short]")
    assert meta["vocab_size"] == 400 and files()["tokenizer.model"] == meta["tokenizer_sha256"]
    assert "\n".join(texts_of("train"))
    for bad, words in (("nothere.model", "cannot be read"), ("texts/wiki.train", "not a SentencePiece model")):
        with pytest.raises(UserError, match=words):
            make("tokenizer.model=" + bad)
    with open("unigram.model", "wb") as f:
        sentencepiece.SentencePieceTrainer.train(
            input="texts/wiki.train", model_writer=f, vocab_size=200, minloglevel=2
        )
    with pytest.raises(UserError, match="data.copies"):
        make("tokenizer.model=unigram.model", "data.copies=2")


def test_pocket(folder):
    prepare.main(POCKET)
    meta = json.load(open("data/t/meta.json"))
    assert (meta["source"], meta["corpus"]) == ("pocket", "Pocket English (synthetic, seed 0, 20000 words)")
    pairs = {name: [json.loads(line) for line in open("data/t/pairs/" + name)] for name in os.listdir("data/t/pairs")}
    assert len(pairs) >= 12 and all(pair["UID"] + ".jsonl" == name for name, found in pairs.items() for pair in found)
    assert not {pair["sentence_good"] for found in pairs.values() for pair in found} & set(texts_of("train"))
    assert not os.path.exists("nowhere")
    os.unlink("data/t/pairs/" + min(pairs))
    prepare.main(POCKET)
    assert len(os.listdir("data/t/pairs")) == len(pairs)  # a missing file is noticed


def test_a_kill_leaves_nothing_to_trust(folder):
    """Killed before or between its writes: there is no meta.json, and the next run mends it."""
    make()
    want = files()
    make("data.seed=9")  # another corpus is there already
    for name in ("tokenizer.model", "meta.json"):  # the first and the last that is written
        code = (
            f"import os, prepare; from lab.text import corpus; real = corpus.atomic_write\n"
            f"def write(path, content):\n"
            f"    if os.path.basename(path) == {name!r}: os.kill(os.getpid(), 9)\n"
            f"    real(path, content)\n"
            f"corpus.atomic_write = write; prepare.main({['--preset', 'sllama', '--replace', *SMALL]!r})"
        )
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        died = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True)
        assert died.returncode == -signal.SIGKILL and not os.path.exists("data/t/meta.json"), died.stderr
    open("data/t/train.bin.abc.tmp", "w").close()  # what a kill inside of a write leaves
    make()
    assert files() == want


def test_failure_leaves_what_was_there(folder):
    make()
    before = files()
    with pytest.raises(UserError, match="tokenizer.vocab_size"):
        make("tokenizer.vocab_size=60000")
    open("texts/bad.txt", "wb").write(b"caf\xe9\n" * 10)
    with pytest.raises(UserError):
        make()
    assert files() == before


def test_command_line(folder):
    result = command("prepare.py", *SMALL, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "folder texts" in result.stdout and "tokens_per_word: " in result.stdout
    too_large = command("prepare.py", *SMALL, "tokenizer.vocab_size=60000", "--replace", cwd=folder)
    refused(too_large, "tokenizer.vocab_size", "largest possible")
    (folder / "data" / "t" / "meta.json").unlink()
    (folder / "data" / "t" / "meta.json").mkdir()
    refused(command("prepare.py", *SMALL, cwd=folder), "meta.json")


@pytest.mark.parametrize(
    "override, words",
    [
        ("data.clean=[unicorn]", "data.clean: no step `unicorn`; known: unicode"),
        ("data.name=../x", "data.name"),
        ("data.name=downloads", "data.name"),
        ("data.name=''", "data.name"),
        ("eval.data=data/t", "data.name"),
        ("data.source=''", "data.source"),
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
        (b"= = = Heading = = =\n[music]\n", "nothing of `bad` is left after cleaning"),
        (b"Only one line without an end", "too little text"),
        (b"The same line.\n" * 500, "too little text"),
    ],
)
def test_unusable_texts_are_refused(folder, content, words):
    with pytest.raises(UserError, match=words):
        fault(content)
    assert not os.path.exists("data/t")


def test_missing_and_empty_folders(folder):
    with pytest.raises(UserError, match="no folder `nowhere`"):
        make("data.source=nowhere")
    os.mkdir("empty")
    open("empty/.hidden.txt", "w").close()
    open("empty/notes.md", "w").close()
    os.mkdir("empty/folder.txt")
    with pytest.raises(UserError, match="no .*file in this folder"):
        make("data.source=empty")


def test_same_name_and_same_text(folder):
    shutil.copy("texts/wiki.train", "texts/copy.txt")
    with pytest.raises(UserError, match="`copy` and `wiki` are the same text"):
        make()
    make("data.sources=[wiki, talk]")
    os.rename("texts/copy.txt", "texts/wiki.txt")
    with pytest.raises(UserError, match="wiki.train and wiki.txt are both called"):
        make()


def test_a_file_that_cannot_be_read(folder, monkeypatch):
    real = open

    def denied(path, *args, **kwargs):
        if str(path).endswith("wiki.train"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(UserError, match="wiki.train: cannot be read .Permission denied"):
        make()


def test_newlines_marks_and_nuls(folder):
    lines = sentences(5, 400)
    expected = None
    for newline in ("\n", "\r\n", "\r"):
        fault(("\ufeff" + newline.join(lines[:200]) + "\0" + newline + newline.join(lines[200:])).encode())
        expected = expected or texts_of("train")
        assert texts_of("train") == expected and set(expected) < set(lines)


def test_nuls_stay_where_nothing_is_cleaned(folder):
    lines = [line.replace("1", "\0") for line in sentences(5, 4000)]
    fault("\n".join(lines).encode(), "data.clean=[]")
    assert sorted(texts_of("train") + texts_of("val")) == sorted(lines) and any("\0" in line for line in lines)


def test_one_enormous_line(folder):
    """No newline, and further down not even a space: cut into bounded pieces, nothing lost, within memory."""
    words = " ".join(sentences(6, 15_000))  # 0.7 MB
    tracemalloc.start()
    meta = fault((words + " " + "x" * 100_000).encode(), "data.clean=[]")
    assert tracemalloc.get_traced_memory()[1] < 40 * len(words)
    tracemalloc.stop()
    train, val = texts_of("train"), texts_of("val")
    assert max(map(len, train)) <= tokenizer.LONGEST_LINE and meta["train"]["lines"] > 20
    assert sorted(" ".join(train + val).replace("x", "").split()) == sorted(words.replace("x", "").split())
    assert sum(text.count("x") for text in train + val) == 100_000 + words.count("x")


def test_lines_of_spaces_are_boundaries(folder):
    fault(b"".join(s.encode() + b"\n \t \n" for s in sentences(7, 2000)), "data.boundary=document", "data.clean=[]")
    assert not any("\n" in text for text in texts_of("train"))


def test_many_files(folder):
    for i in range(300):
        (folder / "texts" / f"f{i}.txt").write_text("\n".join(sentences(100 + i, 30)))
    meta = make()
    assert len(meta["sources"]) == 303 and all(s["lines"] for s in meta["sources"])


def test_a_budget_too_small(folder):
    with pytest.raises(UserError, match="data.budget_mb"):
        make("data.budget_mb=0.00001")


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


@given(lines_st, st.floats(0.001, 1), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_split_is_a_partition_within_its_limits(lines, kb, seed):
    text_blocks = blocks_of(lines)
    held_out, rest = prepare.split(text_blocks, kb, seed, "name")
    assert sorted(held_out + rest) == sorted(text_blocks)
    assert bytes_of(flat(held_out)) <= min(1000 * kb, bytes_of(lines) / 20)
    assert (held_out, rest) == prepare.split(text_blocks, kb, seed, "name")


@given(lines_st, lines_st)
@settings(max_examples=100, deadline=None)
def test_validation_lines_are_new(lines, others):
    held_out = blocks_of(lines)
    kept = prepare.without(held_out, prepare.seen_lines(held_out, [blocks_of(others), []]))
    assert flat(kept) == [line for line in lines if line and line not in others]
    assert all(block.size == bytes_of(flat([block])) > 0 for block in kept)


@given(lines_st, st.integers(0, 500), st.integers(0, 500))
@settings(max_examples=200, deadline=None)
def test_take_gives_whole_lines_up_to_the_budget(lines, budget, more):
    text_blocks = blocks_of(lines)
    everything = flat(text_blocks)
    taken, short = prepare.take(text_blocks, budget)
    part = flat(taken)
    used = bytes_of(part)
    assert part == everything[: len(part)] and used == sum(block.size for block in taken) <= budget
    assert short == (bytes_of(lines) < budget)
    if len(part) < len(everything):  # no room for the next line
        assert used + bytes_of([everything[len(part)]]) > budget
    larger = flat(prepare.take(text_blocks, budget + more)[0])
    assert larger[: len(part)] == part
    assert prepare.take(text_blocks, None) == (text_blocks, False)


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


@given(texts_st, st.floats(0.0001, 0.002), st.integers(0, 2**60), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_corpus_keeps_the_promises(tok, texts, mb, seed, by_line):
    """Whatever the text: the same bytes twice, no validation line in training, no source over its budget, the same
    validation text at every budget."""
    boundary = "line" if by_line else "document"
    overrides = ["data.clean=[]", f"data.seed={seed}", f"data.boundary={boundary}"]
    config = load_config("sllama", overrides, os.path.join(ROOT, "config.yaml"))
    texts = ["\n".join([str(i), *lines]) + "\n" for i, lines in enumerate(texts)]
    sources = {
        f"s{i}": functools.partial(lambda text: ([text.encode()], prepare.sha256(text.encode())), text)
        for i, text in enumerate(texts)
    }

    def build(budget):
        config.data.budget_mb = budget
        try:
            return prepare.build(config, tok, sources)
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
        assert not set(train) & set(val) and (meta["train"]["lines"], meta["val"]["lines"]) == (len(train), len(val))
        assert all(s["budget_bytes"] is None or s["bytes"] <= s["budget_bytes"] for s in meta["sources"])
    if whole and part:
        assert whole[0]["val.bin"] == part[0]["val.bin"]


def test_validation_does_not_depend_on_the_other_sources(folder):
    make("data.sources=[wiki]", "tokenizer.vocab_size=330")
    alone = set(texts_of("val"))
    make("data.sources=[talk, wiki]")
    assert alone < set(texts_of("val"))


@pytest.mark.parametrize("source", ["texts", "pocket"])
def test_a_full_disk(folder, monkeypatch, source):
    make()
    before = files()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="t.*No space left"):
            make("data.seed=1", "data.source=" + source, "data.pocket_words=3000")
    assert not os.path.exists("data/t/meta.json")
    assert not [name for name in os.listdir("data/t") if name.endswith(".tmp")]
    make()
    assert files() == before


def test_it_starts_without_pytorch():
    code = "import sys, prepare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
