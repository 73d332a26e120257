"""Exact decoding: draft a frame in parallel, verify it with the causal half. Knows the step protocol, no model.

Speculative decoding (Leviathan et al., arXiv 2211.17192) in which one network is both: its noisy half drafts all open slots
at once, its causal half says what token by token would have said, and what it says after the first wrong slot is the next
draft (Jacobi decoding; Santilli et al., arXiv 2305.10427). The result is the autoregressive one: the same tokens when greedy,
the same distribution when sampled.
"""

from __future__ import annotations

import torch

from emu_embodied.model.noise import Absorbing, Noise, uniform
from emu_embodied.protocols import Cache, StepEngine

from .config import DecodingConfig
from .sampling import check_finite, entropy, log_probs, propose, sample


def decode_frame[C: Cache](
    engine: StepEngine[C],
    cache: C,
    actions_BA: torch.Tensor,
    config: DecodingConfig | None = None,
    generator: torch.Generator | None = None,
    noise: Noise | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decodes the next frame from a parallel draft and some verifications; it joins the cache.

    Args:
        engine: executes `denoise`, `verify` and `commit`.
        cache: the past; grows by one frame.
        actions_BA: (B, A) in [-1, 1].
        config: temperature, top-k and top-p. Greedy keeps the longest prefix on which draft and causal half agree, and the
            causal half's token after it. Otherwise a drafted token is kept with probability min(1, p / q), and the first
            that is not is drawn anew from the positive part of p - q.
        generator: source of the noise.
        noise: the process that the model was trained to undo; hidden tokens by default.

    Returns:
        codes (B, N), the clean slots' hidden states (B, N, D), and the mean entropy of the causal half (B,) in nats.

    Raises:
        CheckpointError: logits that are not finite.
    """
    config, noise = config or DecodingConfig(), noise or Absorbing()
    codes_BN = torch.zeros_like(cache.previous_BN)
    batch, slots = codes_BN.shape
    places = torch.arange(slots, device=codes_BN.device)
    known_B = torch.zeros(batch, dtype=torch.long, device=codes_BN.device)  # accepted slots, from the left
    draft = None
    while True:
        open_BN = places >= known_B[:, None]
        if draft is None or config.redraft == "noisy":
            proposal = propose(engine, cache, actions_BA, *noise.blank(codes_BN, open_BN, generator), config, generator)
            draft = log_probs(proposal.logits, config) if config.temperature > 0 else proposal.logits, proposal.codes
        draft_BNV, sampled_BN = draft
        codes_BN = torch.where(open_BN, sampled_BN, codes_BN)
        logits, hidden = engine.verify(cache, actions_BA, codes_BN)
        causal_BNV = log_probs(logits, config)
        if config.temperature > 0:
            agreed_BN = _accept(causal_BNV, draft_BNV, codes_BN, generator)
            instead_BN = sample((causal_BNV.exp() - draft_BNV.exp()).clamp(min=0).log(), config, generator)[0]
        else:
            instead_BN = causal_BNV.argmax(-1)
            agreed_BN = codes_BN == instead_BN
        # Everything before the first slot that is open and not agreed on is as token by token would have it.
        wrong_BN = open_BN & ~agreed_BN
        if not wrong_BN.any():
            break
        first_B = torch.where(wrong_BN.any(1), wrong_BN.int().argmax(1), slots)
        codes_BN = torch.where(places == first_B[:, None], instead_BN, codes_BN)
        known_B = (first_B + 1).clamp(max=slots)
        if config.redraft == "causal":
            draft = causal_BNV, sample(causal_BNV, config, generator)[0]
    entropy_B = entropy(causal_BNV).mean(1)
    check_finite(entropy_B)
    engine.commit(cache, actions_BA, codes_BN)
    return codes_BN, hidden, entropy_B


def _accept(causal: torch.Tensor, draft: torch.Tensor, codes: torch.Tensor, generator) -> torch.Tensor:
    """Which drafted codes (B, N) to keep, each with probability min(1, p / q)."""
    codes = codes[..., None]
    ratio = (causal.gather(-1, codes) - draft.gather(-1, codes))[..., 0]
    return uniform(ratio.shape, ratio, generator).log() < ratio
