"""Attention's parts: rotary positions, the masks of the clean and the noisy half, the key-value cache. Knows no vocabulary."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from emu_embodied.errors import InputError
from emu_embodied.types import short_repr


def rotary_tables(
    positions: torch.Tensor, head_dim: int, theta: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin tables (..., L, head_dim) float32 for positions (..., L); rotate-half layout as in Emu3.5."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = positions.float()[..., None] * frequencies
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Applies rotary positions to x (B, heads, L, head_dim); tables are (L, head_dim) or (B, 1, L, head_dim)."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos.to(x.dtype) + turned * sin.to(x.dtype)


@dataclass(frozen=True)
class TokenPlan:
    """Where each token of a packed sequence stands; `dida_mask` and the rotary positions follow from it.

    Attributes:
        position: (L,) int64 rotary position; a noisy slot shares its clean token's.
        frame: (L,) int64 index of the frame that the token belongs to; -1 for text.
        noisy: (L,) bool, True for the noisy copy of a frame.
    """

    position: torch.Tensor
    frame: torch.Tensor
    noisy: torch.Tensor

    __repr__ = short_repr


def token_plan(text: int, prefix: int, slots: int, frames: int, noisy_from: int | None, cut: bool = False) -> TokenPlan:
    """Plans `text | frame 0 | frame 1 | ...`, then the noisy copies of frames `noisy_from`.. where asked for.

    Args:
        text: text tokens at the start.
        prefix: tokens before a frame's slots (its action and the image-start token).
        slots: visual tokens a frame.
        frames: clean frames.
        noisy_from: first frame with a noisy copy; None for the clean half alone.
        cut: leave out the last clean frame's slots, which no noisy copy sees.
    """
    size = prefix + slots
    frame = [-1] * text + [t for t in range(frames) for _ in range(size)]
    if cut:
        del frame[-slots:]
    position = list(range(len(frame)))
    clean_length = len(frame)
    if noisy_from is not None:
        frame += [t for t in range(noisy_from, frames) for _ in range(slots)]
        position += [text + t * size + prefix + n for t in range(noisy_from, frames) for n in range(slots)]
    return TokenPlan(torch.tensor(position), torch.tensor(frame), torch.arange(len(frame)) >= clean_length)


def dida_rule(plan: TokenPlan, window: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Who may look at whom, as a function of indices: (row, column) -> bool, True where row attends to column.

    Clean tokens are causal. The noisy slots of frame t see the text, the clean frames before t, frame t's own action and
    image-start tokens, and each other in both directions; never the clean slots of frame t. Frames further back than
    `window` are out of sight for both halves. (Emu3.5's DiDA, arXiv 2510.26583, section on bidirectional adaptation.)
    """
    position, frame, noisy = plan.position, plan.frame, plan.noisy
    first_slot = torch.full_like(position, -1)
    for t in frame[noisy].unique():
        first_slot[noisy & (frame == t)] = position[noisy & (frame == t)].min()

    def attends(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        near = (frame[column] < 0) | (frame[column] >= frame[row] - window)
        clean_to_clean = ~noisy[row] & ~noisy[column] & (position[column] <= position[row])
        noisy_to_clean = noisy[row] & ~noisy[column] & (position[column] < first_slot[row])
        noisy_to_noisy = noisy[row] & noisy[column] & (frame[row] == frame[column])
        return near & (clean_to_clean | noisy_to_clean | noisy_to_noisy)

    return attends


def dida_mask(plan: TokenPlan, slots: int, window: int) -> torch.Tensor:
    """`dida_rule` for every pair: (L, L) bool."""
    index = torch.arange(len(plan.position), device=plan.position.device)
    return dida_rule(plan, window)(index[:, None], index[None, :])


def dida_blocks(plan: TokenPlan, window: int) -> BlockMask:
    """`dida_rule` for FlexAttention, which passes over blocks of pairs that do not attend and keeps no (L, L) scores."""
    rule, length = dida_rule(plan, window), len(plan.position)
    return create_block_mask(
        lambda b, h, row, column: rule(row, column), None, None, length, length, plan.position.device
    )


@functools.cache
def _compiled_flex():
    return torch.compile(flex_attention, dynamic=False)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | BlockMask | None) -> torch.Tensor:
    """Attention (B, heads, L, head_dim) of q over k and v, by the implementation that the mask is for.

    Args:
        q, k, v: (B, heads, L or keys, head_dim).
        mask: (L, keys) bool, or blocks of it; None lets every row attend to every key. Uncompiled, as on the CPU, blocks have
            no gradient.
    """
    if not isinstance(mask, BlockMask):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    flex = _compiled_flex() if q.is_cuda else flex_attention
    out = flex(q.to(v.dtype), k.to(v.dtype), v, block_mask=mask)  # under autocast the norms of q and k give float32
    assert isinstance(out, torch.Tensor)  # no log-sum-exp was asked for
    return out


class AttentionCache(Protocol):
    """What the layers ask of a cache of keys and values."""

    def attend(self, layer: int, k: torch.Tensor, v: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values in sight (B, heads, keys, head_dim), the new ones last, which `keep` writes."""
        ...

    def advance(self, tokens: int) -> None:
        """Called once after a pass that kept so many tokens."""
        ...


class KVCache:
    """Keys and values of the clean tokens read so far, in one buffer a layer; noised keys never enter.

    Args:
        layers, batch, heads, head_dim: shapes of the buffers (batch, heads, capacity, head_dim).
        capacity: tokens that fit.
        pinned: tokens at the start (the text) that stay in sight of every window.
    """

    def __init__(
        self, layers: int, batch: int, heads: int, head_dim: int, capacity: int, pinned: int, like: torch.Tensor
    ) -> None:
        shape = (batch, heads, capacity, head_dim)
        self.keys = [like.new_empty(shape) for _ in range(layers)]
        self.values = [like.new_empty(shape) for _ in range(layers)]
        self.capacity, self.pinned, self.length, self.visible_from = capacity, pinned, 0, pinned

    def expand(self, copies: int) -> KVCache:
        """A cache whose rows are each repeated `copies` times: candidates that share a prefix read it only once."""
        other = object.__new__(KVCache)
        other.__dict__.update(self.__dict__)
        other.keys = [k.repeat_interleave(copies, 0) for k in self.keys]
        other.values = [v.repeat_interleave(copies, 0) for v in self.values]
        return other

    def attend(self, layer: int, k: torch.Tensor, v: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values in sight plus the new ones; `keep` also writes the new ones (then call `advance`, once a pass)."""
        if keep:
            end = self.length + k.shape[2]
            if end > self.capacity:
                raise InputError("tokens", end, f"the cache holds {self.capacity}: prefill with more frames ahead")
            self.keys[layer][:, :, self.length : end] = k
            self.values[layer][:, :, self.length : end] = v
            if self.visible_from <= self.pinned:
                return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]
        parts = [slice(0, self.length)]
        if self.visible_from > self.pinned:
            parts = [slice(0, self.pinned), slice(self.visible_from, self.length)]
        return (
            torch.cat([*(self.keys[layer][:, :, p] for p in parts), k], 2),
            torch.cat([*(self.values[layer][:, :, p] for p in parts), v], 2),
        )

    def advance(self, tokens: int) -> None:
        """Counts the tokens that every layer has written."""
        self.length += tokens

    @property
    def visible(self) -> int:
        """Tokens in sight of the next ones."""
        return self.length if self.visible_from <= self.pinned else self.pinned + self.length - self.visible_from
