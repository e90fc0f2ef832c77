"""What each trick of SLlama costs and saves: plain LLaMA to full SLlama at the released sizes, at one token budget.

    python bench/ablation.py --blimp data/blimp --seeds 0 1 2 [data.source=FOLDER ...]     # trains what has no row in results/ablation.csv yet
    python bench/ablation.py --seeds                                                       # only the table and the figure, from the rows there are

Every variant sees the same windows in the same order for 250 steps of 32 x 256 tokens. Tokens per second are measured apart, one step
of each variant in turn, so that a busy machine is busy for all. Writes results/ablation.csv, results/ablation.md and assets/ablation.png.
"""
import argparse
import io
import os
import statistics
import sys
import time

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import train
from lab import commands, devices
from lab import settings as configuration
from lab.files import atomic_write
from model import Model
from trials import read, run_list

PLAIN = ["model.embedding=full", "model.attention=mha", "model.mlp=full", "model.layer_sharing=none"]
BUDGET = ["train.batch_size=32", "train.gradient_accumulation_steps=1", "train.max_steps=250", "train.learning_rate=2e-3", "train.min_learning_rate=2e-4",
          "train.warmup=0.05", "train.decay_steps=null", "train.eval_every=125", "train.save_every=50", "train.sample_tokens=0"]
VARIANTS = {
    "LLaMA": [],
    "tied head": ["model.tie_word_embeddings=true"],
    "RRHP": ["model.embedding=repeat"],
    "linear embedding": ["model.embedding=linear"],
    "attention embedding": ["model.embedding=attention"],
    "PWA": ["model.attention=pwa"],
    "shared q, k": ["model.attention=skqa"],
    "RRA": ["model.attention=rra"],
    "SPMLP": ["model.mlp=shared_projection"],
    "sharing": ["model.layer_sharing=share"],
    "reuse": ["model.layer_sharing=reuse"],
    "RRHP, PWA": ["model.embedding=repeat", "model.attention=pwa"],
    "RRHP, PWA, SPMLP": ["model.embedding=repeat", "model.attention=pwa", "model.mlp=shared_projection"],
    "SLlama": ["model.embedding=repeat", "model.attention=pwa", "model.mlp=shared_projection", "model.layer_sharing=share"],
}


def speeds(rounds=5):
    """Tokens per second of whole training steps of 8 windows, each variant in turn; median over the rounds."""
    devices.keep_freed_memory()
    made = {}
    for name, settings in VARIANTS.items():
        c = configuration.load_config("sllama", [*PLAIN, *settings])
        model = Model(c.model)
        made[name] = model, train.make_optimizers(model, c.train, torch.device("cpu"))[0], []
    dtype, _ = devices.pick_precision(torch.device("cpu"), "auto")
    ids = torch.randint(3, 32000, (8, 257), generator=torch.Generator().manual_seed(0))
    for _ in range(rounds + 1):                                         # the first is a warm-up
        for model, optimizer, seconds in made.values():
            start = time.perf_counter()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                model(ids[:, :-1], ids[:, 1:]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - start)
    return {name: 8 * 256 / statistics.median(seconds[1:]) for name, (_, _, seconds) in made.items()}


def mean_sd(values, digits):
    sd = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{sd}"


def finished(rows, name):
    return [r for r in rows if r["name"] == name and not r["failed"]]


def table(rows, tokens_per_second):
    lines = ["| variant | parameters | tokens/s, LLaMA = 1 | bits per byte | BLiMP, % | seeds |", "| --- | --- | --- | --- | --- | --- |"]
    for name in VARIANTS:
        mine = finished(rows, name)
        if mine:
            lines.append(f"| {name} | {int(mine[0]['parameters']):,} | {tokens_per_second[name] / tokens_per_second['LLaMA']:.2f} | "
                         f"{mean_sd([float(r['bits_per_byte']) for r in mine], 3)} | {mean_sd([100 * float(r['accuracy']) for r in mine], 2)} | {len(mine)} |")
    return "\n".join(lines) + "\n"


def figure(rows):
    """BLiMP and bits per byte against parameters, one point a variant."""
    from matplotlib.figure import Figure
    picture = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = picture.subplots(1, 2)
    for axes, column, scale, label in ((left, "accuracy", 100, "BLiMP, strict, %"), (right, "bits_per_byte", 1, "validation, bits per byte")):
        for i, name in enumerate(VARIANTS):
            mine = finished(rows, name)
            if mine:
                values = [scale * float(r[column]) for r in mine]
                axes.errorbar(int(mine[0]["parameters"]) / 1e6, statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None,
                              fmt="osD^vPX"[i % 7], color=f"C{i % 10}", capsize=3, ms=7, alpha=0.8, label=name)
        axes.set(xlabel="parameters, millions", ylabel=label)
        axes.grid(alpha=0.3)
    picture.legend(*right.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    png = io.BytesIO()
    picture.savefig(png, format="png", dpi=100)
    return png.getvalue()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blimp", default="data/blimp", help="folder of minimal pairs")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="regular expression: only the variants whose name it matches")
    parser.add_argument("--keep", action="store_true", help="keep the run folders, out/trials/NAME-SEED")
    args, overrides = parser.parse_known_args(argv)
    path = os.path.join("results", "ablation.csv")
    os.makedirs("results", exist_ok=True)
    run_list([{"name": name, "preset": "sllama", "seeds": args.seeds, "split": "all", "set": [*PLAIN, *settings, *BUDGET]} for name, settings in VARIANTS.items()],
             path, overrides, args)
    if rows := read(path):
        text = table(rows, speeds())
        atomic_write(os.path.join("results", "ablation.md"), text)
        atomic_write(os.path.join("assets", "ablation.png"), figure(rows))
        print(text)


if __name__ == "__main__":
    commands.run(main)
