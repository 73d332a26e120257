"""Who attends to whom when clean frames and their noisy copies are one sequence. Knows no vocabulary and no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from emu_embodied.types import short_repr


@dataclass(frozen=True)
class TokenPlan:
    """Where each token of a packed sequence stands; `dida_mask` and the rotary positions follow from it.

    Attributes:
        position: (L,) int64 rotary position; a noisy slot shares its clean token's.
        frame: (L,) int64 index of the frame that the token belongs to; -1 for text.
        noisy: (L,) bool, True for the noisy copy of a frame.
    """

    position: torch.Tensor
    frame: torch.Tensor
    noisy: torch.Tensor

    __repr__ = short_repr


def token_plan(text: int, prefix: int, slots: int, frames: int, noisy_from: int | None, cut: bool = False) -> TokenPlan:
    """Plans `text | frame 0 | frame 1 | ...`, then the noisy copies of frames `noisy_from`.. where asked for.

    Args:
        text: text tokens at the start.
        prefix: tokens before a frame's slots (its action and the image-start token).
        slots: visual tokens a frame.
        frames: clean frames.
        noisy_from: first frame with a noisy copy; None for the clean half alone.
        cut: leave out the last clean frame's slots, which no noisy copy sees.
    """
    size = prefix + slots
    frame = [-1] * text + [t for t in range(frames) for _ in range(size)]
    if cut:
        del frame[-slots:]
    position = list(range(len(frame)))
    clean_length = len(frame)
    if noisy_from is not None:
        frame += [t for t in range(noisy_from, frames) for _ in range(slots)]
        position += [text + t * size + prefix + n for t in range(noisy_from, frames) for n in range(slots)]
    return TokenPlan(torch.tensor(position), torch.tensor(frame), torch.arange(len(frame)) >= clean_length)


def dida_rule(plan: TokenPlan, window: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Who may look at whom, as a function of indices: (row, column) -> bool, True where row attends to column.

    Clean tokens are causal. The noisy slots of frame t see the text, the clean frames before t, frame t's own action and
    image-start tokens, and each other in both directions; never the clean slots of frame t. Frames further back than
    `window` are out of sight for both halves. (Emu3.5's DiDA, arXiv 2510.26583, section on bidirectional adaptation.)
    """
    position, frame, noisy = plan.position, plan.frame, plan.noisy
    first_slot = torch.full_like(position, -1)
    for t in frame[noisy].unique():
        first_slot[noisy & (frame == t)] = position[noisy & (frame == t)].min()

    def attends(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        near = (frame[column] < 0) | (frame[column] >= frame[row] - window)
        clean_to_clean = ~noisy[row] & ~noisy[column] & (position[column] <= position[row])
        noisy_to_clean = noisy[row] & ~noisy[column] & (position[column] < first_slot[row])
        noisy_to_noisy = noisy[row] & noisy[column] & (frame[row] == frame[column])
        return near & (clean_to_clean | noisy_to_clean | noisy_to_noisy)

    return attends


def dida_mask(plan: TokenPlan, slots: int, window: int) -> torch.Tensor:
    """`dida_rule` for every pair: (L, L) bool."""
    index = torch.arange(len(plan.position), device=plan.position.device)
    return dida_rule(plan, window)(index[:, None], index[None, :])


def dida_blocks(plan: TokenPlan, window: int) -> BlockMask:
    """`dida_rule` for FlexAttention, which passes over blocks of pairs that do not attend and keeps no (L, L) scores."""
    rule, length = dida_rule(plan, window), len(plan.position)
    return create_block_mask(
        lambda b, h, row, column: rule(row, column), None, None, length, length, plan.position.device
    )
