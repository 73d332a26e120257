"""Which labels a world model's heads learnt; heads without labels are not used. Knows no concrete model."""

from __future__ import annotations

from emu_embodied.errors import InputError
from emu_embodied.protocols import Trained

LABELS = ("reward", "success", "positions")  # in the order of `FrameCache.known`


def knows(model: object, label: str) -> bool:
    """Whether the head for one of the `LABELS` was trained; who does not say which were knows all."""
    known = model.world.known if isinstance(model, Trained) else None
    return known is None or label in known


def need(model: object, label: str, who: str) -> None:
    """Refuses what builds on a head that was not trained.

    Raises:
        InputError: the model does not know the label.
    """
    if not knows(model, label):
        remedy = f"its data had none: choose what needs no {label}, as a goal frame, or train on data that has it"
        raise InputError(who, f"the model does not know its {label}", remedy)
