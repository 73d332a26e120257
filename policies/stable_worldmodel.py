"""Our world models as stable-worldmodel's: `get_cost` for its solvers. Knows its keys and shapes, and imports none of it.

stable-worldmodel (PyPI, protocol `Costable`) asks a model for the costs (B, S) of candidates (B, S, K, block * A), given an
info dict whose entries are repeated for the candidates, (B, S, ...). Its solvers (CEM, iCEM, ...) then plan in our models:

    solver = CEMSolver(CostableWorldModel(model, cost), num_samples=64)
    solver.configure(action_space=envs.action_space, n_envs=4, config=PlanConfig(horizon=8, receding_horizon=2))
    actions = solver.solve({"pixels": frames, "instruction": sentences})["actions"]  # (4, 8, 2)

Its solvers' actions may lie outside [-1, 1]: here they count as the bound, and our envs refuse them, so clip them. Its `World`
adds a key "pixels" of its own, which our envs have already:

    clip = [gymnasium.wrappers.ClipAction]
    World("emu_embodied/TabletopPush-v0", 4, add_pixels=False, goal_conditioned=False, pre_wrappers=clip)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from emu_embodied.errors import InputError
from emu_embodied.protocols import Cost, SoftWorldModel, WorldModel
from emu_embodied.types import PIXELS, TASK, History, Observation

INSTRUCTION = "instruction"


class CostableWorldModel:
    """A world model and what is wanted of it, as stable-worldmodel's solvers want the two; its protocol `Costable`.

    Args:
        model: where futures are imagined. Candidates that require a gradient need a `SoftWorldModel`.
        cost: scores them.
    """

    def __init__(self, model: WorldModel, cost: Cost) -> None:
        self.model, self.cost = model, cost

    def get_cost(self, info_dict: Mapping[str, Any], action_candidates: torch.Tensor) -> torch.Tensor:
        """Costs (B, S) float32, with a gradient where the candidates have one.

        Args:
            info_dict: "pixels" (B, S, H, W, 3) uint8, or (B, S, history, H, W, 3), of which the last is seen; and, if there is
                one, "instruction" (or "task", as our envs' infos have it) (B, S) or (B,) texts.
            action_candidates: (B, S, K, block * A): block actions of the model at each of K steps. Its solvers draw without
                bounds: what is outside [-1, 1] is brought to the bound.

        Raises:
            InputError: an entry that is missing or of another shape, or actions that are no multiple of the model's.
        """
        return self.criterion({"history": self.encode(info_dict)}, action_candidates)

    def criterion(self, info_dict: Mapping[str, Any], action_candidates: torch.Tensor) -> torch.Tensor:
        """`get_cost` of histories that are there already, `info_dict["history"]` of B worlds."""
        shape, actions = tuple(action_candidates.shape), self.model.action_dim
        if len(shape) != 4 or shape[3] % actions:
            rule = f"give (B, S, K, block * {actions}), of the model's {actions} values an action"
            raise InputError("action_candidates", f"shape {shape}", rule)
        actions_BSTA = action_candidates.float().clamp(-1, 1).reshape(*shape[:2], -1, actions)
        imagine = self.model.rollout
        if action_candidates.requires_grad and isinstance(self.model, SoftWorldModel):
            imagine = self.model.soft_rollout
        elif action_candidates.requires_grad:
            rule = "gradients need a model with soft_rollout: choose a solver that draws"
            raise InputError("model", type(self.model).__name__, rule)
        rollout = imagine(info_dict["history"], actions_BSTA)
        costs_BS = self.cost(self.model, rollout, actions_BSTA.to(rollout.rewards_BST.device))
        return costs_BS.float().to(action_candidates.device)

    def encode(self, info_dict: Mapping[str, Any]) -> History:
        """The history of B worlds that an info dict tells of, each from the last frame it shows.

        Raises:
            InputError: no pixels, or pixels and instructions of another shape.
        """
        if PIXELS not in info_dict:
            raise InputError("info_dict", sorted(info_dict), f'give "{PIXELS}", (B, S, H, W, 3) uint8')
        pixels = np.asarray(info_dict[PIXELS])
        if pixels.ndim not in (5, 6):
            rule = "give (B, S, H, W, 3) uint8, or (B, S, history, H, W, 3)"
            raise InputError(PIXELS, f"shape {pixels.shape}", rule)
        frames = pixels[:, 0] if pixels.ndim == 5 else pixels[:, 0, -1]
        instructions = info_dict.get(INSTRUCTION, info_dict.get(TASK, [""] * len(frames)))
        instructions = [str(np.ravel(text)[0]) for text in instructions]
        if len(instructions) != len(frames):
            raise InputError(INSTRUCTION, f"{len(instructions)} of them", f"give one for each of {len(frames)} worlds")
        nowhere = np.zeros(self.model.agent_dim, np.float32)
        pairs = zip(frames, instructions, strict=True)
        return self.model.encode([Observation(frame, nowhere, text) for frame, text in pairs])
