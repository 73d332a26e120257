"""Weight-only quantisation of a layer's matrices, by torchao. Knows no checkpoint."""

from __future__ import annotations

import torch
from torch import nn

from emu_embodied.errors import EngineError

QUANTISATIONS = ("int8", "int4", "nf4")
GROUPS = (128, 64, 32)  # int4: weights that share a scale and a zero; the largest that divides a row is taken
BLOCK, SCALES = 64, 256  # NF4: weights that share a scale, scales that share one of their own
# A matrix's weight in memory, in bits; None is bfloat16.
BITS = {None: 16.0, "int8": 8.0, "int4": 4.0 + 32 / GROUPS[0], "nf4": 4.0 + 8 / BLOCK}


def require(kind: str, divided: bool = False) -> None:
    """Finds out before anything is read whether a kind can be had, for matrices that are `divided` among devices or whole.

    Raises:
        EngineError: an unknown kind, one that cannot be divided, or torchao is not installed.
    """
    if kind not in QUANTISATIONS:
        raise EngineError("quantisation", kind, f"choose one of {QUANTISATIONS}")
    if divided and kind != "int8":
        raise EngineError("quantisation", f"{kind} on a mesh", "torchao does not divide it: choose int8")
    try:
        import torchao.quantization  # noqa: F401
    except ImportError as error:
        raise EngineError("torchao", str(error), 'run: pip install "emu-embodied[quantisation]"') from None


def quantise(layer: nn.Module, kind: str) -> None:
    """Replaces the weights of a layer's linear maps by rounded ones, in place; products are computed in the inputs' dtype.

    Args:
        layer: with weights where they are to stay; on the CPU and on CUDA.
        kind: "int8", one scale a row; "int4", evenly spaced, with a scale and a zero for a group of weights: the fastest for
            a token at a time, but no gradient passes through it; or "nf4", four bits at the quantiles of a normal
            distribution with a scale for 64 weights (QLoRA, arXiv 2305.14314): slow, for training adapters.

    Raises:
        EngineError: torchao lacks the kind, its blocks do not divide a matrix, or its kernels do not take the dtype.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    if kind == "int8":
        quantize_(layer, Int8WeightOnlyConfig())
        return
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            (_to_int4 if kind == "int4" else _to_nf4)(module, name)


def _to_int4(module: nn.Linear, name: str) -> None:
    """Packs two weights a byte, as the device's kernel in PyTorch wants them."""
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    weight = module.weight
    group = next((size for size in GROUPS if module.in_features % size == 0), None)
    if group is None or module.out_features % 16:
        fault = f"int4 takes rows that one of {GROUPS} divides, and multiples of 16 rows: choose int8"
        raise EngineError(f"{name}.weight", tuple(weight.shape), fault)
    if weight.is_cuda:
        from torchao.quantization.quantize_.workflows.int4.int4_packing_format import Int4PackingFormat

        if weight.dtype != torch.bfloat16:
            raise EngineError(f"{name}.weight", weight.dtype, "int4 on CUDA takes bfloat16: choose dtype bfloat16")
        quantize_(module, Int4WeightOnlyConfig(group_size=group, int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D))
        return
    try:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    except ImportError as error:
        fault = "int4 on the CPU needs another torchao: pip install 'torchao==0.18.*', or choose int8"
        raise EngineError("torchao", str(error), fault) from None
    quantize_(module, PrototypeInt4WeightOnlyConfig(group_size=group))


def _to_nf4(module: nn.Linear, name: str) -> None:
    from torchao.quantization import to_nf4

    if module.weight.numel() % (BLOCK * SCALES):
        fault = f"nf4 takes multiples of {BLOCK * SCALES} weights: choose int8"
        raise EngineError(f"{name}.weight", tuple(module.weight.shape), fault)
    module.weight = nn.Parameter(to_nf4(module.weight.data, BLOCK, SCALES), requires_grad=False)
