"""What each key may be: ranges, words and paths, checked before anything heavy is loaded. Knows no verb's work.

A key's rule is looked up under `VERB.KEY`, then under its own name, then under what it is part of, with a dot at its end.
Numbers without a rule are at least 0. What depends on several keys, or on a model, its verb checks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from emu_embodied.errors import ConfigError
from emu_embodied.shipped import checkpoint_path
from emu_embodied.validation import choice, number, whole_number

Rule = Callable[[str, Any], object]
MANY = 1_000_000
NAME_BYTES, PATH_BYTES = 255, 4095
ENGINES = ("eager", "compiled", "onnx", "tensorrt", "tensorrt_rtx", "auto")


def whole(least: int = 0, most: int | None = MANY) -> Rule:
    """Whole numbers in a range."""
    return lambda key, value: whole_number(key, value, least, most)


def real(least: float = 0.0, most: float | None = None) -> Rule:
    """Finite numbers in a range."""
    return lambda key, value: number(key, value, least, most)


def words(*options: str) -> Rule:
    """One of these."""
    return lambda key, value: choice(key, value, options)


def side(key: str, value: Any) -> int:
    """A frame's side in px, which models cut into patches."""
    if whole_number(key, value, 16, 512) % 8:
        raise ConfigError(key, value, "give a multiple of 8 px, for models cut frames into patches")
    return value


def text(key: str, value: Any) -> str:
    """A text that says something."""
    if isinstance(value, str) and value.strip():
        return value
    rule = "it is empty: give a text" if isinstance(value, str) else f"give a text (quoted, {key}=\"'...'\")"
    raise ConfigError(key, value, rule)


def path(key: str, value: Any) -> Path:
    """A path that a file could have."""
    given = text(key, value)
    too_long = max(len(os.fsencode(name)) for name in given.split("/")) > NAME_BYTES
    if too_long or len(os.fsencode(given)) > PATH_BYTES or "\0" in given:
        raise ConfigError(key, value, f"a file's name has at most {NAME_BYTES} bytes, its path {PATH_BYTES}")
    return Path(given)


def paths(key: str, value: Any) -> None:
    """A list of paths."""
    for one in value if isinstance(value, list) else [value]:
        path(key, one)


def place(key: str, value: Any) -> Path:
    """A file's path where one can be written, now or once its folders are made."""
    found = path(key, value)
    if found.exists() and not found.is_file():
        raise ConfigError(key, value, "a folder or a device is there: name a file")
    _check_writable(key, value, found.absolute().parents)
    return found


def folder(key: str, value: Any) -> Path:
    """A folder that can be written, now or once it is made."""
    found = path(key, value)
    _check_writable(key, value, (found.absolute(), *found.absolute().parents))
    return found


def new_folder(key: str, value: Any) -> Path:
    """A folder that is replaced as a whole, and so must not be the one that this process stands in."""
    found = folder(key, value)
    if Path(os.path.realpath(os.curdir)).is_relative_to(os.path.realpath(found)):
        raise ConfigError(key, value, "you are in that folder, which would be replaced: name another, below it")
    return found


def lengths(key: str, value: Any) -> None:
    """A list of whole numbers of at least 1."""
    if not isinstance(value, list):
        raise ConfigError(key, value, "give a list of whole numbers, or []")
    for one in value:
        whole_number(key, one, 1, MANY)


def anything(key: str, value: Any) -> None:
    """What its verb checks."""


def _check_writable(key: str, value: Any, places: Iterable[Path]) -> None:
    """Looks at the first of these that is there."""
    there = next(place for place in places if os.path.lexists(place))
    if not there.is_dir():
        raise ConfigError(key, value, f"{there} is no folder: choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(key, value, f"{there} cannot be written: choose another place")


RULES: dict[str, Rule] = {
    **dict.fromkeys(("seed", "planning_seed", "recipe.seed", "recipe.collect.seed"), whole(0, 2**62)),
    **dict.fromkeys(("episodes", "steps", "batch", "count", "recipe.collect.episodes"), whole(1)),
    **dict.fromkeys(("recipe.collect.steps", "horizon", "samples", "tries", "patience", "rank", "tokens"), whole(1)),
    **dict.fromkeys(("passes", "subgoal_passes"), whole(1, 4096)),
    **dict.fromkeys(("videos", "worst", "planning"), whole()),
    **dict.fromkeys(("candidates", "iterations", "execute", "block"), whole(1)),
    **dict.fromkeys(("temperature", "caption_temperature", "distil_temperature"), real()),
    **dict.fromkeys(("effort", "uncertainty", "guidance", "text_temperature", "image_temperature"), real()),
    **dict.fromkeys(("text_top_p", "image_top_p"), real(0, 1)),
    **dict.fromkeys(("max_images", "text_top_k", "image_top_k"), whole()),
    **dict.fromkeys(("height", "width"), whole(16)),
    **dict.fromkeys(("instruction", "camera", "fvd", "agent", "goal", "policy", "mode", "env.id", "prompt"), text),
    **dict.fromkeys(("vision", "text", "from", "data", "probes", "recordings", "starts", "resume", "run"), path),
    **dict.fromkeys(("checkpoint", "image", "picture", "frames", "cache"), path),
    "dataset": whole(),
    "workers": whole(1, 256),
    "threads": whole(0, 1024),
    "port": whole(0, 65535),
    "stray": real(0, 1),
    "fps": real(),
    "engine": words(*ENGINES),
    "device": words("auto", "cpu", "cuda"),
    "precision": words("fp32", "fp16", "bf16"),
    "out": folder,
    "env.options.image_size": side,
    "env.options.control_steps": whole(1),
    "recipe.tokenizer.image_size": whole(8, 4096),
    "recipe.tokenizer.patch": whole(1, 1024),
    "recipe.tokenizer.width": whole(1, 65536),
    "recipe.tokenizer_batch": whole(1),
    "recipe.transformer.": whole(1, 2**20),
    "recipe.text_length": whole(1, 65536),
    "recipe.action_bins": whole(2, 65536),
    "recipe.held_out": whole(),
    # Where a verb means something else by a name
    "collect.out": new_folder,
    "compile.batch": lengths,
    "evaluate.horizons": lengths,
    "evaluate.steps": whole(10),
    "generate.images": paths,
    "compile.cache": folder,
    "generate.prompt": anything,
    "imagine.out": new_folder,
    "plan.frames": whole(1),
    "report.gif": place,
    "report.out": place,
    "report.rerun": place,
    "train.cache": folder,
    "evaluate.camera": anything,
    "train.camera": anything,
    "train.data": paths,
}


def check_keys(verb: str, leaves: Iterable[tuple[str, Any]], defaults: dict[str, Any]) -> None:
    """Checks the values of a complete configuration; null only where it is the default.

    Args:
        verb: the name of a configuration.
        leaves: its dotted keys and their values.
        defaults: by key.

    Raises:
        ConfigError: for the first value that is not as it must be.
    """
    for key, value in leaves:
        rule = RULES.get(f"{verb}.{key}") or RULES.get(key) or RULES.get(f"{key.rpartition('.')[0]}.")
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict) or value is None and default is None:
            continue
        if rule is not None:
            rule(key, value)
        elif type(value) in (int, float):
            number(key, value, 0)


def check_checkpoint(verb: str, config: DictConfig) -> None:
    """Asks whether the checkpoint is there, in those verbs and where it is used.

    Raises:
        CheckpointError: it is not.
    """
    used = {
        "plan": lambda: config.agent == "model",
        "evaluate_policy": lambda: config.world != "real" or config.policy == "emu_mpc",
        "subgoal": lambda: config.checkpoint is not None,
    } | dict.fromkeys(("compile", "evaluate", "imagine", "play"), lambda: True)
    if verb in used and used[verb]():
        checkpoint_path(config.checkpoint)
