"""Causal attention in bfloat16 on a CPU: two products and a softmax, as in model.py, beside PyTorch's fused kernel.

    python -m bench.speed.attention               # about a minute

Forward and backward of one layer, in turns; ratio of the times, min / median / max over the rounds.
"""

from bench.common import in_turns, spread
from lab.run.devices import keep_freed_memory
from model import attend

import torch
import torch.nn.functional as F

SHAPES = {  # windows, heads, tokens, head size
    "sllama": (32, 4, 256, 16),
    "llama-26m": (16, 6, 512, 64),
    "llama-66m": (8, 8, 512, 64),
}


def ratios(B, nh, T, hs, rounds=9):
    """Seconds of the fused kernel over ours, one number a round."""
    q, k, v = (torch.randn(B, T, nh, hs, dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for _ in range(3))
    grad = torch.randn(B, nh, T, hs, dtype=torch.bfloat16)
    seconds = in_turns(
        {
            "ours": lambda: attend(q, k, v).backward(grad),
            "fused": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(grad),
        },
        rounds,
    )
    return [fused / ours for fused, ours in zip(seconds["fused"], seconds["ours"])]


def main():
    keep_freed_memory()
    for name, shape in SHAPES.items():
        size = " x ".join(map(str, shape))
        print(f"{name}: {size}, {torch.get_num_threads()} threads: fused / ours {spread(ratios(*shape))}", flush=True)


if __name__ == "__main__":
    main()
