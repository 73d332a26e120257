"""Small networks that judge dreams: where objects are in a frame, and which action led to it. Knows no world model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from emu_embodied.checkpoint import envelope, open_checkpoint, restore
from emu_embodied.errors import InputError
from emu_embodied.model.config import check_objects
from emu_embodied.storage.files import save_folder
from emu_embodied.storage.schema import build, convert
from emu_embodied.validation import whole_fields

FORMAT = "emu-embodied-probes"
GRID_PX = 64.0  # positions are in px of a frame this wide, whatever its size
BATCH = 256


@dataclass(frozen=True)
class ProbeConfig:
    """Sizes of the probes.

    Attributes:
        image_size: side of a frame in px.
        objects: names of the objects to be found; none leaves the state probe out.
        action_dim: A.
        width: channels of the first layer.
        points: feature points, each the mean place of one channel's softmax.

    Raises:
        ConfigError: a size out of range, or names that stand twice.
    """

    image_size: int
    objects: tuple[str, ...]
    action_dim: int
    width: int = 32
    points: int = 32

    def __post_init__(self) -> None:
        whole_fields(self, {"image_size": (1, 2048), "action_dim": (1, 4096), "width": (1, 4096), "points": (1, 4096)})
        check_objects(self.objects)


class FrameReader(nn.Module):
    """Frames (B, C, H, W) in [0, 1] to features (B, 4 * points): places of feature points, how sharp they are, how strong.

    Feature points are the spatial softmax of "End-to-End Training of Deep Visuomotor Policies" (arXiv 1504.00702).
    """

    def __init__(self, channels: int, width: int, points: int) -> None:
        super().__init__()
        self.features = 4 * points
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 5, 2, 2),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, 1, 1),
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(2 * width, points, 3, 1, 1),
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        maps_BPHW = self.layers(frames)
        height, width = maps_BPHW.shape[-2:]
        weight_BPL = maps_BPHW.flatten(2).softmax(-1)
        y, x = (torch.linspace(-1, 1, side, device=frames.device) for side in (height, width))
        grid_L2 = torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)
        places_BP2 = weight_BPL @ grid_L2
        spread_BP = (weight_BPL @ grid_L2.square()).sum(-1) - places_BP2.square().sum(-1)
        strength_BP = maps_BPHW.flatten(2).logsumexp(-1) / 4
        return torch.cat([places_BP2.flatten(1), spread_BP, strength_BP], -1)


class StateProbe(nn.Module):
    """Frames to positions and presence of objects."""

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        self.reader = FrameReader(3, config.width, config.points)
        self.hidden = nn.Linear(self.reader.features, 256)
        self.heads = nn.Linear(256, 3 * len(config.objects))

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        """Features (B, 256) of frames (B, H, W, 3) uint8: what Frechet distances are taken of."""
        return F.gelu(self.hidden(self.reader(_planes(frames))))

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions (B, O, 2) in px of a 64 px frame, and logits of presence (B, O), of frames (B, H, W, 3) uint8."""
        out_BO3 = self.heads(self.features(frames)).unflatten(-1, (-1, 3))
        return GRID_PX / 2 * (1 + out_BO3[..., :2]), out_BO3[..., 2]


class InverseDynamics(nn.Module):
    """Two frames to the action between them: both are read alike, and what changed is compared."""

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        self.reader = FrameReader(3, config.width, config.points)
        self.heads = nn.Sequential(
            nn.Linear(2 * self.reader.features, 256), nn.GELU(), nn.Linear(256, config.action_dim)
        )

    def forward(self, frames: torch.Tensor, next_frames: torch.Tensor) -> torch.Tensor:
        """Actions (B, A) in [-1, 1] that led from frames (B, H, W, 3) uint8 to the next ones."""
        before, after = self.reader(_planes(torch.cat([frames, next_frames]))).chunk(2)
        return self.heads(torch.cat([before, 8 * (after - before)], -1))


class Probes:
    """Both probes, trained: what judges dreams of one world.

    Args:
        config: their sizes.
        inverse: reads actions.
        state: reads objects; None in a world whose objects are not labelled.
        floors: their own errors on held-out real frames: `floors["state_px"]` (median), `floors["action"]` (mean L1).
    """

    def __init__(
        self, config: ProbeConfig, inverse: InverseDynamics, state: StateProbe | None, floors: dict[str, float]
    ) -> None:
        self.config, self.floors = config, floors
        self.inverse, self.state = inverse.eval(), state.eval() if state else None

    @torch.inference_mode()
    def objects(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions (..., O, 2) in px of a 64 px frame and presence (..., O) bool, of frames (..., H, W, 3) uint8."""
        assert self.state is not None  # of a world whose objects are labelled
        flat = self._flat(frames)
        read = [self.state(part) for part in flat.split(BATCH)]
        places, presence = (torch.cat(parts) for parts in zip(*read, strict=True))
        lead = frames.shape[:-3]
        return places.numpy().reshape(*lead, -1, 2), (presence > 0).numpy().reshape(*lead, -1)

    @torch.inference_mode()
    def features(self, frames: np.ndarray) -> np.ndarray:
        """The state probe's features (N, 256) float64 of frames (..., H, W, 3) uint8."""
        assert self.state is not None
        return torch.cat([self.state.features(part) for part in self._flat(frames).split(BATCH)]).double().numpy()

    @torch.inference_mode()
    def actions(self, frames: np.ndarray, next_frames: np.ndarray) -> np.ndarray:
        """Actions (..., A) between frames (..., H, W, 3) uint8 and the next ones."""
        pairs = zip(self._flat(frames).split(BATCH), self._flat(next_frames).split(BATCH), strict=True)
        read = torch.cat([self.inverse(*pair) for pair in pairs])
        return read.numpy().reshape(*frames.shape[:-3], -1)

    def _flat(self, frames: np.ndarray) -> torch.Tensor:
        size = self.config.image_size
        if frames.dtype != np.uint8 or frames.shape[-3:] != (size, size, 3):
            raise InputError(
                "frames", f"{frames.dtype} {frames.shape}", f"these probes read uint8 of {size} x {size} x 3"
            )
        return torch.from_numpy(np.ascontiguousarray(frames.reshape(-1, size, size, 3)))


def save_probes(path: Path, probes: Probes, facts: dict) -> None:
    """Writes probes as safetensors and JSON with SHA-256 sums, whole or not at all.

    Raises:
        CheckpointError: weights that are not finite, or a full disk.
    """
    parts = {"inverse_dynamics": probes.inverse} | ({"state_probe": probes.state} if probes.state else {})
    config = envelope(FORMAT, facts, probes=probes.config, floors=probes.floors)
    save_folder(path, {name: part.state_dict() for name, part in parts.items()}, {"config": config})


def load_probes(path: Path) -> Probes:
    """Reads what `save_probes` wrote, after checking its sums.

    Raises:
        CheckpointError: missing, damaged, or of another format.
    """
    folder, found, place = open_checkpoint(path, FORMAT, "expected probes of version 1: train stage=probes")
    config = build(ProbeConfig, found.get("probes"), f"{place}: probes")
    floors = convert(Mapping[str, float], found.get("floors"), f"{place}: floors")
    inverse = restore(folder, "inverse_dynamics", lambda: InverseDynamics(config))
    state = restore(folder, "state_probe", lambda: StateProbe(config)) if config.objects else None
    return Probes(config, inverse, state, floors)


def _planes(frames: torch.Tensor) -> torch.Tensor:
    return frames.movedim(-1, 1).float() / 255
