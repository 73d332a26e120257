"""What a frame's noisy copy looks like: three noise processes behind one interface. Knows codes and their places, no model.

A level is the share of tokens that are wrong, from 0 to 1, and means the same for all three, so that they can be compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch

from emu_embodied.validation import derived_seed

NOISES = ("absorbing", "uniform", "metric")


class Noise(Protocol):
    """A noise process; shapes are those of the codes (..., N), levels broadcast to them."""

    def corrupt(
        self, codes: torch.Tensor, level: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy codes int64, and bool: which of them show nothing at all."""
        ...

    def blank(
        self, codes: torch.Tensor, unknown: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for a frame of which only some codes are known: nothing is said of the `unknown` (..., N) ones."""
        ...

    def counts(self, hidden: torch.Tensor) -> torch.Tensor:
        """Which slots the loss is about, bool."""
        ...


class Absorbing:
    """Tokens are hidden (MaskGIT's and DiDA's noise). Which stay hidden is the decoder's to choose: see `decoding.dida`."""

    def corrupt(self, codes, level, generator):
        """Hides each token with probability `level`."""
        return codes, uniform(codes.shape, codes, generator) < level

    def blank(self, codes, unknown, generator):
        """Hides what is not known."""
        return codes, unknown

    def counts(self, hidden):
        """The hidden slots."""
        return hidden


class Replacing(ABC):
    """The base of noises that put other codes in the place of the true ones; the model is not told which are wrong.

    Args:
        codebook_size: V.
    """

    def __init__(self, codebook_size: int) -> None:
        self.codebook_size = codebook_size

    def blank(self, codes, unknown, generator):
        """Any code where none is known."""
        drawn = (uniform(codes.shape, codes, generator) * self.codebook_size).long().clamp(max=self.codebook_size - 1)
        return torch.where(unknown, drawn, codes), torch.zeros_like(unknown)

    def counts(self, hidden):
        """All slots."""
        return torch.ones_like(hidden)

    @abstractmethod
    def refine(
        self, noisy: torch.Tensor, predicted: torch.Tensor, before: float, after: float, generator
    ) -> torch.Tensor:
        """Codes at the level `after` from those at the level `before` and the clean codes predicted of them."""


class Uniform(Replacing):
    """Tokens are replaced by others, all equally likely."""

    def corrupt(self, codes, level, generator):
        """Replaces each token with probability `level` by one of the V - 1 others."""
        other = 1 + (uniform(codes.shape, codes, generator) * (self.codebook_size - 1)).long()
        wrong = uniform(codes.shape, codes, generator) < level
        return torch.where(wrong, (codes + other) % self.codebook_size, codes), torch.zeros_like(wrong)

    def refine(self, noisy, predicted, before, after, generator):
        """The exact bridge of the mixture path: a token takes its prediction with probability (before - after) / before."""
        jump = uniform(noisy.shape, noisy, generator) < (before - after) / max(before, 1e-9)
        return torch.where(jump, predicted, noisy)


class Metric(Replacing):
    """Tokens wander off to near ones first: p(x | x1) = softmax over x of -beta d(x, x1) (URSA, arXiv 2510.24717).

    d is the squared distance of the codes in the tokenizer's latent, scaled to at most 4. URSA normalises the codes' vectors
    first; codes of an FSQ grid that differ in norm only would fall together. beta is found from the level by tabulating how
    many tokens survive, so that it suits any codebook.

    Args:
        places_VK: (V, K) float32, where the codes lie.
    """

    def __init__(self, places_VK: torch.Tensor) -> None:
        super().__init__(len(places_VK))
        distance_VV = (places_VK[:, None] - places_VK[None]).square().sum(-1).float()
        self.distance_VV = 4 * distance_VV / distance_VV.max()
        self.betas = torch.cat([torch.zeros(1), torch.logspace(-2, 5, 141)]).to(places_VK.device)
        self.wrong = torch.stack([1 - self.kernel(beta).diagonal().mean() for beta in self.betas])

    def kernel(self, beta: torch.Tensor) -> torch.Tensor:
        """p(x | x1) as rows over x1: (V, V)."""
        return (-beta * self.distance_VV).softmax(-1)

    def beta(self, level: torch.Tensor) -> torch.Tensor:
        """The beta at which a share `level` of the tokens is wrong; beyond what beta = 0 reaches, 0."""
        falling, betas = self.wrong.flip(0), self.betas.flip(0)  # rising shares of wrong tokens
        level = level.float().clamp(0, 1).to(falling.device)
        right = torch.searchsorted(falling, level.contiguous()).clamp(1, len(falling) - 1)
        low, high = falling[right - 1], falling[right]
        part = ((level - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
        return betas[right - 1] + part * (betas[right] - betas[right - 1])

    def corrupt(self, codes, level, generator):
        """Draws each token from the kernel at the level's beta, exactly."""
        level = torch.as_tensor(level, dtype=torch.float32).expand(codes.shape).to(codes.device)
        scores = -self.beta(level)[..., None] * self.distance_VV[codes]
        gumbel = -torch.log(-torch.log(uniform(scores.shape, codes, generator).clamp(1e-9, 1 - 1e-7)))
        return (scores + gumbel).argmax(-1), torch.zeros(codes.shape, dtype=torch.bool, device=codes.device)

    def refine(self, noisy, predicted, before, after, generator):
        """Draws anew from the kernel around the predictions: exact at any step size; an Euler step's first does nothing."""
        return self.corrupt(predicted, torch.tensor(after), generator)[0]


def make_noise(name: str, places_VK: torch.Tensor) -> Noise:
    """The process of one of the `NOISES` for a codebook with places (V, K)."""
    return {"absorbing": Absorbing, "uniform": lambda: Uniform(len(places_VK)), "metric": lambda: Metric(places_VK)}[
        name
    ]()


class WorldNoise:
    """A generator for each of B worlds in the place of one for all: no world's noise depends on its neighbours.

    They draw on the CPU, and are made when something is first drawn.

    Args:
        seeds: one a world.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = tuple(seeds)

    @cached_property
    def generators(self) -> list[torch.Generator]:
        """One a world."""
        return [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def select(self, worlds: Sequence[int] | range) -> WorldNoise:
        """That of some of the worlds, from where it is; what is drawn from it is drawn from this one."""
        some = WorldNoise([self.seeds[world] for world in worlds])
        some.generators = [self.generators[world] for world in worlds]
        return some

    def futures(self, candidates: range) -> WorldNoise:
        """That of some futures of each world, of the first world and then of the next. Each has its own, whichever are drawn
        at once; the first of a world has the world's."""
        rows = [(world, future) for world in range(len(self.seeds)) for future in candidates]
        seeds = [derived_seed(self.seeds[world], future) if future else self.seeds[world] for world, future in rows]
        some = WorldNoise(seeds)
        for i, (world, future) in enumerate(rows):
            if not future:
                some.generators[i] = self.generators[world]
        return some

    def uniform(self, shape) -> torch.Tensor:
        """Uniform numbers in [0, 1) (B, ...), a row of each world."""
        drawn = torch.empty(shape)
        for row, generator in zip(drawn, self.generators, strict=True):
            row.uniform_(generator=generator)
        return drawn


def uniform(shape, like: torch.Tensor, generator: torch.Generator | WorldNoise | None) -> torch.Tensor:
    """Uniform numbers in [0, 1), drawn on the generator's device and brought to where `like` is."""
    if isinstance(generator, WorldNoise):
        return generator.uniform(shape).to(like.device)
    device = generator.device if generator is not None else like.device
    return torch.rand(shape, generator=generator, device=device).to(like.device)
