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
from test_tables import evaluations

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
    page.evaluate("document.body.style.backgroundColor = 'Canvas'")  # what it is drawn on where nothing else is said
    ink, paper = (brightness(page, key) for key in ("color", "backgroundColor"))
    assert abs(ink - paper) > 3 * 150 and (ink > paper) == (scheme == "dark")
    bars = page.locator(".track > :first-child")
    widths = bars.evaluate_all("bars => bars.map(bar => bar.offsetWidth / bar.parentElement.offsetWidth * 100)")
    shares = [float(text) for text in page.locator(".bar > span").all_inner_texts()]
    assert len(shares) == 9 and widths == pytest.approx(shares, abs=1)
    facts = page.get_by_text("before first token").first  # folded away
    for visible in (False, True, False):
        assert facts.is_visible() == visible
        page.locator("summary").click()


def brightness(page, key):
    """The sum of red, green and blue, each 0 to 255."""
    color = page.evaluate(f"getComputedStyle(document.body).{key}")  # such as rgb(255, 255, 255)
    return sum(int(part) for part in re.findall(r"\d+", color))


def column(page, table, number):
    return page.locator(f"#{table} tbody tr:visible td:nth-child({number})")


def test_a_click_on_a_heading_sorts(visit, report):
    page = visit(report)
    headings = page.locator("#paradigms th")
    values = {}
    for direction in ("descending", "ascending"):  # of numbers, the highest first
        headings.nth(1).get_by_role("button").click()
        assert headings.nth(1).get_attribute("aria-sort") == direction
        values[direction] = [float(text.split()[0]) for text in column(page, "paradigms", 2).all_inner_texts()]
    assert len(values["ascending"]) == 3 and sorted(values["descending"]) == values["ascending"]
    assert values["descending"] == values["ascending"][::-1]
    headings.first.get_by_role("button").press("Enter")  # of words, from a to z; by the keyboard
    names = column(page, "paradigms", 1).all_text_contents()
    assert names == sorted(names) and headings.nth(1).get_attribute("aria-sort") is None


def test_the_form_filters(visit, report):
    page = visit(report)
    everything = column(page, "changes", 1).count()
    assert page.locator("output").inner_text() == f"{everything} of {everything} shown"
    page.get_by_label("change").select_option("lost")
    lost = column(page, "changes", 1).count()
    assert 0 < lost < everything and set(column(page, "changes", 3).all_text_contents()) == {"lost"}
    sentence = column(page, "changes", 1).first.locator("bdi").first.inner_text()
    page.get_by_label("text").fill(sentence.upper())
    page.get_by_label("text").press("Enter")  # sends nothing
    assert page.url == report
    shown = column(page, "changes", 1).all_text_contents()
    assert 0 < len(shown) < lost and all(sentence.lower() in text.lower() for text in shown)
    page.get_by_label("text").fill("no such sentence")
    assert page.locator("output").inner_text() == "0 of 0 shown"


@pytest.fixture
def playground():
    """The address of the page to play with, and its model."""
    gradio = pytest.importorskip("gradio")
    model = load_scorer(ROOT / "models" / "llama-3m.pt")
    _, address, _ = play.serve(model, gradio, prevent_thread_lock=True, quiet=True)
    yield address, model
    gradio.close_all()


def test_the_page_to_play_with(visit, playground):
    address, model = playground
    page = visit(address)
    page.get_by_text("sentence wins").wait_for()  # of the first example
    sentences = ["The dogs sleep.", "The dogs sleeps."]
    boxes = [page.get_by_label(f"Sentence {i}", exact=True) for i in (1, 2)]
    compare = page.get_by_role("button", name="Compare")
    for box, sentence in zip(boxes, sentences):
        box.fill(sentence)
    compare.click()
    verdict = play.verdict(model, *(play.surprisals(model, sentence) for sentence in sentences))
    page.get_by_text(verdict.replace("*", "")).wait_for()
    assert page.locator(".token .text").all_inner_texts()[:4] == ["The", " do", "gs", " sleep"]
    boxes[0].fill("")  # a click is about the sentences that are shown
    page.locator(".token").nth(3).click()
    playwright.expect(page.get_by_label("The model continues")).to_have_value(re.compile("^The dogs"))
    assert page.get_by_text("%").count() == 10
    compare.click()
    page.get_by_text("there is no sentence").wait_for()
    page.get_by_text("Tom's girl praises himself.").click()
    playwright.expect(boxes[1]).to_have_value("Tom's girl praises himself.")
    playwright.expect(page.locator(".token .text").nth(1)).to_have_text("'")
