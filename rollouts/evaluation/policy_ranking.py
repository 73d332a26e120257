"""A policy tried in the real env, in dreams of it, or in both from the same starts. Knows no checkpoint and no LeRobot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from emu_embodied.envs.checks import bounds
from emu_embodied.errors import ConfigError, SimulationError
from emu_embodied.metrics import bootstrap_interval, wilson_interval
from emu_embodied.rollouts.goals.task_costs import MAX_STEPS
from emu_embodied.rollouts.vector_envs import DreamtWorlds, Moment, RealWorlds
from emu_embodied.types import short_repr

from .harness import evaluate, rate

WORLDS = ("imagined", "real", "both")
COUNTED = {"instruction": str, "success": bool, "steps": int, "return": float, "clipped": float}  # of a row
Worlds = RealWorlds | DreamtWorlds


@dataclass(frozen=True)
class PolicySettings:
    """What determines the episodes in one world; recorded in its journal, so that no other settings continue it.

    Attributes:
        policy: names the policy and its weights.
        world: "real" or "imagined".
        env_id, env_options: of `gymnasium.make`.
        model: names the world model; empty in the real world.
        batch: episodes at once.
        max_steps: model steps until an episode has failed.
    """

    policy: str
    world: str
    env_id: str
    env_options: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    batch: int = 16
    max_steps: int = MAX_STEPS

    def __post_init__(self) -> None:
        if self.world not in WORLDS[:2]:
            raise ConfigError("world", self.world, f"choose one of {WORLDS}")
        for name in ("batch", "max_steps"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(name, value, "give a whole number of at least 1")


@dataclass(frozen=True)
class PolicyRun:
    """One episode, T steps to success or the end.

    Attributes:
        seed: of its start.
        instruction: the task as text.
        success: at its last step: the simulator's predicate, or the model's belief.
        total: sum of the rewards; estimates in a dream.
        clipped: share of the policy's action values beyond the world's bounds, which were clipped.
        frames: (T + 1, H, W, 3) uint8.
    """

    seed: int
    instruction: str
    success: bool
    total: float
    clipped: float
    frames: np.ndarray

    __repr__ = short_repr

    def row(self) -> dict[str, Any]:
        """The episode without its frames, as JSON."""
        return {
            "seed": self.seed,
            "instruction": self.instruction,
            "success": self.success,
            "steps": len(self.frames) - 1,
            "return": round(self.total, 6),
            "clipped": round(self.clipped, 4),
        }


class Agent(Protocol):
    """Acts in several worlds at once."""

    def check(self, worlds: Worlds) -> None:
        """Says, by a typed error, where it cannot act in these worlds."""
        ...

    def begin(self, worlds: Worlds, seeds: Sequence[int]) -> None:
        """New episodes begin in the worlds; what follows depends on their seeds alone."""
        ...

    def act(self, moment: Moment) -> np.ndarray:
        """Actions (N, A), in the env's units."""
        ...


def play_batch(worlds: Worlds, agent: Agent, seeds: Sequence[int], max_steps: int) -> list[PolicyRun]:
    """Plays one episode a seed, all at once; whoever is done waits for the others.

    Raises:
        SimulationError: actions that are not finite.
        InputError: actions of another shape than the world's.
    """
    (low, high), count = bounds(worlds.action_space), len(seeds)
    moment = worlds.begin(seeds)
    agent.begin(worlds, seeds)
    frames, tasks = [moment.pixels], list(moment.tasks)
    steps, totals, clipped = np.zeros(count, int), np.zeros(count), np.zeros(count)
    done = np.zeros(count, bool)
    while not done.all() and len(frames) <= max_steps:
        actions = np.asarray(agent.act(moment), np.float64)
        if not np.isfinite(actions).all():
            raise SimulationError(
                "policy's action", "NaN or inf", f"see what it makes of the episodes of seeds {list(seeds)}"
            )
        within = np.clip(actions, low, high)
        moment = worlds.step(within.astype(np.float32))
        going = ~done
        clipped += going * (np.abs(actions - within) > 1e-6).mean(-1)
        totals, steps = totals + going * moment.rewards, steps + going
        frames.append(moment.pixels)
        done |= moment.successes
    frames_TN = np.stack(frames)
    return [
        PolicyRun(
            seed, tasks[i], bool(done[i]), float(totals[i]), float(clipped[i] / steps[i]), frames_TN[: steps[i] + 1, i]
        )
        for i, seed in enumerate(seeds)
    ]


def evaluate_policy(
    settings: PolicySettings,
    seeds: Sequence[int],
    worlds: Worlds,
    agent: Agent,
    journal: Path | None = None,
    on_episode: Callable[[PolicyRun], None] | None = None,
) -> list[dict[str, Any]]:
    """Plays one episode a seed, `settings.batch` at once.

    Args:
        settings: what is played; of these worlds and this agent.
        seeds: of the starts, the same in every world.
        worlds, agent: who plays where.
        journal: a JSON-lines file that gets the rows of each batch when it is done; a batch whose rows it holds is not played
            again, so that an evaluation that was stopped ends as an undisturbed one.
        on_episode: called with each episode that was played.

    Returns:
        The episodes' rows (`PolicyRun.row`), in the order of the seeds.

    Raises:
        ConfigError: a journal of other settings.
        EmuEmbodiedError: what the agent finds wrong with the worlds, or what an episode raised; the batches before it are in
            the journal.
    """
    agent.check(worlds)

    def play(missing: Sequence[int]) -> Iterator[PolicyRun]:
        for first in range(0, len(missing), settings.batch):
            with torch.random.fork_rng():
                runs = play_batch(worlds, agent, missing[first : first + settings.batch], settings.max_steps)
            yield from runs

    return evaluate(settings, seeds, play, PolicyRun.row, journal, COUNTED, on_episode, settings.batch)


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success rate with Wilson's 95% interval, mean return with a bootstrap's, median steps of the successes, clipped share."""
    returns = np.array([row["return"] for row in rows])
    steps = [row["steps"] for row in rows if row["success"]]
    return {
        **rate(row["success"] for row in rows),
        "return_mean": float(returns.mean()),
        "return_95": list(bootstrap_interval(returns, np.mean)),
        "steps_median": float(np.median(steps)) if steps else None,
        "clipped_mean": float(np.mean([row["clipped"] for row in rows])),
    }


def compare(real: Sequence[dict[str, Any]], imagined: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What dreams say of a policy beside what is true, start by start.

    Args:
        real, imagined: rows of the same seeds, in the same order.

    Returns:
        n; how many succeeded in both, in one only, in neither; agree, the share with the same verdict, and its Wilson
        interval; rate_difference, imagined less real, with a bootstrap's interval over the pairs; return_correlation
        (Pearson's; None where one of the two never varies); pairs, a row for each start.
    """
    pairs = [
        {"seed": a["seed"], "instruction": a["instruction"]}
        | {
            f"{name}_{key}": row[key]
            for name, row in (("real", a), ("imagined", b))
            for key in ("success", "return", "steps")
        }
        for a, b in zip(real, imagined, strict=True)
    ]
    won = np.array([[pair["real_success"], pair["imagined_success"]] for pair in pairs], bool)
    returns = np.array([[pair["real_return"], pair["imagined_return"]] for pair in pairs])
    same, difference = won[:, 0] == won[:, 1], won[:, 1].astype(float) - won[:, 0]
    varied = len(pairs) > 1 and (returns.std(0) > 1e-9).all()
    return {
        "n": len(pairs),
        "both": int(won.all(1).sum()),
        "only_real": int((won[:, 0] & ~won[:, 1]).sum()),
        "only_imagined": int((~won[:, 0] & won[:, 1]).sum()),
        "neither": int((~won).all(1).sum()),
        "agree": float(same.mean()),
        "agree_wilson_95": list(wilson_interval(int(same.sum()), len(pairs))),
        "rate_difference": float(difference.mean()),
        "rate_difference_95": list(bootstrap_interval(difference, np.mean)),
        "return_correlation": float(np.corrcoef(returns.T)[0, 1]) if varied else None,
        "pairs": pairs,
    }
