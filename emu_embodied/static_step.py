"""The model's steps as pure functions of tensors with fixed shapes, and an engine over any executor of them.

The eager `step.FrameStep` grows and slices its cache; graphs want buffers that stay where they are. Here the keys and values
lie in one buffer of slots: the text, then a ring of C + 1 frames. A mask says which slots are in sight. Keys carry their
rotary positions, so it does not matter in which slot a frame lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from emu_embodied.errors import InputError
from emu_embodied.token_model import TokenModel

STEPS = ("denoise", "verify", "commit", "first_token", "next_token")


class _PassCache:
    """Stands in for a `KVCache` within one pass: what is there, and what the pass adds."""

    def __init__(self, keys_LBHSD: torch.Tensor, values_LBHSD: torch.Tensor) -> None:
        self.keys, self.values = keys_LBHSD, values_LBHSD
        self.new_keys: list[torch.Tensor] = []
        self.new_values: list[torch.Tensor] = []

    def attend(self, layer: int, k: torch.Tensor, v: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
        if keep:
            self.new_keys.append(k)
            self.new_values.append(v)
        return torch.cat([self.keys[layer], k], 2), torch.cat([self.values[layer], v], 2)

    def advance(self, tokens: int) -> None:
        """Called once a pass that keeps; who calls the step counts, so there is nothing to count here."""

    def new(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack(self.new_keys), torch.stack(self.new_values)


class StaticStep(nn.Module):
    """The steps of `step.FrameStep` without state. Shapes are fixed but for the batch B.

    All take keys and values (layers, B, heads, S, head_dim), `seen_S` bool, which slots are in sight, and `start`, an int64
    scalar tensor: the rotary position of the first token.

    Args:
        model: the token model, in eval mode.
    """

    def __init__(self, model: TokenModel) -> None:
        super().__init__()
        self.model = model
        c = model.config
        causal = torch.ones(c.frame_tokens, c.frame_tokens, dtype=torch.bool).tril()
        noisy = causal.clone()
        noisy[c.prefix :] = True
        self.register_buffer("causal_mask", causal, persistent=False)
        self.register_buffer("noisy_mask", noisy, persistent=False)

    def denoise(self, keys, values, seen_S, start, previous_BN, actions_BA, codes_BN, hidden_BN):
        """One parallel pass: logits (B, N, V) and hidden states (B, N, D)."""
        m, c = self.model, self.model.config
        x = m.embed_draft(actions_BA, codes_BN, hidden_BN, m.frame_source(previous_BN, actions_BA))
        hidden = self._hidden(x, seen_S, start, self.noisy_mask, _PassCache(keys, values))
        slots = hidden[:, c.prefix - 1 : -1] if c.next_token_shift else hidden[:, c.prefix :]
        return m.visual_logits(slots), slots

    def verify(self, keys, values, seen_S, start, previous_BN, actions_BA, codes_BN):
        """One causal pass: logits (B, N, V) and hidden states (B, N, D)."""
        m, c = self.model, self.model.config
        x = m.embed_clean(actions_BA, codes_BN, m.frame_source(previous_BN, actions_BA))
        hidden = self._hidden(x, seen_S, start, self.causal_mask, _PassCache(keys, values))
        return m.visual_logits(hidden[:, c.prefix - 1 : -1]), hidden[:, c.prefix :]

    def commit(self, keys, values, seen_S, start, previous_BN, actions_BA, codes_BN):
        """One causal pass: the frame's own keys and values (layers, B, heads, A + 1 + N, head_dim)."""
        m, cache = self.model, _PassCache(keys, values)
        x = m.embed_clean(actions_BA, codes_BN, m.frame_source(previous_BN, actions_BA))
        mask = torch.cat([seen_S.expand(x.shape[1], -1), self.causal_mask], 1)
        m.transformer.remember(x, start + torch.arange(x.shape[1], device=x.device), mask, cache)
        return cache.new()

    def first_token(self, keys, values, seen_S, start, actions_BA, source_BD):
        """Reads a frame's prefix: logits (B, V) of slot 0, the last hidden state (B, D), new keys and values."""
        x = self.model.embed_prefix(actions_BA, len(actions_BA))
        return self._read(torch.cat([x[:, :-1], x[:, -1:] + source_BD[:, None]], 1), keys, values, seen_S, start)

    def next_token(self, keys, values, seen_S, start, codes_B, source_BD):
        """Reads one slot's code: logits (B, V) of the next, the hidden state (B, D), new keys and values."""
        x = self.model.embed_codes(codes_B[:, None]) + source_BD[:, None]
        return self._read(x, keys, values, seen_S, start)

    def _read(self, x, keys, values, seen_S, start):
        cache, tokens = _PassCache(keys, values), x.shape[1]
        hidden = self._hidden(x, seen_S, start, self.causal_mask[:tokens, :tokens], cache, keep=True)[:, -1]
        return self.model.visual_logits(hidden), hidden, *cache.new()

    def _hidden(self, x, seen_S, start, own_mask, cache, keep=False):
        mask = torch.cat([seen_S.expand(x.shape[1], -1), own_mask], 1)
        positions = start + torch.arange(x.shape[1], device=x.device)
        return self.model.transformer.hidden(x, positions, mask, cache, keep)


@dataclass
class StaticCache:
    """What B dreams remember between steps, in buffers that stay where they are.

    Attributes:
        keys, values: (layers, B, heads, S, head_dim), S = L + (C + 1)(A + 1 + N).
        seen_S: (S,) bool, the slots in sight.
        text_BL: (B, L) instruction ids.
        previous_BN: (B, N) codes of the last clean frame.
        frames: clean frames read.
        read: tokens of the next frame that were read token by token.
        source: what the next frame's slots start from, and under which action.
    """

    keys: torch.Tensor
    values: torch.Tensor
    seen_S: torch.Tensor
    text_BL: torch.Tensor
    previous_BN: torch.Tensor
    frames: int
    read: int = 0
    source: tuple[torch.Tensor, torch.Tensor] | None = None

    def expand(self, copies: int) -> StaticCache:
        """The same past for `copies` candidates of each world."""
        return replace(
            self,
            keys=self.keys.repeat_interleave(copies, 1),
            values=self.values.repeat_interleave(copies, 1),
            seen_S=self.seen_S.clone(),
            text_BL=self.text_BL.repeat_interleave(copies, 0),
            previous_BN=self.previous_BN.repeat_interleave(copies, 0),
            source=None,
        )


class StaticEngine:
    """A `protocols.StepEngine` over an executor of the static steps.

    Args:
        model: the token model, in eval mode; it reads histories, which happens once a plan, and embeds sources.
        run: the executor: step name -> callable with the arguments of `StaticStep`'s method; by default that method itself.
        name: of the executor.
    """

    def __init__(self, model: TokenModel, run: Mapping[str, Callable] | None = None, name: str = "static") -> None:
        self.model, self.config, self.name = model, model.config, name
        step = StaticStep(model)
        self.run = {each: getattr(step, each) for each in STEPS} | dict(run or {})

    def prefill(
        self, text_BL: torch.Tensor, codes_BCN: torch.Tensor, actions_BCA: torch.Tensor, ahead: int
    ) -> StaticCache:
        """Reads text (B, L), C frames (B, C, N) and the actions between them (B, C - 1, A); any number of frames fits ahead."""
        m, c, t = self.model, self.config, self.model.config.transformer
        batch, frames, _ = codes_BCN.shape
        if c.context_frames and frames > c.context_frames + 1:
            raise InputError("frames", frames, f"the ring holds {c.context_frames + 1} frames: give the last ones")
        size = c.text_length + (c.context_frames + 1) * c.frame_tokens
        shape = (t.num_hidden_layers, batch, t.num_key_value_heads, size, t.head_dim)
        like = m.transformer.lm_head.weight
        cache = StaticCache(
            like.new_zeros(shape),
            like.new_zeros(shape),
            torch.zeros(size, dtype=torch.bool, device=like.device),
            text_BL,
            codes_BCN[:, -1],
            frames,
        )
        fresh = _PassCache(*2 * (like.new_zeros(*shape[:3], 0, shape[4]),))
        m.transformer.remember(*m.embed_history(text_BL, codes_BCN, actions_BCA), fresh)
        keys, values = fresh.new()
        cache.keys[..., : keys.shape[3], :], cache.values[..., : keys.shape[3], :] = keys, values
        cache.seen_S[: c.text_length] = True
        self._look(cache)
        return cache

    def denoise(self, cache: StaticCache, actions_BA: torch.Tensor, codes_BN: torch.Tensor, hidden_BN: torch.Tensor):
        """One parallel pass; see `step.FrameStep.denoise`."""
        past = (cache.keys, cache.values, cache.seen_S, self._start(cache), cache.previous_BN)
        return self.run["denoise"](*past, actions_BA, codes_BN, hidden_BN)

    def verify(self, cache: StaticCache, actions_BA: torch.Tensor, codes_BN: torch.Tensor):
        """One causal pass over a draft; see `step.FrameStep.verify`."""
        past = (cache.keys, cache.values, cache.seen_S, self._start(cache), cache.previous_BN)
        return self.run["verify"](*past, actions_BA, codes_BN)

    def commit(self, cache: StaticCache, actions_BA: torch.Tensor, codes_BN: torch.Tensor) -> None:
        """One causal pass over the finished frame, into its slot of the ring."""
        if self.config.context_frames:
            past = (cache.keys, cache.values, cache.seen_S, self._start(cache), cache.previous_BN)
            self._write(cache, 0, *self.run["commit"](*past, actions_BA, codes_BN))
        self.finish(cache, codes_BN)

    def next_token(
        self,
        cache: StaticCache,
        actions_BA: torch.Tensor,
        index: int,
        codes_B: torch.Tensor | None,
        source_BND: torch.Tensor | None,
    ):
        """Reads the token before slot `index`; see `step.FrameStep.next_token`."""
        c = self.config
        nothing = cache.keys.new_zeros(len(actions_BA), c.transformer.hidden_size)
        source = nothing if source_BND is None or index == c.slots else source_BND[:, index]
        past = (cache.keys, cache.values, cache.seen_S, self._start(cache) + cache.read)
        if index == 0:
            logits, hidden, keys, values = self.run["first_token"](*past, actions_BA, source)
        else:
            logits, hidden, keys, values = self.run["next_token"](*past, codes_B, source)
        self._write(cache, cache.read, keys, values)
        slot, tokens = self._slot(cache.frames), keys.shape[3]
        cache.seen_S[slot + cache.read : slot + cache.read + tokens] = True
        cache.read += tokens
        return logits, hidden

    def frame_source(self, cache: StaticCache, actions_BA: torch.Tensor) -> torch.Tensor | None:
        """What the next frame's slots start from, (B, N, D)."""
        if cache.source is None or cache.source[0] is not actions_BA:
            cache.source = (actions_BA, self.model.frame_source(cache.previous_BN, actions_BA))
        return cache.source[1]

    def finish(self, cache: StaticCache, codes_BN: torch.Tensor) -> None:
        """Closes a frame that lies in its slot of the ring."""
        cache.previous_BN, cache.frames, cache.read, cache.source = codes_BN, cache.frames + 1, 0, None
        self._look(cache)

    def _slot(self, frame: int) -> int:
        """Where a frame's tokens begin in the buffers."""
        return self.config.text_length + frame % (self.config.context_frames + 1) * self.config.frame_tokens

    def _start(self, cache: StaticCache) -> torch.Tensor:
        frames = cache.frames if self.config.context_frames else 0
        return torch.tensor(self.config.text_length + frames * self.config.frame_tokens, device=cache.seen_S.device)

    def _write(self, cache: StaticCache, offset: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        begin = self._slot(cache.frames) + offset
        cache.keys[..., begin : begin + keys.shape[3], :] = keys
        cache.values[..., begin : begin + keys.shape[3], :] = values

    def _look(self, cache: StaticCache) -> None:
        """Puts the last C frames in sight, and nothing else of the ring."""
        c = self.config
        cache.seen_S[c.text_length :] = False
        for frame in range(max(0, cache.frames - c.context_frames), cache.frames):
            begin = self._slot(frame)
            cache.seen_S[begin : begin + c.frame_tokens] = True
