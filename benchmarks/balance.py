"""What each way of balancing text, images and actions is worth: short trainings of the language stage, one thing changed.

    python -m benchmarks.balance --frames FOLDER [--episodes 1000] [--steps 300] [--out FILE] [--only NAME ...]

All start from nano-tabletop and see the same number of batches, in the same order where what they hold is the same. Judged on
episodes that none saw: nats a token of captions, nats a token and errors in px of key frames drawn in one pass, and what
became of the dynamics (errors of cubes that move, after one and eight steps, as in `evaluate`).
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.timing import machine, versions
from emu_embodied.checkpoint import fingerprint, load_checkpoint
from emu_embodied.data.frame_cache import load_frame_cache
from emu_embodied.loading import checkpoint_path
from emu_embodied.model.noise import make_noise
from emu_embodied.rollouts.evaluation.prediction import Truth, quick_quality
from emu_embodied.rollouts.goals.hindsight_tabletop import relabel
from emu_embodied.storage.atomic import write_json
from emu_embodied.tokenizers.text import TextTokenizer
from emu_embodied.training.datasets import WindowSampler
from emu_embodied.training.key_frame_batches import LanguageConfig, SubgoalSampler
from emu_embodied.training.loop import LoopConfig, train_stage
from emu_embodied.training.objectives import TrajectoryConfig, TrajectoryObjective
from emu_embodied.training.stages.language import SubgoalObjective, with_prompts
from emu_embodied.training.stages.trajectory import encode_frames
from emu_embodied.world_model import TokenWorldModel

GROUPS = {"behind": 1.0, "push": 0.4, "goal": 1.5, "done": 0.4, "edit": 0.6, "next": 0.3}  # as in configs/train.yaml
BASE = LanguageConfig(groups=GROUPS)
VARIANTS = {
    "as shipped": {},
    "text weight 0.3": {"text": 0.3},
    "text weight 3": {"text": 3.0},
    "no causal loss": {"causal_share": 0.0},
    "changed tokens as others": {"changed": 1.0},
    "no balance of rows": {"groups": "rows"},
    "curriculum": {"curriculum": 0.6},
    "language in 30% of batches": {"share": 0.3},
    "language alone": {"share": 1.0},
}
DYNAMICS = TrajectoryConfig(batch=16, frames=3, autoregressive_until=0.0, joint_until=1.0, causal_share=0.2, fully_hidden=0.7,
    corruption=0.0, soften=0.5)  # fmt: skip
SEED, BATCHES = 0, 12  # held-out batches


class Bench:
    """What all variants share: data, codes, words."""

    def __init__(self, frames: Path, episodes: int, held_out: int = 40) -> None:
        cache = load_frame_cache(frames)
        self.seen, self.unseen = cache.select(range(episodes)), cache.select(range(episodes, episodes + held_out))
        self.tokenizer, _, self.known, self.world, _ = load_checkpoint(checkpoint_path("nano-tabletop"))
        self.rows, self.other_rows = relabel(self.seen), relabel(self.unseen)
        self.text = TextTokenizer.train([*self.rows.texts(), *self.other_rows.texts()], BASE.text_size)
        self.codes, self.other_codes = (encode_frames(self.tokenizer, c, _quiet) for c in (self.seen, self.unseen))
        self.truth = Truth(self.unseen, self.world)

    def train(self, config: LanguageConfig, steps: int):
        """A variant's averaged model."""
        torch.manual_seed(SEED)
        model = with_prompts(self.known, self.text, config)
        c = model.config
        told = self.text.batch(self.seen.instructions, config.instruction_length, c.vocabulary.pad)
        told = F.pad(told, (0, c.text_length - told.shape[1]), value=c.vocabulary.pad)
        windows = WindowSampler(self.seen, self.codes, told, tuple(self.world.objects), SEED)
        places = self.tokenizer.places()
        dynamics = TrajectoryObjective(windows, DYNAMICS, steps, places, make_noise(c.noise, places))
        sampler = SubgoalSampler(self.rows, self.seen, self.codes, self.text, model, config, SEED)
        loop = LoopConfig(steps, 3e-3, warmup=min(100, steps // 3), optimiser="muon", average=0.98, save_every=10**9)
        with tempfile.TemporaryDirectory() as folder:
            objective = SubgoalObjective(sampler, dynamics, config, steps)
            return train_stage("language", model, objective, loop, Path(folder), report=_quiet)

    @torch.no_grad()
    def judge(self, model) -> dict[str, float]:
        """A model's figures on the unseen episodes, every group of rows as often as every other."""
        config = replace(BASE, groups=None)
        sampler = SubgoalSampler(self.other_rows, self.unseen, self.other_codes, self.text, model, config, SEED + 1)
        v, sums = model.config.vocabulary, []
        per_px = 32 / model.heads.scale.abs()
        for step in range(BATCHES):
            batch = sampler.batch(step, 1.0)
            text_BL = model.prompt(batch.instruction_BI, batch.codes_BN, batch.caption_BS)
            hidden = torch.ones_like(batch.target_BN, dtype=torch.bool)[:, None]
            still = torch.zeros(len(text_BL), 1, model.config.action_dim)
            frames = torch.stack([batch.codes_BN, batch.target_BN], 1)
            states = model(text_BL, frames, still, torch.zeros_like(frames[:, 1:]), hidden, None, False)
            length = model.config.caption_length
            logits = model.transformer.lm_head(states.text_BLD[:, -length - 1 : -1]).transpose(1, 2)
            caption = F.cross_entropy(logits, batch.caption_BS, ignore_index=v.pad)
            visual = model.visual_logits(states.noisy_BFND[:, 0]).transpose(1, 2)
            nats_BN = F.cross_entropy(visual, batch.target_BN, reduction="none")
            changed = batch.target_BN != batch.codes_BN
            read = model.estimate(states.noisy_BFND[:, 0], text_BL)
            off = ((read.positions - batch.positions_BO2) * per_px).norm(dim=-1)[batch.present_BO > 0]
            sums.append([caption, nats_BN.mean(), nats_BN[changed].mean(), off.median()])
        names = ("caption_nats", "frame_nats", "changed_nats", "place_median_px")
        found = dict(zip(names, np.mean(torch.tensor(sums).numpy(), 0).tolist(), strict=True))
        parts = TokenWorldModel(self.tokenizer, self.text, model, self.world)
        return found | quick_quality(parts, self.truth)


def _quiet(line: str) -> None:
    """Nothing."""


def _config(change: dict[str, Any], rows) -> LanguageConfig:
    if change.get("groups") == "rows":  # each row as often as every other
        counts = np.bincount(rows.group, minlength=len(rows.groups))
        change = {"groups": dict(zip(rows.groups, (counts / counts.sum()).tolist(), strict=True))}
    return replace(BASE, **change)


def main() -> None:
    """Trains and judges the variants, one after the other; the file has those that are finished."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.balance", description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=Path, required=True, help="a frame cache of the table-top")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    bench = Bench(options.frames, options.episodes)
    result: dict[str, Any] = {
        "episodes": options.episodes, "steps": options.steps, "seed": SEED, "base": asdict(BASE),
        "judged_rows": BATCHES * BASE.batch, "from": fingerprint(checkpoint_path("nano-tabletop")),
        "variants": {}, "machine": machine(torch.device("cpu")), "versions": versions(),
    }  # fmt: skip
    for name in options.only:
        figures = bench.judge(bench.train(_config(VARIANTS[name], bench.rows), options.steps))
        result["variants"][name] = {"change": VARIANTS[name], **figures}
        print(name, {key: round(value, 3) for key, value in figures.items()}, flush=True)
        if options.out:
            write_json(options.out, result)


if __name__ == "__main__":
    main()
