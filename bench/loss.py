"""The loss over the vocabulary: model.LinearCrossEntropy beside PyTorch's linear_cross_entropy and plain logits.

    python bench/loss.py [--dtype bfloat16] [--threads 2]          # two minutes

Forward and backward of the head alone at each preset's size, alternating; time over ours as min / median / max, and how far
loss and gradients are from float64.
"""
import argparse
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from model import LinearCrossEntropy
from train import keep_freed_memory

SHAPES = {"sllama": (8192, 64, 32000), "llama-26m": (4096, 384, 16000), "llama-66m": (4096, 512, 32000)}       # tokens, hidden size, pieces


def ways(dtype):
    def ours(x, w, t):
        return LinearCrossEntropy.apply(x, w, t, 0.0, dtype, True)

    def chunked(x, w, t):
        return F.linear_cross_entropy(x.to(dtype), w.to(dtype), t, options=torch.nn.LinearCrossEntropyOptions())

    def plain(x, w, t):
        return F.cross_entropy((x.to(dtype) @ w.to(dtype).T).float(), t)
    found = {"ours": ours, "plain logits": plain}
    return found | {"F.linear_cross_entropy": chunked} if hasattr(F, "linear_cross_entropy") else found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    for name, (N, h, V) in SHAPES.items():
        torch.manual_seed(0)
        x, w, t = torch.randn(N, h).requires_grad_(), (torch.randn(V, h) / h**0.5).requires_grad_(), torch.randint(V, (N,))
        some = x.detach()[:256].double().requires_grad_()               # float64 of a part is truth enough, and takes a second
        F.cross_entropy(some @ w.detach().double().T, t[:256]).backward()
        seconds = {}
        for r in range(args.rounds + 1):                                # the first is a warm-up
            for way, f in ways(getattr(torch, args.dtype)).items():
                start = time.perf_counter()
                f(x, w, t).backward()
                seconds.setdefault(way, []).append(time.perf_counter() - start)
                if r == 0:
                    error = (x.grad[:256].double() * N / 256 - some.grad).norm() / some.grad.norm()
                    print(f"{name}: {way}: relative error of the gradient {error:.1e}")
                x.grad = w.grad = None
        for way, all_of_it in seconds.items():
            ratios = [a / b for a, b in zip(all_of_it[1:], seconds["ours"][1:])]
            print(f"{name}: {N} x {h} x {V}, {args.dtype}, {args.threads} threads: {way}: {statistics.median(all_of_it[1:]):.3f} s, over ours "
                  + " / ".join(f"{f(ratios):.2f}" for f in (min, statistics.median, max)), flush=True)


if __name__ == "__main__":
    main()
