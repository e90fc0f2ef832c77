"""Files of pairs: what they may look like, and what ends in an error that names the line."""

import json
import pathlib
import re
import shlex

from conftest import ROOT
import eval_blimp
from lab.files import UserError
from lab.score.pairs import BLIMP, read_pairs
from stand_ins import pair, write
from test_eval_blimp import load_json, workplace  # noqa: F401  (a fixture)

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

GOOD = json.dumps(pair("a b", "b a"))
NAMES = "sentence_good,sentence_bad\n"
SHARED = pathlib.Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def spoilt(tmp_path, name, content):
    """What read_pairs says of a folder with this file in it, and a good one."""
    folder = write(tmp_path / "pairs", {"fine": [pair("a", "b")]})
    pathlib.Path(folder, name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as e:
        read_pairs(folder)
    return str(e.value)


@pytest.mark.parametrize(
    "text, line, reason",
    [
        (GOOD + "\n" + GOOD[:20], 2, "cut short"),
        (GOOD + "\nnonsense\n", 2, "not valid JSON"),
        ("[1]\n", 1, "not an object"),
        (GOOD + "\n\n" + '{"sentence_good": "a"}', 3, "no `sentence_bad`, but sentence_good: name what to take with"),
        (GOOD + "\n" + json.dumps(pair("a \ud800", "a")), 2, "not Unicode text"),
        (json.dumps(pair("", "a")), 1, "`sentence_good` is empty or not text"),
        (json.dumps(pair(["a"], "a")), 1, "`sentence_good` is empty or not text"),
        ("[" * 100000, 1, ""),
        (GOOD.encode() + b'\n{"sentence_good": "\xff"}', 2, "not UTF-8"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, line, reason):
    error = spoilt(tmp_path, "spoilt.jsonl", text)
    assert f"spoilt.jsonl:{line}: " in error and reason in error


@pytest.mark.parametrize(
    "text, line, reason",
    [
        ("good,bad\na,b\n", 2, "no `sentence_good`, but good, bad: name what to take with --good, --bad and --group"),
        (NAMES + 'a,b\n\n"a\nb",b\na,b,c\n', 6, "3 fields where 2 columns have a name"),
        (NAMES + 'a,b\n"a,b\na,b\n', 3, "unexpected end of data"),
        (NAMES + "a, \n", 2, "`sentence_bad` is empty or not text"),
        (NAMES.encode() + b"a,b\n\xff,b\n", 3, "not UTF-8"),
    ],
)
def test_bad_rows_of_tables_are_named(tmp_path, text, line, reason):
    """By the line they begin in."""
    error = spoilt(tmp_path, "spoilt.csv", text)
    assert f"spoilt.csv:{line}: " in error and reason in error


TEXT = st.text() | st.text(st.sampled_from("a \x00\n\ud800\u2028"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
KEYS = st.sampled_from("sentence_good sentence_bad UID pairID pair_id linguistics_term phenomenon field".split())
NEARLY = st.dictionaries(KEYS, TEXT, max_size=3).map(lambda row: json.dumps(pair("a b", "b a") | row).encode())
ANY = st.dictionaries(KEYS, JSON).map(lambda row: json.dumps(row).encode())
CELLS = st.text(st.sampled_from('a ",;\t\r\n\x00\u2028')).map(str.encode)
LINE = st.binary() | st.text().map(str.encode) | ANY | NEARLY | CELLS


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(NEARLY, min_size=1, max_size=2) | st.lists(LINE, min_size=1, max_size=4), st.booleans())
def test_any_line_is_a_pair_or_an_error_that_names_it(tmp_path_factory, lines, table):
    """Of any bytes: pairs that can be printed and written, or a UserError that names the line of the file."""
    path = tmp_path_factory.mktemp("any") / ("x.csv" if table else "x.jsonl")
    content = b"\n".join([NAMES.strip().encode(), *lines] if table else lines)
    path.write_bytes(content)
    try:
        pairs, _ = read_pairs(str(path))
    except UserError as e:
        (line,) = re.findall(r"x\.\w+:(?:(\d+):)? ", str(e))
        assert "\n" not in str(e)
        if line:
            assert 1 <= int(line) <= len(re.findall(rb"\r\n|\r|\n", content)) + 1
        else:
            assert "empty" in str(e)
    else:
        assert table or len(pairs) == sum(bool(line.strip()) for line in content.splitlines())
        assert pairs
        for p in pairs:
            assert p["good"].strip() and p["bad"].strip() and p["uid"] and isinstance(p["dev"], bool)
            assert "".join(text for text in p.values() if isinstance(text, str)).encode()


def test_bad_folders(tmp_path):
    write(tmp_path / "e", {"empty": "\n"})
    for name, reason in {
        "missing": "no such folder",
        ".": "no *.jsonl or *.csv or *.tsv",
        "e": "empty.jsonl: empty",
    }.items():
        with pytest.raises(UserError, match=re.escape(reason)):
            read_pairs(str(tmp_path / name))


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


@pytest.mark.parametrize("separator, ending", [(",", "csv"), (";", "csv"), ("\t", "tsv"), ("\t", "csv")])
def test_tables(tmp_path, separator, ending):
    """As spreadsheets and pandas write them: a byte order mark, quotes, a line within a field, rows left empty."""
    rows = [["", "good", "worse", "set"], ["7", '"say ""a, b; c"""', '"a\nb"', "x"], ["", "", "", ""]]
    text = "\r\n".join(separator.join(row) for row in rows)
    (tmp_path / f"t.{ending}").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (found,), _ = read_pairs(str(tmp_path), good="good", bad="worse", group="set")
    assert (found["good"], found["bad"], found["uid"]) == ('say "a, b; c"', "a\nb", "x")


MINIATURES = {  # of the sets that docs/pairs.md names: their files, in their columns
    "multiblimp/eng/data.tsv": "\tsen\thead\tmetadata\twrong_sen\tphenomenon\tlang\n"
    '0\tthe dog runs.\truns\t"{\'text\': ""the dog runs""}"\tthe dog run.\tSV-#\teng\n'
    "1\tthe girls see.\tsee\t{}\tthe girls sees.\tSV-P\teng\n",
    "blimp-nl/binding_1.csv": "sentence_good,sentence_bad,linguistic_phenomenon,paradigm,item_id\n"
    "the dog runs.,dog the runs.,binding,b1,1\nthe boy sees a dog.,the boy a dog sees.,binding,b2,2\n",
    "TurBLiMP/data/base/ellipsis.csv": "good_sentence,bad_sentence,good_cue,critical_region,phenomenon\n"
    '"the dog runs, and the boy.","the dog runs, the boy and.",and,-,ellipsis\n',
    "TurBLiMP/data/base/binding.csv": "good_sentence;bad_sentence;phenomenon\nthe boy sees.;sees the boy.;binding\n",
    "suite.json": """{"meta": {"name": "number"}, "items": [{"item_number": 1, "conditions": [
        {"condition_name": "match", "regions": [{"content": "The dog"}, {"content": ""}, {"content": "runs"}]},
        {"condition_name": "mismatch", "regions": [{"content": "The dog"}, {"content": ""}, {"content": "run"}]},
        {"condition_name": "other", "regions": [{"content": "The dog ran"}]}]}]}""",
}


def test_the_sets_that_the_docs_name(workplace):  # noqa: F811
    """Every command of docs/pairs.md, and its conversion, on the sets' files in miniature."""
    for name, text in MINIATURES.items():
        pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(name).write_text(text)
    page = (ROOT / "docs/pairs.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, {})
    results = {}
    for line in re.findall(r"\| `python eval_blimp.py MODEL ([^`]+)` \|", page):
        words = shlex.split(line)
        eval_blimp.main(["0.pt", *words, "--json", "r.json", "--csv", "p.csv", "--replace"])
        results[words[1]] = load_json("r.json")
    found = {data: {uid: group["pairs"] for uid, group in r["paradigms"].items()} for data, r in results.items()}
    assert found == {
        "multiblimp/eng": {"SV-#": 1, "SV-P": 1},
        "blimp-nl": {"b1": 1, "b2": 1},
        "TurBLiMP/data/base": {"binding": 1, "ellipsis": 1},
        "suites": {"number": 1},
    }
    assert list(results["blimp-nl"]["phenomena"]) == ["binding"]
    assert results["suites"]["hardest"][0]["good"] == "The dog runs"
    assert results["suites"]["conventions"]["good"] == "match"  # the record says what was taken
    assert "group=suite" in pathlib.Path("p.csv").read_text()


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


@pytest.mark.slow
def test_blimp_is_recognised_and_what_is_missing_said(tmp_path):
    assert len(BLIMP) == 67 and sum(BLIMP.values()) == 59875
    for key in ("pairID", "pair_id"):  # the second one in the files on Hugging Face's Hub
        _, info = read_pairs(like_blimp(tmp_path / key, dict.fromkeys(BLIMP, 1000), key))
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
