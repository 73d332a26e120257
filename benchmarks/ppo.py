"""Can a policy be learnt in imagination alone? PPO in dreams of a table with one cube, then the policy in MuJoCo.

    python -m benchmarks.ppo [--world imagined|mujoco] [--steps 400000] [--episodes 100] [--out FILE] [--policy FILE]

PPO is Stable-Baselines3's. It sees what the world model believes (objects' places and presence, the instruction's words),
and no simulator: dreams start at first frames of the real env and go on in the model alone. Its reward is the way made by
the planner's measure (what is left for the cube, and the walk behind it), and 1 where the model believes in success. Then
the policy plays in MuJoCo, on scenes of other seeds, where the model reads the real frames; the simulator's predicate
decides. `--world mujoco` trains the same PPO for as many steps on the simulator's true places instead. Random actions are
played on the same scenes.
"""

from __future__ import annotations

import argparse
import time
from importlib import metadata
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from safetensors.torch import save_file
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnvWrapper

from benchmarks.timing import machine, versions
from emu_embodied.checkpoint import fingerprint
from emu_embodied.envs.imagined.beliefs import Beliefs, belief_space, instruction_space, instruction_words
from emu_embodied.envs.imagined.stable_baselines import StableBaselinesVecEnv
from emu_embodied.envs.tabletop.tasks import OBJECTS, parse_task
from emu_embodied.loading import checkpoint_path, load
from emu_embodied.metrics import bootstrap_interval, wilson_interval
from emu_embodied.policies.costs import walk_around
from emu_embodied.rollouts.goals.task_costs import TaskGoal
from emu_embodied.storage.atomic import write_json
from emu_embodied.types import AGENT_POS, BELIEFS, INSTRUCTION, IS_SUCCESS, PIXELS, TASK, Observation

ENV, OPTIONS = "emu_embodied/TabletopPush-v0", {"cubes": 1}
SEES = (AGENT_POS, BELIEFS, INSTRUCTION)
TRAIN_SEED, SCORE_SEED = 12_000_000, 11_000_000
STEPS = 40  # of an episode
HALF_CM, TOUCH_CM = 16.0, 4.2  # half a table; pusher to cube when they touch
SETTINGS = {
    "n_steps": 40,
    "batch_size": 640,
    "n_epochs": 8,
    "learning_rate": 6e-4,
    "gamma": 0.95,
    "gae_lambda": 0.95,
    "ent_coef": 0.0,
    "policy_kwargs": {"net_arch": [128, 128], "log_std_init": -0.5},
}


class Progress(VecEnvWrapper):
    """Rewards are the way made since the step before, in dm, and 1 for success."""

    def __init__(self, venv, names: tuple[str, ...]) -> None:
        super().__init__(venv)
        self.names = names
        self.goals: list[TaskGoal | None] = [None] * venv.num_envs
        self.left = np.zeros(venv.num_envs)

    def reset(self):
        observations = self.venv.reset()
        for i in range(self.num_envs):
            self._begin(i, observations[BELIEFS][i])
        return observations

    def step_wait(self):
        observations, _, dones, infos = self.venv.step_wait()
        rewards = np.zeros(self.num_envs, np.float32)
        for i, info in enumerate(infos):
            left = self._left(i, info["terminal_observation"][BELIEFS] if dones[i] else observations[BELIEFS][i])
            rewards[i] = 0.1 * (self.left[i] - left) + float(info[IS_SUCCESS])
            self.left[i] = left
            if dones[i]:
                self._begin(i, observations[BELIEFS][i])
        return observations, rewards, dones, infos

    def _begin(self, i: int, beliefs: np.ndarray) -> None:
        self.goals[i] = TaskGoal(parse_task(self.venv.reset_infos[i][TASK]), self.names)
        self.left[i] = self._left(i, beliefs)

    def _left(self, i: int, beliefs: np.ndarray) -> float:
        """cm still to go: the cube's way, and a share of the pusher's walk behind it; as before where the cube is lost."""
        goal, places = self.goals[i], torch.from_numpy(beliefs[:, :2] * HALF_CM)
        if beliefs[goal.cube, 2] < 0.5:
            return self.left[i]
        cube = places[goal.cube]
        way = float(goal.distance_inside(places))
        if float(goal.distance(places)) <= 0:
            return way
        return way + 0.3 * float(walk_around(places[goal.pusher] - cube, cube - goal.target(places), TOUCH_CM))


class TrueBeliefs(gymnasium.Env):
    """The table-top with its true places in the place of beliefs, and without rendering: what PPO in MuJoCo trains on."""

    def __init__(self, model) -> None:
        self.model, self.names = model, model.objects
        self.world = gymnasium.make(ENV, **OPTIONS).unwrapped
        self.action_space, edge = self.world.action_space, np.full(2, HALF_CM, np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {
                AGENT_POS: gymnasium.spaces.Box(-edge, edge),
                BELIEFS: belief_space(model),
                INSTRUCTION: instruction_space(model),
            }
        )

    def reset(self, *, seed=None, options=None):
        observation, info = self.world.reset(seed=seed, options=options)
        seen = Observation(observation[PIXELS], observation[AGENT_POS], info[TASK])
        self.words, self.steps = instruction_words(self.model, self.model.encode([seen]).text_BL)[0], 0
        return self._see(), {TASK: info[TASK], IS_SUCCESS: False}

    def step(self, action):
        self.world.act(action)
        self.steps += 1
        done = self.world.task_spec.distance(self.world.positions().astype(np.float64)) <= 0
        return self._see(), 0.0, bool(done), self.steps >= STEPS, {TASK: self.world.task, IS_SUCCESS: bool(done)}

    def _see(self) -> dict[str, np.ndarray]:
        rows = self.world.environment_state().reshape(len(OBJECTS), 4)[[OBJECTS.index(name) for name in self.names]]
        beliefs = np.column_stack([np.clip(rows[:, :2] / HALF_CM, -1, 1), rows[:, 3]]).astype(np.float32)
        return {AGENT_POS: np.clip(rows[0, :2], -HALF_CM, HALF_CM), BELIEFS: beliefs, INSTRUCTION: self.words.copy()}


def training_env(world: str, model, envs: int) -> Progress:
    """Many worlds at once, imagined or MuJoCo's."""
    if world == "imagined":
        real = gymnasium.make(ENV, **OPTIONS)
        options = {"world_model": model, "real_env": real, "observe": SEES, "autoreset_mode": "SameStep"}
        vector = gymnasium.make_vec("emu_embodied/Imagined-v0", envs, **options)
    else:
        vector = SyncVectorEnv([lambda: TrueBeliefs(model)] * envs, autoreset_mode="SameStep")
    env = Progress(StableBaselinesVecEnv(vector), model.objects)
    env.seed(TRAIN_SEED)
    return env


def score(model, policy: PPO | None, episodes: int, likeliest: bool = False) -> list[bool]:
    """Successes in MuJoCo of the policy, or of random actions; the scene of episode i is that of seed SCORE_SEED + i.

    The policy draws its actions, as it did in training, or takes the likeliest.
    """
    torch.manual_seed(SCORE_SEED)
    env = Beliefs(gymnasium.make(ENV, max_episode_steps=STEPS, **OPTIONS), model)
    done = []
    for seed in range(SCORE_SEED, SCORE_SEED + episodes):
        rng, (observation, info), over = np.random.default_rng(seed), env.reset(seed=seed), False
        while not over:
            if policy is None:
                action = rng.uniform(-1, 1, 2).astype(np.float32)
            else:
                action, _ = policy.predict({name: observation[name] for name in SEES}, deterministic=likeliest)
            observation, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
        done.append(bool(info[IS_SUCCESS]))
    env.close()
    return done


def rate(successes: list[bool]) -> dict:
    """Success in %, with Wilson's 95% interval."""
    low, high = wilson_interval(sum(successes), len(successes))
    return {"percent": 100 * float(np.mean(successes)), "wilson_95": [100 * low, 100 * high], "n": len(successes)}


class Log(BaseCallback):
    """Prints one line a rollout, and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.rows, self.ended = time.monotonic(), [], []

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        self.ended += [info[IS_SUCCESS] for info, done in zip(infos, self.locals["dones"], strict=True) if done]
        return True

    def _on_rollout_end(self) -> None:
        recent = float(np.mean(self.ended[-500:])) if self.ended else 0.0
        seconds = time.monotonic() - self.began
        self.rows.append({"steps": self.num_timesteps, "success": recent, "seconds": round(seconds, 1)})
        print(f"ppo: {self.num_timesteps} steps, {100 * recent:.0f}% of the last episodes, {seconds:.0f} s", flush=True)


def main() -> None:
    """Trains, scores, and writes the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="nano-tabletop")
    parser.add_argument("--world", choices=("imagined", "mujoco"), default="imagined")
    parser.add_argument("--steps", type=int, default=400_000)
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/ppo.json"))
    parser.add_argument("--policy", type=Path, help="a file for the policy's weights, as safetensors")
    options = parser.parse_args()
    model = load(options.checkpoint)
    torch.manual_seed(options.seed)
    env, log = training_env(options.world, model, options.envs), Log()
    policy = PPO("MultiInputPolicy", env, seed=options.seed, device="cpu", **SETTINGS)
    env.seed(TRAIN_SEED)  # making PPO has seeded the envs with its own
    policy.learn(options.steps, callback=log)
    if options.policy:
        save_file(policy.policy.state_dict(), options.policy)
    learnt, random = score(model, policy, options.episodes), score(model, None, options.episodes)
    gains = 100.0 * (np.array(learnt, float) - np.array(random, float))
    result = {
        "checkpoint": {"name": options.checkpoint, "sha256": fingerprint(checkpoint_path(options.checkpoint))},
        "trained_in": options.world,
        "steps": policy.num_timesteps,
        "seconds": log.rows[-1]["seconds"],
        "real_success": rate(learnt),
        "real_success_of_likeliest_actions": rate(score(model, policy, options.episodes, likeliest=True)),
        "random_success": rate(random),
        "points_over_random": {"mean": float(gains.mean()), "bootstrap_95": list(bootstrap_interval(gains, np.mean))},
        "curve": log.rows,
        "settings": {name: str(value) for name, value in SETTINGS.items()}
        | {"envs": options.envs, "seed": options.seed},
        "seeds": {"training": TRAIN_SEED, "scoring": [SCORE_SEED, SCORE_SEED + options.episodes]},
        "machine": machine(torch.device("cpu")),
        "versions": versions() | {"stable-baselines3": metadata.version("stable-baselines3")},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, result)
    print(f"ppo: {result['real_success']} against {result['random_success']} of random actions; {options.out}")


if __name__ == "__main__":
    main()
