"""Logits to codes: temperature, top-k, top-p, Gumbel noise. Knows the step protocol, no model and no order."""

from __future__ import annotations

import torch

from emu_embodied.errors import CheckpointError
from emu_embodied.model.noise import WorldNoise, uniform
from emu_embodied.protocols import StepEngine
from emu_embodied.types import Proposal

from .config import DecodingConfig


def sample_proposal(
    logits: torch.Tensor, states: torch.Tensor, inverse_temperature, gumbel: torch.Tensor | None
) -> Proposal:
    """The sampling that is part of a pass: pure, and the same in every engine.

    Args:
        logits: (..., V).
        states: (..., D), handed on.
        inverse_temperature: 1 / temperature, a number or a scalar tensor.
        gumbel: (..., V) noise; None or zeros take the likeliest codes.
    """
    scores = (logits.float() * inverse_temperature).log_softmax(-1)
    codes = (scores if gumbel is None else scores + gumbel).argmax(-1)
    return Proposal(codes, scores.gather(-1, codes[..., None])[..., 0], entropy(scores), states.float(), logits)


def sampling_inputs(config: DecodingConfig, shape, like: torch.Tensor, generator) -> tuple[float, torch.Tensor | None]:
    """What a pass samples with: its inverse temperature, and the noise (*shape), None where greedy."""
    noise = gumbel_noise(shape, like, generator) if config.temperature > 0 else None
    return 1 / (config.temperature or 1.0), noise


def restrict(proposal: Proposal, config: DecodingConfig, gumbel: torch.Tensor | None) -> Proposal:
    """The same proposal, sampled with the same noise among the codes that top-k and top-p leave."""
    if not config.top_k and config.top_p == 1:
        return proposal
    scores = log_probs(proposal.logits, config)
    codes, log_prob = _sample(scores, gumbel)
    return proposal._replace(codes=codes, log_prob=log_prob, entropy=entropy(scores))


def propose(engine: StepEngine, cache, actions_BA, codes_BN, hidden_BN, config: DecodingConfig, generator) -> Proposal:
    """One parallel pass, sampled as `config` says."""
    inverse_temperature, gumbel = sampling_inputs(config, (*codes_BN.shape, engine.codebook_size), actions_BA, generator)
    return restrict(engine.denoise(cache, actions_BA, codes_BN, hidden_BN, inverse_temperature, gumbel), config, gumbel)


def log_probs(logits: torch.Tensor, config: DecodingConfig) -> torch.Tensor:
    """Log-probabilities (..., V) float32 that codes are sampled from; -inf where top-k or top-p leave a code out."""
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


def sample(
    log_probs: torch.Tensor, config: DecodingConfig, generator: torch.Generator | WorldNoise | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples codes (...) from log-probabilities (..., V) by Gumbel noise (at temperature 0 the likeliest); and theirs."""
    return _sample(log_probs, gumbel_noise(log_probs.shape, log_probs, generator) if config.temperature > 0 else None)


def _sample(log_probs: torch.Tensor, gumbel: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    codes = (log_probs if gumbel is None else log_probs + gumbel).argmax(-1)
    return codes, log_probs.gather(-1, codes[..., None])[..., 0]


def gumbel_noise(shape, like: torch.Tensor, generator: torch.Generator | WorldNoise | None) -> torch.Tensor:
    """Standard Gumbel noise, where `like` is."""
    return -torch.log(-torch.log(uniform(shape, like, generator).clamp_(1e-9, 1 - 1e-7)))


def entropy(log_probs: torch.Tensor) -> torch.Tensor:
    """Entropy (...) in nats of log-probabilities (..., V); NaN where the logits were not finite."""
    return -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(-1)


def check_finite(entropies: torch.Tensor) -> None:
    """Refuses what came of NaN or infinite logits, by the entropies of the slots. While a graph is captured nothing is known.

    Raises:
        CheckpointError: entropies that are not finite.
    """
    if entropies.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if not torch.isfinite(entropies.sum()):
        raise CheckpointError(
            "logits", "NaN or inf", "its weights give no numbers here: take another, or a higher temperature"
        )
