"""Draws RESULTS.md's two figures of all that was trained: BLiMP against parameters, and against minutes of a core.

    python -m bench.experiments.figures

From results/final.csv (ours) and results/published.csv (what others report); writes assets/parameters.png and
assets/minutes.png.
"""

import argparse
import csv
import io
import os
import re
import statistics

from bench.experiments.trials import read
from lab import cli
from lab.files import atomic_write

from matplotlib.figure import Figure

TEXTS = {"2 MB": "tab:blue", "10 MB": "tab:green", "10 M words": "tab:red"}


def text_of(row):
    """Which of TEXTS a row of final.csv was trained on, by the words of an epoch."""
    words = float(row["words"]) / float(row["epochs"])
    return "2 MB" if words < 1e6 else "10 MB" if words < 5e6 else "10 M words"


def core_minutes(row):
    threads = re.search(r"(\d+) threads", row["device"]).group(1)
    return float(row["minutes"]) * int(threads)


def ours():
    """[(name, text, parameters, minutes of a core, accuracies in %)], a model's seeds together."""
    groups = {}
    for row in read(os.path.join("results", "final.csv")):
        if row["accuracy"]:
            groups.setdefault(row["name"], []).append(row)
    found = []
    for name, rows in groups.items():
        minutes = statistics.median(core_minutes(row) for row in rows)
        accuracies = [100 * float(row["accuracy"]) for row in rows]
        found.append((name, text_of(rows[0]), int(rows[0]["parameters"]), minutes, accuracies))
    return found


def draw(path, label, points, others=()):
    """points: [(x, accuracies, name, colour)]; others: [(x, accuracy, name)]. Bars are the least and the most seed."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for x, accuracies, name, colour in points:
        mean = statistics.mean(accuracies)
        bar = [[mean - min(accuracies)], [max(accuracies) - mean]]
        axes.errorbar(x, mean, bar, fmt="o", color=colour, capsize=3)
        axes.annotate(name, (x, mean), xytext=(6, -11), textcoords="offset points", fontsize=8)
    for x, accuracy, name in others:
        axes.plot(x, accuracy, "x", color="tab:gray")
        axes.annotate(name, (x, accuracy), xytext=(6, 3), textcoords="offset points", fontsize=8, color="gray")
    axes.set(xscale="log", xlabel=label, ylabel="BLiMP, %")
    axes.grid(alpha=0.3)
    axes.margins(x=0.25)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    atomic_write(path, png.getvalue())


def main(argv=None):
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args(argv)
    with open(os.path.join("results", "published.csv"), newline="", encoding="utf-8") as f:
        published = [(int(row["parameters"]), float(row["blimp"]), row["model"]) for row in csv.DictReader(f)]
    models = ours()
    same_text = [
        (parameters, accuracies, name, TEXTS[text])
        for name, text, parameters, _, accuracies in models
        if text == "10 M words"
    ]
    draw(os.path.join("assets", "parameters.png"), "parameters", same_text, published)
    by_cost = [(minutes, accuracies, f"{name} ({text})", TEXTS[text]) for name, text, _, minutes, accuracies in models]
    draw(os.path.join("assets", "minutes.png"), "minutes of one core", by_cost)


if __name__ == "__main__":
    cli.run(main)
