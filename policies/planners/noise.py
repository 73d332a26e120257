"""What sampling planners share: noise that is correlated over time, and keeping the best. Knows no model and no planner."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def ar1_noise(shape: Sequence[int], correlation: float, generator: torch.Generator) -> torch.Tensor:
    """Noise (S, K, A) of unit variance, each step correlated with the one before, in [0, 1); 0 is white noise."""
    white_SKA = torch.randn(*shape, generator=generator)
    noise_SKA, fresh = white_SKA.clone(), (1 - correlation**2) ** 0.5
    for t in range(1, shape[1]):
        noise_SKA[:, t] = correlation * noise_SKA[:, t - 1] + fresh * white_SKA[:, t]
    return noise_SKA


def coloured_noise(shape: Sequence[int], exponent: float, generator: torch.Generator) -> torch.Tensor:
    """Noise (S, K, A) of unit variance whose power falls with frequency f as 1 / f^exponent: 0 white, 1 pink, 2 brown.

    Drawn in the frequency domain (Timmer and Koenig, 1995), as iCEM does (arXiv 2008.06389, section 3.1). The constant part
    is as strong as the slowest wave.
    """
    samples, steps, actions = shape
    amplitude_F = torch.fft.rfftfreq(steps).clamp(min=1 / steps) ** (-exponent / 2)
    real_SAF, imaginary_SAF = torch.randn(2, samples, actions, len(amplitude_F), generator=generator)
    whole = [0] if steps % 2 else [0, -1]  # waves without a phase
    real_SAF[..., whole] *= 2**0.5
    imaginary_SAF[..., whole] = 0
    waves_F = torch.full_like(amplitude_F, 4.0)
    waves_F[whole] = 2.0
    deviation = (waves_F * amplitude_F**2).sum().sqrt() / steps
    noise_SAK = torch.fft.irfft(amplitude_F * torch.complex(real_SAF, imaginary_SAF), n=steps)
    return noise_SAK.transpose(1, 2) / deviation


def keep_best(
    kept: tuple[torch.Tensor, torch.Tensor], new: tuple[torch.Tensor, torch.Tensor], count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `count` of candidates kept with their costs, (E, ...) and (E,), and new ones; who came first wins a tie."""
    pool, costs = (torch.cat(pair) for pair in zip(kept, new, strict=True))
    order = costs.argsort(stable=True)[:count]
    return pool[order], costs[order]
