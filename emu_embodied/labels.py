"""Which labels a world model's heads learnt: what nobody trained is not believed. Knows no concrete model."""

from __future__ import annotations

from typing import Any

from emu_embodied.errors import InputError

LABELS = ("reward", "success", "positions")  # in the order of `FrameCache.known`


def knows(model: Any, label: str) -> bool:
    """Whether the head for one of the `LABELS` was trained; who does not say which were knows all."""
    known = getattr(getattr(model, "world", None), "known", None)
    return known is None or label in known


def need(model: Any, label: str, who: str) -> None:
    """Refuses what builds on a head that nobody trained.

    Raises:
        InputError: the model does not know the label.
    """
    if not knows(model, label):
        remedy = f"its data had none: choose what needs no {label}, as a goal frame, or train on data that has it"
        raise InputError(who, f"the model does not know its {label}", remedy)
