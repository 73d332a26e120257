"""Images inside a token sequence: BOI "H*W" IMG row EOL row ... EOI, and strictly back. Knows ids and no pixels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from emu_embodied.errors import InputError
from emu_embodied.model.vocabulary import Emu35Vocabulary

MAX_DIGITS = 6  # of an image's height and width in tokens


def image_ids(codes: np.ndarray | torch.Tensor, vocabulary: Emu35Vocabulary) -> list[int]:
    """Ids of one image.

    Args:
        codes: (h, w) integers in 0 .. codebook_size - 1.
        vocabulary: the id space.

    Raises:
        InputError: another shape or dtype, no codes, or codes out of range.
    """
    codes_HW = np.asarray(codes.cpu() if isinstance(codes, torch.Tensor) else codes)
    if codes_HW.ndim != 2 or not codes_HW.size or not np.issubdtype(codes_HW.dtype, np.integer):
        raise InputError("codes", f"{codes_HW.shape} {codes_HW.dtype}", "give integers (h, w), at least one")
    if not 0 <= codes_HW.min() <= codes_HW.max() < vocabulary.codebook_size:
        found = f"{codes_HW.min()} to {codes_HW.max()}"
        raise InputError("codes", found, f"codes are 0 to {vocabulary.codebook_size - 1}")
    rows_HW = (codes_HW.astype(np.int64) + vocabulary.visual_offset).tolist()
    ids = vocabulary.image_header(*codes_HW.shape)
    for row in rows_HW[:-1]:
        ids += [*row, vocabulary.end_of_line]
    return [*ids, *rows_HW[-1], vocabulary.image_end]


def parse_image(ids: Sequence[int] | np.ndarray | torch.Tensor, vocabulary: Emu35Vocabulary) -> np.ndarray:
    """Codes (h, w) int64 of the ids of one image: exactly what `image_ids` makes, from BOI to EOI.

    Raises:
        InputError: anything else, naming the first position that is wrong.
    """
    ids = _integers(ids)
    height, width, start = _header(ids, vocabulary)
    if len(ids) != start + height * (width + 1):
        remedy = f"{height} x {width} codes need {start + height * (width + 1)}, from BOI to EOI"
        raise InputError("image", f"{len(ids)} ids", remedy)
    body_HW = np.array(ids[start:], dtype=np.int64).reshape(height, width + 1)
    ends = np.full(height, vocabulary.end_of_line)
    ends[-1] = vocabulary.image_end
    wrong_HW = (body_HW < vocabulary.visual_offset) | (body_HW >= vocabulary.size)
    wrong_HW[:, -1] = body_HW[:, -1] != ends
    if wrong_HW.any():
        row, column = np.argwhere(wrong_HW)[0]
        rule = "a visual id" if column < width else "EOI" if row == height - 1 else "EOL"
        position = start + row * (width + 1) + column
        raise InputError(
            f"image, id {position}", int(body_HW[row, column]), f"row {row}, column {column} must be {rule}"
        )
    return body_HW[:, :-1] - vocabulary.visual_offset


def _integers(ids: Sequence[int] | np.ndarray | torch.Tensor) -> list[int]:
    try:
        array = np.asarray(ids.cpu() if isinstance(ids, torch.Tensor) else ids)
    except ValueError:  # lists of different lengths
        array = np.empty(0)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not np.can_cast(array.dtype, np.int64):
        raise InputError("image", f"{array.shape} {array.dtype}", "give the ids as one list of integers")
    return array.tolist()


def _header(ids: list[int], vocabulary: Emu35Vocabulary) -> tuple[int, int, int]:
    """Height, width, and where the first row begins."""
    if not ids or ids[0] != vocabulary.image_start:
        raise InputError("image, id 0", ids[:1], f"must be BOI, {vocabulary.image_start}")
    height, star = _number(ids, 1, vocabulary)
    if star >= len(ids) or ids[star] != vocabulary.times:
        raise InputError(f"image, id {star}", ids[star : star + 1], f"must be *, {vocabulary.times}, after the height")
    width, image = _number(ids, star + 1, vocabulary)
    if image >= len(ids) or ids[image] != vocabulary.image_token:
        raise InputError(f"image, id {image}", ids[image : image + 1], f"must be IMG, {vocabulary.image_token}")
    return height, width, image + 1


def _number(ids: list[int], start: int, vocabulary: Emu35Vocabulary) -> tuple[int, int]:
    """The number whose digits begin at `start`, and where they end."""
    zero = vocabulary.digit(0)
    digits = [
        i - zero for i in itertools.takewhile(lambda i: zero <= i <= zero + 9, ids[start : start + MAX_DIGITS + 1])
    ]
    if not 1 <= len(digits) <= MAX_DIGITS or digits[0] == 0:
        rule = f"a size has 1 to {MAX_DIGITS} digits, the first of them not 0"
        raise InputError(f"image, id {start}", ids[start : start + MAX_DIGITS + 1], rule)
    return int("".join(map(str, digits))), start + len(digits)
