"""Low-rank adapters on a transformer's matrices (LoRA, arXiv 2106.09685), by peft. Knows no training and no file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from emu_embodied.errors import ConfigError, EngineError
from emu_embodied.model.transformer import Transformer
from emu_embodied.validation import number, whole_number

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoRAConfig:
    """Sizes of the adapters.

    Attributes:
        rank: of the update of a matrix; 0 for none, which trains the whole model.
        alpha: the update is scaled by alpha / rank.
        targets: the matrices of each layer that get one, names among `TARGETS`.

    Raises:
        ConfigError: a rank or an alpha out of range, or an unknown name.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        whole_number("rank", self.rank, 0, 4096)  # 0 trains the whole model
        number("alpha", self.alpha, 0, 1e6)
        for name in self.targets:
            if name not in TARGETS:
                raise ConfigError("targets", name, f"choose among {TARGETS}")


def add_adapters(transformer: Transformer, config: LoRAConfig) -> None:
    """Freezes a transformer and puts adapters, which change nothing yet, on its matrices; quantised ones too.

    Raises:
        EngineError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise EngineError("peft", str(error), 'run: pip install "emu-embodied[lora]"') from None
    transformer.requires_grad_(False)
    options: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": list(config.targets)}
    inject_adapter_in_model(LoraConfig(**options), transformer)
    for name, parameter in transformer.named_parameters():  # new ones are where, and in the kind, their base is
        if "lora_" in name:
            parameter.data = parameter.data.float()


def merge_adapters(transformer: Transformer) -> None:
    """Adds the adapters' updates to the matrices, and leaves the transformer as it was without them."""
    from peft.tuners.lora import LoraLayer

    adapted = [(name, module) for name, module in transformer.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge()
        parent, _, child = name.rpartition(".")
        owner: nn.Module = transformer.get_submodule(parent)
        setattr(owner, child, module.get_base_layer())
