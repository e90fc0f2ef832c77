"""What the benchmarks share: commands in processes of their own, timing in turns, how ratios are printed."""

import json
import os
import statistics
import sys
import time

from lab.files import atomic_write

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENVIRONMENT = {**os.environ, "PYTHONPATH": ROOT}  # lets `python -m bench...` start in any folder


def script(name, *arguments):
    """The command line of one of the project's commands: script("train.py", "--preset", "quick")."""
    return [sys.executable, os.path.join(ROOT, name), *arguments]


def module(name, *arguments):
    """The command line of a benchmark; it needs ENVIRONMENT where the current folder is not the checkout."""
    return [sys.executable, "-m", name, *arguments]


def closing_block(output):
    """{key: value} of the `key: value` lines with which our commands end."""
    found = {}
    for line in output.splitlines()[-30:]:
        key, colon, value = line.partition(": ")
        if colon and key.isidentifier():
            found[key] = value
    return found


def last_line(text):
    """The last line of a command's error output, which says why it failed."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no output"


def in_turns(ways, rounds):
    """{name: [seconds]}: calls each function of `ways` {name: function} once a round; a first one warms up uncounted.

    In turns, so that a machine that is busy with other work is busy for all.
    """
    seconds = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, function in ways.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def min_median_max(values, digits=2):
    return [round(f(values), digits) for f in (min, statistics.median, max)]


def spread(values):
    """Text: min / median / max."""
    return " / ".join(f"{value:.2f}" for value in min_median_max(values))


def write_json(path, tree):
    atomic_write(path, json.dumps(tree, indent=1) + "\n")
