"""The page of --html: its numbers are those of the JSON, nothing in it is fetched or executed but its own script, any text is shown as it is."""
import html.parser
import json

import numpy as np
import pytest

import eval_blimp
from lab import checkpoint, compare_page, report
from lab.files import UserError
from test_eval_blimp import Words, lab, lively, pair, uniform, write  # noqa: F401  (lab is a fixture)

NASTY = ['</script><script>alert(1)</script>', '<b>bold</b> & "quoted" \'single\' &lt;', '<!-- x', ']]>', "<style>*{display:none}</style>", "a\u202eb שלום ≤ 🙂"]
VOID = {"meta", "input", "br"}


class Page(html.parser.HTMLParser):
    """Tables as lists of rows of (text, value); every element with its attributes; text of the whole. Elements must nest."""

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
        """[{head: (text, value, note)}, ...] of the table with that id."""
        head, *rows = dict(self.tables)[name]
        return [dict(zip((text for text, *_ in head), row)) for row in rows]


def shown(folder, *arguments):
    eval_blimp.main([*arguments, "--html", "page.html"])
    text = (folder / "page.html").read_text(encoding="utf-8")
    return text, Page(text)


def evaluations(rows, tmp_path, models):
    """[(result, details)] of models on {file: rows}, with what eval_blimp.main adds."""
    pairs, info = report.read_pairs(write(tmp_path / "pairs", rows))
    out = []
    for i, model in enumerate(models):
        result, details = eval_blimp.evaluate(model, Words(), pairs)
        out.append(({**result, "checkpoint": f"run{i}/ckpt.pt", "corpus": None, "words": None, "steps": None, "parameters": 10**6, "bits_per_byte": None,
                     "device": "cpu", "torch": "2", "conventions": {"method": "full"}, "benchmark": info["benchmark"], "data": info["data"], "sha256": {}}, details))
    return out


def test_numbers_are_those_of_the_json(lab):  # noqa: F811
    text, page = shown(lab, "0.pt", "1.pt", "--data", "mine", "--json", "r.json")
    eval_blimp.main(["1.pt", "--data", "mine", "--compare", "0.pt", "--json", "c.json", "--csv", "1.csv"])
    eval_blimp.main(["0.pt", "--data", "mine", "--csv", "0.csv"])
    results, c = json.load(open("r.json"))["checkpoints"], json.load(open("c.json"))["comparison"]

    summary = page.table(None)
    for row, r in zip(summary, results, strict=True):
        assert float(row["mean over 3 paradigms, %"][1]) == r["accuracy"] and int(row["ties"][1]) == r["ties"] and int(row["parameters"][1]) == r["parameters"]
        assert row["mean over 3 paradigms, %"][0] == f"{100 * r['accuracy']:.1f}" and row["trained on"][0] == "tiny test corpus"
        assert row["mean over 3 paradigms, %"][2] == f"{100 * r['accuracy_interval'][0]:.1f} to {100 * r['accuracy_interval'][1]:.1f}"
        assert int(row["words seen"][1]) == r["words"] and row["bits per byte"][0] == "-"
    assert summary[0]["difference, points"][0] == "" and float(summary[1]["difference, points"][1]) == c["difference"]
    assert summary[1]["difference, points"][2] == f"{100 * c['interval'][0]:+.1f} to {100 * c['interval'][1]:+.1f}"

    rows = page.table("paradigms")
    assert {row["paradigm"][0] for row in rows} == set(c["paradigms"]) and list(rows[0]) == ["paradigm", "phenomenon", "field", "0", "1", "1 - 0"]
    for row in rows:
        uid = row["paradigm"][0]
        assert [float(row[label][1]) for label in "01"] == [r["paradigms"][uid]["accuracy"] for r in results]
        low, high = results[1]["paradigms"][uid]["interval"]
        assert row["1"][2] == f"{100 * low:.1f} to {100 * high:.1f}" and row["phenomenon"][0] == results[0]["paradigms"][uid]["phenomenon"]
        assert float(row["1 - 0"][1]) == c["paradigms"][uid]["difference"]
        assert row["1 - 0"][2] == "{:+.1f} to {:+.1f}".format(*(100 * x for x in c["paradigms"][uid]["interval"]))

    changed = page.table("changes")
    assert len(changed) == c["changed"] and [sum(row["change"][0] == kind for row in changed) for kind in ("gained", "lost")] == [c["gained"], c["lost"]]
    differences = [abs(float(row["difference"][0])) for row in changed]
    assert differences == sorted(differences, reverse=True)
    margins = [{f"+ {row['good']}- {row['bad']}": float(row["margin"]) for row in report.csv.DictReader(open(f"{i}.csv"))} for i in (0, 1)]
    for row in changed:
        for i in (0, 1):
            assert float(row[f"margin, {i}"][0]) == pytest.approx(margins[i][row["sentences"][0]], abs=0.006)
    for value in (*results[0]["sha256"].values(), *results[1]["sha256"].values(), "0.pt", "1.pt", "90 pairs of mine", f"{c['changed']:,} of 90 decisions"):
        assert value in " ".join(page.text)


def test_bars_by_hand(tmp_path):
    """A uniform model prefers the shorter sentence: three of four pairs right, so a bar of 75 %, and Wilson's interval for 3 of 4 in the table."""
    rows = {"p": [pair("a", "a b", linguistics_term="t")] * 3 + [pair("a b", "a", linguistics_term="t")]}
    page = Page(compare_page.page(evaluations(rows, tmp_path, [uniform()])))
    svg = next(a for name, a in page.elements if name == "svg" and a.get("role"))
    bar, = (a for name, a in page.elements if name == "rect" and a["width"] != "100%")
    interval, chance = (a for name, a in page.elements if name == "line")
    assert svg["aria-label"] == "t" and bar["width"] == "75.00%" and chance["x1"] == chance["x2"] == "50%"
    assert "run0: 75.0 % (25.0 to 100.0)" in page.text and (interval["x1"], interval["x2"]) == ("25.00%", "100.00%")     # P(at most 1 of 4 right) is 5.1 %: 2.5 % is at 1
    z2 = 1.959964**2
    low, high = ((3 / 4 + z2 / 8 + sign * 1.959964 * np.sqrt(3 / 64 + z2 / 64)) / (1 + z2 / 4) for sign in (-1, 1))
    assert page.table("paradigms") == [{"paradigm": ["p", None, ""], "phenomenon": ["t", None, ""], "field": ["-", None, ""],
                                        "run0": ["75.0", "0.75", f"{100 * low:.1f} to {100 * high:.1f}"]}]


def test_any_text_is_shown_as_it_is(tmp_path, monkeypatch):
    """Sentences, paradigms, terms, file and corpus names of a stranger are text, and bring in no element and no attribute."""
    monkeypatch.setattr(Words, "encode_batch", lambda self, texts: [[3 + len(text) % 8, 3 + sum(map(ord, text)) % 8] for text in texts])
    rows = {"p": [pair(good, bad, UID=f"uid {bad}", linguistics_term=good, field=bad) for good in NASTY for bad in NASTY if good != bad]}
    found = evaluations(rows, tmp_path, [lively(seed=0), lively(seed=1)])
    for i, (result, _) in enumerate(found):
        result.update(checkpoint=f"{i}{NASTY[0]}/ckpt.pt", corpus=NASTY[1], data=NASTY[2], words=NASTY[0], bits_per_byte={"x": NASTY[1]}, warnings=NASTY, steps=NASTY[4],
                      sha256={NASTY[0]: NASTY[1]}, conventions={NASTY[0]: NASTY[1]})
    text = compare_page.page(found)
    page = Page(text)
    changed = page.table("changes")
    assert changed and {row["sentences"][0] for row in changed} <= {f"+ {p['sentence_good']}- {p['sentence_bad']}" for p in rows["p"]}
    assert {row["paradigm"][0] for row in page.table("paradigms")} == {p["UID"] for p in rows["p"]}
    assert page.scripts == [compare_page.SCRIPT] and [name for name, _ in page.elements].count("style") == 1 and "alert" not in compare_page.SCRIPT
    harmless = evaluations({"q": [pair("a", "b", UID=str(i), linguistics_term=str(i), field="f") for i in range(3)]}, tmp_path, [uniform()])
    allowed = {name for name, _ in Page(compare_page.page(harmless)).elements} | {"form", "label", "select", "option", "input", "output", "bdi"}
    assert {name for name, _ in page.elements} <= allowed
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on") or key in ("src", "href", "action")]


def test_tag_escapes_text_and_attributes():
    assert compare_page.tag("td", "<&\"'", data_x='"><', class_=None) == '<td data-x="&quot;&gt;&lt;">&lt;&amp;&quot;&#x27;</td>'
    assert compare_page.tag("p", compare_page.tag("b", "<")) == "<p><b>&lt;</b></p>"


def test_nothing_is_fetched(lab):  # noqa: F811
    text, page = shown(lab, "0.pt", "1.pt", "--data", "mine")
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text and "//" not in "".join(page.scripts)
    assert not {"link", "img", "iframe", "object", "base", "video"} & {name for name, _ in page.elements}
    policy = next(a["content"] for name, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert ("html", {"lang": "en"}) in page.elements and any(a.get("name") == "viewport" for _, a in page.elements) and "prefers-color-scheme" in text
    assert all(a["scope"] == "col" for name, a in page.elements if name == "th")


def test_one_checkpoint_and_pairs_without_phenomena(lab):  # noqa: F811
    write(lab / "plain", {"p": [pair("the cup.", "cup the."), pair("the dog runs.", "dog the runs.")], "q": [pair("the old dog.", "old the dog.")]})
    text, page = shown(lab, "0.pt", "--data", "plain")
    assert [name for name, _ in page.tables] == [None, "paradigms"] and "Pairs that changed" not in text and "Accuracy by paradigm" in text
    assert "pairs of plain, not BLiMP: 0" in page.text and len(page.table("paradigms")) == 2 and "difference" not in text.split("<script>")[0].split("</style>")[1]


def test_three_checkpoints_and_compare(lab):  # noqa: F811
    _, page = shown(lab, "0.pt", "1.pt", "0.pt", "--data", "mine")
    assert list(page.table("paradigms")[0])[-2:] == ["1.pt - 0.pt", "0.pt - 0.pt"]
    assert {row["0.pt - 0.pt"][1] for row in page.table("paradigms")} == {"0.0"} and {row["checkpoint"][0] for row in page.table("changes")} == {"1.pt"}
    _, turned = shown(lab, "1.pt", "--data", "mine", "--compare", "0.pt")             # what is compared with comes first
    assert [row["checkpoint"][0] for row in turned.table(None)] == ["0", "1"]
    assert [row["1 - 0"][1] for row in turned.table("paradigms")] == [row["1.pt - 0.pt"][1] for row in page.table("paradigms")]


def test_different_contexts_are_refused_and_nothing_is_written(lab):  # noqa: F811
    tree = checkpoint.read("0.pt")
    tree["model"]["max_position_embeddings"] = 6
    checkpoint.save("short.pt", tree)
    with pytest.raises(UserError, match="--html: the models have different contexts"):
        eval_blimp.main(["0.pt", "short.pt", "--data", "mine", "--html", "page.html", "--json", "r.json"])
    assert not (lab / "page.html").exists() and not (lab / "r.json").exists()


def test_names():
    assert compare_page.names(["out/a/ckpt.pt", "out/b/ckpt.pt"]) == ["a", "b"] and compare_page.names(["out/a/1.pt", "out/a/2.pt"]) == ["1", "2"]
    assert compare_page.names(["x.pt"]) == ["x"] and compare_page.names(["a/x.pt", "b/x.pt", "b/y.pt"]) == ["a/x.pt", "b/x.pt", "b/y.pt"]


def test_size_with_as_many_pairs_as_blimp():
    """Two chance-level models differ in half of 67,000 pairs; each paradigm keeps its share of FLIPS, the largest changes."""
    rng = np.random.default_rng(0)
    pairs = [{"uid": f"paradigm_with_a_rather_long_name_{i % 67}", "good": f"{i} " + "word " * 12, "bad": "word " * 12, "phenomenon": f"t{i % 12}", "field": "f",
              "dev": False, "id": "0"} for i in range(67000)]
    found = []
    for i in range(2):
        scores = rng.normal(size=(67000, 2)) * 10
        details = {"pairs": pairs, "scores": scores, "right": scores[:, 0] > scores[:, 1]}
        result = report.summarize(pairs, scores, np.zeros((67000, 2)), details["right"])
        found.append(({**result, "checkpoint": f"{i}.pt", "corpus": "c", "words": 1, "steps": 1, "parameters": 1, "bits_per_byte": 1.0, "device": "cpu", "torch": "2",
                       "conventions": {}, "benchmark": "BLiMP", "data": "d", "sha256": {}, "warnings": []}, details))
    text = compare_page.page(found)
    assert len(text.encode()) < 1_500_000
    changed = Page(text).table("changes")
    assert len(changed) == 67 * (compare_page.FLIPS // 67)
    change = np.abs(np.subtract(*found[1][1]["scores"].T) - np.subtract(*found[0][1]["scores"].T))[0::67][found[0][1]["right"][0::67] != found[1][1]["right"][0::67]]
    kept = [abs(float(row["difference"][0])) for row in changed if row["paradigm"][0].endswith("name_0")]
    assert kept == pytest.approx(np.sort(change)[::-1][:len(kept)], abs=0.006)
