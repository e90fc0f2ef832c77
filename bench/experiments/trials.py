"""Runs a list of trainings, scores each, and keeps a row of every one, failures too, in results/LIST.csv.

    python -m bench.experiments.trials bench/experiments/tuning.yaml --blimp data/blimp [--only REGEX] [key=value ...]

The list is YAML: [{name, preset, seeds: [0, 1], split: dev, set: [section.key=value, ...]}, ...]. Settings on the
command line go with every trial. Recipes are chosen with `split: dev`, which reads the development tenth of the pairs
only; the others are scored with `split: all`. A trial that has a row is not run again, and an interrupted one goes on
from its last.pt, so the same command continues the list.
"""

import argparse
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

from bench.common import closing_block, script
from lab import checkpoint, cli
from lab import settings as configuration
from lab.files import UserError, atomic_write
from model import parameter_counts

import yaml

COLUMNS = """name seed preset settings parameters words epochs tokens steps minutes tokens_per_second peak_memory_mb
device val_loss bits_per_byte split pairs ties accuracy accuracy_dev accuracy_test phenomena corpus commit
failed""".split()


def command(name, *args):
    """Runs one of the project's commands, its output on the terminal; returns that output.

    UserError with its last lines if it fails.
    """
    process = subprocess.Popen(script(name, *args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        sys.stdout.write(line)
        lines.append(line)
    if process.wait() in (130, 143):  # asked to end: the row is not finished
        raise KeyboardInterrupt
    if process.returncode:
        raise UserError(f"{name} failed: {' '.join(''.join(lines[-2:]).split())[-300:]}")
    return "".join(lines)


def train(out, settings):
    """Trains into the folder `out`; returns the training's part of the row."""
    block = closing_block(command("train.py", *settings))
    best = checkpoint.load(os.path.join(out, "ckpt.pt"))
    made = best.provenance
    steps = int(block["steps"])
    row = {key: block[key] for key in ("words", "tokens", "tokens_per_second", "peak_memory_mb", "val_loss", "corpus")}
    return row | {
        "parameters": sum(parameter_counts(best.config).values()),
        "steps": steps,
        "epochs": round(made["epochs"] * steps / max(1, made["steps"]), 2),  # `made` is of the best step
        "minutes": round(float(block["seconds"]) / 60, 2),
        "device": made["device"],
        "bits_per_byte": block["val_bits_per_byte"],
        "commit": made["commit"],
    }


def score(out, blimp, split):
    """Scores the best checkpoint of the folder `out`; returns the scores' part of the row."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "scores.json")
        command("eval_blimp.py", os.path.join(out, "ckpt.pt"), "--data", blimp, "--split", split, "--json", path)
        with open(path, encoding="utf-8") as f:
            scores = json.load(f)
    row = {key: scores.get(key) for key in ("pairs", "ties", "accuracy", "accuracy_dev", "accuracy_test")}
    phenomena = {name: round(100 * found["accuracy"], 2) for name, found in scores["phenomena"].items()}
    return row | {"split": split, "phenomena": json.dumps(phenomena)}


def trial(entry, seed, overrides, blimp, keep):
    """Prepares, trains and scores; returns the row."""
    preset, settings = entry["preset"], entry.get("set", [])
    out = os.path.join("out", "trials", f"{entry['name']}-{seed}")
    given = ["--preset", preset, *settings, *overrides, f"train.seed={seed}", f"train.out={out}"]
    row = {"name": entry["name"], "seed": seed, "preset": preset, "settings": " ".join(settings)}
    try:
        prepared = configuration.load_config(preset, [*settings, *overrides]).data_dir
        if not os.path.exists(os.path.join(prepared, "meta.json")):
            command("prepare.py", *given, f"eval.data={blimp}")
        row |= train(out, given)
        row |= score(out, blimp, entry.get("split", "dev"))
        if not keep:
            shutil.rmtree(out)
    except UserError as e:
        row["failed"] = str(e)
    return row


def read(path):
    """The rows of a CSV file of trials, none if it is not there."""
    if not os.path.exists(path):
        return []
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def write(path, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue())


def run_list(entries, path, overrides, args):
    """Runs what has no row yet, the first seed of every trial before the second of any."""
    todo = []
    for entry in entries:
        if re.search(args.only, entry["name"]):
            todo += [(turn, entry, seed) for turn, seed in enumerate(entry.get("seeds", [0]))]
    for _, entry, seed in sorted(todo, key=lambda item: item[0]):
        trial_key = (entry["name"], str(seed), " ".join(entry.get("set", [])))
        rows = read(path)
        if trial_key in [(row["name"], row["seed"], row["settings"]) for row in rows]:
            continue
        print(f"\n=== {entry['name']}, seed {seed}", flush=True)
        row = trial(entry, seed, overrides, args.blimp, args.keep)
        write(path, [*read(path), row])  # read again: another process may have added to it


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("list", help="YAML file of trials")
    parser.add_argument("--results", help="CSV to add to (default: results/LIST.csv)")
    parser.add_argument("--blimp", default="data/blimp", help="folder of minimal pairs")
    parser.add_argument("--only", default="", metavar="REGEX", help="only the trials whose name it matches")
    parser.add_argument("--keep", action="store_true", help="keep the run folders, out/trials/NAME-SEED")
    args, overrides = parser.parse_known_args(argv)
    with open(args.list, encoding="utf-8") as f:
        entries = yaml.safe_load(f)
    name = os.path.splitext(os.path.basename(args.list))[0]
    run_list(entries, args.results or os.path.join("results", f"{name}.csv"), overrides, args)


if __name__ == "__main__":
    cli.run(main)
