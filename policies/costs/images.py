"""Costs by how near imagined frames are to a goal's, in pixels, codes or features. Knows no concrete model, env or task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from emu_embodied.errors import InputError
from emu_embodied.framing import fitted
from emu_embodied.protocols import WorldModel
from emu_embodied.types import Rollout
from emu_embodied.validation import whole_number


class GoalImage:
    """Squared difference of the last imagined frame and a goal frame, pixels in [0, 1], at several coarsenesses.

    mean_k k * sum(w_k * (x_k - g_k)^2) / sum(w_g), where x_k, g_k and w_k are averaged over k x k px, k / 4 apart; w is
    `foreground` where either frame differs from the goal's median colour and 1 elsewhere, w_g the same of the goal alone.
    The coarse terms see how far apart things are that do not overlap; the factor k makes up for what averaging takes away.

    Args:
        goal: (H, W, 3) uint8; of another size than the model's frames it is letterboxed as those of its data were.
        foreground: weight of pixels that are not background.
        coarseness: the k, in px, at most the sides of goal and frames.

    Raises:
        InputError: a goal of another dtype or shape, or a k out of range.
    """

    def __init__(self, goal: np.ndarray, foreground: float = 8.0, coarseness: Sequence[int] = (1, 4, 16, 32)) -> None:
        shape = getattr(goal, "shape", ())
        if not isinstance(goal, np.ndarray) or goal.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            found = f"{getattr(goal, 'dtype', type(goal).__name__)} {shape}"
            raise InputError("goal image", found, "give uint8 RGB of shape (H, W, 3)")
        _check_coarseness(coarseness, shape[:2])
        self.foreground, self.coarseness = foreground, tuple(coarseness)
        self._aim(goal)

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        if self.goal.shape[:2] != (model.image_size, model.image_size):
            _check_coarseness(self.coarseness, (model.image_size, model.image_size))
            self._aim(fitted(self.goal, model.image_size))
        frames = model.decode(rollout.codes_BSTN[:, :, -1])  # (B, S, H, W, 3)
        pixels_M3HW = torch.from_numpy(frames).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        weight_M1HW = torch.maximum(self._weight(pixels_M3HW), self.weight_1HW)
        cost_M = _smoothed_error(pixels_M3HW - self.goal_3HW, weight_M1HW, self.weight_1HW, self.coarseness)
        return cost_M.reshape(frames.shape[:2]).to(rollout.rewards_BST.device)

    def _aim(self, goal: np.ndarray) -> None:
        self.goal = goal
        self.goal_3HW = torch.from_numpy(goal.astype(np.float32) / 255).permute(2, 0, 1)
        self.background_3HW = self.goal_3HW.flatten(1).median(1).values[:, None, None]
        self.weight_1HW = self._weight(self.goal_3HW)

    def _weight(self, pixels: torch.Tensor) -> torch.Tensor:
        """`foreground` where pixels (..., 3, H, W) are not background, else 1: (..., 1, H, W)."""
        differs = (pixels - self.background_3HW).abs().amax(-3, keepdim=True) > 0.2
        return 1 + (self.foreground - 1) * differs.float()


def _check_coarseness(coarseness: Sequence[int], sides: tuple[int, int]) -> None:
    for k in coarseness:
        whole_number("coarseness", k, 1, min(sides), InputError)
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
