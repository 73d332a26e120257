"""The released `config.json` as a transformer's sizes: what would change the numbers is read or refused, the rest left."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from emu_embodied.errors import CheckpointError, ConfigError
from emu_embodied.model.transformer import TransformerConfig
from emu_embodied.storage.regular import read_json
from emu_embodied.validation import whole_number

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
)
ONLY = {  # keys that may be absent, and the one value that is computed
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "rope_parameters": None,  # newer than the released files, and could ask for another scaling
    "quantization_config": None,
}
LARGEST = 1 << 24


def read_config(path: str | os.PathLike) -> TransformerConfig:
    """The sizes in `path / config.json`.

    Raises:
        CheckpointError: no such file, another kind of model, or a value that is missing, implausible or not supported; names
            file and key, what was found and what is expected.
    """
    file = Path(path) / "config.json"
    values = read_json(file)
    if not isinstance(values, Mapping):
        raise CheckpointError(str(file), type(values).__name__, "expected a mapping")

    def refuse(key: str, expected: str) -> NoReturn:
        raise CheckpointError(f"{file}: {key}", values.get(key, "missing"), f"expected {expected}")

    if values.get("model_type") != "Emu3":
        refuse("model_type", '"Emu3", which Emu3.5 calls itself')
    if "head_dim" not in values and values.get("vocab_size") == 184622:
        refuse("head_dim", "Emu3.5's sizes; this is the older Emu3, whose queries and keys are not normalised")
    for key, value in ONLY.items():
        if values.get(key, value) != value:
            refuse(key, f"{value!r}: nothing else is computed here")
    for key in SIZES:
        whole_number(f"{file}: {key}", values.get(key, "missing"), 1, LARGEST, CheckpointError)
    for key in ("rms_norm_eps", "rope_theta"):
        if (
            isinstance(values.get(key), bool)
            or not isinstance(values.get(key), int | float)
            or not 0 < values[key] < 1e12
        ):
            refuse(key, "a number above 0")
    if values["num_attention_heads"] % values["num_key_value_heads"]:
        refuse("num_key_value_heads", f"a divisor of num_attention_heads, {values['num_attention_heads']}")
    if values["head_dim"] % 2:
        refuse("head_dim", "an even number, for rotary positions")
    kind, factor = _scaling(values.get("rope_scaling"), refuse)
    sizes = {key: int(values[key]) for key in SIZES}
    eps, theta = float(values["rms_norm_eps"]), float(values["rope_theta"])
    try:
        return TransformerConfig(**sizes, rms_norm_eps=eps, rope_theta=theta, rope_scaling=kind, rope_factor=factor)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error.field}", error.value, error.remedy) from None


def _scaling(value: object, refuse: Callable[[str, str], NoReturn]) -> tuple[str | None, float]:
    """The kind and factor of `rope_scaling`, under its older key `type` or the newer `rope_type`."""
    if value is None:
        return None, 1.0
    kind = value.get("type", value.get("rope_type")) if isinstance(value, Mapping) else None
    factor = value.get("factor") if isinstance(value, Mapping) else None
    if kind == "default":
        return None, 1.0
    if kind not in ("linear", "dynamic"):
        refuse("rope_scaling", "null, or a type linear or dynamic with a factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < math.inf:
        refuse("rope_scaling", "a factor of at least 1")
    return kind, float(factor)
