"""One scripted episode of the table-top, by seed; knows no dataset format."""

from __future__ import annotations

import gymnasium
import numpy as np

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
