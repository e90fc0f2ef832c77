"""One HTML page about evaluations of the same pairs: python eval_blimp.py A.pt B.pt C.pt --html report.html

Everything is in the file: nothing is fetched, and only sorting and filtering need its script. The numbers are blimp_report's.
Whatever comes from outside (sentences, names, a checkpoint's provenance) is escaped by `tag`, which all markup goes through.
"""
import collections
import html
import os

import numpy as np

from lab import report

FLIPS = 2000                                                            # changed pairs in the file, shared by paradigms and checkpoints: half a megabyte
COLORS = "#4a90d9 #e5892b #3fa66b #b668c4 #d9534f #8a8a8a".split()      # readable on white and on black


class Markup(str):
    """HTML, not to be escaped again."""


def tag(name, *content, **attributes):
    """An element; text in it and in its attributes is escaped. class_ and stroke_width are class and stroke-width; None is left out."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items() if value is not None)
    inside = "".join(part if isinstance(part, Markup) else html.escape(str(part)) for part in content)
    return Markup(f"<{name}{given}>{inside}</{name}>")


def number(x, form=","):
    return format(x, form) if isinstance(x, (int, float)) else "-"


def cell(text, value=None, note="", **attributes):
    """A table's cell: text, a small note under it, and the value that it is sorted by where that is not the text."""
    return tag("td", text, *[tag("small", note)] * bool(note), data_value=value, **attributes)


def table(heads, rows, **attributes):
    """heads: a column's name each; rows: lists of cells. A click on a head sorts."""
    head = tag("tr", *(tag("th", tag("button", text, type="button"), scope="col") for text in heads))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *(tag("tr", *row) for row in rows)), **attributes), class_="wide", tabindex=0)


def names(paths):
    """What tells the checkpoints apart: their folders' names, else the files', else the paths."""
    folders = [os.path.basename(os.path.dirname(path)) for path in paths]
    files = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    return next((short for short in (folders, files) if all(short) and len(set(short)) == len(short)), paths)


def between(interval, form="{:.1f}"):
    return " to ".join(form.format(100 * x) for x in interval)


def accuracy(g, interval="interval"):
    return cell(report.percent(g["accuracy"], 1), g["accuracy"], between(g[interval]))


def difference(c):
    """A difference in points with its interval, marked where that leaves 0 out."""
    low, high = c["interval"]
    return cell(f"{100 * c['difference']:+.1f}", c["difference"], between(c["interval"], "{:+.1f}"), class_="up" if low > 0 else "down" if high < 0 else None)


def bars(name, groups, labels):
    """One group's accuracies as bars from 0 to 100 %, with intervals and the line of chance; as wide as there is room, text of one size."""
    parts, texts, height = [], [], 16 * len(groups)
    for i, (g, label) in enumerate(zip(groups, labels)):
        low, high = (f"{100 * x:.2f}%" for x in g["interval"])
        text, y = f"{label}: {report.percent(g['accuracy'], 1)} % ({between(g['interval'])})", 16 * i + 8
        parts += [tag("rect", y=y - 6, width="100%", height=12, fill="currentColor", opacity=0.08),
                  tag("rect", tag("title", text), y=y - 6, width=f"{100 * g['accuracy']:.2f}%", height=12, fill=COLORS[i % len(COLORS)]),
                  tag("line", x1=low, x2=high, y1=y, y2=y, stroke="currentColor", stroke_width=1.5)]
        texts += [tag("text", report.percent(g["accuracy"], 1), x="100%", y=y + 4, text_anchor="end")]
    parts.append(tag("line", x1="50%", x2="50%", y1=0, y2=height, stroke="currentColor", stroke_dasharray="3 2"))
    drawing = tag("svg", tag("svg", *parts, width="87%", height=height), *texts, width="100%", height=height, role="img", aria_label=name)
    return tag("figure", tag("figcaption", name.replace("_", " ")), drawing)


def flips(pairs, first, other, most):
    """(indices of the pairs whose decision changed, at most so many of each paradigm, the largest change first; change of margin (N))."""
    change = np.subtract(*other["scores"].T) - np.subtract(*first["scores"].T)
    changed, count, kept = np.flatnonzero(first["right"] != other["right"]), collections.Counter(), []
    for i in changed[np.argsort(-np.abs(change[changed]), kind="stable")].tolist():
        count[pairs[i]["uid"]] += 1
        kept += [i] * (count[pairs[i]["uid"]] <= most)
    return kept, change


def page(evaluations):
    """HTML of [(result, details), ...] as eval_blimp.py has them, all of the same pairs; each but the first is compared with the first."""
    results, details = zip(*evaluations)
    first, pairs, labels = results[0], details[0]["pairs"], names([r["checkpoint"] for r in results])
    compared = [report.compare(pairs, d["right"], details[0]["right"]) for d in details[1:]]
    marks = [tag("span", "", class_="mark", style=f"background:{COLORS[i % len(COLORS)]}") for i in range(len(results))]
    versus = [f"{label} - {labels[0]}" for label in labels[1:]]
    kind, title = "phenomena" if first["phenomena"] else "paradigms", f"{first['benchmark']}: {', '.join(labels)}"

    summary = []
    for i, r in enumerate(results):
        own = [cell("") if i == 0 else difference(compared[i - 1])] * bool(compared)
        facts = [cell(number(r[key], form), r[key]) for key, form in (("ties", ","), ("parameters", ","), ("words", ","), ("bits_per_byte", ".3f"))]
        summary.append([tag("td", marks[i], labels[i], class_="name"), accuracy(r, "accuracy_interval"), *own, *facts, cell(r["corpus"] or "-")])
    heads = ["checkpoint", f"mean over {len(first['paradigms'])} paradigms, %", *["difference, points"] * bool(compared),
             "ties", "parameters", "words seen", "bits per byte", "trained on"]
    about = [tag("p", f"{first['pairs']:,} pairs of {first['data']}. Rule: {report.rule(first['conventions'])}.")]
    warned = {w: [label for label, r in zip(labels, results) if w in r["warnings"]] for r in results for w in r["warnings"]}
    about += [tag("p", w if who == labels else f"{', '.join(who)}: {w}", class_="warning") for w, who in warned.items()]
    origin = [{key: r[key] for key in ("checkpoint", "corpus", "steps", "words", "data", "benchmark", "device", "torch")}
              | {f"sha256 of the {key}": value for key, value in r["sha256"].items()} | r["conventions"] for r in results]
    body = [tag("h1", title), *about, table(heads, summary)]
    body += [tag("p", f"{label}: {c['changed']:,} of {c['pairs']:,} decisions are not those of {labels[0]}, {c['gained']:,} gained and {c['lost']:,} lost "
                 f"(McNemar, p = {c['p_mcnemar']:.2g}; paired bootstrap, p = {c['p_bootstrap']:.2g}).") for label, c in zip(labels[1:], compared)]
    body += [tag("details", tag("summary", "Where the numbers come from: files, hashes, rule"),
                 *(tag("dl", *(part for key, value in facts.items() for part in (tag("dt", key), tag("dd", value)))) for facts in origin))]

    legend = [part for mark, label in zip(marks, labels) for part in (mark, label + " ")]
    body += [tag("h2", f"Accuracy by {'phenomenon' if kind == 'phenomena' else 'paradigm'}"),
             tag("p", *legend, Markup("<br>"), "Bars from 0 to 100 %, with 95 % intervals. Dashed: chance, 50 %."),
             tag("div", *(bars(name, [r[kind][name] for r in results], labels) for name in first[kind]), class_="bars")]

    rows = [[cell(uid), cell(g["phenomenon"] or "-"), cell(g["field"] or "-"), *(accuracy(r["paradigms"][uid]) for r in results),
             *(difference(c["paradigms"][uid]) for c in compared)] for uid, g in first["paradigms"].items()]
    body += [tag("h2", "Paradigms"),
             tag("p", "Accuracy in %, with Wilson's 95 % interval. ", *["Difference in points, with that of a paired bootstrap; coloured where it leaves 0 out. "]
                 * bool(compared), "A click on a head sorts."),
             table(["paradigm", "phenomenon", "field", *labels, *versus], rows, id="paradigms")]
    return skeleton(title, body + (changes(pairs, details, labels, compared) if compared else []))


def changes(pairs, details, labels, compared):
    """The pairs that only one of two checkpoints gets right."""
    most = max(1, FLIPS // (len(compared) * len(compared[0]["paradigms"])))
    several, rows = len(compared) > 1, []
    for other, label in zip(details[1:], labels[1:]):
        kept, change = flips(pairs, details[0], other, most)
        for i in kept:
            margins = [d["scores"][i, 0] - d["scores"][i, 1] for d in (details[0], other)]
            sentences = tag("td", "+ ", tag("bdi", pairs[i]["good"]), Markup("<br>"), "- ", tag("bdi", pairs[i]["bad"]))
            rows.append([sentences, cell(pairs[i]["uid"]), cell("gained" if other["right"][i] else "lost"), *[cell(label)] * several,
                         *(cell(f"{x:+.2f}") for x in (*margins, change[i]))])
    heads = ["sentences", "paradigm", "change", *["checkpoint"] * several, f"margin, {labels[0]}", "margin, other" if several else f"margin, {labels[1]}",
             "difference"]
    choices = [("paradigm", sorted({p["uid"] for p in pairs})), ("change", ["gained", "lost"]), *[("checkpoint", labels[1:])] * several]
    selects = [tag("label", f"{name} ", tag("select", tag("option", "all", value=""), *(tag("option", x, value=x) for x in options), data_column=heads.index(name)))
               for name, options in choices]
    return [tag("h2", "Pairs that changed"),
            tag("p", f"{sum(c['changed'] for c in compared):,} decisions changed. Here are {len(rows):,} of them, at most {most} of each paradigm"
                f"{' and checkpoint' * several}, the largest changes. Margin: score of the good sentence (+) less that of the bad one (-), in nats."),
            tag("form", tag("label", "text ", Markup('<input type="search" id="text">')), *selects, tag("output", "")),
            table(heads, rows, id="changes")]


def skeleton(title, body):
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
{tag("title", title)}
<style>{STYLE}</style></head>
<body>
{chr(10).join(body)}
<script>{SCRIPT}</script></body></html>
"""


STYLE = """
:root { color-scheme: light dark; --line: #ccc; --up: #17713c; --down: #b3261e; --soft: #f3f3f3; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --up: #6fd394; --down: #ff8a80; --soft: #262626; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1150px; margin: 0 auto; padding: 0 16px 48px; overflow-wrap: anywhere; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; }
.wide { overflow-x: auto; } .name { white-space: nowrap; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
td, th { padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td small { display: block; opacity: .75; white-space: nowrap; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; text-align: left; cursor: pointer; }
[aria-sort=ascending] button::after { content: " \\25b2"; } [aria-sort=descending] button::after { content: " \\25bc"; }
#changes td:first-child { min-width: 17em; width: 100%; }
.up { color: var(--up); } .down { color: var(--down); }
.warning { border-left: 4px solid var(--down); padding-left: 8px; }
.mark { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
.bars { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 14px 32px; }
figure { margin: 0; } svg { display: block; } svg text { fill: currentColor; font-size: 12px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 16px; background: var(--soft); padding: 8px; } dd { margin: 0; }
form { display: flex; flex-wrap: wrap; gap: 8px 16px; margin-bottom: 8px; } select, input { font: inherit; max-width: 17em; }
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
  const th = button.parentElement, body = th.closest("table").tBodies[0], heads = [...th.parentElement.cells], column = heads.indexOf(th);
  const rows = [...body.rows].map(row => [key(row.cells[column]), row]);
  const before = th.getAttribute("aria-sort"), up = before ? before == "descending" : rows.some(([k]) => typeof k == "string");
  rows.sort((a, b) => up ? compare(a[0], b[0]) : compare(b[0], a[0]));
  heads.forEach(head => head.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...rows.map(([, row]) => row));
  filter();
};
if (form) { form.oninput = filter; form.onsubmit = event => event.preventDefault(); }
filter();
"""
