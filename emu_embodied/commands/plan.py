"""Plans in a world model's imagination, acts in the simulator, and reports successes with pictures and videos.

The model is asked what would happen; the simulator decides what did. `agent=oracle` gives the same planner the true
simulator to imagine in, `agent=random` and `agent=expert` are the controls. An evaluation that was stopped goes on with
`resume=FOLDER` and the same settings. `emu-embodied report` makes a page of the folder. `goal=language` follows the
subgoals that `subgoals=` draws from the instruction and what is seen. In an env of one's own (`env.id=MODULE:ID`) the goal is
`reward`, or what `picture=` shows.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from emu_embodied.errors import CheckpointError, ConfigError

from ._config import as_dict, typed
from ._runs import env_options, loading, package_versions, run_folder, shipped_proposer

PACKAGES = ("emu-embodied", "torch", "mujoco", "gymnasium", "numpy")


def run(config: DictConfig) -> None:
    """Plays the episodes, prints a line for each, and writes what came out to a new folder.

    Raises:
        ConfigError: an unknown agent, goal or proposer of subgoals, a number below its least, or a budget that does not fit
            together.
        InputError: a model of another frame size than the env.
        CheckpointError: the checkpoint is missing or damaged.
    """
    from emu_embodied.rollouts.evaluation import planning
    from emu_embodied.storage.atomic import write_json

    settings, make_model, make_proposer = _settings(config), _model_maker(config), _proposer_maker(config)
    seeds = list(range(config.seed, config.seed + config.episodes))
    pictured = seeds[: config.videos]
    # The player says what is wrong before anything is written.
    player = planning.Player(settings, make_model, make_proposer, pictured)
    folder = run_folder(config.out, config.resume, "episodes.jsonl")
    console = Console(soft_wrap=True, highlight=False)
    show = functools.partial(_show, console, folder, pictured)
    try:
        rows = planning.evaluate_planning(
            settings,
            seeds,
            make_model,
            config.workers,
            journal=folder / "episodes.jsonl",
            on_episode=show,
            player=player,
            make_proposer=make_proposer,
            progress=True,
            pictured=pictured,
        )
    except KeyboardInterrupt:
        console.print(f"plan: the finished episodes are in {folder}; go on with resume={folder}", markup=False)
        raise
    summary = planning.summarise(rows)
    result = {
        **summary,
        "success": {str(row["seed"]): row["success"] for row in rows},
        "seeds": seeds,
        "config": as_dict(config),
        "settings": asdict(settings)
        | {"passes": config.passes, "engine": _engine_name(player), "workers": config.workers},
        "versions": package_versions(*PACKAGES),
        "episodes": rows,
    }
    write_json(folder / "result.json", result)
    _report(console, folder, summary, _engine_name(player))


def _settings(config: DictConfig):
    from emu_embodied.loading import weights_label
    from emu_embodied.policies.planners.registry import CONFIGS
    from emu_embodied.rollouts.evaluation.planning import PlanningSettings

    return PlanningSettings(
        config.env.id,
        env_options(config.env),
        config.agent,
        config.goal,
        typed(CONFIGS[config.planner], config),
        config.steps,
        weights_label(config.checkpoint, **loading(config)) if config.agent == "model" else "",
        config.effort,
        config.uncertainty,
        _following(config),
        *_picture(config),
    )


def _picture(config: DictConfig) -> tuple[str | None, str | None]:
    """The path of the picture of what is wanted, and its digest; None where there is none."""
    from emu_embodied.data.images import MOST_PIXELS
    from emu_embodied.storage.regular import read_file

    if config.picture is None:
        return None, None
    try:
        content = read_file(config.picture, 4 * MOST_PIXELS)
    except CheckpointError as error:
        raise ConfigError("picture", config.picture, f"{error.value}: give a PNG, JPEG or WebP file") from None
    return config.picture, hashlib.sha256(content).hexdigest()


def _following(config: DictConfig):
    """Who proposes the subgoals, and how they are followed; None where no goal needs any."""
    from emu_embodied.loading import weights_label
    from emu_embodied.policies.subgoal_manager import SubgoalConfig
    from emu_embodied.rollouts.goals.subgoal_setup import CONTROLS, Following

    if config.goal != "language":
        if config.subgoals is not None:
            raise ConfigError("subgoals", config.subgoals, "goal=language follows them: give both or none")
        return None
    name = _proposer_name(config)
    label = name if name in CONTROLS else weights_label(name, config.subgoal_passes, config.engine)
    recordings = str(config.recordings or "")
    return Following(label, recordings, config.tries, config.imagine, SubgoalConfig(patience=config.patience))


def _engine_name(player) -> str:
    """Of what really executes the model's steps; empty for agents without a model."""
    return player.model.engine.name if player.model is not None else ""


def _model_maker(config: DictConfig):
    """What loads the model, in this process or in a worker's."""
    from emu_embodied.loading import load

    return functools.partial(load, config.checkpoint, **loading(config))


def _proposer_name(config: DictConfig) -> str:
    if config.subgoals is None:
        return shipped_proposer(config.env, "subgoals")
    return "true" if config.subgoals is True else str(config.subgoals)  # YAML reads the word as a truth value


def _proposer_maker(config: DictConfig):
    """What loads the learnt proposer of subgoals, in this process or in a worker's; None where a control needs none."""
    from emu_embodied.rollouts.goals.subgoal_setup import CONTROLS

    if config.goal != "language":
        return None
    name = _proposer_name(config)
    if name in set(CONTROLS) - {"shuffled"}:
        return None
    name = shipped_proposer(config.env, "subgoals") if name == "shuffled" else name
    return functools.partial(_load_proposer, name, config.engine, config.subgoal_passes)


def _load_proposer(name: str, engine: str, passes: int):
    from emu_embodied.loading import load_proposer

    return load_proposer(name, engine=engine, passes=passes)


def _show(console: Console, folder: Path, pictured: list[int], run) -> None:
    """Prints an episode's line, and makes its picture, video and record if it is among the first."""
    from emu_embodied.rollouts.figures import strip, video
    from emu_embodied.rollouts.viewer.episode_record import save_record

    row, seconds = run.row(), sum(run.plan_seconds) / max(1, len(run.plan_seconds))
    left = "" if row["end_cm"] is None else f", {row['end_cm']:.1f} cm left"
    ending = f"done in {row['steps']} steps" if run.success else f"not done{left}"
    cost = f"  {len(run.plan_seconds)} plans of {seconds:.2f} s" if run.plan_seconds else ""
    console.print(f'seed {run.seed}: "{run.instruction}" {ending}{cost}', style="green" if run.success else "red")
    if run.seed in pictured:
        subgoals = [(f"from t={at}: {subgoal.caption}", subgoal.frame) for subgoal, at in run.subgoals]
        strip(run.frames, run.imagined, folder / f"episode-{run.seed}.png", run.instruction, subgoals=subgoals)
        video(run.frames, run.imagined, folder / f"episode-{run.seed}.mp4", run.instruction)
        save_record(folder / f"episode-{run.seed}", run)


def _report(console: Console, folder: Path, summary: dict, engine: str) -> None:
    low, high = summary["wilson_95"]
    console.print(
        f"success {summary['rate']:.0%}, {summary['successes']} of {summary['n']} (95% interval {low:.0%} to {high:.0%})"
    )
    if summary["seconds_per_plan_median"] is not None:
        console.print(
            f"{summary['seconds_per_plan_median']:.2f} s a plan, {summary['frames_per_plan']:.0f} predicted frames each, "
            f"{summary['predicted_frames_per_second']:.0f} frames a second"
            + (f" on the {engine} engine" if engine else "")
        )
    for name, suffix in (("picture", "png"), ("video", "mp4")):
        for path in sorted(folder.glob(f"episode-*.{suffix}"))[:1]:
            console.print(f"{name}: {path}", markup=False)
    console.print(f"result: {folder / 'result.json'}", markup=False)
