"""Token by token: N causal steps a frame over the key-value cache. Knows the step protocol, no model."""

from __future__ import annotations

import torch

from emu_embodied.decoding.config import DecodingConfig
from emu_embodied.decoding.sampling import draw, entropy, log_probs
from emu_embodied.protocols import StepEngine


def decode_frame(
    engine: StepEngine,
    cache,
    actions_BA: torch.Tensor,
    config: DecodingConfig | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decodes the next frame in raster order; it joins the cache as it goes, so no commit follows.

    Args:
        engine: executes `next_token`.
        cache: the past; grows by one frame.
        actions_BA: (B, A) in [-1, 1].
        config: temperature, top-k and top-p.
        generator: source of the noise.

    Returns:
        codes (B, N), the slots' hidden states (B, N, D), and the mean entropy of the slots (B,) in nats.

    Raises:
        InputError: logits that are not finite.
    """
    config, slots = config or DecodingConfig(), cache.previous_BN.shape[1]
    source_BND = engine.frame_source(cache, actions_BA)
    codes, hidden, entropies = [], [], []
    for index in range(slots + 1):
        logits, state = engine.next_token(cache, actions_BA, index, codes[-1] if codes else None, source_BND)
        if index:
            hidden.append(state)
        if index == slots:
            break
        scores_BV = log_probs(logits, config)
        codes.append(draw(scores_BV, config, generator)[0])
        entropies.append(entropy(scores_BV))
    codes_BN = torch.stack(codes, 1)
    engine.finish(cache, codes_BN)
    return codes_BN, torch.stack(hidden, 1), torch.stack(entropies, 1).mean(1)
