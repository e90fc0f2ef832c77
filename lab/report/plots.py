"""Pictures: eval_blimp.py --plot, by phenomenon or against words seen; a training's curves.png. Imported only if asked
for, because matplotlib takes a second to load."""

from lab.report.tables import percent, rule, short_names

from matplotlib.figure import Figure
import numpy as np

REFERENCES = {"chance": 50.0, "n-gram": 61.2, "LSTM": 69.8, "GPT-2 large": 83.0}  # of the paper's corrected files
LINE_STYLES = ("-", "--", ":", "-.")


def plot(results, f, form="png"):
    """A picture into the open file f: bars by phenomenon; of several results, accuracy against words seen.

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
    key = "Subject" if form == "pdf" else "Description"
    figure.savefig(f, format=form, metadata={key: origin})


def bars(axes, groups, accuracy, references):
    """A bar for each {name: Group}, with its interval; lines for the mean and for what others reach."""
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
        style = {"color": f"C{i % 10}", "ls": LINE_STYLES[i // 10 % 4], "lw": 1, "alpha": 0.8, "marker": "."}
        axes.plot(words, accuracies, label=name.replace("_", " "), **style)
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
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    styles = {"train_loss": {"alpha": 0.6, "linewidth": 0.8}, "val_loss": {"marker": "o", "markersize": 3}}
    for column, style in styles.items():
        known = [row for row in rows if row[column] != ""]
        tokens, losses = [row["tokens"] for row in known], [row[column] for row in known]
        axes.plot(tokens, losses, label=column.replace("_", " "), **style)
    axes.set(xlabel="tokens", ylabel="loss, nats per token", title=title)
    lines = axes.get_lines()
    scored = [row for row in rows if row["blimp"] != ""]
    if scored:
        right = axes.twinx()
        tokens, accuracies = [row["tokens"] for row in scored], [100 * row["blimp"] for row in scored]
        lines += right.plot(tokens, accuracies, color="tab:green", marker="s", markersize=3, label="minimal pairs, %")
        right.set_ylabel("accuracy on a subset of minimal pairs, %")
    axes.legend(lines, [line.get_label() for line in lines], loc="best")
    axes.grid(alpha=0.3)
    figure.savefig(f, format="png", dpi=110)
