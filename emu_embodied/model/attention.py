"""Attention's parts: rotary positions, the two implementations, the key-value cache. Knows no mask's rule and no vocabulary."""

from __future__ import annotations

import functools
from typing import Protocol

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from emu_embodied.errors import InputError


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
