"""Measures of frames, tokens and states: pure functions. Knows no model and no env."""

from __future__ import annotations

import numpy as np


def colour_centroids(frames: np.ndarray, palette: np.ndarray, reach: float = 110.0) -> tuple[np.ndarray, np.ndarray]:
    """Finds one-coloured objects by the centroid of their colour; no learned model is involved.

    Args:
        frames: (..., H, W, 3) uint8.
        palette: (O, 3) RGB in 0..255, one colour an object.
        reach: RGB distance at which a pixel no longer counts.

    Returns:
        positions (..., O, 2) float32 in px of a 64 px frame, x right and y down, NaN where nothing was found; and
        areas (..., O) float32 in px^2 of a 64 px frame.
    """
    lead, (height, width) = frames.shape[:-3], frames.shape[-3:-1]
    flat = frames.reshape(-1, height * width, 3).astype(np.float32)
    colours = palette.astype(np.float32)
    distance = np.sqrt(
        np.maximum(
            (flat**2).sum(-1)[:, None]
            - 2 * np.einsum("fpc,oc->fop", flat, colours)
            + (colours**2).sum(-1)[None, :, None],
            0,
        )
    )
    weight = np.clip(1 - distance / reach, 0, 1)
    scale = 64 / width
    y, x = np.divmod(np.arange(height * width), width)
    grid = np.stack([(x + 0.5) * scale, (y + 0.5) * scale], -1).astype(np.float32)
    mass = weight.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        positions = (weight @ grid) / mass[..., None]
    areas = mass * scale**2
    positions[areas < 4.0] = np.nan
    return positions.reshape(*lead, len(palette), 2), areas.reshape(*lead, len(palette))


def energy_score(samples: np.ndarray, outcomes: np.ndarray) -> float:
    """How well samples foretell outcomes: mean |sample - outcome| less half of the mean distance between two samples.

    A proper score, in the unit of the values and the lower the better: least, on average, where both have one distribution
    (Gneiting and Raftery, JASA 2007). Of single numbers (D = 1) it is the CRPS. Few samples do not bias it.

    Args:
        samples: (S, D), S at least 2.
        outcomes: (M, D).
    """
    between = np.linalg.norm(samples[:, None] - outcomes[None], axis=-1).mean()
    return float(between - 0.5 * spread(samples))


def spread(samples: np.ndarray) -> float:
    """Mean distance between two different ones of samples (S, D), S at least 2."""
    apart = np.linalg.norm(samples[:, None] - samples[None], axis=-1)
    return float(apart.sum() / (len(samples) * (len(samples) - 1)))


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a rate."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    middle, spread = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)
    return max(0.0, float(low)), min(1.0, float(high))


def bootstrap_interval(
    values: np.ndarray, statistic=np.median, rounds: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap 95% interval of a statistic of independent values (n,)."""
    values = np.asarray(values)
    if len(values) == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    draws = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(rounds)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
