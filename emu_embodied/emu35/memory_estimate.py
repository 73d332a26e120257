"""What a model of given sizes needs: memory, operations, and the least time that a device can take. Arithmetic alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emu_embodied.model.transformer import TransformerConfig

from .quantisation import BITS

RELEASED = TransformerConfig(  # Emu3.5-34B (arXiv 2510.26583)
    vocab_size=282926,
    hidden_size=5120,
    intermediate_size=25600,
    num_hidden_layers=64,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    rope_theta=1e6,
)
ADAM = 16  # bytes a trained float32 weight takes: itself, its gradient, two moments; its average comes on top
AVERAGE = 4


@dataclass(frozen=True)
class Device:
    """What a device can do, as its maker says.

    Attributes:
        name: of it.
        memory: bytes.
        bandwidth: bytes a second between memory and processor.
        flops: dense bfloat16 operations a second (float32 for the CPU).
    """

    name: str
    memory: float
    bandwidth: float
    flops: float


DEVICES = (  # the makers' data sheets; dense, without sparsity
    Device("RTX 4090", 24e9, 1.01e12, 165e12),
    Device("RTX 5090", 32e9, 1.79e12, 210e12),
    Device("A100 80 GB", 80e9, 2.04e12, 312e12),
    Device("H100 80 GB", 80e9, 3.35e12, 989e12),
    Device("H200", 141e9, 4.8e12, 989e12),
    Device("B200", 180e9, 8.0e12, 2250e12),
)


def layer_weights(config: TransformerConfig) -> int:
    """Weights of one layer's matrices."""
    d, q, kv = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    return d * config.head_dim * (2 * q + 2 * kv) + 3 * d * config.intermediate_size


def parameters(config: TransformerConfig) -> int:
    """All weights: matrices, norms, embedding and head."""
    norms = config.num_hidden_layers * (2 * config.hidden_size + 2 * config.head_dim) + config.hidden_size
    return config.num_hidden_layers * layer_weights(config) + norms + 2 * config.vocab_size * config.hidden_size


def weight_bytes(config: TransformerConfig, quantisation: str | None = None) -> float:
    """Memory of the weights: the layers' matrices as quantised, everything else in bfloat16."""
    matrices = config.num_hidden_layers * layer_weights(config)
    return 2 * (parameters(config) - matrices) + matrices * BITS[quantisation] / 8


def cache_bytes(config: TransformerConfig, tokens: int, batch: int = 1) -> int:
    """Memory of the keys and values of `tokens` tokens in bfloat16."""
    return 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tokens * batch


def adapter_parameters(config: TransformerConfig, rank: int) -> int:
    """Weights of adapters of a rank on every matrix of every layer."""
    d, f = config.hidden_size, config.intermediate_size
    q, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    return config.num_hidden_layers * rank * (2 * (d + q) + 2 * (d + kv) + 3 * (d + f))


def training_bytes(config: TransformerConfig, rank: int, tokens: int, quantisation: str | None = None) -> float:
    """Memory of a training step on `tokens` tokens, as this package does it.

    Adapters in float32 with AdamW and an average over frozen weights, or with rank 0 all weights so; activations are kept for
    the way back, none is computed again. The logits of the visual tokens are held three times in float32. Infinite over int4,
    whose products have no gradient.
    """
    if quantisation == "int4":
        return math.inf
    trained = adapter_parameters(config, rank) if rank else parameters(config)
    frozen = weight_bytes(config, quantisation) if rank else 0
    return frozen + trained * (ADAM + AVERAGE) + activation_bytes(config, tokens) + 12 * config.vocab_size * tokens


def activation_bytes(config: TransformerConfig, tokens: int) -> float:
    """What the way back needs of `tokens` tokens, in bfloat16: each layer's inputs of norms, matrices, attention, SwiGLU."""
    q, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    kept = 4 * config.hidden_size + 4 * q + 4 * kv + 4 * config.intermediate_size
    return 2.0 * config.num_hidden_layers * kept * tokens


def pass_flops(config: TransformerConfig, tokens: int, seen: int, read: int = 1) -> float:
    """Operations of a pass over `tokens` tokens that attend to `seen`, themselves included; the head reads `read` of them."""
    matrices = 2.0 * config.num_hidden_layers * layer_weights(config) * tokens
    attention = 4.0 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * tokens * seen
    return matrices + attention + 2.0 * config.hidden_size * config.vocab_size * read


def pass_seconds(
    config: TransformerConfig,
    device: Device,
    tokens: int,
    seen: int,
    read: int = 1,
    quantisation: str | None = None,
    batch: int = 1,
) -> tuple[float, float]:
    """The least seconds of a pass, by memory (weights and cache are read once) and by operations; the larger one holds."""
    embedding = 2 * config.vocab_size * config.hidden_size
    moved = weight_bytes(config, quantisation) - embedding + cache_bytes(config, seen, batch)
    return moved / device.bandwidth, batch * pass_flops(config, tokens, seen, read) / device.flops


def image_seconds(
    config: TransformerConfig,
    device: Device,
    height: int,
    width: int,
    before: int = 0,
    passes: int | None = None,
    quantisation: str | None = None,
) -> float:
    """The least seconds of an image of height x width visual tokens after `before` tokens, on a device that it fits.

    Args:
        passes: None draws token by token; K draws by DiDA, a pass over the whole block each, and one that keeps it.
    """
    block = height * (width + 1)
    if passes is None:  # the cache grows evenly: its middle stands for all steps
        return block * max(pass_seconds(config, device, 1, before + block // 2, 1, quantisation))
    seen = before + block
    draw = max(pass_seconds(config, device, block, seen, height * width, quantisation))
    return passes * draw + max(pass_seconds(config, device, block, seen, 0, quantisation))
