"""Logits to codes: temperature, top-k, top-p, Gumbel noise. Knows no model and no order."""

from __future__ import annotations

import torch

from emu_embodied.decoding.config import DecodingConfig
from emu_embodied.errors import InputError
from emu_embodied.noise import uniform


def log_probs(logits: torch.Tensor, config: DecodingConfig) -> torch.Tensor:
    """Log-probabilities (..., V) float32 that codes are drawn from; -inf where top-k or top-p leave a code out.

    Raises:
        InputError: logits that are not finite.
    """
    if not torch.isfinite(logits.sum(dtype=torch.float32)):  # NaN and inf survive a sum
        raise InputError("logits", "NaN or inf", "check the actions and the checkpoint")
    scores = logits.float() / (config.temperature or 1.0)
    if 0 < config.top_k < scores.shape[-1]:
        least = scores.topk(config.top_k, -1).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if config.top_p < 1:
        ordered, order = scores.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # of the likelier codes
        left_out = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= config.top_p)
        scores = scores.masked_fill(left_out, -torch.inf)
    return scores.log_softmax(-1)


def draw(
    log_probs: torch.Tensor, config: DecodingConfig, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws codes (...) from log-probabilities (..., V) by Gumbel noise (the likeliest at temperature 0), and gives theirs."""
    scores = log_probs
    if config.temperature > 0:
        chance = uniform(log_probs.shape, log_probs, generator).clamp_(1e-9, 1 - 1e-7)
        scores = log_probs - torch.log(-torch.log(chance))
    codes = scores.argmax(-1)
    return codes, log_probs.gather(-1, codes[..., None])[..., 0]


def entropy(log_probs: torch.Tensor) -> torch.Tensor:
    """Entropy (...) in nats of log-probabilities (..., V)."""
    return -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(-1)
