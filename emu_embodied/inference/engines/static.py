"""The step engine over any executor of the static steps. Knows buffers that stay where they are, and not who computes.

What changes from frame to frame lies in tensors, never in Python numbers, so that a frame can be captured as one graph and
replayed for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import torch

from emu_embodied.errors import InputError
from emu_embodied.inference.static_step import STEPS, PassCache, StaticStep
from emu_embodied.model.token_model import TokenModel
from emu_embodied.types import Proposal, short_repr

from .executor import StepExecutor


@dataclass
class StaticCache:
    """What B dreams remember between steps, in buffers that stay where they are.

    Attributes:
        keys, values: (layers, B, heads, S, head_dim), S = L + (C + 1)(prefix + block).
        seen_S: (S,) bool, the slots in sight.
        text_BL: (B, L) instruction ids.
        previous_BN: (B, N) codes of the last clean frame, also of one that waits for its commit.
        frames: int64 scalar, the clean frames whose keys and values are there.
        waiting_BA, before_BN: action and predecessor of the frame that waits for its commit, where `pending`.
        pending: `previous_BN` has no keys and values yet; its commit rides in the next pass.
        read: tokens of the next frame that were read token by token.
        source: what the next frame's slots start from, and under which action.
    """

    keys: torch.Tensor
    values: torch.Tensor
    seen_S: torch.Tensor
    text_BL: torch.Tensor
    previous_BN: torch.Tensor
    frames: torch.Tensor
    waiting_BA: torch.Tensor
    before_BN: torch.Tensor
    pending: bool = False
    read: int = 0
    source: tuple[torch.Tensor, torch.Tensor | None] | None = None

    __repr__ = short_repr

    def expand(self, copies: int) -> StaticCache:
        """The same past for `copies` candidates of each world."""
        batched = ("text_BL", "previous_BN", "waiting_BA", "before_BN")
        return replace(
            self,
            keys=self.keys.repeat_interleave(copies, 1),
            values=self.values.repeat_interleave(copies, 1),
            seen_S=self.seen_S.clone(),
            frames=self.frames.clone(),
            **{name: getattr(self, name).repeat_interleave(copies, 0) for name in batched},
            source=None,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """The buffers by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


class StaticEngine:
    """A `protocols.StepEngine` over an executor of the static steps.

    Args:
        model: the token model, in eval mode; it reads histories, which happens once a plan, and embeds sources.
        run: the executor: step name -> callable with the arguments of `StaticStep`'s method; by default that method itself.
        name: of the executor.

    Attributes:
        largest_batch: most dreams in one call of a step; None for any number.
    """

    def __init__(self, model: TokenModel, run: Mapping[str, Callable] | None = None, name: str = "static") -> None:
        self.model, self.config, self.name = model, model.config, name
        self.codebook_size = model.config.vocabulary.codebook_size
        self.step = StaticStep(model)
        self.run = {each: getattr(self.step, each) for each in STEPS} | dict(run or {})
        limits = [step.largest_batch for step in self.run.values() if isinstance(step, StepExecutor)]
        self.largest_batch = min(filter(None, limits), default=None)
        c, device = model.config, model.noised.device
        slot = torch.arange(c.text_length + (c.context_frames + 1) * c.frame_tokens, device=device) - c.text_length
        self._ring_S = torch.where(slot < 0, -1, slot // c.frame_tokens)  # which frame of the ring a slot is for
        self._offsets = torch.arange(c.frame_tokens, device=device)
        self._constants: dict[object, torch.Tensor] = {}

    def prefill(
        self, text_BL: torch.Tensor, codes_BCN: torch.Tensor, actions_BCA: torch.Tensor, ahead: int
    ) -> StaticCache:
        """Reads text (B, L), C frames (B, C, N) and the actions between them (B, C - 1, A); any number of frames fits ahead.

        Raises:
            InputError: more frames than the ring holds.
        """
        m, c, t = self.model, self.config, self.config.transformer
        batch, frames, _ = codes_BCN.shape
        if c.context_frames and frames > c.context_frames + 1:
            raise InputError("frames", frames, f"the ring holds {c.context_frames + 1} frames: give the last ones")
        shape = (t.num_hidden_layers, batch, t.num_key_value_heads, len(self._ring_S), t.head_dim)
        like = m.transformer.lm_head.weight
        cache = StaticCache(
            like.new_zeros(shape),
            like.new_zeros(shape),
            torch.zeros_like(self._ring_S, dtype=torch.bool),
            text_BL,
            codes_BCN[:, -1].clone(),
            torch.tensor(frames, device=like.device),
            like.new_zeros(batch, c.action_dim, dtype=torch.float32),
            torch.zeros_like(codes_BCN[:, -1]),
        )
        fresh = PassCache(*2 * (like.new_zeros(*shape[:3], 0, shape[4]),))
        m.transformer.write_kv(*m.embed_history(text_BL, codes_BCN, actions_BCA), fresh)
        keys, values = fresh.new()
        cache.keys[..., : keys.shape[3], :], cache.values[..., : keys.shape[3], :] = keys, values
        cache.seen_S.copy_(self._seen(cache))
        return cache

    def denoise(
        self,
        cache: StaticCache,
        actions_BA: torch.Tensor,
        codes_BN: torch.Tensor,
        hidden_BN: torch.Tensor,
        inverse_temperature: float = 1.0,
        gumbel_BNV: torch.Tensor | None = None,
    ) -> Proposal:
        """One parallel pass, in which the commit of the frame before may ride; see `step.FrameStep.denoise`."""
        rest = (actions_BA, codes_BN, hidden_BN, *self._sampling_inputs(inverse_temperature, gumbel_BNV, codes_BN.shape))
        past = (cache.keys, cache.values, cache.seen_S)
        if not cache.pending:
            return Proposal(*self.run["denoise"](*past, self._start(cache), cache.previous_BN, *rest))
        seen_next_S = self._seen(cache, ahead=1)
        waiting = (cache.before_BN, cache.waiting_BA, cache.previous_BN)
        *proposal, keys, values = self.run["commit_denoise"](*past, seen_next_S, self._start(cache), *waiting, *rest)
        self._join(cache, keys, values)
        return Proposal(*proposal)

    def verify(self, cache: StaticCache, actions_BA: torch.Tensor, codes_BN: torch.Tensor):
        """One causal pass over a draft; see `step.FrameStep.verify`."""
        self._flush(cache)
        past = (cache.keys, cache.values, cache.seen_S, self._start(cache), cache.previous_BN)
        return self.run["verify"](*past, actions_BA, codes_BN)

    def commit(self, cache: StaticCache, actions_BA: torch.Tensor, codes_BN: torch.Tensor) -> None:
        """Adds the finished frame; its causal pass rides in the next parallel pass, or comes before another step."""
        if self.config.context_frames:
            self._flush(cache)
            cache.before_BN.copy_(cache.previous_BN)
            cache.waiting_BA.copy_(actions_BA)
            cache.pending = True
        cache.previous_BN.copy_(codes_BN)
        cache.source = None

    def next_token(
        self,
        cache: StaticCache,
        actions_BA: torch.Tensor,
        index: int,
        codes_B: torch.Tensor | None,
        source_BND: torch.Tensor | None,
        inverse_temperature: float = 1.0,
        gumbel_BV: torch.Tensor | None = None,
    ) -> Proposal:
        """Reads the token before slot `index`; see `step.FrameStep.next_token`."""
        self._flush(cache)
        source = None if source_BND is None or index == self.config.slots else source_BND[:, index]
        if source is None:
            source = self._constant("nothing", (len(actions_BA), self.config.transformer.hidden_size))
        draw = self._sampling_inputs(inverse_temperature, gumbel_BV, (len(actions_BA),))
        if codes_B is None:
            return self._read(cache, "first_token", actions_BA, source, *draw)
        own, *structure = self.model.read_ids(codes_B, index).unbind(1)
        proposal = self._read(cache, "next_token", own, source, *draw)
        for ids_B in structure:
            proposal = self._read(cache, "next_token", ids_B, source, *draw)._replace(states=proposal.states)
        return proposal

    def frame_source(self, cache: StaticCache, actions_BA: torch.Tensor) -> torch.Tensor | None:
        """What the next frame's slots start from, (B, N, D)."""
        if cache.source is None or cache.source[0] is not actions_BA:
            cache.source = (actions_BA, self.model.frame_source(cache.previous_BN, actions_BA))
        return cache.source[1]

    def finish(self, cache: StaticCache, codes_BN: torch.Tensor) -> None:
        """Closes a frame that lies in its slot of the ring."""
        cache.previous_BN.copy_(codes_BN)
        cache.read, cache.source = 0, None
        cache.frames.add_(1)
        cache.seen_S.copy_(self._seen(cache))

    def whole_frame(self, decode: Callable) -> Callable:
        """The decoding function itself: a loop over this engine's steps."""
        return decode

    def _read(self, cache: StaticCache, step: str, *arguments) -> Proposal:
        """One causal step on a frame that is read token by token."""
        past = (cache.keys, cache.values, cache.seen_S, self._start(cache) + cache.read)
        *proposal, keys, values = self.run[step](*past, *arguments)
        where = self._write(cache, cache.read, keys, values)
        cache.seen_S.index_fill_(0, where, True)
        cache.read += keys.shape[3]
        return Proposal(*proposal)

    def _flush(self, cache: StaticCache) -> None:
        """The causal pass over a frame that waits for it."""
        if cache.pending:
            past = (cache.keys, cache.values, cache.seen_S, self._start(cache))
            self._join(cache, *self.run["commit"](*past, cache.before_BN, cache.waiting_BA, cache.previous_BN))

    def _join(self, cache: StaticCache, keys: torch.Tensor, values: torch.Tensor) -> None:
        """The frame that waited is there."""
        self._write(cache, 0, keys, values)
        cache.pending = False
        cache.frames.add_(1)
        cache.seen_S.copy_(self._seen(cache))

    def _start(self, cache: StaticCache) -> torch.Tensor:
        """Rotary position of the next frame's first token."""
        if not self.config.context_frames:
            return self._constant("start", (), self.config.text_length, torch.int64)
        return cache.frames * self.config.frame_tokens + self.config.text_length

    def _write(self, cache: StaticCache, offset: int, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Puts keys and values into the next frame's slots of the ring, and says into which."""
        c = self.config
        first = cache.frames % (c.context_frames + 1) * c.frame_tokens + (c.text_length + offset)
        where = self._offsets[: keys.shape[3]] + first
        cache.keys.index_copy_(3, where, keys)
        cache.values.index_copy_(3, where, values)
        return where

    def _seen(self, cache: StaticCache, ahead: int = 0) -> torch.Tensor:
        """Slots in sight of the frame that comes `ahead` after the next: the text, and what is there of its last C frames."""
        size, last = self.config.context_frames + 1, cache.frames - 1
        frame_S = last - (last - self._ring_S) % size  # the newest frame that lies in the slot
        oldest = (cache.frames + ahead - self.config.context_frames).clamp(min=0)
        return (self._ring_S < 0) | (frame_S >= oldest)

    def _sampling_inputs(
        self, inverse_temperature: float, gumbel: torch.Tensor | None, shape
    ) -> tuple[torch.Tensor, torch.Tensor]:
        noise = self._constant("no noise", (*shape, self.codebook_size)) if gumbel is None else gumbel
        return self._constant(("inverse_temperature", inverse_temperature), (), inverse_temperature), noise

    def _constant(self, what: object, shape, value: float = 0.0, dtype=torch.float32) -> torch.Tensor:
        """A tensor that is filled once and stays."""
        key = (what, tuple(shape))
        if key not in self._constants:
            self._constants[key] = torch.full(shape, value, dtype=dtype, device=self._offsets.device)
        return self._constants[key]
