"""How frames are timed: on a step engine, in a row, each with the commit of the one before; on what. Knows no checkpoint."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

from emu_embodied.inference.decoding import autoregressive, dida, exact
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.storage.atomic import write_json

METHODS = {"autoregressive": autoregressive, "exact": exact, "dida": dida}
FRAMES = 2  # timed in a row


@torch.inference_mode()
def time_frames(engine, histories: tuple[torch.Tensor, ...], config: DecodingConfig, budget: float) -> list[float]:
    """Seconds a frame of all dreams together: each timing is `FRAMES` frames after an untimed one.

    Args:
        engine: a `protocols.StepEngine`.
        histories: text (B, L), frames (B, C, N), actions between them, and the next action (B, A).
        config: how frames are decoded.
        budget: seconds to spend; at least three timings, at most 30.
    """
    text, codes, actions, action = histories
    start = engine.prefill(text, codes, actions, ahead=FRAMES + 2)
    decode = engine.whole_frame(METHODS[config.decoding].decode_frame)
    generator = torch.Generator(text.device).manual_seed(0) if config.temperature > 0 else None
    times: list[float] = []
    for repeat in range(31):
        cache = start.expand(1)
        decode(engine, cache, action, config, generator, None)
        synchronize(text.device)
        begun = time.perf_counter()
        for _ in range(FRAMES):
            decode(engine, cache, action, config, generator, None)
        synchronize(text.device)
        if repeat:  # the first warms up
            times.append((time.perf_counter() - begun) / FRAMES)
        if len(times) >= 3 and sum(times) * FRAMES > budget:
            break
    return times


def synchronize(device: torch.device) -> None:
    """Waits for the GPU, where there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(times: list[float], batch: int) -> dict[str, float]:
    """Median and quartiles in ms a frame, and frames a second at the median."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {
        "ms": 1e3 * middle,
        "ms_quartiles": [1e3 * low, 1e3 * high],
        "frames_per_second": batch / middle,
        "n": len(times),
    }


def speedups(speed: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Each decoding's frames a second over token by token's, by batch size."""
    return {
        batch: {
            f"{name}_over_autoregressive": row["autoregressive"]["ms"] / row[name]["ms"]
            for name in row
            if name != "autoregressive"
        }
        for batch, row in speed.items()
        if "autoregressive" in row
    }


def bare_matrix_products(model, tokens: int, batch: int, rounds: int, budget: float) -> list[float]:
    """Seconds that a frame's matrix products alone take: `rounds` passes of `matrix_products` over `tokens` of each dream."""
    return time_calls(matrix_products(model, batch * tokens, rounds), model.noised.device, budget)


def matrix_products(model, rows: int, rounds: int, dtype: torch.dtype | None = None) -> Callable[[], None]:
    """What multiplies every layer's weights and the head's visual part with so many rows, and does nothing else.

    Args:
        model: the token model.
        rows: tokens of all dreams together.
        rounds: how often.
        dtype: to multiply in; the weights' own by default.
    """
    weights = [p for p in model.transformer.model.layers.parameters() if p.ndim == 2]
    weights.append(model.transformer.lm_head.weight[model.config.vocabulary.visual])
    weights = [w.detach().to(dtype or w.dtype) for w in weights]
    pairs = [(torch.randn(rows, w.shape[1], dtype=w.dtype, device=w.device), w.T) for w in weights]

    @torch.inference_mode()
    def multiply() -> None:
        for _ in range(rounds):
            for x, w in pairs:
                torch.mm(x, w)

    return multiply


def time_calls(function: Callable[[], None], device: torch.device, budget: float) -> list[float]:
    """Seconds of each call after one warm-up, until the budget is spent; at least three."""
    function()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 50):
        synchronize(device)
        begun = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - begun)
    return times


def publish(result: dict, out: Path | None, packages: tuple[str, ...] = (), device: str = "cpu") -> None:
    """Writes a result with what it ran on as JSON, or prints it where no file is named.

    Args:
        result: of JSON's types.
        out: the file; its folder is made.
        packages: further ones that the figures depend on.
        device: that was used.
    """
    known = versions() | {name: metadata.version(name) for name in packages}
    result = {**result, "machine": machine(torch.device(device)), "versions": known}
    if out is None:
        print(json.dumps(result))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)


def machine(device: torch.device) -> dict[str, object]:
    """What it ran on."""
    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    facts = {"processor": names[0] if names else platform.machine(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def versions() -> dict[str, str]:
    """Of the packages that a figure depends on, as far as they are installed."""
    found = {}
    for name in ("emu-embodied", "torch", "numpy", "onnxruntime", "tensorrt", "tensorrt-rtx-cu13-libs"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
