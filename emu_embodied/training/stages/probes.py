"""Trains the probes that judge dreams, on real frames alone. Knows no simulator and no world model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from emu_embodied.baselines.probes import GRID_PX, InverseDynamics, ProbeConfig, Probes, StateProbe, save_probes
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.errors import DatasetError
from emu_embodied.training.checks import check_cache
from emu_embodied.training.datasets import label_columns
from emu_embodied.training.folder import TrainingRun, facts_of, train_once
from emu_embodied.training.loop import LoopConfig, train_stage
from emu_embodied.validation import whole_number

JUDGED = 2000  # held-out frames that the floors rest on


class Labels:
    """A cache's frames with where objects are, in px of a 64 px frame, and the actions between them.

    Args:
        cache: the dataset.
        objects: names whose `NAME.x`, `NAME.y` and `NAME.present` are in the states; may be empty.
        position_scale: world units at the frame's right and lower edge.

    Attributes:
        pixels: (F, H, W, 3) uint8; places (F, O, 2) float32; present (F, O) float32; actions (F, A) float32.
        pairs: frames f with a frame f + 1 in the same episode.
    """

    def __init__(self, cache: FrameCache, objects: tuple[str, ...], position_scale: tuple[float, float]) -> None:
        self.pixels, self.actions = torch.from_numpy(cache.pixels), torch.from_numpy(cache.actions)
        last = np.zeros(len(cache), bool)
        last[cache.episode_starts[1:] - 1] = True
        self.pairs = np.flatnonzero(~last)
        if objects:
            labels = cache.states[:, label_columns(cache.names["state"], objects)].reshape(len(cache), len(objects), 3)
            places = GRID_PX / 2 * (1 + labels[..., :2] / np.asarray(position_scale))
            self.places = torch.from_numpy(places.astype(np.float32))
            self.present = torch.from_numpy((labels[..., 2] > 0).astype(np.float32))


def train_probes(
    cache: FrameCache,
    objects: tuple[str, ...],
    position_scale: tuple[float, float],
    loop: LoopConfig,
    run: TrainingRun,
    *,
    batch: int = 64,
    held_out: int = 100,
    seed: int = 0,
) -> Path:
    """Trains both probes, each from where it stopped, and writes `run.folder / probes`.

    Args:
        cache: the dataset; its last `held_out` episodes are kept for the probes' own floors.
        objects, position_scale: of the world; without objects there is no state probe.
        loop: optimisation of each.
        run: where; on the CPU.
        batch: frames, or pairs of them, a step.
        held_out, seed: as in `pipeline.train_checkpoint`.

    Raises:
        DatasetError: too few episodes, or labels that are not there.
        CheckpointError: the run folder holds a damaged state, or another run.
        ConfigError: nothing held out for the floors, or another training is at work in the folder.
    """
    whole_number("probes.held_out", held_out, 1)
    check_cache(cache, held_out, cache.pixels.shape[1], "probes.held_out")
    trained, rest = cache.split(held_out)
    assert rest is not None  # at least one is held out
    known, judged = (Labels(part, objects, position_scale) for part in (trained, rest))
    if not len(known.pairs) or not len(judged.pairs):
        raise DatasetError("episodes", cache.episodes, "they have one frame each: record longer ones")
    config = ProbeConfig(cache.pixels.shape[1], objects, cache.actions.shape[1])

    settings = {"held_out": held_out, "batch": batch, "loop": asdict(loop), "seed": seed}

    def work() -> None:
        torch.manual_seed(seed)
        state = None
        if objects:
            losses = _state_loss(known, batch, seed)
            state = train_stage("state-probe", StateProbe(config), losses, loop, run.folder, report=run.report)
        losses = _action_loss(known, batch, seed)
        inverse = train_stage("inverse-dynamics", InverseDynamics(config), losses, loop, run.folder, report=run.report)
        probes = Probes(config, inverse, state, {})
        probes.floors = floors(probes, judged)
        save_probes(run.folder / "probes", probes, {"episodes": cache.episodes} | settings)
        run.report(f"probes: on held-out real frames {', '.join(f'{k} {v:.3g}' for k, v in probes.floors.items())}")

    facts = facts_of("probes", cache, settings | {"objects": objects, "position_scale": position_scale})
    return train_once(run, "probes", facts, work)


def floors(probes: Probes, labels: Labels) -> dict[str, float]:
    """The probes' own errors on real frames: what no dream can fall below."""
    some = labels.pairs[np.linspace(0, len(labels.pairs) - 1, min(JUDGED, len(labels.pairs))).astype(int)]
    frames, after = labels.pixels[some].numpy(), labels.pixels[some + 1].numpy()
    errors = np.abs(probes.actions(frames, after) - labels.actions[some].numpy())
    found = {"action": float(errors.mean())}
    if probes.state:
        places, seen = probes.objects(frames)
        there = labels.present[some].numpy() > 0
        off = np.linalg.norm(places - labels.places[some].numpy(), axis=-1)[there]
        found |= {"state_px": float(np.median(off)), "state_p95_px": float(np.percentile(off, 95))}
        found["presence_wrong"] = float((seen != there).mean())
    return found


def _state_loss(labels: Labels, batch: int, seed: int) -> Callable:
    def loss(module: StateProbe, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        some = np.random.default_rng([seed, step]).integers(0, len(labels.pixels), batch)
        places, presence = module(labels.pixels[some])
        there = labels.present[some]
        off = F.huber_loss(places, labels.places[some], reduction="none").sum(-1) * there
        position = off.sum() / there.sum().clamp(min=1)
        return position + F.binary_cross_entropy_with_logits(presence, there), {"position": position.item()}

    return loss


def _action_loss(labels: Labels, batch: int, seed: int) -> Callable:
    def loss(module: InverseDynamics, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        some = np.random.default_rng([seed, 1, step]).choice(labels.pairs, batch)
        off = F.l1_loss(module(labels.pixels[some], labels.pixels[some + 1]), labels.actions[some])
        return off, {}

    return loss
