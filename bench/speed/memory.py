"""Peak memory of training: each preset with gradient checkpointing and without, our loss and all logits at once.

    python -m bench.speed.memory                                              # 15 minutes on one core
    python -m bench.speed.memory --presets llama-66m --batch 4
    python -m bench.speed.memory --cell chunked --preset llama-66m train.max_steps=2 train.epochs=null   # one run, here

Each cell is `train.py` itself in a process of its own: two optimiser steps of two passes, with validation and both
checkpoints, at the preset's batch and context, on random tokens of the preset's vocabulary, so no prepared text is
needed. On a CPU the figure is the most memory the process ever held (Python and PyTorch, about 0.3 GB, included); on a
GPU what PyTorch had allocated. A cell of all logits (F.cross_entropy) that does not fit into what the machine has free
is left out: it may take other programs down with it.
"""

import argparse
import csv
import itertools
import os
import subprocess
import sys
import tempfile
import types

from bench.common import ENVIRONMENT, closing_block, last_line, module, write_json
from lab import cli
from lab import settings as configuration
from lab.run.data import TokenDataset
from model import Model
import train

import numpy as np
import torch.nn.functional as F

STEPS = [
    "train.max_steps=2",
    "train.epochs=null",
    "train.gradient_accumulation_steps=2",
    "train.eval_windows=1",
    "train.sample_tokens=0",
    "train.warmup=0",
]


def random_data(config):
    """Stands in for lab.run.data.load_data: a hundred batches of random tokens, and no tokenizer to speak of."""
    T, vocab, s = config.model.max_position_embeddings, config.model.vocab_size, config.train
    with tempfile.NamedTemporaryFile() as f:
        np.random.default_rng(0).integers(3, vocab, 100 * s.batch_size * T + 1).astype("<u2").tofile(f.name)
        windows = TokenDataset(f.name, T, vocab, s.seed)
    n = len(windows.tokens)
    counts = {"tokens": n, "words": n, "bytes": n, "lines": 1, "sha256": ""}
    meta = {
        "corpus": "random tokens",
        "name": "random",
        "vocab_size": vocab,
        "tokens_per_word": 1.0,
        "train": counts,
        "val": counts,
        "pairs": None,
    }
    tokenizer = types.SimpleNamespace(model_bytes=b"none", bos_id=1, sha256="", vocab_size=vocab)
    return windows, windows, meta, tokenizer


def all_logits(model, x, targets):
    """Model.loss with a (tokens x vocabulary) tensor."""
    return F.cross_entropy(model.lm_head(x).flatten(0, 1), targets.flatten())


def cell(loss, arguments):
    """train.main(arguments) on random tokens, loss "chunked" or "plain"; prints what the first step took, too."""
    train.load_data = random_data
    if loss == "plain":
        Model.loss = all_logits
    status = train.main(arguments)
    out = configuration.parse_args(argparse.ArgumentParser(), arguments)[1].out_dir
    with open(os.path.join(out, "losses.csv"), encoding="utf-8") as f:
        first = list(csv.DictReader(f))[1]
    print(f"first_step_seconds: {first['seconds']}")
    return status


def measure(loss, arguments, timeout=None):
    """Runs a cell in a process of its own: {key: value} of train.py's closing block, or {"failed": why}."""
    with tempfile.TemporaryDirectory() as out:
        command = module("bench.speed.memory", "--cell", loss, *arguments, "train.resume=never", f"train.out={out}")
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT)
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {timeout:.0f} s"}
    if done.returncode == -9:
        return {"failed": "killed, which is what Linux does when memory is out"}
    if done.returncode:
        return {"failed": last_line(done.stderr)}
    return closing_block(done.stdout)


def free_memory():
    """Bytes that Linux can give to new programs; infinite where it does not say."""
    try:
        with open("/proc/meminfo") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


def needed(config, loss):
    """Bytes of the logits: 15 to 25 each were seen, in two precisions, with softmax and gradients; 0 in chunks."""
    if loss == "chunked":
        return 0
    return 25 * config.train.batch_size * config.model.max_position_embeddings * config.model.vocab_size


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--cell"]:
        return cell(argv[1], argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presets", nargs="+", default=["llama-66m", "llama-26m", "sllama"])
    parser.add_argument("--batch", type=int, help="windows per pass (default: the preset's)")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="section.key=value",
        help="settings of every cell, e.g. train.device=cuda",
    )
    parser.add_argument("--json", help="also write the figures here")
    args = parser.parse_args(argv)
    given = args.set if args.batch is None else [f"train.batch_size={args.batch}", *args.set]
    cells, failed = [], False
    print(f"{'preset':<12}{'checkpointing':>15}{'loss':>10}{'peak MB':>10}{'s a step':>10}", flush=True)
    for preset, checkpointing, loss in itertools.product(args.presets, (True, False), ("chunked", "plain")):
        config = configuration.load_config(preset, given)
        size = needed(config, loss)
        if size > free_memory() and not config.train.device.startswith("cuda"):
            result = {"failed": f"left out: about {size / 1e9:.0f} GB"}
        else:
            switch = f"train.gradient_checkpointing={str(checkpointing).lower()}"
            result = measure(loss, ["--preset", preset, *STEPS, switch, *given])
            failed = failed or "failed" in result
        cells.append({"preset": preset, "checkpointing": checkpointing, "loss": loss, "batch": args.batch, **result})
        row = f"{preset:<12}{'on' if checkpointing else 'off':>15}{loss:>10}"
        if "failed" in result:
            print(f"{row}    {result['failed']}", flush=True)
        else:
            seconds = float(result["seconds"]) / int(result["steps"])
            print(f"{row}{result['peak_memory_mb']:>10}{seconds:>10.1f}", flush=True)
    if args.json:
        write_json(args.json, cells)
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
