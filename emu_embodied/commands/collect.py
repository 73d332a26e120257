"""Records scripted episodes of a simulated world as a LeRobot dataset.

Interrupted or killed, it goes on where it stopped when it is called again with the same settings.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from emu_embodied.errors import DatasetError

from ._runs import env_options


def run(config: DictConfig) -> None:
    """Records, and prints what the dataset holds.

    Raises:
        DatasetError: see `emu_embodied.rollouts.collection.collect.collect`.
    """
    from emu_embodied.rollouts.collection.collect import collect, read_summary

    root = Path(config.out)
    options = env_options(config.env)
    try:
        summary = collect(
            config.env.id, options, config.episodes, config.steps, root, seed=config.seed, workers=config.workers
        )
    except KeyboardInterrupt:
        try:
            there = read_summary(root).episodes
            print(f"collect: {there} of {config.episodes} episodes are in {root}; call again to go on")
        except DatasetError:
            print("collect: nothing is finished yet")
        raise
    if summary.recorded == 0:
        print(f"collect: {root} was complete already")
    if summary.failed:
        print(f"collect: {summary.failed} episodes are left out, their simulator failed: see meta/emu_embodied.json")
    print(
        f"collect: {root} holds {summary.episodes} episodes, {summary.frames} frames; "
        f"{summary.moving_steps:.0%} of the steps move an object, {summary.success:.0%} of the episodes succeed"
    )
