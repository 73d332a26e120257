"""Muon: momentum whose matrices are orthogonalised before they are applied. Knows no model.

From Keller Jordan's Muon (https://kellerjordan.github.io/posts/muon/), scaled as in "Muon is Scalable for LLM Training"
(arXiv 2502.16982), so that AdamW's learning rate serves both. `torch.optim.Muon` iterates in bfloat16 only, which on a CPU
costs more than the whole training step around it; here the iteration runs in the parameters' own dtype on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """About U V^T of a matrix (m, n) = U S V^T, by Newton-Schulz iterations of fifth order."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


@runtime_checkable
class Layered(Protocol):
    """A module that says which of its parameters are for Muon."""

    def hidden_matrices(self) -> list[torch.Tensor]:
        """The matrices and kernels between hidden states."""
        ...


class Muon(torch.optim.Optimizer):
    """For matrices, and kernels taken as matrices (out, rest), that lie between hidden states.

    Args:
        params: parameters of two or more axes.
        lr: learning rate, as AdamW's.
        momentum: of the gradients; Nesterov's.
        weight_decay: decoupled.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; no loss is computed anew."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                scale = 0.2 * max(update.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonalise(update).view_as(p), alpha=-group["lr"] * scale)
