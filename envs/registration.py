"""Registers the worlds with Gymnasium; nothing heavy is imported before `gymnasium.make`."""

from __future__ import annotations

from typing import Any

from gymnasium.envs.registration import register, registry

from .window import render_modes

# keywords of `emu_embodied.loading.load`
LOADING = (
    *("device", "engine", "precision"),
    *("decoding", "passes", "order", "schedule", "remask", "redraft", "temperature", "top_k", "top_p", "guidance"),
)


def imagined(checkpoint: str = "nano-tabletop", world_model: Any = None, **options: Any):
    """Makes Imagined-v0.

    Args:
        checkpoint: a world model's name or folder.
        world_model: a loaded one instead.
        options: `LOADING`'s go to `loading.load`; the others are `ImaginedEnv`'s.
    """
    from emu_embodied.envs.imagined.env import ImaginedEnv

    return ImaginedEnv(_world_model(checkpoint, world_model, options), **options)


def imagined_vector(checkpoint: str = "nano-tabletop", world_model: Any = None, **options: Any):
    """Makes Imagined-v0 as a vector env; arguments as for `imagined`, options as for `ImaginedVectorEnv`."""
    from emu_embodied.envs.imagined.vector_env import ImaginedVectorEnv

    return ImaginedVectorEnv(_world_model(checkpoint, world_model, options), **options)


def make_registered(env_id: str, **options: Any):
    """`gymnasium.make` of an id that came from a file: of envs that are registered by now, and nothing is imported for it.

    Args:
        env_id: of a checkpoint, a dataset or a run. (`MODULE:ID` would have Gymnasium import the module.)
        options: of `gymnasium.make`.

    Raises:
        InputError: no such env is registered.
        ConfigError: it cannot be made.
    """
    from .opening import open_env

    if env_id not in registry:
        from emu_embodied.errors import InputError

        rule = "no env is registered under that id: import the package that registers it first, or give the env itself"
        raise InputError("real_env", env_id, rule)
    return open_env(env_id, "real_env", **options)  # a registered id without a module: nothing is imported for it


# for `make` to know before there is an env
vars(imagined)["metadata"] = {"render_modes": render_modes(), "render_fps": 4}


def _world_model(checkpoint: str, world_model: Any, options: dict[str, Any]) -> Any:
    """The given world model, or the loaded one; takes the loader's keywords out of the options."""
    loading = {name: options.pop(name) for name in LOADING if name in options}
    if world_model is None:
        from emu_embodied.loading import load

        return load(checkpoint, **loading)
    if loading:
        from emu_embodied.errors import InputError

        raise InputError("option", sorted(loading), "they go with a checkpoint; set them on the world model itself")
    return world_model


if "emu_embodied/TabletopPush-v0" not in registry:
    register("emu_embodied/TabletopPush-v0", "emu_embodied.envs.tabletop.env:TabletopPushEnv", max_episode_steps=40)

if "emu_embodied/PushT-v0" not in registry:
    register("emu_embodied/PushT-v0", "emu_embodied.envs.pusht.env:PushTEnv", max_episode_steps=60)

# name in `specs.SPECS` -> id, actions an episode
ADAPTED = {
    "reacher": ("emu_embodied/Reacher-v0", 20),
    "pusher": ("emu_embodied/Pusher-v0", 50),
    "fetch_reach": ("emu_embodied/FetchReach-v0", 20),
    "fetch_push": ("emu_embodied/FetchPush-v0", 40),
    "aloha": ("emu_embodied/AlohaTransferCube-v0", 40),
    "metaworld": ("emu_embodied/MetaWorld-v0", 60),
}
for _world, (_id, _steps) in ADAPTED.items():
    if _id not in registry:
        register(_id, "emu_embodied.envs.external.adapter:AdaptedEnv", max_episode_steps=_steps, kwargs={"world": _world})

if "emu_embodied/Imagined-v0" not in registry:
    register(
        "emu_embodied/Imagined-v0",
        "emu_embodied.envs.registration:imagined",
        vector_entry_point="emu_embodied.envs.registration:imagined_vector",
        max_episode_steps=40,
    )
