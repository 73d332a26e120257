"""Emu3.5's language model, any size: tokens to logits. Knows nothing of sampling, frames or actions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from emu_embodied.errors import ConfigError
from emu_embodied.validation import choice, number, whole_fields

from .attention import AttentionCache, BlockMask, KVCache, attend, rotary_tables, rotate

SIZES = {  # each size's least and most; the released model's are far from both
    "vocab_size": (1, 1 << 24),
    "hidden_size": (1, 1 << 16),
    "intermediate_size": (1, 1 << 18),
    "num_hidden_layers": (1, 1024),
    "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024),
    "head_dim": (2, 4096),
    "max_position_embeddings": (1, 1 << 24),
}


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes, under the names of the released `config.json`.

    Attributes:
        vocab_size: ids.
        hidden_size, intermediate_size: width of the residual stream and of the SwiGLU.
        num_hidden_layers: depth.
        num_attention_heads, num_key_value_heads, head_dim: grouped-query attention; heads x head_dim need not be hidden_size.
        rms_norm_eps, rope_theta: as named.
        max_position_embeddings: tokens of the longest sequence it was trained on.
        rope_scaling, rope_factor: None, or how longer sequences are read: "linear" divides positions by the factor; "dynamic"
            enlarges theta with the sequence's length once that exceeds the longest (NTK-aware).

    Raises:
        ConfigError: a size out of range, or sizes that do not fit together.
    """

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 32768
    rope_scaling: str | None = None
    rope_factor: float = 1.0

    def __post_init__(self) -> None:
        whole_fields(self, SIZES)
        if self.num_attention_heads % self.num_key_value_heads:
            rule = f"choose a divisor of num_attention_heads, {self.num_attention_heads}"
            raise ConfigError("num_key_value_heads", self.num_key_value_heads, rule)
        if self.head_dim % 2:
            raise ConfigError("head_dim", self.head_dim, "choose an even number, for rotary positions")
        for name, least, most in (("rms_norm_eps", 1e-30, 1.0), ("rope_theta", 1e-3, 1e12), ("rope_factor", 1.0, 1e6)):
            number(name, getattr(self, name), least, most)
        if self.rope_scaling is not None:
            choice("rope_scaling", self.rope_scaling, ("linear", "dynamic"))
        if self.rope_scaling == "dynamic" and self.head_dim == 2:
            raise ConfigError("head_dim", 2, "choose at least 4 where rope_scaling is dynamic")


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with RMSNorm on queries and keys before rotary; no biases."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d, q, kv = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.config = config
        self.q_proj = nn.Linear(d, q * config.head_dim, bias=False)
        self.k_proj = nn.Linear(d, kv * config.head_dim, bias=False)
        self.v_proj = nn.Linear(d, kv * config.head_dim, bias=False)
        self.o_proj = nn.Linear(q * config.head_dim, d, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x, cos, sin, mask, cache: AttentionCache | None, layer: int, keep: bool) -> torch.Tensor:
        batch, length, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(batch, length, -1, self.config.head_dim)).transpose(1, 2)
        k, v = self.keys_values(x, cos, sin)
        if cache is not None:
            k, v = cache.attend(layer, k, v, keep)
        groups = self.config.num_attention_heads // self.config.num_key_value_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        out = attend(rotate(q, cos, sin), k, v, mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))

    def keys_values(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated keys and values (B, key-value heads, L, head_dim) of x (B, L, D)."""
        batch, length, _ = x.shape
        k = self.k_norm(self.k_proj(x).view(batch, length, -1, self.config.head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, -1, self.config.head_dim).transpose(1, 2)
        return rotate(k, cos, sin), v


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-normalised block."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, *attention_arguments) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *attention_arguments)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embeddings, layers and the final norm: the part that the released checkpoints call `model`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """Decoder-only transformer of Emu3.5 (arXiv 2510.26583); its state dict has the released checkpoints' keys."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.key_value_heads = config.num_key_value_heads  # fewer where a process holds a part of them
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(self._initialise)
        for layer in self.model.layers:  # residual branches start small, as in GPT-2
            assert isinstance(layer, Layer)
            for out in (layer.self_attn.o_proj, layer.mlp.down_proj):
                nn.init.normal_(out.weight, std=0.02 / (2 * config.num_hidden_layers) ** 0.5)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Causal logits (B, L, vocab_size) of ids (B, L); with a cache, the ids continue it and join it."""
        start = cache.length if cache else 0
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        columns = torch.arange(start + ids.shape[1], device=ids.device)
        mask = columns[None, :] <= positions[:, None]
        return self.lm_head(self.hidden(self.model.embed_tokens(ids), positions, mask, cache, keep=True))

    def hidden(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | BlockMask | None,
        cache: AttentionCache | None = None,
        keep: bool = False,
    ) -> torch.Tensor:
        """Final hidden states (B, L, D) of embedded tokens.

        Args:
            x: (B, L, D) embeddings, brought to the weights' dtype.
            positions: (L,) or (B, L) rotary positions.
            mask: (L, keys) bool, True where a row attends, or blocks of it; None lets every row attend to every key.
            cache: keys and values seen before these tokens.
            keep: write these tokens' keys and values to the cache.
        """
        cos, sin = self._tables(positions)
        x = x.to(self.model.norm.weight.dtype)
        for index, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, mask, cache, index, keep)
        if cache is not None and keep:
            cache.advance(positions.shape[-1])
        return self.model.norm(x)

    def write_kv(self, x: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, cache: AttentionCache) -> None:
        """Writes the keys and values of embedded tokens to the cache, as `hidden` would, and computes nothing beyond them."""
        cos, sin = self._tables(positions)
        x = x.to(self.model.norm.weight.dtype)
        *most, last = self.model.layers
        assert isinstance(last, Layer)
        for index, layer in enumerate(most):
            x = layer(x, cos, sin, mask, cache, index, True)
        k, v = last.self_attn.keys_values(last.input_layernorm(x), cos, sin)
        cache.attend(len(most), k, v, True)
        cache.advance(positions.shape[-1])

    def _tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        c, theta = self.config, self.config.rope_theta
        if c.rope_scaling == "linear":
            positions = positions / c.rope_factor
        elif c.rope_scaling == "dynamic":
            theta = theta * _stretch(positions.max() + 1, c)
        cos, sin = rotary_tables(positions, c.head_dim, theta)
        return (cos[:, None], sin[:, None]) if positions.ndim == 2 else (cos, sin)

    def new_cache(self, batch: int, capacity: int, pinned: int = 0) -> KVCache:
        """An empty cache for `capacity` tokens, of which the first `pinned` stay in every window's sight."""
        c = self.config
        like = self.lm_head.weight
        return KVCache(c.num_hidden_layers, batch, self.key_value_heads, c.head_dim, capacity, pinned, like)


def _stretch(length: torch.Tensor, config: TransformerConfig) -> torch.Tensor:
    """By how much theta grows for a sequence of `length` () tokens, on the length's device, so that the host need not wait."""
    longest, factor, size = config.max_position_embeddings, config.rope_factor, config.head_dim
    return (factor * length / longest - (factor - 1)).clamp(min=1.0) ** (size / (size - 2))
