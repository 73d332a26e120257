"""How frames are decoded: the method and its options, checked once. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass

from emu_embodied.errors import InputError
from emu_embodied.validation import choice, number, whole_number

DECODINGS = ("dida", "exact", "autoregressive")
ORDERS = ("confidence", "random", "halton", "antidiagonal")
SCHEDULES = ("cosine", "linear")
REDRAFTS = ("causal", "noisy")
_WHOLE = (("passes", 1), ("top_k", 0))  # and the least
_REAL = (("temperature", 0, None), ("guidance", None, None), ("top_p", 0, 1))  # and the ends


@dataclass(frozen=True)
class DecodingConfig:
    """Options of a frame's decoding.

    Attributes:
        decoding: "dida" (a frame in `passes` parallel passes and a commit), "autoregressive" (token by token), or "exact"
            (drafted in parallel, verified by the causal half: what token by token gives, in fewer passes).
        passes: K of DiDA, 1 to N.
        order: which slots DiDA decides first: those it is surest of ("confidence", MaskGIT, arXiv 2202.04200), "random" ones,
            spread evenly ("halton", arXiv 2503.17076), or from the top left corner on ("antidiagonal").
        schedule: share of slots that are still open after a share x of the passes: cos(pi x / 2) or 1 - x.
        remask: let DiDA open slots again that it was least sure of when it decided them; helps from 8 passes on.
        redraft: what "exact" goes on with after a wrong slot: what the causal half has just said of the slots behind it
            ("causal", one pass a round), or a new draft of the noisy half that sees the accepted ones ("noisy", two).
        temperature: 0 takes the likeliest codes.
        top_k: sample among the k likeliest codes; 0 for all.
        top_p: sample among the likeliest codes that together have this probability.
        guidance: scale of classifier-free guidance by the instruction, see `decoding.guidance`; 1 is off, and costs half.

    Raises:
        InputError: an option out of range. (`passes` above N shows when a frame is decoded.)
    """

    decoding: str = "dida"
    passes: int = 1
    order: str = "confidence"
    schedule: str = "cosine"
    remask: bool = False
    redraft: str = "causal"
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        choices = {"decoding": DECODINGS, "order": ORDERS, "schedule": SCHEDULES, "redraft": REDRAFTS}
        for name, known in choices.items():
            choice(name, getattr(self, name), known, InputError)
        plain = {name: whole_number(name, getattr(self, name), least, error=InputError) for name, least in _WHOLE}
        plain |= {name: number(name, getattr(self, name), least, most, InputError) for name, least, most in _REAL}
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if self.top_p == 0:
            raise InputError("top_p", self.top_p, "give more than 0, and at most 1")
        if not isinstance(self.remask, bool):
            raise InputError("remask", self.remask, "give true or false")
