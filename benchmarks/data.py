"""How fast datasets come in: training batches from a frame cache, and the building of caches. Writes JSON.

    python -m benchmarks.data --out benchmarks/results/data-cpu.json

The datasets are recorded for it with LeRobot: a square that moves over a table of noise, seen by a fixed camera. Pictures of
noise are harder to decode than real ones, videos of it, which stands still, are easier.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.priority import ordinary_priority
from benchmarks.timing import machine, summary, versions
from emu_embodied.data.frame_cache import FrameCache, build_frame_cache, load_frame_cache, save_frame_cache
from emu_embodied.data.reader import ReadOptions
from emu_embodied.storage.atomic import write_json
from emu_embodied.training.datasets import WindowSampler

SHAPES = {"nano, 16 windows of 3": (16, 3, 64), "nano, 16 of 5": (16, 5, 64), "base, 64 of 9": (64, 9, 256)}


def main() -> None:
    """Measures, writes JSON, and prints the rates."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data-cpu.json"))
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--length", type=int, default=50, help="frames of each episode")
    parser.add_argument("--image-size", type=int, default=64, help="of the cache")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    result = {"batches": time_batches(), "caches": time_caches(arguments)}
    result |= {"machine": machine(torch.device("cpu")), "versions": versions(), "image_size": arguments.image_size}
    result["load_average"] = os.getloadavg()[0]  # of the last minute: what else ran
    write_json(arguments.out, result)
    for name, row in result["batches"].items():
        print(f"batches, {name}: {row['frames_per_second']:.0f} frames/s")
    for name, row in result["caches"].items():
        print(f"cache of {name}: built at {row['build']:.0f} frames/s, read at {row['load']:.0f}")
    print(f"result: {arguments.out}")


def time_batches(episodes: int = 500, length: int = 41) -> dict[str, dict[str, float]]:
    """Batches of codes, actions and labels, as the trainer asks for them, one a call."""
    rng, frames = np.random.default_rng(0), episodes * length
    names = [f"{name}.{part}" for name in ("pusher", "red", "green") for part in ("x", "y", "present")]
    cache = FrameCache(
        pixels=np.zeros((frames, 1, 1, 3), np.uint8),
        agent_pos=np.zeros((frames, 2), np.float32),
        states=np.cumsum(rng.normal(size=(frames, 9)) * (rng.random((frames, 9)) < 0.1), 0).astype(np.float32),
        actions=rng.uniform(-1, 1, (frames, 2)).astype(np.float32),
        rewards=np.zeros(frames, np.float32),
        successes=np.zeros(frames, bool),
        episode_starts=np.arange(episodes + 1) * length,
        instructions=("",) * episodes,
        names={"agent_pos": ["x", "y"], "state": names, "action": ["x", "y"]},
        fps=4,
    )
    rows = {}
    for name, (windows, length, tokens) in SHAPES.items():
        codes = torch.randint(0, 512, (frames, tokens), dtype=torch.int16)
        sampler = WindowSampler(
            cache, codes, torch.zeros(episodes, 16, dtype=torch.int64), ("pusher", "red", "green"), 0
        )
        times = []
        for step in range(210):
            begun = time.perf_counter()
            sampler.batch(step, windows, length)
            times.append(time.perf_counter() - begun)
        rows[name] = summary(times[10:], windows * length)
    return rows


def time_caches(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Frames a second from the files of a dataset to arrays, and from a cache's own file."""
    rows, total = {}, arguments.episodes * arguments.length
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("image", "video"):
            for height, width in ((96, 96), (240, 320), (480, 640)):
                name = f"{kind}s of {width} x {height} px"
                root = Path(folder) / f"{kind}-{width}"
                record(root, kind, (height, width), arguments.episodes, arguments.length)
                options = ReadOptions(image_size=arguments.image_size)
                build_frame_cache(root, options)  # imports and the file system's cache
                begun = time.perf_counter()
                cache = build_frame_cache(root, options)
                built = time.perf_counter()
                if len(cache) != total:
                    raise SystemExit(f"{name}: {len(cache)} of {total} frames, {cache.dropped[:1]}")
                save_frame_cache(root.with_suffix(".frames"), cache)
                saved = time.perf_counter()
                load_frame_cache(root.with_suffix(".frames"))
                loaded = time.perf_counter()
                rows[name] = {"build": total / (built - begun), "load": total / (loaded - saved), "frames": total}
    return rows


@ordinary_priority()
def record(root: Path, kind: str, size: tuple[int, int], episodes: int, length: int) -> None:
    """A dataset of one camera with seven named joints, at 15 frames a second."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        "observation.images.top": {"dtype": kind, "shape": (*size, 3), "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (7,), "names": [f"joint{i}.pos" for i in range(7)]},
    }
    rng = np.random.default_rng(0)
    dataset = LeRobotDataset.create("bench/data", 15, features, root=root, use_videos=kind == "video")
    for _ in range(episodes):
        ground = rng.integers(90, 110, (*size, 3)).astype(np.uint8)
        for t in range(length):
            frame = ground.copy()
            at = t * (size[0] - 24) // length
            frame[at : at + 24, at : at + 24] = (200, 40, 40)
            dataset.add_frame(
                {"observation.images.top": frame, "action": rng.normal(size=7).astype(np.float32), "task": "push"}
            )
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    main()
