"""One process against several under torchrun: the same losses, step by step, whatever is switched on.

    python prepare.py --preset quick
    python -m bench.experiments.processes [--processes 2] [--steps 100] [section.key=value ...]

Trains the quick preset in float32, plain and with all of accumulation, sharing, checkpointing, masked windows and
torch.compile, and prints the largest difference of the training and validation losses. Run folders go to a temporary
place. SLlama's own learning rate is used for the second: at the preset's 2e-3, PWA leaves its plateau at step 60 so
suddenly that rounding is multiplied by a thousand there, with one process as with two.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile

from bench.common import script
from lab import cli
from lab.files import UserError

SETTINGS = {
    "plain": [],
    "everything": [
        "train.gradient_accumulation_steps=2",
        "train.batch_size=16",
        "train.gradient_checkpointing=true",
        "train.mntp=0.25",
        "train.compile=true",
        "train.learning_rate=4e-4",
        "model.layer_sharing=share",
        "model.attention=pwa",
        "model.mlp=shared_projection",
        "model.embedding=repeat",
    ],
}


def losses(command, settings, out):
    """All training and validation losses of a run, in the order of losses.csv."""
    command = [*command, "--preset", "quick", *settings, f"train.out={out}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(settings)}: " + " ".join(done.stderr.split())[-300:])
    found = []
    with open(os.path.join(out, "losses.csv"), encoding="utf-8") as f:
        for row in csv.DictReader(f):
            found += [float(row[column]) for column in ("train_loss", "val_loss") if row[column]]
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    args, overrides = parser.parse_known_args(argv)
    one_process = script("train.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.processes}"]
    length = ["train.dtype=float32", "train.sample_tokens=0", f"train.max_steps={args.steps}", "train.eval_every=50"]
    for name, settings in SETTINGS.items():
        settings = [*length, *settings, *overrides]
        with tempfile.TemporaryDirectory() as folder:
            one = losses(one_process, settings, os.path.join(folder, "one"))
            many = losses([*torchrun, one_process[1]], settings, os.path.join(folder, "many"))
        gaps = [abs(a - b) for a, b in zip(one, many, strict=True)]
        print(
            f"{name}: {args.steps} steps, {len(one)} losses from {one[0]:.4f} to {one[-1]:.4f}, "
            f"1 against {args.processes} processes: largest difference {max(gaps):.1e}, "
            f"of the first half {max(gaps[: len(gaps) // 2]):.1e}",
            flush=True,
        )


if __name__ == "__main__":
    cli.run(main)
