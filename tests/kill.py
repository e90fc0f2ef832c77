"""Kills training runs at random instants, checkpoint writes included, and looks for a difference.

    python -m tests.kill --kills 100

A tiny run that saves at every step is killed (SIGKILL, or Ctrl-C twice) and continued, up to eight times; then its
weights, optimiser, losses.csv and best checkpoint must be, bit for bit, those of a run that nobody disturbed. Several
kinds of run take turns, each of which passes its text more than once. After every kill the checkpoints in the folder
must be readable. The first difference ends the search.
"""

import argparse
import collections
import csv
import itertools
import os
import pathlib
import random
import signal
import socket
import sys
import tempfile
import time
import traceback

from lab import checkpoint, cli
import prepare
import train

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = ["--config", str(ROOT / "config.yaml")]
SMALL += """
--preset quick data.name=kill data.pocket_words=5000 data.validation_kb=2 tokenizer.vocab_size=400
model.hidden_size=16 model.num_hidden_layers=2 model.num_attention_heads=2 model.intermediate_size=24
model.max_position_embeddings=256""".split()
RUN = ["train.batch_size=4", "train.eval_every=3", "train.save_every=1", "train.eval_windows=4", "train.device=cpu"]
MUON = ["train.dtype=float32", "train.optimizer=muon", "model.dropout=0.1"]
KINDS = {  # name: (processes, settings)
    "muon, dropout, float32": (1, MUON),
    "adamw bfloat16": (1, ["train.dtype=bfloat16", "train.gradient_accumulation_steps=2"]),
    "adamw float32": (1, ["train.dtype=float32"]),
    "two processes, dropout": (2, ["train.dtype=float32", "model.dropout=0.1"]),
}
OUTPUT = "output.txt"  # what the run in progress prints
KILLED = (-signal.SIGKILL, 128 + signal.SIGINT)  # statuses


def start(main, args, processes=1):
    """Runs the command main(args) in forked processes, their output in OUTPUT; returns their pids.

    The parent never computes, so a fork is safe.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pids, output = [], os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # interrupted in the command, not before it
    for rank in range(processes):
        pids.append(os.fork())
        if pids[-1] == 0:
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_RANK=str(rank))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            child(main, args)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    os.close(output)
    return pids


def child(main, args):
    """The command, in a forked process, which ends here."""
    status = 128 + signal.SIGINT  # of a Ctrl-C while another is handled, too
    try:
        torch.set_num_threads(1)  # the models are tiny
        sys.modules["matplotlib.figure"] = None  # no curves.png: that would be most of the time
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        cli.run(lambda: main(args))
    except SystemExit as e:
        status = e.code or 0
    except Exception as e:
        if "save_nargs" not in str(e):  # argparse's, tripping over its own tidying up
            traceback.print_exc()
            status = 1
    finally:
        os._exit(status)


def wait(pids):
    """The exit status of the first process that ended badly, else 0."""
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return next((status for status in statuses if status), 0)


def kill(pids, rng):
    """As the kernel does when memory runs out, or a user in a hurry."""
    if len(pids) > 1 or rng.random() < 0.7:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    else:
        os.kill(pids[0], signal.SIGINT)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(pids[0], signal.SIGINT)


# Times, notes, or compared as losses.csv
MEASURED = ("seconds", "timed_seconds", "timed_tokens", "peak_memory_mb", "changes", "rows")


def same(a, b):
    """Whether two nested structures are equal to the bit, MEASURED aside."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k not in MEASURED)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def contents(folder):
    """{part: value} of what a finished run has left, to be compared."""
    last, best = (checkpoint.read(os.path.join(folder, name)) for name in ("last.pt", "ckpt.pt"))
    with open(os.path.join(folder, "losses.csv"), encoding="utf-8") as f:
        losses = list(csv.DictReader(f))
    return {"weights": last["weights"], "training": last["training"], "ckpt.pt": best["weights"], "losses.csv": losses}


def differences(one, other):
    """The parts in which two finished runs differ."""
    a, b = contents(one), contents(other)
    return [part for part in a if not same(a[part], b[part])]


def run(kind, folder, steps, rng=None, delays=()):
    """Trains to the end, killed so many seconds after each start but the last; returns counts of the kills."""
    processes, options = KINDS[kind]
    command = [*SMALL, *RUN, *options, f"train.max_steps={steps}", f"train.out={folder}"]
    counts = collections.Counter()
    for delay in [*delays, None]:
        pids = start(train.main, command, processes)
        if delay is not None:
            time.sleep(delay)
            kill(pids, rng)
        status = wait(pids)
        if status == 0:
            return counts
        if status not in KILLED or delay is None:
            sys.exit(f"{kind}: ended with status {status}: {pathlib.Path(OUTPUT).read_text()[-2000:]}")
        counts["kills"] += 1
        counts["of_them_ctrl_c_twice"] += status > 0
        counts["kills_during_a_write"] += any(pathlib.Path(folder).glob("*.tmp"))
        for path in pathlib.Path(folder).glob("*.pt"):
            checkpoint.load(str(path))  # UserError if it cannot be read


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=25, help="length of a run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng, counts = random.Random(args.seed), collections.Counter()
    lengths = {}  # seconds that a kind of run takes undisturbed
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if wait(start(prepare.main, SMALL)):
            sys.exit(pathlib.Path(OUTPUT).read_text())
        for number, kind in enumerate(itertools.cycle(KINDS)):
            kills = min(8, args.kills - counts["kills"])
            if kills == 0:
                break
            if kind not in lengths:
                began = time.time()
                run(kind, "whole " + kind, args.steps)
                lengths[kind] = time.time() - began
            delays = [rng.uniform(0, lengths[kind] / 2) for _ in range(kills)]
            counts.update(run(kind, f"parts{number}", args.steps, rng, delays))  # adds; kinds of kills at 0 stay
            if found := differences("whole " + kind, f"parts{number}"):
                sys.exit(f"{kind}: {' and '.join(found)} differ after kills at {delays}")
            counts["runs"] += 1
        os.chdir(ROOT)
    for name, count in counts.items():
        print(f"{name}: {count}")
    print("differences: 0")


if __name__ == "__main__":
    cli.run(main)
