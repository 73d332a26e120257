"""Makes one HTML page of a planned run: real, imagined and their difference, with what each plan was chosen among.

`emu-embodied report RUN`, where RUN is a folder that `emu-embodied plan` wrote. The page needs nothing but itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    """Writes the page and prints where it is.

    Raises:
        DatasetError: the folder is no planned run, or has no recorded episode.
        CheckpointError: a damaged file, or a disk that does not take the page.
    """
    from emu_embodied.rollouts.viewer.html_report import read_run, write_report

    folder = Path(str(config.run))
    out = folder / "report.html" if config.out is None else Path(str(config.out))
    found = read_run(folder)
    write_report(found, out, plan_command(found.result.get("config")))
    if config.rerun is not None:
        from emu_embodied.rollouts.viewer.rerun_export import write_rerun

        write_rerun(found, Path(str(config.rerun)))
        print(f"report: {config.rerun}, for the Rerun viewer")
    if config.gif is not None:
        from emu_embodied.rollouts.viewer.animation import animate

        print(f"report: {animate(found.records[0], Path(str(config.gif)))}, the first episode as a picture that moves")
    print(f"report: {out}, {out.stat().st_size / 1e6:.1f} MB, {len(found.records)} episodes; open it in a browser")


def plan_command(config: Any) -> str:
    """The `emu-embodied plan` that has this configuration, without what is as by default; empty if there is none."""
    from ._config import group_options
    from ._help import as_word

    if not isinstance(config, dict):
        return ""
    words: list[str] = []
    for group, options in group_options("plan").items():  # the option that leaves the least to say, if one does
        tries = [words, *([*words, f"{group}={option}"] for option in options)]
        words = min(tries, key=lambda words: len(_beyond(config, words)))
    rest = {key: value for key, value in _beyond(config, words).items() if key not in ("out", "resume")}
    words += [f"{key}={as_word(value)}" for key, value in rest.items()]
    return " ".join(["emu-embodied", "plan", *map(shlex.quote, words)])


def _beyond(config: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """The leaves of a configuration that these words do not give it."""
    from ._config import as_dict, compose_config

    given = dict(_leaves(as_dict(compose_config("plan", words, complete=False), resolve=True)))
    return {key: value for key, value in _leaves(config) if key not in given or given[key] != value}


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
