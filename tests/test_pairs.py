"""Files of pairs: what they may look like, and what ends in an error that names the line."""

import json
import pathlib
import re

from lab.files import UserError
from lab.score.pairs import BLIMP, read_pairs
from stand_ins import pair, write

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

GOOD = json.dumps(pair("a b", "b a"))
SHARED = pathlib.Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.mark.parametrize(
    "text, line, reason",
    [
        (GOOD + "\n" + GOOD[:20], 2, "cut short"),
        (GOOD + "\nnonsense\n", 2, "not valid JSON"),
        ("[1]\n", 1, "not an object"),
        (GOOD + "\n\n" + '{"sentence_good": "a"}', 3, "no `sentence_bad`: its keys are sentence_good; wanted"),
        (GOOD + "\n" + json.dumps(pair("a \ud800", "a")), 2, "not Unicode text"),
        (json.dumps(pair("", "a")), 1, "`sentence_good` is empty or not text"),
        (json.dumps(pair(["a"], "a")), 1, "`sentence_good` is empty or not text"),
        ("[" * 100000, 1, ""),
    ],
)
def test_bad_lines_are_named(tmp_path, text, line, reason):
    folder = write(tmp_path / "pairs", {"fine": [pair("a", "b")], "spoilt": text})
    with pytest.raises(UserError, match=rf"spoilt\.jsonl:{line}: .*{reason}"):
        read_pairs(folder)


TEXT = st.text() | st.text(st.sampled_from("a \x00\n\ud800\u2028"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
KEYS = st.sampled_from("sentence_good sentence_bad UID pairID pair_id linguistics_term phenomenon field".split())
NEARLY = st.dictionaries(KEYS, TEXT, max_size=3).map(lambda row: json.dumps(pair("a b", "b a") | row).encode())
ANY = st.dictionaries(KEYS, JSON).map(lambda row: json.dumps(row).encode())
LINE = st.binary() | st.text().map(str.encode) | ANY | NEARLY


@settings(max_examples=200, deadline=None)
@given(st.lists(NEARLY, min_size=1, max_size=2) | st.lists(LINE, min_size=1, max_size=4))
def test_any_line_is_a_pair_or_an_error_that_names_it(tmp_path_factory, lines):
    """Of any bytes: pairs that can be printed and written, or a UserError that names the line of the file."""
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    content = b"\n".join(lines)
    path.write_bytes(content)
    try:
        pairs, _ = read_pairs(str(path))
    except UserError as e:
        (line,) = re.findall(r"x\.jsonl:(?:(\d+):)? ", str(e))
        assert "\n" not in str(e)
        assert 1 <= int(line) <= len(content.splitlines()) if line else not content.strip()
    else:
        assert len(pairs) == sum(bool(line.strip()) for line in content.splitlines()) > 0
        for p in pairs:
            assert p["good"].strip() and p["bad"].strip() and p["uid"] and isinstance(p["dev"], bool)
            assert "".join(text for text in p.values() if isinstance(text, str)).encode()


def test_bad_folders(tmp_path):
    empty = write(tmp_path / "e", {"empty": "\n"})
    for path, reason in (
        (tmp_path / "missing", "no such folder"),
        (tmp_path, r"no \*.jsonl file"),
        (empty, "empty.jsonl: empty"),
    ):
        with pytest.raises(UserError, match=reason):
            read_pairs(str(path))
    pathlib.Path(empty, "empty.jsonl").write_bytes(GOOD.encode() + b'\n{"sentence_good": "\xff"}')
    with pytest.raises(UserError, match="empty.jsonl:2: not UTF-8"):
        read_pairs(empty)


def test_what_files_may_look_like(tmp_path):
    file = tmp_path / "x.jsonl"
    other = json.dumps(pair("c", "d", pairID="seven")).encode()
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n" + other)
    pairs, info = read_pairs(str(tmp_path))
    found = [(p["good"], p["uid"], p["id"], p["dev"]) for p in pairs]
    assert found == [("a b", "x", "0", True), ("c", "x", "seven", False)]
    assert info["benchmark"].endswith("not BLiMP") and not info["incomplete"]
    assert read_pairs(str(file))[0] == pairs
    file.write_text(GOOD)
    assert read_pairs(str(tmp_path))[1]["sha256"] != info["sha256"]


def test_limit_takes_the_first_of_each_paradigm(tmp_path):
    rows = [pair(f"x{i}", "b", UID="xy"[i % 2]) for i in range(10)]
    pairs, info = read_pairs(write(tmp_path / "p", {"x": rows, "z": [pair("z", "b")]}), limit=2)
    assert [p["good"] for p in pairs] == ["x0", "x1", "x2", "x3", "z"]
    assert "5 of 11" in info["warnings"][-1] and not info["incomplete"]


def test_dev_and_test(tmp_path):
    folder = write(tmp_path / "p", {"x": [pair("a", "b", pairID=str(i)) for i in range(40)]})
    assert [p["id"] for p in read_pairs(folder, split="dev")[0]] == ["0", "10", "20", "30"]
    assert len(read_pairs(folder, split="test")[0]) == 36
    with pytest.raises(UserError, match="split `test`"):
        read_pairs(write(tmp_path / "q", {"x": [pair("a", "b", pairID=0)]}), split="test")


def like_blimp(folder, sizes, key):
    """A folder with as many pairs as `sizes` says, numbered under `key`."""
    files = {}
    for uid, n in sizes.items():
        files[uid] = [pair("a", "a b", UID=uid, linguistics_term="t", field="f", **{key: i}) for i in range(n)]
    return write(folder, files)


def test_blimp_is_recognised_and_what_is_missing_said(tmp_path):
    assert len(BLIMP) == 67 and sum(BLIMP.values()) == 59875
    assert (min(BLIMP.values()), max(BLIMP.values())) == (681, 986)
    _, info = read_pairs(like_blimp(tmp_path / "full", dict.fromkeys(BLIMP, 1000), "pairID"))
    assert info["benchmark"] == "BLiMP" and info["warnings"] == [] and not info["incomplete"]
    filtered = like_blimp(tmp_path / "filtered", BLIMP, "pair_id")
    _, info = read_pairs(filtered)
    assert info["benchmark"] == "BLiMP, BabyLM's filtered subset" and not info["incomplete"]

    pathlib.Path(filtered, "wh_island.jsonl").unlink()
    transitive = pathlib.Path(filtered, "transitive.jsonl")
    transitive.write_text("".join(transitive.read_text().splitlines(True)[:-3]))
    write(pathlib.Path(filtered), {"mine": [pair("a", "b")]})
    _, info = read_pairs(filtered)
    assert info["incomplete"] and "1 of BLiMP's 67 paradigms are missing: wh_island" in info["warnings"][0]
    assert "mine" in info["warnings"][1] and "transitive 865 instead of 868" in info["warnings"][2]


def test_pocket_english_is_never_called_blimp(tmp_path):
    folder = write(tmp_path / "pocket" / "pairs", {"p": [pair("a", "b")]})
    meta = tmp_path / "pocket" / "meta.json"
    meta.write_text('{"source": "pocket"}')
    assert read_pairs(folder)[1]["benchmark"] == "POCKET ENGLISH PAIRS, NOT BLiMP"
    meta.write_text("broken")
    assert read_pairs(folder)[1]["benchmark"] == "pairs of pairs, not BLiMP"


@pytest.mark.skipif(not (SHARED / "blimp").is_dir(), reason="needs BLiMP beside the project")
def test_blimp_itself():
    pairs, info = read_pairs(str(SHARED / "blimp"))
    assert info["warnings"] == [] and info["benchmark"] == "BLiMP" and len(pairs) == 67000
    assert len({p["phenomenon"] for p in pairs}) == 12 and len({p["field"] for p in pairs}) == 4
    assert sum(p["good"] == p["bad"] for p in pairs) == 7 and sum(p["dev"] for p in pairs) == 6700
    assert len({text for p in pairs for text in (p["good"], p["bad"])}) == 133945
