"""Writes a world model's dreams as a LeRobot dataset, which LeRobot's own policies train on.

Interrupted or killed, it goes on where it stopped when it is called again with the same settings.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from emu_embodied.errors import ConfigError

from ._runs import starting_dataset


def run(config: DictConfig) -> None:
    """Dreams, and prints what the dataset holds.

    Raises:
        ConfigError: a number below its least.
        CheckpointError: the checkpoint is missing or damaged.
        DatasetError, InputError: see `emu_embodied.rollouts.collection.imagined.imagine`.
    """
    from emu_embodied import checkpoint
    from emu_embodied.data.frame_cache import fingerprint, frames_for
    from emu_embodied.loading import checkpoint_path, load
    from emu_embodied.rollouts.collection.imagined import ImagineSettings, imagine

    how = ("passes", "temperature", "engine", *(("precision",) if config.precision != "fp32" else ()))
    model = load(config.checkpoint, **{name: config[name] for name in how})
    starts = None
    if config.starts is None and not model.world.env_id:
        rule = "the checkpoint names no env whose resets dreams could start from: give starts=DATASET"
        raise ConfigError("starts", None, rule)
    if config.starts is not None:
        starts = starting_dataset(config, model.image_size)
    settings = ImagineSettings(
        str(config.checkpoint),
        checkpoint.fingerprint(checkpoint_path(config.checkpoint)),
        config.episodes,
        config.steps,
        config.policy,
        config.seed,
        "" if starts is None else f"{config.starts} {fingerprint(*starts)[:12]}",
        {name: config[name] for name in how},
    )
    starts = None if starts is None else frames_for(*starts)
    out = Path(config.out)
    summary = imagine(model, settings, out, starts, lambda line: print(line, flush=True))
    if summary.recorded == 0:
        print(f"imagine: {out} was complete already")
    believed = "its data did not tell the model what success is"
    if summary.success is not None:
        believed = f"the model believes {summary.success:.0%} of them to succeed"
    print(f"imagine: {out} holds {summary.episodes} dreams, {summary.frames} frames; {believed}")
