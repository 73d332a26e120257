"""Token by token: N causal steps a frame over the key-value cache. Knows the step protocol, no model."""

from __future__ import annotations

import torch

from emu_embodied.protocols import Cache, StepEngine

from .config import DecodingConfig
from .sampling import check_finite, restrict, sampling_inputs


def decode_frame[C: Cache](
    engine: StepEngine[C],
    cache: C,
    actions_BA: torch.Tensor,
    config: DecodingConfig | None = None,
    generator: torch.Generator | None = None,
    noise: object = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decodes the next frame in raster order; it joins the cache as it goes, so no commit follows.

    Args:
        engine: executes `next_token`.
        cache: the past; grows by one frame.
        actions_BA: (B, A) in [-1, 1].
        config: temperature, top-k and top-p.
        generator: source of the noise.
        noise: not used; the other decodings take one.

    Returns:
        codes (B, N), the slots' hidden states (B, N, D), and the mean entropy of the slots (B,) in nats.

    Raises:
        CheckpointError: logits that are not finite.
    """
    config, slots = config or DecodingConfig(), cache.previous_BN.shape[1]
    source_BND = engine.frame_source(cache, actions_BA)
    codes, states, entropies = [], [], []
    for index in range(slots + 1):
        inverse_temperature, gumbel = sampling_inputs(config, (len(actions_BA), engine.codebook_size), actions_BA, generator)
        before = codes[-1] if codes else None
        proposal = engine.next_token(cache, actions_BA, index, before, source_BND, inverse_temperature, gumbel)
        if index:
            states.append(proposal.states)
        if index < slots:
            proposal = restrict(proposal, config, gumbel)
            codes.append(proposal.codes)
            entropies.append(proposal.entropy)
    codes_BN, entropy_B = torch.stack(codes, 1), torch.stack(entropies, 1).mean(1)
    check_finite(entropy_B)
    engine.finish(cache, codes_BN)
    return codes_BN, torch.stack(states, 1), entropy_B
