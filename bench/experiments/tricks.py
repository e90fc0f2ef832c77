"""Draws SLlama's four tricks: assets/tricks.png.

    python -m bench.experiments.tricks

The numbers under the panels are model.py's own, at the released sizes.
"""

import argparse
import itertools
import os

from bench.common import ROOT
from lab import cli
from lab import settings as configuration
from model import ModelConfig, parameter_counts

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

# Okabe and Ito: distinct for colour-blind readers
SIX = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"]
DARK, GREY = ("#0072B2", "#009E73", "#D55E00"), "#DDDDDD"


def box(axes, x, y, width, height, color, text="", **style):
    style = {"edgecolor": "black", "linewidth": 0.6, **style}
    axes.add_patch(Rectangle((x, y), width, height, facecolor=color, **style))
    ink = "white" if color in DARK else "black"
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=min(9, 20 * height), color=ink)


def arrow(axes, start, end, curve=0.0):
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=11,
            color="#444444",
            connectionstyle=f"arc3,rad={curve}",
            linewidth=1.1,
        )
    )


def note(axes, x, y, text, **style):
    axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 9, **style})


def repeat(axes):
    """A table of narrow rows; one of them, four times side by side."""
    for row, column in itertools.product(range(7), range(4)):
        box(axes, 0.8 + 0.35 * column, 1.2 + 0.55 * row, 0.35, 0.55, SIX[column] if row == 4 else GREY)
    note(axes, 1.5, 0.75, "table, 32,000 × 16")
    note(axes, 1.5, 5.35, "⋮", fontsize=12)
    arrow(axes, (2.3, 3.7), (3.5, 3.7))
    for tile, column in itertools.product(range(4), range(4)):
        box(axes, 3.7 + 0.35 * (4 * tile + column), 3.4, 0.35, 0.6, SIX[column])
        if column == 0:
            axes.plot([3.7 + 1.4 * tile] * 2, [3.15, 4.25], color="black", linewidth=1.6)
    axes.plot([9.3] * 2, [3.15, 4.25], color="black", linewidth=1.6)
    note(axes, 6.5, 4.75, "the embedding of one token, 64 numbers")
    note(axes, 6.5, 2.65, "the same 16 (here drawn as 4), four times")


def picks(axes):
    """Six rows of a table; the rows of q, k and v are picked from them."""
    for row in range(6):
        box(axes, 0.3, 4.5 - 0.5 * row, 2.2, 0.5, SIX[row], str(row))
    note(axes, 1.4, 1.55, "six rows of 64")
    order = list(itertools.chain.from_iterable(itertools.permutations(range(6), 4)))  # as model.PermutatedWeights
    for column, name in enumerate("qkv"):
        x = 4.2 + 1.95 * column
        for n, row in enumerate(order[64 * column : 64 * column + 12]):
            box(axes, x, 4.67 - 0.33 * n, 1.5, 0.33, SIX[row], str(row))
        note(axes, x + 0.75, 0.75, "⋮", fontsize=12)
        note(axes, x + 0.75, 5.4, f"$W_{name}$")
    arrow(axes, (2.6, 3.25), (4.05, 3.25))
    note(axes, 5.0, 0.3, "64 rows each: four at a time, all permutations of 0 to 5")


def transposed(axes):
    """gate, down, and for the way up down once more."""
    note(axes, 0.5, 3.1, "x", fontsize=12)
    arrow(axes, (0.75, 3.3), (1.8, 4.4))
    arrow(axes, (0.75, 2.9), (1.8, 1.7))
    box(axes, 1.9, 3.5, 1.1, 1.9, SIX[4], "gate")
    box(axes, 1.9, 0.7, 1.1, 1.9, SIX[1], "$\\mathrm{down}^T$", linestyle="--", linewidth=1.4)
    arrow(axes, (3.1, 4.45), (4.75, 3.4))
    arrow(axes, (3.1, 1.65), (4.75, 2.8))
    note(axes, 4.15, 4.25, "silu")
    note(axes, 5.0, 3.1, "⊙", fontsize=17)
    arrow(axes, (5.3, 3.1), (6.2, 3.1))
    box(axes, 6.3, 2.55, 1.9, 1.1, SIX[1], "down")
    arrow(axes, (8.3, 3.1), (9.2, 3.1))
    note(axes, 9.5, 3.1, "y", fontsize=12)
    arrow(axes, (7.25, 2.45), (3.15, 1.1), curve=-0.25)
    note(axes, 6.6, 0.75, "one matrix, used both ways")


def shared(axes):
    """Six layers with their own norms, one attention and one MLP."""
    for layer in range(6):
        y = 0.7 + 0.82 * layer
        box(axes, 0.3, y, 2.6, 0.55, GREY, f"norms of layer {layer + 1}")
        arrow(axes, (3.0, y + 0.28), (5.5, 3.05))
    box(axes, 5.6, 1.6, 3.3, 2.9, "white", linewidth=1.4)
    box(axes, 5.8, 3.15, 2.9, 1.1, SIX[4], "attention")
    box(axes, 5.8, 1.85, 2.9, 1.1, SIX[1], "MLP")
    note(axes, 7.25, 1.15, "one of each, run six times")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=os.path.join(ROOT, "assets", "tricks.png"), metavar="FILE")
    path = parser.parse_args(argv).out
    settings = configuration.load_config("sllama", path=os.path.join(ROOT, "config.yaml")).model
    plain = parameter_counts(ModelConfig(settings.vocab_size, 64, 6, 4, 192))
    ours = parameter_counts(settings)
    layers = settings.num_hidden_layers

    embedding = f"{plain['embedding']:,} → {ours['embedding']:,} parameters"
    attention = f"{plain['attention'] // layers:,} → {ours['attention']:,} parameters a layer"
    mlp = f"{plain['mlp'] // layers:,} → {ours['mlp']:,} parameters a layer"
    panels = [
        (repeat, "RRHP: narrow rows, repeated", f"embedding: {embedding}"),
        (picks, "PWA: rows picked from six", f"attention: {attention}"),
        (transposed, "SPMLP: up is down, transposed", f"MLP: {mlp}"),
        (shared, "Layer sharing", f"attention and MLP: {layers} → 1 of each"),
    ]
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (draw, title, numbers) in zip(figure.subplots(2, 2).flat, panels):
        draw(axes)
        axes.set(xlim=(0, 10), ylim=(0, 6), xticks=[], yticks=[], xlabel=numbers)
        axes.set_title(title, fontweight="bold", fontsize=12)
        axes.spines[:].set_color("#BBBBBB")
    figure.savefig(path, dpi=110)
    print(os.path.relpath(path))


if __name__ == "__main__":
    cli.run(main)
