"""Frames to visual codes and back: a convolutional autoencoder with finite scalar quantisation. Knows nothing of actions.

FSQ is from "Finite Scalar Quantization: VQ-VAE Made Simple" (arXiv 2309.15505); the BatchNorm before its bound keeps the
codes in use. The encoder sees a patch and `margin` pixels around it and nothing else, so what stands still keeps its codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from emu_embodied.errors import CheckpointError, ConfigError
from emu_embodied.validation import whole_fields, whole_number

LARGEST_CODEBOOK = 1 << 20


@dataclass(frozen=True)
class FrameTokenizerConfig:
    """Sizes of the frame tokenizer.

    Attributes:
        image_size: side of a frame in px, a multiple of `patch`.
        patch: downsampling; one token per patch.
        margin: pixels around its patch that the encoder also sees.
        levels: FSQ levels per latent channel, each at least 2; their product is the codebook size.
        width: channels of encoder and decoder.
        encoder_layers: further 1x1 layers of the encoder, which sort what a patch may show into codes.
        blocks: residual 3x3 blocks of the decoder at token resolution.
        placed: encoder and decoder know where a patch lies, so that codes need not tell a background that stands still.

    Raises:
        ConfigError: a size out of range, or sizes that do not fit together.
    """

    image_size: int = 64
    patch: int = 8
    margin: int = 2
    levels: tuple[int, ...] = (8, 8, 8)
    width: int = 128
    encoder_layers: int = 0
    blocks: int = 3
    placed: bool = False

    def __post_init__(self) -> None:
        whole_fields(
            self,
            {
                "image_size": (2, 2048),
                "patch": (2, 256),
                "margin": (0, 256),
                "width": (2, 1 << 14),
                "encoder_layers": (0, 256),
                "blocks": (0, 256),
            },
        )
        if self.patch % 2:
            raise ConfigError("patch", self.patch, "choose an even number: the decoder doubles the resolution last")
        if self.image_size % self.patch:
            raise ConfigError("image_size", self.image_size, f"choose a multiple of patch, {self.patch}")
        if not isinstance(self.levels, tuple) or not 1 <= len(self.levels) <= 16:
            raise ConfigError("levels", self.levels, "give 1 to 16 whole numbers")
        for level in self.levels:  # a single level says nothing, and is divided by zero
            whole_number("levels", level, 2, 1 << 16)
        if self.codebook_size > LARGEST_CODEBOOK:
            raise ConfigError("levels", self.levels, f"their product may be at most {LARGEST_CODEBOOK}")

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    @property
    def grid(self) -> int:
        """Tokens per side."""
        return self.image_size // self.patch

    @property
    def tokens_per_frame(self) -> int:
        return self.grid**2


class ResidualBlock(nn.Module):
    """x + conv(gelu(conv(gelu(x)))), 3x3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.gelu(self.first(F.gelu(x))))


class FrameTokenizer(nn.Module):
    """FSQ autoencoder: (B, H, W, 3) uint8 frames <-> (B, N) codes, N = (H / patch)^2, row by row."""

    levels: torch.Tensor
    basis: torch.Tensor

    def __init__(self, config: FrameTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        w, m, dims = config.width, config.margin, len(config.levels)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 2 * w, config.patch + 2 * m, stride=config.patch, padding=m, padding_mode="replicate"),
            nn.GELU(),
            *(layer for _ in range(config.encoder_layers) for layer in (nn.Conv2d(2 * w, 2 * w, 1), nn.GELU())),
            nn.Conv2d(2 * w, w, 1),
            nn.GELU(),
            nn.Conv2d(w, dims, 1),
            nn.BatchNorm2d(dims, affine=False),
        )
        self.decoder_in = nn.Conv2d(dims, w, 3, padding=1)
        self.blocks = nn.Sequential(*[ResidualBlock(w) for _ in range(config.blocks)])
        self.decoder_out = nn.Sequential(
            nn.GELU(),
            nn.Conv2d(w, 4 * (w // 2), 3, padding=1),
            nn.PixelShuffle(2),
            nn.GELU(),
            nn.Conv2d(w // 2, 3 * (config.patch // 2) ** 2, 3, padding=1),
            nn.PixelShuffle(config.patch // 2),
        )
        grid = (config.grid, config.grid)
        self.place_in = nn.Parameter(torch.zeros(2 * w, *grid)) if config.placed else None
        self.place_out = nn.Parameter(torch.zeros(w, *grid)) if config.placed else None
        levels = torch.tensor(config.levels)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("basis", torch.cumprod(torch.cat([levels.new_ones(1), levels[:-1]]), 0), persistent=False)

    def hidden_matrices(self) -> list[torch.Tensor]:
        """The kernels between hidden states: what the Muon optimiser is for."""
        inside = (self.encoder[1:-2], self.blocks, self.decoder_out[:-2])
        return [p for modules in inside for p in modules.parameters() if p.ndim == 4]

    # training path

    def bound(self, z: torch.Tensor) -> torch.Tensor:
        """Squashes latents (B, D, h, w) to the level grid 0 .. levels - 1, still continuous."""
        top = (self.levels - 1).view(1, -1, 1, 1)
        return torch.sigmoid(1.6 * z) * top

    def latents(self, frames: torch.Tensor) -> torch.Tensor:
        """What the encoder makes of (B, 3, H, W) in [-1, 1]: (B, D, h, w), bounded to the level grid."""
        x = self.encoder[0](frames)
        return self.bound(self.encoder[1:](x if self.place_in is None else x + self.place_in))

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstructs (B, 3, H, W) in [-1, 1] with straight-through gradients; also returns the bounded latents."""
        z = self.latents(frames)
        q = z + (z.round() - z).detach()
        return self.reconstruct(q), z

    def reconstruct(self, q: torch.Tensor) -> torch.Tensor:
        """Decodes level indices (B, D, h, w) to (B, 3, H, W) in about [-1, 1]."""
        return self.decoder_out(self._trunk(q))

    def _trunk(self, q: torch.Tensor) -> torch.Tensor:
        """The decoder up to token resolution: (B, width, h, w)."""
        x = q / (self.levels - 1).view(1, -1, 1, 1) * 2 - 1
        x = self.decoder_in(x)
        return self.blocks(x if self.place_out is None else x + self.place_out)

    def places(self) -> torch.Tensor:
        """Where each code lies in the latent grid: (codebook_size, D) float32, level indices."""
        codes = torch.arange(self.config.codebook_size, device=self.levels.device)[:, None]
        return (codes // self.basis % self.levels).float()

    # inference path

    @torch.inference_mode()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (B, H, W, 3) uint8 -> codes (B, N) int64.

        Raises:
            CheckpointError: weights that give no numbers.
        """
        q = _finite("frame codes", self.latents(to_float(frames))).round().long()
        return (q * self.basis.view(1, -1, 1, 1)).sum(1).flatten(1)

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, N) int64 -> frames (B, H, W, 3) uint8.

        Raises:
            CheckpointError: weights that give no numbers.
        """
        return to_uint8(self.reconstruct(self._level_indices(codes)))

    @torch.inference_mode()
    def features(self, codes: torch.Tensor) -> torch.Tensor:
        """What the decoder has learnt to see in codes (B, N), before it makes pixels of it: (B, width, h, w)."""
        return self._trunk(self._level_indices(codes))

    def _level_indices(self, codes: torch.Tensor) -> torch.Tensor:
        g = self.config.grid
        q = (codes.reshape(-1, 1, g, g) // self.basis.view(1, -1, 1, 1)) % self.levels.view(1, -1, 1, 1)
        return q.float()


def to_float(frames: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


def _finite(name: str, x: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(x).all():
        remedy = "the tokenizer's weights give no numbers here: take another checkpoint, or train it again"
        raise CheckpointError(name, "NaN or inf", remedy)
    return x


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8.

    Raises:
        CheckpointError: images that are not finite, which came of weights.
    """
    return ((_finite("frames", images) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def reconstruction_loss(
    output: torch.Tensor, frames: torch.Tensor, previous: torch.Tensor, mean: torch.Tensor
) -> torch.Tensor:
    """Squared error with pixels that moved weighted x16 and foreground x8: small objects vanish without it.

    Args:
        output: (B, 3, H, W) reconstruction in [-1, 1].
        frames: (B, 3, H, W) truth; previous: the frames before them, for what moves.
        mean: (3, H, W) mean frame of the dataset, for what is foreground.
    """
    moved = ((frames - previous).abs().amax(1, keepdim=True) > 16 / 255).float()
    foreground = ((frames - mean).abs().amax(1, keepdim=True) > 0.25).float()
    weight = 1 + 7 * foreground + 8 * moved
    return (weight * (output - frames) ** 2).mean()
