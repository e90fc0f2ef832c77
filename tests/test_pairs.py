"""Files of pairs: what they may look like, and what ends in an error that names the line."""

import json
import pathlib
import re
import shlex

from conftest import ROOT
import eval_blimp
from lab.files import UserError, sealed
from lab.score.pairs import BLIMP, read_pairs
from stand_ins import load_json, pair, write

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

GOOD = json.dumps(pair("a b", "b a"))
NAMES = "sentence_good,sentence_bad\n"
SHARED = ROOT.parent / "shared" / "data"


@pytest.mark.parametrize(
    "name, text, line, reason",
    [
        ("x.jsonl", GOOD + "\n" + GOOD[:20], 2, "cut short"),
        ("x.jsonl", GOOD + "\n" + "[" * 100000, 2, "not valid JSON"),
        ("x.jsonl", "[1]\n", 1, "not an object"),
        ("x.jsonl", GOOD + '\n\n{"sentence_good": "a"}', 3, "no `sentence_bad` among sentence_good; say which"),
        ("x.jsonl", GOOD + "\n" + json.dumps(pair("a \ud800", "a")), 2, "surrogates not allowed"),
        ("x.jsonl", json.dumps(pair(["a"], "a")), 1, "`sentence_good` is empty or not text"),
        ("x.csv", "good,bad\na,b\n", 2, "no `sentence_good` among good, bad; say which to take"),
        ("x.csv", NAMES + 'a,b\n\n"a\nb",b\na,b,c\n', 6, "3 fields in a table of 2 columns"),
        ("x.csv", NAMES + 'a,b\n"a,b\na,b\n', 3, "unexpected end of data"),
        ("x.csv", NAMES + "a, \n", 2, "`sentence_bad` is empty or not text"),
    ],
)
def test_a_bad_line_is_named(tmp_path, name, text, line, reason):
    """In a table, by the line in which the row begins."""
    folder = write(tmp_path / "pairs", {"fine": [pair("a", "b")]})
    pathlib.Path(folder, name).write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{name}:{line}: ") + ".*" + re.escape(reason)):
        read_pairs(folder)


TEXT = st.text() | st.text(st.sampled_from("a \x00\n\ud800\u2028"))
VALUE = st.none() | st.booleans() | st.integers() | st.floats() | st.lists(st.none()) | TEXT
KEYS = st.sampled_from("sentence_good sentence_bad UID pairID pair_id linguistics_term phenomenon field".split())
NEARLY = st.dictionaries(KEYS, VALUE, max_size=3).map(lambda row: json.dumps(pair("a b", "b a") | row).encode())
CELLS = st.text(st.sampled_from('a ",;\t\r\n\x00\u2028')).map(str.encode)
LINE = st.binary() | st.text().map(str.encode) | NEARLY | CELLS


@pytest.mark.slow
@settings(max_examples=200)
@given(st.lists(NEARLY, min_size=1, max_size=2) | st.lists(LINE, min_size=1, max_size=4), st.booleans())
def test_any_line_is_a_pair_or_an_error_that_names_it(tmp_path_factory, lines, table):
    """Of any bytes: pairs that can be printed and written, or a UserError that names the line of the file."""
    path = tmp_path_factory.mktemp("any") / ("x.csv" if table else "x.jsonl")
    content = b"\n".join([NAMES.strip().encode(), *lines] if table else lines)
    path.write_bytes(content)
    try:
        pairs, _ = read_pairs(str(path))
    except UserError as e:
        assert "\n" not in str(e) and re.search(r"x\.\w+:(\d+: | empty| cannot be read .not UTF-8)", str(e))
        return
    rows = re.split("\r\n|\r|\n", content.decode("utf-8-sig"))
    assert pairs and (table or len(pairs) == sum(bool(row.strip()) for row in rows))
    for p in pairs:
        assert p["good"].strip() and p["bad"].strip() and p["uid"] and isinstance(p["dev"], bool)
        assert "".join(text for text in p.values() if isinstance(text, str)).encode()


@pytest.mark.parametrize(
    "place, reason",
    [
        ("missing", "missing: no folder with *.jsonl or *.csv or *.tsv files"),
        (".", "no folder with *.jsonl or *.csv or *.tsv files"),
        ("empty", "x.jsonl: empty"),
        ("latin", "x.jsonl: cannot be read (not UTF-8 text)"),
    ],
)
def test_bad_folders(tmp_path, place, reason):
    write(tmp_path / "empty", {"x": "\n"})
    pathlib.Path(write(tmp_path / "latin", {}), "x.jsonl").write_bytes(GOOD.encode() + b'\n{"sentence_good": "\xff"}')
    with pytest.raises(UserError, match=re.escape(reason)):
        read_pairs(str(tmp_path / place))


def test_what_files_may_look_like(tmp_path):
    file = tmp_path / "x.jsonl"
    other = json.dumps(pair("c\u2028", "d", pairID="seven")).encode()
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n" + other)
    pairs, info = read_pairs(str(tmp_path))
    first, second = pairs
    assert first["good"] == "a b" and first["uid"] == "x" and first["id"] == "0" and first["dev"]
    assert second["good"] == "c\u2028" and second["id"] == "seven" and not second["dev"]
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


MINIATURES = {  # the sets that docs/pairs.md names: their files with their columns, and a few lines each
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


def test_the_sets_that_the_docs_name(workplace):
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
    suites = results.pop("suites")
    assert {data: {*result["paradigms"]} for data, result in results.items()} == {
        "multiblimp/eng": {"SV-#", "SV-P"},
        "blimp-nl": {"b1", "b2"},
        "TurBLiMP/data/base": {"binding", "ellipsis"},
    }
    assert suites["pairs"] == 1 and suites["hardest"][0]["good"] == "The dog runs"
    assert suites["conventions"]["good"] == "match"  # the record says what was taken
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
    """A folder with as many pairs as `sizes` says, numbered under `key`; what read_pairs says of it."""
    files = {uid: [pair("a", "a b", UID=uid, **{key: i}) for i in range(n)] for uid, n in sizes.items()}
    return read_pairs(write(folder, files))[1]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["pairID", "pair_id"])  # the second one in the files on Hugging Face's Hub
def test_blimp_is_recognised(tmp_path, key):
    info = like_blimp(tmp_path, dict.fromkeys(BLIMP, 1000), key)
    assert info["benchmark"] == "BLiMP" and info["warnings"] == [] and not info["incomplete"]


@pytest.mark.slow
def test_what_is_missing_of_blimp_is_said(tmp_path):
    assert len(BLIMP) == 67 and sum(BLIMP.values()) == 59875
    info = like_blimp(tmp_path / "filtered", BLIMP, "pair_id")
    assert info["benchmark"] == "BLiMP, BabyLM's filtered subset" and not info["incomplete"]
    sizes = BLIMP | {"transitive": 865, "mine": 1}
    del sizes["wh_island"]
    info = like_blimp(tmp_path / "damaged", sizes, "pair_id")
    missing, extra, wrong = info["warnings"]
    assert info["incomplete"] and "1 of BLiMP's 67 paradigms are missing: wh_island" in missing
    assert "mine" in extra and "transitive 865 instead of 868" in wrong


def test_pocket_english_is_never_called_blimp(tmp_path):
    folder = write(tmp_path / "pocket" / "pairs", {"p": [pair("a", "b")]})
    assert read_pairs(folder)[1]["benchmark"] == "pairs of pairs, not BLiMP"
    meta = tmp_path / "pocket" / "meta.json"
    meta.write_text(json.dumps(sealed({"source": "pocket"})))
    assert read_pairs(folder)[1]["benchmark"] == "POCKET ENGLISH PAIRS, NOT BLiMP"
    meta.write_text('{"title": "my own"}')  # of somebody's own data, which has nothing to do with ours
    assert read_pairs(folder)[1]["benchmark"] == "pairs of pairs, not BLiMP"


@pytest.mark.skipif(not (SHARED / "blimp").is_dir(), reason="needs BLiMP beside the project")
def test_blimp_itself():
    pairs, info = read_pairs(str(SHARED / "blimp"))
    assert info["warnings"] == [] and info["benchmark"] == "BLiMP" and len(pairs) == 67000
    assert len({p["phenomenon"] for p in pairs}) == 12 and len({p["field"] for p in pairs}) == 4
    assert sum(p["good"] == p["bad"] for p in pairs) == 7 and sum(p["dev"] for p in pairs) == 6700
    assert len({text for p in pairs for text in (p["good"], p["bad"])}) == 133945
