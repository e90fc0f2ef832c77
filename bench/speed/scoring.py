"""How close eval_blimp.py comes to what the machine's own float32 products and exponentials allow.

    python -m bench.speed.scoring out/sllama/ckpt.pt --data data/blimp [--pairs 100] [--threads 2]

On paper: the layers' products for each token that is computed, sentences that begin alike sharing what they begin with;
the head's products and one exponential a piece for each token that another one follows. The least time is their sum at
the rates that `ceilings` measures here; `of ceiling` is that over the time taken. On a CPU.
"""

import argparse
import time

from bench.speed.roofline import seconds, work
from lab import checkpoint, cli
from lab.score import scoring, tries
from lab.score.pairs import read_pairs
from model import sharing

import torch
import torch.nn.functional as F

CPU = torch.device("cpu")


def on_paper(c, batches):
    """(tokens computed, tokens followed by another, FLOPs of the products, exponentials) of Batches of tries."""
    parts = work(c, 1)
    layers = sum(parts[part][0] for part in ("embedding", "attention matrices", "MLP")) / 3  # forward: a third
    runs = len(sharing(c)[2])
    tokens = followed = flops = exps = 0
    for batch in batches:
        seen = int((batch.depth + 1).sum())  # tokens that the tokens attend to
        n = len(batch.followed[0])
        tokens += batch.ids.size
        followed += n
        flops += layers * batch.ids.size + 4 * runs * c.hidden_size * seen + 2 * c.hidden_size * c.vocab_size * n
        exps += runs * c.num_attention_heads * seen + c.vocab_size * n
    return tokens, followed, flops, exps


def ceilings(h, vocab):
    """(FLOP/s of float32 products, the better of PyTorch's two libraries; exponentials/s)"""
    rates = []
    for n, k, m in ((2048, 2048, 2048), (512, h, vocab)):
        x, w = torch.randn(n, k), torch.randn(m, k)

        def onednn(x=x, w=w):
            with tries.OneDNN():
                F.linear(x, w)

        rates += [2 * n * k * m / seconds(once, CPU) for once in (lambda x=x, w=w: F.linear(x, w), onednn)]
    x, y = torch.randn(2, 2**18)
    return max(rates), len(x) / seconds(lambda: torch.exp(x, out=y), CPU)


@torch.no_grad()
def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("checkpoint")
    p.add_argument("--data", default="data/blimp")
    p.add_argument("--pairs", type=int, help="only the first so many of each paradigm")
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    model, ckpt = checkpoint.load_model(args.checkpoint)
    pairs, _ = read_pairs(args.data, args.pairs)

    start = time.perf_counter()
    sentences = scoring.tokenize(ckpt.tokenizer, [pair[side] for pair in pairs for side in ("good", "bad")])
    tokenising = time.perf_counter() - start
    different = list(dict.fromkeys(sentences))
    firsts = [1] * len(different)
    tokens, followed, flops, exps = on_paper(ckpt.config, tries.batches(different, firsts, 2048))
    start = time.perf_counter()
    tries.log_likelihoods(model, different, firsts)
    taken = time.perf_counter() - start

    products, exp = ceilings(ckpt.config.hidden_size, ckpt.config.vocab_size)
    least = flops / products + exps / exp
    written = sum(len(ids) - 1 for ids in sentences)
    print(f"{len(pairs):,} pairs of {written:,} tokens: {tokens:,} computed, {followed:,} followed by another")
    print(
        f"least: {flops / 1e12:.2f} TFLOP at {products / 1e9:.0f} GFLOP/s and {exps / 1e9:.1f} G exponentials at "
        f"{exp / 1e9:.2f} G/s, {flops / products:.1f} + {exps / exp:.1f} s"
    )
    print(f"tokenising: {tokenising:.1f} s")
    print(f"scoring: {taken:.1f} s")
    print(f"of_ceiling: {least / taken:.3f}")


if __name__ == "__main__":
    cli.run(main)
