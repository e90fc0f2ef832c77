"""Tokens a second that sample.py's generate writes, with its key-value cache and, for comparison, computing every token anew.

    python bench/sampling.py out/llama-26m/ckpt.pt

Both write the same text with the same weights, taking turns; the ratio of the rounds is printed as min / median / max.
"""
import argparse
import os
import statistics
import sys
import time

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from lab import checkpoint, commands
from model import KVCache
from sample import generate


def recompute(model, ids, tokens):
    """The likeliest tokens after `ids`, each from a forward pass over all of the text so far."""
    ids = list(ids)
    for _ in range(tokens):
        ids.append(model.step(torch.tensor([ids]), KVCache())[0].argmax().item())
    return ids[-tokens:]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--tokens", type=int, help="per text (default: as many as fit into the context)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    model, ckpt = checkpoint.load_model(args.checkpoint)
    start = [ckpt.tokenizer.bos_id]
    tokens = args.tokens or ckpt.config.max_position_embeddings - 1
    ways = {"cache": lambda: [token for token, _ in generate(model, start, tokens, temperature=0)], "recompute": lambda: recompute(model, start, tokens)}
    speeds, texts = {way: [] for way in ways}, {}
    for _ in range(args.rounds + 1):
        for way, write in ways.items():
            began = time.perf_counter()
            texts[way] = write()
            speeds[way].append(tokens / (time.perf_counter() - began))
    ratios = [a / b for a, b in zip(*(speeds[way][1:] for way in ways))]      # the first round warms up
    for way in ways:
        print(f"{way}_tokens_per_second: {statistics.median(speeds[way][1:]):.1f}")
    print(f"ratio: {min(ratios):.2f} / {statistics.median(ratios):.2f} / {max(ratios):.2f}\ntokens: {tokens}\nsame_text: {texts['cache'] == texts['recompute']}")


if __name__ == "__main__":
    commands.run(main)
