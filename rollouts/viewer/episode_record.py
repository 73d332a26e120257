"""A folder that keeps a planned episode for people to look at. Knows no planner and no page."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emu_embodied.errors import DatasetError
from emu_embodied.rollouts.agents.episode import EpisodeRun
from emu_embodied.rollouts.agents.trace import PlanRecord, PlanTrace
from emu_embodied.storage.files import Folder, load_folder, save_folder
from emu_embodied.types import short_repr

MOST_BYTES = 3 << 24  # of a frame: 4096 x 4096
MOST_RECORDED = 1 << 29  # bytes of a run's recorded episodes: one of 300 steps at 512 px, real and imagined, or 70 at 64 px


@dataclass(frozen=True)
class Record:
    """A planned episode as `load_record` reads it; T steps.

    Attributes:
        facts: the episode's row (`EpisodeRun.row`) and its plans' costs.
        actions: (T, A) float32.
        distances: T + 1 numbers, real cm left to go; None where it is not known.
        real, imagined: (T + 1, H, W, 3) uint8; imagined is empty for agents without a model.
        subgoals: (G, H, W, 3) uint8, images that the episode went through in turn; most runs have none. Their captions and the
            steps from which on they were pursued are in the facts' "subgoals".
        trace: the plans; None for agents without a model.
    """

    facts: dict[str, Any]
    actions: np.ndarray
    distances: list[float | None]
    real: np.ndarray
    imagined: np.ndarray
    subgoals: np.ndarray
    trace: PlanTrace | None

    __repr__ = short_repr


def save_record(path: Path, run: EpisodeRun) -> None:
    """Writes an episode as a folder of safetensors and JSON: all of it, or the old one stays.

    Raises:
        CheckpointError: a disk that does not take it.
    """
    frames = {"real": run.frames, "imagined": run.imagined}
    if run.subgoals:
        frames["subgoals"] = np.stack([subgoal.frame for subgoal, _ in run.subgoals])
    tensors = {"frames": _tensors(frames)}
    facts = run.row() | {"plan_costs": _finite(run.plan_costs)}
    document = {"facts": facts, "actions": run.actions.tolist(), "distances": _finite(run.distances), "thoughts": None}
    if run.trace is not None:
        plans = run.trace.plans
        document["thoughts"] = {
            "objects": list(run.trace.objects),
            "colours": {name: list(rgb) for name, rgb in run.trace.colours.items()},
            "scale": list(run.trace.scale),
            "plans": [plan.at for plan in plans],
        }
        names = [name for name in PlanRecord.__dataclass_fields__ if name != "at"]
        tensors["plans"] = _tensors(
            {f"{i}.{name}": getattr(plan, name) for i, plan in enumerate(plans) for name in names}
        )
    save_folder(path, tensors, {"episode": document})


def load_records(paths: Iterable[Path]) -> tuple[Record, ...]:
    """Reads the recorded episodes of a run.

    Raises:
        CheckpointError, DatasetError: as `load_record`; or they are more than `MOST_RECORDED`, and none is read.
    """
    paths = list(paths)
    size = sum(Folder(path).tensor_bytes for path in paths)
    if size > MOST_RECORDED:
        least = f"at most {MOST_RECORDED / 1e9:.1f} GB are shown: plan with fewer videos=, or smaller frames"
        raise DatasetError(f"{paths[0].parent}: recorded episodes", f"{size / 1e9:.1f} GB", least)
    return tuple(map(load_record, paths))


def load_record(path: Path) -> Record:
    """Reads what `save_record` wrote.

    Raises:
        CheckpointError: missing, or damaged.
        DatasetError: whole, but no record of an episode.
    """
    tensors, documents = load_folder(path)
    try:
        episode, frames = documents["episode"], {name: x.numpy() for name, x in tensors["frames"].items()}
        real, imagined = frames["real"], frames["imagined"]
        subgoals = frames.get("subgoals", real[:0])
        actions, distances = np.array(episode["actions"], np.float32), list(episode["distances"])
        shapes = {x.shape[1:] for x in (real, imagined, subgoals)}
        if not 0 < real[0].size <= MOST_BYTES:
            raise ValueError(f"frames of shape {real.shape}")
        if len(shapes) != 1 or real.dtype != np.uint8 or real.shape[3:] != (3,) or len(real) != len(actions) + 1:
            raise ValueError(f"frames of shapes {real.shape} and {imagined.shape}, {len(actions)} actions")
        if len(distances) != len(real) or len(imagined) not in (0, len(real)):
            raise ValueError(f"{len(real)} frames, {len(imagined)} imagined ones, {len(distances)} distances")
        trace = _trace(episode["thoughts"], tensors.get("plans", {}), len(actions))
        return Record(dict(episode["facts"]), actions, distances, real, imagined, subgoals, trace)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            str(path), f"{type(error).__name__}: {error}", "it is no recorded episode; plan anew"
        ) from None


def _trace(document: dict[str, Any] | None, arrays: dict[str, torch.Tensor], steps: int) -> PlanTrace | None:
    if document is None:
        return None
    names = [name for name in PlanRecord.__dataclass_fields__ if name != "at"]
    plans = tuple(
        PlanRecord(int(at), *(arrays[f"{i}.{name}"].numpy() for name in names)) for i, at in enumerate(document["plans"])
    )
    if [plan.at for plan in plans] != sorted({plan.at for plan in plans} & set(range(steps))):
        raise ValueError(f"plans at {document['plans']} of {steps} actions")
    objects = tuple(map(str, document["objects"]))
    for plan in plans:
        if plan.paths.shape[2:] != (len(objects), 2) or plan.chosen.shape[1:] != (len(objects), 2):
            raise ValueError(f"paths of shapes {plan.paths.shape} and {plan.chosen.shape} of {len(objects)} objects")
    colours = {name: (int(red), int(green), int(blue)) for name, (red, green, blue) in document["colours"].items()}
    right, lower = map(float, document["scale"])
    return PlanTrace(objects, colours, (right, lower), plans)


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """As tensors; what is not finite becomes 0, for no estimate that a plan did not mind shall keep a run from its record."""
    return {name: torch.from_numpy(np.nan_to_num(array, posinf=0, neginf=0)) for name, array in arrays.items()}


def _finite(values: Iterable[float]) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
