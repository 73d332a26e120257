"""The robot's units: what actions in [-1, 1] mean outside the package, and which envs take them. Knows no concrete model.

Inside, in models and planners, an action is in [-1, 1]. Whatever leaves the package or comes into it is converted here.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from emu_embodied.errors import ConfigError, InputError
from emu_embodied.protocols import Trained, WorldModel
from emu_embodied.types import short_repr

FAR = 10.0  # times as far as the recordings: perhaps in other units
FORGIVEN = 1e-3  # share of a bound's half-range by which a number may leave it, for rounding


@dataclass(frozen=True, eq=False)
class ActionScale:
    """Centre and half-range of a robot's actions: the robot's a = centre + half * x, x in [-1, 1].

    Attributes:
        centre, half: (A,) float32, in the robot's units. A half of 0 is a value that never changes.
    """

    centre: np.ndarray
    half: np.ndarray

    __repr__ = short_repr

    @classmethod
    def of(cls, model: WorldModel, recordings: Any = None) -> ActionScale:
        """That of a world model's robot, by `model.world.action_scale`; the identity where it has none.

        Args:
            model: the world model.
            recordings: a `FrameCache` of the robot that is meant, where the model was trained on several.

        Raises:
            ConfigError: the model was trained on datasets of different scales, and none was chosen.
        """
        scales = np.array(model.world.action_scale if isinstance(model, Trained) else (), np.float32)
        if not len(scales):
            return cls(np.zeros(model.action_dim, np.float32), np.ones(model.action_dim, np.float32))
        recorded = np.array(getattr(recordings, "action_scale", ()), np.float32)
        if len(recorded) == 1 and any(np.array_equal(scale, recorded[0]) for scale in scales):
            scales = recorded
        if (scales != scales[0]).any():
            remedy = "say whose robot it drives: load(..., dataset=I), the first is 0; or train on datasets that share one"
            raise ConfigError("checkpoint", f"{len(scales)} datasets of different action scales", remedy)
        return cls(*scales[0])

    @property
    def is_identity(self) -> bool:
        """Whether the robot's own units are [-1, 1]."""
        return not self.centre.any() and bool((self.half == 1).all())

    @property
    def box(self) -> gymnasium.spaces.Box:
        """What the model knows of the robot's action space."""
        return gymnasium.spaces.Box(self.centre - self.half, self.centre + self.half, dtype=np.float32)

    @property
    def still(self) -> np.ndarray:
        """(A,) float32 in [-1, 1], the nearest to the robot's 0: what displacements stand still by."""
        return self.from_robot(np.zeros_like(self.centre))

    def to_robot(self, actions: np.ndarray) -> np.ndarray:
        """Actions (..., A) in [-1, 1] in the robot's units."""
        return actions if self.is_identity else (actions * self.half + self.centre).astype(np.float32)

    def from_robot(self, actions: np.ndarray) -> np.ndarray:
        """The robot's actions (..., A) in [-1, 1], what the model does not know clipped, as its training did."""
        if self.is_identity:
            return actions
        moves = np.where(self.half > 0, self.half, np.inf)
        return np.clip((actions - self.centre) / moves, -1, 1).astype(np.float32)

    def check(self, space: gymnasium.Space, field: str = "env.action_space") -> None:
        """Refuses an env whose action space is not the robot's, and warns of one that reaches far beyond what it ever did:
        an env that takes values in [-1, 1] and scales them itself would scale them a second time.

        Raises:
            InputError: another number of values, or some of the model's actions would leave the space.
        """
        size = len(self.centre)
        if not isinstance(space, gymnasium.spaces.Box) or space.shape != (size,):
            raise InputError(field, space, f"this model needs {size} numbers: make the env so")
        low, high = self.centre - self.half, self.centre + self.half
        room = forgiven(space)
        if (low < space.low - room).any() or (high > space.high + room).any():
            found = f"{_shown(space.low)} to {_shown(space.high)}"
            remedy = (
                f"the checkpoint's actions reach from {_shown(low)} to {_shown(high)}: give the env in the units of "
                "the recordings that it was trained on, or a checkpoint of this env"
            )
            raise InputError(field, found, remedy)
        reach, used = (space.high.astype(np.float64) - space.low) / 2, np.abs(self.half)
        far = np.isfinite(reach) & (used > 0) & (reach > FAR * used)
        if far.any():
            warnings.warn(
                f"{field} reaches from {_shown(space.low)} to {_shown(space.high)}, the recordings of the checkpoint's robot "
                f"from {_shown(low)} to {_shown(high)}: is the env in the robot's units?",
                stacklevel=3,
            )


def forgiven(space: gymnasium.spaces.Box) -> np.ndarray:
    """By how much a number may leave each bound of a space, for rounding."""
    half = (space.high.astype(np.float64) - space.low) / 2
    return FORGIVEN * np.where(np.isfinite(half), half, 1.0)


def _shown(values: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.3g}" for value in values) + "]"
