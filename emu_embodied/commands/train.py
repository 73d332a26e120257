"""Trains a world model: collects data where there are none, then tokenizer, autoregressive, joint and rollout phases.

Interrupted or killed, the same command continues. The checkpoint is written to OUT/checkpoint.
"""

from __future__ import annotations

import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from emu_embodied.errors import ConfigError


def run(config: DictConfig) -> None:
    """Trains, and prints where the checkpoint is.

    Raises:
        ConfigError: a device or stage that is not there, or sizes that do not fit together.
        DatasetError: data that are missing, damaged, too few or of another frame size.
        CheckpointError: the run folder holds a damaged state, or one of other settings.
    """
    import torch

    began = time.monotonic()
    from emu_embodied.checkpoint import load_checkpoint
    from emu_embodied.loading import checkpoint_path
    from emu_embodied.rollouts.quality import Truth, quick_quality, tokenizer_quality
    from emu_embodied.training.recipe import adapt_checkpoint, train_checkpoint
    from emu_embodied.world_model import TokenWorldModel

    if config.stage not in ("all", "dida"):
        raise ConfigError("stage", config.stage, "choose all, or dida to adapt a checkpoint")
    if (config.stage == "dida") != (config["from"] is not None):
        raise ConfigError("from", config["from"], "name the checkpoint to adapt with stage=dida, and only then")
    if config.shift is not None and not isinstance(config.shift, bool):
        raise ConfigError("shift", config.shift, "choose true, false or null")
    source = checkpoint_path(config["from"]) if config.stage == "dida" else None
    device = _device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    recipe = make_recipe(config)
    world = _world(config) if source is None else load_checkpoint(source)[3]
    cache = _frames(config)
    print(f"train: {cache.episodes} episodes of frames are there after {(time.monotonic() - began) / 60:.1f} min", flush=True)
    truth = Truth(cache.select(range(cache.episodes - recipe.held_out, cache.episodes)), world)
    job = {
        "evaluate_model": lambda tokenizer, text, model: quick_quality(
            TokenWorldModel(tokenizer, text, model, world), truth, config.env.quality.horizon
        ),
        "report": lambda line: print(line, flush=True),
    }
    folder = Path(config.out)
    if source is not None:
        temperature = config.distil_temperature if config.distil else None
        job |= {"temperature": temperature, "shift": config.shift}
        path = adapt_checkpoint(cache, recipe, source, folder, device, **job)
    else:
        job["evaluate_tokenizer"] = lambda tokenizer: tokenizer_quality(tokenizer, truth, episodes=20)
        path = train_checkpoint(cache, recipe, world, folder, device, **job)
    minutes = (time.monotonic() - began) / 60
    print(f"train: finished after {minutes:.1f} min; try it with  emu-embodied evaluate checkpoint={path}")


def _world(config: DictConfig):
    """What a new model is told about the frames: the environment's description."""
    from emu_embodied.checkpoint import World

    described = OmegaConf.to_container(config.env.world)
    objects = {name: tuple(rgb) for name, rgb in described["objects"].items()}
    scale, actions = tuple(described["position_scale"]), tuple(described["action_names"])
    return World(objects, scale, config.env.id, actions, described["eye"], described["landmarks"])


def make_recipe(config: DictConfig):
    """The preset as a `training.recipe.Recipe`.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    from emu_embodied.noise import NOISES
    from emu_embodied.tokenizers.frames import FrameTokenizerConfig
    from emu_embodied.training.loop import OPTIMISERS, LoopConfig
    from emu_embodied.training.objectives import TrajectoryConfig
    from emu_embodied.training.recipe import Recipe

    values = OmegaConf.to_container(config.recipe)
    values.pop("collect")
    values["tokenizer"]["levels"] = tuple(values["tokenizer"]["levels"])
    values["tokenizer"] = FrameTokenizerConfig(**values["tokenizer"])
    values["tokenizer_loop"] = LoopConfig(**values["tokenizer_loop"])
    values["trajectory"] = TrajectoryConfig(**values["trajectory"])
    values["trajectory_loop"] = LoopConfig(**values["trajectory_loop"])
    recipe = Recipe(**values)
    for name in ("tokenizer_loop", "trajectory_loop"):
        optimiser = getattr(recipe, name).optimiser
        if optimiser not in OPTIMISERS:
            raise ConfigError(f"recipe.{name}.optimiser", optimiser, f"choose one of {OPTIMISERS}")
    if recipe.noise not in NOISES:
        raise ConfigError("recipe.noise", recipe.noise, f"choose one of {NOISES}")
    if recipe.tokenizer.image_size % recipe.tokenizer.patch:
        raise ConfigError("recipe.tokenizer.image_size", recipe.tokenizer.image_size, "choose a multiple of patch")
    if recipe.transformer["num_attention_heads"] % recipe.transformer["num_key_value_heads"]:
        raise ConfigError(
            "recipe.transformer.num_key_value_heads",
            recipe.transformer["num_key_value_heads"],
            "choose a divisor of num_attention_heads",
        )
    return recipe


def _device(name: str):
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError("device", name, "choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", name, "PyTorch sees no CUDA device here: choose cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _frames(config: DictConfig):
    """The frame cache: given, built from a dataset, or collected first."""
    from emu_embodied.data.frame_cache import frames_for, load_frame_cache

    if config.frames is not None:
        return load_frame_cache(config.frames)
    if config.data is not None:
        return frames_for(config.data)
    from emu_embodied.rollouts.collect import collect

    wanted, root = config.recipe.collect, Path(config.out) / "dataset"
    options = OmegaConf.to_container(config.env.options)
    collect(config.env.id, options, wanted.episodes, wanted.steps, root, seed=wanted.seed, workers=config.workers)
    return frames_for(root)
