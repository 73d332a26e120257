"""What all executors share: an engine fetched when it is first needed, arguments checked and laid out, results allocated.

Knows neither ONNX Runtime nor TensorRT: they are the sub-classes.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

import torch

from emu_embodied.errors import InputError

from .cache import EngineCache, EngineKey
from .export import Exporter


class StepExecutor(ABC):
    """One static step, callable as `StaticStep`'s method is.

    Args:
        exporter: of the model.
        step: of `static_step.STEPS`.
        cache: where its engine is kept.

    Attributes:
        largest_batch: that it takes; None for any.
    """

    largest_batch: int | None = None

    def __init__(self, exporter: Exporter, step: str, cache: EngineCache) -> None:
        self.exporter, self.step, self.cache = exporter, step, cache
        self.inputs, self.results = exporter.ports(step)
        self._opened_by = 0  # the process in which it is ready to run

    @property
    @abstractmethod
    def key(self) -> EngineKey:
        """What the engine follows from."""

    @abstractmethod
    def _build(self) -> bytes:
        """Makes the engine."""

    @abstractmethod
    def _open(self, engine: bytes) -> None:
        """Gets ready to run an engine."""

    @abstractmethod
    def _run(self, inputs: dict[str, torch.Tensor], results: dict[str, torch.Tensor], batch: int) -> None:
        """Runs it on contiguous tensors of the ports' shapes and types, and fills the results."""

    @property
    def path(self) -> Path:
        """Where its engine is kept."""
        return self.cache.path(self.key)

    def build(self) -> bytes:
        """The engine's bytes, from the cache or built now.

        Raises:
            EngineError: it cannot be built here.
        """
        return self.cache.fetch(self.key, self._build)

    def load(self) -> None:
        """Makes ready to run, which the first call does otherwise.

        Raises:
            EngineError: it cannot be built or run here.
        """
        if self._opened_by != os.getpid():  # a forked child has its parent's engine, but not the engine's threads
            self.cache.fetch(self.key, self._build, self._take)
            self._opened_by = os.getpid()

    def __reduce__(self) -> tuple:
        """For `copy.deepcopy` and `pickle`: the copy opens its engine anew."""
        return type(self), (self.exporter, self.step, self.cache)

    def _take(self, engine: bytes) -> None:
        """Opens an engine and runs it once, on zeros: here it shows whether it is one of this step."""
        self._open(engine)
        device = self.exporter.model.noised.device
        inputs, results = (
            {port.name: torch.zeros(port.shape(1), dtype=port.dtype, device=device) for port in ports}
            for ports in (self.inputs, self.results)
        )
        self._run(inputs, results, 1)

    def __call__(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the step; see `StaticStep`'s method of this name.

        Raises:
            EngineError: it cannot be built or run here.
            InputError: a tensor of another shape; engines read raw memory, so nothing is left to chance.
        """
        self.load()
        batch, inputs = arguments[0].shape[1], {}
        for port, tensor in zip(self.inputs, arguments, strict=True):
            if tensor.shape != port.shape(batch):
                raise InputError(port.name, tuple(tensor.shape), f"{self.step} takes {port.shape(batch)}")
            inputs[port.name] = tensor.detach().to(arguments[0].device, port.dtype).contiguous()
        results = {
            port.name: torch.empty(port.shape(batch), dtype=port.dtype, device=arguments[0].device)
            for port in self.results
        }
        self._run(inputs, results, batch)
        return tuple(results.values())
