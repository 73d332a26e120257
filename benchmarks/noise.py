"""How the three noises wear a frame down: tokens that survive and distance in the latent, by level. Knows no transformer.

    python -m benchmarks.noise [--out FILE] [--picture FILE]

Codes are drawn evenly from nano-tabletop's codebook. Distances are squared ones in the tokenizer's latent, scaled to at most 4,
as between URSA's unit vectors (arXiv 2510.24717). The metric noise is also shown by URSA's time t (0 noise, 1 data), whose beta
is c (t / (1 - t))^0.9, for three c: URSA's default 3; the one at which the mean distance falls most evenly in t, which is what
URSA tunes it for; and the one at which half of the tokens survive at t = 0.5, which is how `noise.Metric` counts its levels.
"""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from emu_embodied.checkpoint import fingerprint
from emu_embodied.loading import checkpoint_path, load
from emu_embodied.model.noise import NOISES, Metric, make_noise
from emu_embodied.storage.atomic import write_json

LEVELS = np.linspace(0, 1, 41).round(3)
TIMES = np.linspace(0, 0.975, 40).round(3)
ALPHA, URSA_C = 0.9, 3.0
SEED, REPEATS = 0, 40  # draws of every code at every level


def by_level(name: str, places_VK: torch.Tensor) -> dict[str, list[float]]:
    """Shares of tokens that survive, and mean distance of those that still show a code, at each of `LEVELS`."""
    noise, distance_VV = make_noise(name, places_VK), Metric(places_VK).distance_VV
    generator = torch.Generator().manual_seed(SEED)
    codes = torch.arange(len(places_VK)).repeat(REPEATS)
    curves: dict[str, list[float]] = {"survive": [], "distance": []}
    for level in LEVELS:
        noisy, hidden = noise.corrupt(codes, torch.full(codes.shape, level), generator)
        curves["survive"].append(float((~hidden & (noisy == codes)).float().mean()))
        shown = ~hidden
        curves["distance"].append(float(distance_VV[codes, noisy][shown].mean()) if shown.any() else 0.0)
    return curves


def by_time(noise: Metric, c: float) -> dict[str, list[float]]:
    """The same of the metric noise at each of `TIMES`, computed from its kernel."""
    kernels = [noise.kernel(torch.tensor(c * (t / (1 - t)) ** ALPHA)) for t in TIMES]
    return {
        "survive": [float(kernel.diagonal().mean()) for kernel in kernels],
        "distance": [float((kernel * noise.distance_VV).sum(-1).mean()) for kernel in kernels],
    }


def unevenness(curves: dict[str, list[float]]) -> float:
    """Root mean square by which the distance, as a share of that at t = 0, is off the straight line 1 - t."""
    share = np.array(curves["distance"]) / curves["distance"][0]
    return float(np.sqrt(np.mean((share - (1 - TIMES)) ** 2)))


def measure() -> dict:
    """All curves, and the two values of c that suit the codebook."""
    places_VK = load("nano-tabletop", device="cpu").tokenizer.places()
    metric = Metric(places_VK)
    tried = [(unevenness(by_time(metric, c)), c) for c in np.logspace(-1, 3, 81)]
    result = {"levels": LEVELS.tolist(), "times": TIMES.tolist()}
    result["by_level"] = {name: by_level(name, places_VK) for name in NOISES}
    result["by_time"] = {}
    chosen = {"ursa": URSA_C, "even_distance": float(min(tried)[1]), "half_survive": float(metric.beta(torch.tensor(0.5)))}
    for name, c in chosen.items():
        curves = by_time(metric, c)
        middle = {f"{kind}_at_half": float(np.interp(0.5, TIMES, values)) for kind, values in curves.items()}
        result["by_time"][name] = {"c": c, "uneven": unevenness(curves), **middle, **curves}
    result |= {
        "codes": len(places_VK),
        "nearest_distance": float((metric.distance_VV + 9 * torch.eye(len(places_VK))).min()),
        "checkpoint": fingerprint(checkpoint_path("nano-tabletop")),
        "alpha": ALPHA,
        "seed": SEED,
        "draws_of_each_code": REPEATS,
        "versions": {name: metadata.version(name) for name in ("emu-embodied", "torch", "numpy")},
    }
    return result


def draw(result: dict, path: Path) -> None:
    """Four panels: survival and distance, by level of each noise and by t for each c."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), sharex="col", sharey="row")
    left = {name: (result["levels"], curves) for name, curves in result["by_level"].items()}
    right = {f"c = {c['c']:.3g} ({name.replace('_', ' ')})": (result["times"], c) for name, c in result["by_time"].items()}
    labels = (("survive", "tokens that survive"), ("distance", "mean squared distance in the latent"))
    for column, (lines, below) in enumerate(((left, "level"), (right, "t of the metric noise (0 noise, 1 data)"))):
        for axis, (kind, label) in zip(axes[:, column], labels, strict=True):
            for (name, (x, curves)), style in zip(lines.items(), ("-", "--", "-."), strict=False):
                hidden = kind == "distance" and name == "absorbing"
                axis.plot(x, curves[kind], style, label=f"{name} (tokens still shown)" if hidden else name)
            axis.set_ylabel(label if column == 0 else "")
            axis.legend(frameon=False)
            axis.grid(alpha=0.3)
        axes[1, column].set_xlabel(below)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measures, prints JSON, and writes it and the picture where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noise", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--picture", type=Path, help="draw the curves here, as PNG")
    arguments = parser.parse_args()
    result = measure()
    if arguments.out:
        write_json(arguments.out, result)
    if arguments.picture:
        draw(result, arguments.picture)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
