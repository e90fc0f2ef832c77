"""What eval_blimp.py prints and writes: table, block of `key: value`, CSV of pairs, predictions, HTML page."""

import csv
import io
import os
import pathlib

from lab.score.pairs import first_of_each
from lab.score.statistics import DRAWS, compare

import jinja2
import numpy as np

WIDTH = 100  # columns of the table
MEANS = {"phenomena": "mean over phenomena", "fields": "mean over fields", "micro": "share of all pairs"}


def short_names(labels):
    """Names that tell models apart, in place of their paths.

    The name of the file or folder, or of the folder that holds a file called ckpt or last; where two models would share
    a name, as much of the paths as it takes.
    """
    paths = [pathlib.PurePath(os.path.abspath(label.removesuffix(".pt"))) for label in labels]  # of "." too
    names = []
    for label, path in zip(labels, paths):
        name = path.name
        if name in ("ckpt", "last") and path.parent.name:
            name = path.parent.name
        names.append(f"ngram:{name}" if label.startswith("ngram:") else name)
    depth = 2
    while len(set(names)) < len(set(paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        depth += 1
    return names


def percent(share, digits=2):
    return f"{100 * share:.{digits}f}"


def interval_text(interval, form="{:.1f}"):
    return " to ".join(form.format(100 * end) for end in interval)


def table(results, show_paradigms=False):
    """The last of the results, the learning curve of several, and the comparison if any, in at most WIDTH columns."""
    result, labels = results[-1], [result.origin.label for result in results]
    if result.comparison:
        labels.append(result.comparison.other)
    names = short_names(labels)
    trained_on = f", trained on {result.origin.corpus}" if result.origin.corpus else ""
    lines = [names[len(results) - 1] + trained_on]
    if show_paradigms or not result.phenomena:
        lines += section(result.paradigms)
    lines += section(result.phenomena)
    lines += section(result.fields)
    lines += section({f"mean over {len(result.paradigms)} paradigms": result.overall})
    for view, name in MEANS.items():
        if result.views[view] is not None:
            lines.append(f"  {name:<45}{percent(result.views[view]):>9}")
    lines += ["", "hardest pairs, by margin in nats"]
    for pair in result.hardest[:5]:
        lines.append(f"{pair['margin']:8.2f}  {pair['uid']} {pair['id']}")
        lines.append(f"          + {pair['good']}")
        lines.append(f"          - {pair['bad']}")
    if len(results) > 1:
        lines += learning_curve(results, names)
    if result.comparison:
        lines += comparison(result.comparison, names[-1])
    return "\n".join(line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in lines)


def section(groups):
    """A part of the table: a row for each {name: Group}."""
    if not groups:
        return []
    lines = ["", f"{'':<47}{'accuracy':>9}   {'95 % interval':<14}{'pairs':>7}{'ties':>6}{'margin, nats':>14}"]
    for name, group in groups.items():
        low, high = group.interval
        interval = f"{percent(low, 1)} - {percent(high, 1)}"
        lines.append(
            f"{name[:46]:<47}{percent(group.accuracy):>9}   {interval:<14}"
            f"{group.pairs:>7,}{group.ties:>6,}{group.margin:>12.2f}"
        )
    return lines


def learning_curve(results, names):
    lines = ["", f"{'model':<70}{'words seen':>16}{'accuracy':>12}"]
    for result, name in zip(results, names):
        words = f"{result.origin.words:,}" if result.origin.words else "-"
        lines.append(f"{name[-69:]:<70}{words:>16}{percent(result.overall.accuracy):>12}")
    return lines


def p_value(p, least=1 / DRAWS):
    """p as text. The least that a test can give (by default the bootstrap) is only an upper bound."""
    return f"p < {least:.2g}" if p <= least else f"p = {p:.2g}"


def comparison(c, other):
    """A Comparison with the model called `other`, and the ten paradigms that differ most."""
    lines = [
        "",
        f"compared with {other}",
        f"  {100 * c.difference:+.2f} points, 95 % interval {interval_text(c.interval, '{:+.2f}')} "
        f"(paired bootstrap, {p_value(c.p_bootstrap)})",
        f"  {c.changed:,} of {c.pairs:,} decisions changed: {c.gained:,} gained, {c.lost:,} lost "
        f"(McNemar, {p_value(c.p_mcnemar, 1e-300)})",
    ]
    largest_first = sorted(c.paradigms.items(), key=lambda item: -abs(item[1].difference))
    for uid, row in largest_first[:10]:
        if row.gained or row.lost:
            lines.append(f"  {uid[:51]:<52}{100 * row.difference:+7.1f} {row.gained:>6} gained {row.lost:>6} lost")
    return lines


def rule(origin):
    """How the rule departs from the paper's, in float32 on all pairs; if not at all, `BLiMP`, or `strict`."""
    usual = {"method": "full", "bos": True, "dtype": "float32", "split": "all"}
    departures = []
    for key, value in origin.conventions.items():
        if (value or None) != usual.get(key):
            departures.append(f"{key}={value}")
    if departures:
        return " ".join(departures)
    return "BLiMP" if origin.benchmark.startswith("BLiMP") else "strict"


def block(result):
    """Warnings, and the `key: value` lines that scripts read."""
    tree, origin = result.as_json(), result.origin
    lines = [f"warning: {warning}" for warning in result.warnings]
    for view in ("", "_ties_half", "_ties_correct", "_mean_per_token", "_dev", "_test"):
        if tree[f"accuracy{view}"] is not None:
            lines.append(f"accuracy{view}: {tree[f'accuracy{view}']:.6f}")
    if result.accuracy_range:
        low, high = result.accuracy_range
        lines.append(f"accuracy_range: {low:.6f} to {high:.6f} (a coin decides each tie; accuracy counts it as half)")
    for key in ("pairs", "ties"):
        lines.append(f"{key}: {tree[key]}")
    lines.append(f"paradigms: {len(result.paradigms)}")
    lines.append(f"incomplete: {str(result.incomplete).lower()}")
    lines.append(f"rule: {rule(origin)}")
    lines.append(f"seconds: {result.seconds:.2f}")
    for key in ("before_first_token", "benchmark", "data", "corpus", "checkpoint"):
        lines.append(f"{key}: {getattr(origin, key) or 'unknown'}")
    return "\n".join(lines)


COLUMNS = """uid id phenomenon field split good bad score_good score_bad margin tokens_good tokens_bad right tie
checkpoint rule""".split()


def pairs_csv(result):
    """CSV with a line for each pair.

    What it is, both sentences, their scores in nats (all digits) and lengths in tokens, the decision (column `right`),
    which checkpoint made it and by which rule.
    """
    origin = result.origin
    is_blimp = origin.benchmark.startswith("BLiMP")  # dev and test are parts of BLiMP, by its pairIDs
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    columns = result.pairs, result.scores.tolist(), result.tokens.tolist(), result.correct.tolist()
    for pair, (good, bad), (tokens_good, tokens_bad), correct in zip(*columns):
        row = {**pair, "checkpoint": origin.sha256["checkpoint"][:16], "rule": rule(origin)}
        row |= {"score_good": good, "score_bad": bad, "margin": good - bad}
        row |= {"tokens_good": tokens_good, "tokens_bad": tokens_bad}
        row |= {"right": int(correct), "tie": int(good == bad)}
        if is_blimp:
            row["split"] = "dev" if pair["dev"] else "test"
        writer.writerow(row)
    return out.getvalue()


def predictions(choices):
    """The BabyLM challenge's submission: {part: {"predictions": [{"id": "PART_0", "pred": the chosen text}, ...]}}.

    choices: (part, chosen text) of every item, in the order of the files.
    """
    parts = {}
    for part, text in choices:
        rows = parts.setdefault(part, {"predictions": []})["predictions"]
        rows.append({"id": f"{part}_{len(rows)}", "pred": text})
    return parts


# ---------------------------------------------------------------------------------------------------------------------
# The page of --html. page.html.j2 says how it looks: one file that fetches nothing, with a script that only sorts and
# filters. Whatever comes from outside (sentences, names, provenance) is escaped by Jinja.

MOST_CHANGES = 2000  # changed pairs on the page, of all paradigms and models together: half a megabyte


def page(results):
    """The HTML of Results of the same pairs; each is compared with the first."""
    first, *others = results
    labels = short_names([result.origin.label for result in results])
    limit = max(1, MOST_CHANGES // max(1, len(others) * len(first.paradigms)))  # of each paradigm and model
    changes = []
    for result, label in zip(others, labels[1:]):
        changes += largest_changes(first, result, label, limit)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__))),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "interval": interval_text, "number": number, "p": p_value}
    return environment.get_template("page.html.j2").render(
        results=results,
        labels=labels,
        compared=[compare(first.pairs, result.correct, first.correct) for result in others],
        differences=[f"{label} - {labels[0]}" for label in labels[1:]],
        changes=changes,
        limit=limit,
        warnings=warnings_of(results, labels),
        groups="phenomena" if first.phenomena else "paradigms",
        data=os.path.basename(os.path.abspath(first.origin.data)),
        rule=rule(first.origin),
    )


def number(x, form=","):
    return "-" if x is None else format(x, form)


def warnings_of(results, labels):
    """Each warning once, with the models it is about unless it is about all of them."""
    about = {}
    for result, label in zip(results, labels):
        for warning in result.warnings:
            about.setdefault(warning, []).append(label)
    return [text if who == labels else f"{', '.join(who)}: {text}" for text, who in about.items()]


def largest_changes(first, other, label, limit):
    """The pairs on which one of two models is correct, with both margins in nats, the largest changes first.

    At most `limit` of each paradigm. label: the other model's name.
    """
    before = first.scores[:, 0] - first.scores[:, 1]
    after = other.scores[:, 0] - other.scores[:, 1]
    changed = np.flatnonzero(first.correct != other.correct)
    rows = []
    for i in changed[np.argsort(-np.abs(after - before)[changed], kind="stable")]:
        change = "gained" if other.correct[i] else "lost"
        rows.append({**first.pairs[i], "model": label, "change": change, "before": before[i], "after": after[i]})
    return first_of_each(rows, limit)
