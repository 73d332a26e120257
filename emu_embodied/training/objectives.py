"""What the stages minimise: the tokenizer's reconstruction, and the trajectory model's causal, noisy and state losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.inference.decoding import autoregressive, dida
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.inference.frame_step import FrameStep
from emu_embodied.model.noise import Absorbing, Noise
from emu_embodied.model.token_model import FrameStates, TokenModel
from emu_embodied.tokenizers.actions import bin_actions
from emu_embodied.tokenizers.frames import FrameTokenizer, reconstruction_loss, to_float
from emu_embodied.validation import number_fields, whole_fields

from .datasets import WindowBatch, WindowSampler


class TokenizerObjective:
    """Reconstruction of frames, with what moves and what is foreground weighted up.

    Half of the frames are drawn evenly, half in proportion to the pixels that moved since the frame before: objects that
    touch and push each other are rare, and a patch that shows several of them is the hardest to encode.

    Args:
        cache: the dataset; where several are mixed, each has its share of the frames.
        batch: frames a step.
        seed: batches are a function of (seed, step).
    """

    def __init__(self, cache: FrameCache, batch: int, seed: int) -> None:
        self.pixels, self.batch, self.seed = torch.from_numpy(cache.pixels), batch, seed
        self.previous = np.maximum(
            np.arange(len(cache)) - 1, np.repeat(cache.episode_starts[:-1], np.diff(cache.episode_starts))
        )
        shares = cache.frame_shares()
        self.shares = None if shares is None else np.cumsum(shares)
        some = np.random.default_rng(seed).choice(len(cache), min(2000, len(cache)), replace=False)
        self.mean = to_float(self.pixels[np.sort(some)]).mean(0)

    @cached_property
    def busy(self) -> np.ndarray:
        """Running sum of the pixels that moved, frame by frame; even where nothing moves at all."""
        pixels, parts = self.pixels.numpy(), np.array_split(np.arange(len(self.pixels)), 64)
        moved = np.concatenate([_moved_pixels(pixels, self.previous, part) for part in parts])
        weight = moved if moved.any() else np.ones_like(moved)
        return np.cumsum(weight if self.shares is None else weight * np.diff(self.shares, prepend=0), dtype=np.float64)

    def __call__(self, module: FrameTokenizer, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        device = module.levels.device
        rng, half = np.random.default_rng([self.seed, step]), self.batch // 2
        busy = np.searchsorted(self.busy, rng.uniform(0, self.busy[-1], half), side="right")
        if self.shares is None:
            even = rng.integers(0, len(self.pixels), self.batch - half)
        else:
            even = np.searchsorted(self.shares, rng.uniform(0, self.shares[-1], self.batch - half), side="right")
        frames = np.sort(np.minimum(np.concatenate([busy, even]), len(self.pixels) - 1))
        now = to_float(self.pixels[frames].to(device))
        before = to_float(self.pixels[self.previous[frames]].to(device))
        output, _ = module(now)
        return reconstruction_loss(output, now, before, self.mean.to(device)), {}


def _moved_pixels(pixels: np.ndarray, previous: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """How many pixels of each of `frames` differ visibly from the frame before."""
    change = np.abs(pixels[frames].astype(np.int16) - pixels[previous[frames]]).max(-1) > 16
    return change.sum((1, 2))


@dataclass(frozen=True)
class TrajectoryConfig:
    """Phases, noise and weights of the trajectory model's loss.

    Attributes:
        batch: windows a step.
        frames: frames of a window in the autoregressive and joint phases.
        rollout_frames: frames of a window in the rollout phase; all but the context's first and the last are the model's own
            (see `real_frames`).
        autoregressive_until, joint_until: the phases' ends as shares of the stage; the rollout phase follows.
        causal_share: share of the steps after the autoregressive phase that also train the causal half.
        fully_hidden: share of noisy frames with every token hidden, which is what makes one pass strong.
        corruption: share of context tokens replaced at random, in half of the samples.
        contact_share: share of windows drawn because objects move in them, which are the hard ones. Give 0 where the world is
            random: what is drawn for its outcome is learnt to be likelier than it is. (So is what `changed` > 1 weighs more.)
        changed: weight of tokens that differ from the previous frame's.
        soften: width, in levels of the tokenizer's latent, of the bell over which a target code is spread. Codes of nearly the
            same patch then share votes instead of splitting them, and being off by a little costs little. 0 for hard targets.
        causal: weight of the next-token loss beside the noisy one.
        position, reward, success: weights of the state heads' losses.
        language: weight of the next-token loss on text and action tokens.
        unconditional: share of windows whose tokens see an empty instruction, for classifier-free guidance; the heads see
            the whole one.
        shift_frames: most frames by which windows are moved away from the text.

    Raises:
        ConfigError: a number outside its range.
    """

    batch: int = 16
    frames: int = 3
    rollout_frames: int = 5
    autoregressive_until: float = 0.08
    joint_until: float = 0.75
    causal_share: float = 1.0
    fully_hidden: float = 0.5
    corruption: float = 0.1
    contact_share: float = 0.5
    changed: float = 6.0
    soften: float = 0.0
    causal: float = 0.5
    position: float = 0.3
    reward: float = 0.1
    success: float = 0.1
    language: float = 0.02
    unconditional: float = 0.0
    shift_frames: int = 12

    def __post_init__(self) -> None:
        least = {"batch": 1, "frames": 2, "rollout_frames": 2, "shift_frames": 0}
        whole_fields(self, {name: (smallest, None) for name, smallest in least.items()})
        weights = ("changed", "soften", "causal", "position", "reward", "success", "language")
        shares = ("autoregressive_until", "joint_until", "causal_share", "fully_hidden", "corruption", "contact_share")
        number_fields(self, dict.fromkeys(weights, (0, None)))
        number_fields(self, dict.fromkeys((*shares, "unconditional"), (0, 1)))


class TrajectoryObjective:
    """Next-token loss on the clean half, masked prediction on the noisy half, labels on the state heads.

    Three phases follow each other: autoregressive alone; joint with DiDA's noisy copies; joint on the model's own rollouts
    with the true frames as targets, which teaches it to come back from its own errors.

    Args:
        sampler: source of windows.
        config: phases and weights.
        steps: length of the stage.
        places_VK: (codebook_size, K) where the codes lie in the tokenizer's latent, in levels.
        noise: what noisy copies are made with.
        teacher: a model whose frames, decoded token by token from the true ones before, are the targets instead of the data's:
            what is predicted in parallel is then what the causal half says, and nothing it could not know.
        temperature: of the teacher's frames.
    """

    def __init__(
        self,
        sampler: WindowSampler,
        config: TrajectoryConfig,
        steps: int,
        places_VK: torch.Tensor,
        noise: Noise | None = None,
        teacher: TokenModel | None = None,
        temperature: float = 0.0,
    ) -> None:
        self.sampler, self.config, self.steps = sampler, config, steps
        self.noise, self.teacher = noise or Absorbing(), teacher
        self.decoding = DecodingConfig("autoregressive", temperature=temperature)
        self.soft_VV = None
        if config.soften:
            apart_VV = (places_VK[:, None] - places_VK[None]).square().sum(-1)
            self.soft_VV = (-apart_VV / (2 * config.soften**2)).softmax(-1)

    def __call__(self, module: TokenModel, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        c, device = self.config, module.noised.device
        generator = torch.Generator().manual_seed(self.sampler.seed * 1_000_003 + step)
        share = step / self.steps
        rollout, noisy = share >= c.joint_until, share >= c.autoregressive_until
        causal = not noisy or torch.rand((), generator=generator).item() < c.causal_share
        batch = self.sampler.batch(step, c.batch, c.rollout_frames if rollout else c.frames).to(device)
        if self.teacher is not None and not rollout:
            batch = replace(batch, targets_BFN=_frames_of(self.teacher, batch, self.decoding, generator))
        context = _corrupt(batch.codes_BFN, c.corruption, module.config.vocabulary.codebook_size, generator)
        real = [True] * context.shape[1]
        if rollout:
            real = real_frames(context.shape[1], module.config.context_frames)
            context = _own_rollout(module, batch, context, self.noise, generator)
        shift = (
            torch.randint(0, c.shift_frames + 1, (c.batch,), generator=generator).to(device)
            * module.config.frame_tokens
        )
        copies, hidden = self._noise(batch, generator) if noisy else (None, None)
        text_BL = batch.text_BL
        if c.unconditional:
            without_B1 = torch.rand(c.batch, 1, generator=generator).to(device) < c.unconditional
            text_BL = text_BL.masked_fill(without_B1, module.config.vocabulary.pad)
        states = module(text_BL, context, batch.actions_BFA, copies, hidden, shift, causal)
        return self._loss(module, batch, text_BL, states, hidden, real)

    def _noise(self, batch: WindowBatch, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy copies of frames 1.. and which of their tokens are hidden; levels follow a cosine, or are 1."""
        targets = batch.targets_BFN
        level = torch.cos(math.pi / 2 * torch.rand(targets.shape[:2], generator=generator))
        level[torch.rand(level.shape, generator=generator) < self.config.fully_hidden] = 1.0
        return self.noise.corrupt(targets, level[..., None].to(targets.device), generator)

    def _loss(self, module: TokenModel, batch: WindowBatch, text_BL, states: FrameStates, hidden, real: list[bool]):
        c, figures, heads = self.config, {}, {}
        losses: list[torch.Tensor] = []
        if states.noisy_BFND is not None:
            weight = self._weight(batch, batch.targets_BFN) * self.noise.counts(hidden)
            noisy = self.token_loss(module, states.noisy_BFND, batch.targets_BFN, weight)
            losses.append(noisy)
            figures["noisy"], heads["noisy"] = noisy.item(), states.noisy_BFND
        if states.clean_BFTD is not None:
            targets = batch.codes_BFN[:, 1:]
            # Only a real frame's tokens have a true next token; what they follow may be the model's own.
            weight = self._weight(batch, targets) * torch.tensor(real[1:], device=targets.device)[:, None]
            if all(real):
                heads["clean"] = module.frame_slots(states.clean_BFTD)
            predicted = module.frame_predictions(states.clean_BFTD)
            causal = self.token_loss(module, predicted, targets, weight)
            losses += [c.causal * causal, c.language * self._language_loss(module, batch, text_BL, states)]
            figures["causal"] = causal.item()
        for name, slots in heads.items():
            state, figures[f"position_{name}"] = self.state_loss(module, batch, slots)
            losses.append(state)
        first, *others = losses
        return sum(others, first), figures

    def _weight(self, batch: WindowBatch, targets: torch.Tensor) -> torch.Tensor:
        """More for tokens that differ from the frame before: (B, F - 1, N)."""
        return 1 + (self.config.changed - 1) * (targets != batch.codes_BFN[:, :-1]).float()

    def token_loss(self, module: TokenModel, states: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor):
        """Weighted cross-entropy of visual codes, over the slots that count; of soft targets where asked for."""
        logits, flat = module.visual_logits(states).float().flatten(0, -2), targets.flatten()
        wanted = flat if self.soft_VV is None else self.soft_VV[flat]
        losses = F.cross_entropy(logits, wanted, reduction="none").view_as(targets)
        return (losses * weight).sum() / weight.sum().clamp(min=1)

    def state_loss(self, module: TokenModel, batch: WindowBatch, states: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Loss of the heads on hidden states (B, F - 1, N, D), and the mean position error in px of a 64 px frame."""
        c, frames = self.config, states.shape[1]
        read = module.estimate(states.flatten(0, 1), batch.text_BL.repeat_interleave(frames, 0))
        rewarded, judged, seen = batch.known_BF3.flatten(0, 1).unbind(-1)
        reward = (F.smooth_l1_loss(read.reward, batch.reward_BF.flatten(), reduction="none") * rewarded).mean()
        success = F.binary_cross_entropy_with_logits(read.success, batch.success_BF.flatten(), weight=judged)
        total = c.reward * reward + c.success * success
        if not module.config.objects:
            return total, 0.0
        present = batch.present_BFO.flatten(0, 1) * seen[:, None]
        presence = F.binary_cross_entropy_with_logits(read.presence, present, weight=seen[:, None].expand_as(present))
        per_px = 32 / module.heads.scale.abs()
        error = ((read.positions - batch.positions_BFO2.flatten(0, 1)) * per_px).norm(dim=-1) * present
        position = F.huber_loss(error, torch.zeros_like(error), reduction="sum") / present.sum().clamp(min=1)
        total = total + c.position * (position + 0.3 * presence)
        return total, (error.sum() / present.sum().clamp(min=1)).item()

    def _language_loss(self, module: TokenModel, batch: WindowBatch, text_BL, states: FrameStates) -> torch.Tensor:
        """Next-token loss of the text and of the action tokens."""
        v, head = module.config.vocabulary, module.transformer.lm_head
        text_logits = head(states.text_BLD[:, :-1]).transpose(1, 2).float()
        text = F.cross_entropy(text_logits, text_BL[:, 1:], ignore_index=v.pad, reduction="sum")
        text = text / (text_BL[:, 1:] != v.pad).sum().clamp(min=1)
        actions = bin_actions(batch.actions_BFA, v.action_bins)
        assert states.clean_BFTD is not None  # the causal half was asked for
        logits = F.linear(states.clean_BFTD[:, :, : module.config.action_dim], head.weight[v.action]).float()
        return text + F.cross_entropy(logits.flatten(0, 2), actions.flatten())


def _corrupt(codes: torch.Tensor, share: float, codebook: int, generator: torch.Generator) -> torch.Tensor:
    """Replaces up to 2 x `share` of the tokens by random codes, in half of the samples."""
    rate = torch.rand(len(codes), 1, 1, generator=generator) * 2 * share
    rate[torch.rand(len(codes), generator=generator) < 0.5] = 0
    hit = torch.rand(codes.shape, generator=generator) < rate
    noise = torch.randint(0, codebook, codes.shape, generator=generator)
    return torch.where(hit.to(codes.device), noise.to(codes.device), codes)


def real_frames(frames: int, context_frames: int) -> list[bool]:
    """Which frames of a window are the data's in the rollout phase: those that the first dream is of, and the last."""
    known = max(1, context_frames)
    return [t < known or t == frames - 1 for t in range(frames)]


@torch.no_grad()
def _own_rollout(module: TokenModel, batch: WindowBatch, context, noise: Noise, generator) -> torch.Tensor:
    """Replaces the frames that are not `real_frames` by what the model dreams from the first, one greedy pass a frame."""
    real = real_frames(context.shape[1], module.config.context_frames)
    if all(real):
        return context
    step, known = FrameStep(module), real.index(False)
    cache = step.prefill(batch.text_BL, context[:, :known], batch.actions_BFA[:, : known - 1], ahead=len(real))
    dreamt = list(context[:, :known].unbind(1))
    for t in range(known, len(real) - 1):
        action = batch.actions_BFA[:, t - 1]
        codes, _, _ = dida.decode_frame(step, cache, action, generator=generator, noise=noise)
        dreamt.append(codes)
    return torch.stack([*dreamt, batch.codes_BFN[:, -1]], 1)


@torch.no_grad()
def _frames_of(teacher: TokenModel, batch: WindowBatch, decoding: DecodingConfig, generator) -> torch.Tensor:
    """Frames 1.. (B, F - 1, N) as the teacher decodes them token by token, each from the true frames before it."""
    step, known, frames = FrameStep(teacher), max(1, teacher.config.context_frames), []
    for t in range(1, batch.codes_BFN.shape[1]):
        first = max(0, t - known)
        past = batch.codes_BFN[:, first:t], batch.actions_BFA[:, first : t - 1]
        cache = step.prefill(batch.text_BL, *past, ahead=1)
        frames.append(autoregressive.decode_frame(step, cache, batch.actions_BFA[:, t - 1], decoding, generator)[0])
    return torch.stack(frames, 1)
