"""A policy cloned from recorded episodes: a frame and a goal frame to an action. Knows pixels only, no states, no dreams."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from emu_embodied.checkpoint import envelope, open_checkpoint, restore
from emu_embodied.errors import InputError
from emu_embodied.storage.files import save_folder
from emu_embodied.storage.schema import build
from emu_embodied.validation import whole_fields

FORMAT = "emu-embodied-cloning"


@dataclass(frozen=True)
class CloningConfig:
    """Sizes of the policy.

    Attributes:
        image_size: side of a frame in px.
        action_dim: A.
        width: channels of the first layer.
        hidden: features before the action.

    Raises:
        ConfigError: a size out of range.
    """

    image_size: int
    action_dim: int
    width: int = 32
    hidden: int = 256

    def __post_init__(self) -> None:
        sizes = {"image_size": (1, 2048), "action_dim": (1, 4096), "width": (1, 4096), "hidden": (1, 1 << 16)}
        whole_fields(self, sizes)


class ClonedPolicy(nn.Module):
    """Looks at both frames at once, six channels, and says what the recorded policies would do there.

    Goal-conditioned behaviour cloning with goals in hindsight, "Learning to Reach Goals via Iterated Supervised Learning"
    (arXiv 1912.06088), by regression. It is a `protocols.GoalPolicy`.
    """

    def __init__(self, config: CloningConfig) -> None:
        super().__init__()
        self.config = config
        width, side = config.width, -(-config.image_size // 8)
        self.layers = nn.Sequential(
            nn.Conv2d(6, width, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * side**2, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.action_dim),
        )

    def forward(self, frames: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
        """Actions (B, A), about within [-1, 1], of frames and goals (B, H, W, 3) uint8."""
        return self.layers(torch.cat([frames, goals], -1).movedim(-1, 1).float() / 255 - 0.5)

    @torch.inference_mode()
    def act(self, pixels: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """The action (A,) float32 in [-1, 1] at a frame, towards a goal frame, both (H, W, 3) uint8.

        Raises:
            InputError: frames of another size or dtype.
        """
        size = self.config.image_size
        for name, frame in (("pixels", pixels), ("goal", goal)):
            if frame.dtype != np.uint8 or frame.shape != (size, size, 3):
                raise InputError(name, f"{frame.dtype} {frame.shape}", f"this policy sees uint8 of {size} x {size} x 3")
        frames = torch.from_numpy(np.stack([pixels, goal]))
        return self(frames[:1], frames[1:])[0].clamp(-1, 1).numpy()


def save_policy(path: Path, policy: ClonedPolicy, facts: dict) -> None:
    """Writes a policy as safetensors and JSON with SHA-256 sums, whole or not at all.

    Raises:
        CheckpointError: weights that are not finite, or a full disk.
    """
    config = envelope(FORMAT, facts, policy=policy.config)
    save_folder(path, {"policy": policy.state_dict()}, {"config": config})


def load_policy(path: Path) -> ClonedPolicy:
    """Reads what `save_policy` wrote, after checking its sums.

    Raises:
        CheckpointError: missing, damaged, or of another format.
    """
    folder, found, place = open_checkpoint(path, FORMAT, "expected a policy of version 1: train stage=cloning")
    config = build(CloningConfig, found.get("policy"), f"{place}: policy")
    return restore(folder, "policy", lambda: ClonedPolicy(config))
