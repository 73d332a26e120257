"""What was generated, put together from events: text and images in order, as PNG files and JSON. Knows no model."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from emu_embodied.errors import InputError
from emu_embodied.generation.grammar import image_length
from emu_embodied.generation.interleaved import Ended, Event, ImageBegun, ImageFinished, TextPiece
from emu_embodied.storage.atomic import write_bytes, write_json
from emu_embodied.tokenizers.ibq import IBQ
from emu_embodied.types import short_repr


@dataclass(frozen=True)
class TextPart:
    """A stretch of text.

    Attributes:
        kind: "text", "global_cot" (thoughts about the whole answer) or "image_cot" (about the next image).
        text: without special tokens.
        tokens: ids, special ones included.
    """

    kind: str
    text: str
    tokens: int


@dataclass(frozen=True)
class ImagePart:
    """An image: codes (height, width) int64 on the CPU, and its tokens from BOI to EOI."""

    codes_HW: torch.Tensor
    tokens: int

    __repr__ = short_repr


@dataclass
class Answer:
    """One row's answer.

    Attributes:
        parts: in order.
        ended: why it ended, see `generation.Ended`; None while it goes on.
    """

    parts: list[TextPart | ImagePart] = field(default_factory=list)
    ended: str | None = None

    @property
    def images(self) -> list[ImagePart]:
        return [part for part in self.parts if isinstance(part, ImagePart)]

    @property
    def tokens(self) -> int:
        """Of the answer, its EOS included."""
        return sum(part.tokens for part in self.parts) + (self.ended is not None)


@dataclass
class _Stretch:
    """Text that goes on: all its ids, those not shown yet, and how many there are with the special ones."""

    kind: str = "text"
    ids: list[int] = field(default_factory=list)
    unshown: list[int] = field(default_factory=list)
    tokens: int = 0


class Collector:
    """Puts the answers of a batch together.

    Args:
        text: the text tokenizer: `decode(ids)` and `vocabulary`.
        rows: of the batch.
    """

    def __init__(self, text, rows: int = 1) -> None:
        self.text = text
        self.answers = [Answer() for _ in range(rows)]
        self._open = [_Stretch() for _ in range(rows)]
        extra = text.vocabulary.extra
        self._kinds = {extra(50): "image_cot", extra(60): "global_cot", extra(51): "text", extra(61): "text"}

    def add(self, event: Event) -> str:
        """Takes an event; returns the text that it adds, held back until its characters are whole."""
        shown = ""
        if isinstance(event, TextPiece):
            shown = "".join(self._add_text(event.row, token) for token in event.ids)
        elif isinstance(event, ImageBegun | Ended):
            shown = self._close(event.row)
        if isinstance(event, ImageFinished):
            part = ImagePart(event.codes_HW, image_length(*event.codes_HW.shape))
            self.answers[event.row].parts.append(part)
        elif isinstance(event, Ended):
            self.answers[event.row].ended = event.reason
        return shown

    def _add_text(self, row: int, token: int) -> str:
        shown = self._close(row, self._kinds[token]) if token in self._kinds else ""
        stretch = self._open[row]
        stretch.tokens += 1
        if token >= self.text.vocabulary.ranks:
            return shown
        stretch.ids.append(token)
        stretch.unshown.append(token)
        piece = self.text.decode(stretch.unshown)
        if piece.endswith("\ufffd") and len(stretch.unshown) < 8:  # half a character, most likely
            return shown
        stretch.unshown.clear()
        return shown + piece

    def _close(self, row: int, kind: str = "text") -> str:
        stretch, self._open[row] = self._open[row], _Stretch(kind)
        if stretch.tokens:
            text = self.text.decode(stretch.ids)
            self.answers[row].parts.append(TextPart(stretch.kind, text, stretch.tokens))
        return self.text.decode(stretch.unshown)


def image_pixels(codes_HW: torch.Tensor, vision: IBQ) -> np.ndarray:
    """Codes (h, w) as pixels (H, W, 3) uint8 RGB.

    Raises:
        InputError: the vision tokenizer gives values that are not finite.
    """
    device = next(vision.parameters()).device
    pixels = vision.decode(codes_HW[None].to(device))[0].float()
    if not torch.isfinite(pixels).all():
        raise InputError("image", "NaN or inf", "check the vision tokenizer's weights and dtype")
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()


def save_image(path: str | os.PathLike, codes_HW: torch.Tensor, vision: IBQ) -> None:
    """Writes an image as PNG: all of it, or none.

    Raises:
        InputError: the vision tokenizer gives values that are not finite.
        CheckpointError: a disk that does not take it.
    """
    import cv2

    write_bytes(path, cv2.imencode(".png", image_pixels(codes_HW, vision)[..., ::-1])[1].tobytes())


def image_name(index: int) -> str:
    """The file of an answer's image, counted from 0."""
    return f"image-{index + 1}.png"


def write_result(folder: str | os.PathLike, answer: Answer, about: dict) -> None:
    """Writes `result.json`: `about`, and the answer's parts; images under the names of `image_name`.

    Raises:
        CheckpointError: values that JSON does not know, or a disk that does not take it.
    """
    images, parts = 0, []
    for part in answer.parts:
        if isinstance(part, TextPart):
            parts.append({"type": part.kind, "text": part.text, "tokens": part.tokens})
        else:
            grid = list(part.codes_HW.shape)
            parts.append({"type": "image", "file": image_name(images), "grid": grid, "tokens": part.tokens})
            images += 1
    write_json(Path(folder) / "result.json", {**about, "ended": answer.ended, "tokens": answer.tokens, "parts": parts})
