"""Kills training runs at random instants, checkpoint writes included, and looks for a difference.

    python -m tests.kill --kills 100

A tiny run that saves at every step is killed (SIGKILL, or Ctrl-C twice) and continued until it ends; then its weights,
optimiser, losses.csv and best checkpoint are compared, bit for bit, with those of a run that nobody disturbed. Several
kinds of run take turns, each passing its text more than once. After every kill the checkpoints in the folder must be
readable. Prints kills, differences, unreadable checkpoints.
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

from lab import checkpoint, cli, files
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
        if pid := os.fork():
            pids.append(pid)
        else:
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
    """As the kernel does when memory runs out, or a user who is in a hurry."""
    if len(pids) > 1 or rng.random() < 0.7:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    else:
        os.kill(pids[0], signal.SIGINT)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(pids[0], signal.SIGINT)


def losses(folder):
    with open(os.path.join(folder, "losses.csv")) as f:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(f)]


# Times, notes, or compared by losses()
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


def differences(one, other):
    """What differs between two finished runs."""
    last = [checkpoint.read(os.path.join(folder, "last.pt")) for folder in (one, other)]
    best = [checkpoint.read(os.path.join(folder, "ckpt.pt"))["weights"] for folder in (one, other)]
    equal = {part: same(last[0][part], last[1][part]) for part in ("weights", "training")}
    equal |= {"losses.csv": losses(one) == losses(other), "ckpt.pt": same(*best)}
    return [what for what, is_equal in equal.items() if not is_equal]


class Tally:
    """What was done and what was found."""

    def __init__(self):
        self.counts, self.different, self.unreadable = collections.Counter(), [], []

    def look_into(self, folder, status):
        """After a kill: leftovers of a write, and whether the checkpoints can be read."""
        left = os.listdir(folder) if os.path.isdir(folder) else []
        self.counts["kills"] += 1
        self.counts["of_them_ctrl_c_twice"] += status > 0
        self.counts["kills_during_a_write"] += any(name.endswith(".tmp") for name in left)
        for name in {"last.pt", "ckpt.pt"}.intersection(left):
            try:
                checkpoint.load(os.path.join(folder, name))
            except files.UserError as e:
                self.unreadable.append(str(e))


def run_in_parts(command, processes, folder, longest, kills, rng, tally):
    """Starts the command again and again, killing it within `longest` seconds until there were `kills` kills.

    Returns whether it came to its end.
    """
    while True:
        pids = start(train.main, [*command, f"train.out={folder}"], processes)
        if tally.counts["kills"] < kills:
            time.sleep(rng.uniform(0, longest))
            kill(pids, rng)
        status = wait(pids)
        if status == 0:
            return True
        if status not in (-signal.SIGKILL, 128 + signal.SIGINT):
            with open(OUTPUT) as f:
                tally.different.append(f"ended with status {status}: {f.read()[-2000:]}")
            return False
        tally.look_into(folder, status)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=25, help="length of a run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng, tally = random.Random(args.seed), Tally()
    lengths = {}  # seconds that a kind of run takes undisturbed
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        assert wait(start(prepare.main, SMALL)) == 0, "prepare.py failed"
        for number, kind in enumerate(itertools.cycle(KINDS)):
            if tally.counts["kills"] >= args.kills:
                break
            processes, options = KINDS[kind]
            command = [*SMALL, *RUN, *options, f"train.max_steps={args.steps}"]
            if kind not in lengths:
                began = time.time()
                assert wait(start(train.main, [*command, f"train.out={kind}"], processes)) == 0, (
                    "undisturbed, it failed"
                )
                lengths[kind] = time.time() - began
            parts = f"parts{number}"
            if run_in_parts(command, processes, parts, lengths[kind] / 2, args.kills, rng, tally):
                tally.different += [f"{kind}: {what}" for what in differences(kind, parts)]
            tally.counts["runs"] += 1
        os.chdir(ROOT)
    for name, count in tally.counts.items():
        print(f"{name}: {count}")
    print(f"differences: {len(tally.different)}")
    print(f"unreadable_checkpoints: {len(tally.unreadable)}")
    for line in tally.different + tally.unreadable:
        print(line)
    return 1 if tally.different or tally.unreadable else 0


if __name__ == "__main__":
    cli.run(main)
