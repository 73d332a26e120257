"""Builds an engine for a checkpoint: exports, builds, compares it with the eager steps, times it, and keeps it.

The next `engine=NAME` finds it under the hash of all it follows from. What cannot run here is built where that is possible,
and reported as built only.
"""

from __future__ import annotations

import time

from omegaconf import DictConfig

from emu_embodied.errors import ConfigError, EngineError


def run(config: DictConfig) -> None:
    """Prints what was built, the parity, and the times beside the eager engine's.

    Raises:
        ConfigError: an unknown device, or a batch below 1.
        InputError: an unknown engine or precision, or one that does not fit the other.
        CheckpointError: the checkpoint is missing or damaged.
        EngineError: the engine is not installed, cannot be built here, or does not agree with the eager steps.
    """
    import torch

    from emu_embodied.inference.engines.parity import measure_parity
    from emu_embodied.inference.engines.registry import make_engine, time_frame
    from emu_embodied.loading import load

    if not config.batch:
        raise ConfigError("batch", [], "give at least one size")
    if config.engine in ("eager", "auto"):
        raise ConfigError("engine", config.engine, "there is nothing to build: choose compiled, onnx or tensorrt")
    model = load(config.checkpoint, device=None if config.device == "auto" else config.device).model
    engine = make_engine(config.engine, model, precision=config.precision, cache=config.cache)
    _build(engine)
    if config.engine.startswith("tensorrt") and not torch.cuda.is_available():
        print(f"compile: {config.engine} is built and kept; not compared and not run: torch finds no NVIDIA GPU here")
        return
    parity = measure_parity(engine, model)
    print(f"compile: {engine.name} against eager: {parity}")
    if not parity.holds:
        raise EngineError(f"engine {engine.name}", str(parity), "use the eager engine here, or another precision")
    eager = make_engine("eager", model)
    times = {}
    for batch in config.batch:
        times[batch] = ours, theirs = time_frame(engine, batch), time_frame(eager, batch)
        print(f"compile: batch {batch}: {ours:.2f} ms a frame of one pass, eager {theirs:.2f} ms")
    print(f"compile: {advice(config.engine, times)}")


def advice(engine: str, times: dict[int, tuple[float, float]]) -> str:
    """Which engine to use, by what was measured.

    Args:
        engine: the name of the one that was built.
        times: batch -> ms a frame with it, and with the eager engine.
    """
    faster = [batch for batch, (ours, theirs) in times.items() if ours < theirs]
    if len(faster) == len(times):
        return f"it is faster here: use it with  engine={engine}"
    if not faster:
        return "it is kept, but no faster here: stay with  engine=eager, or let  engine=auto  choose"
    ours, eager = (", ".join(str(b) for b in times if (b in faster) == kind) for kind in (True, False))
    return f"for {ours} dreams at once it is faster here: engine={engine}; for {eager} the eager one is: engine=eager"


def _build(engine) -> None:
    """Fetches every step's engine from the cache, or builds it; compiled steps are built when they are first called."""
    for name, step in engine.run.items():
        if hasattr(step, "build"):
            begun = time.monotonic()
            size = len(step.build())
            print(
                f"compile: {name}: {size / 1e6:.1f} MB after {time.monotonic() - begun:.1f} s in {step.path}",
                flush=True,
            )
