"""Tries a policy of LeRobot's in the imagined world, in the real one, or in both from the same starts.

A policy is a folder that `lerobot-train` saved, or random, expert or emu_mpc. In a dream success is what the model believes;
world=both says how far that can be trusted. An evaluation that was stopped goes on with `resume=FOLDER` and the same settings.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from emu_embodied.errors import ConfigError
from emu_embodied.validation import choice

from ._runs import env_options, loading, package_versions, run_folder, show_table

PACKAGES = ("emu-embodied", "lerobot", "torch", "mujoco", "gym-pusht", "gymnasium", "numpy")
BUILT_IN = ("random", "expert", "emu_mpc")


def run(config: DictConfig) -> None:
    """Plays the episodes, prints a line for each and a table, and writes what came out to a new folder.

    Raises:
        ConfigError: an unknown world or device, a number below its least, or a policy or model of another world.
        CheckpointError: the policy or the checkpoint is missing or damaged.
        InputError: a policy that asks for what the world does not show, or acts otherwise.
    """
    from emu_embodied.rollouts.evaluation import policy_ranking as evaluation
    from emu_embodied.storage.atomic import write_json

    _check(config, evaluation.WORLDS)
    names = ("real", "imagined") if config.world == "both" else (config.world,)
    agent, label = _agent(config)
    worlds = _worlds(config)
    settings = {name: _settings(config, name, label) for name in names}
    for world in worlds.values():
        agent.check(world)  # whatever is wrong shows before anything is written
    folder = run_folder(config.out, config.resume, "*.jsonl")
    seeds = list(range(config.seed, config.seed + config.episodes))
    console, films, rows = Console(soft_wrap=True, highlight=False), {}, {}
    for name in names:
        show = functools.partial(_show, console, folder, name, films, seeds[: config.videos])
        try:
            journal = folder / f"{name}.jsonl"
            rows[name] = evaluation.evaluate_policy(settings[name], seeds, worlds[name], agent, journal, show)
        except KeyboardInterrupt:
            rule = f"evaluate-policy: finished episodes are in {folder}; go on with resume={folder}"
            console.print(rule, markup=False)
            raise
        finally:
            worlds[name].close()
    summaries = {name: evaluation.summarise(found) for name, found in rows.items()}
    compared = evaluation.compare(rows["real"], rows["imagined"]) if config.world == "both" else None
    result = {
        "policy": label,
        "worlds": summaries,
        "compared": compared,
        "seeds": seeds,
        "settings": {name: asdict(found) for name, found in settings.items()},
        "versions": package_versions(*PACKAGES),
        "episodes": rows,
    }
    write_json(folder / "result.json", result)
    _report(console, folder, summaries, compared)


def _check(config: DictConfig, worlds: tuple[str, ...]) -> None:
    choice("world", config.world, worlds)
    if config.stray and config.policy != "expert":
        raise ConfigError("stray", config.stray, "only policy=expert strays")


def _agent(config: DictConfig):
    """Who acts, and what names it."""
    from emu_embodied.loading import weights_label
    from emu_embodied.rollouts.agents import lerobot
    from emu_embodied.rollouts.agents.random import RandomAgent
    from emu_embodied.rollouts.agents.scripted import ExpertAgent

    policy, device = str(config.policy), _device(config)
    if policy == "random":
        return RandomAgent(), policy
    if policy == "expert":
        return ExpertAgent(config.stray), f"{policy} stray={config.stray:g}"
    if policy == "emu_mpc":
        agent = lerobot.planning_agent(str(config.checkpoint), device, seed=config.seed, **loading(config))
        label = weights_label(config.checkpoint, **loading(config))
        return agent, f"emu_mpc {label} seed={config.seed}"
    if not Path(policy).is_dir():
        remedy = f"give a folder that lerobot-train saved (pretrained_model), or one of {BUILT_IN}"
        raise ConfigError("policy", policy, remedy)
    return lerobot.load_agent(policy, device), lerobot.policy_label(policy)


def _worlds(config: DictConfig) -> dict[str, Any]:
    """The worlds asked for, by name; objects are those of the model, or without one those that the env's models know."""
    from emu_embodied.loading import load
    from emu_embodied.rollouts.vector_envs import DreamtWorlds, RealWorlds

    options, objects, worlds = env_options(config.env), tuple(config.env.world.objects), {}
    if config.world != "real":
        model = load(config.checkpoint, device=_device(config), **loading(config))
        worlds["imagined"], objects = DreamtWorlds(model, config.env.id, options), model.objects
    if config.world != "imagined":
        worlds["real"] = RealWorlds(config.env.id, options, objects)
    return worlds


def _settings(config: DictConfig, name: str, label: str):
    from emu_embodied.loading import weights_label
    from emu_embodied.rollouts.evaluation.policy_ranking import PolicySettings

    options = env_options(config.env)
    model = weights_label(config.checkpoint, **loading(config)) if name == "imagined" else ""
    return PolicySettings(label, name, config.env.id, options, model, config.batch, config.steps)


def _device(config: DictConfig) -> str | None:
    return None if config.device == "auto" else config.device


def _show(console: Console, folder: Path, name: str, films: dict, filmed: list[int], episode) -> None:
    """Prints an episode's line, and makes its video if it is among the first."""
    row = episode.row()
    ending = f"done in {row['steps']} steps" if episode.success else f"not done in {row['steps']} steps"
    line = f'{name}, seed {episode.seed}: "{episode.instruction}" {ending}, return {episode.total:.2f}'
    console.print(line, style="green" if episode.success else "red", markup=False)
    if episode.seed in filmed:
        _film(folder, name, episode, films)


def _film(folder: Path, name: str, episode, films: dict[int, dict[str, Any]]) -> None:
    """A video of what is known of a start by now: one world, or both side by side."""
    from emu_embodied.rollouts.figures import film

    sides = films.setdefault(episode.seed, {})
    sides[name] = episode.frames
    film(sides, folder / f"episode-{episode.seed}.mp4", episode.instruction)


def _report(console: Console, folder: Path, summaries: dict[str, dict], compared: dict | None) -> None:
    table = Table("world", "success", "95% interval", "n", "mean return", "95% interval", "median steps", "clipped")
    for name, found in summaries.items():
        low, high = found["wilson_95"]
        least, most = found["return_95"]
        steps = "-" if found["steps_median"] is None else f"{found['steps_median']:g}"
        cells = (f"{found['rate']:.0%}", f"{low:.0%} to {high:.0%}", str(found["n"]), f"{found['return_mean']:.2f}")
        table.add_row(name, *cells, f"{least:.2f} to {most:.2f}", steps, f"{found['clipped_mean']:.0%}")
    show_table(table, 120)
    if compared is not None:
        low, high = compared["agree_wilson_95"]
        counts = ", ".join(
            f"{key.replace('_', ' ')} {compared[key]}" for key in ("both", "only_real", "only_imagined", "neither")
        )
        same = f"{compared['agree']:.0%} of {compared['n']} starts ({low:.0%} to {high:.0%})"
        console.print(f"the same verdict in {same}; succeeded in {counts}")
        least, most = compared["rate_difference_95"]
        related = compared["return_correlation"]
        console.print(
            f"imagined less real success {compared['rate_difference']:+.0%} ({least:+.0%} to {most:+.0%}); "
            f"returns correlate {'-' if related is None else f'{related:.2f}'}"
        )
    for path in sorted(folder.glob("episode-*.mp4"))[:1]:
        console.print(f"video: {path}", markup=False)
    console.print(f"result: {folder / 'result.json'}", markup=False)
