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


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a rate."""
    from scipy import stats  # here, for it takes a second

    if n == 0:
        return 0.0, 1.0
    level = float(2 * stats.norm.cdf(1.96) - 1)  # 95%, with the usual rounding of the normal quantile
    interval = stats.binomtest(successes, n).proportion_ci(level, "wilson")
    return float(interval.low), float(interval.high)


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


def psnr(frames: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, at most 99, of each pair of frames (W, H, W, 3) uint8: (W,) float64."""
    error = np.square(frames.astype(np.float64) - wanted).mean((-3, -2, -1))
    return decibel(error)


def moving_psnr(frames: np.ndarray, wanted: np.ndarray, context: np.ndarray, threshold: int = 8) -> np.ndarray:
    """PSNR in dB over the pixels that differ from the context frame by more than a threshold, in truth or prediction.

    Args:
        frames, wanted, context: (W, H, W, 3) uint8; what was predicted, what came, and the last frame that was known.
        threshold: of 255, in any channel.

    Returns:
        (W,) float64; NaN where nothing moves in either.
    """
    moved = [(np.abs(x.astype(np.int16) - context).max(-1) > threshold) for x in (frames, wanted)]
    region = moved[0] | moved[1]
    error = np.square(frames.astype(np.float64) - wanted).mean(-1)
    count = region.sum((-2, -1))
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, decibel((error * region).sum((-2, -1)) / np.maximum(count, 1)), np.nan)


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Frechet distance of two sets of features (N, D), each taken as a Gaussian: |m - n|^2 + tr(C + D - 2 (C D)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of C D. As with every such distance of few samples, compare
    only figures of the same N.
    """
    (m, c), (n, d) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (one, other))
    roots = np.sqrt(np.maximum(np.linalg.eigvals(c @ d).real, 0)).sum()
    return float(max(0.0, np.square(m - n).sum() + np.trace(c) + np.trace(d) - 2 * roots))


def decibel(error: np.ndarray) -> np.ndarray:
    """PSNR in dB, at most 99, of mean squared errors (...) of pixels in 0..255."""
    return np.minimum(99.0, 10 * np.log10(255.0**2 / np.maximum(error, 1e-9)))


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation of two sets of values (n,): Pearson's of their ranks, ties sharing theirs."""
    from scipy.stats import rankdata

    return correlation(rankdata(one), rankdata(other))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of two sets of values (n,); NaN where one never varies."""
    if np.std(one) < 1e-12 or np.std(other) < 1e-12:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def rank_violation(real: np.ndarray, simulated: np.ndarray) -> float:
    """Mean maximum rank violation (SIMPLER, arXiv 2405.05941): how far apart policies in the wrong order are, at worst.

    Args:
        real, simulated: (n,) success rates of the same policies.

    Returns:
        mean over i of the largest |real_i - real_j| among the j whose order with i the simulation turns round; 0 is perfect.
    """
    apart = real[:, None] - real[None]
    turned = (apart < 0) != (simulated[:, None] - simulated[None] < 0)
    return float((np.abs(apart) * turned).max(-1).mean())
