"""The two parts that model.py writes out itself, beside PyTorch's own: attention in bfloat16, and the loss.

    python -m bench.speed.parts [--dtype bfloat16] [--threads 2]          # three minutes, on a CPU

Forward and backward at each preset's size, in turns; time over ours as least / median / most of the rounds. Attention
is two products and a softmax, beside PyTorch's fused kernel. The loss over the vocabulary goes in chunks, beside
PyTorch's linear_cross_entropy and all logits at once; also how far the gradient is from float64's.
"""

import argparse

from bench.common import in_turns, ratios
from lab import cli
from lab.run.devices import keep_freed_memory
from model import LinearCrossEntropy, attend_written_out

import torch
import torch.nn.functional as F

ATTENTION = {  # windows, heads, tokens, head size
    "sllama": (32, 4, 256, 16),
    "llama-26m": (16, 6, 512, 64),
    "llama-66m": (8, 8, 512, 64),
}
LOSS = {  # tokens, hidden size, pieces
    "sllama": (8192, 64, 32000),
    "llama-26m": (4096, 384, 16000),
    "llama-66m": (4096, 512, 32000),
}


def attentions(B, nh, T, hs):
    """{way: function that runs it forward and backward}"""
    q, k, v = (torch.randn(B, T, nh, hs, dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for _ in range(3))
    grad = torch.randn(B, nh, T, hs, dtype=torch.bfloat16)

    def both(forward):
        return lambda: torch.autograd.grad(forward(), (q, k, v), grad)

    return {
        "ours": both(lambda: attend_written_out(q, k, v, None)),
        "fused": both(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
    }


def losses(N, h, V, dtype):
    """{way: function that runs it forward and backward}, {way: relative error of its gradient by x}"""
    x = torch.randn(N, h).requires_grad_()
    w = (torch.randn(V, h) / h**0.5).requires_grad_()
    targets = torch.randint(V, (N,))

    def both(loss):
        return lambda: torch.autograd.grad(loss(), (x, w))

    ways = {
        "ours": both(lambda: LinearCrossEntropy.apply(x, w, targets, dtype, True)),
        "all logits": both(lambda: F.cross_entropy((x.to(dtype) @ w.to(dtype).T).float(), targets)),
    }
    if hasattr(F, "linear_cross_entropy"):  # from torch 2.13 on
        options = torch.nn.LinearCrossEntropyOptions()
        ways["PyTorch's"] = both(lambda: F.linear_cross_entropy(x.to(dtype), w.to(dtype), targets, options=options))

    first = slice(256)  # float64 takes its time: truth enough
    exact = x.detach()[first].double().requires_grad_()
    F.cross_entropy(exact @ w.detach().double().T, targets[first], reduction="sum").backward()
    errors = {}
    for way, run in ways.items():
        gradient = run()[0][first].double() * N  # the loss is a mean over all tokens
        errors[way] = ((gradient - exact.grad).norm() / exact.grad.norm()).item()
    return ways, errors


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"], help="of the loss")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    for preset, shape in ATTENTION.items():
        for way, text in ratios(in_turns(attentions(*shape), args.rounds), over="ours").items():
            print(f"attention of {preset}, {way}: {text}", flush=True)
    for preset, shape in LOSS.items():
        ways, errors = losses(*shape, getattr(torch, args.dtype))
        for way, text in ratios(in_turns(ways, args.rounds), over="ours").items():
            print(f"loss of {preset}, {way}: {text}, error of the gradient {errors[way]:.1e}", flush=True)


if __name__ == "__main__":
    cli.run(main)
