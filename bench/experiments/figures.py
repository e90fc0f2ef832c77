"""Draws BLiMP against minutes of one core and against parameters, and the minutes to a published number.

    python -m bench.experiments.figures

Writes assets/minutes.png and assets/parameters.png from results/final.csv (ours) and results/published.csv; minutes are
those of the fastest seed, as other work ran beside some, and bars reach from the worst seed to the best. Writes
assets/clock.png from results/clock.csv.
"""

import io
import os
import re
import statistics

from bench.common import ROOT
from bench.experiments.trials import read
from lab import cli
from lab.files import atomic_write

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox
import yaml

COLOURS = {"2 MB": "tab:blue", "10 MB": "tab:green", "10 M words": "tab:red"}  # of the text, whatever its epochs
PLACES = [(8, -3), (8, 7), (8, -14), (-8, -3), (-8, 7), (-8, -14), (8, 17), (8, -24)]  # of a label, points from its dot


def text_of(row):
    """Which text a row was trained on, a key of COLOURS, by the words of an epoch."""
    words = float(row["words"]) / float(row["epochs"])
    if words < 1e6:
        return "2 MB"
    return "10 MB" if words < 5e6 else "10 M words"


def core_minutes(row):
    if row["name"] == "llama-66m":
        return 274  # 60 in one process, then 107 in two: its row has the sum by the clock
    return float(row["minutes"]) * int(re.search(r"(\d+) threads?", row["device"])[1])


def ours(path="results/final.csv"):
    """{preset: its rows, one a seed} of today's presets."""
    with open(os.path.join(ROOT, "config.yaml"), encoding="utf-8") as f:
        presets = yaml.safe_load(f)["presets"]
    found = {}
    for row in read(path):
        if row["name"] in presets and row["accuracy"]:
            found.setdefault(row["name"], []).append(row)
    return found


def label(axes, dots, bars):
    """Writes the name of each dot (x, y, name) at the first of PLACES that is inside the axes and covers nothing.

    bars: (x, lowest, highest).
    """
    taken = []
    for x, low, high in [*bars, *((x, y, y) for x, y, _ in dots)]:
        (x, low), (_, high) = axes.transData.transform([(x, low), (x, high)])
        taken.append(Bbox.from_extents(x - 6, low - 6, x + 6, high + 6))
    for x, y, name in dots:
        for place in PLACES:
            side = "left" if place[0] > 0 else "right"
            text = axes.annotate(name, (x, y), place, textcoords="offset points", ha=side, fontsize=9)
            box = text.get_window_extent()
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            if place != PLACES[-1]:
                text.remove()
        taken.append(box)


def draw(path, title, of_row, published=()):
    """Writes a figure of accuracy against of_row(row); published: [(x, accuracy, name)], drawn as crosses."""
    figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=100)
    axes = figure.subplots()
    axes.set(xscale="log", xlabel=title, ylabel="BLiMP, strict, %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    dots, bars = list(published), []
    for x, accuracy, _ in dots:
        axes.plot(x, accuracy, "x", color="gray")
    for name, rows in ours().items():
        x, accuracies = min(map(of_row, rows)), [100 * float(row["accuracy"]) for row in rows]
        mean, text = statistics.mean(accuracies), text_of(rows[0])
        known = text in axes.get_legend_handles_labels()[1]
        bar = [[mean - min(accuracies)], [max(accuracies) - mean]]
        axes.errorbar(x, mean, bar, fmt="o", color=COLOURS[text], capsize=3, label=None if known else text)
        dots.append((x, mean, name))
        bars.append((x, min(accuracies), max(accuracies)))
    axes.margins(x=0.25, y=0.15)
    axes.legend(loc="upper left", fontsize=9, title="trained on")
    figure.draw_without_rendering()
    label(axes, dots, bars)
    save(figure, path)


def draw_clock(path):
    """Writes a figure of the minutes of results/clock.csv, whose rows are pairs: a published recipe and ours."""
    rows = read("results/clock.csv")
    figure = Figure(figsize=(8, 3), layout="constrained", dpi=100)
    axes = figure.subplots()
    colours = ["tab:blue" if row["reaches"] == "yes" else "lightgray" for row in rows]
    bars = axes.barh([row["name"] for row in rows], [float(row["minutes"]) for row in rows], color=colours)
    axes.bar_label(bars, fmt=" {:.0f}")
    axes.invert_yaxis()
    axes.set(xlabel="minutes of one core", xlim=(0, 550))
    save(figure, path)


def save(figure, path):
    png = io.BytesIO()
    figure.savefig(png, format="png")
    atomic_write(path, png.getvalue())


def main():
    reported = read("results/published.csv")
    published = [(int(row["parameters"]) / 1e6, float(row["blimp"]), row["model"]) for row in reported]
    draw("assets/minutes.png", "minutes of one core", core_minutes)
    draw_clock("assets/clock.png")
    draw("assets/parameters.png", "parameters, millions", lambda row: int(row["parameters"]) / 1e6, published)


if __name__ == "__main__":
    cli.run(main)
