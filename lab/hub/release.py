"""A checkpoint to give away: the same model, its weights in bfloat16, which halves the file.

    python -m lab.hub.release out/NAME/ckpt.pt models/NAME.pt

Every command reads it as it reads any checkpoint. Scores belong to one file: score this one again.
"""

import argparse

from lab import checkpoint, cli

import torch


def release(path, target):
    """Writes checkpoint `path` to `target` with weights in bfloat16. Raises UserError."""
    ckpt = checkpoint.load(path)
    weights = {name: w.to(torch.bfloat16) for name, w in ckpt.weights.items()}
    provenance = {**ckpt.provenance, "released_from_sha256": ckpt.sha256}
    checkpoint.save(target, checkpoint.make(ckpt.config, weights, ckpt.tokenizer.model_bytes, provenance))


def main(argv=None):
    p = argparse.ArgumentParser(description="A checkpoint with its weights in bfloat16, to give away.")
    p.add_argument("checkpoint")
    p.add_argument("target", help="the file to write")
    args = p.parse_args(argv)
    release(args.checkpoint, args.target)
    print(f"checkpoint: {args.target}")


if __name__ == "__main__":
    cli.run(main)
