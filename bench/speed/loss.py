"""The loss over the vocabulary: model.LinearCrossEntropy beside PyTorch's linear_cross_entropy and plain logits.

    python -m bench.speed.loss [--dtype bfloat16] [--threads 2]          # two minutes

Forward and backward of the head alone at each preset's size, in turns; time over ours as min / median / max, and how
far the gradient is from float64's.
"""

import argparse
import statistics

from bench.common import in_turns, spread
from lab.run.devices import keep_freed_memory
from model import LinearCrossEntropy

import torch
import torch.nn.functional as F

SHAPES = {  # tokens, hidden size, pieces
    "sllama": (8192, 64, 32000),
    "llama-26m": (4096, 384, 16000),
    "llama-66m": (4096, 512, 32000),
}


def losses(dtype):
    """{name: loss(x, w, targets)}"""

    def ours(x, w, t):
        return LinearCrossEntropy.apply(x, w, t, 0.0, dtype, True)

    def plain_logits(x, w, t):
        return F.cross_entropy((x.to(dtype) @ w.to(dtype).T).float(), t)

    def pytorch_chunked(x, w, t):
        return F.linear_cross_entropy(x.to(dtype), w.to(dtype), t, options=torch.nn.LinearCrossEntropyOptions())

    found = {"ours": ours, "plain logits": plain_logits}
    if hasattr(F, "linear_cross_entropy"):  # from torch 2.13 on
        found["F.linear_cross_entropy"] = pytorch_chunked
    return found


def gradient_error(loss, x, w, t, tokens=256):
    """Relative distance of d loss / d x from float64's, for the first tokens: truth enough, and it takes a second."""
    exact = x.detach()[:tokens].double().requires_grad_()
    F.cross_entropy(exact @ w.detach().double().T, t[:tokens]).backward()
    loss(x, w, t).backward()
    ours = x.grad[:tokens].double() * len(x) / tokens  # the loss is a mean over all tokens
    x.grad = w.grad = None
    return ((ours - exact.grad).norm() / exact.grad.norm()).item()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    for name, (N, h, V) in SHAPES.items():
        torch.manual_seed(0)
        x = torch.randn(N, h).requires_grad_()
        w = (torch.randn(V, h) / h**0.5).requires_grad_()
        t = torch.randint(V, (N,))

        def step(loss, x=x, w=w, t=t):
            loss(x, w, t).backward()
            x.grad = w.grad = None

        ways = {way: (lambda loss=loss: step(loss)) for way, loss in losses(getattr(torch, args.dtype)).items()}
        for way, loss in losses(getattr(torch, args.dtype)).items():
            print(f"{name}: {way}: relative error of the gradient {gradient_error(loss, x, w, t):.1e}")
        seconds = in_turns(ways, args.rounds)
        for way, times in seconds.items():
            ratios = [theirs / ours for theirs, ours in zip(times, seconds["ours"])]
            print(
                f"{name}: {N} x {h} x {V}, {args.dtype}, {args.threads} threads: {way}: "
                f"{statistics.median(times):.3f} s, over ours {spread(ratios)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
