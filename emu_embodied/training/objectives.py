"""What the stages minimise: the tokenizer's reconstruction, and the trajectory model's causal, noisy and state losses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.decoding import dida
from emu_embodied.step import FrameStep
from emu_embodied.token_model import TokenModel
from emu_embodied.tokenizers.actions import bin_actions
from emu_embodied.tokenizers.frames import FrameTokenizer, reconstruction_loss, to_float
from emu_embodied.training.windows import WindowBatch, WindowSampler


class TokenizerObjective:
    """Reconstruction of random frames, with what moves and what is foreground weighted up.

    Args:
        cache: the dataset.
        batch: frames a step.
        seed: batches are a function of (seed, step).
    """

    def __init__(self, cache: FrameCache, batch: int, seed: int) -> None:
        self.pixels, self.batch, self.seed = torch.from_numpy(cache.pixels), batch, seed
        self.previous = np.maximum(
            np.arange(len(cache)) - 1, np.repeat(cache.episode_starts[:-1], np.diff(cache.episode_starts))
        )
        some = np.random.default_rng(seed).choice(len(cache), min(2000, len(cache)), replace=False)
        self.mean = to_float(self.pixels[np.sort(some)]).mean(0)

    def __call__(self, module: FrameTokenizer, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        device = module.levels.device
        frames = np.sort(np.random.default_rng([self.seed, step]).integers(0, len(self.pixels), self.batch))
        now = to_float(self.pixels[frames].to(device))
        before = to_float(self.pixels[self.previous[frames]].to(device))
        output, _ = module(now)
        return reconstruction_loss(output, now, before, self.mean.to(device)), {}


@dataclass(frozen=True)
class TrajectoryConfig:
    """Phases, noise and weights of the trajectory model's loss.

    Attributes:
        batch: windows a step.
        frames: frames of a window in the autoregressive and joint phases.
        rollout_frames: frames of a window in the rollout phase; all but the first two and the last are the model's own.
        autoregressive_until, joint_until: the phases' ends as shares of the stage; the rollout phase follows.
        fully_hidden: share of noisy frames with every token hidden, which is what makes one pass strong.
        corruption: share of context tokens replaced at random, in half of the samples.
        changed: weight of tokens that differ from the previous frame's.
        causal: weight of the next-token loss beside the noisy one.
        position, reward, success: weights of the state heads' losses.
        language: weight of the next-token loss on text and action tokens.
        shift_frames: most frames by which windows are moved away from the text.
    """

    batch: int = 16
    frames: int = 3
    rollout_frames: int = 5
    autoregressive_until: float = 0.08
    joint_until: float = 0.75
    fully_hidden: float = 0.5
    corruption: float = 0.1
    changed: float = 6.0
    causal: float = 0.5
    position: float = 0.3
    reward: float = 0.1
    success: float = 0.1
    language: float = 0.02
    shift_frames: int = 12


class TrajectoryObjective:
    """Next-token loss on the clean half, masked prediction on the noisy half, labels on the state heads.

    Three phases follow each other: autoregressive alone; joint with DiDA's noisy copies; joint on the model's own rollouts
    with the true frames as targets, which teaches it to come back from its own errors.

    Args:
        sampler: source of windows.
        config: phases and weights.
        steps: length of the stage.
    """

    def __init__(self, sampler: WindowSampler, config: TrajectoryConfig, steps: int) -> None:
        self.sampler, self.config, self.steps = sampler, config, steps

    def __call__(self, module: TokenModel, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        c, device = self.config, module.noised.device
        generator = torch.Generator().manual_seed(self.sampler.seed * 1_000_003 + step)
        share = step / self.steps
        rollout = share >= c.joint_until
        batch = self.sampler.batch(step, c.batch, c.rollout_frames if rollout else c.frames).to(device)
        context = _corrupt(batch.codes_BFN, c.corruption, module.config.vocabulary.codebook_size, generator)
        if rollout:
            context = _own_rollout(module, batch, context)
        shift = (
            torch.randint(0, c.shift_frames + 1, (c.batch,), generator=generator).to(device)
            * module.config.frame_tokens
        )
        noisy, hidden = (None, None) if share < c.autoregressive_until else self._noise(batch, context, generator)
        clean_out, noisy_out = module(batch.text_BL, context, batch.actions_BFA, noisy, hidden, shift)
        return self._loss(module, batch, clean_out, noisy_out, hidden, rollout)

    def _noise(
        self, batch: WindowBatch, context: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy copies of frames 1.. and which of their tokens are hidden (cosine schedule, or all of them)."""
        targets = batch.codes_BFN[:, 1:]
        ratio = torch.cos(math.pi / 2 * torch.rand(targets.shape[:2], generator=generator))
        ratio[torch.rand(ratio.shape, generator=generator) < self.config.fully_hidden] = 1.0
        hidden = torch.rand(targets.shape, generator=generator) < ratio[..., None]
        return targets, hidden.to(context.device)

    def _loss(self, module: TokenModel, batch: WindowBatch, clean_out, noisy_out, hidden, rollout: bool):
        c, targets = self.config, batch.codes_BFN[:, 1:]
        weight = 1 + (c.changed - 1) * (targets != batch.codes_BFN[:, :-1]).float()
        causal_weight = weight
        if rollout:  # the model's own frames have no true next token; the last frame and the first are real
            causal_weight = (
                weight * torch.tensor([1.0] + [0.0] * (targets.shape[1] - 2) + [1.0], device=weight.device)[:, None]
            )
        causal = _token_loss(module, module.frame_predictions(clean_out), targets, causal_weight)
        language = self._language_loss(module, batch, clean_out)
        loss, figures = c.causal * causal + c.language * language, {"causal": causal.item()}
        if noisy_out is not None:
            noisy = _token_loss(module, noisy_out, targets, weight * hidden)
            loss = loss + noisy
            figures["noisy"] = noisy.item()
        frames = clean_out[:, module.config.text_length :].unflatten(1, (-1, module.config.frame_tokens))
        slots = frames[:, 1:, module.config.prefix :]
        for name, states in (("clean", None if rollout else slots), ("noisy", noisy_out)):
            if states is not None:
                state, error = self._state_loss(module, batch, states)
                loss, figures[f"position_{name}"] = loss + state, error
        return loss, figures

    def _state_loss(self, module: TokenModel, batch: WindowBatch, states: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Loss of the heads on hidden states (B, F - 1, N, D), and the mean position error in px of a 64 px frame."""
        c, frames = self.config, states.shape[1]
        read = module.estimate(states.flatten(0, 1), batch.text_BL.repeat_interleave(frames, 0))
        known = batch.known_BF.flatten()
        reward = (F.smooth_l1_loss(read.reward, batch.reward_BF.flatten(), reduction="none") * known).mean()
        success = F.binary_cross_entropy_with_logits(read.success, batch.success_BF.flatten(), weight=known)
        present = batch.present_BFO.flatten(0, 1)
        presence = F.binary_cross_entropy_with_logits(read.presence, present)
        per_px = 32 / module.heads.scale.abs()
        error = ((read.positions - batch.positions_BFO2.flatten(0, 1)) * per_px).norm(dim=-1) * present
        position = F.huber_loss(error, torch.zeros_like(error), reduction="sum") / present.sum().clamp(min=1)
        total = c.reward * reward + c.success * success + c.position * (position + 0.3 * presence)
        return total, (error.sum() / present.sum().clamp(min=1)).item()

    def _language_loss(self, module: TokenModel, batch: WindowBatch, clean_out: torch.Tensor) -> torch.Tensor:
        """Next-token loss of the text and of the action tokens."""
        v, c = module.config.vocabulary, module.config
        head = module.transformer.lm_head
        text_targets = batch.text_BL[:, 1:]
        text = F.cross_entropy(
            head(clean_out[:, : c.text_length - 1]).transpose(1, 2).float(), text_targets, ignore_index=v.pad
        )
        frames = clean_out[:, c.text_length :].unflatten(1, (-1, c.frame_tokens))
        before = torch.cat([frames[:, :-1, -1:], frames[:, 1:, : c.action_dim - 1]], 2)
        actions = bin_actions(batch.actions_BFA, v.action_bins)
        logits = F.linear(before, head.weight[v.action]).float()
        return text + F.cross_entropy(logits.flatten(0, 2), actions.flatten())


def _token_loss(module: TokenModel, states: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted cross-entropy of visual codes, over the slots that count."""
    logits = module.visual_logits(states).float()
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view_as(targets)
    return (losses * weight).sum() / weight.sum().clamp(min=1)


def _corrupt(codes: torch.Tensor, share: float, codebook: int, generator: torch.Generator) -> torch.Tensor:
    """Replaces up to 2 x `share` of the tokens by random codes, in half of the samples."""
    rate = torch.rand(len(codes), 1, 1, generator=generator) * 2 * share
    rate[torch.rand(len(codes), generator=generator) < 0.5] = 0
    hit = torch.rand(codes.shape, generator=generator) < rate
    noise = torch.randint(0, codebook, codes.shape, generator=generator)
    return torch.where(hit.to(codes.device), noise.to(codes.device), codes)


@torch.no_grad()
def _own_rollout(module: TokenModel, batch: WindowBatch, context: torch.Tensor) -> torch.Tensor:
    """Replaces frames 2 .. F - 2 by what the model dreams from the first two, one greedy pass a frame."""
    step, frames = FrameStep(module), context.shape[1]
    cache = step.prefill(batch.text_BL, context[:, :2], batch.actions_BFA[:, :1], ahead=frames)
    dreamt = [context[:, 0], context[:, 1]]
    for t in range(2, frames - 1):
        action = batch.actions_BFA[:, t - 1]
        codes, _, _ = dida.decode_frame(step, cache, action)
        step.commit(cache, action, codes)
        dreamt.append(codes)
    return torch.stack([*dreamt, batch.codes_BFN[:, -1]], 1)
