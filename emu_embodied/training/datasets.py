"""Windows of a trajectory as training batches: codes, actions, instruction, labels. Knows no model and no file format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.errors import DatasetError
from emu_embodied.types import short_repr


@dataclass(frozen=True)
class WindowBatch:
    """B windows of F frames.

    Attributes:
        text_BL: (B, L) int64.
        codes_BFN: (B, F, N) int64.
        targets_BFN: (B, F - 1, N) int64, what is to be predicted of frames 1..; the same codes, unless a teacher drew others.
        actions_BFA: (B, F - 1, A) float32.
        reward_BF, success_BF: (B, F - 1) float32, on arrival at frames 1...
        known_BF3: (B, F - 1, 3) float32, 0 where the reward, the success, the objects are not known: those that a dataset does
            not record, and the first two of a repeated first frame.
        positions_BFO2: (B, F - 1, O, 2) float32 in world units, at frames 1...
        present_BFO: (B, F - 1, O) float32.
    """

    text_BL: torch.Tensor
    codes_BFN: torch.Tensor
    targets_BFN: torch.Tensor
    actions_BFA: torch.Tensor
    reward_BF: torch.Tensor
    success_BF: torch.Tensor
    known_BF3: torch.Tensor
    positions_BFO2: torch.Tensor
    present_BFO: torch.Tensor

    __repr__ = short_repr

    def to(self, device: torch.device) -> WindowBatch:
        """The batch on another device."""
        return WindowBatch(**{k: v.to(device, non_blocking=True) for k, v in vars(self).items()})


class WindowSampler:
    """Draws windows; half of them lie around a contact, where the world is hard to predict.

    Contacts are drawn in proportion to the square of how many objects move: pushes through a second object are rare and
    hardest, and a cube that the model loses is lost there.

    Args:
        cache: the dataset; its pixels are not used.
        codes_FN: (frames, N) visual codes of every frame.
        text_EL: (episodes, L) instruction ids.
        objects: names whose `NAME.x`, `NAME.y`, `NAME.present` are labels; absent names have no labels.
        seed: batches are a function of (seed, step).
        contact_share: share of windows around contact.
        contact_margin: steps before and after a contact that still count as around it.
        moved: world units an object moves in a step of contact.

    Where datasets are mixed, `cache.shares` says how many windows are from each, around contacts or not.

    A window may begin before its episode: the first frame repeated, with zero actions between, which is how a fresh history
    looks to the model.
    """

    def __init__(
        self,
        cache: FrameCache,
        codes_FN: torch.Tensor,
        text_EL: torch.Tensor,
        objects: tuple[str, ...],
        seed: int,
        contact_share: float = 0.5,
        contact_margin: int = 1,
        moved: float = 0.1,
    ) -> None:
        self.cache, self.codes, self.text, self.seed = cache, codes_FN, text_EL, seed
        self.contact_share = contact_share
        columns, frames = label_columns(cache.names["state"], objects), len(cache.actions)
        labels = cache.states[:, columns].reshape(frames, len(objects), 3).astype(np.float32)
        self.positions, self.present = labels[..., :2], labels[..., 2]
        self.starts, self.ends = cache.episode_starts[:-1], cache.episode_starts[1:]
        if (self.ends - self.starts < 2).any():
            first = int((self.ends - self.starts < 2).argmax())
            raise DatasetError(
                "data", f"episode {first} has one frame", "nothing follows it: leave it out, or record anew"
            )
        contacts, weight = self._contacts(moved, contact_margin)
        datasets = np.arange(len(cache.shares) + 1)
        self.by_dataset = np.argsort(cache.sources, kind="stable")  # episodes
        self.first_of = np.searchsorted(cache.sources[self.by_dataset], datasets)
        if (np.diff(self.first_of) == 0).any():
            empty = np.diff(self.first_of).argmin()
            raise DatasetError("data", f"dataset {empty} has no episode to train on", "hold out fewer, or record more")
        source = cache.sources[np.searchsorted(self.ends, contacts, side="right")]
        order = np.argsort(source, kind="stable")
        self.contact_frames, self.contact_weight = contacts[order], np.cumsum(weight[order])
        self.contact_bounds = np.append(0.0, self.contact_weight)[np.searchsorted(source[order], datasets)]

    def _contacts(self, moved: float, margin: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames from which an object (not the robot itself, which comes first) moves soon or has just moved; weights."""
        frames, weights = [np.zeros(0, np.int64)], [np.zeros(0)]
        for start, end in zip(self.starts, self.ends, strict=True):
            far = np.linalg.norm(np.diff(self.positions[start:end, 1:], axis=0), axis=-1) > moved
            count = far.sum(-1)
            near = np.max([np.roll(np.pad(count, margin), k) for k in range(-margin, margin + 1)], 0)
            near = near[margin : len(near) - margin]
            frames.append(start + np.flatnonzero(near))
            weights.append(near[near > 0] ** 2.0)
        return np.concatenate(frames), np.concatenate(weights)

    def batch(self, step: int, size: int, frames: int) -> WindowBatch:
        """The batch of a step: `size` windows of `frames` frames."""
        rng, early = np.random.default_rng([self.seed, step]), max(1, frames - 2)
        episode = self._episodes(rng, size)
        first = self.starts[episode] + rng.integers(-early, self.ends[episode] - self.starts[episode] - frames + 1)
        if len(self.contact_frames):
            low, high = (self.contact_bounds[self.cache.sources[episode] + i] for i in (0, 1))
            pick = (rng.random(size) < self.contact_share) & (high > low)
            drawn = np.searchsorted(self.contact_weight, rng.uniform(low, high), side="right")
            contact = self.contact_frames[np.minimum(drawn, len(self.contact_frames) - 1)]
            owner = np.searchsorted(self.ends, contact, side="right")
            start = np.clip(
                contact - rng.integers(0, frames - 1, size), self.starts[owner] - early, self.ends[owner] - frames
            )
            episode, first = np.where(pick, owner, episode), np.where(pick, start, first)
        index = first[:, None] + np.arange(frames)
        begun = index >= self.starts[episode][:, None]
        index = np.maximum(index, self.starts[episode][:, None])
        actions = self.cache.actions[index[:, :-1]] * begun[:, :-1, None]
        into = index[:, 1:]
        before = np.maximum(into - 1, self.starts[episode][:, None])
        codes = self.codes[torch.from_numpy(index)].long()
        known = np.repeat(self.cache.known[episode][:, None], frames - 1, 1)
        known[..., :2] &= begun[:, :-1, None]
        return WindowBatch(
            self.text[torch.from_numpy(episode)],
            codes,
            codes[:, 1:],
            torch.from_numpy(actions.astype(np.float32)),
            torch.from_numpy(self.cache.rewards[before]),
            torch.from_numpy(self.cache.successes[before].astype(np.float32)),
            torch.from_numpy(known.astype(np.float32)),
            torch.from_numpy(self.positions[into]),
            torch.from_numpy(self.present[into]),
        )

    def _episodes(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """(size,) episodes, evenly; where datasets are mixed, evenly within each."""
        shares = self.cache.shares
        if len(shares) == 1:
            return rng.integers(0, len(self.starts), size)
        source = rng.choice(len(shares), size, p=shares)
        return self.by_dataset[rng.integers(self.first_of[source], self.first_of[source + 1])]


def label_columns(names: Sequence[str], objects: Sequence[str]) -> list[int]:
    """Where the states have x, y and presence of each object, one after the other.

    Args:
        names: of the states' elements.
        objects: names whose `NAME.x`, `NAME.y`, `NAME.present` are looked for.

    Raises:
        DatasetError: one is not there.
    """
    names, wanted = list(names), [f"{name}.{part}" for name in objects for part in ("x", "y", "present")]
    for name in wanted:
        if name not in names:
            raise DatasetError("state names", names, f'there is no "{name}": choose objects that the dataset labels')
    return [names.index(name) for name in wanted]
