"""Drives a dream in the browser, with keys or mouse, from any of its frames; with the simulator beside it if asked.

Serves one page to this machine alone, until Ctrl-C. `real=true` steps MuJoCo with the same actions.
"""

from __future__ import annotations

from omegaconf import DictConfig

from emu_embodied.errors import ConfigError, InputError


def run(config: DictConfig) -> None:
    """Serves until it is interrupted.

    Raises:
        ConfigError: a number out of range, or a port that is taken.
        CheckpointError: the checkpoint is missing or damaged.
        InputError: an instruction that does not fit, or a model without a real environment for its starts.
    """
    import gymnasium

    from emu_embodied.envs.registration import make_registered
    from emu_embodied.loading import load
    from emu_embodied.rollouts.viewer.server import PlayServer
    from emu_embodied.rollouts.viewer.session import Play

    model = load(config.checkpoint, passes=config.passes, engine=config.engine)
    if not model.world.env_id:
        rule = "it names no env in which a scene could begin: use  emu-embodied imagine starts=DATASET"
        raise ConfigError("checkpoint", str(config.checkpoint), rule)
    options = {"image_size": model.image_size} if str(model.world.env_id).startswith("emu_embodied/") else {}
    try:
        env = make_registered(model.world.env_id, disable_env_checker=True, **options)
    except gymnasium.error.Error as error:
        raise InputError("checkpoint", model.world.env_id, f"its dreams start in that env ({error})") from None
    play = Play(model, env, str(config.checkpoint), config.real)
    try:
        play.reset(config.seed, config.instruction)  # whatever is wrong shows here, in the terminal
        with PlayServer(play, config.port, config.seed, config.instruction) as server:
            print(f"play: {server.address}\nplay: {model.engine.name} engine; Ctrl-C ends it", flush=True)
            server.serve_forever()
    finally:
        play.close()
