"""What the causal loss of a model's own rollouts should count, measured: the rollout phase with two weightings, all else equal.

    python -m benchmarks.rollout_loss --data DATASET --folder FOLDER [--steps 1500] [--seeds 0 1 2] [--out FILE]

"mended" counts the frames that are the data's (`objectives.real_frames`); "before" counts the second and the last frame of a
window, as the first version did: with less than two frames of context the second is the model's own, and was taught to be
followed by the true next tokens. For each seed one model is trained until its rollout phase begins, and from there twice. The
frame and text tokenizers are `nano-tabletop`'s, the sizes and weights the preset `nano`'s. Interrupted, the same command
goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from emu_embodied.checkpoint import fingerprint, load_checkpoint
from emu_embodied.commands._config import compose_config
from emu_embodied.commands.train import make_recipe
from emu_embodied.data.frame_cache import frames_for
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.loading import checkpoint_path
from emu_embodied.model.token_model import TokenModel
from emu_embodied.rollouts.evaluation.prediction import OpenLoop, Truth
from emu_embodied.storage.atomic import write_json
from emu_embodied.storage.regular import read_json
from emu_embodied.training.loop import train_stage
from emu_embodied.training.objectives import TrajectoryObjective
from emu_embodied.training.pipeline import model_config
from emu_embodied.training.stages.trajectory import encode_frames, trajectory_objective
from emu_embodied.world_model import TokenWorldModel

TOKENIZERS = "nano-tabletop"
ROLLOUTS_FROM = 0.6  # share of the steps after which the model trains on its own rollouts
STEPS_DREAMT, STARTS = 8, (4, 16, 28)
VARIANTS = ("before", "mended")


class Before(TrajectoryObjective):
    """The first version's weights: the second and the last frame of a rollout window, whoever drew them."""

    def _loss(self, module, batch, text_BL, states, hidden, real):
        if not all(real):
            real = [True, True, *[False] * (len(real) - 3), True]
        return super()._loss(module, batch, text_BL, states, hidden, real)


def train_variants(parts: tuple, recipe, folder: Path, seed: int) -> dict[str, TokenModel]:
    """The averaged models of both variants; what they have in common is trained once.

    Args:
        parts: tokenizer, text, world, the training cache and its codes.
        recipe: sizes and schedule.
        folder: of this seed; states are kept in it.
        seed: of initialisation and batches.
    """
    tokenizer, text, world, cache, codes = parts
    steps, loop = recipe.trajectory_loop.steps, recipe.trajectory_loop

    def objective_of(kind):
        torch.manual_seed(seed)
        model = TokenModel(model_config(recipe, world, text, cache))
        model.place_codes(tokenizer.places())
        made = trajectory_objective(model, *parts, recipe.trajectory, steps, seed)
        made.__class__ = kind
        return model, made

    branch = int(ROLLOUTS_FROM * steps) // loop.save_every * loop.save_every  # its state is saved then
    common = folder / "common"
    if not (common / "done").is_file():
        model, objective = objective_of(TrajectoryObjective)

        def until(module, step):
            if step >= branch:
                raise KeyboardInterrupt
            return objective(module, step)

        try:
            train_stage("trajectory", model, until, loop, common)
        except KeyboardInterrupt:
            if read_json(common / "trajectory" / "progress.json")["step"] != branch:
                raise  # it is the user's
        (common / "done").touch()
    trained = {}
    for name, kind in zip(VARIANTS, (Before, TrajectoryObjective), strict=True):
        if not (folder / name).is_dir():
            shutil.copytree(common / "trajectory", folder / f".{name}" / "trajectory", dirs_exist_ok=True)
            (folder / f".{name}").rename(folder / name)
        model, objective = objective_of(kind)
        trained[name] = train_stage("trajectory", model, objective, loop, folder / name)
    return trained


def measure(model: TokenModel, tokenizer, text, world, truth: Truth, decoding: str) -> dict[str, float]:
    """Errors of open-loop dreams: of moved cubes at the first and the last step, of the robot, and cubes lost or invented."""
    dreamer = TokenWorldModel(tokenizer, text, model, world, decoding=DecodingConfig(decoding))
    loop, bodies = OpenLoop(dreamer, truth, STARTS, STEPS_DREAMT), truth.bodies
    one = loop.present & bodies & (loop.moved[:, 0] >= 1)
    far = loop.present & bodies & (loop.moved[:, -1] >= 4)
    wrong = (loop.found[:, -1] != loop.present)[:, bodies]
    return {
        "moved_ratio_1": float(loop.errors[:, 0][one].mean() / loop.copy_errors[:, 0][one].mean()),
        "moved_median_px_8": float(np.median(loop.errors[:, -1][far])),
        "head_median_px_8": float(np.median(loop.head_errors[:, -1][far])),
        "missing_or_invented_8": float(wrong.sum() / max(1, loop.present[:, bodies].sum())),
        "robot_px_8": float(loop.errors[:, -1, 0].mean()),
        "n_moved_1": int(one.sum()),
        "n_moved_8": int(far.sum()),
        "windows": len(loop.errors),
    }


def compare(figures: list[dict]) -> dict:
    """Mean over the seeds of each figure, and of mended minus before with the smallest and the largest seed's."""
    result = {}
    for decoding in ("dida", "autoregressive"):
        for name in ("moved_ratio_1", "moved_median_px_8", "head_median_px_8", "missing_or_invented_8", "robot_px_8"):
            before, mended = ([row[v][decoding][name] for row in figures] for v in VARIANTS)
            apart = np.subtract(mended, before)
            result[f"{decoding}: {name}"] = {
                "before": float(np.mean(before)),
                "mended": float(np.mean(mended)),
                "difference": float(apart.mean()),
                "of_seeds": [float(x) for x in apart],
            }
    return result


def main() -> None:
    """Trains, measures, prints JSON, and writes it where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollout_loss", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="a dataset that `collect env=tabletop` made")
    parser.add_argument("--folder", type=Path, required=True, help="where states are kept")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, text, _, world, _ = load_checkpoint(checkpoint_path(TOKENIZERS))
    recipe = make_recipe(compose_config("train", ["preset=nano"]))
    loop = replace(recipe.trajectory_loop, steps=arguments.steps, evaluate_every=10**9, save_every=100)
    recipe = replace(
        recipe,
        tokenizer=tokenizer.config,
        trajectory_loop=loop,
        trajectory=replace(recipe.trajectory, joint_until=ROLLOUTS_FROM),
    )
    cache = frames_for(arguments.data)
    kept = cache.episodes - recipe.held_out
    train_cache, truth = cache.select(range(kept)), Truth(cache.select(range(kept, cache.episodes)), world)
    codes = encode_frames(tokenizer, train_cache, print)
    parts = (tokenizer, text, world, train_cache, codes)
    figures = []
    for seed in arguments.seeds:
        models = train_variants(parts, recipe, arguments.folder / str(seed), seed)
        how = ("dida", "autoregressive")
        figures.append(
            {v: {d: measure(models[v], tokenizer, text, world, truth, d) for d in how} for v in VARIANTS}
        )
        print(f"seed {seed}: {json.dumps(figures[-1])}", flush=True)
    result = {
        "comparison": compare(figures),
        "figures": figures,
        "seeds": arguments.seeds,
        "steps": arguments.steps,
        "rollouts_from": ROLLOUTS_FROM,
        "episodes": {"trained": kept, "held_out": cache.episodes - kept},
        "tokenizers": fingerprint(checkpoint_path(TOKENIZERS)),
        "versions": {name: metadata.version(name) for name in ("emu-embodied", "torch", "numpy")},
    }
    if arguments.out:
        write_json(arguments.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
