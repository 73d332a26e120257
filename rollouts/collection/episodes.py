"""Scripted episodes of a simulated world, by seed; what their vectors' elements are called. Knows no file."""

from __future__ import annotations

import gymnasium
import numpy as np

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.data.lerobot_format import Names
from emu_embodied.envs.opening import open_env
from emu_embodied.protocols import NamedWorld
from emu_embodied.types import ACTION, AGENT_POS, IS_SUCCESS, OBS_ENVIRONMENT_STATE, OBS_STATE, PIXELS, TASK, Episode

from .data_policies import behaviour_of


def names_of(world: NamedWorld) -> Names:
    """What the elements of a recorded world's vectors are called, by column."""
    return {
        OBS_STATE: getattr(world, "agent_names", ("x", "y")),
        OBS_ENVIRONMENT_STATE: world.state_names,
        ACTION: getattr(world, "action_names", ("dx", "dy")),
    }


def collect_episode(env: gymnasium.Env, seed: int, steps: int) -> Episode:
    """Plays one episode of `steps` model steps in a style drawn from its world's `Behaviour`; same seed, same episode."""
    world = env.unwrapped
    assert env.spec is not None
    behaviour, rng = behaviour_of(env.spec.id), np.random.default_rng([seed, 77])
    style = rng.choice(list(behaviour.styles), p=list(behaviour.styles.values()))
    observation, info = env.reset(seed=seed)
    instruction, act = info[TASK], behaviour.begin(world, str(style), rng)
    frames, agents, states = [observation[PIXELS]], [observation[AGENT_POS]], [info["environment_state"]]
    actions, rewards, successes = [], [], []
    for _ in range(steps):
        action = act(states[-1])
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
    env = open_env(env_id, **env_options, terminate_on_success=False, max_episode_steps=steps + 1)
    try:
        episodes = [collect_episode(env, seed, steps) for seed in seeds]
    finally:
        env.close()
    world, rows = env.unwrapped, steps + 1
    assert isinstance(world, NamedWorld)

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
        names={
            "state": list(world.state_names),
            "action": list(getattr(world, "action_names", ("x", "y"))),
            "agent_pos": list(getattr(world, "agent_names", ("x", "y"))),
        },
        fps=env.metadata["render_fps"],
    )
