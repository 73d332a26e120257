"""Reward, success and object positions from a frame's hidden states. Knows no tokens and no transformer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import nn

from emu_embodied.types import short_repr

from .config import TokenModelConfig


@dataclass(frozen=True)
class StateEstimate:
    """What the heads read from a frame's hidden states; leading axes as given.

    Attributes:
        reward: (...) float32.
        success: (...) float32 logits.
        positions: (..., O, 2) float32 in world units.
        presence: (..., O) float32 logits.
    """

    reward: torch.Tensor
    success: torch.Tensor
    positions: torch.Tensor
    presence: torch.Tensor

    __repr__ = short_repr


class StateHeads(nn.Module):
    """Reward, success and object positions, read from a frame's N hidden states by attention pooling."""

    places: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: TokenModelConfig) -> None:
        super().__init__()
        d, objects = config.transformer.hidden_size, len(config.objects)
        self.objects = objects
        self.heat = nn.Linear(d, objects + 1)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of a layer for no objects at all
            self.offset = nn.Linear(d, 2 * objects)
        self.presence = nn.Linear(d, 1)
        self.value = nn.Sequential(
            nn.Linear(2 * d + 3 * objects, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU(), nn.Linear(d, 2)
        )
        centres = (torch.arange(config.grid) + 0.5) / config.grid * 2 - 1
        places = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1).reshape(-1, 2)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("scale", torch.tensor(config.position_scale), persistent=False)

    def forward(self, hidden_BND: torch.Tensor, text_BD: torch.Tensor, through: bool = False) -> StateEstimate:
        """Reads hidden states (B, N, D) given the mean embedding of the instruction (B, D).

        Reward and success are read from positions too; `through` lets their gradient through to these, which training does not.
        """
        attention_BNO = self.heat(hidden_BND).float().softmax(1)
        pooled_BOD = attention_BNO.transpose(1, 2) @ hidden_BND.float()
        offsets = self.offset(hidden_BND).float().unflatten(-1, (self.objects, 2))
        spots = self.places[:, None] + offsets  # (B, N, O, 2)
        places_BO2 = (attention_BNO[..., :-1, None] * spots).sum(1)
        presence = self.presence(pooled_BOD[:, :-1])[..., 0]
        seen = presence.sigmoid()[..., None]
        features = torch.cat([places_BO2 * seen, seen], -1).flatten(1)
        features = features if through else features.detach()
        reward, success = self.value(torch.cat([text_BD.float(), pooled_BOD[:, -1], features], -1)).unbind(-1)
        return StateEstimate(reward, success, places_BO2 * self.scale, presence)
