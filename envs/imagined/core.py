"""What imagined envs share: B dreams that go on together. Knows no concrete model, and not where dreams start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch

from emu_embodied.errors import InputError
from emu_embodied.labels import knows
from emu_embodied.protocols import Seedable, WorldModel
from emu_embodied.types import (
    AGENT_POS,
    BELIEFS,
    INSTRUCTION,
    IS_SUCCESS,
    PIXELS,
    TASK,
    History,
    Observation,
    Rollout,
    short_repr,
)
from emu_embodied.units import ActionScale
from emu_embodied.validation import derived_seed

from .beliefs import belief_space, believe, believed, instruction_space, instruction_words

RENDER_PX = 256
DEFAULT = (PIXELS, AGENT_POS)  # what dreams show by default: what the real env does
OBSERVATIONS = (*DEFAULT, BELIEFS, INSTRUCTION)


@dataclass(frozen=True)
class DreamtStep:
    """What B dreams came to in one step.

    Attributes:
        rewards: (B,) float64.
        successes: (B,) bool.
        infos: one dict per dream.
    """

    rewards: np.ndarray
    successes: np.ndarray
    infos: list[dict[str, Any]]

    __repr__ = short_repr


class Dreams:
    """B dreams of one world model that step together, one model call for all; each may start anew on its own.

    Args:
        world_model: what they are dreamt with. If it draws (has `seed`), each dream's noise is set anew for every step, from
            its own seed and age, so that neither its neighbours nor anybody else who uses the model changes a dream. Of what
            its data had no labels of, nothing is reported: rewards are 0 then, and nothing succeeds.
        agent_space: bounds of `agent_pos`.
        count: B.
        scale: of the robot's actions; by default the model's own.
        observe: which observations are wanted: `OBSERVATIONS`, or some of them. Frames are decoded only where they are.

    Attributes:
        history: what the model remembers; None before the first start.
        ages: (B,) int64, steps since each dream's start.
        tasks: each dream's instruction.
    """

    def __init__(
        self,
        world_model: WorldModel,
        agent_space: gymnasium.spaces.Box,
        count: int,
        observe: Sequence[str] = DEFAULT,
        scale: ActionScale | None = None,
    ) -> None:
        self.model, self.count, self.observe = world_model, count, tuple(observe)
        self.history: History | None = None
        self.ages = np.zeros(count, np.int64)
        self.tasks = [""] * count
        self._seeds = [0] * count
        self._bounds, self._scale = agent_space, scale or ActionScale.of(world_model)
        self._seen: dict[str, np.ndarray] = {}

    @property
    def observations(self) -> dict[str, np.ndarray]:
        """What is wanted of the present, each (B, ...), the caller's to keep."""
        return {name: self._seen[name].copy() for name in self.observe}

    def begin(self, rows: Sequence[int], starts: Sequence[Observation], seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Starts some dreams anew (at first: all), in one model call.

        Args:
            rows: which, in ascending order.
            starts: where each of them starts.
            seeds: of each one's sampling noise.

        Returns:
            Their infos.

        Raises:
            InputError: an instruction that the model cannot read; the dreams are then as before.
        """
        new = self.model.encode(starts)
        seen = self._look(new, np.stack([start.agent_pos for start in starts]))
        if BELIEFS in self.observe:
            seen[BELIEFS] = believe(self.model, new, *_noise(self.model, seeds, [0] * len(rows)))
        if len(rows) == self.count:
            self.history, self._seen = new, seen
        else:
            order = np.arange(self.count)
            order[list(rows)] = self.count + np.arange(len(rows))
            assert self.history is not None  # all of them began first
            self.history = _join(self.history, new).select(order.tolist())
            self._seen = {name: np.concatenate([self._seen[name], seen[name]])[order] for name in seen}
        for row, start, seed in zip(rows, starts, seeds, strict=True):
            self.tasks[row], self._seeds[row], self.ages[row] = start.instruction, seed, 0
        return [self._info_before(start) for start in starts]

    def stand_still(self) -> Rollout:
        """What one step of standing still would lead to, right after all began; they stay where they are."""
        still = np.zeros((self.count, self.model.action_dim), np.float32)
        assert self.history is not None
        return self.model.step(self.history, still, *_noise(self.model, self._seeds, self.ages))[1]

    def step(self, actions: np.ndarray) -> DreamtStep:
        """Dreams one step of all from checked actions (B, A), in the robot's units."""
        actions = self._scale.from_robot(actions).astype(np.float32)
        assert self.history is not None
        noise = _noise(self.model, self._seeds, self.ages + 1)
        self.history, rollout = self.model.step(self.history, actions, *noise)
        self.ages += 1
        reached = self.model.agent_pos(rollout)[:, 0, 0]
        self._seen = self._look(self.history, np.clip(reached, self._bounds.low, self._bounds.high).astype(np.float32))
        if BELIEFS in self.observe:
            self._seen[BELIEFS] = believed(self.model, rollout)
        values = (rollout.rewards_BST, rollout.success_BST)
        rewards, chances = (x[:, 0, 0].float().cpu().numpy() for x in values)
        successes = chances > 0.5 if self._judges else np.zeros(self.count, bool)
        rewards = rewards.astype(np.float64) if knows(self.model, "reward") else np.zeros(self.count)
        return DreamtStep(rewards, successes, self._infos(rollout))

    @property
    def _judges(self) -> bool:
        return knows(self.model, "success")

    def _info_before(self, start: Observation) -> dict[str, Any]:
        """A step's info before the first step: the same keys, as recorders want them; NaN for what only a step reports."""
        judged = {IS_SUCCESS: False, "success_probability": math.nan} if self._judges else {}
        info = {**judged, "entropy": math.nan, TASK: start.instruction}
        if knows(self.model, "positions"):
            info["positions"] = {name: (math.nan, math.nan) for name in self.model.objects}
            info["presence"] = {name: math.nan for name in self.model.objects}
        return info

    def _infos(self, rollout: Rollout) -> list[dict[str, Any]]:
        """One dict a dream, of what the model knows."""
        names, located = self.model.objects, knows(self.model, "positions")
        chances, entropy = (x[:, 0, 0].float().cpu().tolist() for x in (rollout.success_BST, rollout.entropy_BST))
        places, presence = (x[:, 0, 0].float().cpu().tolist() for x in (rollout.positions_BSTOD, rollout.presence_BSTO))
        infos: list[dict[str, Any]] = []
        for i in range(self.count):
            judged = {IS_SUCCESS: chances[i] > 0.5, "success_probability": chances[i]} if self._judges else {}
            infos.append({**judged, "entropy": entropy[i], TASK: self.tasks[i]})
            if located:
                infos[i]["positions"] = dict(zip(names, map(tuple, places[i]), strict=True))
                infos[i]["presence"] = dict(zip(names, presence[i], strict=True))
        return infos

    def picture(self, row: int) -> np.ndarray:
        """A dream's present frame, (256, 256, 3) uint8, for people to look at: enlarged without smoothing."""
        assert self.history is not None
        frame = self._seen[PIXELS][row] if PIXELS in self._seen else self.model.decode(self.history.codes_BCN[row, -1])
        nearest = np.arange(RENDER_PX) * len(frame) // RENDER_PX
        return frame[nearest][:, nearest]

    def _look(self, history: History, agent_pos: np.ndarray) -> dict[str, np.ndarray]:
        """The wanted observations of a history's last frames, without beliefs."""
        seen = {AGENT_POS: agent_pos}
        if PIXELS in self.observe:
            seen[PIXELS] = self.model.decode(history.codes_BCN[:, -1])
        if INSTRUCTION in self.observe:
            seen[INSTRUCTION] = instruction_words(self.model, history.text_BL)
        return seen


def _noise(model: WorldModel, seeds: Sequence[int], ages: Sequence[int] | np.ndarray) -> tuple[list[int], ...]:
    """The argument that gives a model that samples at random each dream's noise at its age."""
    if not isinstance(model, Seedable):
        return ()
    return ([derived_seed(seed, int(age)) for seed, age in zip(seeds, ages, strict=True)],)


def _join(one: History, other: History) -> History:
    """The worlds of two histories, one after the other."""
    return History(
        torch.cat([one.codes_BCN, other.codes_BCN]),
        torch.cat([one.actions_BCA, other.actions_BCA]),
        torch.cat([one.text_BL, other.text_BL]),
    )


def observed_space(space: gymnasium.spaces.Dict, world_model: WorldModel, observe: Any) -> gymnasium.spaces.Dict:
    """The real env's observation space, with those of `OBSERVATIONS` that are asked for and no others.

    Raises:
        InputError: unknown observations, or none, or beliefs of a model that knows no objects.
    """
    names = tuple(observe) if isinstance(observe, list | tuple) else ()
    known = all(isinstance(name, str) and name in OBSERVATIONS for name in names)
    if not names or not known or len(set(names)) < len(names):
        raise InputError("observe", observe, f"give a list of some of {OBSERVATIONS}")
    spaces = dict(space.spaces)
    if BELIEFS in names:
        spaces[BELIEFS] = belief_space(world_model)
    if INSTRUCTION in names:
        spaces[INSTRUCTION] = instruction_space(world_model)
    return gymnasium.spaces.Dict({name: spaces[name] for name in names})
