"""Trains a world model: collects data where none are given, then tokenizer, autoregressive, joint and rollout phases.

`data=` takes LeRobotDatasets of any camera and action; what is left out of them is listed, with reasons. With `from=CHECKPOINT`
a checkpoint is trained on with them. Interrupted or killed, the same command continues. A folder belongs to one run, and any
other is refused there: the checkpoint is written to OUT/checkpoint, what it is of to OUT/run.json.
"""

from __future__ import annotations

import functools
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from emu_embodied.errors import ConfigError
from emu_embodied.validation import choice

from ._config import as_dict, typed
from ._runs import env_options, show_table

if TYPE_CHECKING:
    import torch

    from emu_embodied.training.folder import TrainingRun
    from emu_embodied.training.pipeline import Recipe
    from emu_embodied.training.stages.emu35 import FineTuning

STAGES = ("all", "trajectory", "dida", "language", "probes", "cloning")
SHOWN = 20  # episodes left out that are listed


def run(config: DictConfig) -> None:
    """Trains, and prints where the checkpoint is.

    Raises:
        ConfigError: a device or stage that is not there, sizes that do not fit together, or another training at work in OUT.
        DatasetError: data that are missing, damaged, too few or of another frame size.
        CheckpointError: the run folder holds a damaged state, or another run.
    """
    import torch

    from emu_embodied.storage.runs import locked

    _check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    stages = {"language": _teach_subgoals, "probes": _train_beside, "cloning": _train_beside}
    with locked(Path(config.out), "training"):
        stages.get(config.stage, _train_model)(config)


def _train_model(config: DictConfig) -> None:
    """Trains a world model: from nothing, from a checkpoint, or from a released model."""
    from emu_embodied.checkpoint import load_checkpoint
    from emu_embodied.device import find_device
    from emu_embodied.emu35.checkpoint import Base
    from emu_embodied.loading import checkpoint_path
    from emu_embodied.training.checks import check_cache
    from emu_embodied.training.pipeline import adapt_checkpoint, continue_checkpoint, train_checkpoint
    from emu_embodied.training.stages.emu35 import FineTuning, fine_tune

    began, released, device = time.monotonic(), "adoption" in config.recipe, find_device(config.device, ConfigError)
    source = None if released or config["from"] is None else checkpoint_path(config["from"])
    recipe = make_fine_tuning(config) if released else make_recipe(config)
    base = Base.of(config["from"], config.vision, config.text, config.quantisation) if released else None
    known = None if source is None else load_checkpoint(source)
    size = recipe.adoption.image_size if isinstance(recipe, FineTuning) else recipe.tokenizer.image_size
    size = size if known is None else known[0].config.image_size
    cache = _frames(config, size)
    world = known[3] if known and config.stage == "dida" else _world(config, cache, known and known[3])
    _show_dropped(cache)
    print(
        f"train: {cache.episodes} episodes of frames are there after {(time.monotonic() - began) / 60:.1f} min",
        flush=True,
    )
    check_cache(cache, recipe.held_out, size)
    evaluators = _evaluators(cache, recipe.held_out, world, config.env.quality.horizon)
    work = _run(config, device, *evaluators)
    if isinstance(recipe, FineTuning):
        assert base is not None
        path = fine_tune(cache, recipe, base, world, work)
    elif source is None:
        path = train_checkpoint(cache, recipe, world, work)
    elif config.stage == "dida":
        temperature = config.distil_temperature if config.distil else None
        path = adapt_checkpoint(cache, recipe, source, work, temperature=temperature, shift=config.shift)
    else:
        path = continue_checkpoint(cache, recipe, source, world, work)
    minutes = (time.monotonic() - began) / 60
    recorded = config.data is not None or config.frames is not None
    data = shlex.quote(f"data={config.data}") if isinstance(config.data, str) else "data=DATASET"
    judged = "" if world.objects else f" {data}" if recorded else f" env={config.env.name}"
    trial = f"evaluate checkpoint={path}{judged}"
    print(f"train: finished after {minutes:.1f} min; try it with  emu-embodied {trial}")


def _run(config: DictConfig, device: torch.device, evaluate_tokenizer=None, evaluate_model=None) -> TrainingRun:
    """Where a training is at work: it prints its lines, and notes the command in its folder."""
    from emu_embodied.training.folder import TrainingRun

    notes = {"command": shlex.join(sys.argv), "config": as_dict(config)}
    shown = functools.partial(print, flush=True)
    return TrainingRun(Path(config.out), device, shown, evaluate_tokenizer, evaluate_model, notes)


def _check(config: DictConfig) -> None:
    """Refuses settings that do not go together."""
    choice("stage", config.stage, STAGES)
    released = "adoption" in config.recipe
    needed = released or config.stage in ("trajectory", "dida", "language")
    if config["from"] is None and needed or config["from"] is not None and config.stage in ("probes", "cloning"):
        remedy = "name the checkpoint with stage=trajectory, dida or language, the released folder with preset=emu3.5"
        raise ConfigError("from", config["from"], f"{remedy}, and none with probes and cloning")
    if released and config.stage != "all":
        raise ConfigError(
            "stage", config.stage, "leave it out with preset=emu3.5, whose schedule has DiDA's adaptation"
        )
    if config.quantisation not in (None, "int8", "nf4") or (config.quantisation and not released):
        raise ConfigError("quantisation", config.quantisation, "choose int8 or nf4, with preset=emu3.5, or null")
    if config.shift is not None and not isinstance(config.shift, bool):
        raise ConfigError("shift", config.shift, "choose true, false or null")


def _train_beside(config: DictConfig) -> None:
    """What stands beside a world model, trained on real frames of the env's data, or of the data given: the probes that
    `evaluate probes=` judges with, or a cloned policy to compare planning with."""
    import torch

    from emu_embodied.training.loop import LoopConfig
    from emu_embodied.training.stages.cloning import train_cloning
    from emu_embodied.training.stages.probes import train_probes

    began, c = time.monotonic(), config[config.stage]
    loop = LoopConfig(c.steps, c.learning_rate, warmup=min(100, c.steps), log_every=max(1, min(100, c.steps)))
    cache = _frames(config, config.env.options.get("image_size", 64))
    work = _run(config, torch.device("cpu"))
    if config.stage == "cloning":
        path = train_cloning(cache, loop, work, ahead=c.ahead, batch=c.batch, held_out=c.held_out)
        trial = (
            f"compare planning with it:  python -m benchmarks.protocol_a --agents cloning --cloning {path} --env ..."
        )
    else:
        world = _world(config, cache)
        objects, scale = tuple(world.objects), world.position_scale
        path = train_probes(cache, objects, scale, loop, work, batch=c.batch, held_out=c.held_out)
        trial = f"judge dreams with  emu-embodied evaluate probes={path}"
    print(f"train: finished after {(time.monotonic() - began) / 60:.1f} min; {trial}")


def _teach_subgoals(config: DictConfig) -> None:
    """Trains a world model on, to draw key frames from words that hindsight gives to the data."""
    from emu_embodied.checkpoint import load_checkpoint
    from emu_embodied.device import find_device
    from emu_embodied.loading import checkpoint_path
    from emu_embodied.rollouts.goals.hindsight_tabletop import relabel
    from emu_embodied.training.checks import check_cache
    from emu_embodied.training.key_frame_batches import LanguageConfig
    from emu_embodied.training.loop import LoopConfig
    from emu_embodied.training.stages.language import teach_subgoals

    began, device, source = time.monotonic(), find_device(config.device, ConfigError), checkpoint_path(config["from"])
    language = typed(LanguageConfig, config.language, "language", apart=("loop",))
    loop, recipe = typed(LoopConfig, config.language.loop, "language.loop"), make_recipe(config)
    tokenizer, _, _, world, _ = load_checkpoint(source)
    cache = _frames(config, tokenizer.config.image_size)
    check_cache(cache, recipe.held_out, tokenizer.config.image_size)
    known, _ = cache.split(recipe.held_out)
    rows = relabel(known)
    print(f"train: {len(rows)} key frames in {known.episodes} episodes", flush=True)
    evaluators = _evaluators(cache, recipe.held_out, world, config.env.quality.horizon)
    work, seed = _run(config, device, *evaluators), recipe.seed
    learns = (language, recipe.trajectory, loop)
    path = teach_subgoals(cache, rows, *learns, source, work, held_out=recipe.held_out, seed=seed)
    minutes = (time.monotonic() - began) / 60
    print(f"train: finished after {minutes:.1f} min; try it with  emu-embodied subgoal checkpoint={path}")


def _world(config: DictConfig, cache, source=None):
    """What a new checkpoint records about the frames: the source's description or the environment's, or, where the dataset
    labels none of their objects, what the dataset calls its actions."""
    from emu_embodied.checkpoint import World
    from emu_embodied.validation import registered_id

    identity = not cache.action_scale[:, 0].any() and (cache.action_scale[:, 1] == 1).all()
    scale = () if identity else tuple(map(tuple, cache.action_scale.tolist()))
    if source is not None and source.objects and all(f"{name}.x" in cache.names["state"] for name in source.objects):
        return replace(source, action_scale=scale)
    described = as_dict(config.env.world)
    if not any(f"{name}.x" in cache.names["state"] for name in described["objects"]):
        return World({}, (1.0, -1.0), "", tuple(cache.names["action"]), action_scale=scale)
    objects: dict[str, Any] = {name: tuple(rgb) for name, rgb in described["objects"].items()}
    place: Any = tuple(described["position_scale"])  # `World` says what is wrong with it
    actions = tuple(described["action_names"])
    env_id = registered_id(config.env.id)  # what is to be imported for it stays the user's to say
    return World(objects, place, env_id, actions, described["eye"], described["landmarks"], scale)


def _evaluators(cache, count: int, world, horizon: int):
    """What is shown while training goes on, of `count` held-out episodes: of the tokenizer, and of the model."""
    from emu_embodied.rollouts.evaluation import frame_metrics, prediction
    from emu_embodied.world_model import TokenWorldModel

    _, held_out = cache.split(count)
    if held_out is None:
        return None, None
    if not world.objects or not held_out.known[:, 2].all():
        return (
            lambda tokenizer: frame_metrics.tokenizer_frames(tokenizer, held_out),
            lambda *parts: frame_metrics.dreamt_frames(TokenWorldModel(*parts, world=world), held_out),
        )
    truth = prediction.Truth(held_out, world)
    return (
        lambda tokenizer: prediction.tokenizer_quality(tokenizer, truth, episodes=20),
        lambda *parts: prediction.quick_quality(TokenWorldModel(*parts, world=world), truth, horizon),
    )


def _show_dropped(cache) -> None:
    """Prints which episodes were left out, and why."""
    if not cache.dropped:
        return
    from rich.table import Table

    from emu_embodied.data.quality import count_reasons

    reasons = ", ".join(f"{count} {reason}" for reason, count in count_reasons(cache.dropped).items())
    table = Table("episode", "key", "why", "found", title=f"{len(cache.dropped)} episodes left out: {reasons}")
    for fault in cache.dropped[:SHOWN]:
        table.add_row(f"{fault.dataset} {fault.episode}".strip(), fault.key, fault.reason, fault.detail)
    if len(cache.dropped) > SHOWN:
        table.add_row("...", "", "", "all of them are in the frame cache's report.json")
    show_table(table)


def make_recipe(config: DictConfig) -> Recipe:
    """The preset as a `training.pipeline.Recipe`.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    from emu_embodied.training.pipeline import Recipe

    return typed(Recipe, config.recipe, "recipe", apart=("collect",))


def make_fine_tuning(config: DictConfig) -> FineTuning:
    """The preset of a released model as a `stages.emu35.FineTuning`.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    from emu_embodied.training.stages.emu35 import FineTuning

    return typed(FineTuning, config.recipe, "recipe", apart=("collect",))


def _frames(config: DictConfig, image_size: int):
    """The frame cache: given, built from datasets, or collected first."""
    from emu_embodied.data.frame_cache import frames_for, load_frame_cache
    from emu_embodied.data.mixing import mix

    if config.frames is not None:
        return load_frame_cache(config.frames)
    if config.data is not None:
        options, weights = _read_options(config, image_size), as_dict(config)["data_weights"]
        if not isinstance(weights, list | None):
            raise ConfigError("data_weights", weights, "give a list, one number for each dataset")
        cache, spare = config.cache, Path(config.out) / "frames"
        return mix({name: frames_for(name, options, cache=cache, spare=spare) for name in _texts(config, "data")}, weights)
    from emu_embodied.rollouts.collection.collect import collect

    wanted, root = config.recipe.collect, Path(config.out) / "dataset"
    options = env_options(config.env)
    collect(config.env.id, options, wanted.episodes, wanted.steps, root, seed=wanted.seed, workers=config.workers)
    return frames_for(root)


def _read_options(config: DictConfig, image_size: int):
    """How datasets are read."""
    from emu_embodied.data.quality import QualityConfig
    from emu_embodied.data.reader import ReadOptions

    return ReadOptions(
        camera=_texts(config, "camera"),
        action_keys=_texts(config, "action_keys"),
        image_size=image_size,
        fps=config.fps,
        skipped_actions=config.skipped_actions,
        action_range=config.action_range,
        quality=typed(QualityConfig, config.quality, "quality"),
    )


def _texts(config: DictConfig, key: str) -> tuple[str, ...]:
    """A key's texts: none, one or a list.

    Raises:
        ConfigError: something else was given, or a text twice.
    """
    value = as_dict(config)[key]
    texts = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if key == "action_keys":  # elements without names are called by their numbers
        texts = tuple(str(text) if type(text) is int else text for text in texts)
    if not all(isinstance(text, str) for text in texts) or len(set(texts)) < len(texts):
        raise ConfigError(key, value, "give a text, or a list of different texts")
    return texts
