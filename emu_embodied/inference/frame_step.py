"""The model's pure inference steps over a key-value cache: prefill, next_token, denoise, verify, commit. Knows no loop.

It is the eager reference. `static_step` computes the same in buffers of fixed shapes, for graphs. With two frames of context
a frame takes 1.35 times the CPU time there at batch 16 and 1.28 times at batch 64 (without context 1.01 and 1.09 times), and
about the same at batch 1: `python -m benchmarks.decoding --steps`, benchmarks/results/steps-cpu.json. Hence there are two.

`soft_step` is one without a cache, for gradients: what a parallel pass says of the next frame, from frames that may be soft.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from emu_embodied.inference.decoding.sampling import sample_proposal
from emu_embodied.model.attention import KVCache
from emu_embodied.model.token_model import TokenModel
from emu_embodied.types import Proposal, short_repr


@dataclass
class StepCache:
    """What B dreams remember between steps.

    Attributes:
        kv: keys and values of the clean tokens.
        text_BL: (B, L) instruction ids.
        previous_BN: (B, N) codes of the last clean frame.
        frames: clean frames read.
        pending: a finished frame, its action and its source, whose causal pass waits for the next step that needs it.
        source: the last action asked about and what the next frame's slots start from under it, computed once a frame.
    """

    kv: KVCache
    text_BL: torch.Tensor
    previous_BN: torch.Tensor
    frames: int
    pending: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None
    source: tuple[torch.Tensor, torch.Tensor | None] | None = None

    __repr__ = short_repr

    def expand(self, copies: int) -> StepCache:
        """The same past for `copies` candidates of each world."""
        return replace(
            self,
            kv=self.kv.expand(copies),
            text_BL=self.text_BL.repeat_interleave(copies, 0),
            previous_BN=self.previous_BN.repeat_interleave(copies, 0),
            pending=self.pending and tuple(x if x is None else x.repeat_interleave(copies, 0) for x in self.pending),
            source=None,
        )


class FrameStep:
    """Eager executor of the steps; implements `protocols.StepEngine`.

    Args:
        model: the token model, in eval mode.
    """

    name = "eager"
    largest_batch: int | None = None

    def __init__(self, model: TokenModel) -> None:
        self.model = model
        self.config = model.config
        self.codebook_size = model.config.vocabulary.codebook_size
        self._masks: dict[tuple, torch.Tensor] = {}

    def prefill(
        self, text_BL: torch.Tensor, codes_BCN: torch.Tensor, actions_BCA: torch.Tensor, ahead: int
    ) -> StepCache:
        """Reads text (B, L), C frames (B, C, N) and the actions between them (B, C - 1, A); leaves room for `ahead` frames."""
        m, c = self.model, self.config
        batch, frames, _ = codes_BCN.shape
        room = frames + ahead if c.context_frames else 1
        cache = m.transformer.new_cache(batch, c.text_length + room * c.frame_tokens, c.text_length)
        m.transformer.write_kv(*m.embed_history(text_BL, codes_BCN, actions_BCA), cache)
        return self._slide(StepCache(cache, text_BL, codes_BCN[:, -1], frames))

    def denoise(
        self,
        cache: StepCache,
        actions_BA: torch.Tensor,
        codes_BN: torch.Tensor,
        hidden_BN: torch.Tensor,
        inverse_temperature: float = 1.0,
        gumbel_BNV: torch.Tensor | None = None,
    ) -> Proposal:
        """One parallel pass over the next frame's slots.

        Args:
            cache: the past.
            actions_BA: (B, A) the action that leads to the next frame.
            codes_BN: (B, N) codes of the slots that are already decided.
            hidden_BN: (B, N) bool, True where a slot is still open.
            inverse_temperature: 1 / temperature of the sampling.
            gumbel_BNV: (B, N, V) noise of the sampling; None takes the likeliest codes.
        """
        m, c = self.model, self.config
        self._flush(cache)
        x = m.embed_draft(actions_BA, codes_BN, hidden_BN, self.frame_source(cache, actions_BA))
        hidden = m.transformer.hidden(
            x, self._positions(cache, c.frame_tokens), self._mask(cache, noisy=True), cache.kv
        )
        slots = m.at_slots(hidden, before=c.next_token_shift)
        return sample_proposal(m.visual_logits(slots), slots, inverse_temperature, gumbel_BNV)

    def commit(self, cache: StepCache, actions_BA: torch.Tensor, codes_BN: torch.Tensor) -> None:
        """Adds the finished frame (B, N); the causal pass that writes its keys and values waits until they are needed."""
        self._flush(cache)
        pending = (actions_BA, codes_BN, self.frame_source(cache, actions_BA))
        if self.config.context_frames:
            cache.pending, cache.previous_BN, cache.source = pending, codes_BN, None
        else:
            self.finish(cache, codes_BN)

    def _flush(self, cache: StepCache) -> None:
        """The causal pass over a frame that waits for it."""
        if cache.pending is None:
            return
        actions_BA, codes_BN, source_BND = cache.pending
        cache.pending = None
        x = self.model.embed_clean(actions_BA, codes_BN, source_BND)
        positions, mask = self._positions(cache, self.config.frame_tokens), self._mask(cache, noisy=False)
        self.model.transformer.write_kv(x, positions, mask, cache.kv)
        cache.frames += 1
        self._slide(cache)

    def verify(
        self, cache: StepCache, actions_BA: torch.Tensor, codes_BN: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One causal pass over a drafted frame (B, N), of which nothing is kept.

        Returns:
            logits (B, N, codebook_size) of every slot given the slots before it, and the slots' own hidden states (B, N, D).
        """
        m, c = self.model, self.config
        self._flush(cache)
        x = m.embed_clean(actions_BA, codes_BN, self.frame_source(cache, actions_BA))
        hidden = m.transformer.hidden(
            x, self._positions(cache, c.frame_tokens), self._mask(cache, noisy=False), cache.kv
        )
        return m.visual_logits(m.at_slots(hidden, before=True)), m.at_slots(hidden, before=False)

    def next_token(
        self,
        cache: StepCache,
        actions_BA: torch.Tensor,
        index: int,
        codes_B: torch.Tensor | None,
        source_BND: torch.Tensor | None,
        inverse_temperature: float = 1.0,
        gumbel_BV: torch.Tensor | None = None,
    ) -> Proposal:
        """Reads what comes before slot `index` (the action and header, or a code and the structure behind it) into the cache.

        Call it for index 0 .. N (at N it only reads the last code); `source_BND` is `frame_source(...)`, computed once.

        Returns:
            what is said of slot `index` (B, ...), with the hidden state (B, D) of the code just read.
        """
        m = self.model
        self._flush(cache)
        if codes_B is None:
            x = m.embed_prefix(actions_BA, len(actions_BA))
        else:
            x = m.transformer.model.embed_tokens(m.read_ids(codes_B, index))
        if source_BND is not None and index < self.config.slots:
            x = torch.cat([x[:, :-1], x[:, -1:] + source_BND[:, index : index + 1]], 1)
        tokens, seen = x.shape[1], cache.kv.visible
        mask = torch.ones(tokens, seen + tokens, dtype=torch.bool, device=x.device).tril(seen) if tokens > 1 else None
        hidden = m.transformer.hidden(x, self._positions(cache, tokens), mask, cache.kv, keep=True)
        proposal = sample_proposal(m.visual_logits(hidden[:, -1]), hidden[:, -1], inverse_temperature, gumbel_BV)
        return proposal if tokens == 1 or index == 0 else proposal._replace(states=hidden[:, 0].float())

    def frame_source(self, cache: StepCache, actions_BA: torch.Tensor) -> torch.Tensor | None:
        """What the next frame's slots start from, (B, N, D); the same action tensor is not computed twice."""
        if cache.source is None or cache.source[0] is not actions_BA:
            cache.source = (actions_BA, self.model.frame_source(cache.previous_BN, actions_BA))
        return cache.source[1]

    def finish(self, cache: StepCache, codes_BN: torch.Tensor) -> None:
        """Closes a frame whose tokens are all in the cache."""
        cache.previous_BN, cache.frames, cache.source = codes_BN, cache.frames + 1, None
        self._slide(cache)

    def whole_frame(self, decode: Callable) -> Callable:
        """The decoding function itself: eager runs it as it is."""
        return decode

    def _positions(self, cache: StepCache, count: int) -> torch.Tensor:
        return torch.arange(cache.kv.length, cache.kv.length + count, device=cache.text_BL.device)

    def _slide(self, cache: StepCache) -> StepCache:
        """Puts frames older than the context out of sight."""
        if not self.config.context_frames:
            cache.kv.length = cache.kv.pinned
            return cache
        old = max(0, cache.frames - self.config.context_frames)
        cache.kv.visible_from = self.config.text_length + old * self.config.frame_tokens
        return cache

    def _mask(self, cache: StepCache, noisy: bool) -> torch.Tensor:
        """(prefix + block, visible + prefix + block): all that is visible, then causal; a noisy block sees itself both ways."""
        key = (cache.kv.visible, noisy, cache.text_BL.device)
        if key not in self._masks:
            size, seen = self.config.frame_tokens, cache.kv.visible
            mask = torch.ones(size, seen + size, dtype=torch.bool).tril(seen)
            if noisy:
                mask[self.config.prefix :] = True
            self._masks[key] = mask.to(cache.text_BL.device)
        return self._masks[key]


def soft_step(
    model: TokenModel, text_BL: torch.Tensor, probs_BCNV: torch.Tensor, actions_BCA: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One parallel pass over the next frame, all of it hidden, that has a gradient by everything it is given.

    Args:
        model: trained with hidden tokens (noise "absorbing").
        text_BL: (B, L) instruction ids.
        probs_BCNV: (B, C, N, V) the last frames, one-hot or soft: their embeddings are expected ones.
        actions_BCA: (B, C, A), action c led away from frame c; the last one leads to the next frame. The gradient goes through
            an action's value, not through its bin.

    Returns:
        logits (B, N, V) of the next frame, and the slots' hidden states (B, N, D).
    """
    c, batch = model.config, len(text_BL)
    past, _, _ = model.embed_history(text_BL, probs_BCNV, actions_BCA[:, :-1])
    hidden_BN = torch.ones(batch, c.slots, dtype=torch.bool, device=text_BL.device)
    source = model.frame_source(probs_BCNV[:, -1], actions_BCA[:, -1])
    draft = model.embed_draft(actions_BCA[:, -1], hidden_BN.long(), hidden_BN, source)
    x, seen = torch.cat([past, draft], 1), past.shape[1]
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
    mask[seen + c.prefix :] = True
    states = model.transformer.hidden(x, torch.arange(x.shape[1], device=x.device), mask)[:, seen:]
    slots = model.at_slots(states, before=c.next_token_shift)
    return model.visual_logits(slots), slots
