"""Classifier-free guidance on visual tokens, as a step engine over another one. Knows the step protocol, no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from emu_embodied.protocols import Cache, StepEngine
from emu_embodied.types import Proposal

from .sampling import sample_proposal


@dataclass
class GuidedCache[C: Cache]:
    """The same past twice: under the instruction, and under an empty one."""

    conditional: C
    unconditional: C

    @property
    def pair(self) -> tuple[C, C]:
        return self.conditional, self.unconditional

    @property
    def previous_BN(self) -> torch.Tensor:
        return self.conditional.previous_BN

    @property
    def text_BL(self) -> torch.Tensor:
        return self.conditional.text_BL

    def expand(self, copies: int) -> GuidedCache[C]:
        """The same past for `copies` candidates of each world."""
        return GuidedCache(self.conditional.expand(copies), self.unconditional.expand(copies))


class GuidedEngine[C: Cache]:
    """Draws from u + scale (c - u), c and u the log-probabilities with and without the instruction, as Emu3.5 does for images.

    Every step runs twice. A model gains by it that was trained with instructions left out now and then
    (`TrajectoryConfig.unconditional`); scale 1 would change nothing. (Ho and Salimans, arXiv 2207.12598;
    Emu3.5, arXiv 2510.26583.)

    Args:
        engine: executes the steps.
        scale: of the guidance.
        empty_L: (L,) ids of an empty instruction.
    """

    def __init__(self, engine: StepEngine[C], scale: float, empty_L: torch.Tensor) -> None:
        self.engine, self.scale, self.empty_L = engine, scale, empty_L
        self.name, self.codebook_size = engine.name, engine.codebook_size
        self.largest_batch = engine.largest_batch

    def prefill(self, text_BL, codes_BCN, actions_BCA, ahead: int) -> GuidedCache[C]:
        """Reads the past under both instructions."""
        texts = (text_BL, self.empty_L.expand_as(text_BL))
        return GuidedCache(*(self.engine.prefill(text, codes_BCN, actions_BCA, ahead) for text in texts))

    def denoise(
        self, cache: GuidedCache[C], actions_BA, codes_BN, hidden_BN, inverse_temperature: float = 1.0, gumbel_BNV=None
    ) -> Proposal:
        """One parallel pass under both, with guided sampling."""
        conditional, unconditional = (self.engine.denoise(c, actions_BA, codes_BN, hidden_BN) for c in cache.pair)
        return sample_proposal(
            self._guide(conditional.logits, unconditional.logits), conditional.states, inverse_temperature, gumbel_BNV
        )

    def verify(self, cache: GuidedCache[C], actions_BA, codes_BN):
        """One causal pass under both: guided logits, and the instruction's hidden states."""
        (conditional, states), (unconditional, _) = (self.engine.verify(c, actions_BA, codes_BN) for c in cache.pair)
        return self._guide(conditional, unconditional), states

    def commit(self, cache: GuidedCache[C], actions_BA, codes_BN) -> None:
        """Adds the finished frame to both."""
        self.engine.commit(cache.conditional, actions_BA, codes_BN)
        self.engine.commit(cache.unconditional, actions_BA, codes_BN)

    def frame_source(self, cache: GuidedCache[C], actions_BA) -> torch.Tensor | None:
        """What the next frame's slots start from, which no instruction changes."""
        return self.engine.frame_source(cache.conditional, actions_BA)

    def next_token(
        self,
        cache: GuidedCache[C],
        actions_BA,
        index: int,
        codes_B,
        source_BND,
        inverse_temperature: float = 1.0,
        gumbel_BV=None,
    ) -> Proposal:
        """Reads a token under both, and draws the next slot's code with guidance."""
        conditional, unconditional = (
            self.engine.next_token(c, actions_BA, index, codes_B, source_BND) for c in cache.pair
        )
        return sample_proposal(
            self._guide(conditional.logits, unconditional.logits), conditional.states, inverse_temperature, gumbel_BV
        )

    def finish(self, cache: GuidedCache[C], codes_BN) -> None:
        """Closes a frame that was read token by token."""
        self.engine.finish(cache.conditional, codes_BN)
        self.engine.finish(cache.unconditional, codes_BN)

    def whole_frame(self, decode: Callable) -> Callable:
        """The decoding function itself: a loop over both pasts."""
        return decode

    def _guide(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        u = unconditional.float().log_softmax(-1)
        return u + self.scale * (conditional.float().log_softmax(-1) - u)
