"""A static step as an ONNX graph: its tensors by name, type and axes, and its bytes. Knows no runtime that executes it."""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from emu_embodied.errors import ConfigError, EngineError
from emu_embodied.inference import static_step
from emu_embodied.inference.decoding import sampling
from emu_embodied.inference.static_step import StaticStep
from emu_embodied.model import attention, token_model, transformer
from emu_embodied.model.config import TokenModelConfig
from emu_embodied.model.token_model import TokenModel

OPSET = 20  # not 23: TensorRT-RTX has no kernel for its Attention node in float32 or with small heads
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
EXTRAS = {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "tensorrt_rtx_bindings": "tensorrt-rtx"}
_NEW = ("new_keys", "new_values")
_IN_PARALLEL = ("drawn_BN", "log_prob_BN", "entropy_BN", "states_BND", "logits_BNV")
_ONE_TOKEN = ("drawn_B", "log_prob_B", "entropy_B", "states_BD", "logits_BV")
RESULTS = {
    "denoise": _IN_PARALLEL,
    "commit_denoise": (*_IN_PARALLEL, *_NEW),
    "verify": ("logits_BNV", "states_BND"),
    "commit": _NEW,
    "first_token": (*_ONE_TOKEN, *_NEW),
    "next_token": (*_ONE_TOKEN, *_NEW),
}
_AXES = {"keys": "YBHSE", "values": "YBHSE", "new_keys": "YBHTE", "new_values": "YBHTE"}
_TYPES = {
    torch.int64: ("start", "previous_BN", "committed_BN", "codes_BN", "ids_B", "drawn_BN", "drawn_B"),
    torch.bool: ("seen_S", "seen_next_S", "hidden_BN"),
}


@dataclass(frozen=True)
class Port:
    """A tensor that goes into or comes out of a step.

    Attributes:
        name: as in `StaticStep`'s method; capitals after the underscore are its axes.
        dtype: float32 where it is neither an index, a mask, nor keys and values, which have the model's precision.
        axes: one letter each: layers Y, batch B, key-value heads H, cache slots S, new tokens T, head size E, actions A,
            visual tokens N, codes V, hidden size D.
        sizes: of the axes but B.
    """

    name: str
    dtype: torch.dtype
    axes: str
    sizes: dict[str, int]

    def shape(self, batch: int) -> tuple[int, ...]:
        return tuple(batch if axis == "B" else self.sizes[axis] for axis in self.axes)


def ports(step: str, config: TokenModelConfig, dtype: torch.dtype) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The inputs and the results of a step, in their order, with keys and values in `dtype`."""
    t, tokens = config.transformer, {"first_token": config.prefix, "next_token": 1}.get(step, config.frame_tokens)
    sizes = {
        "Y": t.num_hidden_layers,
        "H": t.num_key_value_heads,
        "S": config.text_length + (config.context_frames + 1) * config.frame_tokens,
        "T": tokens,
        "E": t.head_dim,
        "A": config.action_dim,
        "N": config.slots,
        "V": config.vocabulary.codebook_size,
        "D": t.hidden_size,
    }
    kinds = {name: kind for kind, names in _TYPES.items() for name in names} | dict.fromkeys(_AXES, dtype)

    def port(name: str) -> Port:
        suffix = name.rpartition("_")[2]
        axes = _AXES.get(name, suffix if suffix.isupper() else "")
        return Port(name, kinds.get(name, torch.float32), axes, sizes)

    _, *arguments = inspect.signature(getattr(StaticStep, step)).parameters  # the first is self
    return tuple(map(port, arguments)), tuple(map(port, RESULTS[step]))


class Exporter:
    """The graphs of one model.

    Args:
        model: the token model; it is left as it is, on its device.
        precision: one of `PRECISIONS`, that of weights, keys and values; by default the model's own.

    Raises:
        ConfigError: an unknown precision.
    """

    def __init__(self, model: TokenModel, precision: str | None = None) -> None:
        own = {dtype: name for name, dtype in PRECISIONS.items()}[model.noised.dtype]
        self.model, self.precision = model, precision or own
        if self.precision not in PRECISIONS:
            raise ConfigError("precision", precision, f"choose one of {sorted(PRECISIONS)}")
        self.fingerprint = _fingerprint(model)

    def ports(self, step: str) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        """The inputs and the results of a step."""
        return ports(step, self.model.config, PRECISIONS[self.precision])

    def export(self, step: str) -> bytes:
        """A step as ONNX, its weights inside and its batch free. The same model gives the same bytes.

        Raises:
            EngineError: the exporter is not installed, or the graph is larger than the 2 GiB that ONNX holds in one piece.
        """
        require("onnx")
        require("onnxscript")
        inputs, results = self.ports(step)
        dtype = PRECISIONS[self.precision]
        graph = _Graph(copy.deepcopy(self.model).to("cpu", dtype).eval(), step)
        batch = torch.export.Dim("batch")
        with _quiet():
            program = torch.onnx.export(
                graph,
                tuple(torch.zeros(port.shape(batch=3), dtype=port.dtype) for port in inputs),
                dynamo=True,
                opset_version=OPSET,
                input_names=[port.name for port in inputs],
                output_names=[port.name for port in results],
                dynamic_shapes=(tuple({p.axes.index("B"): batch} if "B" in p.axes else None for p in inputs),),
                external_data=False,
                verbose=False,
            )
        assert program is not None  # as with dynamo=True always
        try:
            return _strip(program.model_proto, results).SerializeToString()
        except ValueError as error:  # protobuf's own limit
            raise EngineError(
                f"graph of {step}", str(error), "use the eager engine for a model of this size"
            ) from error


class _Graph(nn.Module):
    """A step as it is exported: scores and states are float32 whatever the precision, so that callers see one interface."""

    def __init__(self, model: TokenModel, step: str) -> None:
        super().__init__()
        self.steps, self.step, self.dtype = StaticStep(model), step, model.noised.dtype

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        names = inspect.signature(getattr(self.steps, self.step)).parameters
        given = [x.to(self.dtype) if name == "source_BD" else x for name, x in zip(names, tensors, strict=True)]
        results = zip(RESULTS[self.step], getattr(self.steps, self.step)(*given), strict=True)
        return tuple(x.float() if x.is_floating_point() and name not in _NEW else x for name, x in results)


def require(module: str) -> ModuleType:
    """Imports a package that only some engines need.

    Raises:
        EngineError: it is not installed, or does not load here.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        extra = EXTRAS.get(module, module)
        raise EngineError(module, str(error), f'run: pip install "emu-embodied[{extra}]"') from error


def _fingerprint(model: TokenModel) -> dict[str, str]:
    """What a graph follows from: hashes of the weights and of the code that computes with them, and the configuration."""
    weights, code = hashlib.sha256(), hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    computing = [Path(inspect.getfile(module)) for module in (attention, transformer, token_model, static_step, sampling)]
    for file in (
        *computing,
        Path(__file__),
        Path(__file__).with_name("tensorrt.py"),
    ):  # those that compute, export, build
        code.update(file.read_bytes())
    code.update(f"torch {torch.__version__}, onnxscript {_version('onnxscript')}".encode())
    return {"weights": weights.hexdigest(), "config": repr(model.config), "code": code.hexdigest()}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


def _strip(proto, results: tuple[Port, ...]):
    """Takes out what depends on where the code lies, after making sure that the batch is free."""
    for output, port in zip(proto.graph.output, results, strict=True):
        free = [bool(axis.dim_param) for axis in output.type.tensor_type.shape.dim]
        if free != [axis == "B" for axis in port.axes]:  # the exporter fixes an axis without a word
            raise EngineError(f"graph of {port.name}", free, "only its batch may be free: this is a fault of the step")
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, *proto.graph.input):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    proto.graph.ClearField("metadata_props")
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's remarks on its own internals away from users."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
