"""An evaluation: an episode for each seed, in a journal as soon as it is done, rates with intervals. Knows no episode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from emu_embodied.errors import ConfigError
from emu_embodied.metrics import bootstrap_interval, wilson_interval
from emu_embodied.rollouts.agents.progress import above_bars, counted
from emu_embodied.rollouts.workers import play_in_parallel

from .journal import append, open_journal

Row = dict[str, Any]
Play = Callable[[Sequence[int]], Iterable[Any]]
"""Seeds -> their episodes, as they are done."""


def evaluate(
    settings: Any,
    seeds: Sequence[int],
    play: Play,
    row: Callable[[Any], Row] = dict,
    journal: Path | None = None,
    kinds: Mapping[str, type] = MappingProxyType({}),
    on_episode: Callable[[Any], None] | None = None,
    batch: int = 1,
) -> list[Row]:
    """Plays one episode per seed; what was stopped goes on where it stopped, and ends as if it had not been.

    Args:
        settings: a dataclass that determines the episodes.
        seeds: of the episodes.
        play: plays those that are missing.
        row: an episode as JSON, with its "seed".
        journal: a JSON-lines file that gets each row as it is finished; rows that it holds are not played again.
        kinds: what a row must have; see `open_journal`.
        on_episode: called in this process with each episode that was played, in the order they finish.
        batch: episodes that depend on each other: of so many in turn all are played again where one is missing.

    Returns:
        The rows, in the order of the seeds.

    Raises:
        ConfigError: a journal of other settings.
        EmuEmbodiedError: what an episode raised, with those finished before it in the journal.
    """
    rows = open_journal(journal, asdict(settings), kinds) if journal else {}
    groups = [seeds[first : first + batch] for first in range(0, len(seeds), batch)]
    missing = [seed for group in groups if not all(seed in rows for seed in group) for seed in group]
    for episode in play(missing):
        done = row(episode)
        if done["seed"] not in rows:
            rows[done["seed"]] = done
            if journal:
                append(journal, done)
        if on_episode:
            with above_bars():
                on_episode(episode)
    return [rows[seed] for seed in seeds]


def players(make: Callable[[], Any], workers: int = 1, progress: bool = False, player: Any = None) -> Play:
    """Plays by a player's `play(seed, on_step, progress)`, in this process or in several.

    Args:
        make: makes a player, where the first episode begins; picklable where workers > 1.
        workers: processes, each with its own player; 1 is this one.
        progress: show on stderr how far the present episode is, or, with several workers, how many are done.
        player: one that is there already; it plays where one process is enough.

    Raises:
        ConfigError: workers below 1.
        SimulationError: when it plays: a worker died, was stopped, or stalled (see `workers`).
    """
    if type(workers) is not int or workers < 1:
        raise ConfigError("workers", workers, "give a whole number of at least 1")

    def play(seeds: Sequence[int]) -> Iterator[Any]:
        crew = min(workers, len(seeds))
        if crew > 1:
            yield from counted(play_in_parallel(make, seeds, crew), len(seeds), "episodes", progress)
            return
        if not seeds:
            return
        here = player or make()
        for i, seed in enumerate(seeds, 1):
            yield here.play(seed, progress=f"episode {i} of {len(seeds)}, seed {seed}" if progress else False)

    return play


def rate(held: Iterable[bool]) -> Row:
    """How often something held, with Wilson's 95% interval: n, successes, rate, wilson_95."""
    held = list(map(bool, held))
    n, successes = len(held), sum(held)
    interval = list(wilson_interval(successes, n))
    return {"n": n, "successes": successes, "rate": successes / max(n, 1), "wilson_95": interval}


def plan_costs(rows: Sequence[Mapping[str, Any]]) -> Row:
    """What the plans of episodes took: seconds_per_plan_median, predicted_frames_per_second and frames_per_plan, or None."""
    seconds = [second for row in rows for second in row["plan_seconds"]]
    frames = sum(row["predicted_frames"] for row in rows)
    return {
        "seconds_per_plan_median": float(np.median(seconds)) if seconds else None,
        "predicted_frames_per_second": frames / sum(seconds) if any(seconds) else None,
        "frames_per_plan": frames / len(seconds) if seconds else None,
    }


def difference(mine: Sequence[Row], theirs: Sequence[Row], name: str = "success") -> Row:
    """Rate less another's on the same seeds, with a bootstrap 95% interval over the pairs."""
    pairs = _pairs(mine, theirs, name)
    apart = pairs[:, 0] - pairs[:, 1]
    value = float(apart.mean()) if len(apart) else None
    return {"value": value, "bootstrap_95": list(bootstrap_interval(apart, np.mean)), "n": len(apart)}


def ratio(mine: Sequence[Row], theirs: Sequence[Row]) -> Row:
    """Success rate over another's on the same seeds, with a bootstrap 95% interval over the pairs."""

    def over(pairs: np.ndarray) -> float:
        return float(pairs[:, 0].mean() / max(pairs[:, 1].mean(), 1e-9))

    pairs = _pairs(mine, theirs, "success")
    value = over(pairs) if pairs[:, 1].any() else None
    return {"value": value, "bootstrap_95": list(bootstrap_interval(pairs, over)), "n": len(pairs)}


def _pairs(mine: Sequence[Row], theirs: Sequence[Row], name: str) -> np.ndarray:
    """Whether something held, (n, 2) float64, in the rows of the seeds that both have."""
    other = {row["seed"]: bool(row[name]) for row in theirs}
    pairs = [(bool(row[name]), other[row["seed"]]) for row in mine if row["seed"] in other]
    return np.array(pairs, float).reshape(-1, 2)
