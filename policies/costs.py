"""What a planner minimises: small costs over imagined futures, composed by weight. Knows no concrete model, env or task.

A cost by a head that nobody trained (`labels`) is an InputError.

Each is a `protocols.Cost`: (model, rollout, actions (B, S, T, A)) -> (B, S) float32, lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F

from emu_embodied.errors import InputError
from emu_embodied.labels import need
from emu_embodied.protocols import Cost, WorldModel
from emu_embodied.types import Rollout

# positions (B, S, T, O, 2) in world units, O in the model's order -> (B, S, T) or, for places, (B, S, T, 2)
Measure = Callable[[torch.Tensor], torch.Tensor]


class WeightedSum:
    """sum_i w_i * cost_i; the unit is that of the terms, which the weights should bring to one.

    Args:
        terms: (weight, cost) pairs.

    Raises:
        InputError: no terms, or a weight that is not a finite number.
    """

    def __init__(self, terms: Sequence[tuple[float, Cost]]) -> None:
        self.terms = tuple(terms)
        if not self.terms:
            raise InputError("terms", "none", "give at least one (weight, cost)")
        for weight, _ in self.terms:
            if not isinstance(weight, int | float) or not math.isfinite(weight):
                raise InputError("weight", weight, "give a finite number")

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        return sum(weight * cost(model, rollout, actions) for weight, cost in self.terms)


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


@dataclass(frozen=True)
class RewardHead:
    """-(sum_t discount^t * r_t) / T, in reward per step, of the model's own estimate.

    Attributes:
        discount: in (0, 1].
    """

    discount: float = 1.0

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        need(model, "reward", "cost")
        rewards_BST = rollout.rewards_BST
        steps_T = torch.arange(rewards_BST.shape[-1], device=rewards_BST.device)
        return -(rewards_BST * self.discount**steps_T).mean(-1)


@dataclass(frozen=True)
class SuccessHead:
    """mean_t prod_{s <= t} (1 - p_s), in [0, 1]: the expected share of the horizon before success, p from the model."""

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        need(model, "success", "cost")
        return (1 - rollout.success_BST).cumprod(-1).mean(-1)


class GoalImage:
    """Squared difference of the last imagined frame and a goal frame, pixels in [0, 1], at several coarsenesses.

    mean_k k * sum(w_k * (x_k - g_k)^2) / sum(w_g), where x_k, g_k and w_k are averaged over k x k px, k / 4 apart; w is
    `foreground` where either frame differs from the goal's median colour and 1 elsewhere, w_g the same of the goal alone.
    The coarse terms see how far apart things are that do not overlap; the factor k makes up for what averaging takes away.

    Args:
        goal: (H, W, 3) uint8.
        foreground: weight of pixels that are not background.
        coarseness: the k, in px, at most the goal's sides.

    Raises:
        InputError: a goal of another dtype or shape, when called also of another size than the model's frames.
    """

    def __init__(self, goal: np.ndarray, foreground: float = 8.0, coarseness: Sequence[int] = (1, 4, 16, 32)) -> None:
        shape = getattr(goal, "shape", ())
        if not isinstance(goal, np.ndarray) or goal.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            found = f"{getattr(goal, 'dtype', type(goal).__name__)} {shape}"
            raise InputError("goal image", found, "give uint8 RGB of shape (H, W, 3)")
        _check_coarseness(coarseness, shape[:2])
        self.foreground, self.coarseness = foreground, tuple(coarseness)
        self.goal_3HW = torch.from_numpy(goal.astype(np.float32) / 255).permute(2, 0, 1)
        self.background_3HW = self.goal_3HW.flatten(1).median(1).values[:, None, None]
        self.weight_1HW = self._weight(self.goal_3HW)

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        height, width = self.goal_3HW.shape[1:]
        if (height, width) != (model.image_size, model.image_size):
            raise InputError("goal image", f"{height} x {width} px", f"give {model.image_size} x {model.image_size} px")
        frames = model.decode(rollout.codes_BSTN[:, :, -1])  # (B, S, H, W, 3)
        pixels_M3HW = torch.from_numpy(frames).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        weight_M1HW = torch.maximum(self._weight(pixels_M3HW), self.weight_1HW)
        cost_M = _smoothed_error(pixels_M3HW - self.goal_3HW, weight_M1HW, self.weight_1HW, self.coarseness)
        return cost_M.reshape(frames.shape[:2]).to(rollout.rewards_BST.device)

    def _weight(self, pixels: torch.Tensor) -> torch.Tensor:
        """`foreground` where pixels (..., 3, H, W) are not background, else 1: (..., 1, H, W)."""
        differs = (pixels - self.background_3HW).abs().amax(-3, keepdim=True) > 0.2
        return 1 + (self.foreground - 1) * differs.float()


def _check_coarseness(coarseness: Sequence[int], sides: tuple[int, int]) -> None:
    for k in coarseness:
        if type(k) is not int or not 1 <= k <= min(sides):
            raise InputError("coarseness", k, f"give whole numbers from 1 to the goal's sides, {tuple(sides)}")
    if not coarseness:
        raise InputError("coarseness", "none", "give at least one")


def _smoothed_error(
    difference_MDHW: torch.Tensor, weight_M1HW: torch.Tensor, goal_weight_1HW: torch.Tensor, coarseness: Sequence[int]
) -> torch.Tensor:
    """mean_k k * sum(w_k * mean_D(d_k^2)) / sum(w_g), (M,), where d_k and w_k are means over k x k places: see `GoalImage`."""
    cost_M = difference_MDHW.new_zeros(len(difference_MDHW))
    for k in coarseness:
        error_MDHW = _blur(difference_MDHW, k, beyond=True).square()
        weighted_M = (_blur(weight_M1HW, k) * error_MDHW.mean(1, keepdim=True)).sum((1, 2, 3))
        cost_M += k * weighted_M / _blur(goal_weight_1HW[None], k).sum()
    return cost_M / len(coarseness)


def _blur(images: torch.Tensor, k: int, beyond: bool = False) -> torch.Tensor:
    """Means over k x k px, k / 4 apart; `beyond` the border there is 0, else the border is left out."""
    padding = k // 2 if k > 1 else 0
    return F.avg_pool2d(images, k, stride=max(1, k // 4), padding=padding, count_include_pad=beyond)


class TokenGoal:
    """Share in [0, 1] of the last imagined frame's codes that differ from the goal's.

    Args:
        codes: (N,) int64, a goal frame's codes: `model.encode([goal]).codes_BCN[0, -1]`.

    Raises:
        InputError: when called: another number of codes than the model's frames have.
    """

    def __init__(self, codes: torch.Tensor) -> None:
        self.codes_N = torch.as_tensor(codes)

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        last_BSN = rollout.codes_BSTN[:, :, -1]
        _check_codes(self.codes_N, last_BSN)
        return (last_BSN != self.codes_N.to(last_BSN.device)).float().mean(-1)


class FeatureGoal:
    """Squared distance of the last imagined frame's features and a goal's, at several coarsenesses; no pixel is decoded.

    As in `GoalImage`, over a grid of D features a token in the place of pixels: what codes are is compared, not whether they
    are the same. w is `foreground` where either frame's code is not the goal's commonest one. In units of the variance of the
    goal's features. It has no gradient.

    Args:
        codes: (N,) int64, a goal frame's codes: `model.encode([goal]).codes_BCN[0, -1]`.
        features: codes (M, N) -> (M, D, g, g) float32, N = g^2: `code_features(table)`, or a network's.
        foreground: weight of tokens that are not background.
        coarseness: the k, in tokens, at most g.

    Raises:
        InputError: codes that are no square of whole numbers, or features that are not finite or of another shape; when called:
            another number of codes than the model's frames have.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        features: Callable[[torch.Tensor], torch.Tensor],
        foreground: float = 8.0,
        coarseness: Sequence[int] = (1, 2, 4),
    ) -> None:
        self.codes_N, self.features = torch.as_tensor(codes), features
        grid = math.isqrt(self.codes_N.numel())
        if self.codes_N.ndim != 1 or self.codes_N.is_floating_point() or not grid or grid**2 != self.codes_N.numel():
            found = f"{self.codes_N.dtype} {tuple(self.codes_N.shape)}"
            raise InputError("goal codes", found, "give int64 of shape (N,), N the square of a frame's tokens a side")
        _check_coarseness(coarseness, (grid, grid))
        self.foreground, self.coarseness = foreground, tuple(coarseness)
        goal_1Dgg = features(self.codes_N[None])
        if goal_1Dgg.ndim != 4 or tuple(goal_1Dgg.shape[2:]) != (grid, grid) or not torch.isfinite(goal_1Dgg).all():
            found = f"shape {tuple(goal_1Dgg.shape)}"
            raise InputError("goal features", found, f"give finite numbers of shape (M, D, {grid}, {grid})")
        self.goal_1Dgg, self.unit = goal_1Dgg, goal_1Dgg.std((0, 2, 3), correction=0).norm().clamp(min=1e-6)
        self.unit = self.unit / goal_1Dgg.shape[1] ** 0.5
        self.background = self.codes_N.mode().values
        self.weight_1gg = self._weight(self.codes_N[None])[0]

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        last_BSN = rollout.codes_BSTN[:, :, -1]
        _check_codes(self.codes_N, last_BSN)
        codes_MN = last_BSN.flatten(0, 1)
        difference_MDgg = (self.features(codes_MN) - self.goal_1Dgg.to(codes_MN.device)) / self.unit
        goal_weight_1gg = self.weight_1gg.to(codes_MN.device)
        weight_M1gg = torch.maximum(self._weight(codes_MN), goal_weight_1gg)
        cost_M = _smoothed_error(difference_MDgg.float(), weight_M1gg, goal_weight_1gg, self.coarseness)
        return cost_M.reshape(last_BSN.shape[:2])

    def _weight(self, codes_MN: torch.Tensor) -> torch.Tensor:
        """`foreground` where codes are not background, else 1: (M, 1, g, g)."""
        grid = math.isqrt(codes_MN.shape[1])
        differs = (codes_MN != self.background.to(codes_MN.device)).float()
        return (1 + (self.foreground - 1) * differs).view(-1, 1, grid, grid)


def code_features(table: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Features for `FeatureGoal` from a table of codes: their places in the tokenizer's latent, or their embeddings.

    Args:
        table: (V, D) float32.

    Returns:
        codes (M, N) -> (M, D, g, g).

    Raises:
        InputError: a table of another shape; when called: codes that are not in it.
    """
    if table.ndim != 2 or not table.is_floating_point():
        raise InputError("table", f"{table.dtype} {tuple(table.shape)}", "give float32 of shape (V, D)")

    def features(codes_MN: torch.Tensor) -> torch.Tensor:
        if codes_MN.numel() and not 0 <= int(codes_MN.min()) <= int(codes_MN.max()) < len(table):
            raise InputError("codes", int(codes_MN.max()), f"give codes from 0 to {len(table) - 1}, those of the table")
        grid = math.isqrt(codes_MN.shape[1])
        return table[codes_MN].transpose(1, 2).unflatten(2, (grid, grid))

    return features


def _check_codes(goal_N: torch.Tensor, last_BSN: torch.Tensor) -> None:
    if tuple(goal_N.shape) != tuple(last_BSN.shape[2:]):
        raise InputError("goal codes", f"shape {tuple(goal_N.shape)}", f"give shape {tuple(last_BSN.shape[2:])}")


@dataclass(frozen=True)
class ActionEffort:
    """mean over steps and values of a^2, in [0, 1]."""

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        return actions.square().mean((-2, -1))


@dataclass(frozen=True)
class Uncertainty:
    """mean_t of the tokens' entropy when they were chosen, in nats: keeps plans where the model knows what will happen."""

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        return rollout.entropy_BST.mean(-1)


class PerWorld:
    """Each world of a batch by its own cost.

    Args:
        costs: B of them.

    Raises:
        InputError: when called: another number of worlds.
    """

    def __init__(self, costs: Sequence[Cost]) -> None:
        self.costs = tuple(costs)

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        if len(self.costs) != len(actions):
            raise InputError("costs", f"{len(self.costs)} of them", f"give one for each of {len(actions)} worlds")
        rows = []
        for b, cost in enumerate(self.costs):
            alone = Rollout(*(getattr(rollout, field.name)[b : b + 1] for field in fields(Rollout)))
            rows.append(cost(model, alone, actions[b : b + 1]))
        return torch.cat(rows)
