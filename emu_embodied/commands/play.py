"""Drives a dream in the browser, with keys or mouse, from any of its frames; with the simulator beside it if asked.

Serves one page to this machine alone, until Ctrl-C. `real=true` steps MuJoCo with the same actions. Scenes of one's own robot
begin in recorded frames, `starts=DATASET`, or in an env of one's own, `env.id=MODULE:ID`.
"""

from __future__ import annotations

import gymnasium
from omegaconf import DictConfig

from emu_embodied.errors import ConfigError, InputError

from ._runs import loading, starting_dataset


def run(config: DictConfig) -> None:
    """Serves until it is interrupted.

    Raises:
        ConfigError: a number out of range, or a port that is taken.
        CheckpointError: the checkpoint is missing or damaged.
        InputError: an instruction that does not fit, or a model without a real environment for its starts.
    """
    from emu_embodied.loading import load
    from emu_embodied.rollouts.viewer.server import PlayServer
    from emu_embodied.rollouts.viewer.session import Play

    model = load(config.checkpoint, **loading(config))
    play = Play(model, _beginnings(config, model), str(config.checkpoint), config.real)
    try:
        play.reset(config.seed, config.instruction)  # whatever is wrong shows here, in the terminal
        with PlayServer(play, config.port, config.seed, config.instruction) as server:
            print(f"play: {server.address}\nplay: {model.engine.name} engine; Ctrl-C ends it", flush=True)
            server.serve_forever()
    finally:
        play.close()


def _beginnings(config: DictConfig, model) -> gymnasium.Env:
    """The env in which scenes begin: the user's, recorded starts, or the checkpoint's own."""
    from emu_embodied.data.frame_cache import frames_for
    from emu_embodied.envs.imagined.recorded import RecordedStarts
    from emu_embodied.envs.opening import open_env
    from emu_embodied.envs.registration import make_registered
    from emu_embodied.units import ActionScale

    if config.starts is not None:
        if config.env.id is not None:
            raise ConfigError("starts", config.starts, f"scenes begin in {config.env.id} already: give one of both")
        return RecordedStarts(frames_for(*starting_dataset(config, model.image_size)), ActionScale.of(model))
    name = config.env.id or model.world.env_id
    if not name:
        rule = "it names no env in which a scene could begin: give env.id=ID of your own, or starts=DATASET"
        raise ConfigError("checkpoint", str(config.checkpoint), rule)
    options = {"image_size": model.image_size} if str(name).startswith("emu_embodied/") else {}
    if config.env.id is not None:
        return open_env(config.env.id, disable_env_checker=True, **options)
    try:
        return make_registered(name, disable_env_checker=True, **options)
    except gymnasium.error.Error as error:
        raise InputError("checkpoint", name, f"its dreams start in that env ({error})") from None
