"""Kills training runs at random instants, checkpoint writes included, and looks for a difference.

    python bench/kill.py --kills 100

A tiny run that saves at every step is killed (SIGKILL) and continued until it ends; then its weights, optimiser, losses.csv and best
checkpoint are compared, bit for bit, with those of a run that nobody disturbed. Several kinds of run take turns. After every kill
the checkpoints in the folder must be readable. Prints kills, differences, unreadable checkpoints.
"""
import argparse
import csv
import os
import random
import signal
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

import checkpoint
import config as configuration
import prepare
import train

SMALL = ["--config", os.path.join(ROOT, "config.yaml"), "--preset", "quick", "data.name=kill", "data.pocket_words=5000", "data.validation_kb=2", "tokenizer.vocab_size=400",
         "model.hidden_size=16", "model.num_hidden_layers=2", "model.num_attention_heads=2", "model.intermediate_size=24", "model.max_position_embeddings=16"]
RUN = ["train.batch_size=4", "train.eval_every=3", "train.save_every=1", "train.eval_windows=4", "train.device=cpu"]
KINDS = {"adamw float32": ["train.dtype=float32"], "adamw bfloat16": ["train.dtype=bfloat16", "train.gradient_accumulation_steps=2"],
         "muon, dropout, averaged weights, float32": ["train.dtype=float32", "train.optimizer=muon", "model.dropout=0.1", "train.ema=0.9"]}


def in_child(function, *args):
    """Runs function(*args) in a forked process, its output thrown away; returns its pid. The parent never computes, so a fork is safe."""
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        status = 1
        try:
            status = function(*args)
        finally:
            os._exit(status or 0)
    return pid


def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def losses(folder):
    with open(os.path.join(folder, "losses.csv")) as f:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(f)]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k not in ("seconds", "rows"))
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list) else a == b


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
    rng, kills, runs, different, unreadable, in_write, start = random.Random(args.seed), 0, 0, [], [], 0, time.time()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        assert wait(in_child(prepare.main, SMALL)) == 0, "prepare.py failed"
        while kills < args.kills:
            kind, options = list(KINDS.items())[runs % len(KINDS)]
            whole, parts = f"whole{runs % len(KINDS)}", f"parts{runs}"
            command = [*SMALL, *RUN, *options, f"train.max_steps={args.steps}"]
            if not os.path.exists(whole):
                began = time.time()
                assert wait(in_child(train.main, [*command, f"train.out={whole}"])) == 0, "the undisturbed run failed"
                length = time.time() - began
            status = None
            while status != 0:
                pid = in_child(train.main, [*command, f"train.out={parts}"])
                if kills < args.kills:
                    time.sleep(rng.uniform(0, length / 2))
                    os.kill(pid, signal.SIGKILL)
                status = wait(pid)
                if status == -signal.SIGKILL:
                    kills += 1
                elif status:
                    different.append(f"{kind}: ended with status {status}")
                    break
                left = os.listdir(parts) if os.path.isdir(parts) else []
                in_write += any(name.endswith(".tmp") for name in left)
                for name in (n for n in ("last.pt", "ckpt.pt") if n in left):
                    try:
                        checkpoint.load(os.path.join(parts, name))
                    except configuration.UserError as e:
                        unreadable.append(str(e))
            if status == 0:
                different += [f"{kind}: {what}" for what in differences(whole, parts)]
            runs += 1
        os.chdir(ROOT)
    print(f"kills: {kills}\nkills_during_a_write: {in_write}\nruns: {runs}\ndifferences: {len(different)}\n"
          f"unreadable_checkpoints: {len(unreadable)}\nseconds: {time.time() - start:.0f}")
    for line in different + unreadable:
        print(line)
    return 1 if different or unreadable else 0


if __name__ == "__main__":
    configuration.run(main)
