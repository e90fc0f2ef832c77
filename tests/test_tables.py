"""Names in tables; the page of --html: its numbers are those of the JSON, nothing is fetched, no script but its own is
run, any text is shown as it is. tests/test_browser.py opens it."""

import dataclasses
import html.parser
import pathlib

from conftest import ROOT
import eval_blimp
from lab.report import tables
from lab.score import statistics
from lab.score.scorers import Ours
from stand_ins import Words, lively, load_csv, load_json, pair, read, uniform, write

import numpy as np
import pytest

NASTY = [
    "</script><script>alert(1)</script>",
    "<b>bold</b> & \"quoted\" 'single' &lt;",
    "<!-- x",
    "]]>",
    "<style>*{display:none}</style>",
    "a\u202eb שלום ≤ 🙂 {{ title }}",
]
VOID = {"meta", "input", "br", "wbr"}


class Page(html.parser.HTMLParser):
    """Tables as lists of rows of [text, value, note]; every element with its attributes. Elements must nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.tables, self.text, self.scripts = [], [], {}, [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.names = {name for name, _ in self.elements}

    def handle_starttag(self, name, attributes):
        attributes = dict(attributes)
        self.elements.append((name, attributes))
        if name == "table":
            self.rows = self.tables[attributes["id"]] = []
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th"):
            self.rows[-1].append(["", attributes.get("data-value"), ""])
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts.append(data)
        elif "style" not in self.open:
            self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1][2 if "small" in self.open else 0] += data.strip("\n")

    def table(self, name):
        """[{head: [text, value, note]}, ...] of the table with that id."""
        head, *rows = self.tables[name]
        return [dict(zip((text for text, *_ in head), row)) for row in rows]

    def all_text(self):
        return " ".join("".join(self.text).split())


def shown(*arguments):
    """The page that the command writes, as text and parsed."""
    eval_blimp.main([*arguments, "--html", "page.html", "--replace"])
    text = pathlib.Path("page.html").read_text(encoding="utf-8")
    return text, Page(text)


def origin(i, **known):
    """What eval_blimp.main adds to a result."""
    always = {"method": "full", "before_first_token": "BOS <s>", "benchmark": "BLiMP", "data": "/some/folder/d"}
    always |= {"conventions": {"method": "full"}, "sha256": {}, "device": "cpu", "torch": "2", "scoring_seconds": 1.0}
    return statistics.Origin(f"/some/where/run{i}/ckpt.pt", **always | known)


def evaluations(rows, tmp_path, models):
    """Results of models on a paradigm `p` of these rows."""
    pairs = read(tmp_path / "pairs", {"p": rows})
    found = [eval_blimp.evaluate(Ours(model, Words()), pairs) for model in models]
    for i, result in enumerate(found):
        result.origin = origin(i)
    return found


def points(interval, form="{:.1f}"):
    return " to ".join(form.format(100 * x) for x in interval)


def signed(change):
    return [str(change["difference"]), points(change["interval"], "{:+.1f}")]


def test_numbers_are_those_of_the_json(workplace):
    text, page = shown("0.pt", "1.pt", "--data", "mine", "--json", "r.json")
    eval_blimp.main(["1.pt", "--data", "mine", "--compare", "0.pt", "--json", "c.json", "--csv", "1.csv"])
    eval_blimp.main(["0.pt", "--data", "mine", "--csv", "0.csv"])
    results, c = load_json("r.json")["checkpoints"], load_json("c.json")["comparison"]

    overview = page.table("overview")
    for row, r in zip(overview, results, strict=True):
        accuracy = row["mean over 3 paradigms, %"]
        assert accuracy == [f"{100 * r['accuracy']:.1f}", str(r["accuracy"]), points(r["accuracy_interval"])]
        assert int(row["ties"][1]) == r["ties"] and int(row["parameters"][1]) == r["parameters"]
        assert int(row["words seen"][1]) == r["words"] and row["bits per byte"][0] == "-"
        assert row["trained on"][0] == "tiny test corpus"
    assert overview[0]["difference, points"][0] == "" and overview[1]["difference, points"][1:] == signed(c)

    rows = page.table("paradigms")
    assert {row["paradigm"][0] for row in rows} == set(c["paradigms"])
    assert list(rows[0]) == ["paradigm", "0", "1", "1 - 0", "phenomenon", "field"]
    for row in rows:
        uid = row["paradigm"][0]
        assert [float(row[label][1]) for label in "01"] == [r["paradigms"][uid]["accuracy"] for r in results]
        assert row["1"][2] == points(results[1]["paradigms"][uid]["interval"])
        assert row["phenomenon"][0] == results[0]["paradigms"][uid]["phenomenon"]
        assert row["1 - 0"][1:] == signed(c["paradigms"][uid])

    changed = page.table("changes")
    assert [sum(row["change"][0] == kind for row in changed) for kind in ("gained", "lost")] == [c["gained"], c["lost"]]
    differences = [abs(float(row["difference"][0])) for row in changed]
    assert len(changed) == c["changed"] and differences == sorted(differences, reverse=True)
    for i in (0, 1):
        margins = {f"+ {row['good']}- {row['bad']}": float(row["margin"]) for row in load_csv(f"{i}.csv")}
        for row in changed:
            assert float(row[f"margin, {i}"][0]) == pytest.approx(margins[row["sentences"][0]], abs=0.006)
    hashes = [value for r in results for value in r["sha256"].values()]
    for value in (*hashes, "90 pairs of mine", f"{c['changed']:,} of 90 decisions"):
        assert value in page.all_text()


@pytest.mark.parametrize(
    "labels, names",
    [
        (["models/llama-3m.pt", "out/sllama/ckpt.pt"], ["llama-3m", "sllama"]),
        (["/a/b/pythia-1.4b/", "EleutherAI/pythia-70m"], ["pythia-1.4b", "pythia-70m"]),
        (["/tmp/out/a/ckpt.pt", "/tmp/out/a/last.pt"], ["a/ckpt", "a/last"]),
        (["one/x.pt", "two/x.pt", "two/y.pt"], ["one/x", "two/x", "two/y"]),
        (["."], [ROOT.name]),
        (["x.pt", "x.pt"], ["x", "x"]),
        (["/tmp/bert [PLL l2r]", "ngram:data/pocket"], ["bert [PLL l2r]", "ngram:pocket"]),
    ],
)
def test_short_names(labels, names, monkeypatch):
    """The name of the file or folder; of ckpt.pt the folder's; more of the path only where two would be the same."""
    monkeypatch.chdir(ROOT)
    assert tables.short_names(labels) == names


def test_bars_by_hand(tmp_path):
    """A uniform model prefers the shorter sentence: three of four pairs correct, a bar of 75 %, Wilson's interval."""
    rows = [pair("a", "a b", linguistics_term="t")] * 3 + [pair("a b", "a", linguistics_term="t")]
    page = Page(tables.page(evaluations(rows, tmp_path, [uniform()])))
    low, high = statistics.wilson(3, 4)
    styles = [attributes["style"] for name, attributes in page.elements if name == "div" and "style" in attributes]
    assert styles == ["width: 75.00%; background: #4a90d9", f"left: {100 * low:.2f}%; width: {100 * (high - low):.2f}%"]
    titles = [attributes["title"] for _, attributes in page.elements if "title" in attributes]
    assert titles == [f"run0: 75.0 % ({points([low, high])})"]
    (row,) = page.table("paradigms")
    assert row["run0"] == ["75.0", "0.75", points([low, high])] and row["phenomenon"][0] == "t"


def test_any_text_is_shown_as_it_is(tmp_path, monkeypatch):
    """Sentences, paradigms, terms, file and corpus names of a stranger are text: no element and no attribute."""

    def encode_batch(self, texts):
        return [[3 + len(text) % 8, 3 + sum(map(ord, text)) % 8] for text in texts]

    monkeypatch.setattr(Words, "encode_batch", encode_batch)
    rows = []
    for good in NASTY:
        others = [bad for bad in NASTY if bad != good]
        rows += [pair(good, bad, UID=f"uid {bad}", linguistics_term=good, field=bad) for bad in others]
    found = evaluations(rows, tmp_path, [lively(seed=0), lively(seed=1)])
    texts = {"corpus": NASTY[1], "data": NASTY[2], "steps": NASTY[4], "device": NASTY[5]}
    texts |= {"sha256": {NASTY[0]: NASTY[1]}, "conventions": {NASTY[0]: NASTY[1]}}
    for i, result in enumerate(found):
        result.warnings = NASTY
        result.origin = dataclasses.replace(origin(i, **texts), checkpoint=f"{i}{NASTY[1]}.pt")
    page = Page(tables.page(found))
    changed = page.table("changes")
    sentences = {f"+ {p['sentence_good']}- {p['sentence_bad']}" for p in rows}
    assert changed and {row["sentences"][0] for row in changed} <= sentences
    assert {row["paradigm"][0] for row in page.table("paradigms")} == {p["UID"] for p in rows}
    for text in NASTY:
        assert text in page.text

    monkeypatch.undo()
    harmless = Page(tables.page(evaluations([pair("a", "a b")], tmp_path / "q", [uniform()])))
    assert page.scripts == harmless.scripts and len(page.scripts) == 1
    assert page.names <= harmless.names | {"form", "label", "select", "option", "input", "output", "bdi", "br", "wbr"}
    keys = {key for _, attributes in page.elements for key in attributes}
    assert not keys & {"src", "href", "action"} and not [key for key in keys if key.startswith("on")]


def test_nothing_is_fetched(workplace):
    text, page = shown("0.pt", "1.pt", "--data", "mine")
    assert not [word for word in ("http:", "https:", "url(", "@import") if word in text]
    assert not {"link", "img", "iframe", "object", "base", "video"} & page.names
    policy = next(a["content"] for name, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_one_checkpoint_and_pairs_without_phenomena(workplace):
    rows = {"p": [pair("the cup.", "cup the.")] * 2, "q": [pair("the old dog.", "old the dog.")]}
    text, page = shown(str(workplace / "0.pt"), "--data", write(workplace / "plain", rows))
    assert list(page.tables) == ["overview", "paradigms"] and len(page.table("paradigms")) == 2
    assert "Accuracy by paradigm" in text and "pairs of plain, not BLiMP: 0" in text
    assert "Pairs that changed" not in text and "difference" not in page.all_text()
    assert str(workplace) not in text  # no path is shown whole


def test_three_checkpoints_and_compare(workplace):
    _, page = shown("0.pt", "1.pt", "0.pt", "--data", "mine")
    rows = page.table("paradigms")
    assert list(rows[0])[-4:-2] == ["1 - 0", "0 - 0"] and {row["0 - 0"][1] for row in rows} == {"0.0"}
    assert {row["model"][0] for row in page.table("changes")} == {"1"}
    _, turned = shown("1.pt", "--data", "mine", "--compare", "0.pt")  # what is compared with is first
    assert [row["model"][0] for row in turned.table("overview")] == ["0", "1"]
    assert [row["1 - 0"][1] for row in turned.table("paradigms")] == [row["1 - 0"][1] for row in rows]


@pytest.mark.slow
def test_size_with_as_many_pairs_as_blimp():
    """Two chance-level models differ in half of 67,000 pairs; each paradigm keeps its share, the largest changes."""
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(67000):
        names = {"uid": f"paradigm_with_a_rather_long_name_{i % 67}", "phenomenon": f"t{i % 12}", "field": "f"}
        pairs.append({**names, "good": f"{i} " + "word " * 12, "bad": "word " * 12, "dev": False, "id": "0"})
    found = []
    for i in range(2):
        scores = rng.normal(size=(67000, 2)) * 10
        result = statistics.summarize(pairs, scores, np.full((67000, 2), 12), scores[:, 0] > scores[:, 1])
        result.origin = origin(i)
        found.append(result)
    text = tables.page(found)
    assert len(text.encode()) < 1_500_000
    changed = Page(text).table("changes")
    assert len(changed) == 67 * (tables.MOST_CHANGES // 67)

    margins = [result.scores[0::67, 0] - result.scores[0::67, 1] for result in found]
    flipped = (margins[0] > 0) != (margins[1] > 0)
    largest_first = np.sort(np.abs(margins[1] - margins[0])[flipped])[::-1]
    kept = [abs(float(row["difference"][0])) for row in changed if row["paradigm"][0].endswith("name_0")]
    assert kept == pytest.approx(largest_first[: len(kept)], abs=0.006)
