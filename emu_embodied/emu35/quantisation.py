"""Weight-only quantisation of a layer's matrices, by torchao. Knows no checkpoint."""

from __future__ import annotations

from torch import nn

from emu_embodied.errors import EngineError

QUANTISATIONS = ("int8", "nf4")
BLOCK, SCALES = 64, 256  # NF4: weights that share a scale, scales that share one of their own
BITS = {None: 16.0, "int8": 8.0, "nf4": 4.0 + 8 / BLOCK}  # a matrix's weight in memory; None is bfloat16


def quantise(layer: nn.Module, kind: str) -> None:
    """Replaces the weights of a layer's linear maps by rounded ones, in place; products are computed in the inputs' dtype.

    Args:
        layer: with weights where they are to stay; on the CPU and on CUDA.
        kind: "int8", one scale a row, or "nf4", four bits at the quantiles of a normal distribution with a scale for 64
            weights (QLoRA, arXiv 2305.14314).

    Raises:
        EngineError: an unknown kind, torchao is not installed, or a matrix that NF4's blocks do not divide.
    """
    if kind not in QUANTISATIONS:
        raise EngineError("quantisation", kind, f"choose one of {QUANTISATIONS}")
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_, to_nf4
    except ImportError as error:
        raise EngineError("torchao", str(error), 'run: pip install "emu-embodied[quantisation]"') from None
    if kind == "int8":
        quantize_(layer, Int8WeightOnlyConfig())
        return
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            if module.weight.numel() % (BLOCK * SCALES):
                fault = f"nf4 takes multiples of {BLOCK * SCALES} weights: choose int8"
                raise EngineError(f"{name}.weight", tuple(module.weight.shape), fault)
            module.weight = nn.Parameter(to_nf4(module.weight.data, BLOCK, SCALES), requires_grad=False)
