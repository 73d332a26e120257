"""The released models as the parts of a world model: frames by IBQ, instructions as prompts, actions on unused specials.

Nothing is resized. What the released models do not have starts as nothing: the continuous actions' layer and the heads'
influence are zero or new, the vectors of hidden and noisy tokens are the codes' mean and zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from emu_embodied.checkpoint import World
from emu_embodied.errors import ConfigError
from emu_embodied.model.config import LONGEST_TEXT, TokenModelConfig
from emu_embodied.model.token_model import TokenModel
from emu_embodied.tokenizers.ibq_frames import IBQFrames, IBQFramesConfig
from emu_embodied.tokenizers.text import pad_batch
from emu_embodied.validation import whole_fields

if TYPE_CHECKING:
    from .loading import Emu35

BEFORE = "<|extra_203|>You are a helpful assistant for vla task. USER: "
AFTER = " ASSISTANT: <|extra_100|>"


@dataclass(frozen=True)
class AdoptionConfig:
    """How frames, instructions and actions become Emu3.5's tokens.

    Attributes:
        image_size: side of the environment's frames in px.
        encoded_size: side in px to which they are resized for IBQ; (encoded_size / 16)^2 tokens a frame.
        context_frames: C, frames in sight of the next one.
        text_length: L, ids of the padded prompt, of which about 20 stand around the instruction.
        action_bins: bins of an action value, at most 90.
        continuous_actions: add a layer's reading of the exact values to the action tokens; it starts at zero.
        noise: what DiDA's noisy copies are made with, "absorbing" or "uniform".
    """

    image_size: int = 64
    encoded_size: int = 256
    context_frames: int = 2
    text_length: int = 48
    action_bins: int = 64
    continuous_actions: bool = True
    noise: str = "absorbing"

    def __post_init__(self) -> None:
        if self.noise not in ("absorbing", "uniform"):
            raise ConfigError("noise", self.noise, "choose absorbing or uniform: metric noise keeps all pairs of codes")
        sizes = {"image_size": (1, 2048), "encoded_size": (1, 4096), "context_frames": (1, 64), "action_bins": (1, 90)}
        whole_fields(self, sizes | {"text_length": (20, LONGEST_TEXT)})


class InstructionText:
    """Instructions as prompts of the released models, padded on the left so that the first frame follows the prompt.

    Args:
        text: the released text tokenizer.
    """

    def __init__(self, text) -> None:
        self.text = text
        self.before, self.after = text.encode(BEFORE), text.encode(AFTER)

    @property
    def size(self) -> int:
        return self.text.size

    def batch(self, texts: Sequence[str], length: int, pad: int) -> torch.Tensor:
        """Prompts (B, length) int64 of instructions, in which no special is read; an empty one is all padding.

        Raises:
            InputError: a text that is no string or needs more than `length` ids with what stands around it.
        """
        return pad_batch(self._prompt, texts, length, pad, left=True)

    def _prompt(self, instruction: str) -> list[int]:
        return [*self.before, *self.text.encode(instruction, specials=False), *self.after]


def adopt(
    released: Emu35, world: World, action_dim: int, config: AdoptionConfig
) -> tuple[IBQFrames, InstructionText, TokenModel]:
    """A world model's frame tokenizer, text and token model over released models, which are used as they are, not copied.

    Its noisy half reads a slot at the token before it, as the released causal half predicts it there.

    Args:
        released: language model, vision tokenizer, text tokenizer.
        world: what frames show.
        action_dim: A.
        config: sizes.

    Raises:
        ConfigError: sizes that do not fit the released tokenizers.
    """
    frames = IBQFrames(IBQFramesConfig(config.image_size, config.encoded_size, released.vision.config), released.vision)
    vocabulary = replace(released.text.vocabulary, action_bins=config.action_bins)
    sizes = TokenModelConfig(
        vocabulary,
        released.model.config,
        frames.config.grid,
        action_dim,
        text_length=config.text_length,
        context_frames=config.context_frames,
        previous_frame_source=False,
        next_token_shift=True,
        noise=config.noise,
        objects=tuple(world.objects),
        position_scale=world.position_scale,
    )
    model = TokenModel(sizes, released.model)
    weight = released.model.model.embed_tokens.weight
    nn.init.zeros_(model.action_value.weight)
    nn.init.zeros_(model.action_value.bias)
    model.action_value.requires_grad_(config.continuous_actions)
    nn.init.zeros_(model.noised)
    with torch.no_grad():
        model.hidden_token.copy_(weight[vocabulary.visual].float().mean(0))
    model.to(weight.device)
    for part in (model.action_value, model.heads):
        part.float()
    return frames, InstructionText(released.text), model
