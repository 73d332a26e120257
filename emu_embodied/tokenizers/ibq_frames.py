"""Emu3.5's vision tokenizer as the frame tokenizer of a world model: square frames of one size. Knows no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from emu_embodied.errors import ConfigError, InputError

from .frames import to_float, to_uint8
from .ibq import IBQ, IBQConfig, resize

FRAMES = 8  # encoded or decoded at once: full-resolution activations are large


@dataclass(frozen=True)
class IBQFramesConfig:
    """Sizes of the frames, outside and inside.

    Attributes:
        image_size: side of the environment's frames in px.
        encoded_size: side in px to which frames are resized before they are encoded; a multiple of the tokenizer's factor.
        ibq: sizes of the tokenizer.

    Raises:
        ConfigError: a size that does not fit.
    """

    image_size: int = 64
    encoded_size: int = 128
    ibq: IBQConfig = field(default_factory=IBQConfig)

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ConfigError("image_size", self.image_size, "choose at least 1 px")
        if self.encoded_size < self.ibq.factor or self.encoded_size % self.ibq.factor:
            raise ConfigError("encoded_size", self.encoded_size, f"choose a multiple of {self.ibq.factor} px")
        if self.image_size % self.grid:
            remedy = f"its {self.grid} tokens a side must divide the frame's {self.image_size} px"
            raise ConfigError("encoded_size", self.encoded_size, remedy)

    @property
    def patch(self) -> int:
        """Side in px of what a token stands for in a frame."""
        return self.image_size // self.grid

    @property
    def codebook_size(self) -> int:
        return self.ibq.n_embed

    @property
    def grid(self) -> int:
        """Tokens per side."""
        return self.encoded_size // self.ibq.factor

    @property
    def tokens_per_frame(self) -> int:
        return self.grid**2


class IBQFrames(nn.Module):
    """(B, H, W, 3) uint8 frames <-> (B, N) codes, N = (encoded_size / factor)^2, row by row; its state dict is the IBQ's.

    Args:
        config: sizes.
        ibq: a loaded tokenizer to use; a new one by default.

    Raises:
        ConfigError: `ibq` has other sizes than `config.ibq`.
    """

    def __init__(self, config: IBQFramesConfig, ibq: IBQ | None = None) -> None:
        super().__init__()
        if ibq is not None and ibq.config != config.ibq:
            raise ConfigError("ibq", ibq.config, f"the configuration says {config.ibq}")
        self.config = config
        self.ibq = ibq if ibq is not None else IBQ(config.ibq)

    def state_dict(self, *args, **kwargs) -> dict[str, torch.Tensor]:
        return self.ibq.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], strict: bool = True, assign: bool = False):
        return self.ibq.load_state_dict(state_dict, strict, assign)

    def places(self) -> torch.Tensor:
        """The codes' vectors: (codebook_size, embed_dim)."""
        return self.ibq.quantize.embedding.weight.detach()

    @torch.inference_mode()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (B, H, W, 3) uint8 -> codes (B, N) int64.

        Raises:
            InputError: frames of another shape or dtype.
        """
        side = self.config.image_size
        if frames.dtype != torch.uint8 or frames.ndim != 4 or tuple(frames.shape[1:]) != (side, side, 3):
            raise InputError("frames", f"{tuple(frames.shape)} {frames.dtype}", f"give uint8 (B, {side}, {side}, 3)")
        side = self.config.encoded_size
        return torch.cat([self.ibq.encode(to_float(resize(part, (side, side)))).flatten(1) for part in frames.split(FRAMES)])

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, N) int64 -> frames (B, H, W, 3) uint8.

        Raises:
            InputError: another shape or dtype, or codes that the codebook does not have.
        """
        grid, size = self.config.grid, (self.config.image_size, self.config.image_size)
        if codes.ndim != 2 or codes.shape[1] != grid**2:
            raise InputError("codes", tuple(codes.shape), f"give (B, {grid**2})")
        parts = codes.view(-1, grid, grid).split(FRAMES)
        return torch.cat([resize(to_uint8(self.ibq.decode(part).float()), size) for part in parts])
