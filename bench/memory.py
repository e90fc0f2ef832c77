"""Peak memory of training: each preset with gradient checkpointing on and off, with our loss and with F.cross_entropy over all logits at once.

    python bench/memory.py                                              # 15 minutes on one core
    python bench/memory.py --presets llama-66m --batch 4
    python bench/memory.py --cell chunked --preset llama-66m train.max_steps=2 train.epochs=null     # one run in this process: train.py's own output

Each cell is `train.py` itself in a process of its own: two optimiser steps of two passes, with validation and both checkpoints, at the
preset's batch and context, on random tokens of the preset's vocabulary, so no prepared text is needed. On a CPU the figure is the most
memory the process ever held (Python and PyTorch, about 0.3 GB, included); on a GPU what PyTorch had allocated. A cell of all logits that
does not fit into what the machine has free is left out: it may take other programs down with it.
"""
import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, ROOT)
from lab import commands
from lab import settings as configuration


def random_data(config, T):
    """Stands in for train.load_data: random tokens of the full vocabulary, a hundred batches of them, and no tokenizer to speak of."""
    import types

    import numpy as np

    from lab.data import TokenDataset       # not up there, it loads torch: a process starts with its parent's peak

    V, s = config.model.vocab_size, config.train
    with tempfile.NamedTemporaryFile() as f:
        np.random.default_rng(0).integers(3, V, 100 * s.batch_size * T + 1).astype("<u2").tofile(f.name)
        windows = TokenDataset(f.name, T, V, s.seed)
    counts = {"tokens": len(windows.tokens), "words": len(windows.tokens), "bytes": len(windows.tokens), "lines": 1, "sha256": ""}
    meta = {"corpus": "random tokens", "name": "random", "vocab_size": V, "tokens_per_word": 1.0, "train": counts, "val": counts, "pairs": None}
    return windows, windows, meta, types.SimpleNamespace(model_bytes=b"none", bos_id=1, sha256="", vocab_size=V)


def cell(loss, arguments):
    """train.main(arguments) on random tokens; loss: chunked, or plain for all logits at once. Prints what the first step took, compiling included."""
    import csv

    import torch.nn.functional as F

    import model
    import train
    train.load_data = random_data
    if loss == "plain":
        model.Model.loss = lambda self, x, targets: F.cross_entropy(self.lm_head(x).flatten(0, 1), targets.flatten())
    out = configuration.parse_args(argparse.ArgumentParser(), arguments)[1].out_dir
    status = train.main(arguments)
    with open(os.path.join(out, "losses.csv"), encoding="utf-8") as f:
        print("first_step_seconds:", list(csv.DictReader(f))[1]["seconds"])
    return status


def measure(loss, arguments, timeout=None):
    """Runs a cell in a process of its own; returns the `key: value` lines at the end of its output, or {"failed": why}."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, os.path.abspath(__file__), "--cell", loss, *arguments, "train.resume=never", f"train.out={out}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {timeout:.0f} s"}
    if done.returncode:
        why = "killed, which is what Linux does when memory is out" if done.returncode == -9 else (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"failed": why}
    return dict(line.split(": ", 1) for line in done.stdout.splitlines()[-20:] if ": " in line)


def free_memory():
    """Bytes that Linux can give to new programs; infinite where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as f:
            return 1024 * next(int(line.split()[1]) for line in f if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


def needed(config, loss):
    """Bytes that the logits take, seen here: 15 to 25 for each, in two precisions, with softmax and gradients; 0 if they are made in chunks."""
    return 25 * config.train.batch_size * config.model.max_position_embeddings * config.model.vocab_size if loss == "plain" else 0


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--cell"]:
        return cell(argv[1], argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presets", nargs="+", default=["llama-66m", "llama-26m", "sllama"])
    parser.add_argument("--batch", type=int, help="windows per pass (default: the preset's)")
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value", help="settings of every cell, e.g. train.device=cuda")
    parser.add_argument("--json", help="also write the figures here")
    args = parser.parse_args(argv)
    cells = []
    steps = ["train.max_steps=2", "train.epochs=null", "train.gradient_accumulation_steps=2", "train.eval_windows=1", "train.sample_tokens=0", "train.warmup=0"]
    print(f"{'preset':<12}{'checkpointing':>15}{'loss':>10}{'peak MB':>10}{'s a step':>10}", flush=True)
    for preset, checkpointing, loss in itertools.product(args.presets, ("true", "false"), ("chunked", "plain")):
        batch = [f"train.batch_size={args.batch}"] if args.batch else []
        config = configuration.load_config(preset, [*batch, *args.set])
        if not config.train.device.startswith("cuda") and needed(config, loss) > free_memory():
            result = {"failed": f"left out: about {needed(config, loss) / 1e9:.0f} GB"}
        else:
            result = measure(loss, ["--preset", preset, *steps, f"train.gradient_checkpointing={checkpointing}", *batch, *args.set])
        cells.append({"preset": preset, "checkpointing": checkpointing == "true", "loss": loss, "batch": args.batch, **result})
        if "failed" in result:
            print(f"{preset:<12}{'on' if checkpointing == 'true' else 'off':>15}{loss:>10}    {result['failed']}", flush=True)
        else:
            seconds = float(result["seconds"]) / int(result["steps"])
            print(f"{preset:<12}{'on' if checkpointing == 'true' else 'off':>15}{loss:>10}{result['peak_memory_mb']:>10}{seconds:>10.1f}", flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(cells, f, indent=1)
    return 1 if any("failed" in c and not c["failed"].startswith("left out") for c in cells) else 0


if __name__ == "__main__":
    commands.run(main)
