"""The page of --html, and the one to play with, in a real browser. Needs playwright and a Chromium, the system's or
playwright's own; the second one needs gradio too."""

import os
import re
import shutil

from conftest import ROOT
from lab import play
from lab.report import tables
from lab.score.scorers import load_scorer
from stand_ins import lively, pair, sentences
from test_compare_page import evaluations

import pytest

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        path = shutil.which("chromium") or shutil.which("chromium-browser") or p.chromium.executable_path
        if not os.path.exists(path):
            pytest.skip("no Chromium here: apt-get install chromium, or playwright install chromium")
        chromium = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Opens an address in a window of that size and scheme. In the end its console must have said nothing, and nothing
    been fetched from elsewhere."""
    said = []

    def open_page(address, width=1300, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: request.url.startswith((address, "data:")) or said.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in browser.contexts:
        context.close()
    assert said == []


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The address of a page about three random models on 150 pairs of three paradigms."""
    folder, texts = tmp_path_factory.mktemp("report"), sentences(300)
    rows = []
    for i, (good, bad) in enumerate(zip(texts[::2], texts[1::2])):
        rows.append(pair(good, bad, UID=f"paradigm_with_a_rather_long_name_{i % 3}", linguistics_term=f"term {i % 3}"))
    results = evaluations(rows, folder, [lively(seed=seed) for seed in range(3)])
    (folder / "page.html").write_text(tables.page(results), encoding="utf-8")
    return (folder / "page.html").as_uri()


@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_is_readable(visit, report, width, scheme):
    page = visit(report, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width  # tables scroll in boxes of their own
    ink, paper = (sum(rgb) for rgb in page.evaluate(COLORS))
    assert abs(ink - paper) > 3 * 150 and (ink > paper) == (scheme == "dark")
    bars = page.locator(".track > :first-child")
    widths = bars.evaluate_all("bars => bars.map(bar => bar.offsetWidth / bar.parentElement.offsetWidth * 100)")
    shares = [float(text) for text in page.locator(".bar > span").all_inner_texts()]
    assert len(shares) == 9 and widths == pytest.approx(shares, abs=1)


# The red, green and blue of text and of what it is drawn on: a canvas of the colour scheme where nothing says otherwise
COLORS = """() => {
  const paint = color => { const c = document.createElement("canvas").getContext("2d");
    c.fillStyle = color; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  document.body.style.backgroundColor = "Canvas";
  const style = getComputedStyle(document.body);
  return [paint(style.color), paint(style.backgroundColor)];
}"""


def column(page, table, number):
    return page.locator(f"#{table} tbody tr:visible td:nth-child({number})")


def test_a_click_on_a_heading_sorts(visit, report):
    page = visit(report)
    shown = column(page, "paradigms", 2)
    heading = page.locator("#paradigms th").nth(1)
    found = {}
    for direction in ("descending", "ascending"):  # of numbers, the highest first
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == direction
        found[direction] = [float(value) for value in shown.evaluate_all("cells => cells.map(c => c.dataset.value)")]
    assert len(found["ascending"]) == 3 and found["ascending"] == sorted(found["ascending"])
    assert found["descending"] == found["ascending"][::-1]

    page.locator("#paradigms th").first.get_by_role("button").press("Enter")  # of words, from a to z; by the keyboard
    names = column(page, "paradigms", 1).all_text_contents()
    assert names == sorted(names) and heading.get_attribute("aria-sort") is None


def test_the_form_filters(visit, report):
    page = visit(report)
    everything = column(page, "changes", 1).count()
    assert page.locator("output").inner_text() == f"{everything} of {everything} shown"
    page.get_by_label("change").select_option("lost")
    lost = column(page, "changes", 1).count()
    assert 0 < lost < everything and set(column(page, "changes", 3).all_text_contents()) == {"lost"}
    sentence = column(page, "changes", 1).first.locator("bdi").first.inner_text()
    page.get_by_label("text").fill(sentence.upper())
    for text in column(page, "changes", 1).all_text_contents():
        assert sentence.lower() in text.lower()
    page.get_by_label("text").press("Enter")  # sends nothing
    assert page.url == report and page.locator("output").inner_text().endswith("shown")
    page.get_by_label("text").fill("no such sentence")
    assert page.locator("output").inner_text() == "0 of 0 shown"


def test_hashes_and_rule_are_folded_away(visit, report):
    page = visit(report, width=400)
    facts = page.get_by_text("before first token").first
    assert not facts.is_visible()
    page.locator("summary").click()
    assert facts.is_visible()
    page.locator("summary").click()
    assert not facts.is_visible()


@pytest.fixture
def playground():
    """The address of the page to play with, and its model."""
    gradio = pytest.importorskip("gradio")
    model = load_scorer(ROOT / "models" / "llama-3m.pt")
    page = play.build(model, gradio)
    _, address, _ = play.launch(page, gradio, prevent_thread_lock=True, quiet=True)
    yield address, model
    page.close()


def test_the_page_to_play_with(visit, playground):
    address, model = playground
    page = visit(address)
    page.get_by_text("sentence wins").wait_for()  # of the first example
    sentences = "The dogs sleep.", "The dogs sleeps."
    for i, sentence in enumerate(sentences, 1):
        page.get_by_label(f"Sentence {i}", exact=True).fill(sentence)
    page.get_by_role("button", name="Compare").click()
    verdict = play.verdict(model, *(play.surprisals(model, sentence) for sentence in sentences))
    page.get_by_text(verdict.replace("*", "")).wait_for()
    assert page.locator(".token .text").all_inner_texts()[:4] == ["The", " do", "gs", " sleep"]
    page.get_by_label("Sentence 1", exact=True).fill("")  # a click is about the sentences that are shown
    page.locator(".token").nth(3).click()
    continued = page.get_by_label("The model continues")
    playwright.expect(continued).to_have_value(re.compile("^The dogs"))
    assert page.get_by_text("%").count() == 10

    page.get_by_role("button", name="Compare").click()
    page.get_by_text("there is no sentence").wait_for()
    page.get_by_text("Tom's girl praises himself.").click()
    playwright.expect(page.get_by_label("Sentence 2", exact=True)).to_have_value("Tom's girl praises himself.")
    playwright.expect(page.locator(".token .text").nth(1)).to_have_text("'")
