"""Token by token: N causal steps a frame over the key-value cache. Knows the step protocol, no model."""

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
    """Decodes the next frame in raster order; it joins the cache as it goes, so no commit follows.

    Args:
        engine: executes `next_token`.
        cache: the past; grows by one frame.
        actions_BA: (B, A) in [-1, 1].
        temperature: 0 takes the likeliest code.
        generator: source of the noise.

    Returns:
        codes (B, N), the slots' hidden states (B, N, D), and the mean entropy of the slots (B,) in nats.

    Raises:
        InputError: logits that are not finite.
    """
    slots = cache.previous_BN.shape[1]
    source_BND = engine.frame_source(cache, actions_BA)
    codes, hidden, entropy = [], [], []
    for index in range(slots + 1):
        logits, state = engine.next_token(cache, actions_BA, index, codes[-1] if codes else None, source_BND)
        if index:
            hidden.append(state)
        if index == slots:
            break
        check_logits(logits)
        log_probs = logits.float().log_softmax(-1)
        codes.append(sample(log_probs, temperature, generator)[0])
        entropy.append(-(log_probs.exp() * log_probs).sum(-1))
    codes_BN = torch.stack(codes, 1)
    engine.finish(cache, codes_BN)
    return codes_BN, torch.stack(hidden, 1), torch.stack(entropy, 1).mean(1)
