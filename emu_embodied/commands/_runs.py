"""What several verbs share: where to write, what to note of a result, and how to show one. Knows no verb."""

from __future__ import annotations

import inspect
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from emu_embodied.errors import ConfigError
from emu_embodied.storage.regular import check_tree


def package_versions(*packages: str) -> dict[str, str]:
    """Versions of these distributions, as far as they are installed, and of Python, to be kept with a result."""
    found = {name: found.version for name in packages for found in metadata.distributions(name=name)}
    return found | {"python": platform.python_version()}


def show_table(table: Table, width: int = 160) -> None:
    """Prints a table, as wide as the terminal is, or as `width` where there is none."""
    console = Console()
    Console(width=None if console.is_terminal else width).print(table)


def run_folder(out: str, resume: str | None, journal: str) -> Path:
    """The folder to write to.

    Args:
        out: where a new one is made.
        resume: the one to go on with; None for a new one.
        journal: a pattern of the file that tells a folder to go on with.

    Raises:
        ConfigError: there is nothing to go on with, what is in the folder leads elsewhere, or it cannot be made.
    """
    if resume is not None:
        folder = Path(str(resume))
        if not any(folder.glob(journal)):
            raise ConfigError("resume", str(folder), f"it has no {journal}; give a folder that this command made")
        check_tree(folder, ConfigError)
        return folder
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for n in range(1, 1000):
        folder = Path(out) / (stamp if n == 1 else f"{stamp}-{n}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not Path(out).is_dir():
                raise ConfigError("out", out, "it is a file; choose a folder") from None
        except OSError as error:
            raise ConfigError("out", out, f"{error.strerror}; choose a folder that can be written") from None
    raise ConfigError("out", out, "a thousand runs began in this second; choose another folder")


def loading(config: DictConfig) -> dict[str, Any]:
    """What `load` is given of a verb's configuration besides the checkpoint and the device."""
    return {name: config[name] for name in ("passes", "engine", "precision", "dataset") if name in config}


def starting_dataset(config: DictConfig, image_size: int):
    """The dataset whose frames dreams start in, `starts=` and `camera=`: its folder, and how it is read.

    Raises:
        ConfigError: several cameras.
        DatasetError: no such dataset.
    """
    from emu_embodied.data.lerobot_files import dataset_folder
    from emu_embodied.data.reader import ReadOptions

    if config.camera is not None and not isinstance(config.camera, str):
        raise ConfigError("camera", config.camera, "give one camera's name")
    options = ReadOptions(camera=(config.camera,) if config.camera else (), image_size=image_size)
    return dataset_folder(config.starts), options


def env_options(env: DictConfig) -> dict[str, Any]:
    """The keywords that an env is made with.

    The options in `configs/env/` are those of the env that stands beside them. Another one, named by `env.id=`, gets of them
    what the user set, and what it has a parameter for.

    Args:
        env: a configuration of the group `env`.
    """
    from ._config import as_dict, env_defaults

    options, known = as_dict(env.options), env_defaults()
    if env.id in {option["id"] for option in known.values()}:
        return options
    ours, takes = known.get(env.name, {}).get("options", options), _parameters(env.id)
    return {name: value for name, value in options.items() if name in takes or ours.get(name, ...) != value}


def _parameters(env_id: str) -> set[str]:
    """The names that an env's own signature has; none where there is no such env, which who makes it will say."""
    import emu_embodied.envs  # noqa: F401  registers the worlds

    try:
        entry = gymnasium.spec(env_id).entry_point
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
        return set(inspect.signature(creator).parameters) if creator else set()
    except (gymnasium.error.Error, ImportError, AttributeError, TypeError, ValueError):
        return set()


def shipped_proposer(env: DictConfig, field: str) -> str:
    """The shipped checkpoint that draws key frames of an env.

    Args:
        env: a configuration of the group `env`.
        field: the key that another one can be named by.

    Raises:
        ConfigError: there is none.
    """
    if not env.get("proposer"):
        rule = f"no shipped checkpoint draws key frames of {env.name}: name one that `train stage=language` made"
        raise ConfigError(field, None, rule)
    return env.proposer
