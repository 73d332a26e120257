"""Frame tokenizers of the table-top at equal training time: what more codes, places and a wider decoder are worth.

    python -m benchmarks.frame_tokenizers --data DATASET --folder FOLDER [--seconds 600] [--variants nano ...] [--out FILE]

Each variant changes the preset `nano`'s tokenizer as `VARIANTS` says, and gets as many steps as fit into the same CPU seconds,
measured on its first steps. The schedule is the preset's, with that many steps. Figures are of held-out episodes;
"object_psnr_db" is of the pixels in which an object stands, where corners are. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from emu_embodied.checkpoint import load_checkpoint
from emu_embodied.commands._config import compose_config
from emu_embodied.commands.train import make_recipe
from emu_embodied.data.frame_cache import frames_for
from emu_embodied.loading import checkpoint_path
from emu_embodied.rollouts.evaluation.frame_metrics import psnr
from emu_embodied.rollouts.evaluation.prediction import Truth, tokenizer_quality
from emu_embodied.storage.atomic import write_json
from emu_embodied.storage.regular import read_json
from emu_embodied.tokenizers.frames import FrameTokenizer
from emu_embodied.training.loop import train_stage
from emu_embodied.training.objectives import TokenizerObjective

VARIANTS = {
    "nano": {},
    "placed": {"placed": True},
    "codes": {"placed": True, "levels": (8, 8, 8, 4)},
    "codes, 3 blocks": {"placed": True, "levels": (8, 8, 8, 4), "blocks": 3},
    "codes, 192 wide": {"placed": True, "levels": (8, 8, 8, 4), "width": 192},
    "512 codes, 3 blocks": {"placed": True, "blocks": 3},
    "4096 codes": {"placed": True, "levels": (8, 8, 8, 8)},
}
TIMED = 20  # steps that tell how long one takes
EPISODES = 40  # held-out ones that are judged


def seconds_a_step(tokenizer: FrameTokenizer, objective: TokenizerObjective) -> float:
    """CPU seconds of a training step of this variant, without the optimiser's."""
    times = []
    for step in range(TIMED):
        began = time.process_time()
        objective(tokenizer, step)[0].backward()
        times.append(time.process_time() - began)
    return float(np.median(times))


def trained(name: str, recipe, cache, folder: Path, seconds: float) -> tuple[FrameTokenizer, int]:
    """The averaged tokenizer of a variant after so many CPU seconds, and its number of steps, which its folder keeps."""
    config = replace(recipe.tokenizer, **VARIANTS[name])
    objective = TokenizerObjective(cache, recipe.tokenizer_batch, recipe.seed)
    known = folder / "steps.json"
    if not known.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(known, {"steps": round(seconds / seconds_a_step(FrameTokenizer(config), objective))})
    steps = read_json(known)["steps"]
    torch.manual_seed(recipe.seed)
    loop = replace(recipe.tokenizer_loop, steps=steps, evaluate_every=10**9, save_every=200)
    return train_stage("tokenizer", FrameTokenizer(config), objective, loop, folder), steps


def object_psnr(tokenizer: FrameTokenizer, truth: Truth) -> float:
    """PSNR of the pixels that differ from the empty table (the median frame) by more than 16 of 255."""
    pixels = truth.pixels[:EPISODES].reshape(-1, *truth.pixels.shape[2:])
    empty = np.median(pixels[:: len(pixels) // 200], 0)
    codes = tokenizer.encode(torch.from_numpy(pixels))
    decoded = torch.cat([tokenizer.decode(part) for part in codes.split(256)]).numpy()
    shown = np.abs(pixels - empty).max(-1) > 16
    return psnr(decoded[shown], pixels[shown])


def main() -> None:
    """Trains, measures, prints JSON, and writes it where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frame_tokenizers", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--data", required=True, help="a dataset that `collect env=tabletop` made")
    parser.add_argument("--folder", type=Path, required=True, help="where states are kept")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = load_checkpoint(checkpoint_path("nano-tabletop"))[3]
    recipe = make_recipe(compose_config("train", ["preset=nano"]))
    cache = frames_for(arguments.data)
    train_cache, held_out = cache.split(recipe.held_out)
    truth = Truth(held_out, world)
    result = {
        "variants": {},
        "seconds": arguments.seconds,
        "seed": recipe.seed,
        "trained_episodes": train_cache.episodes,
    }
    for name in arguments.variants:
        folder = arguments.folder / name.replace(",", "").replace(" ", "-")
        tokenizer, steps = trained(name, recipe, train_cache, folder, arguments.seconds)
        figures = {
            "steps": steps,
            **tokenizer_quality(tokenizer, truth, EPISODES),
            "object_psnr_db": object_psnr(tokenizer, truth),
        }
        result["variants"][name] = {**VARIANTS[name], **figures}
        print(f"{name}: {json.dumps(figures)}", flush=True)
    result["versions"] = {name: metadata.version(name) for name in ("emu-embodied", "torch", "numpy")}
    if arguments.out:
        write_json(arguments.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
