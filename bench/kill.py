"""Kills training runs at random instants, checkpoint writes included, and looks for a difference.

    python bench/kill.py --kills 100

A tiny run that saves at every step is killed (SIGKILL, or Ctrl-C twice) and continued until it ends; then its weights, optimiser,
losses.csv and best checkpoint are compared, bit for bit, with those of a run that nobody disturbed. Several kinds of run take turns, each
passing its text more than once. After every kill the checkpoints in the folder must be readable. Prints kills, differences, unreadable checkpoints.
"""
import argparse
import csv
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

import prepare
import train
from lab import checkpoint, commands, files

SMALL = ["--config", os.path.join(ROOT, "config.yaml"), "--preset", "quick", "data.name=kill", "data.pocket_words=5000", "data.validation_kb=2", "tokenizer.vocab_size=400",
         "model.hidden_size=16", "model.num_hidden_layers=2", "model.num_attention_heads=2", "model.intermediate_size=24", "model.max_position_embeddings=256"]
RUN = ["train.batch_size=4", "train.eval_every=3", "train.save_every=1", "train.eval_windows=4", "train.device=cpu"]
KINDS = {"muon, dropout, averaged weights, float32": (1, ["train.dtype=float32", "train.optimizer=muon", "model.dropout=0.1", "train.ema=0.9"]),
         "adamw bfloat16": (1, ["train.dtype=bfloat16", "train.gradient_accumulation_steps=2"]), "adamw float32": (1, ["train.dtype=float32"]),
         "two processes, dropout": (2, ["train.dtype=float32", "model.dropout=0.1"])}
MEASURED = ("seconds", "timed_seconds", "timed_tokens", "peak_memory_mb", "rows")      # times, or compared by losses()
OUTPUT = "output.txt"                                                   # what the run in progress prints


def start(main, args, processes=1):
    """Runs the command main(args) in forked processes, their output in OUTPUT; returns their pids. The parent never computes, so a fork is safe."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pids, output = [], os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])           # a child is interrupted in the command, not in the lines that lead there
    for rank in range(processes):
        if pid := os.fork():
            pids.append(pid)
            continue
        status = 128 + signal.SIGINT                                    # also of a Ctrl-C that comes while another is being handled
        try:
            sys.modules["matplotlib.figure"] = None                     # no curves.png, which would be most of the time
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            os.dup2(output, 1)
            os.dup2(output, 2)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            commands.run(lambda: main(args))
        except SystemExit as e:
            status = e.code or 0
        except Exception as e:
            if "save_nargs" not in str(e):                              # argparse's, which trips over its own tidying up when interrupted
                traceback.print_exc()
                status = 1
        finally:
            os._exit(status)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    os.close(output)
    return pids


def wait(pids):
    """The exit status of the first process that ended badly, else 0."""
    return next(filter(None, [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), 0)


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


def same(a, b):
    """Whether two nested structures of tensors and numbers are equal to the bit, times aside (and rows, which losses.csv shows)."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k not in MEASURED)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b


def differences(one, other):
    """What differs between two finished runs."""
    a, b = (checkpoint.read(os.path.join(f, "last.pt")) for f in (one, other))
    best = [checkpoint.read(os.path.join(f, "ckpt.pt"))["weights"] for f in (one, other)]
    return [name for name, equal in (("weights", same(a["weights"], b["weights"])), ("training state", same(a["training"], b["training"])),
                                     ("losses.csv", losses(one) == losses(other)), ("ckpt.pt", same(*best))) if not equal]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=25, help="length of a run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng, kills, interrupts, runs, different, unreadable, in_write, started = random.Random(args.seed), 0, 0, 0, [], [], 0, time.time()
    lengths = {}                                                        # seconds that a kind of run takes undisturbed
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        assert wait(start(prepare.main, SMALL)) == 0, "prepare.py failed"
        while kills < args.kills:
            kind, (processes, options) = list(KINDS.items())[runs % len(KINDS)]
            whole, parts = f"whole{runs % len(KINDS)}", f"parts{runs}"
            command = [*SMALL, *RUN, *options, f"train.max_steps={args.steps}"]
            if not os.path.exists(whole):
                began = time.time()
                assert wait(start(train.main, [*command, f"train.out={whole}"], processes)) == 0, "the undisturbed run failed"
                lengths[kind] = time.time() - began
            status = None
            while status != 0:
                pids = start(train.main, [*command, f"train.out={parts}"], processes)
                if kills < args.kills:
                    time.sleep(rng.uniform(0, lengths[kind] / 2))
                    kill(pids, rng)
                status = wait(pids)
                if status in (-signal.SIGKILL, 128 + signal.SIGINT):
                    kills += 1
                    interrupts += status > 0
                elif status:
                    different.append(f"{kind}: ended with status {status}: {open(OUTPUT).read()[-2000:]}")
                    break
                left = os.listdir(parts) if os.path.isdir(parts) else []
                in_write += any(name.endswith(".tmp") for name in left)
                for name in (n for n in ("last.pt", "ckpt.pt") if n in left):
                    try:
                        checkpoint.load(os.path.join(parts, name))
                    except files.UserError as e:
                        unreadable.append(str(e))
            if status == 0:
                different += [f"{kind}: {what}" for what in differences(whole, parts)]
            runs += 1
        os.chdir(ROOT)
    print(f"kills: {kills}\nof_them_ctrl_c_twice: {interrupts}\nkills_during_a_write: {in_write}\nruns: {runs}\ndifferences: {len(different)}\n"
          f"unreadable_checkpoints: {len(unreadable)}\nseconds: {time.time() - started:.0f}")
    for line in different + unreadable:
        print(line)
    return 1 if different or unreadable else 0


if __name__ == "__main__":
    commands.run(main)
