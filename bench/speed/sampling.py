"""Tokens a second that generate writes, with its key-value cache and, for comparison, computing every token anew.

    python -m bench.speed.sampling out/llama-26m/ckpt.pt

Both write the same text with the same weights, taking turns; the ratio of the rounds is printed as min / median / max.
"""

import argparse
import statistics

from bench.common import in_turns, spread
from lab import checkpoint, cli
from model import KVCache

import torch


def recompute(model, ids, tokens):
    """The likeliest tokens after `ids`, each from a forward pass over all of the text so far."""
    ids = list(ids)
    for _ in range(tokens):
        ids.append(model.step(torch.tensor([ids]), KVCache())[0].argmax().item())
    return ids[-tokens:]


def likeliest(logits, ids):
    return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1.0)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--tokens", type=int, help="per text (default: as many as fit into the context)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    model, ckpt = checkpoint.load_model(args.checkpoint)
    start = [ckpt.tokenizer.bos_id]
    tokens = args.tokens or ckpt.config.max_position_embeddings - 1
    texts = {}

    def with_cache():
        texts["cache"] = [token for token, _ in model.generate(start, tokens, pick=likeliest)]

    def without():
        texts["recompute"] = recompute(model, start, tokens)

    seconds = in_turns({"cache": with_cache, "recompute": without}, args.rounds)
    for way, times in seconds.items():
        print(f"{way}_tokens_per_second: {tokens / statistics.median(times):.1f}")
    ratios = [slow / fast for slow, fast in zip(seconds["recompute"], seconds["cache"])]
    print(f"ratio: {spread(ratios)}")
    print(f"tokens: {tokens}")
    print(f"same_text: {texts['cache'] == texts['recompute']}")


if __name__ == "__main__":
    cli.run(main)
