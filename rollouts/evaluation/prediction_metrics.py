"""Rollouts judged step by step: frames, tokens, states and actions, each beside copy-last and the round trip.

The round trip is the true frame, encoded and decoded again by the tokenizer.

Definitions are the literature's: dPSNR is Genie's (arXiv 2402.15391), moving regions leave out what stands still. Frechet
distances are of this package's own probe features (never to be called FID).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from emu_embodied.errors import ConfigError
from emu_embodied.metrics import bootstrap_interval, frechet_distance, moving_psnr, psnr

from .prediction import OpenLoop, Truth, tokenizer_codes
from .tables import Row

HORIZONS = (1, 4, 8, 16, 32)
START = 4  # frame of each episode from which it is dreamt
MOVED_PX = 1.0  # an object that went further since the start has moved
VALID_PX = 20 / 512 * 64  # 20 of PushT's 512 units
WAYS = ("model", "copy_last", "round_trip")


class Rollouts:
    """Dreams from held-out episodes, long enough for every horizon that fits.

    Args:
        model: a `TokenWorldModel`.
        truth: held-out episodes.
        horizons: steps k at which they are judged; those beyond the episodes are left out.

    Attributes:
        frames: way -> (W, T, H, W, 3) uint8, for each of `WAYS`; real the true ones; context (W, H, W, 3) the last real ones.
        shuffled: (W, T, H, W, 3), dreamt with other windows' actions.
        actions: (W, T, A).
    """

    def __init__(self, model, truth: Truth, horizons: tuple[int, ...] = HORIZONS) -> None:
        self.horizons = tuple(k for k in horizons if START + k < truth.length)
        steps = max(self.horizons)
        loop = OpenLoop(model, truth, starts=(START,), steps=steps)
        self.truth, self.loop, self.steps, self.real = truth, loop, steps, loop.real
        self.context, self.actions = truth.pixels[:, START], truth.actions[:, START : START + steps]
        self.shuffled = OpenLoop(model, truth, starts=(START,), steps=min(4, steps), shuffle=True).frames
        trip = model.decode(tokenizer_codes(model.tokenizer, loop.real))
        self.frames = {
            "model": loop.frames,
            "copy_last": np.repeat(self.context[:, None], steps, 1),
            "round_trip": trip,
        }

    def row(self, metric: str, k: int, values: Mapping[str, np.ndarray], statistic: Callable = np.mean) -> Row:
        """A row from one value a window for each way (NaN where there is nothing to measure)."""
        known = {way: found[np.isfinite(found)] for way, found in values.items()}
        figures = {way: float(statistic(found)) if len(found) else None for way, found in known.items()}
        own = known["model"]
        interval = bootstrap_interval(own, statistic) if len(own) else None
        return Row(metric, k, len(own), *(figures.get(way) for way in WAYS), interval=interval)

    def distance_row(self, metric: str, k: int, features: Callable[[np.ndarray], np.ndarray]) -> Row:
        """A row of the Frechet distances of features (W, D) of dreams (W, T, H, W, 3) to those of what really came."""
        wanted = features(self.real)
        apart = {way: frechet_distance(features(frames), wanted) for way, frames in self.frames.items()}
        return Row(metric, k, len(wanted), apart["model"], apart["copy_last"], apart["round_trip"])


def rollout_table(
    model,
    truth: Truth,
    probes=None,
    horizons: tuple[int, ...] = HORIZONS,
    lpips: bool = False,
    video_distance: Callable[[Rollouts], Row] | None = None,
) -> list[Row]:
    """All metrics of a model's dreams of held-out episodes.

    Args:
        model: a `TokenWorldModel`.
        truth: held-out episodes.
        probes: `baselines.probes.Probes` of this world, for action agreement and Frechet distances; None leaves them out.
        horizons: steps at which to judge.
        lpips: also LPIPS, whose network's weights must be there, or can be fetched.
        video_distance: a further row of whole dreams, such as `evaluation.fvd`'s.

    Raises:
        ConfigError: LPIPS's weights are missing.
    """
    if lpips:
        check_lpips()
    rollouts = Rollouts(model, truth, horizons)
    video = [video_distance(rollouts)] if video_distance else []
    rows = [row for k in rollouts.horizons for row in frame_rows(rollouts, k)]
    rows += [lpips_row(rollouts, k) for k in rollouts.horizons if lpips] + video + action_rows(rollouts)
    if model.objects:
        rows += [state_row(rollouts, k) for k in rollouts.horizons] + [
            missing_row(rollouts, k) for k in rollouts.horizons
        ]
        rows.append(valid_horizon(rollouts))
    if probes is not None:
        rows += agreement_rows(rollouts, probes)
        rows += [feature_row(rollouts, probes, k) for k in rollouts.horizons if probes.state]
    return rows + token_rows(model, truth)


def frame_rows(rollouts: Rollouts, k: int) -> list[Row]:
    """PSNR, SSIM, and PSNR of what moves, in dB and -, at step k."""
    real = rollouts.real[:, k - 1]
    at = {way: frames[:, k - 1] for way, frames in rollouts.frames.items()}
    return [
        rollouts.row("PSNR, dB", k, {way: psnr(frames, real) for way, frames in at.items()}),
        rollouts.row("SSIM", k, {way: _ssim(frames, real) for way, frames in at.items()}),
        rollouts.row(
            "PSNR of what moves, dB",
            k,
            {way: moving_psnr(frames, real, rollouts.context) for way, frames in at.items()},
        ),
    ]


def lpips_row(rollouts: Rollouts, k: int) -> Row:
    """LPIPS (arXiv 1801.03924; AlexNet) at step k; 0 is the same picture."""
    real = rollouts.real[:, k - 1]
    return rollouts.row("LPIPS", k, {way: _lpips(frames[:, k - 1], real) for way, frames in rollouts.frames.items()})


def check_lpips() -> None:
    """Sees to it that LPIPS's network is there.

    Raises:
        ConfigError: it is not, and cannot be fetched.
    """
    black = np.zeros((1, 64, 64, 3), np.uint8)
    try:
        _lpips(black, black)
    except (OSError, RuntimeError, ImportError) as error:  # no network, a damaged file, no torchvision
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        remedy = f"put torchvision's AlexNet (alexnet-owt-7be5be79.pth) into {folder}, or leave LPIPS out ({error})"
        raise ConfigError("lpips", True, remedy) from None


def action_rows(rollouts: Rollouts) -> list[Row]:
    """dPSNR: what true actions are worth, against another window's, at the fourth step."""
    k = min(4, rollouts.steps)
    real = rollouts.real[:, k - 1]
    gain = psnr(rollouts.frames["model"][:, k - 1], real) - psnr(rollouts.shuffled[:, k - 1], real)
    return [rollouts.row("dPSNR, dB", k, {"model": gain})]


def state_row(rollouts: Rollouts, k: int) -> Row:
    """Median px, by the object detector, of objects that moved; an object that is lost counts a whole frame."""
    loop, truth = rollouts.loop, rollouts.truth
    moved = loop.present & truth.bodies & (loop.moved[:, k - 1] >= MOVED_PX)
    seen, found = truth.see(rollouts.frames["round_trip"][:, k - 1])
    trip = np.where(found, np.linalg.norm(seen - loop.true[:, k - 1], axis=-1), 64.0)
    errors = {"model": loop.errors[:, k - 1], "copy_last": loop.copy_errors[:, k - 1], "round_trip": trip}
    return rollouts.row("moved objects, median px", k, {way: error[moved] for way, error in errors.items()}, np.median)


def missing_row(rollouts: Rollouts, k: int) -> Row:
    """Share of windows in which an object is missing or invented, in %."""
    loop = rollouts.loop
    wrong = 100.0 * (loop.found[:, k - 1] != loop.present)[:, rollouts.truth.bodies].any(-1)
    return rollouts.row("windows with an object missing or invented, %", k, {"model": wrong})


def valid_horizon(rollouts: Rollouts) -> Row:
    """The largest k at which the median error is under 20/512 of the frame and under copy-last's."""
    loop, k = rollouts.loop, 0
    for t in range(rollouts.steps):
        moved = loop.present & rollouts.truth.bodies & (loop.moved[:, t] >= MOVED_PX)
        if not moved.any():
            continue
        error, copied = np.median(loop.errors[:, t][moved]), np.median(loop.copy_errors[:, t][moved])
        if error < min(VALID_PX, copied):
            k = t + 1
    return Row(f"valid horizon, steps of {rollouts.steps}", 0, len(loop.errors), float(k))


def agreement_rows(rollouts: Rollouts, probes) -> list[Row]:
    """Action agreement, 1 being as good as real frames: at each horizon, and (step 0) over all steps of the dreams."""
    off = {}
    for way, frames in {"real": rollouts.real, **rollouts.frames}.items():
        if way != "copy_last":
            earlier = np.concatenate([rollouts.context[:, None], frames[:, :-1]], 1)
            off[way] = np.abs(probes.actions(earlier, frames) - rollouts.actions).mean(-1)  # (W, T)
    real, rows = off.pop("real"), []
    for k in (*rollouts.horizons, 0):
        some = slice(k - 1, k) if k else slice(None)
        ratios = {way: errors[:, some].mean(-1) / real[:, some].mean() for way, errors in off.items()}
        rows.append(rollouts.row("action error over that on real frames", k, ratios))
    return rows


def feature_row(rollouts: Rollouts, probes, k: int) -> Row:
    """The Frechet distance of the state probe's features at step k."""
    return rollouts.distance_row("probe-FD", k, lambda frames: probes.features(frames[:, k - 1]))


@torch.inference_mode()
def token_rows(model, truth: Truth, steps: int = 8) -> list[Row]:
    """Cross-entropy in nats a token of true next frames after true ones, of all tokens and of those that change."""
    steps = min(steps, truth.length - START - 1)
    engine, codes = model.engine, tokenizer_codes(model.tokenizer, truth.pixels[:, : START + steps + 1])
    text = model.text.batch(truth.instructions, model.model.config.text_length, model.model.config.vocabulary.pad)
    actions, context = torch.from_numpy(truth.actions).to(codes.device), model.context_frames
    causal, parallel, changed = [], [], []
    for t in range(START, START + steps):
        first = max(0, t + 1 - context)
        cache = engine.prefill(text.to(codes.device), codes[:, first : t + 1], actions[:, first:t], ahead=1)
        now, wanted = actions[:, t], codes[:, t + 1]
        open_BN = torch.ones_like(wanted, dtype=torch.bool)
        guessed = engine.denoise(cache, now, torch.zeros_like(wanted), open_BN).logits
        logits, _ = engine.verify(cache, now, wanted)
        for kept, found in ((causal, logits), (parallel, guessed)):
            kept.append(-found.float().log_softmax(-1).gather(-1, wanted[..., None])[..., 0].cpu().numpy())
        changed.append((wanted != codes[:, t]).cpu().numpy())
    rows, moved = [], np.concatenate(changed)
    for name, losses in (("token by token", causal), ("one pass", parallel)):
        nats = np.concatenate(losses)
        some = nats[moved]
        rows.append(Row(f"cross-entropy, {name}, nats", 1, nats.size, float(nats.mean())))
        rows.append(Row(f"cross-entropy of changed tokens, {name}, nats", 1, some.size, float(some.mean())))
    return rows


def _lpips(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """LPIPS of each pair of frames (W, H, W, 3) uint8."""
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

    pair = (torch.from_numpy(frames).movedim(-1, 1).float() / 255 for frames in (one, other))
    with torch.inference_mode():
        distance = learned_perceptual_image_patch_similarity(*pair, net_type="alex", reduction="none", normalize=True)
    return distance.reshape(-1).numpy()


def _ssim(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Structural similarity of each pair of frames (W, H, W, 3) uint8."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    mine, theirs = (torch.from_numpy(frames).movedim(-1, 1).float() for frames in (one, other))
    found = structural_similarity_index_measure(mine, theirs, data_range=255.0, reduction="none")
    assert isinstance(found, torch.Tensor)
    return found.numpy()
