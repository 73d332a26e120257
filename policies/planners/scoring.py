"""Candidates of B worlds to their costs: imagined whole, pruned halfway, or softly with a gradient. Knows no planner.

Costs are checked here once, where they enter the planners.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from emu_embodied.errors import InputError
from emu_embodied.protocols import Cost, SoftWorldModel, WorldModel
from emu_embodied.types import History, Rollout, short_repr
from emu_embodied.validation import derived_seed


class Scored(NamedTuple):
    """What a round imagined of each world's candidates, and what it cost.

    Attributes:
        costs_BS: (B, S) float32 on the CPU, infinite where a candidate was pruned.
        frames: imagined per world.
        rollout: (B, S', ...), the futures that were imagined to their ends.
        kept_BS: (B, S') int64 on the CPU, which candidates those are of.
    """

    costs_BS: torch.Tensor
    frames: int
    rollout: Rollout
    kept_BS: torch.Tensor

    __repr__ = short_repr

    def future(self, world: int, candidate: int) -> Rollout:
        """That of one candidate of one world, B = S = 1, a copy."""
        row = int((self.kept_BS[world] == candidate).nonzero()[0, 0])
        return self.rollout.map(lambda x: x[world : world + 1, row : row + 1].clone())


def score(
    model: WorldModel,
    history: History,
    asked: Sequence[torch.Tensor],
    cost: Cost,
    block: int,
    prune: bool,
    noise: tuple[Sequence[int], ...] = (),
) -> Scored:
    """Has each world's candidates imagined, and scores them.

    Args:
        model: imagines them.
        history: of B worlds.
        asked: for each world its candidates (S, K, A) in [-1, 1]; where they require a gradient, it is left in their `.grad`.
        cost: scores what was imagined.
        block: steps for which each action is repeated.
        prune: score after half the steps, and imagine only the better half further.
        noise: for a model that draws the seeds of each world, so that none changes with its neighbours; else empty.

    Raises:
        InputError: costs of another shape, not finite, or without the gradient that is asked for.
    """
    if asked[0].requires_grad:
        return _score_softly(model, history, asked, cost, block)
    actions_BSTA = torch.stack(list(asked)).repeat_interleave(block, 2)
    if prune and actions_BSTA.shape[1] > 1:
        return _score_pruned(model, history, actions_BSTA, cost, noise)
    rollout = model.rollout(history, actions_BSTA, *noise)
    return _whole(_checked(cost(model, rollout, actions_BSTA.to(rollout.rewards_BST.device)), rollout), rollout)


def _whole(costs_BS: torch.Tensor, rollout: Rollout) -> Scored:
    """What is said of candidates that all were imagined to their ends."""
    batch, candidates, steps = rollout.rewards_BST.shape
    return Scored(costs_BS.float().cpu(), candidates * steps, rollout, torch.arange(candidates).expand(batch, -1))


def _score_pruned(model: WorldModel, history: History, actions_BSTA: torch.Tensor, cost: Cost, noise) -> Scored:
    batch, candidates, steps, _ = actions_BSTA.shape
    half, keep = steps // 2, math.ceil(candidates / 2)
    # 1. All candidates, halfway.
    first = model.rollout(history, actions_BSTA[:, :, :half], *noise)
    early_BS = _checked(cost(model, first, actions_BSTA[:, :, :half].to(first.rewards_BST.device)), first)
    # 2. The better half goes on from where it is: each candidate is a world of its own now, with its own history.
    kept_BK = early_BS.float().argsort(dim=-1, stable=True)[:, :keep]
    worlds_B1 = torch.arange(batch, device=kept_BK.device)[:, None]
    first = first.map(lambda x: x[worlds_B1, kept_BK])
    device = history.actions_BCA.device
    actions_BKTA = actions_BSTA[worlds_B1.cpu(), kept_BK.cpu()]
    flat_MTA = actions_BKTA.flatten(0, 1)
    later = history.select(torch.arange(batch, device=device).repeat_interleave(keep))
    for t in range(half):
        later = later.push(flat_MTA[:, t].to(device), first.codes_BSTN[:, :, t].flatten(0, 1))
    own = [[derived_seed(seed, row) for seed in seeds for row in range(keep)] for seeds in noise]
    second = model.rollout(later, flat_MTA[:, None, half:], *own)
    # 3. Their whole futures are scored; the others have no cost to speak of.
    whole = first.join(second.map(lambda x: x.reshape(batch, keep, *x.shape[2:])))
    costs_BK = _checked(cost(model, whole, actions_BKTA.to(whole.rewards_BST.device)), whole).float()
    costs_BS = torch.full((batch, candidates), math.inf, device=costs_BK.device).scatter(1, kept_BK, costs_BK)
    return Scored(costs_BS.cpu(), candidates * half + keep * (steps - half), whole, kept_BK.cpu())


def _score_softly(model: WorldModel, history: History, asked: Sequence[torch.Tensor], cost: Cost, block: int) -> Scored:
    if not isinstance(model, SoftWorldModel):
        rule = "a gradient needs a model with soft_rollout: choose another planner"
        raise InputError("model", type(model).__name__, rule)
    with torch.enable_grad():
        actions_BSTA = torch.stack(list(asked)).repeat_interleave(block, 2)
        rollout = model.soft_rollout(history, actions_BSTA)
        costs_BS = _checked(cost(model, rollout, actions_BSTA.to(rollout.rewards_BST.device)), rollout)
        if not costs_BS.requires_grad:
            rule = "it has no gradient: take costs of positions, reward or success, or another planner"
            raise InputError("cost", type(cost).__name__, rule)
        gradients = torch.autograd.grad(costs_BS.sum(), list(asked))
    for actions_SKA, gradient_SKA in zip(asked, gradients, strict=True):
        wrong = int((~torch.isfinite(gradient_SKA)).flatten(1).any(1).sum())
        if wrong:
            found = f"the gradients of {wrong} of {len(actions_SKA)} candidates are NaN or inf"
            raise InputError("cost", found, "check where it has no slope, or choose another planner")
        actions_SKA.grad = gradient_SKA
    return _whole(costs_BS.detach(), rollout.map(torch.Tensor.detach))


def _checked(costs_BS: object, rollout: Rollout) -> torch.Tensor:
    """What a cost returned, costs (B, S) of a rollout's futures."""
    shape = tuple(rollout.rewards_BST.shape[:2])
    if not isinstance(costs_BS, torch.Tensor):
        raise InputError("cost", type(costs_BS).__name__, f"return a tensor, one cost per candidate, shape {shape}")
    if tuple(costs_BS.shape) != shape:
        raise InputError("cost", f"shape {tuple(costs_BS.shape)}", f"return one cost per candidate, shape {shape}")
    wrong = int((~torch.isfinite(costs_BS)).sum())
    if wrong:
        found = f"{wrong} of {math.prod(shape)} candidates are NaN or inf"
        raise InputError("cost", found, "check the cost's goal and weights, and the model's estimates")
    return costs_BS
