"""One HTML page about evaluations of the same pairs: python eval_blimp.py A.pt B.pt C.pt --html report.html

How it looks is in page.html.j2; here is what it says. Everything is in one file: nothing is fetched, and only sorting
and filtering need its script. The numbers are those of lab/score/statistics.py. Whatever comes from outside (sentences,
names, provenance) is escaped by Jinja.
"""

from dataclasses import dataclass
import os

from lab.report import tables
from lab.score import statistics

import jinja2
import numpy as np

FOLDER = os.path.dirname(os.path.abspath(__file__))
MOST_CHANGES = 2000  # changed pairs in the file, shared by paradigms and models: half a megabyte


@dataclass
class Change:
    """A pair on which only one of two models is correct, and both margins in nats."""

    pair: dict
    model: str
    gained: bool
    before: float
    after: float


def page(results):
    """HTML of Results of the same pairs; each is compared with the first."""
    first = results[0]
    labels = tables.short_names([result.origin.label for result in results])
    compared = [statistics.compare(first.pairs, result.correct, first.correct) for result in results[1:]]
    limit = max(1, MOST_CHANGES // max(1, len(compared) * len(first.paradigms)))  # of each paradigm and model
    changes = []
    for result, label in zip(results[1:], labels[1:]):
        changes += largest_changes(first, result, label, limit)
    trained_on = {result.origin.corpus for result in results if result.origin.bits_per_byte is not None}

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": tables.percent, "interval": interval_text, "number": number, "p": tables.p_value}
    return environment.get_template("page.html.j2").render(
        results=results,
        labels=labels,
        compared=compared,
        differences=[f"{label} - {labels[0]}" for label in labels[1:]],
        changes=changes,
        limit=limit,
        warnings=warnings_of(results, labels),
        sources=[where_from(result.origin) for result in results],
        groups="phenomena" if first.phenomena else "paradigms",
        data=os.path.basename(os.path.abspath(first.origin.data)),
        rule=tables.rule(first.origin),
        several_texts=len(trained_on) > 1,
        least_p=1 / statistics.DRAWS,
    )


def interval_text(interval, form="{:.1f}"):
    low, high = interval
    return f"{form.format(100 * low)} to {form.format(100 * high)}"


def number(x, form=","):
    return "-" if x is None else format(x, form)


def warnings_of(results, labels):
    """Each warning once, with the models it is about unless it is about all of them."""
    about = {}
    for result, label in zip(results, labels):
        for warning in result.warnings:
            about.setdefault(warning, []).append(label)
    return [text if who == labels else f"{', '.join(who)}: {text}" for text, who in about.items()]


def where_from(origin):
    """{name: value} of the files, hashes and conventions behind a result."""
    keys = ("before_first_token", "corpus", "steps", "words", "benchmark", "device", "torch")
    facts = {key.replace("_", " "): getattr(origin, key) for key in keys}
    facts |= {f"sha256 of the {key}": value for key, value in origin.sha256.items()}
    return facts | origin.conventions


def largest_changes(first, other, label, limit):
    """The Changes from one Result to another, at most `limit` of each paradigm, the largest first."""
    before = first.scores[:, 0] - first.scores[:, 1]
    after = other.scores[:, 0] - other.scores[:, 1]
    changed = np.flatnonzero(first.correct != other.correct)
    count, kept = {}, []
    for i in changed[np.argsort(-np.abs(after - before)[changed], kind="stable")]:
        uid = first.pairs[i]["uid"]
        count[uid] = count.get(uid, 0) + 1
        if count[uid] <= limit:
            kept.append(Change(first.pairs[i], label, bool(other.correct[i]), before[i], after[i]))
    return kept
