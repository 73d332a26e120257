"""Images inside a token sequence: BOI "H*W" IMG row EOL row ... EOI. Knows ids and no pixels."""

from __future__ import annotations

import numpy as np
import torch

from emu_embodied.errors import InputError
from emu_embodied.model.vocabulary import Emu35Vocabulary


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
