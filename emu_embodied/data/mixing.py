"""Several datasets as one, each with its share of the training. Knows frame caches, and no file format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from emu_embodied.errors import DatasetError

from .frame_cache import FrameCache


def mix(caches: Mapping[str, FrameCache], weights: Sequence[float] | None = None) -> FrameCache:
    """One cache of all episodes, in turns, so that its end holds some of each.

    States are those of the first dataset that has any; they count as unknown in datasets with other names. The robot's own
    position is left out unless all call it alike.

    Args:
        caches: by name; none of them a mixture itself.
        weights: how much of the training each is to have; by default as many as it has frames.

    Raises:
        DatasetError: frames, actions or rates that do not agree, or weights that do not fit.
    """
    names, parts = list(caches), list(caches.values())
    if not parts:
        raise DatasetError("data", "no dataset", "give at least one")
    weights = [len(part) for part in parts] if weights is None else list(weights)
    fit = all(isinstance(w, int | float) and np.isfinite(w) and w > 0 for w in weights)
    if len(weights) != len(parts) or not fit:
        raise DatasetError("data_weights", weights, f"give {len(parts)} positive numbers, one for each of {names}")
    if len(parts) == 1:
        return parts[0]
    for name, part in caches.items():
        _check_like(name, part, names[0], parts[0])
    labels = next((part.names["state"] for part in parts if part.states.shape[1]), [])
    same_robot = all(part.names["agent_pos"] == parts[0].names["agent_pos"] for part in parts)
    parts = [_alike(part, labels, same_robot) for part in parts]
    turns = sorted(((e + 0.5) / part.episodes, p, e) for p, part in enumerate(parts) for e in range(part.episodes))
    episodes = [parts[p].select(range(e, e + 1)) for _, p, e in turns]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(episode, name) for episode in episodes])

    per_frame = ("pixels", "agent_pos", "states", "actions", "rewards", "successes")
    return FrameCache(
        **{name: joined(name) for name in per_frame},
        episode_starts=np.concatenate([[0], np.cumsum([len(episode) for episode in episodes])]),
        instructions=tuple(episode.instructions[0] for episode in episodes),
        names={**parts[0].names, "state": labels},
        fps=parts[0].fps,
        known=joined("known"),
        action_scale=np.concatenate([part.action_scale for part in parts]),
        sources=np.array([p for _, p, _ in turns]),
        shares=tuple(float(w / sum(weights)) for w in weights),
        dropped=tuple(replace(fault, dataset=name) for name, part in caches.items() for fault in part.dropped),
    )


def _check_like(name: str, part: FrameCache, first: str, wanted: FrameCache) -> None:
    """Refuses a cache whose frames, actions or rate are not those of the first one."""
    for what, found, theirs in (
        ("frames of", part.pixels.shape[1:], wanted.pixels.shape[1:]),
        ("actions of size", part.actions.shape[1], wanted.actions.shape[1]),
        ("frames per second", part.fps, wanted.fps),
    ):
        if found != theirs:
            raise DatasetError(name, f"{what} {found}", f"{first} has {theirs}: read them alike, or train apart")


def _alike(part: FrameCache, labels: list[str], same_robot: bool) -> FrameCache:
    """A cache with the states that `labels` name, zeros and unknown where it has others."""
    if not same_robot:
        names = {**part.names, "agent_pos": []}
        part = replace(part, agent_pos=np.empty((len(part), 0), np.float32), names=names)
    if part.names["state"] == labels and part.states.shape[1] == len(labels):
        return part
    unknown = part.known & [True, True, False]
    return replace(part, states=np.zeros((len(part), len(labels)), np.float32), known=unknown)
