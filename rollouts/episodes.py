"""Scripted episodes of the table-top, by seed; knows no dataset format."""

from __future__ import annotations

import gymnasium
import numpy as np

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.envs.tabletop import STATE_NAMES
from emu_embodied.envs.tasks import OBJECTS
from emu_embodied.policies.scripted import Collector
from emu_embodied.types import AGENT_POS, IS_SUCCESS, PIXELS, Episode

STYLE_SHARES = {"expert": 0.4, "noisy": 0.52, "random": 0.08}


def collect_episode(env: gymnasium.Env, seed: int, steps: int) -> Episode:
    """Plays one episode of `steps` model steps with a style drawn from `STYLE_SHARES`; same seed, same episode."""
    rng = np.random.default_rng([seed, 77])
    style = rng.choice(list(STYLE_SHARES), p=list(STYLE_SHARES.values()))
    policy = Collector(str(style), rng)
    observation, info = env.reset(seed=seed)
    world = env.unwrapped
    task, instruction = world.task_spec, world.task
    frames, agents, states = [observation[PIXELS]], [observation[AGENT_POS]], [info["environment_state"]]
    actions, rewards, successes = [], [], []
    for _ in range(steps):
        rows = states[-1].reshape(len(OBJECTS), 4).astype(np.float64)
        positions = rows[:, :2]
        target = task.target(positions)
        action = policy.act(positions, rows[:, 3] > 0, OBJECTS.index(task.cube), target)
        observation, reward, _, _, info = env.step(action)
        frames.append(observation[PIXELS])
        agents.append(observation[AGENT_POS])
        states.append(info["environment_state"])
        actions.append(action)
        rewards.append(reward)
        successes.append(info[IS_SUCCESS])
    return Episode(
        np.stack(frames),
        np.stack(agents),
        np.stack(states),
        np.stack(actions),
        np.array(rewards, np.float32),
        np.array(successes),
        instruction,
    )


def record_frames(env_id: str, env_options: dict, seeds: range, steps: int) -> FrameCache:
    """Plays scripted episodes into memory, for an evaluation that needs no dataset on disk.

    Args:
        env_id, env_options: of `gymnasium.make`.
        seeds: one episode each.
        steps: model steps an episode.
    """
    env = gymnasium.make(env_id, **env_options, terminate_on_success=False, max_episode_steps=steps + 1)
    try:
        episodes = [collect_episode(env, seed, steps) for seed in seeds]
    finally:
        env.close()
    rows = steps + 1

    def padded(name: str, last=None) -> np.ndarray:
        values = [getattr(e, name) for e in episodes]
        ends = [np.zeros_like(v[-1:]) if last is None else v[-1:] for v in values]
        return np.concatenate([np.concatenate(pair) for pair in zip(values, ends, strict=True)])

    return FrameCache(
        pixels=np.concatenate([e.pixels for e in episodes]),
        agent_pos=np.concatenate([e.agent_pos for e in episodes]),
        states=np.concatenate([e.states for e in episodes]),
        actions=padded("actions"),
        rewards=padded("rewards"),
        successes=padded("successes", last="repeat"),
        episode_starts=np.arange(len(episodes) + 1) * rows,
        instructions=tuple(e.instruction for e in episodes),
        names={"state": list(STATE_NAMES), "action": ["x", "y"], "agent_pos": ["x", "y"]},
        fps=env.metadata["render_fps"],
    )
