"""Costs by where a model's state heads believe objects to be, in the units of the world. Knows no concrete model or task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from emu_embodied.labels import need
from emu_embodied.protocols import WorldModel
from emu_embodied.types import Rollout

# positions (B, S, T, O, 2) in world units, O in the model's order -> (B, S, T) or, for places, (B, S, T, 2)
Measure = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ObjectPositions:
    """What is left to do, by the imagined positions: end * d_T + (1 - end) * mean_t d_t, in world units (cm).

    d_t is the smallest distance up to step t, because reaching the goal ends an episode.

    Attributes:
        distance: what is left at each step, (B, S, T), from positions; 0 is done.
        end: weight of the last step, in [0, 1]; the rest rewards being early.
    """

    distance: Measure
    end: float = 0.5

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        need(model, "positions", "cost")
        left_BST = self.distance(rollout.positions_BSTOD).cummin(-1).values
        return self.end * left_BST[..., -1] + (1 - self.end) * left_BST.mean(-1)


@dataclass(frozen=True)
class BehindObject:
    """How far the robot must walk, at the end, to get behind the object that it is to push, in world units (cm).

    The wanted spot is c - radius * u: c the object, g its target, u = (g - c) / |g - c|. The walk is the shortest path
    from the robot to the spot around a disc of that radius at c, so that a robot in front of the object is drawn
    sideways and not through it. 0 where the goal was reached on the way.

    Attributes:
        distance: as in `ObjectPositions`.
        target: the object's target at each step, (B, S, T, 2), from positions.
        robot, object: indices in the model's objects.
        radius: world units between the centres when the robot touches the object.
    """

    distance: Measure
    target: Measure
    robot: int
    object: int
    radius: float = 4.2

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        need(model, "positions", "cost")
        positions_BSTOD = rollout.positions_BSTOD
        last_BS1OD = positions_BSTOD[:, :, -1:]
        object_BS2 = last_BS1OD[:, :, 0, self.object]
        offset_BS2 = last_BS1OD[:, :, 0, self.robot] - object_BS2
        back_BS2 = object_BS2 - self.target(last_BS1OD)[:, :, 0]
        reached_BS = (self.distance(positions_BSTOD) <= 0).any(-1)
        return walk_around(offset_BS2, back_BS2, self.radius).masked_fill(reached_BS, 0.0)


def walk_around(start: torch.Tensor, direction: torch.Tensor, radius: float) -> torch.Tensor:
    """Length of the shortest path from `start` to the disc's edge in `direction`, outside a disc at the origin.

    With r = |start| and the angle a between the two: the straight line where the disc does not hide the spot
    (a <= acos(radius / r)), else the tangent sqrt(r^2 - radius^2) and the arc radius * (a - acos(radius / r)). Inside
    the disc, the way out, radius - r, comes first.

    Args:
        start: (..., 2), and direction (..., 2) of any length, in world units.

    Returns:
        (...) in world units.
    """
    tiny = 1e-6
    # acos and sqrt have no finite slope at their ends: where a gradient is asked for, they stay off them.
    edge, floor = (1 - tiny, tiny) if start.requires_grad and torch.is_grad_enabled() else (1.0, 0.0)
    length = start.norm(dim=-1).clamp(min=tiny)
    out = length.clamp(min=radius)
    cosine = (start * direction).sum(-1) / (length * direction.norm(dim=-1).clamp(min=tiny))
    angle = cosine.clamp(-edge, edge).acos()
    hidden_from = (radius / out).clamp(max=edge).acos()
    straight = (out**2 + radius**2 - 2 * out * radius * angle.cos()).clamp(min=floor).sqrt()
    around = (out**2 - radius**2).clamp(min=floor).sqrt() + radius * (angle - hidden_from)
    return torch.where(angle <= hidden_from, straight, around) + (out - length)


@dataclass(frozen=True)
class ObjectLost:
    """mean_t (1 - presence_t) of one object, in [0, 1]: futures in which it vanishes say nothing about it.

    Attributes:
        object: index in the model's objects.
    """

    object: int

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        need(model, "positions", "cost")
        return (1 - rollout.presence_BSTO[..., self.object]).mean(-1)
