"""TensorRT 10 and 11, and TensorRT-RTX, as executors of the static steps on an NVIDIA GPU. Knows no sampling loop.

Engines are built from the ONNX graphs, which needs no GPU with TensorRT-RTX; running them needs one. Calls are on torch's
current stream, so that several can be captured in one CUDA graph after a first call at that batch.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from emu_embodied.errors import ConfigError, EngineError, InputError
from emu_embodied.inference.static_step import STEPS
from emu_embodied.model.token_model import TokenModel

from .cache import EngineCache, EngineKey
from .executor import StepExecutor
from .export import Exporter, Port, require

FLAVOURS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx_bindings"}  # name -> the module that is imported
PROFILES = (1, 16, 64, 256)


def executors(
    model: TokenModel,
    *,
    flavour: str = "tensorrt",
    precision: str | None = None,
    profiles: Sequence[int] = PROFILES,
    cache: EngineCache | str | os.PathLike | None = None,
) -> dict[str, TensorRTStep]:
    """The static steps, run by TensorRT; each is built when it is first called, which takes from seconds to minutes.

    Args:
        model: the token model, in eval mode.
        flavour: one of `FLAVOURS`.
        precision: fp32, fp16 or bf16; by default the model's own.
        profiles: increasing batches; one optimisation profile ends at each and is fastest there.
        cache: of engines, or its folder.

    Raises:
        ConfigError: an unknown flavour or precision, or profiles that do not increase.
        EngineError: the flavour is not installed.
    """
    if flavour not in FLAVOURS:
        raise ConfigError("flavour", flavour, f"choose one of {sorted(FLAVOURS)}")
    if list(profiles) != sorted(set(profiles)) or not profiles or profiles[0] < 1:
        raise ConfigError("profiles", profiles, "give increasing batches of at least 1")
    require(FLAVOURS[flavour])
    exporter, place = Exporter(model, precision), cache if isinstance(cache, EngineCache) else EngineCache(cache)
    return {step: TensorRTStep(exporter, step, place, flavour, tuple(profiles)) for step in STEPS}


def build_engine(trt: ModuleType, onnx: bytes, inputs: Sequence[Port], profiles: Sequence[int]) -> bytes:
    """An engine from an ONNX graph, in the graph's own types.

    Args:
        trt: the flavour's module.
        onnx: the graph, with a free batch.
        inputs: its inputs; more than it has are no harm.
        profiles: the largest batch of each optimisation profile.

    Raises:
        EngineError: TensorRT does not take the graph, or does not build here; with its own message.
    """
    log = _log(trt)
    try:
        builder = trt.Builder(log)
    except Exception as error:
        raise _refused(trt, "does not start", log, error) from error
    flags = 0
    if trt.__name__ == "tensorrt" and int(trt.__version__.partition(".")[0]) < 11:  # later ones know no other networks
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)  # network must outlive it, or the process dies
    if not parser.parse(onnx):
        raise _refused(trt, "does not take the graph", log)
    config, shapes = builder.create_builder_config(), {port.name: port for port in inputs}
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    for low, high in zip((1, *(end + 1 for end in profiles)), profiles, strict=False):
        profile = builder.create_optimization_profile()
        for name in names:
            if "B" in shapes[name].axes:
                profile.set_shape(name, *(shapes[name].shape(batch) for batch in (low, high, high)))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _refused(trt, "does not build", log)
    return bytes(engine)


class TensorRTStep(StepExecutor):
    """One step as a TensorRT engine, with one execution context a profile."""

    def __init__(
        self, exporter: Exporter, step: str, cache: EngineCache, flavour: str, profiles: tuple[int, ...]
    ) -> None:
        super().__init__(exporter, step, cache)
        self.flavour, self.profiles, self.largest_batch = flavour, profiles, profiles[-1]
        self._contexts: dict[int, Any] = {}

    def __reduce__(self) -> tuple:
        return type(self), (self.exporter, self.step, self.cache, self.flavour, self.profiles)

    @property
    def key(self) -> EngineKey:
        return EngineKey(
            **self.exporter.fingerprint,
            step=self.step,
            flavour=self.flavour,
            version=require(FLAVOURS[self.flavour]).__version__,
            **_gpu(self.exporter.model.noised.device),
            precision=self.exporter.precision,
            profiles=self.profiles,
        )

    def _build(self) -> bytes:
        trt = require(FLAVOURS[self.flavour])
        return build_engine(trt, self.exporter.export(self.step), self.inputs, self.profiles)

    def load(self) -> None:
        if not torch.cuda.is_available():  # before minutes of building
            remedy = "install its driver, or use engine=onnx; here engines can be built and not run"
            raise EngineError(f"engine {self.flavour}", "runs on an NVIDIA GPU, and torch finds none", remedy)
        super().load()

    def _open(self, engine: bytes) -> None:
        trt = require(FLAVOURS[self.flavour])
        self._trt, self._errors = trt, _log(trt)
        self._runtime, self._contexts = trt.Runtime(self._errors), {}
        with _on(self.exporter.model.noised.device):
            self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise _refused(trt, "does not load the engine", self._errors)
        count = self._engine.num_io_tensors
        self._names = {self._engine.get_tensor_name(index) for index in range(count)}  # what has no effect is left out
        known, results = ({port.name for port in ports} for ports in ((*self.inputs, *self.results), self.results))
        if not results <= self._names <= known:
            raise EngineError(
                f"engine {self.flavour}, {self.step}", "it is of another step", "remove it from the cache"
            )

    def _run(self, inputs: dict[str, torch.Tensor], results: dict[str, torch.Tensor], batch: int) -> None:
        device = next(iter(results.values())).device
        if device.type != "cuda":
            raise EngineError(f"engine {self.flavour}", f"tensors on {device}", "move the model to device=cuda")
        with _on(device):
            stream = torch.cuda.current_stream().cuda_stream
            context = self._context(batch, stream)
            for name in self._names & inputs.keys():
                if not context.set_input_shape(name, tuple(inputs[name].shape)):
                    raise _refused(self._trt, f"does not take {name} {tuple(inputs[name].shape)}", self._errors)
            for name, x in (inputs | results).items():
                if name in self._names:
                    context.set_tensor_address(name, x.data_ptr())
            if not context.execute_async_v3(stream):
                raise _refused(self._trt, f"does not run {self.step}", self._errors)

    def profile(self, batch: int) -> int:
        """The first optimisation profile that a batch fits.

        Raises:
            InputError: it fits none.
        """
        for index, largest in enumerate(self.profiles):
            if batch <= largest:
                return index
        remedy = f"this engine takes at most {self.profiles[-1]}: ask for fewer candidates, or give it a larger profile"
        raise InputError("batch", batch, remedy)

    def _context(self, batch: int, stream: int):
        """The execution context of the batch's profile."""
        index = self.profile(batch)
        if index not in self._contexts:
            context = self._engine.create_execution_context()
            if context is None or not context.set_optimization_profile_async(index, stream):
                raise _refused(self._trt, "has no execution context", self._errors)
            self._contexts[index] = context
        return self._contexts[index]


def _on(device: torch.device):
    """Makes a GPU the current one, as TensorRT expects of its callers; nothing for other devices."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _log(trt: ModuleType):
    """A logger that keeps what TensorRT calls an error, and prints nothing."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:  # the graver, the smaller
                self.errors.append(message)

    return Log()


def _refused(trt: ModuleType, what: str, log, error: Exception | None = None) -> EngineError:
    """The error for what TensorRT refused, with the first thing that it said, less where in its own source it said it."""
    message = " ".join([*log.errors, str(error or ""), "it does not say why"][0].split())
    message = re.sub(r"^.*?Error Code \d+: |^\(\w+\): |In \S+ at \S+:\d+ ?", "", message)
    log.errors.clear()
    return EngineError(f"{trt.__name__} {trt.__version__} {what}", message, "use engine=onnx or the eager engine here")


def _gpu(device: torch.device) -> dict[str, str]:
    """Compute capability and driver of a GPU, or of the first one; "none" where there is none."""
    if not torch.cuda.is_available():
        return {"compute_capability": "none", "driver": "none"}
    major, minor = torch.cuda.get_device_capability(device if device.type == "cuda" else 0)
    return {"compute_capability": f"{major}.{minor}", "driver": _driver()}


def _driver() -> str:
    """The kernel driver's own line where Linux shows it, and the CUDA version that the driver library serves."""
    version, kernel = ctypes.c_int(), Path("/proc/driver/nvidia/version")
    ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return f"{kernel.read_text().partition(chr(10))[0] if kernel.is_file() else ''} {version.value}".strip()
