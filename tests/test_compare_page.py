"""The page of --html: its numbers are those of the JSON, nothing in it is fetched or executed but its own script, any
text is shown as it is."""

import dataclasses
import html.parser

import eval_blimp
from lab.report import page as compare_page
from lab.score import statistics
from lab.score.scorers import Ours
from stand_ins import Words, lively, pair, read, uniform, write
from test_eval_blimp import load_csv, load_json, workplace  # noqa: F401  (a fixture)

import numpy as np
import pytest

NASTY = [
    "</script><script>alert(1)</script>",
    "<b>bold</b> & \"quoted\" 'single' &lt;",
    "<!-- x",
    "]]>",
    "<style>*{display:none}</style>",
    "a\u202eb שלום ≤ 🙂",
]
VOID = {"meta", "input", "br"}


class Page(html.parser.HTMLParser):
    """Tables as lists of rows of [text, value, note]; every element with its attributes. Elements must nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.tables, self.text, self.scripts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        attributes = dict(attributes)
        self.elements.append((name, attributes))
        if name == "table":
            self.tables.append((attributes.get("id"), []))
        if name == "tr":
            self.tables[-1][1].append([])
        if name in ("td", "th"):
            self.tables[-1][1][-1].append(["", attributes.get("data-value"), ""])
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts.append(data)
        elif "style" not in self.open:
            self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][1][-1][-1][2 if "small" in self.open else 0] += data

    def table(self, name):
        """[{head: [text, value, note]}, ...] of the table with that id."""
        head, *rows = dict(self.tables)[name]
        return [dict(zip((text for text, *_ in head), row)) for row in rows]

    def names(self):
        return {name for name, _ in self.elements}


def shown(folder, *arguments):
    eval_blimp.main([*arguments, "--html", "page.html"])
    text = (folder / "page.html").read_text(encoding="utf-8")
    return text, Page(text)


def origin(i):
    """What eval_blimp.main adds to a result."""
    return statistics.Origin(
        checkpoint=f"run{i}/ckpt.pt",
        method="full",
        before_first_token="BOS <s>",
        benchmark="BLiMP",
        data="d",
        conventions={"method": "full"},
        sha256={},
        device="cpu",
        torch="2",
        scoring_seconds=1.0,
        parameters=10**6,
    )


def evaluations(files, tmp_path, models):
    """Results of models on {file: rows}."""
    pairs = read(tmp_path / "pairs", files)
    found = []
    for i, model in enumerate(models):
        result = eval_blimp.evaluate(Ours(model, Words()), pairs)
        result.origin = origin(i)
        found.append(result)
    return found


def test_bits_per_byte_of_different_texts_are_said_not_to_compare(tmp_path):
    results = evaluations({"p": [pair("a", "a b")]}, tmp_path, [uniform(), uniform()])
    for result in results:
        result.origin.bits_per_byte = 1.5
    for corpora, said in ((("one text", "one text"), False), (("one text", "another"), True)):
        for result, corpus in zip(results, corpora):
            result.origin.corpus = corpus
        assert ("those of different texts do not compare" in compare_page.page(results)) == said


def points(interval, form="{:.1f}"):
    return " to ".join(form.format(100 * x) for x in interval)


def test_numbers_are_those_of_the_json(workplace):  # noqa: F811
    text, page = shown(workplace, "0.pt", "1.pt", "--data", "mine", "--json", "r.json")
    eval_blimp.main(["1.pt", "--data", "mine", "--compare", "0.pt", "--json", "c.json", "--csv", "1.csv"])
    eval_blimp.main(["0.pt", "--data", "mine", "--csv", "0.csv"])
    results, c = load_json("r.json")["checkpoints"], load_json("c.json")["comparison"]

    overview = page.table(None)
    for row, r in zip(overview, results, strict=True):
        accuracy = row["mean over 3 paradigms, %"]
        assert accuracy == [f"{100 * r['accuracy']:.1f}", str(r["accuracy"]), points(r["accuracy_interval"])]
        assert int(row["ties"][1]) == r["ties"] and int(row["parameters"][1]) == r["parameters"]
        assert int(row["words seen"][1]) == r["words"] and row["bits per byte"][0] == "-"
        assert row["trained on"][0] == "tiny test corpus"
    assert overview[0]["difference, points"][0] == ""
    assert overview[1]["difference, points"][1:] == [str(c["difference"]), points(c["interval"], "{:+.1f}")]

    rows = page.table("paradigms")
    assert {row["paradigm"][0] for row in rows} == set(c["paradigms"])
    assert list(rows[0]) == ["paradigm", "phenomenon", "field", "0", "1", "1 - 0"]
    for row in rows:
        uid = row["paradigm"][0]
        assert [float(row[label][1]) for label in "01"] == [r["paradigms"][uid]["accuracy"] for r in results]
        assert row["1"][2] == points(results[1]["paradigms"][uid]["interval"])
        assert row["phenomenon"][0] == results[0]["paradigms"][uid]["phenomenon"]
        difference = c["paradigms"][uid]
        assert row["1 - 0"][1:] == [str(difference["difference"]), points(difference["interval"], "{:+.1f}")]

    changed = page.table("changes")
    assert [sum(row["change"][0] == kind for row in changed) for kind in ("gained", "lost")] == [c["gained"], c["lost"]]
    differences = [abs(float(row["difference"][0])) for row in changed]
    assert len(changed) == c["changed"] and differences == sorted(differences, reverse=True)
    for i in (0, 1):
        margins = {f"+ {row['good']}- {row['bad']}": float(row["margin"]) for row in load_csv(f"{i}.csv")}
        for row in changed:
            assert float(row[f"margin, {i}"][0]) == pytest.approx(margins[row["sentences"][0]], abs=0.006)
    hashes = [value for r in results for value in r["sha256"].values()]
    for value in (*hashes, "0.pt", "1.pt", "90 pairs of mine", f"{c['changed']:,} of 90 decisions"):
        assert value in " ".join(page.text)


def test_bars_by_hand(tmp_path):
    """A uniform model prefers the shorter sentence: three of four pairs correct, a bar of 75 %, Wilson's interval."""
    rows = {"p": [pair("a", "a b", linguistics_term="t")] * 3 + [pair("a b", "a", linguistics_term="t")]}
    page = Page(compare_page.page(evaluations(rows, tmp_path, [uniform()])))
    svg = next(a for name, a in page.elements if name == "svg" and a.get("role"))
    (bar,) = (a for name, a in page.elements if name == "rect" and a["width"] != "100%")
    interval, chance = (a for name, a in page.elements if name == "line")
    assert svg["aria-label"] == "t" and bar["width"] == "75.00%" and chance["x1"] == chance["x2"] == "50%"
    low, high = statistics.wilson(3, 4)
    assert f"run0: 75.0 % ({points([low, high])})" in page.text
    assert interval["x1"] == f"{100 * low:.2f}%" and interval["x2"] == f"{100 * high:.2f}%"
    assert page.table("paradigms") == [
        {
            "paradigm": ["p", None, ""],
            "phenomenon": ["t", None, ""],
            "field": ["-", None, ""],
            "run0": ["75.0", "0.75", points(statistics.wilson(3, 4))],
        }
    ]


def test_any_text_is_shown_as_it_is(tmp_path, monkeypatch):
    """Sentences, paradigms, terms, file and corpus names of a stranger are text: no element and no attribute."""

    def encode_batch(self, texts):
        return [[3 + len(text) % 8, 3 + sum(map(ord, text)) % 8] for text in texts]

    monkeypatch.setattr(Words, "encode_batch", encode_batch)
    rows = {"p": []}
    for good in NASTY:
        for bad in NASTY:
            if bad != good:
                rows["p"].append(pair(good, bad, UID=f"uid {bad}", linguistics_term=good, field=bad))
    found = evaluations(rows, tmp_path, [lively(seed=0), lively(seed=1)])
    for i, result in enumerate(found):
        result.warnings = NASTY
        result.origin = dataclasses.replace(
            result.origin,
            checkpoint=f"{i}{NASTY[0]}/ckpt.pt",
            corpus=NASTY[1],
            data=NASTY[2],
            words=NASTY[0],
            bits_per_byte={"x": NASTY[1]},
            steps=NASTY[4],
            sha256={NASTY[0]: NASTY[1]},
            conventions={NASTY[0]: NASTY[1]},
        )
    page = Page(compare_page.page(found))
    sentences = {f"+ {p['sentence_good']}- {p['sentence_bad']}" for p in rows["p"]}
    changed = page.table("changes")
    assert changed and {row["sentences"][0] for row in changed} <= sentences
    assert {row["paradigm"][0] for row in page.table("paradigms")} == {p["UID"] for p in rows["p"]}
    assert page.scripts == [compare_page.SCRIPT] and "alert" not in compare_page.SCRIPT
    assert [name for name, _ in page.elements].count("style") == 1

    many = {"q": [pair("a", "b", UID=str(i), linguistics_term=str(i), field="f") for i in range(3)]}
    harmless = Page(compare_page.page(evaluations(many, tmp_path / "q", [uniform()])))
    assert page.names() <= harmless.names() | {"form", "label", "select", "option", "input", "output", "bdi"}
    keys = {key for _, attributes in page.elements for key in attributes}
    assert not keys & {"src", "href", "action"} and not [key for key in keys if key.startswith("on")]


def test_tag_escapes_text_and_attributes():
    element = compare_page.tag("td", "<&\"'", data_x='"><', class_=None)
    assert element == '<td data-x="&quot;&gt;&lt;">&lt;&amp;&quot;&#x27;</td>'
    assert compare_page.tag("p", compare_page.tag("b", "<")) == "<p><b>&lt;</b></p>"


def test_nothing_is_fetched(workplace):  # noqa: F811
    text, page = shown(workplace, "0.pt", "1.pt", "--data", "mine")
    assert not [word for word in ("http:", "https:", "url(", "@import") if word in text]
    assert "//" not in "".join(page.scripts)
    assert not {"link", "img", "iframe", "object", "base", "video"} & page.names()
    policy = next(a["content"] for name, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert ("html", {"lang": "en"}) in page.elements and "prefers-color-scheme" in text
    assert any(a.get("name") == "viewport" for _, a in page.elements)
    assert all(a["scope"] == "col" for name, a in page.elements if name == "th")


def test_one_checkpoint_and_pairs_without_phenomena(workplace):  # noqa: F811
    write(
        workplace / "plain",
        {
            "p": [pair("the cup.", "cup the."), pair("the dog runs.", "dog the runs.")],
            "q": [pair("the old dog.", "old the dog.")],
        },
    )
    text, page = shown(workplace, "0.pt", "--data", "plain")
    assert [name for name, _ in page.tables] == [None, "paradigms"] and len(page.table("paradigms")) == 2
    assert "Pairs that changed" not in page.text and "Accuracy by paradigm" in page.text
    assert "pairs of plain, not BLiMP: 0" in page.text and "difference" not in " ".join(page.text)


def test_three_checkpoints_and_compare(workplace):  # noqa: F811
    _, page = shown(workplace, "0.pt", "1.pt", "0.pt", "--data", "mine")
    rows = page.table("paradigms")
    assert list(rows[0])[-2:] == ["1.pt - 0.pt", "0.pt - 0.pt"]
    assert {row["0.pt - 0.pt"][1] for row in rows} == {"0.0"}
    assert {row["checkpoint"][0] for row in page.table("changes")} == {"1.pt"}
    _, turned = shown(workplace, "1.pt", "--data", "mine", "--compare", "0.pt")  # what is compared with is first
    assert [row["checkpoint"][0] for row in turned.table(None)] == ["0", "1"]
    assert [row["1 - 0"][1] for row in turned.table("paradigms")] == [row["1.pt - 0.pt"][1] for row in rows]


def test_names():
    assert compare_page.names(["out/a/ckpt.pt", "out/b/ckpt.pt"]) == ["a", "b"]
    assert compare_page.names(["out/a/1.pt", "out/a/2.pt"]) == ["1", "2"] and compare_page.names(["x.pt"]) == ["x"]
    assert compare_page.names(["a/x.pt", "b/x.pt", "b/y.pt"]) == ["a/x.pt", "b/x.pt", "b/y.pt"]


def test_size_with_as_many_pairs_as_blimp():
    """Two chance-level models differ in half of 67,000 pairs; each paradigm keeps its share of FLIPS, the largest."""
    rng = np.random.default_rng(0)
    pairs = [
        {
            "uid": f"paradigm_with_a_rather_long_name_{i % 67}",
            "good": f"{i} " + "word " * 12,
            "bad": "word " * 12,
            "phenomenon": f"t{i % 12}",
            "field": "f",
            "dev": False,
            "id": "0",
        }
        for i in range(67000)
    ]
    found = []
    for i in range(2):
        scores = rng.normal(size=(67000, 2)) * 10
        correct = scores[:, 0] > scores[:, 1]
        result = statistics.summarize(pairs, scores, np.full((67000, 2), 12), correct)
        result.origin = origin(i)
        found.append(result)
    text = compare_page.page(found)
    assert len(text.encode()) < 1_500_000
    changed = Page(text).table("changes")
    assert len(changed) == 67 * (compare_page.FLIPS // 67)

    margins = [result.scores[0::67, 0] - result.scores[0::67, 1] for result in found]
    flipped = (margins[0] > 0) != (margins[1] > 0)
    largest_first = np.sort(np.abs(margins[1] - margins[0])[flipped])[::-1]
    kept = [abs(float(row["difference"][0])) for row in changed if row["paradigm"][0].endswith("name_0")]
    assert kept == pytest.approx(largest_first[: len(kept)], abs=0.006)
