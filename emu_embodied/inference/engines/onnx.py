"""ONNX Runtime as an executor of the static steps, on the CPU or with its CUDA provider. Knows no sampling loop."""

from __future__ import annotations

import os

import torch

from emu_embodied.errors import EngineError
from emu_embodied.inference.static_step import STEPS
from emu_embodied.model.token_model import TokenModel

from .cache import EngineCache, EngineKey
from .executor import StepExecutor
from .export import Exporter, Port, require

_TYPES = {
    torch.float32: "tensor(float)",
    torch.int64: "tensor(int64)",
    torch.bool: "tensor(bool)",
    torch.float16: "tensor(float16)",
    torch.bfloat16: "tensor(bfloat16)",
}
_ELEMENTS = {torch.float32: 1, torch.int64: 7, torch.bool: 9, torch.float16: 10, torch.bfloat16: 16}  # ONNX's numbers


def executors(model: TokenModel, *, cache: EngineCache | str | os.PathLike | None = None) -> dict[str, OnnxStep]:
    """The static steps, run by ONNX Runtime on the model's device; each is exported when it is first called.

    Args:
        model: the token model, in eval mode.
        cache: of engines, or its folder.

    Raises:
        EngineError: ONNX Runtime is not installed, or has no provider for the device.
    """
    check_provider(model.noised.device)
    exporter, place = Exporter(model), cache if isinstance(cache, EngineCache) else EngineCache(cache)
    return {step: OnnxStep(exporter, step, place) for step in STEPS}


def check_provider(device: torch.device) -> str:
    """The name of ONNX Runtime's provider for a device.

    Raises:
        EngineError: ONNX Runtime is not installed, or not with that provider.
    """
    provider = f"{device.type.upper()}ExecutionProvider"
    if provider not in require("onnxruntime").get_available_providers():
        remedy = "install onnxruntime-gpu in place of onnxruntime, or use device=cpu"
        raise EngineError("engine onnx", f"no {provider} here", remedy)
    return provider


class OnnxStep(StepExecutor):
    """One step as an ONNX Runtime session. Its threads are as many as torch's when it is loaded."""

    @property
    def key(self) -> EngineKey:
        version = require("onnxruntime").__version__
        return EngineKey(
            **self.exporter.fingerprint,
            step=self.step,
            flavour="onnx",
            version=version,
            precision=self.exporter.precision,
            profiles=(),
        )

    def _build(self) -> bytes:
        return self.exporter.export(self.step)

    def _open(self, engine: bytes) -> None:
        runtime, device = require("onnxruntime"), self.exporter.model.noised.device
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        spins = os.environ.get("OMP_WAIT_POLICY", "").lower() == "active"  # else threads wait asleep, as OpenMP's do
        for pool in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{pool}.allow_spinning", str(int(spins)))
        options.log_severity_level = 3  # errors
        provider = check_provider(device)
        self._inherited = getattr(self, "session", None)  # a forked child's: its end would wait for threads that are not here
        settings = {"device_id": device.index or 0} if device.type == "cuda" else {}
        try:
            self.session = runtime.InferenceSession(engine, options, [(provider, settings)])
        except Exception as error:  # it has many types of its own
            raise EngineError(f"engine onnx, {self.step}", str(error), "use the eager engine here") from error
        for found, ports in ((self.session.get_inputs(), self.inputs), (self.session.get_outputs(), self.results)):
            self._check_ports({port.name: port for port in ports}, found)
        if len(self.session.get_outputs()) != len(self.results):
            raise EngineError(f"engine onnx, {self.step}", "it is of another step", "remove it from the cache")
        if self.session.get_providers()[0] != provider:  # it falls back to the CPU without an error
            raise EngineError(
                "engine onnx", f"{provider} does not start", "check the CUDA libraries, or use device=cpu"
            )

    def _check_ports(self, ports: dict[str, Port], found) -> None:
        """Whether a graph's inputs or outputs are among this step's: it reads and writes raw memory."""
        for given in found:
            port = ports.get(given.name)
            shape = tuple(size if isinstance(size, int) else "B" for size in given.shape)
            expected = port and tuple("B" if axis == "B" else port.sizes[axis] for axis in port.axes)
            if port is None or shape != expected or given.type != _TYPES[port.dtype]:
                found = f"{given.name}: {given.type} {shape}"
                raise EngineError(f"engine onnx, {self.step}", found, "it is of another step: remove it from the cache")

    def _run(self, inputs: dict[str, torch.Tensor], results: dict[str, torch.Tensor], batch: int) -> None:
        binding, device = self.session.io_binding(), next(iter(results.values())).device
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the session has a stream of its own
        place = (device.type, device.index or 0)
        for name in (given.name for given in self.session.get_inputs()):  # the exporter leaves out what has no effect
            x = inputs[name]
            binding.bind_input(name, *place, _ELEMENTS[x.dtype], tuple(x.shape), x.data_ptr())
        for name, x in results.items():
            binding.bind_output(name, *place, _ELEMENTS[x.dtype], tuple(x.shape), x.data_ptr())
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:  # it has many types of its own
            raise EngineError(f"engine onnx, {self.step}", str(error), "use the eager engine here") from error
