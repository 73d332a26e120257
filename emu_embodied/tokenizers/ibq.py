"""Images to visual codes and back: Emu3.5's vision tokenizer (IBQ, arXiv 2510.26583). Knows no files and no token ids.

A VQGAN: convolutions with attention at the lowest resolutions, and a codebook in which each latent takes the entry with the
largest dot product. The modules carry the official names, so that a state dict fits as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from emu_embodied.errors import ConfigError, InputError
from emu_embodied.validation import whole_number

from .frames import to_float

LATENTS, CODES = (
    4096,
    4096,
)  # compared with each other at once: 64 MiB of dot products, whatever the image and the codebook


@dataclass(frozen=True)
class IBQConfig:
    """Sizes of the tokenizer; the defaults are the released one's.

    Attributes:
        ch: channels at full resolution, a multiple of 32.
        ch_mult: channels of each level over `ch`; each level but the last halves the resolution.
        num_res_blocks: residual blocks a level in the encoder; the decoder has one more.
        attn_resolutions: resolutions with attention after every block, counted for images of side `resolution`.
        resolution: the nominal side in px. Images may have any sides that are multiples of `factor`.
        in_channels, out_ch: of the image.
        z_channels: of the latent, before it is projected to the codebook's space.
        n_embed: codes.
        embed_dim: length of a code's vector.

    Raises:
        ConfigError: a size out of range.
    """

    ch: int = 256
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    resolution: int = 256
    in_channels: int = 3
    out_ch: int = 3
    z_channels: int = 256
    n_embed: int = 131072
    embed_dim: int = 256

    def __post_init__(self) -> None:
        for name, most in _LARGEST.items():
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            if len(values) > 8:
                raise ConfigError(name, value, "give at most 8")
            for one in values:
                whole_number(name, one, 1, most)
        if not self.ch_mult:
            raise ConfigError("ch_mult", self.ch_mult, "give at least one level")
        if self.ch % 32:
            raise ConfigError("ch", self.ch, "choose a multiple of 32: channels are normalised in 32 groups")

    @property
    def factor(self) -> int:
        """Pixels a side of one code."""
        return 2 ** (len(self.ch_mult) - 1)

    def widths(self) -> list[int]:
        """Channels of each level, from full resolution down."""
        return [self.ch * multiple for multiple in self.ch_mult]

    def attends(self, level: int) -> bool:
        """Whether a level has attention."""
        return self.resolution // 2**level in self.attn_resolutions


_LARGEST = {"ch": 4096, "ch_mult": 64, "num_res_blocks": 64, "attn_resolutions": 1 << 16, "resolution": 1 << 16}
_LARGEST |= {"in_channels": 64, "out_ch": 64, "z_channels": 1 << 16, "n_embed": 1 << 24, "embed_dim": 1 << 16}


class IBQ(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] <-> codes (B, H / factor, W / factor) int64."""

    def __init__(self, config: IBQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Codebook(config.n_embed, config.embed_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    @torch.inference_mode()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) floating point in [-1, 1], sides multiples of `factor` -> codes (B, h, w) int64.

        Raises:
            InputError: another shape or dtype, sides that do not fit, values that are not finite or out of range.
        """
        self._check_images(images)
        return self.quantize.nearest(self.quant_conv(self.encoder(images.to(self.post_quant_conv.weight.dtype))))

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, h, w) integers -> images (B, 3, H, W) in about [-1, 1], of the weights' dtype.

        Raises:
            InputError: another shape or dtype, or codes that the codebook does not have.
        """
        if codes.ndim != 3 or codes.dtype not in (torch.int64, torch.int32):
            raise InputError("codes", f"{tuple(codes.shape)} {codes.dtype}", "give integers (B, h, w)")
        if codes.numel() and not 0 <= codes.min() <= codes.max() < self.config.n_embed:
            found = f"{codes.min().item()} to {codes.max().item()}"
            raise InputError("codes", found, f"codes are 0 to {self.config.n_embed - 1}")
        return self.decoder(self.post_quant_conv(self.quantize.embedding(codes).permute(0, 3, 1, 2).contiguous()))

    def _check_images(self, images: torch.Tensor) -> None:
        channels, factor = self.config.in_channels, self.config.factor
        if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
            found = f"{tuple(images.shape)} {images.dtype}"
            raise InputError("images", found, f"give floating point (B, {channels}, H, W) in [-1, 1]")
        if any(side < factor or side % factor for side in images.shape[2:]):
            found = f"{images.shape[2]} x {images.shape[3]} px"
            raise InputError("images", found, f"both sides must be multiples of {factor} px; see preprocess")
        if images.numel() and not images.abs().max() <= 1:  # NaN is not
            raise InputError("images", "values beyond [-1, 1] or not finite", "scale pixels by x / 127.5 - 1")


def preprocess(image: np.ndarray | torch.Tensor, image_area: int, factor: int = 16) -> torch.Tensor:
    """One image as the released model sees it: of about `image_area` px, in its own proportions, in [-1, 1].

    Args:
        image: (H, W, 3) uint8 RGB, both sides at least `factor` px.
        image_area: px to resize to (bicubic, antialiased, as Pillow does it).
        factor: both sides are rounded to multiples of it.

    Returns:
        (1, 3, h, w) float32.

    Raises:
        InputError: another shape or dtype, an image or an area that is too small.
    """
    image = torch.as_tensor(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != torch.uint8:
        raise InputError("image", f"{tuple(image.shape)} {image.dtype}", "give RGB uint8 (H, W, 3)")
    height, width = image.shape[:2]
    if min(height, width) < factor:
        raise InputError("image", f"{height} x {width} px", f"both sides must have at least {factor} px")
    whole_number("image_area", image_area, factor**2, error=InputError)
    return to_float(resize(image[None], fitting_size(height, width, image_area, factor)))


def fitting_size(height: int, width: int, area: int, factor: int) -> tuple[int, int]:
    """Height and width of about `area` px in all, in the same proportions, rounded half up to multiples of `factor`."""
    ratio = width / height
    tall = int(math.sqrt(area / ratio))
    wide = int(tall * ratio)
    height, width = (max(1, (side + factor // 2) // factor) * factor for side in (tall, wide))
    return height, width


def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, *size, 3) uint8: bicubic and antialiased, within one level of Pillow's."""
    pixels = images.permute(0, 3, 1, 2).float()
    for step in ((images.shape[1], size[1]), size):  # across, then down, rounded in between: as Pillow does it
        if tuple(pixels.shape[2:]) != tuple(step):
            pixels = F.interpolate(pixels, step, mode="bicubic", antialias=True).round().clamp(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1)


class Codebook(nn.Module):
    """The codes' vectors."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)

    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (B, D, h, w) -> codes (B, h, w) int64 with the largest dot product; of equal ones the first."""
        batch, dim, height, width = z.shape
        latents = z.permute(0, 2, 3, 1).reshape(-1, dim).float()
        return torch.cat([self._nearest(part) for part in latents.split(LATENTS)]).view(batch, height, width)

    def _nearest(self, latents_ND: torch.Tensor) -> torch.Tensor:
        best_N = latents_ND.new_full((len(latents_ND),), -math.inf)
        codes_N = torch.zeros_like(best_N, dtype=torch.int64)
        for start in range(0, self.embedding.num_embeddings, CODES):
            part_VD = self.embedding.weight[start : start + CODES].float()
            value_N, index_N = (latents_ND @ part_VD.T).max(1)
            codes_N = torch.where(value_N > best_N, index_N + start, codes_N)
            best_N = torch.maximum(value_N, best_N)
        return codes_N


class Encoder(nn.Module):
    """(B, in_channels, H, W) -> (B, z_channels, H / factor, W / factor)."""

    def __init__(self, config: IBQConfig) -> None:
        super().__init__()
        widths = config.widths()
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        before = [config.ch, *widths[:-1]]
        self.down = nn.ModuleList()
        for level, (start, width) in enumerate(zip(before, widths, strict=True)):
            stage = Level(start, width, config.num_res_blocks, config.attends(level))
            if level < len(widths) - 1:
                stage.downsample = Downsample(width)
            self.down.append(stage)
        self.mid = Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, z_channels, h, w) -> (B, out_ch, h * factor, w * factor). `up.0` is at full resolution and comes last."""

    def __init__(self, config: IBQConfig) -> None:
        super().__init__()
        widths = config.widths()
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        before = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList()
        for level, (start, width) in enumerate(zip(before, widths, strict=True)):
            stage = Level(start, width, config.num_res_blocks + 1, config.attends(level))
            if level > 0:
                stage.upsample = Upsample(width)
            self.up.append(stage)
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Level(nn.Module):
    """What happens at one resolution: residual blocks, attention after each where asked for, then a change of resolution."""

    def __init__(self, start: int, width: int, blocks: int, attends: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(width if index else start, width) for index in range(blocks))
        self.attn = nn.ModuleList(Attention(width) for _ in range(blocks if attends else 0))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        change = self.downsample or self.upsample
        return change(x) if change else x


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width)
        self.attn_1 = Attention(width)
        self.block_2 = ResidualBlock(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), 3x3; a 1x1 convolution carries x over to another width."""

    def __init__(self, start: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(start), nn.Conv2d(start, width, 3, padding=1)
        self.norm2, self.conv2 = norm(width), nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(start, width, 1) if start != width else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.nin_shortcut(x) if self.nin_shortcut else x)


class Attention(nn.Module):
    """Every place attends to every other, in one head; with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        q, k, v = (part(y).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))  # (B, 1, h w, C)
        y = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(y)


class Downsample(nn.Module):
    """Halves both sides; pads at the right and at the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles both sides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def norm(width: int) -> nn.GroupNorm:
    """Normalisation in 32 groups of channels."""
    return nn.GroupNorm(32, width, eps=1e-6)
