"""The rows of an evaluation's two tables, as cells of text and as Markdown. Knows no model and no metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Figure:
    """One row of the quality table.

    Attributes:
        name: what is measured, with its unit.
        value: the figure; None where there was nothing to measure.
        interval: bootstrap or Wilson 95% interval; None where there is none.
        n: windows, objects or episodes it rests on.
        copy_last: the same figure for a model that repeats the last real frame; None where it makes no sense.
        round_trip: the same figure for the true frames after the tokenizer; None where it makes no sense.
        must, aim: the bars, as text.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None
    n: int
    copy_last: float | None
    round_trip: float | None
    must: str
    aim: str

    HEAD: ClassVar = ("figure", "value", "95% interval", "n", "copy-last", "round trip", "must", "aim")

    def cells(self) -> tuple[str, ...]:
        """As text."""
        value, interval = _number(self.value), _interval(self.interval)
        beside = _number(self.copy_last), _number(self.round_trip)
        return self.name, value, interval, str(self.n), *beside, self.must, self.aim


@dataclass(frozen=True)
class Row:
    """One metric at one step.

    Attributes:
        metric: its name, with the unit.
        step: k; 0 for those of a whole rollout.
        n: windows it rests on.
        model, copy_last, round_trip: the figure of the dream, of repeating the last real frame, and of the true frames after
            the tokenizer; None where it makes no sense.
        interval: bootstrap 95% interval of the model's, over windows.
    """

    metric: str
    step: int
    n: int
    model: float | None
    copy_last: float | None = None
    round_trip: float | None = None
    interval: tuple[float, float] | None = None

    HEAD: ClassVar = ("metric", "k", "model", "95% interval", "copy-last", "round trip", "n")

    def cells(self) -> tuple[str, ...]:
        """As text."""
        step, beside = str(self.step or "-"), (_number(self.copy_last), _number(self.round_trip))
        return self.metric, step, _number(self.model), _interval(self.interval), *beside, str(self.n)


def as_markdown(rows: Sequence[Figure] | Sequence[Row]) -> str:
    """A table of at least one row as Markdown."""
    head = rows[0].HEAD
    lines = [head, ("---",) * len(head), *(row.cells() for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else "{:.3g} to {:.3g}".format(*interval)
