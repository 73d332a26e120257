"""What a planned episode was chosen among, and a folder that keeps it for people to look at. Knows no planner and no page.

What candidates were imagined to do is learnt from the cost, which every planner asks about them: no planner knows of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch

from emu_embodied.errors import DatasetError, InputError
from emu_embodied.protocols import Cost, WorldModel
from emu_embodied.rollouts.goals.task_costs import PoseGoal, TaskGoal
from emu_embodied.storage.files import load_folder, save_folder
from emu_embodied.types import Plan, Rollout, short_repr

if TYPE_CHECKING:
    from emu_embodied.rollouts.agents.mpc import EpisodeRun

KEPT = 16  # candidates of each plan, the best of its last round
TABLETOP_SCALE = (16.0, -16.0)  # cm at the frame's right and lower edge, for models that do not say


@dataclass(frozen=True)
class PlanRecord:
    """One plan: what it was chosen among, and how sure the model was of what it then did.

    Attributes:
        at: the frame from which it was planned.
        paths: (K, T, O, 2) float32 in world units, where candidates were imagined to bring the objects; the cheapest first.
        costs: (K,) float32.
        chosen: (T, O, 2), the same of the plan itself; of its executed steps alone where no candidate is the plan.
        entropy: (E,) float32 nats, of the executed steps.
        distances: (E,) float32, imagined cm left to go after each of them; empty where the task has no measure.
        present: (O,) bool, the objects that were imagined to be in view.
    """

    at: int
    paths: np.ndarray
    costs: np.ndarray
    chosen: np.ndarray
    entropy: np.ndarray
    distances: np.ndarray
    present: np.ndarray

    __repr__ = short_repr


@dataclass(frozen=True)
class PlanTrace:
    """The plans of an episode, and what their numbers mean.

    Attributes:
        objects: O names.
        colours: name -> RGB in 0..255, as far as the model knows them.
        scale: world units at the frame's right and lower edge.
        looks: one entry a plan.
    """

    objects: tuple[str, ...]
    colours: dict[str, tuple[int, int, int]]
    scale: tuple[float, float]
    looks: tuple[PlanRecord, ...] = field(default=())

    __repr__ = short_repr


class RecordingCost:
    """A cost that remembers what it scored; the plans are those of the cost itself.

    Args:
        cost: what is watched.
        env: the real environment, after its reset: its task measures imagined positions too.
        model: where plans are imagined.
    """

    def __init__(self, cost: Cost, env: gymnasium.Env, model: WorldModel) -> None:
        self.cost, self.looks = cost, []
        self._left, self._names = left_to_go(env, model.objects), scene_of(model)
        self._calls: list[tuple[torch.Tensor, ...]] = []

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        costs = self.cost(model, rollout, actions)
        self._calls.append((rollout.positions_BSTOD, rollout.presence_BSTO, actions, costs))
        return costs

    def look(self, plan: Plan, dream: Rollout, at: int) -> None:
        """Keeps what was scored for this plan.

        Args:
            plan: what came of it.
            dream: its executed steps, imagined: B = S = 1.
            at: the frame from which it was planned.
        """
        steps = max((call[2].shape[2] for call in self._calls), default=0)
        calls = [[x[0].detach().cpu() for x in call] for call in self._calls if call[2].shape[2] == steps]
        self._calls = []
        walked_EO2, entropy_E = dream.positions_BSTOD[0, 0].cpu(), dream.entropy_BST[0, 0].float().cpu().numpy()
        distances = self._left(walked_EO2).float().numpy() if self._left else np.empty(0, np.float32)
        paths, costs, chosen, present = (
            walked_EO2[None][:0],
            torch.empty(0),
            walked_EO2,
            dream.presence_BSTO[0, 0].cpu(),
        )
        for positions_STO2, presence_STO, actions_STA, costs_S in calls:
            order = costs_S.argsort(stable=True)[:KEPT]
            paths, costs, present = positions_STO2[order], costs_S[order].float(), presence_STO.flatten(0, 1)
            if len(plan.actions) >= steps:
                same = (actions_STA == torch.from_numpy(plan.actions)[:steps]).flatten(1).all(1).nonzero()
                chosen = positions_STO2[same[0, 0]] if len(same) else chosen
        parts = (paths.float().numpy(), costs.numpy(), chosen.float().numpy(), entropy_E, distances)
        self.looks.append(PlanRecord(at, *parts, (present.float().mean(0) > 0.5).numpy()))

    @property
    def thoughts(self) -> PlanTrace:
        """All that was kept."""
        return PlanTrace(*self._names, tuple(self.looks))


def scene_of(model: WorldModel) -> tuple[tuple[str, ...], dict[str, tuple[int, int, int]], tuple[float, float]]:
    """Names and colours of a model's objects, and the world units at the frame's right and lower edge."""
    world = getattr(model, "world", None)
    colours = {name: tuple(map(int, rgb)) for name, rgb in getattr(world, "objects", {}).items()}
    return tuple(model.objects), colours, tuple(map(float, getattr(world, "position_scale", TABLETOP_SCALE)))


def left_to_go(env: gymnasium.Env, objects: tuple[str, ...]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What is left of the env's task in cm (...), from positions (..., O, 2) of these objects; None: it has no such task."""
    world = env.unwrapped
    try:
        if hasattr(world, "aims"):
            return PoseGoal(world.aims(), objects).distance
        return TaskGoal(world.task_spec, objects).distance if getattr(world, "task_spec", None) else None
    except InputError:  # about an object that the model does not know
        return None


# The folder


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
        thoughts: the plans; None for agents without a model.
    """

    facts: dict[str, Any]
    actions: np.ndarray
    distances: list[float | None]
    real: np.ndarray
    imagined: np.ndarray
    subgoals: np.ndarray
    thoughts: PlanTrace | None

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
    if run.thoughts is not None:
        looks = run.thoughts.looks
        document["thoughts"] = {
            "objects": list(run.thoughts.objects),
            "colours": {name: list(rgb) for name, rgb in run.thoughts.colours.items()},
            "scale": list(run.thoughts.scale),
            "plans": [look.at for look in looks],
        }
        names = [name for name in PlanRecord.__dataclass_fields__ if name != "at"]
        tensors["plans"] = _tensors(
            {f"{i}.{name}": getattr(look, name) for i, look in enumerate(looks) for name in names}
        )
    save_folder(path, tensors, {"episode": document})


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
        if len(shapes) != 1 or real.dtype != np.uint8 or real.shape[3:] != (3,) or len(real) != len(actions) + 1:
            raise ValueError(f"frames of shapes {real.shape} and {imagined.shape}, {len(actions)} actions")
        if len(distances) != len(real) or len(imagined) not in (0, len(real)):
            raise ValueError(f"{len(real)} frames, {len(imagined)} imagined ones, {len(distances)} distances")
        thoughts = _thoughts(episode["thoughts"], tensors.get("plans", {}))
        return Record(dict(episode["facts"]), actions, distances, real, imagined, subgoals, thoughts)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            str(path), f"{type(error).__name__}: {error}", "it is no recorded episode; plan anew"
        ) from None


def _thoughts(document: dict[str, Any] | None, plans: dict[str, torch.Tensor]) -> PlanTrace | None:
    if document is None:
        return None
    names = [name for name in PlanRecord.__dataclass_fields__ if name != "at"]
    looks = tuple(
        PlanRecord(int(at), *(plans[f"{i}.{name}"].numpy() for name in names)) for i, at in enumerate(document["plans"])
    )
    objects = tuple(map(str, document["objects"]))
    for look in looks:
        if look.paths.shape[2:] != (len(objects), 2) or look.chosen.shape[1:] != (len(objects), 2):
            raise ValueError(f"paths of shapes {look.paths.shape} and {look.chosen.shape} of {len(objects)} objects")
    colours = {name: tuple(map(int, rgb)) for name, rgb in document["colours"].items()}
    right, lower = map(float, document["scale"])
    return PlanTrace(objects, colours, (right, lower), looks)


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """As tensors; what is not finite becomes 0, for no estimate that a plan did not mind shall keep a run from its record."""
    return {name: torch.from_numpy(np.nan_to_num(array, posinf=0, neginf=0)) for name, array in arrays.items()}


def _finite(values: Iterable[float]) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
