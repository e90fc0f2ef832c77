"""One HTML page about evaluations of the same pairs: python eval_blimp.py A.pt B.pt C.pt --html report.html

Everything is in the file: nothing is fetched, and only sorting and filtering need its script. The numbers are those of
lab/score/statistics.py. Whatever comes from outside (sentences, names, provenance) is escaped by `tag`, which
all markup goes through.
"""

import html
import os

from lab.report.tables import p_value, percent, rule
from lab.score import statistics

import numpy as np

FLIPS = 2000  # changed pairs in the file, shared by paradigms and checkpoints: half a megabyte
COLORS = "#4a90d9 #e5892b #3fa66b #b668c4 #d9534f #8a8a8a".split()  # readable on white and on black

# ---------------------------------------------------------------------------------------------------------------------
# Elements


class Markup(str):
    """HTML, not to be escaped again."""


def tag(name, *content, **attributes):
    """An element; text in it and in its attributes is escaped.

    class_ and stroke_width are written class and stroke-width; an attribute that is None is left out.
    """
    written = ""
    for key, value in attributes.items():
        if value is not None:
            written += f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
    inside = "".join(part if isinstance(part, Markup) else html.escape(str(part)) for part in content)
    return Markup(f"<{name}{written}>{inside}</{name}>")


def cell(text, value=None, note="", **attributes):
    """A table's cell: text, a small note under it, and the value that it is sorted by where that is not the text."""
    content = [text, tag("small", note)] if note else [text]
    return tag("td", *content, data_value=value, **attributes)


def table(heads, rows, **attributes):
    """heads: a column's name each; rows: lists of cells. A click on a head sorts."""
    columns = [tag("th", tag("button", text, type="button"), scope="col") for text in heads]
    head = tag("thead", tag("tr", *columns))
    body = tag("tbody", *[tag("tr", *row) for row in rows])
    return tag("div", tag("table", head, body, **attributes), class_="wide", tabindex=0)


def number(x, form=","):
    return format(x, form) if isinstance(x, (int, float)) else "-"


def interval_text(interval, form="{:.1f}"):
    low, high = interval
    return f"{form.format(100 * low)} to {form.format(100 * high)}"


def accuracy(group):
    return cell(percent(group.accuracy, 1), group.accuracy, interval_text(group.interval))


def difference(c):
    """A difference in points with its interval, marked where that leaves 0 out."""
    low, high = c.interval
    direction = None
    if low > 0:
        direction = "up"
    elif high < 0:
        direction = "down"
    note = interval_text(c.interval, "{:+.1f}")
    return cell(f"{100 * c.difference:+.1f}", c.difference, note, class_=direction)


def color(i):
    return COLORS[i % len(COLORS)]


def mark(i):
    """A square in the colour of checkpoint i."""
    return tag("span", "", class_="mark", style=f"background:{color(i)}")


def bars(name, summaries, labels):
    """A group's accuracies as bars from 0 to 100 %, with intervals and the line of chance; as wide as there is room."""
    shapes, texts, height = [], [], 16 * len(summaries)
    for i, (summary, label) in enumerate(zip(summaries, labels)):
        middle = 16 * i + 8
        low, high = (f"{100 * x:.2f}%" for x in summary.interval)
        shown = percent(summary.accuracy, 1)
        title = tag("title", f"{label}: {shown} % ({interval_text(summary.interval)})")
        width = f"{100 * summary.accuracy:.2f}%"
        shapes += [
            tag("rect", y=middle - 6, width="100%", height=12, fill="currentColor", opacity=0.08),
            tag("rect", title, y=middle - 6, width=width, height=12, fill=color(i)),
            tag("line", x1=low, x2=high, y1=middle, y2=middle, stroke="currentColor", stroke_width=1.5),
        ]
        texts.append(tag("text", shown, x="100%", y=middle + 4, text_anchor="end"))
    chance = tag("line", x1="50%", x2="50%", y1=0, y2=height, stroke="currentColor", stroke_dasharray="3 2")
    drawing = tag("svg", *shapes, chance, width="87%", height=height)
    picture = tag("svg", drawing, *texts, width="100%", height=height, role="img", aria_label=name)
    return tag("figure", tag("figcaption", name.replace("_", " ")), picture)


# ---------------------------------------------------------------------------------------------------------------------
# The page


def page(results):
    """HTML of Results of the same pairs; each is compared with the first."""
    first = results[0]
    pairs, labels = first.pairs, names([result.origin.label for result in results])
    compared = [statistics.compare(pairs, result.correct, first.correct) for result in results[1:]]
    title = f"{first.origin.benchmark}: {', '.join(labels)}"
    body = [
        tag("h1", title),
        *overview(results, labels, compared),
        *by_group(results, labels),
        *by_paradigm(results, labels, compared),
    ]
    if compared:
        body += changed_pairs(results, labels, compared)
    return skeleton(title, body)


def names(paths):
    """What tells the checkpoints apart: their folders' names, else the files', else the paths."""
    folders = [os.path.basename(os.path.dirname(path)) for path in paths]
    files = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    for short in (folders, files):
        if all(short) and len(set(short)) == len(short):
            return short
    return paths


def overview(results, labels, compared):
    """What was scored and how, warnings, a table with a row for each checkpoint, and where the numbers come from."""
    first = results[0]
    parts = [tag("p", f"{len(first.pairs):,} pairs of {first.origin.data}. Rule: {rule(first.origin)}.")]
    warned = {}  # warning -> the checkpoints it is about
    for result, label in zip(results, labels):
        for warning in result.warnings:
            warned.setdefault(warning, []).append(label)
    for warning, who in warned.items():
        text = warning if who == labels else f"{', '.join(who)}: {warning}"
        parts.append(tag("p", text, class_="warning"))

    heads = ["checkpoint", f"mean over {len(first.paradigms)} paradigms, %"]
    if compared:
        heads.append("difference, points")
    heads += ["ties", "parameters", "words seen", "bits per byte", "trained on"]
    rows = []
    for i, (result, label) in enumerate(zip(results, labels)):
        row = [tag("td", mark(i), label, class_="name"), accuracy(result.overall)]
        if compared:
            row.append(cell("") if i == 0 else difference(compared[i - 1]))
        row.append(cell(number(result.overall.ties), result.overall.ties))
        for key, form in (("parameters", ","), ("words", ","), ("bits_per_byte", ".3f")):
            value = getattr(result.origin, key)
            row.append(cell(number(value, form), value))
        row.append(cell(result.origin.corpus or "-"))
        rows.append(row)
    parts.append(table(heads, rows))
    texts = {result.origin.corpus for result in results if result.origin.bits_per_byte is not None}
    if len(texts) > 1:
        parts.append(
            tag("p", "Bits per byte are of each model's own validation text; those of different texts do not compare.")
        )

    for label, c in zip(labels[1:], compared):
        parts.append(
            tag(
                "p",
                f"{label}: {c.changed:,} of {c.pairs:,} decisions are not those of {labels[0]}, "
                f"{c.gained:,} gained and {c.lost:,} lost (McNemar, {p_value(c.p_mcnemar, 1e-300)}; "
                f"paired bootstrap, {p_value(c.p_bootstrap, 1 / statistics.DRAWS)}).",
            )
        )
    origins = [origin(result.origin) for result in results]
    parts.append(tag("details", tag("summary", "Where the numbers come from: files, hashes, rule"), *origins))
    return parts


def origin(found):
    """A list of the files, hashes and conventions behind a result."""
    keys = ("checkpoint", "before_first_token", "corpus", "steps", "words", "data", "benchmark", "device", "torch")
    facts = {key: getattr(found, key) for key in keys}
    facts |= {f"sha256 of the {key}": value for key, value in found.sha256.items()}
    facts |= found.conventions
    parts = []
    for key, value in facts.items():
        parts += [tag("dt", key), tag("dd", value)]
    return tag("dl", *parts)


def by_group(results, labels):
    """Bars by phenomenon, or by paradigm where the pairs say nothing of phenomena."""
    kind, word = "phenomena", "phenomenon"
    if not results[0].phenomena:
        kind, word = "paradigms", "paradigm"
    legend = []
    for i, label in enumerate(labels):
        legend += [mark(i), label + " "]
    legend += [Markup("<br>"), "Bars from 0 to 100 %, with 95 % intervals. Dashed: chance, 50 %."]
    figures = [
        bars(name, [getattr(result, kind)[name] for result in results], labels) for name in getattr(results[0], kind)
    ]
    return [tag("h2", f"Accuracy by {word}"), tag("p", *legend), tag("div", *figures, class_="bars")]


def by_paradigm(results, labels, compared):
    heads = ["paradigm", "phenomenon", "field", *labels]
    heads += [f"{label} - {labels[0]}" for label in labels[1:]]
    rows = []
    for uid, group in results[0].paradigms.items():
        row = [cell(uid), cell(group.phenomenon or "-"), cell(group.field or "-")]
        row += [accuracy(result.paradigms[uid]) for result in results]
        row += [difference(c.paradigms[uid]) for c in compared]
        rows.append(row)
    text = "Accuracy in %, with Wilson's 95 % interval. "
    if compared:
        text += "Difference in points, with that of a paired bootstrap; coloured where it leaves 0 out. "
    text += "A click on a head sorts."
    return [tag("h2", "Paradigms"), tag("p", text), table(heads, rows, id="paradigms")]


def changed_pairs(results, labels, compared):
    """The pairs on which only one of two checkpoints is correct, with a form that filters them."""
    several = len(compared) > 1
    pairs = results[0].pairs
    limit = max(1, FLIPS // (len(compared) * len(compared[0].paradigms)))
    rows = []
    for other, label in zip(results[1:], labels[1:]):
        for i, margins in flips(results[0], other, limit):
            sentences = tag("td", "+ ", tag("bdi", pairs[i]["good"]), Markup("<br>"), "- ", tag("bdi", pairs[i]["bad"]))
            row = [sentences, cell(pairs[i]["uid"]), cell("gained" if other.correct[i] else "lost")]
            if several:
                row.append(cell(label))
            before, after = margins
            row += [cell(f"{before:+.2f}"), cell(f"{after:+.2f}"), cell(f"{after - before:+.2f}")]
            rows.append(row)
    heads = ["sentences", "paradigm", "change", f"margin, {labels[0]}", f"margin, {labels[1]}", "difference"]
    filters = {"paradigm": sorted({pair["uid"] for pair in pairs}), "change": ["gained", "lost"]}
    if several:
        heads[3:5] = ["checkpoint", f"margin, {labels[0]}", "margin, other"]
        filters["checkpoint"] = labels[1:]

    selects = []
    for name, choices in filters.items():
        options = [tag("option", "all", value="")]
        options += [tag("option", choice, value=choice) for choice in choices]
        selects.append(tag("label", f"{name} ", tag("select", *options, data_column=heads.index(name))))
    search = tag("label", "text ", Markup('<input type="search" id="text">'))
    changed = sum(c.changed for c in compared)
    each = "paradigm and checkpoint" if several else "paradigm"
    text = (
        f"{changed:,} decisions changed. Here are {len(rows):,} of them, at most {limit} of each {each}, "
        "the largest changes. Margin: score of the good sentence (+) less that of the bad one (-), in nats."
    )
    return [
        tag("h2", "Pairs that changed"),
        tag("p", text),
        tag("form", search, *selects, tag("output", "")),
        table(heads, rows, id="changes"),
    ]


def flips(first, other, limit):
    """[(index, (margin before, margin after))] of the pairs whose decision changed, at most `limit` of each paradigm,
    the largest change of margin first."""
    before = first.scores[:, 0] - first.scores[:, 1]
    after = other.scores[:, 0] - other.scores[:, 1]
    changed = np.flatnonzero(first.correct != other.correct)
    largest_first = changed[np.argsort(-np.abs(after - before)[changed], kind="stable")]
    count, kept = {}, []
    for i in largest_first.tolist():
        uid = first.pairs[i]["uid"]
        count[uid] = count.get(uid, 0) + 1
        if count[uid] <= limit:
            kept.append((i, (before[i], after[i])))
    return kept


def skeleton(title, body):
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
{tag("title", title)}
<style>{STYLE}</style></head>
<body>
{chr(10).join(body)}
<script>{SCRIPT}</script></body></html>
"""


STYLE = """
:root { color-scheme: light dark; --line: #ccc; --up: #17713c; --down: #b3261e; --soft: #f3f3f3; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --up: #6fd394; --down: #ff8a80; --soft: #262626; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1150px; margin: 0 auto; padding: 0 16px 48px; }
body { overflow-wrap: anywhere; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; }
.wide { overflow-x: auto; } .name { white-space: nowrap; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
td, th { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td small { display: block; opacity: .75; white-space: nowrap; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; }
th button { text-align: left; cursor: pointer; }
[aria-sort=ascending] button::after { content: " \\25b2"; } [aria-sort=descending] button::after { content: " \\25bc"; }
#changes td:first-child { min-width: 17em; width: 100%; }
.up { color: var(--up); } .down { color: var(--down); }
.warning { border-left: 4px solid var(--down); padding-left: 8px; }
.mark { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
.bars { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 14px 32px; }
figure { margin: 0; } svg { display: block; } svg text { fill: currentColor; font-size: 12px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 16px; background: var(--soft); padding: 8px; }
dd { margin: 0; }
form { display: flex; flex-wrap: wrap; gap: 8px 16px; margin-bottom: 8px; }
select, input { font: inherit; max-width: 17em; }
"""
SCRIPT = """
const SHOWN = 200, changes = document.querySelector("#changes tbody"), form = document.forms[0];
function filter() {
  if (!changes) return;
  const text = form.text.value.toLowerCase(), selects = [...form.querySelectorAll("select")];
  let n = 0;
  for (const row of changes.rows)
    row.hidden = !(row.cells[0].textContent.toLowerCase().includes(text)
      && selects.every(s => !s.value || row.cells[s.dataset.column].textContent == s.value) && ++n <= SHOWN);
  form.querySelector("output").textContent = `${Math.min(n, SHOWN)} of ${n} shown`;
}
function key(cell) {
  const value = cell.dataset.value ?? cell.textContent;
  return value.trim() == "" || isNaN(value) ? value.toLowerCase() : +value;
}
function compare(a, b) {
  return typeof a == typeof b ? (a > b) - (a < b) : typeof a == "number" ? -1 : 1;
}
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const th = button.parentElement, body = th.closest("table").tBodies[0];
  const heads = [...th.parentElement.cells], column = heads.indexOf(th);
  const rows = [...body.rows].map(row => [key(row.cells[column]), row]);
  const before = th.getAttribute("aria-sort");
  const up = before ? before == "descending" : rows.some(([k]) => typeof k == "string");
  rows.sort((a, b) => up ? compare(a[0], b[0]) : compare(b[0], a[0]));
  heads.forEach(head => head.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...rows.map(([, row]) => row));
  filter();
};
if (form) { form.oninput = filter; form.onsubmit = event => event.preventDefault(); }
filter();
"""
