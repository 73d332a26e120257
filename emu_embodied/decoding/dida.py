"""DiDA: the whole next frame in K bidirectional passes and a commit. Knows the step protocol, no model."""

from __future__ import annotations

import math

import torch

from emu_embodied.errors import InputError
from emu_embodied.protocols import StepEngine


def sample(
    log_probs: torch.Tensor, temperature: float, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws codes (...) from log-probabilities (..., V) by Gumbel noise (argmax at temperature 0), and gives theirs."""
    scores = log_probs
    if temperature > 0:
        uniform = torch.rand(log_probs.shape, generator=generator, device=log_probs.device).clamp_(1e-9, 1 - 1e-9)
        scores = log_probs / temperature - torch.log(-torch.log(uniform))
    codes = scores.argmax(-1)
    return codes, log_probs.gather(-1, codes[..., None])[..., 0]


def check_logits(logits: torch.Tensor) -> None:
    """Raises InputError where logits are not finite."""
    if not torch.isfinite(logits).all():
        raise InputError("logits", "NaN or inf", "check the actions and the checkpoint")


def decode_frame(
    engine: StepEngine,
    cache,
    actions_BA: torch.Tensor,
    *,
    passes: int = 1,
    temperature: float = 0.0,
    order: str = "confidence",
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decodes the next frame in `passes` parallel passes; the caller commits it.

    After pass k, N cos(pi k / 2K) slots stay open (MaskGIT's schedule, arXiv 2202.04200); the surest, or random ones, are kept.

    Args:
        engine: executes `denoise`.
        cache: the past; not changed.
        actions_BA: (B, A) in [-1, 1].
        passes: K, from 1 to N.
        temperature: 0 takes the likeliest code.
        order: "confidence" or "random".
        generator: source of the noise.

    Returns:
        codes (B, N), the last pass's hidden states (B, N, D), and the mean entropy of the slots when decided (B,) in nats.

    Raises:
        InputError: `passes` outside 1..N, an unknown order, or logits that are not finite.
    """
    slots = cache.previous_BN.shape[1]
    if not 1 <= passes <= slots:
        raise InputError("passes", passes, f"choose K from 1 to {slots}, the tokens of a frame")
    if order not in ("confidence", "random"):
        raise InputError("order", order, "choose 'confidence' or 'random'")
    codes_BN = torch.zeros_like(cache.previous_BN)
    open_BN = torch.ones_like(codes_BN, dtype=torch.bool)
    entropy_BN = torch.zeros(codes_BN.shape, device=codes_BN.device)
    for k in range(1, passes + 1):
        logits, hidden = engine.denoise(cache, actions_BA, codes_BN, open_BN)
        check_logits(logits)
        log_probs = logits.float().log_softmax(-1)
        drawn, confidence = sample(log_probs, temperature, generator)
        codes_BN = torch.where(open_BN, drawn, codes_BN)
        entropy_BN = torch.where(open_BN, -(log_probs.exp() * log_probs).sum(-1), entropy_BN)
        scheduled = math.floor(slots * math.cos(math.pi / 2 * k / passes))
        keep_open = max(passes - k, min(scheduled, slots - k))  # every pass decides at least one slot
        if keep_open:
            if order == "random":
                confidence = torch.rand(confidence.shape, generator=generator, device=confidence.device)
            ranks = confidence.masked_fill(~open_BN, math.inf).argsort(-1).argsort(-1)
            open_BN = ranks < keep_open
    return codes_BN, hidden, entropy_BN.mean(-1)
