"""Causal attention in bfloat16 on a CPU: two matrix products and a softmax, as in model.attention, beside PyTorch's fused kernel.

    python bench/attention.py               # about a minute

Forward and backward of one layer, alternating; ratio of the times, min / median / max over the rounds.
"""
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from model import attention
from train import keep_freed_memory

SHAPES = {"sllama": (32, 4, 256, 16), "llama-26m": (16, 6, 512, 64), "llama-66m": (8, 8, 512, 64)}      # windows, heads, tokens, head size


def seconds(f, tensors, grad):
    start = time.perf_counter()
    f(*tensors).backward(grad)
    return time.perf_counter() - start


def main(rounds=9):
    keep_freed_memory()
    for name, (B, nh, T, hs) in SHAPES.items():
        tensors = [torch.randn(B, T, nh, hs, dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for _ in range(3)]
        grad, ratios = torch.randn(B, nh, T, hs, dtype=torch.bfloat16), []
        for _ in range(rounds + 1):
            ours = seconds(lambda q, k, v: attention(q, k, v, None, None), tensors, grad)
            fused = seconds(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), tensors, grad)
            ratios.append(fused / ours)
        ratios = ratios[1:]                                             # the first is a warm-up
        print(f"{name}: {B} x {nh} x {T} x {hs}, {torch.get_num_threads()} threads: fused / ours "
              + " / ".join(f"{f(ratios):.2f}" for f in (min, statistics.median, max)))


if __name__ == "__main__":
    main()
