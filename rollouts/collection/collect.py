"""Records scripted episodes as a LeRobot dataset, in parallel, and goes on after a crash. Knows no world model."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import gymnasium
import numpy as np

from emu_embodied.data.lerobot_files import SIDECAR
from emu_embodied.data.lerobot_format import Names, read_notes
from emu_embodied.envs.opening import open_env
from emu_embodied.errors import DatasetError, SimulationError
from emu_embodied.protocols import NamedWorld
from emu_embodied.rollouts.workers import Tell, work_in_parallel
from emu_embodied.storage.schema import build
from emu_embodied.types import OBS_ENVIRONMENT_STATE, Episode
from emu_embodied.validation import whole_fields, whole_number

from .shards import Shard, complete_dataset, join_shards, read_statistics, write_shard

EPISODES_PER_SHARD = 25
STALL_SECONDS = 120.0  # a worker that begins or finishes no episode for so long, and 2 s per step, is stuck
MOVED_CM = 0.1  # an object that goes further than this in one model step was pushed
PACKAGES = (
    *("emu-embodied", "lerobot", "mujoco", "gymnasium", "numpy"),
    *("gym-pusht", "pymunk", "gymnasium-robotics", "gym-aloha", "dm-control", "metaworld"),
)


@dataclass(frozen=True)
class CollectSettings:
    """What determines a dataset; recorded beside it, so that no other settings continue it.

    Attributes:
        env_id: a Gymnasium id that `behaviours` plays, whose env has a `task`, `state_names` and `info["environment_state"]`.
        env_options: keywords of `gymnasium.make`, as JSON.
        episodes: how many; episode i is the one of seed `seed + i`, so keep other datasets' seeds that far away.
        steps: actions per episode; success does not end one.
        seed: of the first episode.
    """

    env_id: str
    env_options: dict[str, Any]
    episodes: int
    steps: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        whole_fields(self, {"episodes": (1, None), "steps": (1, None), "seed": (0, None)}, DatasetError)
        options = json.loads(json.dumps(dict(self.env_options)))  # as it will be read back: no tuples
        object.__setattr__(self, "env_options", options)


@dataclass(frozen=True)
class CollectSummary:
    """What a dataset holds; the numbers of its `meta/emu_embodied.json`.

    Attributes:
        episodes, frames: how many are in the dataset.
        moving_steps: share in [0, 1] of model steps that move an object by more than 0.1 cm.
        success: share in [0, 1] of episodes that reach their instruction's goal at some time.
        complete: False after an interruption.
        recorded: episodes that this call recorded; the others were there.
        failed: episodes left out because the simulator failed; `meta/emu_embodied.json` has their seeds and reasons.
    """

    episodes: int
    frames: int
    moving_steps: float
    success: float
    complete: bool
    recorded: int = 0
    failed: int = 0


def collect(
    env_id: str,
    env_options: Mapping[str, Any],
    episodes: int,
    steps: int,
    root: str | Path,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> CollectSummary:
    """Records a dataset, or what is missing of it.

    Workers write shards of 25 episodes to `<root>.parts`; a kill loses the shards in flight, and a second call goes on
    with the others. At the end, and at Ctrl-C, the finished shards are joined at `root`. Same settings, same files,
    to the byte, however often it was killed and whatever the workers (with the same packages on the same machine). An episode
    whose simulator leaves the numbers is left out and listed; the others stay.

    Args:
        env_id, env_options, episodes, steps, seed: see `CollectSettings`.
        root: the dataset's folder.
        workers: processes that simulate and write.
        progress: show episodes per second and the time left.

    Returns:
        What the dataset holds; `recorded` is 0 where it was complete before.

    Raises:
        ConfigError, InputError: an unknown env, or what it says of its options.
        DatasetError: an episode that raised, a shard whose episodes all failed, or a worker that died, was stopped or
            stalled (naming its seed; finished shards stay), settings other than those of the dataset begun at `root`, a
            folder at `root` that is something else, or a second collector at work on it.
        KeyboardInterrupt: after the finished shards were joined.
    """
    settings = CollectSettings(env_id, dict(env_options), episodes, steps, seed)
    whole_number("workers", workers, 1, error=DatasetError)
    root = Path(root).absolute()
    if not (root.exists() or root.with_name(root.name + ".parts").exists()):
        _open(settings).close()  # what is wrong with it shows here, before anything is written and workers start

    def record(missing: list[Shard], folder: Path) -> None:
        there = episodes - sum(shard.count for shard in missing)
        with _display(episodes, there, progress) as advance:
            _record(settings, missing, folder, workers, advance)

    join = functools.partial(_join, settings, root)
    return complete_dataset(root, settings, PACKAGES, EPISODES_PER_SHARD, read=read_summary, record=record, join=join)


def read_summary(root: str | Path) -> CollectSummary:
    """The summary of a dataset that `collect` recorded.

    Raises:
        DatasetError: there is none at `root`.
    """
    place = Path(root) / SIDECAR
    try:
        return build(CollectSummary, read_notes(place).get("summary"), f"{place}: summary", DatasetError)
    except DatasetError as error:
        raise DatasetError(str(root), str(error), "give the root of a dataset that `collect` made") from error


def _join(settings: CollectSettings, root: Path, done: list[Shard], folder: Path, complete: bool) -> CollectSummary:
    """Joins the finished shards at `root`, replacing what was joined there before."""
    totals = {"episodes": 0, "frames": 0, "steps": 0, "moving_steps": 0, "successes": 0}
    failures: list[list[Any]] = []
    for shard in done:
        statistics = read_statistics(shard, folder, totals)
        failures += statistics["failures"]
        totals = {name: count + statistics[name] for name, count in totals.items()}
    summary = CollectSummary(
        totals["episodes"],
        totals["frames"],
        totals["moving_steps"] / totals["steps"],
        totals["successes"] / totals["episodes"],
        complete,
        failed=len(failures),
    )
    notes = {"settings": asdict(settings), "summary": asdict(summary)} | ({"failures": failures} if failures else {})
    join_shards(done, folder, root, notes, PACKAGES)
    return summary


def _record(
    settings: CollectSettings, missing: list[Shard], folder: Path, workers: int, advance: Callable[[int], None]
) -> None:
    """Has the shards recorded by worker processes."""
    at = {shard: settings.seed + shard.first for shard in missing}  # the seed that each has come to

    def failed(shard: Shard, reason: str) -> DatasetError:
        return DatasetError(f"episode of seed {at[shard]}", reason, "finished shards are kept; mend it and call again")

    patience = STALL_SECONDS + 2.0 * settings.steps
    recorder = functools.partial(_recorder, settings, folder)
    for shard, (kind, value) in work_in_parallel(recorder, missing, workers, patience, failed):
        if kind == "recorded":
            advance(value)
        else:
            at[shard] = value


def _open(settings: CollectSettings) -> gymnasium.Env:
    """The env to record, which goes on after success and has no time limit."""
    return open_env(settings.env_id, **settings.env_options, terminate_on_success=False, max_episode_steps=-1)


@contextmanager
def _recorder(settings: CollectSettings, folder: Path) -> Iterator[Callable[[Shard, Tell], None]]:
    """What records shards, in a worker's process."""
    os.environ.setdefault("LP_NUM_THREADS", "1")  # a software renderer's threads would fight the other workers'
    from tqdm import tqdm

    tqdm.set_lock(RLock())  # its own is a semaphore, which a worker that is stopped would leak
    from .episodes import names_of

    with closing(_open(settings)) as env:
        world = env.unwrapped
        assert isinstance(world, NamedWorld)
        names = names_of(world)
        yield lambda shard, tell: _record_shard(env, shard, settings, names, folder, tell)


def _record_shard(
    env: Any, shard: Shard, settings: CollectSettings, names: Names, folder: Path, tell: Callable[[tuple], None]
) -> None:
    """Writes one shard; its folder gets its name only when all of it is on the disk."""
    from .episodes import collect_episode

    totals: dict[str, Any] = {"episodes": 0, "frames": 0, "steps": 0, "moving_steps": 0, "successes": 0}
    robots, failures = getattr(env.unwrapped, "robots", ("pusher",)), []

    def episodes() -> Iterator[Episode]:
        for seed in range(settings.seed + shard.first, settings.seed + shard.first + shard.count):
            tell(("episode", seed))
            try:
                episode = collect_episode(env, seed, settings.steps)
            except SimulationError as error:
                failures.append([seed, str(error)])
                totals["failures"] = failures
                tell(("recorded", 1))
                continue
            totals["episodes"] += 1
            totals["frames"] += len(episode.pixels)
            totals["steps"] += len(episode.actions)
            totals["moving_steps"] += moving_steps(episode.states, names[OBS_ENVIRONMENT_STATE], robots)
            totals["successes"] += int(episode.successes is not None and episode.successes.any())
            yield episode
            tell(("recorded", 1))
        if len(failures) == shard.count:
            raise SimulationError(f"{shard.count} of {shard.count} episodes", failures[-1][1], "none is left to record")

    write_shard(shard, folder, episodes(), names, env.unwrapped.metadata["render_fps"], totals)


def moving_steps(states: np.ndarray, names: Sequence[str], robots: tuple[str, ...] = ("pusher",)) -> int:
    """How many of the steps between states (T + 1, E), named "object.x" and so on, move a thing, no robot, over 0.1 cm."""
    others = (*robots, "agent")
    columns = [
        i for i, name in enumerate(names) if name.endswith((".x", ".y")) and name.partition(".")[0] not in others
    ]
    positions = states[:, columns].reshape(len(states), -1, 2)
    return int((np.linalg.norm(np.diff(positions, axis=0), axis=-1) > MOVED_CM).any(-1).sum())


# For people


@contextmanager
def _display(total: int, there: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """Yields a function that counts episodes: a live bar on a terminal, else a line every ten seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    finished: list[float] = []  # when each episode was; the first ones wait for the workers' imports

    def status() -> str:
        if len(finished) < 2:
            return ""
        rate = (len(finished) - 1) / max(finished[-1] - finished[0], 1e-6)
        return f"{rate:.1f} episodes/s, {(total - there - len(finished)) / rate:.0f} s left"

    if shown and Console().is_terminal:
        columns = (TextColumn("collect"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"))
        with Progress(*columns) as bar:
            task = bar.add_task("collect", total=total, completed=there, status="")

            def advance(n: int) -> None:
                finished.extend([time.monotonic()] * n)
                bar.update(task, advance=n, status=status())

            yield advance
        return
    printed = time.monotonic()
    if shown and there < total:
        print(f"collect: {there}/{total} episodes; workers start", flush=True)

    def advance(n: int) -> None:
        nonlocal printed
        finished.extend([time.monotonic()] * n)
        if shown and (finished[-1] - printed > 10 or there + len(finished) == total):
            printed = finished[-1]
            print(f"collect: {there + len(finished)}/{total} episodes, {status()}", flush=True)

    yield advance
