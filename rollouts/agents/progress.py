"""A bar that says how far an episode and its plans are. Knows planners by what they report, and no world."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from tqdm.auto import tqdm

from emu_embodied.policies.planners.base import Budget, SearchPlanner
from emu_embodied.protocols import Planner


class EpisodeProgress:
    """Shows on stderr the steps of an episode and how much of the present plan has been imagined; use it as a context.

    In a terminal the bar is drawn in place, and goes when the episode is over; elsewhere, as in the log of a script, it is
    written every few seconds.

    Args:
        planner: one whose `on_round` is called with its `Budget` after each round; of others the steps alone are shown.
        steps: most steps of the episode.
        name: what the episode is called.
        shown: False shows nothing.
        on_round: called after each round of a plan.
    """

    def __init__(
        self, planner: Planner, steps: int, name: str, shown: bool = True, on_round: Callable[[], None] | None = None
    ) -> None:
        self._planner, self._plans, self._tell = planner, 0, on_round
        self._before = planner.on_round if isinstance(planner, SearchPlanner) else None
        form = "{desc}: step {n_fmt} of {total_fmt} |{bar:20}| {elapsed}{postfix}"
        self._bar = tqdm(total=steps, desc=name, bar_format=form, leave=False, disable=not shown, **_rate())

    def __enter__(self) -> EpisodeProgress:
        if isinstance(self._planner, SearchPlanner):
            self._planner.on_round = self._round
        return self

    def __exit__(self, *_) -> None:
        if isinstance(self._planner, SearchPlanner):
            self._planner.on_round = self._before
        self._bar.close()

    def step(self) -> None:
        """One step of the episode is done."""
        self._bar.update()

    def _round(self, budget: Budget) -> None:
        self._plans += budget.round == 1
        imagined, all_of_them = budget.spent, budget.config.predicted_frames
        speed = f"{imagined / max(budget.seconds, 1e-9):.0f} frames/s"
        text = f"plan {self._plans}: {imagined:,} of {all_of_them:,} frames imagined, {speed}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(0)
        if self._tell:
            self._tell()
        if self._before:
            self._before(budget)


def counted(items: Iterable[Any], total: int, name: str, shown: bool = True) -> Iterator[Any]:
    """The items as they come, with a bar that counts them."""
    yield from tqdm(items, name, total, leave=False, disable=not shown, **_rate())


def above_bars() -> AbstractContextManager:
    """In which others may print: bars make room, and are drawn again below."""
    return tqdm.external_write_mode()


def _rate() -> dict[str, Any]:
    """How often a bar is drawn: as tqdm's own variable says, else often in a terminal and seldom in a log."""
    in_terminal = sys.stderr is not None and sys.stderr.isatty()
    return {"miniters": 0, "mininterval": float(os.environ.get("TQDM_MININTERVAL", 0.1 if in_terminal else 5.0))}
