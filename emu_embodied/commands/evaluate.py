"""Measures how right a world model is, on held-out episodes: tokenizer, open loop, actions followed, planning success.

Every figure stands beside its 95% interval, what repeating the last frame scores, and what the tokenizer alone loses.
A model without objects is judged by its frames, on the episodes of `data=`, or of the env that it imitates.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import DictConfig

from emu_embodied.errors import ConfigError
from emu_embodied.validation import registered_id

from ._config import as_dict, compose_config, group_options
from ._runs import env_options, loading, package_versions, show_table

if TYPE_CHECKING:
    from emu_embodied.data.frame_cache import FrameCache
    from emu_embodied.rollouts.evaluation.prediction import Truth
    from emu_embodied.rollouts.evaluation.tables import Figure, Row

ELSE = ("out", "workers", "card", "worst")  # what changes no figure
PACKAGES = ("emu-embodied", "torch", "mujoco", "gym-pusht", "pymunk", "gymnasium", "numpy")


def run(config: DictConfig) -> None:
    """Prints the table, and writes it as JSON and Markdown with pictures of the worst windows.

    Raises:
        ConfigError: a number below its least, nothing to judge the model on, or a folder with the figures of something else.
        CheckpointError: the checkpoint is missing or damaged.
    """
    from emu_embodied.storage.runs import locked

    with locked(Path(config.out), "evaluation"):
        _evaluate(config)


def _evaluate(config: DictConfig) -> None:
    from emu_embodied.checkpoint import add_card, fingerprint
    from emu_embodied.loading import checkpoint_path, load
    from emu_embodied.rollouts.evaluation import prediction
    from emu_embodied.rollouts.evaluation.tables import as_markdown
    from emu_embodied.storage.atomic import write_bytes, write_json

    model = load(config.checkpoint, **loading(config))
    env = _environment(config, model.world.env_id) if model.objects else _unlabelled(config, model)
    began, horizon, folder = time.monotonic(), config.horizon or env.quality.horizon, Path(config.out)
    planning = env.quality.planning if config.planning is None and model.objects else config.planning or 0
    facts = {
        "checkpoint": str(config.checkpoint),
        "weights": fingerprint(checkpoint_path(config.checkpoint)),
        "settings": as_dict(config) | {"env": as_dict(env), "horizon": horizon, "planning": planning},
        "frames": None if config.data is None else _frames_label(config, model),
    }
    _refuse_other(folder, facts)
    cache = _held_out(config, env, model)
    truth, figures = _open_loop(env, model, cache, horizon)
    rows = _long_dreams(config, model, truth)
    if planning:
        _print(figures)
        figures += _planning(config, env, planning, folder)
    result = {
        **facts,
        "figures": [asdict(figure) for figure in figures],
        "rollouts": [asdict(row) for row in rows],
        "engine": model.engine.name,
        "seeds": {"held_out": [config.seed, config.seed + config.episodes], "planning": config.planning_seed},
        "seconds": round(time.monotonic() - began, 1),
        "versions": package_versions(*PACKAGES),
    }
    write_json(folder / "result.json", result)
    tables = as_markdown(figures) + ("\n" + as_markdown(rows) if rows else "")
    write_bytes(folder / "table.md", tables.encode())
    if config.card:
        add_card(checkpoint_path(config.checkpoint), _card(config, figures, rows, model, cache.fps), result)
    _print(figures)
    pictures = prediction.picture_worst(model, truth, config.worst, folder, horizon)
    print(f"evaluate: {folder / 'result.json'}, {folder / 'table.md'}" + (f", {pictures} pictures" if pictures else ""))


def _held_out(config: DictConfig, env: DictConfig, model) -> FrameCache:
    """The episodes to judge on: recorded now, or those of a dataset."""
    from emu_embodied.rollouts.collection.episodes import record_frames

    if config.data is not None:
        cache = _of_dataset(config, model)
        print(f"evaluate: the last {cache.episodes} episodes of {config.data}", flush=True)
        return cache
    print(f"evaluate: {config.episodes} held-out episodes", flush=True)
    return record_frames(env.id, env_options(env), range(config.seed, config.seed + config.episodes), config.steps)


def _open_loop(env: DictConfig, model, cache: FrameCache, horizon: int) -> tuple[Truth, list[Figure]]:
    """The figures of the open loop, by the objects or without any by the frames, and the truth that they rest on."""
    from emu_embodied.rollouts.evaluation import frame_metrics, prediction

    if model.objects:
        truth = prediction.Truth(cache, model.world)
        bars = tuple(env.quality.position), tuple(env.quality.angle)
        return truth, prediction.quality_table(model, truth, horizon, *bars)
    truth = prediction.Truth(cache, model.world, frame_metrics.START + horizon + 1)
    return truth, frame_metrics.frame_table(model, truth, horizon)


def _of_dataset(config: DictConfig, model):
    """The frames of the dataset that was given, all of it or its last `episodes`, with actions as the model knows them."""
    from emu_embodied.data.frame_cache import frames_for

    cache = frames_for(str(config.data), _read_options(config, model))
    if cache.actions.shape[1] != model.action_dim:
        found = f"actions of {cache.actions.shape[1]} elements, {cache.names['action']}"
        raise ConfigError("data", str(config.data), f"it has {found}, the checkpoint's have {model.action_dim}")
    cache = cache.select(range(max(0, cache.episodes - config.episodes), cache.episodes))
    return rescaled(cache, np.array(model.world.action_scale, np.float32))


def _read_options(config: DictConfig, model):
    """How the dataset is read."""
    from emu_embodied.data.reader import ReadOptions

    camera = as_dict(config)["camera"] or ()
    return ReadOptions(camera=(camera,) if isinstance(camera, str) else tuple(camera), image_size=model.image_size)


def _frames_label(config: DictConfig, model) -> str:
    """A digest of the dataset's frames as they are read."""
    from emu_embodied.data.frame_cache import fingerprint
    from emu_embodied.data.lerobot_files import dataset_folder

    return fingerprint(dataset_folder(str(config.data)), _read_options(config, model))


def _refuse_other(folder: Path, facts: dict) -> None:
    """Refuses a folder that holds other figures than those that are asked for.

    Raises:
        ConfigError: it does; what differs is named.
    """
    from emu_embodied.storage.regular import read_json
    from emu_embodied.storage.runs import refuse_other

    if not (folder / "result.json").is_file():
        return
    then = read_json(folder / "result.json")
    if not isinstance(then, dict) or not isinstance(then.get("settings"), dict):
        raise ConfigError("out", str(folder), "its result.json is none of an evaluation: use another out=")
    now, then = (
        {name: those.get(name) for name in facts}
        | {"settings": {name: value for name, value in those["settings"].items() if name not in ELSE}}
        for those in (facts, then)
    )
    refuse_other(now, then, folder, "use another out=")


def rescaled(cache, scales: np.ndarray):
    """A dataset's frames with actions in a checkpoint's scale; a line says how many are beyond it and clipped.

    Args:
        cache: of one dataset.
        scales: (D, 2, A) middle and half width of the actions of each dataset that the checkpoint learnt from; (0,) for those
            that are in [-1, 1] already.

    Raises:
        ConfigError: a checkpoint of several scales, none of which is the dataset's.
    """
    from emu_embodied.data.resampling import denormalise, normalise

    own = cache.action_scale[0]
    if not len(scales) or any(np.allclose(scale, own) for scale in scales):
        return cache
    if len(scales) > 1:
        rule = "the checkpoint learnt from several robots, and its scale is none of theirs: give one of their datasets"
        raise ConfigError("data", f"actions from {(own[0] - own[1]).tolist()} to {own.sum(0).tolist()}", rule)
    recorded = denormalise(cache.actions, own)
    actions = normalise(recorded, scales[0])
    outside = int((np.abs(denormalise(actions, scales[0]) - recorded) > 1e-3 * scales[0, 1]).any(1).sum())
    if outside:
        print(f"evaluate: {outside} actions go beyond those that the model was trained on, and are clipped to them")
    return replace(cache, actions=actions, action_scale=scales)


def _unlabelled(config: DictConfig, model) -> DictConfig:
    """The configuration of an env to judge a model without objects in; with `data=` only its horizon counts.

    Raises:
        ConfigError: neither data nor an env without objects and with the model's actions, or episodes to plan.
    """
    if config.planning:
        raise ConfigError("planning", config.planning, "the checkpoint knows no objects to plan for: give planning=0")
    names = tuple(config.env.world.action_names)
    if config.data is None and (len(config.env.world.objects) or names != tuple(model.world.action_names)):
        rule = "the checkpoint knows no objects, and is judged by frames: give data=DATASET, or env= that it was trained on"
        raise ConfigError("data", None, rule)
    return config.env


def _long_dreams(config: DictConfig, model, truth) -> list:
    """The metrics of long dreams, printed as they are found.

    Raises:
        ConfigError: no VideoMAE where one is asked for.
        CheckpointError: probes that are missing, damaged, or of another world.
    """

    from emu_embodied.baselines.probes import load_probes
    from emu_embodied.rollouts.evaluation import prediction_metrics
    from emu_embodied.rollouts.evaluation.fvd import VideoReader, video_distance_row

    horizons = as_dict(config)["horizons"]
    probes = None if config.probes is None else load_probes(Path(config.probes))
    if probes and (probes.config.image_size, probes.config.action_dim) != (model.image_size, model.action_dim):
        raise ConfigError("probes", str(config.probes), "they were trained for another world: train stage=probes")
    if not horizons:
        return []
    video = None
    if config.fvd is not None:
        video = functools.partial(video_distance_row, reader=VideoReader(str(config.fvd)))
    rows = prediction_metrics.rollout_table(model, truth, probes, tuple(sorted(horizons)), bool(config.lpips), video)
    _print(rows, "long dreams")
    return rows


def _environment(config: DictConfig, env_id: str) -> DictConfig:
    """The configuration of the env that the checkpoint imitates: the one asked for, or else its own.

    Raises:
        ConfigError: an env was asked for that is not the checkpoint's, or the checkpoint names none.
    """
    if registered_id(config.env.id) == env_id:
        return config.env
    known = {name: compose_config("evaluate", [f"env={name}"]).env for name in group_options("evaluate")["env"]}
    of_checkpoint = [env for env in known.values() if env.id == env_id]
    if not of_checkpoint or config.env != compose_config("evaluate", []).env:
        raise ConfigError("env", config.env.id, f"the checkpoint is of {env_id}")
    return of_checkpoint[0]


def _planning(config: DictConfig, env: DictConfig, episodes: int, folder: Path) -> list:
    """Planning success of the model, of the same planner in the true simulator, and of random actions.

    Episodes are kept in `folder` as they finish; the same command goes on where one was stopped.
    """
    from emu_embodied.loading import load, weights_label
    from emu_embodied.policies.planners.cem import CEMConfig
    from emu_embodied.rollouts.evaluation import planning
    from emu_embodied.rollouts.evaluation.tables import Figure

    seeds = range(config.planning_seed, config.planning_seed + episodes)
    make_model = functools.partial(load, config.checkpoint, device="cpu", **loading(config))
    options = env_options(env)
    name = weights_label(config.checkpoint, **loading(config))
    rows = {}
    for agent in ("random", "oracle", "model"):
        label, make = (name, make_model) if agent == "model" else ("", None)
        settings = planning.PlanningSettings(env.id, options, agent, "positions", CEMConfig(), model=label)
        key = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:8]
        journal, done = folder / f"planning-{agent}-{key}.jsonl", []

        def show(run, agent=agent, done=done) -> None:
            done.append(run.success)
            print(f"evaluate: planning, {agent}: {sum(done)} of {len(done)} played, {len(seeds)} asked for", flush=True)

        shown = show if agent == "model" else None
        played = planning.evaluate_planning(settings, seeds, make, config.workers, journal, shown)
        rows[agent] = planning.summarise(played)
        print(f"evaluate: planning, {agent}: {rows[agent]['rate']:.0%} of {episodes}", flush=True)
    oracle, bars = rows["oracle"]["rate"], {"random": ("<= 10", "0"), "oracle": (">= 90", "100"), "model": ("", "97")}
    bars["model"] = (f">= {75 * oracle:.0f} (75% of the simulator's)", "97")
    return [
        Figure(
            f"planning success, {name}, %",
            100 * rows[agent]["rate"],
            tuple(100 * x for x in rows[agent]["wilson_95"]),
            episodes,
            None,
            None,
            *bars[agent],
        )
        for agent, name in (("random", "random actions"), ("oracle", "true simulator"), ("model", "this model"))
    ]


def _card(config: DictConfig, figures: list, rows: list, model, fps: float) -> str:
    """The model card: what it is, how it was made, how good it is."""
    from emu_embodied.rollouts.evaluation.tables import as_markdown

    sizes = {
        name: sum(p.numel() for p in part.parameters()) / 1e6
        for name, part in vars(model).items()
        if name in ("tokenizer", "model")
    }
    name = Path(str(config.checkpoint)).name
    draws = (
        f"\nIt also draws key frames from words (`emu-embodied subgoal checkpoint={name}`); how well, docs/results/ says.\n"
        if model.model.config.generates_subgoals
        else ""
    )
    dreams = f"\nLong dreams, k steps each:\n\n{as_markdown(rows)}" if rows else ""
    return f"""# {name}

An action-conditioned world model of {_imitated(model)} for emu-embodied: {model.tokens_per_frame} tokens a frame of
{model.image_size} px, each predicted from the last {model.context_frames} and an action. Token model of {sizes["model"]:.2f}M
parameters, frame tokenizer of {sizes["tokenizer"]:.2f}M. How it was trained is in `config.json`, what was measured in
`metrics.json`.

Objects it knows: {", ".join(model.objects) or "none"}. It has seen scripted play of that env as it is by default: other
backgrounds, colours, cameras and tasks are outside what it was trained for.
{draws}
Measured on {config.episodes} held-out episodes (seeds from {config.seed}) with {config.passes} pass(es) a frame; sizes in px of
a 64 px frame, one step is {1 / fps:g} s:

{as_markdown(figures)}{dreams}
"""


def _imitated(model) -> str:
    return f"`{model.world.env_id}`" if model.world.env_id else "a recorded robot"


def _print(rows: Sequence[Figure] | Sequence[Row], title: str | None = None) -> None:
    from rich.table import Table

    table = Table(*rows[0].HEAD, title=title)
    for row in rows:
        table.add_row(*row.cells())
    show_table(table)
