"""Runs a list of trainings, scores each, and keeps a row of every one, failures too, in results/LIST.csv.

    python bench/trials.py bench/tuning.yaml --blimp data/blimp [--only REGEX] [data.source=FOLDER ...]

The list is YAML: [{name, preset, seeds: [0, 1], split: dev, set: [section.key=value, ...]}, ...]. Settings on the command line go with every
trial. Recipes are chosen with `split: dev`, which reads the development tenth of the pairs only; the others are scored with `split: all`.
A trial that has a row is not run again, and one that was interrupted goes on from its last.pt, so the same command continues the list.
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

import yaml

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from lab import checkpoint, commands
from lab import settings as configuration
from lab.files import UserError, atomic_write
from model import parameter_counts

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COLUMNS = ["name", "seed", "preset", "settings", "parameters", "words", "epochs", "tokens", "steps", "minutes", "tokens_per_second", "peak_memory_mb", "device", "val_loss",
           "bits_per_byte", "split", "pairs", "ties", "accuracy", "accuracy_dev", "accuracy_test", "phenomena", "corpus", "commit", "failed"]


def command(script, *args):
    """Runs one of the project's commands, its output on the terminal; returns that output. UserError with its last lines if it fails."""
    process = subprocess.Popen([sys.executable, os.path.join(HERE, script), *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        sys.stdout.write(line)
        lines.append(line)
    if process.wait() in (130, 143):                                    # asked to end: the row is not finished
        raise KeyboardInterrupt
    if process.returncode:
        raise UserError(f"{script} failed: {' '.join(''.join(lines[-2:]).split())[-300:]}")
    return "".join(lines)


def trial(entry, seed, overrides, blimp, keep):
    """Prepares, trains and scores; returns the row."""
    name, settings = entry["name"], entry.get("set", [])
    out = os.path.join("out", "trials", f"{name}-{seed}")
    given = ["--preset", entry["preset"], *settings, *overrides, f"train.seed={seed}", f"train.out={out}"]
    row = {"name": name, "seed": seed, "preset": entry["preset"], "settings": " ".join(settings)}
    try:
        if not os.path.exists(os.path.join(configuration.load_config(entry["preset"], [*settings, *overrides]).data_dir, "meta.json")):
            command("prepare.py", *given, "eval.data=" + blimp)
        output = command("train.py", *given)
        block = dict(line.split(": ", 1) for line in output.splitlines() if re.match(r"\w+: ", line))
        best = checkpoint.load(os.path.join(out, "ckpt.pt"))
        made = best.provenance
        row |= {"parameters": sum(parameter_counts(best.config).values()), "words": block["words"], "tokens": block["tokens"], "steps": block["steps"],
                "epochs": round(made["epochs"] * int(block["steps"]) / max(1, made["steps"]), 2), "minutes": round(float(block["seconds"]) / 60, 2),
                "tokens_per_second": block["tokens_per_second"], "peak_memory_mb": block["peak_memory_mb"], "device": made["device"], "val_loss": block["val_loss"],
                "bits_per_byte": block["val_bits_per_byte"], "corpus": block["corpus"], "commit": made["commit"]}
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "scores.json")
            command("eval_blimp.py", os.path.join(out, "ckpt.pt"), "--data", blimp, "--split", entry.get("split", "dev"), "--json", path)
            with open(path, encoding="utf-8") as f:
                scores = json.load(f)
        row |= {key: scores.get(key) for key in ("pairs", "ties", "accuracy", "accuracy_dev", "accuracy_test")}
        row |= {"split": entry.get("split", "dev"), "phenomena": json.dumps({k: round(100 * v["accuracy"], 2) for k, v in scores["phenomena"].items()})}
        if not keep:
            shutil.rmtree(out)
    except UserError as e:
        row["failed"] = str(e)
    return row


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("list", help="YAML file of trials")
    parser.add_argument("--blimp", default="data/blimp", help="folder of minimal pairs")
    parser.add_argument("--only", default="", help="regular expression: only the trials whose name it matches")
    parser.add_argument("--results", help="CSV to add to (default: results/LIST.csv)")
    parser.add_argument("--keep", action="store_true", help="keep the run folders, out/trials/NAME-SEED")
    args, overrides = parser.parse_known_args(argv)
    with open(args.list, encoding="utf-8") as f:
        entries = yaml.safe_load(f)
    path = args.results or os.path.join("results", os.path.splitext(os.path.basename(args.list))[0] + ".csv")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    run_list(entries, path, overrides, args)


def read(path):
    if not os.path.exists(path):
        return []
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def run_list(entries, path, overrides, args):
    """Runs what has no row yet, round after round over the seeds, so that a cut list has every trial once."""
    todo = [(seed_at, entry, seed) for entry in entries if re.search(args.only, entry["name"]) for seed_at, seed in enumerate(entry.get("seeds", [0]))]
    for _, entry, seed in sorted(todo, key=lambda t: t[0]):
        rows = read(path)
        if any((r["name"], r["seed"], r["settings"]) == (entry["name"], str(seed), " ".join(entry.get("set", []))) for r in rows):
            continue
        print(f"\n=== {entry['name']}, seed {seed}", flush=True)
        row = trial(entry, seed, overrides, args.blimp, args.keep)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*read(path), row])
        atomic_write(path, text.getvalue())


if __name__ == "__main__":
    commands.run(main)
