"""Pictures: eval_blimp.py --plot, by phenomenon or against words seen; a run's curves.png.

Imported only where one is drawn, because matplotlib takes a second to load.
"""

from lab.report.tables import percent, rule, short_names

from matplotlib.figure import Figure
import numpy as np

REFERENCES = {"chance": 50.0, "n-gram": 61.2, "LSTM": 69.8, "GPT-2 large": 83.0}  # of the paper's corrected files
LINE_STYLES = ("-", "--", ":", "-.")


def plot(results, f, form="png"):
    """Draws into the open file f: one result as bars by phenomenon; several as accuracy against words seen.

    form: png | svg | pdf.
    """
    last = results[-1]
    kind = "phenomena" if last.phenomena else "paradigms"
    references = REFERENCES if last.origin.benchmark.startswith("BLiMP") else {"chance": 50.0}
    figure = Figure(figsize=(9, max(5, 0.3 * len(getattr(last, kind)) + 2)), dpi=100, layout="constrained")
    axes = figure.subplots()
    if len(results) == 1:
        bars(axes, getattr(last, kind), last.overall.accuracy, references)
    else:
        learning_curves(axes, results, kind, references)
    name = short_names([result.origin.label for result in results])[-1]
    title = f"{last.origin.benchmark}: {percent(last.overall.accuracy)}\n{name}"
    if last.origin.corpus:
        title += f", trained on {last.origin.corpus}"
    figure.suptitle(title, fontsize=9)
    origin = f"sha256 {last.origin.sha256}, rule {rule(last.origin)}"
    figure.savefig(f, format=form, metadata={"Title": origin})  # Title is a field of all three formats


def bars(axes, groups, accuracy, references):
    """A bar with its interval for each {name: Group}; a line for the mean, and one for each of the references."""
    values = 100 * np.array([[g.accuracy, *g.interval] for g in groups.values()])  # (groups, 3)
    errors = np.abs(values[:, 1:] - values[:, :1]).T  # (2, groups)
    names = [name.replace("_", " ") for name in groups]
    axes.barh(names, values[:, 0], xerr=errors, color="tab:blue", alpha=0.8, error_kw={"capsize": 2, "lw": 1})
    axes.axvline(100 * accuracy, color="black", lw=1.5)
    for name, value in references.items():
        axes.axvline(value, color="gray", lw=1, ls=":")
        axes.text(value, -0.65, f" {name} {value:g}", fontsize=7, rotation=35, color="gray")
    axes.set(xlim=(0, 100), ylim=(len(groups) - 0.4, -0.6), xlabel="accuracy in %, 95 % intervals")


def learning_curves(axes, results, kind, references):
    """A line for each phenomenon (or paradigm) and a thick one for the mean."""
    words = [(result.origin.words or 0) / 1e6 for result in results]
    for i, name in enumerate(getattr(results[-1], kind)):
        accuracies = [100 * getattr(result, kind)[name].accuracy for result in results]
        style = LINE_STYLES[i // 10 % len(LINE_STYLES)]  # matplotlib has ten colours
        axes.plot(words, accuracies, style, marker=".", lw=1, alpha=0.8, label=name.replace("_", " "))
    means = [100 * result.overall.accuracy for result in results]
    axes.plot(words, means, color="black", lw=2.5, marker="o", label="mean over paradigms")
    for name, value in references.items():
        axes.axhline(value, color="gray", lw=1, ls=":")
        place = {"xy": (1, value), "xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        axes.annotate(name, fontsize=7, color="gray", **place)
    axes.margins(x=0.12)  # room for these names
    axes.set(xlabel="words seen in training, millions", ylabel="accuracy in %")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_curves(rows, title, f):
    """A run's losses, and its accuracies if any, against tokens: a PNG into the open file f. rows: of losses.csv."""
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="tokens", ylabel="loss, nats per token", title=title)
    axes.grid(alpha=0.3)
    lines = line(axes, rows, "train_loss", 1, label="train loss", alpha=0.6, lw=0.8)
    lines += line(axes, rows, "val_loss", 1, label="val loss", marker="o", markersize=3)
    if any(row["blimp"] != "" for row in rows):
        right = axes.twinx()
        right.set_ylabel("accuracy on a subset of minimal pairs, %")
        lines += line(right, rows, "blimp", 100, label="minimal pairs, %", color="tab:green", marker="s", markersize=3)
    figure.legend(handles=lines, loc="outside lower center", ncols=3)  # of both axes, and on neither's lines
    figure.savefig(f, format="png")


def line(axes, rows, column, times, **style):
    """Plots a column against tokens, without the rows in which it is empty; returns what axes.plot does."""
    known = [row for row in rows if row[column] != ""]
    return axes.plot([row["tokens"] for row in known], [times * row[column] for row in known], **style)
