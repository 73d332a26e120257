"""Plans in a world model, acts in the real environment, counts successes. Knows no checkpoint, no file but its journal."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from emu_embodied.envs.tasks import DIRECTIONS, EDGE_CM, NEXT_TO_CM, OBJECTS, Task
from emu_embodied.errors import ConfigError, EmuEmbodiedError, InputError, SimulationError
from emu_embodied.metrics import wilson_interval
from emu_embodied.policies.cem import CEM, CEMConfig
from emu_embodied.policies.costs import BehindObject, GoalImage, ObjectLost, ObjectPositions, RewardHead, WeightedSum
from emu_embodied.policies.scripted import Expert
from emu_embodied.protocols import Cost, Planner, WorldModel
from emu_embodied.rollouts.oracle import OracleWorldModel
from emu_embodied.types import AGENT_POS, IS_SUCCESS, PIXELS, Observation

AGENTS = ("model", "oracle", "random", "expert")
GOALS = ("positions", "reward", "image")
MAX_STEPS = 40

CostBuilder = Callable[[gymnasium.Env, WorldModel], Cost]


class TaskGoal:
    """A table-top task over positions in a model's object order, as `policies.costs` wants it.

    Args:
        task: the instruction's meaning.
        objects: the model's object names.
        margin: weight of the way to `Task.target`, 1 to 1.5 cm inside the goal, beside the way to the goal's border: who
            aims at the border alone misses it by as much as the model errs.

    Raises:
        InputError: the task is about a cube that the model does not know.
    """

    def __init__(self, task: Task, objects: Sequence[str], margin: float = 0.3) -> None:
        self.task, self.margin = task, margin
        for name in ("pusher", task.cube, *([task.other] if task.other else [])):
            if name not in objects:
                raise InputError("instruction", task.text, f'the model knows no "{name}", only {tuple(objects)}')
        self.places = [(OBJECTS.index(name), i) for i, name in enumerate(objects) if name in OBJECTS]
        self.pusher, self.cube = objects.index("pusher"), objects.index(task.cube)
        self.other = objects.index(task.other) if task.other else -1

    def distance(self, positions: torch.Tensor) -> torch.Tensor:
        """`Task.distance` (...) in cm of positions (..., O, 2); 0 is success."""
        ordered = positions.new_zeros(*positions.shape[:-2], len(OBJECTS), 2)
        for there, here in self.places:
            ordered[..., there, :] = positions[..., here, :]
        return self.task.distance(ordered)

    def distance_inside(self, positions: torch.Tensor) -> torch.Tensor:
        """`distance` plus `margin` times the way to the target (...), in cm."""
        way = self.target(positions) - positions[..., self.cube, :]
        return self.distance(positions) + self.margin * way.norm(dim=-1)

    def target(self, positions: torch.Tensor) -> torch.Tensor:
        """`Task.target` of many scenes: (..., 2) cm from positions (..., O, 2)."""
        cube = positions[..., self.cube, :]
        if self.task.kind == "edge":
            direction = positions.new_tensor(DIRECTIONS[self.task.where])
            return cube + direction * (EDGE_CM + 1.5 - cube @ direction).clamp(min=0)[..., None]
        next_to = self.task.kind == "next_to"
        goal = positions[..., self.other, :] if next_to else torch.zeros_like(cube)
        away = cube - goal
        length = away.norm(dim=-1, keepdim=True)
        return goal + away / length.clamp(min=1e-6) * length.clamp(max=NEXT_TO_CM - 1.0 if next_to else 0.0)


def build_cost(goal: str, env: gymnasium.Env, model: WorldModel) -> Cost:
    """The cost of a goal mode for the scene in front of the robot.

    Args:
        goal: "positions" (the instruction's predicate on imagined positions), "reward" (the model's reward) or "image"
            (the frame at the end of a scripted expert's try at this very scene). All add the walk behind the cube, in
            a unit of their own; without it a cube beyond the horizon's reach draws nobody.

    Raises:
        ConfigError: another goal.
        InputError: an env without the table-top's tasks, or a task about a cube that the model does not know.
    """
    if goal not in GOALS:
        raise ConfigError("goal", goal, f"choose one of {GOALS}")
    world = env.unwrapped
    if getattr(world, "task_spec", None) is None:
        raise InputError("env", type(world).__name__, "planning needs the table-top's task_spec")
    task = TaskGoal(world.task_spec, model.objects)
    behind = BehindObject(task.distance, task.target, task.pusher, task.cube)
    if goal == "positions":
        return WeightedSum([(1.0, ObjectPositions(task.distance_inside)), (0.15, behind), (5.0, ObjectLost(task.cube))])
    if goal == "reward":
        return WeightedSum([(10.0, RewardHead()), (0.15, behind)])
    return WeightedSum([(100.0, GoalImage(expert_goal(env))), (0.15, behind)])


def expert_goal(env: gymnasium.Env, steps: int = MAX_STEPS) -> np.ndarray:
    """The frame (H, W, 3) at the end of a scripted expert's try at the env's present scene, which is then put back."""
    world = env.unwrapped
    state, owner = world.get_state(), world.np_random
    world.np_random = np.random.default_rng(0)
    act = expert_policy(env)
    for _ in range(steps):
        world.act(act())
        if world.task_spec.distance(world.positions()) <= 0:
            break
    frame = world.frame(world.config.image_size)
    world.np_random = owner
    world.set_state(state)
    return frame


def expert_policy(env: gymnasium.Env) -> Callable[[], np.ndarray]:
    """The scripted expert, which reads the simulator's truth: each call returns the next action (2,)."""
    expert, world = Expert(), env.unwrapped

    def act() -> np.ndarray:
        positions = world.positions().astype(np.float64)
        task = world.task_spec
        return expert.act(positions[0], positions[OBJECTS.index(task.cube)], task.target(positions))

    return act


# One episode


@dataclass(frozen=True)
class EpisodeRun:
    """One episode acted in the real environment, T steps long.

    Attributes:
        seed: of the env's reset, and of the planner.
        instruction, kind: the task as text, and its kind ("edge", "middle", "next_to").
        success: the simulator's predicate held at some step.
        distances: (T + 1,) float32, cm left to go by the simulator.
        actions: (T, A) float32.
        frames: (T + 1, H, W, 3) uint8, real.
        imagined: (T + 1, H, W, 3) uint8, what each plan's steps were imagined to lead to, from the last observation
            before the plan; the first is the model's rendering of the first real frame. Empty without a model.
        plan_seconds, plan_costs: one entry per plan.
        predicted_frames: of all plans together.
    """

    seed: int
    instruction: str
    kind: str
    success: bool
    distances: np.ndarray
    actions: np.ndarray
    frames: np.ndarray
    imagined: np.ndarray
    plan_seconds: tuple[float, ...] = ()
    plan_costs: tuple[float, ...] = ()
    predicted_frames: int = 0

    def row(self) -> dict[str, Any]:
        """The episode without its arrays, as JSON."""
        return {
            "seed": self.seed,
            "instruction": self.instruction,
            "kind": self.kind,
            "success": self.success,
            "steps": len(self.actions),
            "start_cm": round(float(self.distances[0]), 3),
            "end_cm": round(float(self.distances[-1]), 3),
            "plan_seconds": [round(s, 4) for s in self.plan_seconds],
            "predicted_frames": self.predicted_frames,
        }


class _Recorder:
    """Acts in the env and keeps what happened."""

    def __init__(self, env: gymnasium.Env, seed: int, max_steps: int) -> None:
        self.env, self.seed, self.max_steps = env, seed, max_steps
        observation, info = env.reset(seed=seed)
        self.instruction = info.get("task", "")
        self.frames, self.actions, self.distances = [], [], []
        self.success = False
        self._keep(observation, info)

    @property
    def over(self) -> bool:
        return self.success or len(self.actions) >= self.max_steps

    def act(self, action: np.ndarray) -> None:
        observation, _, terminated, truncated, info = self.env.step(action)
        self.actions.append(np.asarray(action, np.float32))
        self._keep(observation, info)
        if truncated or terminated:
            self.max_steps = len(self.actions)

    def finish(self, imagined: Sequence[np.ndarray] = (), **more: Any) -> EpisodeRun:
        spec, frames = getattr(self.env.unwrapped, "task_spec", None), np.stack(self.frames)
        dreamt = np.stack(imagined) if len(imagined) else np.empty((0, *frames.shape[1:]), np.uint8)
        return EpisodeRun(
            self.seed,
            self.instruction,
            getattr(spec, "kind", ""),
            self.success,
            np.array(self.distances, np.float32),
            np.reshape(self.actions, (-1, *self.env.action_space.shape)).astype(np.float32),
            frames,
            dreamt[: len(frames)],
            **more,
        )

    def _keep(self, observation: dict[str, np.ndarray], info: dict[str, Any]) -> None:
        self.frames.append(observation[PIXELS])
        self.distances.append(info.get("distance", float("nan")))
        self.success = self.success or bool(info[IS_SUCCESS])
        self.observation = Observation(observation[PIXELS], observation[AGENT_POS], self.instruction)


def run_episode(
    env: gymnasium.Env,
    model: WorldModel,
    planner: Planner | None = None,
    cost_builder: CostBuilder | None = None,
    seed: int = 0,
    execute: int = 2,
    max_steps: int = MAX_STEPS,
) -> EpisodeRun:
    """Plans, carries out `execute` steps, observes what really happened, and plans again, until success or the end.

    Args:
        env: the real environment; reset here.
        model: where plans are imagined; its histories hold real observations only.
        planner: `reset` here; its warm start should shift by `execute`. None is CEM as configured by default.
        cost_builder: (env, model) -> the episode's cost; called once, after the reset. None is `build_cost("positions", ...)`.
        seed: of the env's reset.
        execute: steps of each plan that are carried out.
        max_steps: model steps after which the episode has failed.

    Raises:
        InputError: observations that do not fit the model, or costs that are not finite.
        SimulationError: the physics left the numbers.
    """
    recorder = _Recorder(env, seed, max_steps)
    planner = planner or CEM(seed=seed)
    planner.reset()
    cost = cost_builder(env, model) if cost_builder else build_cost("positions", env, model)
    history = model.encode([recorder.observation])
    imagined, plans = [*model.decode(history.codes_BCN[0, -1:])], []
    while not recorder.over:
        plan = planner.plan(model, history, cost)
        plans.append(plan)
        actions_TA = plan.actions[:execute]
        dream = model.rollout(history, actions_TA[None, None])
        imagined += [*model.decode(dream.codes_BSTN[0, 0])]
        for action in actions_TA:
            recorder.act(action)
            history = model.observe(history, action[None], [recorder.observation])
            if recorder.over:
                break
    return recorder.finish(
        imagined,
        plan_seconds=tuple(plan.seconds for plan in plans),
        plan_costs=tuple(plan.cost for plan in plans),
        predicted_frames=sum(plan.predicted_frames for plan in plans),
    )


def run_policy(env: gymnasium.Env, agent: str, seed: int, max_steps: int = MAX_STEPS) -> EpisodeRun:
    """Plays one episode of a control: "random" (uniform actions) or "expert" (the scripted one, on true positions)."""
    recorder = _Recorder(env, seed, max_steps)
    rng, space = np.random.default_rng([seed, 5]), env.action_space
    act = expert_policy(env) if agent == "expert" else lambda: rng.uniform(space.low, space.high).astype(np.float32)
    while not recorder.over:
        recorder.act(act())
    return recorder.finish()


# Many episodes


@dataclass(frozen=True)
class PlanningSettings:
    """What determines an evaluation; recorded in its journal, so that no other settings continue it.

    Attributes:
        env_id, env_options: keywords of `gymnasium.make`.
        agent: "model", "oracle" (the same planner in the true simulator), "random" or "expert".
        goal: "positions", "reward" or "image".
        planner: budget and habits of the planner.
        max_steps: model steps of an episode.
        model: names the world model in the journal; empty for other agents.

    Raises:
        ConfigError: an unknown agent or goal, or max_steps below 1.
    """

    env_id: str
    env_options: dict[str, Any] = field(default_factory=dict)
    agent: str = "model"
    goal: str = "positions"
    planner: CEMConfig = field(default_factory=CEMConfig)
    max_steps: int = MAX_STEPS
    model: str = ""

    def __post_init__(self) -> None:
        if self.agent not in AGENTS:
            raise ConfigError("agent", self.agent, f"choose one of {AGENTS}")
        if self.goal not in GOALS:
            raise ConfigError("goal", self.goal, f"choose one of {GOALS}")
        if type(self.max_steps) is not int or self.max_steps < 1:
            raise ConfigError("max_steps", self.max_steps, "give a whole number of at least 1")


class Player:
    """Plays episodes by seed, each the same whichever process plays it.

    Args:
        settings: what to play.
        make_model: loads the world model; called for agent "model" only.

    Raises:
        ConfigError: an unknown env, or agent "model" without a model.
        InputError: env options out of range, an env without the table-top's tasks, or a model that sees frames of
            another size than the env shows.
    """

    def __init__(self, settings: PlanningSettings, make_model: Callable[[], WorldModel] | None) -> None:
        import emu_embodied.envs  # noqa: F401  registers them

        self.settings = settings
        try:
            self.env = gymnasium.make(settings.env_id, max_episode_steps=settings.max_steps, **settings.env_options)
        except gymnasium.error.Error as error:
            raise ConfigError("env_id", settings.env_id, str(error).partition("\n")[0]) from None
        if not hasattr(self.env.unwrapped, "task_spec"):
            raise InputError("env_id", settings.env_id, "planning needs the table-top's tasks")
        if settings.agent == "model" and make_model is None:
            raise ConfigError("agent", "model", "give make_model too, which loads one")
        self.model = make_model() if settings.agent == "model" else None
        if self.model is not None:
            size = self.env.observation_space[PIXELS].shape[0]
            if size != self.model.image_size:
                raise InputError(
                    "image_size", size, f"the model sees frames of {self.model.image_size} px: choose that"
                )

    def play(self, seed: int) -> EpisodeRun:
        """Plays the episode of one seed."""
        s = self.settings
        if s.agent in ("random", "expert"):
            return run_policy(self.env, s.agent, seed, s.max_steps)
        model = OracleWorldModel(self.env, seed) if s.agent == "oracle" else self.model
        if hasattr(model, "seed"):
            model.seed(seed)
        cost = functools.partial(build_cost, s.goal)
        return run_episode(self.env, model, CEM(s.planner, seed), cost, seed, s.planner.execute, s.max_steps)


def evaluate_planning(
    settings: PlanningSettings,
    seeds: Sequence[int],
    make_model: Callable[[], WorldModel] | None = None,
    workers: int = 1,
    journal: Path | None = None,
    on_episode: Callable[[EpisodeRun], None] | None = None,
    player: Player | None = None,
) -> list[dict[str, Any]]:
    """Plays one episode per seed.

    Args:
        settings: what to play.
        seeds: of the episodes.
        make_model: loads the world model in each process; picklable where workers > 1.
        workers: processes; 1 plays in this one.
        journal: a JSON-lines file that gets each episode's row as it is finished; rows that it holds are not played again.
        on_episode: called in this process with each episode that was played, in the order they finish.
        player: one of the same settings that is there already; it plays where one process is enough.

    Returns:
        The episodes' rows (`EpisodeRun.row`), in the order of the seeds.

    Raises:
        ConfigError: workers below 1, or a journal of other settings.
        EmuEmbodiedError: what an episode raised, with the seeds finished before it in the journal.
    """
    if type(workers) is not int or workers < 1:
        raise ConfigError("workers", workers, "give a whole number of at least 1")
    rows = _open_journal(journal, settings) if journal else {}
    missing = [seed for seed in seeds if seed not in rows]
    make = functools.partial(Player, settings, make_model)
    workers = min(workers, len(missing))
    runs = _in_parallel(make, missing, workers) if workers > 1 else _in_turn(player or make, missing)
    for run in runs:
        rows[run.seed] = run.row()
        if journal:
            _append(journal, rows[run.seed])
        if on_episode:
            on_episode(run)
    return [rows[seed] for seed in seeds]


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success rate with Wilson's 95% interval, by kind of task too, and what the planning cost.

    Returns:
        n, successes, rate, wilson_95, by_kind, steps_median (of the successes), seconds_per_plan_median,
        predicted_frames_per_second and frames_per_plan (None without plans).
    """
    seconds = [second for row in rows for second in row["plan_seconds"]]
    frames = sum(row["predicted_frames"] for row in rows)
    steps = [row["steps"] for row in rows if row["success"]]
    kinds = sorted({row["kind"] for row in rows})
    return {
        **_rate(rows),
        "by_kind": {kind: _rate([row for row in rows if row["kind"] == kind]) for kind in kinds},
        "steps_median": float(np.median(steps)) if steps else None,
        "seconds_per_plan_median": float(np.median(seconds)) if seconds else None,
        "predicted_frames_per_second": frames / sum(seconds) if seconds else None,
        "frames_per_plan": frames / len(seconds) if seconds else None,
    }


def _rate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    successes = sum(row["success"] for row in rows)
    interval = list(wilson_interval(successes, len(rows)))
    return {"n": len(rows), "successes": successes, "rate": successes / max(len(rows), 1), "wilson_95": interval}


# The journal


def _open_journal(path: Path, settings: PlanningSettings) -> dict[int, dict[str, Any]]:
    """Rows by seed of a journal; a new one gets its first line, the settings. A line that a kill cut short is dropped."""
    now = json.loads(json.dumps(asdict(settings)))
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        with path.open("r+b") as file:
            file.truncate(len("".join(lines).encode()))
    if not lines:
        _append(path, {"settings": now})
        return {}
    try:
        then, *rows = map(json.loads, lines)
        then, by_seed = then["settings"], {row["seed"]: row for row in rows}
    except (ValueError, KeyError, TypeError):
        raise ConfigError("journal", str(path), "it is no planning journal; choose another folder") from None
    for name in now:
        if now[name] != then.get(name):
            raise ConfigError(
                name, now[name], f"{path} was begun with {then.get(name)!r}; give the same, or a new folder"
            )
    return by_seed


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


# Processes


def _in_turn(make: Player | Callable[[], Player], seeds: Sequence[int]) -> Iterator[EpisodeRun]:
    """Plays in this process; the env and the model are made with the first episode."""
    if seeds:
        yield from map((make if isinstance(make, Player) else make()).play, seeds)


def _in_parallel(make: Callable[[], Player], seeds: Sequence[int], workers: int) -> Iterator[EpisodeRun]:
    """Plays in worker processes, each with its own env and model; episodes come as they finish."""
    context = multiprocessing.get_context("spawn")
    todo, players = deque(seeds), {}
    try:
        for _ in range(min(workers, len(todo))):
            ours, theirs = context.Pipe()
            players[ours] = context.Process(target=_play_in_worker, args=(make, theirs), daemon=True)
            players[ours].start()
            theirs.close()
            ours.send(todo.popleft())
        while players:
            for pipe in connection.wait(list(players)):
                try:
                    answer = pipe.recv()
                except EOFError:
                    players[pipe].join()
                    code = players[pipe].exitcode
                    raise SimulationError(
                        "worker", f"died, exit code {code}", "call with workers=1 to see why"
                    ) from None
                if isinstance(answer, Exception):
                    raise answer
                yield answer
                if todo:
                    pipe.send(todo.popleft())
                else:
                    pipe.send(None)
                    players.pop(pipe).join()
    finally:
        for process in players.values():
            process.terminate()
            process.join()


def _play_in_worker(make: Callable[[], Player], pipe: connection.Connection) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it ends its workers
    torch.set_num_threads(1)
    try:
        player = make()
        while (seed := pipe.recv()) is not None:
            pipe.send(player.play(seed))
    except EmuEmbodiedError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError):  # the parent is gone
        pass
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
