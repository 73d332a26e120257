"""Actions to tokens: values in [-1, 1] fall into equal bins. Knows no units; datasets are normalised before."""

from __future__ import annotations

import torch


def bin_actions(actions: torch.Tensor, bins: int) -> torch.Tensor:
    """Actions (..., A) in [-1, 1] -> bins (..., A) int64 in 0 .. bins - 1; values outside fall into the end bins."""
    return ((actions + 1) * (bins / 2)).long().clamp(0, bins - 1)
