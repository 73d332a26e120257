"""DiDA: the whole next frame in K bidirectional passes and a commit. Knows the step protocol, no model."""

from __future__ import annotations

import functools
import math

import torch

from emu_embodied.errors import InputError
from emu_embodied.model.noise import Noise, Replacing, uniform
from emu_embodied.protocols import Cache, StepEngine

from .config import DecodingConfig
from .sampling import check_finite, propose


def decode_frame[C: Cache](
    engine: StepEngine[C],
    cache: C,
    actions_BA: torch.Tensor,
    config: DecodingConfig | None = None,
    generator: torch.Generator | None = None,
    noise: Noise | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decodes the next frame in `config.passes` parallel passes; it joins the cache.

    Args:
        engine: executes `denoise` and `commit`.
        cache: the past; grows by one frame.
        actions_BA: (B, A) in [-1, 1].
        config: passes, order, schedule and sampling.
        generator: source of the noise.
        noise: the process that the model was trained to undo; hidden tokens by default. Orders and remasking are that one's:
            under the others every pass sees all slots, some of them wrong, and as many stay wrong as the schedule says.

    Returns:
        codes (B, N), the last pass's hidden states (B, N, D), and the mean entropy of the slots when decided (B,) in nats.

    Raises:
        InputError: more passes than slots.
        CheckpointError: logits that are not finite.
    """
    config = config or DecodingConfig()
    slots = cache.previous_BN.shape[1]
    if config.passes > slots:
        raise InputError("passes", config.passes, f"choose K from 1 to {slots}, the tokens of a frame")
    if isinstance(noise, Replacing):
        codes_BN, hidden, entropy_BN = _refine(engine, cache, actions_BA, config, generator, noise)
    else:
        codes_BN, hidden, entropy_BN = _unmask(engine, cache, actions_BA, config, generator)
    entropy_B = entropy_BN.mean(-1)
    check_finite(entropy_B)
    engine.commit(cache, actions_BA, codes_BN)
    return codes_BN, hidden, entropy_B


def _unmask(engine, cache, actions_BA, config, generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From hidden tokens to the frame's, each pass deciding those that the order puts first."""
    codes_BN = torch.zeros_like(cache.previous_BN)
    slots = codes_BN.shape[1]
    open_BN = torch.ones_like(codes_BN, dtype=torch.bool)
    entropy_BN = torch.zeros(codes_BN.shape, device=codes_BN.device)
    sureness_BN = torch.zeros_like(entropy_BN)
    k = 0
    while True:
        k += 1
        proposal = propose(engine, cache, actions_BA, codes_BN, open_BN, config, generator)
        codes_BN = torch.where(open_BN, proposal.codes, codes_BN)
        entropy_BN = torch.where(open_BN, proposal.entropy, entropy_BN)
        if k == config.passes:
            return codes_BN, proposal.states, entropy_BN
        sure_BN = _sureness(config.order, proposal.log_prob, generator)
        sureness_BN = torch.where(open_BN, sure_BN, sureness_BN)
        stays_BN = sureness_BN if config.remask else sureness_BN.masked_fill(~open_BN, math.inf)
        open_BN = stays_BN.argsort(-1).argsort(-1) < open_after(k, slots, config)


def _refine(engine, cache, actions_BA, config, generator, noise) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From any codes to the frame's, each pass at a lower level of noise; the last takes every prediction."""
    everything = torch.ones_like(cache.previous_BN, dtype=torch.bool)
    codes_BN, hidden_BN = noise.blank(cache.previous_BN, everything, generator)
    for k in range(1, config.passes):
        proposal = propose(engine, cache, actions_BA, codes_BN, hidden_BN, config, generator)
        before, after = _share_open((k - 1) / config.passes, config), _share_open(k / config.passes, config)
        codes_BN = noise.refine(codes_BN, proposal.codes, before, after, generator)
    last = propose(engine, cache, actions_BA, codes_BN, hidden_BN, config, generator)
    return last.codes, last.states, last.entropy


def _share_open(x: float, config: DecodingConfig) -> float:
    return math.cos(math.pi / 2 * x) if config.schedule == "cosine" else 1 - x


def open_after(k: int, slots: int, config: DecodingConfig) -> int:
    """How many slots stay open after pass k; every pass decides at least one, the last all."""
    if config.order == "antidiagonal":  # whole diagonals
        side = math.isqrt(slots)
        first = math.ceil(k * (2 * side - 1) / config.passes)
        scheduled = sum(row + column >= first for row in range(side) for column in range(side))
    else:
        scheduled = math.floor(slots * _share_open(k / config.passes, config) + 1e-9)
    return max(config.passes - k, min(scheduled, slots - k))


def _sureness(order: str, sure_BN: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """What decides who stays decided (B, N): the larger, the earlier."""
    if order == "confidence":
        return sure_BN
    if order == "random":
        return uniform(sure_BN.shape, sure_BN, generator)
    return -_ranks(order, sure_BN.shape[1], sure_BN.device).expand_as(sure_BN)


@functools.cache
def _ranks(order: str, slots: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(fixed_order(order, slots), dtype=torch.float32, device=device)


@functools.cache
def fixed_order(order: str, slots: int) -> tuple[int, ...]:
    """The rank of each slot of a square grid, row by row, under the order "halton" or "antidiagonal"."""
    side = math.isqrt(slots)
    if order == "antidiagonal":
        places = sorted((row + column, row, column) for row in range(side) for column in range(side))
        visits = [row * side + column for _, row, column in places]
    else:
        from scipy.stats import qmc  # here, for it takes a second

        points, visits = qmc.Halton(2, scramble=False).fast_forward(1), {}
        while len(visits) < slots:
            visits |= dict.fromkeys(((points.random(slots) * side).astype(int) @ [side, 1]).tolist())
    ranks = [0] * slots
    for rank, cell in enumerate(visits):
        ranks[cell] = rank
    return tuple(ranks)
