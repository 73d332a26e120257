"""Exact decoding: draft a frame in parallel, verify it with the causal half. Knows the step protocol, no model.

Speculative decoding (Leviathan et al., arXiv 2211.17192) in which one network is both: its noisy half drafts all open slots
at once, its causal half says what token by token would have said. The result is the autoregressive one: the same
tokens when greedy, the same distribution when sampled.
"""

from __future__ import annotations

import torch

from emu_embodied.decoding.dida import check_logits, sample
from emu_embodied.protocols import StepEngine


def decode_frame(
    engine: StepEngine,
    cache,
    actions_BA: torch.Tensor,
    *,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decodes the next frame in rounds of one draft and one verification; the caller commits it.

    Args:
        engine: executes `denoise` and `verify`.
        cache: the past; not changed.
        actions_BA: (B, A) in [-1, 1].
        temperature: 0 is greedy: the longest prefix on which draft and causal half agree is kept, and the causal half's
            token after it. Above 0, a drafted token is kept with probability min(1, p / q), and the first that is not is
            drawn anew from the positive part of p - q.
        generator: source of the noise.

    Returns:
        codes (B, N), the clean slots' hidden states (B, N, D), and the mean entropy of the causal half (B,) in nats.

    Raises:
        InputError: logits that are not finite.
    """
    codes_BN = torch.zeros_like(cache.previous_BN)
    batch, slots = codes_BN.shape
    places = torch.arange(slots, device=codes_BN.device)
    known_B = torch.zeros(batch, dtype=torch.long, device=codes_BN.device)  # accepted slots, from the left
    while True:
        open_BN = places >= known_B[:, None]
        draft_BNV = _log_probs(engine.denoise(cache, actions_BA, codes_BN, open_BN)[0], temperature)
        codes_BN = torch.where(open_BN, sample(draft_BNV, float(temperature > 0), generator)[0], codes_BN)
        logits, hidden = engine.verify(cache, actions_BA, codes_BN)
        causal_BNV = _log_probs(logits, temperature)
        if temperature > 0:
            agreed_BN = _accept(causal_BNV, draft_BNV, codes_BN, generator)
            instead_BNV = (causal_BNV.exp() - draft_BNV.exp()).clamp(min=0).log()
            instead_BN = sample(instead_BNV, 1.0, generator)[0]
        else:
            instead_BN = causal_BNV.argmax(-1)
            agreed_BN = codes_BN == instead_BN
        # Everything before the first slot that is open and not agreed on is as token by token would have it.
        wrong_BN = open_BN & ~agreed_BN
        first_B = torch.where(wrong_BN.any(1), wrong_BN.int().argmax(1), slots)
        codes_BN = torch.where(places == first_B[:, None], instead_BN, codes_BN)
        known_B = (first_B + 1).clamp(max=slots)
        if not wrong_BN.any():
            entropy_BN = -(causal_BNV.exp() * causal_BNV.clamp(min=-1e4)).sum(-1)
            return codes_BN, hidden, entropy_BN.mean(1)


def _log_probs(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    check_logits(logits)
    return (logits.float() / (temperature or 1.0)).log_softmax(-1)


def _accept(causal: torch.Tensor, draft: torch.Tensor, codes: torch.Tensor, generator) -> torch.Tensor:
    """Which drafted codes (B, N) to keep, each with probability min(1, p / q)."""
    ratio = (causal - draft).gather(-1, codes[..., None])[..., 0]
    return torch.rand(ratio.shape, generator=generator, device=ratio.device).log() < ratio
