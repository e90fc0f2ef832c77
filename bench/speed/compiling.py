"""What torch.compile costs and gains: each preset as it is, compiled for the first time, and compiled again.

    python -m bench.speed.compiling --presets quick 10m-words-3m [--threads 1 2] [section.key=value ...]

Each row is the first steps of a run of train.py in a process of its own; the preset's corpus must be prepared. PyTorch
keeps what it compiled in a folder: `first` finds it empty, `again` finds there what `first` left. The whole run is
reckoned: what it takes until the end of the first step, and the other steps at the speed of these. Validation and
files are not in it.
"""

import argparse
import os
import tempfile

from bench.common import ENVIRONMENT, write_json
from bench.speed import startup
from lab import cli
from lab.run.data import load_data, plan
from lab.settings import load_config

WAYS = {"not compiled": "false", "first": "true", "again": "true"}


def steps_of(preset, overrides):
    """Optimiser steps of the preset's whole run, on the corpus that is prepared for it."""
    config = load_config(preset, overrides)
    data, _, meta, _ = load_data(config)
    return plan(config, data, meta).steps


def measure(preset, threads, steps, overrides):
    """{way: (seconds to the end of the first step, tokens per second after it, minutes of the whole run)}"""
    whole, found = steps_of(preset, overrides), {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": str(threads)}
        for way, compiled in WAYS.items():
            arguments = [
                "--preset",
                preset,
                *overrides,
                f"train.compile={compiled}",
                "train.eval_windows=1",
                "train.sample_tokens=0",
            ]
            points, block = startup.measure(arguments, steps, environment)
            first = sum(seconds for point, (seconds, _) in points.items() if point != "second step")
            speed = float(block["tokens_per_second"])
            rest = (whole - 1) * float(block["tokens"]) / steps / speed
            found[way] = first, speed, (first + rest) / 60
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presets", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=[os.cpu_count()])
    parser.add_argument("--steps", type=int, default=10, help="of each run; the first three are not in the speed")
    parser.add_argument("--json", help="also write the figures here")
    args, overrides = parser.parse_known_args(argv)
    print(f"{'preset':<16}{'threads':>8}  {'way':<14}{'first step, s':>14}{'tokens/s':>10}{'whole run, min':>16}")
    rows = []
    for preset in args.presets:
        for threads in args.threads:
            for way, (first, speed, minutes) in measure(preset, threads, args.steps, overrides).items():
                print(f"{preset:<16}{threads:>8}  {way:<14}{first:>14.1f}{speed:>10,.0f}{minutes:>16.1f}", flush=True)
                rows.append(
                    {
                        "preset": preset,
                        "threads": threads,
                        "way": way,
                        "first_step_seconds": first,
                        "tokens_per_second": speed,
                        "minutes": minutes,
                    }
                )
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    cli.run(main)
