"""What each trick of SLlama costs and saves: plain LLaMA to full SLlama at the released sizes, at one token budget.

    python -m bench.experiments.ablation --blimp data/blimp --seeds 0 1 2 [section.key=value ...]
    python -m bench.experiments.ablation --seeds            # only the table and the figure, from the rows there are

Every variant sees the same windows in the same order for 250 steps of 32 x 256 tokens; what has a row in
results/ablation.csv is not trained again. Tokens per second are measured apart, one step of each variant in turn, so
that a busy machine is busy for all. Writes results/ablation.csv, results/ablation.md and assets/ablation.png.
"""

import argparse
import io
import os
import statistics

from bench.common import in_turns
from bench.experiments.trials import arguments, read, run_list
from lab import cli
from lab import settings as configuration
from lab.files import atomic_write
from lab.run import devices
from model import Model
import train

from matplotlib.figure import Figure
import torch

PLAIN = ["model.embedding=full", "model.attention=mha", "model.mlp=full", "model.layer_sharing=none"]
BUDGET = [
    "train.batch_size=32",
    "train.gradient_accumulation_steps=1",
    "train.max_steps=250",
    "train.learning_rate=2e-3",
    "train.min_learning_rate=2e-4",
    "train.warmup=0.05",
    "train.decay_steps=null",
    "train.eval_every=125",
    "train.save_every=50",
    "train.sample_tokens=0",
]
RRHP, PWA, SPMLP, SHARING = SLLAMA = [
    "model.embedding=repeat",
    "model.attention=pwa",
    "model.mlp=shared_projection",
    "model.layer_sharing=share",
]
VARIANTS = {
    "LLaMA": [],
    "tied head": ["model.tie_word_embeddings=true"],
    "RRHP": [RRHP],
    "linear embedding": ["model.embedding=linear"],
    "attention embedding": ["model.embedding=attention"],
    "PWA": [PWA],
    "shared q, k": ["model.attention=skqa"],
    "RRA": ["model.attention=rra"],
    "SPMLP": [SPMLP],
    "sharing": [SHARING],
    "reuse": ["model.layer_sharing=reuse"],
    "RRHP, PWA": [RRHP, PWA],
    "RRHP, PWA, SPMLP": [RRHP, PWA, SPMLP],
    "SLlama": SLLAMA,
}


def speeds(rounds=5):
    """{variant: tokens per second} of whole training steps of 8 windows, in turns; median over the rounds."""
    devices.keep_freed_memory()
    device = torch.device("cpu")
    dtype, _ = devices.pick_precision(device, "auto")
    ids = torch.randint(3, 32000, (8, 257), generator=torch.Generator().manual_seed(0))

    def stepper(settings):
        config = configuration.load_config("sllama", [*PLAIN, *settings])
        model = Model(config.model)
        optimizer = train.make_optimizers(model, config.train, device)[0]

        def step():
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = model(ids[:, :-1], ids[:, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step

    seconds = in_turns({name: stepper(settings) for name, settings in VARIANTS.items()}, rounds)
    return {name: 8 * 256 / statistics.median(times) for name, times in seconds.items()}


def deviation(values):
    return statistics.stdev(values) if len(values) > 1 else None


def mean_sd(values, digits):
    """Text: mean ± standard deviation, or the mean alone of a single value."""
    sd = deviation(values)
    return f"{statistics.mean(values):.{digits}f}" + (f" ± {sd:.{digits}f}" if sd is not None else "")


def finished(rows, name):
    return [row for row in rows if row["name"] == name and not row["failed"]]


def table(rows, tokens_per_second):
    """The rows as a Markdown table, one line a variant."""
    lines = [
        "| variant | parameters | tokens/s, LLaMA = 1 | bits per byte | BLiMP, % | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in VARIANTS:
        if mine := finished(rows, name):
            speed = tokens_per_second[name] / tokens_per_second["LLaMA"]
            bits = mean_sd([float(row["bits_per_byte"]) for row in mine], 3)
            blimp = mean_sd([100 * float(row["accuracy"]) for row in mine], 2)
            lines.append(f"| {name} | {int(mine[0]['parameters']):,} | {speed:.2f} | {bits} | {blimp} | {len(mine)} |")
    return "\n".join(lines) + "\n"


def figure(rows):
    """BLiMP and bits per byte against parameters, one point a variant: the bytes of a PNG."""
    picture = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = picture.subplots(1, 2)
    panels = (left, "accuracy", 100, "BLiMP, strict, %"), (right, "bits_per_byte", 1, "validation, bits per byte")
    for axes, column, scale, label in panels:
        for i, name in enumerate(VARIANTS):
            if mine := finished(rows, name):
                values = [scale * float(row[column]) for row in mine]
                millions = int(mine[0]["parameters"]) / 1e6
                axes.errorbar(
                    millions,
                    statistics.mean(values),
                    deviation(values),
                    label=name,
                    fmt="osD^vPX"[i % 7],
                    color=f"C{i % 10}",
                    capsize=3,
                    ms=7,
                    alpha=0.8,
                )
        axes.set(xlabel="parameters, millions", ylabel=label)
        axes.grid(alpha=0.3)
    picture.legend(*right.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    png = io.BytesIO()
    picture.savefig(png, format="png", dpi=100)
    return png.getvalue()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    arguments(parser)
    args, overrides = parser.parse_known_args(argv)
    path = os.path.join("results", "ablation.csv")
    entries = []
    for name, settings in VARIANTS.items():
        given = [*PLAIN, *settings, *BUDGET]
        entries.append({"name": name, "preset": "sllama", "seeds": args.seeds, "split": "all", "set": given})
    run_list(entries, path, overrides, args)
    if rows := read(path):
        text = table(rows, speeds())
        atomic_write(os.path.join("results", "ablation.md"), text)
        atomic_write(os.path.join("assets", "ablation.png"), figure(rows))
        print(text)


if __name__ == "__main__":
    cli.run(main)
