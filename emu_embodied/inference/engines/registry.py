"""Engines by name: made, held against the eager steps, timed. Knows no checkpoint and no world."""

from __future__ import annotations

import copy
import logging
import os
import statistics
import time
from dataclasses import dataclass

import torch

from emu_embodied.errors import EngineError, InputError
from emu_embodied.inference.decoding import dida
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.inference.frame_step import FrameStep
from emu_embodied.model.token_model import TokenModel
from emu_embodied.protocols import StepEngine

from .cache import EngineCache
from .export import PRECISIONS
from .parity import Parity, measure_parity
from .static import StaticEngine

ENGINES = ("eager", "compiled", "onnx", "tensorrt", "tensorrt_rtx")
logger = logging.getLogger(__name__)
type CachePlace = EngineCache | str | os.PathLike | None


@dataclass(frozen=True)
class Trial:
    """What became of an engine that was tried.

    Attributes:
        name: of `ENGINES`.
        ms: median milliseconds of one frame of the trial's batch, one pass; None where it does not run.
        parity: with the eager steps; None for those, and where it does not run.
        fault: why it does not run; empty where it does.
    """

    name: str
    ms: float | None
    parity: Parity | None
    fault: str = ""


def make_engine(
    name: str, model: TokenModel, *, precision: str = "fp32", cache: CachePlace = None
) -> FrameStep | StaticEngine:
    """An engine, not yet compared with anything; it builds what it needs when it is first used.

    Args:
        name: one of `ENGINES`.
        model: the token model in float32, in eval mode.
        precision: fp32, or the precision to compute in instead: fp16 on a GPU, bf16 there and on a CPU that multiplies it in
            hardware (`lscpu` lists amx_bf16), where it is faster (`benchmarks.floor`).
        cache: of built engines, or its folder.

    Raises:
        InputError: an unknown name or precision, or a precision that the engine does not have.
        EngineError: a package that is not installed.
    """
    if name not in ENGINES:
        raise InputError("engine", name, f"choose one of {(*ENGINES, 'auto')}")
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise InputError("precision", precision, f"choose one of {tuple(PRECISIONS)}")
    if precision != "fp32" and name == "onnx":
        raise InputError("precision", precision, f"{name} computes in fp32: choose that, or another engine")
    if precision == "fp16" and not model.noised.is_cuda:
        raise InputError("precision", precision, "a CPU computes in fp32 or bf16")
    own = model if precision == "fp32" else copy.deepcopy(model).to(PRECISIONS[precision])
    if name == "eager":
        return FrameStep(own)
    if name == "compiled":
        from .compiled import CompiledEngine

        return CompiledEngine(own)
    if name == "onnx":
        from .onnx import executors

        return StaticEngine(own, executors(own, cache=cache), name)
    from . import tensorrt

    return StaticEngine(own, tensorrt.executors(own, flavour=name, cache=cache), name)


def checked_engine(name: str, model: TokenModel, *, precision: str = "fp32", cache: CachePlace = None) -> StepEngine:
    """An engine that agrees with the eager steps, or those with a warning: nothing is called by the name of what it is not.

    Of `compiled` the eager steps in its precision are compared: comparing its own would compile each for a batch that may never
    be used. Arguments as `make_engine`.
    """
    engine = make_engine(name, model, precision=precision, cache=cache)
    if precision == "fp32" and name in ("eager", "compiled"):
        return engine
    parity = measure_parity(FrameStep(engine.model) if name == "compiled" else engine, model)
    if parity.holds:
        return engine
    logger.warning("the %s engine in %s does not agree with the eager one (%s): running eager", name, precision, parity)
    return FrameStep(model)


def fastest_engine(
    model: TokenModel, batch: int, *, precision: str = "fp32", cache: CachePlace = None
) -> tuple[StepEngine, list[Trial]]:
    """The fastest engine that agrees with the eager steps, and what was tried; one that fails leaves it to the others.

    On a CPU `compiled` is left out, whose compilation takes minutes.

    Args:
        model: the token model in float32, in eval mode.
        batch: dreams at once.
        precision, cache: as `make_engine`'s.
    """
    cuda, best, trials = model.noised.is_cuda, None, []
    for name in ENGINES if cuda else ("eager", "onnx"):
        trial, engine = try_engine(name, model, batch, precision=precision, cache=cache)
        trials.append(trial)
        if engine is not None and trial.ms is not None and (best is None or trial.ms < best[0]):
            best = (trial.ms, engine)
    logger.info("engines tried: %s", trials)
    if best is None:
        raise EngineError("engine auto", trials[0].fault, "not even the eager steps run here")
    return best[1], trials


def try_engine(
    name: str, model: TokenModel, batch: int, *, precision: str = "fp32", cache: CachePlace = None
) -> tuple[Trial, StepEngine | None]:
    """Makes an engine, compares it, and times it; the engine is None where it does not run, or does not agree.

    What compilers, drivers and runtimes raise, of whatever kind, is the engine's fault, told by a warning.
    """
    try:
        engine = make_engine(name, model, precision=precision, cache=cache)
        parity = None if name == "eager" else measure_parity(engine, model)
        if parity is not None and not parity.holds:
            return Trial(name, None, parity, "it does not agree with the eager steps"), None
        return Trial(name, time_frame(engine, batch), parity), engine
    except (EngineError, InputError) as error:
        return Trial(name, None, None, str(error)), None
    except Exception as error:
        fault = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        logger.warning("the %s engine fails (%s): trying the others", name, fault)
        return Trial(name, None, None, fault), None


@torch.inference_mode()
def time_frame(engine: FrameStep | StaticEngine, batch: int, repeats: int = 7) -> float:
    """Median milliseconds of a frame in one pass, commit and all, on random codes."""
    c, place = engine.model.config, engine.model.noised.device
    codes = torch.zeros(batch, max(1, c.context_frames), c.slots, dtype=torch.int64, device=place)
    actions = torch.zeros(batch, codes.shape[1], c.action_dim, device=place)
    text = torch.zeros(batch, c.text_length, dtype=torch.int64, device=place)
    cache = engine.prefill(text, codes, actions[:, 1:], ahead=repeats + 2)
    decode, times = engine.whole_frame(dida.decode_frame), []
    for _ in range(repeats + 2):
        begun = time.perf_counter()
        decode(engine, cache, actions[:, 0], DecodingConfig(), None, None)
        if place.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times[2:])
