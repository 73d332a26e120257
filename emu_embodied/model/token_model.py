"""The trajectory model: text, frames and actions as one sequence, each frame with a noisy copy. Knows no sampling, no pixels.

Sequence: `text | frame 0 | frame 1 | ... || noisy 1 | noisy 2 | ...`, where a frame is `action tokens, image header, image
block`. In a small model the header is `<|image start|>` and the block the visual tokens; in the released models the header
tells the size, and the block has an EOL between its rows and an EOI at its end. The clean half is trained to predict the next
token, as Emu3.5; the noisy half is DiDA's: hidden visual tokens, predicted all at once from the clean past and from each other,
between structure that is always known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn

from emu_embodied.tokenizers.actions import bin_actions
from emu_embodied.types import short_repr

from .config import TokenModelConfig
from .dida_mask import TokenPlan, dida_blocks, dida_mask, token_plan
from .state_heads import StateEstimate, StateHeads
from .transformer import Transformer


@dataclass(frozen=True)
class FrameStates:
    """Hidden states of a packed batch; frames 1.. are those that something is predicted of.

    Attributes:
        text_BLD: (B, L, D).
        clean_BFTD: (B, F - 1, 1 + prefix + block, D), the token before each of frames 1.. and its own; None where left out.
        noisy_BFND: (B, F - 1, N, D), the states that predict the noisy copies' slots; None where there are none.
    """

    text_BLD: torch.Tensor
    clean_BFTD: torch.Tensor | None
    noisy_BFND: torch.Tensor | None

    __repr__ = short_repr


class PreviousFrameSource(nn.Module):
    """What the next frame's slots start from: 3x3 convolutions over the previous frame's embeddings and the action."""

    def __init__(self, config: TokenModelConfig) -> None:
        super().__init__()
        d = config.transformer.hidden_size
        self.grid = config.grid
        self.action = nn.Sequential(nn.Linear(config.action_dim, d), nn.SiLU(), nn.Linear(d, d))
        self.first = nn.Conv2d(d, d, 3, padding=1)
        self.second = nn.Conv2d(d, d, 3, padding=1)
        self.place = nn.Parameter(0.02 * torch.randn(config.slots, d))

    def forward(self, previous_BND: torch.Tensor, actions_BA: torch.Tensor) -> torch.Tensor:
        """(B, N, D) from the previous frame's embeddings (B, N, D) and the actions (B, A)."""
        batch, slots, d = previous_BND.shape
        x = previous_BND.transpose(1, 2).reshape(batch, d, self.grid, self.grid)
        x = self.first(x) + self.action(actions_BA.to(x.dtype))[:, :, None, None]
        x = self.second(F.silu(x)).flatten(2).transpose(1, 2)
        return x + previous_BND + self.place


class TokenModel(nn.Module):
    """Emu3.5's transformer over a robot's trajectory, with DiDA's noisy copies and state heads.

    The training pass is `forward`; single pure inference steps are in `emu_embodied.inference.frame_step`.

    Args:
        config: sizes.
        transformer: one that is there already, such as a released one; by default a new one.

    Attributes:
        blocks: whether the training pass masks by blocks (FlexAttention); None does on CUDA, where they have gradients.
    """

    blocks: bool | None = None
    header: torch.Tensor
    structure: torch.Tensor
    places: torch.Tensor

    def __init__(self, config: TokenModelConfig, transformer: Transformer | None = None) -> None:
        super().__init__()
        self.config = config
        d, grid = config.transformer.hidden_size, config.grid
        self.transformer = transformer or Transformer(config.transformer)
        block = config.vocabulary.image_block(grid, grid)
        header = torch.tensor(config.vocabulary.image_header(grid, grid))
        self.register_buffer("header", header, persistent=False)
        self.register_buffer("structure", torch.tensor([i or 0 for i in block]), persistent=False)
        slots = torch.tensor([place for place, i in enumerate(block) if i is None])
        self.register_buffer("places", slots, persistent=False)  # of the slots in the block
        self.hidden_token = nn.Parameter(0.02 * torch.randn(d))
        self.noised = nn.Parameter(0.02 * torch.randn(d))
        self.action_value = nn.Linear(config.action_dim, config.action_dim * d)
        nn.init.normal_(self.action_value.weight, std=0.02)
        self.source = PreviousFrameSource(config) if config.previous_frame_source else None
        self.heads = StateHeads(config)

    @torch.no_grad()
    def place_codes(self, places_VK: torch.Tensor, spread: float = 2.0, own: float = 0.6) -> None:
        """Starts the visual codes' embeddings, in and out, as smooth functions of their places in the tokenizer's latent.

        Codes of similar patches are then similar before training has seen them (random Fourier features, Rahimi and Recht,
        NeurIPS 2007).

        Args:
            places_VK: (codebook_size, K), in any unit.
            spread: of the frequencies, over half of the latent's range; the larger, the faster similarity falls with distance.
            own: share of each embedding's size that is its own.
        """
        d, rows = self.noised.shape[0], self.config.vocabulary.visual
        low, high = places_VK.min(0).values, places_VK.max(0).values
        places_VK = (places_VK - low) / (high - low) * 2 - 1
        for table in (self.transformer.model.embed_tokens.weight, self.transformer.lm_head.weight):
            frequencies = spread * torch.randn(places_VK.shape[1], d).to(places_VK)
            phases = 2 * math.pi * torch.rand(d).to(places_VK)
            smooth = 2**0.5 * torch.cos(places_VK @ frequencies + phases)
            table[rows] = 0.02 * ((1 - own**2) ** 0.5 * smooth + own * torch.randn_like(smooth))

    def hidden_matrices(self) -> list[torch.Tensor]:
        """The matrices and kernels between hidden states: what the Muon optimiser is for."""
        source = [] if self.source is None else [self.source.first.weight, self.source.second.weight]
        return [*source, *(p for p in self.transformer.model.layers.parameters() if p.ndim == 2)]

    # pieces of the sequence

    def embed_text(self, text_BL: torch.Tensor) -> torch.Tensor:
        """(B, L, D)."""
        return self.transformer.model.embed_tokens(text_BL)

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Visual codes (..., N) int64 -> (..., N, D); of probabilities (..., N, V) the expected embeddings."""
        if codes.is_floating_point():
            table_VD = self.transformer.model.embed_tokens.weight[self.config.vocabulary.visual]
            return codes.to(table_VD.dtype) @ table_VD
        return self.transformer.model.embed_tokens(codes + self.config.vocabulary.visual_offset)

    def embed_block(self, codes_BN: torch.Tensor) -> torch.Tensor:
        """A frame's visual tokens with the structure around them: (B, block, D); codes as `embed_codes` takes them."""
        if len(self.structure) == len(self.places):
            return self.embed_codes(codes_BN)
        if codes_BN.is_floating_point():
            x = self.transformer.model.embed_tokens(self.structure).repeat(len(codes_BN), 1, 1)
            return x.index_copy(1, self.places, self.embed_codes(codes_BN))
        ids_BT = self.structure.expand(len(codes_BN), -1).clone()
        ids_BT[:, self.places] = codes_BN + self.config.vocabulary.visual_offset
        return self.transformer.model.embed_tokens(ids_BT)

    def read_ids(self, codes_B: torch.Tensor, index: int) -> torch.Tensor:
        """The ids between the drawing of slot `index - 1`, whose code is given, and of slot `index`: (B, 1 or 2) int64."""
        ids_BT = codes_B[:, None] + self.config.vocabulary.visual_offset
        if len(self.structure) == len(self.places) or index % self.config.grid:
            return ids_BT
        behind = index + index // self.config.grid - 1  # the row's EOL, or the EOI
        return torch.cat([ids_BT, self.structure[behind].expand(len(ids_BT), 1)], 1)

    def prompt(self, instruction_BI: torch.Tensor, codes_BN: torch.Tensor, caption_BS: torch.Tensor) -> torch.Tensor:
        """The text of a key frame's prediction, (B, L) int64: `instruction | frame | caption`, all in the one id space.

        Args:
            instruction_BI, caption_BS: padded ids, of the configuration's lengths.
            codes_BN: visual codes of the frame that is seen now.
        """
        v, batch = self.config.vocabulary, len(codes_BN)
        prefix = [v.no_action] * self.config.action_dim
        block = self.structure.expand(batch, -1).clone()
        block[:, self.places] = codes_BN + v.visual_offset
        before = torch.cat([self.header.new_tensor(prefix), self.header]).expand(batch, -1)
        return torch.cat([instruction_BI, before, block, caption_BS], 1)

    def at_slots(self, hidden_BTD: torch.Tensor, before: bool) -> torch.Tensor:
        """The hidden states (B, N, D) of a whole frame's (B, prefix + block, D) at its slots, or at the tokens before them."""
        first = self.config.prefix - before
        if len(self.structure) == len(self.places):
            return hidden_BTD[:, first : first + len(self.places)]
        return hidden_BTD[:, first + self.places]

    def embed_prefix(self, actions_BA: torch.Tensor | None, batch: int) -> torch.Tensor:
        """A frame's action tokens and image header: (B, prefix, D); None stands for "no action"."""
        v, c = self.config.vocabulary, self.config
        device = self.noised.device
        if actions_BA is None:
            ids = torch.full((batch, c.action_dim), v.no_action, device=device)
        else:
            ids = bin_actions(actions_BA, v.action_bins) + v.action_offset
        x = self.transformer.model.embed_tokens(torch.cat([ids, self.header.expand(batch, -1)], 1))
        if actions_BA is None:
            return x
        values = self.action_value(actions_BA.to(self.action_value.weight.dtype)).view(batch, c.action_dim, -1)
        return torch.cat([x[:, : c.action_dim] + values, x[:, c.action_dim :]], 1)

    def frame_source(self, previous_BN: torch.Tensor, actions_BA: torch.Tensor) -> torch.Tensor | None:
        """What the next frame's slots start from, (B, N, D); None where the model is plain Emu3.5."""
        return self.source(self.embed_codes(previous_BN), actions_BA) if self.source is not None else None

    def embed_clean(
        self, actions_BA: torch.Tensor | None, codes_BN: torch.Tensor, source_BND: torch.Tensor | None
    ) -> torch.Tensor:
        """One clean frame: (B, prefix + block, D). The source of slot i is added to the token before it, which predicts it."""
        x = torch.cat([self.embed_prefix(actions_BA, codes_BN.shape[0]), self.embed_block(codes_BN)], 1)
        return x if source_BND is None else x + F.pad(source_BND, (0, 0, self.config.prefix - 1, 1))

    def embed_noisy(
        self, codes_BN: torch.Tensor, hidden_BN: torch.Tensor, source_BND: torch.Tensor | None
    ) -> torch.Tensor:
        """One noisy frame: (B, block, D); slots where `hidden_BN` is True show nothing of their code."""
        if len(self.structure) > len(self.places):
            hidden_BT = hidden_BN.new_zeros(len(hidden_BN), len(self.structure))
            hidden_BT[:, self.places] = hidden_BN
            hidden_BN = hidden_BT
        x = torch.where(hidden_BN[..., None], self.hidden_token, self.embed_block(codes_BN)) + self.noised
        if source_BND is None:
            return x
        return x + (torch.roll(source_BND, -1, 1) if self.config.next_token_shift else source_BND)

    def embed_draft(
        self, actions_BA: torch.Tensor, codes_BN: torch.Tensor, hidden_BN: torch.Tensor, source_BND: torch.Tensor | None
    ) -> torch.Tensor:
        """A frame's prefix and its noisy slots, as one parallel pass reads them: (B, prefix + block, D)."""
        prefix = self.embed_prefix(actions_BA, codes_BN.shape[0])
        if source_BND is not None:
            prefix = torch.cat([prefix[:, :-1], prefix[:, -1:] + source_BND[:, :1]], 1)
        return torch.cat([prefix, self.embed_noisy(codes_BN, hidden_BN, source_BND)], 1)

    def embed_history(
        self, text_BL: torch.Tensor, codes_BCN: torch.Tensor, actions_BCA: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Text and the frames that stay in sight, with their rotary positions and mask, as `Transformer.write_kv` wants."""
        frames = codes_BCN.shape[1] if self.config.context_frames else 0
        parts = [self.embed_text(text_BL)]
        for t in range(frames):
            action = actions_BCA[:, t - 1] if t else None
            source = None if action is None else self.frame_source(codes_BCN[:, t - 1], action)
            parts.append(self.embed_clean(action, codes_BCN[:, t], source))
        return torch.cat(parts, 1), *self.layout(frames, None)

    def visual_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., codebook_size) over the visual codes."""
        return F.linear(hidden, self.transformer.lm_head.weight[self.config.vocabulary.visual])

    def estimate(self, hidden_BND: torch.Tensor, text_BL: torch.Tensor, through: bool = False) -> StateEstimate:
        """The heads' reading of a frame's hidden states (B, N, D); `through` as in `StateHeads`."""
        real = (text_BL != self.config.vocabulary.pad)[..., None].float()
        mean = (self.embed_text(text_BL) * real).sum(1) / real.sum(1).clamp(min=1)
        return self.heads(hidden_BND.float(), mean.float(), through)

    @cached_property
    def _masks(self) -> dict:
        return {}

    def layout(self, frames: int, noisy_from: int | None, cut: bool = False, blocks: bool = False):
        """Rotary positions (L,) and mask of a packed sequence (see `token_plan`), dense (L, L) or in blocks; computed once."""
        device = self.noised.device
        key = (frames, noisy_from, cut, blocks, device)
        if key not in self._masks:
            c = self.config
            plan = token_plan(c.text_length, c.prefix, c.block, frames, noisy_from, cut)
            plan = TokenPlan(plan.position.to(device), plan.frame.to(device), plan.noisy.to(device))
            mask = dida_blocks(plan, c.context_frames) if blocks else dida_mask(plan, c.block, c.context_frames)
            self._masks[key] = (plan.position, mask)
        return self._masks[key]

    # training

    def forward(
        self,
        text_BL: torch.Tensor,
        codes_BFN: torch.Tensor,
        actions_BFA: torch.Tensor,
        noisy_BFN: torch.Tensor | None = None,
        hidden_BFN: torch.Tensor | None = None,
        shift_B: torch.Tensor | None = None,
        causal: bool = True,
    ) -> FrameStates:
        """Hidden states of a packed batch.

        Args:
            text_BL: (B, L) instruction ids.
            codes_BFN: (B, F, N) clean frames.
            actions_BFA: (B, F - 1, A), action t led from frame t to t + 1.
            noisy_BFN, hidden_BFN: (B, F - 1, N) noisy copies of frames 1.. and which of their tokens are hidden; None for
                the causal half alone.
            shift_B: (B,) tokens by which the frames stand further from the text, so that long rollouts are familiar.
            causal: False leaves out what only the causal half needs.
        """
        batch, frames, slots = codes_BFN.shape
        sources = [self.frame_source(codes_BFN[:, t], actions_BFA[:, t]) for t in range(frames - 1)]
        if self.config.context_frames:
            return self._pack(text_BL, codes_BFN, actions_BFA, [None, *sources], noisy_BFN, hidden_BFN, shift_B, causal)
        # No frame sees another: every transition is a sequence of its own.
        flat = self._pack(
            text_BL.repeat_interleave(frames - 1, 0),
            codes_BFN[:, 1:].reshape(-1, 1, slots),
            actions_BFA.flatten(0, 1)[:, None],
            [torch.stack([source for source in sources if source is not None], 1).flatten(0, 1)],
            None if noisy_BFN is None else noisy_BFN.reshape(-1, 1, slots),
            None if hidden_BFN is None else hidden_BFN.reshape(-1, 1, slots),
            None,
            causal,
        )
        return FrameStates(
            flat.text_BLD.unflatten(0, (batch, -1))[:, 0],
            None if flat.clean_BFTD is None else flat.clean_BFTD.squeeze(1).unflatten(0, (batch, -1)),
            None if flat.noisy_BFND is None else flat.noisy_BFND.squeeze(1).unflatten(0, (batch, -1)),
        )

    def _pack(self, text_BL, codes_BFN, actions_BFA, sources, noisy_BFN, hidden_BFN, shift_B, causal) -> FrameStates:
        """One pass over `text | frames | noisy copies`; where no frame came first, `actions_BFA` has one for every frame."""
        c, frames = self.config, codes_BFN.shape[1]
        first = frames - actions_BFA.shape[1]  # first frame with an action, and with a noisy copy
        parts = [self.embed_text(text_BL)]
        for t in range(frames):
            parts.append(
                self.embed_clean(actions_BFA[:, t - first] if t >= first else None, codes_BFN[:, t], sources[t])
            )
        if not causal:
            parts[-1] = parts[-1][:, : c.prefix]
        clean_length = sum(part.shape[1] for part in parts)
        if noisy_BFN is not None:
            for t in range(first, frames):
                parts.append(self.embed_noisy(noisy_BFN[:, t - first], hidden_BFN[:, t - first], sources[t]))
        blocks = self.noised.is_cuda if self.blocks is None else self.blocks
        positions, mask = self.layout(frames, None if noisy_BFN is None else first, not causal, blocks)
        if shift_B is not None:
            positions = positions + shift_B[:, None] * (positions >= c.text_length)
        hidden = self.transformer.hidden(torch.cat(parts, 1), positions, mask)
        ends = [c.text_length + t * c.frame_tokens for t in range(first, frames)]
        clean = torch.stack([hidden[:, e - 1 : e + c.frame_tokens] for e in ends], 1) if causal else None
        noisy = None
        if noisy_BFN is not None:
            noisy = hidden[:, clean_length:].unflatten(1, (frames - first, c.block))
            if c.next_token_shift:  # slot 0 is read at the header's end, slot i at the noisy token before it
                starts = torch.stack([hidden[:, e + c.prefix - 1 : e + c.prefix] for e in ends], 1)
                noisy = torch.cat([starts, noisy[:, :, :-1]], 2)
            if c.block > c.slots:
                noisy = noisy[:, :, self.places]
        return FrameStates(hidden[:, : c.text_length], clean, noisy)

    def frame_predictions(self, clean_BFTD: torch.Tensor) -> torch.Tensor:
        """The hidden states of the causal half that predict the slots of frames 1..: (B, F - 1, N, D)."""
        return self.at_slots(clean_BFTD.flatten(0, 1)[:, 1:], before=True).unflatten(0, clean_BFTD.shape[:2])

    def frame_slots(self, clean_BFTD: torch.Tensor) -> torch.Tensor:
        """The slots' own hidden states in the causal half: (B, F - 1, N, D)."""
        return self.at_slots(clean_BFTD.flatten(0, 1)[:, 1:], before=False).unflatten(0, clean_BFTD.shape[:2])
