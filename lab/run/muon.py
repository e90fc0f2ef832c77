"""Muon (Keller Jordan 2024): torch.optim.Muon, with all matrices of one shape orthogonalised in one batch.

A model has many hidden matrices and few shapes of them. One after the other, their small products keep a GPU waiting
for the next launch; a batch takes as many launches as a single matrix.
"""

import math

import torch

A, B, C = 3.4445, -4.7750, 2.0315  # of the quintic A x + B x^3 + C x^5
ITERATIONS = 5


def orthogonalized(x):
    """x (n, rows, columns) -> about U V^T of each U S V^T, by Newton-Schulz iterations."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT  # the smaller of both ways to multiply
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, and decoupled weight decay; a tall matrix moves sqrt(rows / columns) as far.

    params: matrices. The state is torch.optim.Muon's: a momentum_buffer of each.
    dtype: of the products; torch.optim.Muon's is bfloat16, which is slow where the hardware does not multiply it.
    """

    def __init__(self, params, lr, weight_decay=0.1, momentum=0.95, dtype=torch.bfloat16):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
                    if "momentum_buffer" not in self.state[p]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            for (rows, columns), params in by_shape.items():
                update = orthogonalized(self.nesterov(params, group["momentum"]).to(self.dtype))
                step = group["lr"] * math.sqrt(max(1, rows / columns))
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, update.unbind(), alpha=-step)

    def nesterov(self, params, momentum):
        """Takes the gradients into the momentum buffers; (n, rows, columns): momentum, with the gradient once more."""
        grads = [p.grad for p in params]
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        return torch.stack(torch._foreach_lerp(grads, buffers, momentum))
