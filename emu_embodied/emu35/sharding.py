"""A language model split over several devices by tensor parallelism, with PyTorch's own tools; each process reads its part.

Every layer's heads and hidden units are divided; embedding, head and norms are whole in each process. Start the processes with
torchrun, make a mesh by `torch.distributed.device_mesh.init_device_mesh("cuda", (n,))`, and give it to `load_language_model`.
"""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from emu_embodied.errors import ConfigError
from emu_embodied.model.transformer import Transformer

from .weights import Weights

COLUMNS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
ROWS = ("self_attn.o_proj", "mlp.down_proj")


def split(model: Transformer, mesh: DeviceMesh) -> None:
    """Prepares a model on the meta device for its part of the work.

    Raises:
        ConfigError: a mesh that the heads or hidden units cannot be divided among.
    """
    config, count = model.config, mesh.size()
    for name in ("num_key_value_heads", "num_attention_heads", "intermediate_size"):
        if mesh.ndim != 1 or getattr(config, name) % count:
            remedy = f"choose a mesh of one dimension that divides {name} = {getattr(config, name)}"
            raise ConfigError("mesh", tuple(mesh.shape), remedy)
    plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in COLUMNS}
    plan |= {name: RowwiseParallel() for name in ROWS}
    for layer in model.model.layers:
        parallelize_module(layer, mesh, plan)
    model.key_value_heads //= count


def read_part(
    weights: Weights, name: str, parameter: torch.Tensor, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    """Reads what this process holds of a tensor: all of it, or its slice as a `DTensor`."""
    if not isinstance(parameter, DTensor):
        return weights.read(name, dtype, device)
    (placement,), mesh = parameter.placements, parameter.device_mesh
    if not isinstance(placement, Shard):
        raise ConfigError("placement", placement, "only slices are read")
    size = parameter.shape[placement.dim] // mesh.size()
    first = mesh.get_local_rank() * size
    part = [slice(None)] * parameter.ndim
    part[placement.dim] = slice(first, first + size)
    local = weights.read(name, dtype, device, tuple(part))
    return DTensor.from_local(local, mesh, [placement], run_check=False)
