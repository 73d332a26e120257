"""Small real LeRobotDatasets as others record them: several cameras, named joints in degrees, no rewards, no true states."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.priority import ordinary_priority
from emu_embodied.data.lerobot_format import _quiet_lerobot

TOP, WRIST = "observation.images.top", "observation.images.wrist"
JOINTS = tuple(f"{name}.pos" for name in ("pan", "lift", "elbow", "flex", "roll", "tilt", "gripper"))
FPS, HEIGHT, WIDTH = 15, 24, 32


def recorded_actions(seed: int, steps: int) -> np.ndarray:
    """(steps, 7) float32 in degrees; the gripper is open or shut."""
    rng = np.random.default_rng(seed)
    actions = rng.normal(10, 40, (steps, len(JOINTS))).astype(np.float32)
    actions[:, -1] = rng.integers(0, 2, steps) * 100
    return actions


def picture(seed: int, step: int, camera: str) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: grey that tells episode and step; the wrist's is bright."""
    return np.full((HEIGHT, WIDTH, 3), (200 if camera == WRIST else 20) + 3 * step + (7 * seed) % 13, np.uint8)


def write_foreign(
    root: Path,
    kind: str = "image",
    lengths: tuple[int, ...] = (12, 12, 12),
    cameras: tuple[str, ...] = (TOP,),
    one_file_each: bool = False,
    change=lambda seed, frames, actions: None,
) -> Path:
    """Records episodes with LeRobot itself.

    Args:
        root: the folder.
        kind: "image" or "video".
        lengths: frames of each episode; its number is its seed.
        cameras: names.
        one_file_each: every episode gets data and video files of its own.
        change: may change an episode's frames (by camera, lists) and actions in place.
    """
    with ordinary_priority(), _quiet_lerobot():
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        shape = {"dtype": kind, "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]}
        features = {camera: dict(shape) for camera in cameras}
        features["action"] = {"dtype": "float32", "shape": (len(JOINTS),), "names": list(JOINTS)}
        dataset = LeRobotDataset.create("someone/arm", FPS, features, root=root, use_videos=kind == "video")
        if one_file_each:
            dataset.meta.update_chunk_settings(data_files_size_in_mb=1e-6, video_files_size_in_mb=1e-6)
        for seed, length in enumerate(lengths):
            actions = recorded_actions(seed, length)
            frames = {camera: [picture(seed, t, camera) for t in range(length)] for camera in cameras}
            change(seed, frames, actions)
            for t in range(length):
                shown = {camera: frames[camera][t] for camera in cameras}
                dataset.add_frame({**shown, "action": actions[t], "task": f"pick up block {seed % 2}"})
            dataset.save_episode()
        dataset.finalize()
    return root
