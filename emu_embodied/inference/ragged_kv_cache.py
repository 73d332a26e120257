"""Several token sequences of unequal length, read side by side by one transformer. Knows no vocabulary and no sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from emu_embodied.errors import InputError
from emu_embodied.model.transformer import Transformer

CHUNK = 1024  # tokens of a prompt that are read in one pass: bounds the mask and the hidden states


class RaggedCache:
    """Keys and values of rows that are each as long as they are; to the layers it is an `attention.KVCache`.

    Row b's token i stands in column i, so that columns are rotary positions and no row carries another's padding.

    Args:
        model: gives the shapes.
        rows: B.
        capacity: tokens that the longest row holds.
    """

    def __init__(self, model: Transformer, rows: int, capacity: int) -> None:
        c, like = model.config, model.lm_head.weight
        shape = (
            c.num_hidden_layers,
            2,
            rows,
            c.num_key_value_heads,
            capacity + 1,
            c.head_dim,
        )  # the last is for padding
        self.buffer = like.new_zeros(shape)  # zeros: what a mask hides must be finite
        self.capacity, self.seen = capacity, 0
        self.rows_R = self.columns_RL = torch.empty(0, dtype=torch.long)
        self.every_row = True

    def attend(self, layer: int, k: torch.Tensor, v: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen rows' keys and values (R, heads, keys, head_dim), and the new ones, which `keep` writes."""
        return self._with(self.buffer[layer, 0], k, keep), self._with(self.buffer[layer, 1], v, keep)

    def _with(self, old: torch.Tensor, new: torch.Tensor, keep: bool) -> torch.Tensor:
        if keep:
            old[self.rows_R[:, None], :, self.columns_RL] = new.transpose(1, 2).to(old.dtype)
        seen = old[:, :, : self.seen] if self.every_row else old[self.rows_R, :, : self.seen]
        return seen if keep else torch.cat([seen, new.to(old.dtype)], 2)

    def advance(self, tokens: int) -> None:
        """Nothing: rows grow by different numbers of tokens, and `Streams` counts them."""


class Streams:
    """What B sequences have read so far.

    Args:
        model: the transformer.
        rows: B.
        capacity: tokens that the longest row will hold.
    """

    def __init__(self, model: Transformer, rows: int, capacity: int) -> None:
        self.model = model
        self.device = model.lm_head.weight.device
        self.cache = RaggedCache(model, rows, capacity)
        self.lengths = [0] * rows

    def read(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Reads more ids (one or more) of some rows, causally; returns the hidden states (R, D) after their last ones.

        Raises:
            InputError: more tokens than the capacity.
        """
        states: dict[int, torch.Tensor] = {}
        for start in range(0, max(map(len, ids)), CHUNK):
            parts = {row: line[start : start + CHUNK] for row, line in zip(rows, ids, strict=True) if len(line) > start}
            last_RD = self._read(list(parts), list(parts.values()))
            states |= dict(zip(parts, last_RD, strict=True))
        return torch.stack([states[row] for row in rows])

    def peek(self, rows: Sequence[int], x_RLD: torch.Tensor) -> torch.Tensor:
        """Hidden states (R, L, D) of embedded tokens that see all that their row has read and each other; none is kept."""
        length = x_RLD.shape[1]
        positions_RL = self._choose(rows, length, [0] * len(rows))
        old_RK = torch.arange(self.cache.seen, device=self.device) < positions_RL[:, :1]
        mask = torch.cat([old_RK, old_RK.new_ones(len(rows), length)], 1)[:, None, None]  # (R, 1, 1, K + L)
        return self.model.hidden(x_RLD, positions_RL, mask, self.cache)

    def _read(self, rows: list[int], ids: list[Sequence[int]]) -> torch.Tensor:
        counts = [len(line) for line in ids]
        length = max(counts)
        positions_RL = self._choose(rows, length, counts)
        if self.cache.seen > self.cache.capacity:
            raise InputError("tokens", self.cache.seen, f"the cache holds {self.cache.capacity}")
        padded_RL = torch.tensor([[*line, *[0] * (length - len(line))] for line in ids], device=self.device)
        mask = torch.arange(self.cache.seen, device=self.device) <= positions_RL[:, None, :, None]  # (R, 1, L, K)
        hidden = self.model.hidden(self.model.model.embed_tokens(padded_RL), positions_RL, mask, self.cache, keep=True)
        for row, count in zip(rows, counts, strict=True):
            self.lengths[row] += count
        return hidden[torch.arange(len(rows)), torch.tensor(counts) - 1]

    def _choose(self, rows: Sequence[int], length: int, counts: list[int]) -> torch.Tensor:
        """Chooses rows of the cache and the columns of `counts` new tokens; returns the next positions (R, length)."""
        cache, starts = self.cache, [self.lengths[row] for row in rows]
        index_L = torch.arange(length, device=self.device)
        positions_RL = torch.tensor(starts, device=self.device)[:, None] + index_L
        padding_RL = index_L >= torch.tensor(counts, device=self.device)[:, None]
        cache.rows_R, cache.every_row = (
            torch.tensor(rows, device=self.device),
            list(rows) == list(range(len(self.lengths))),
        )
        cache.columns_RL = positions_RL.masked_fill(padding_RL, cache.capacity)
        cache.seen = max(start + count for start, count in zip(starts, counts, strict=True))
        return positions_RL
