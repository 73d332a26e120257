"""The door by which an env id that a user gave becomes an env: what Gymnasium says of it as one typed error. Knows no env."""

from __future__ import annotations

from typing import Any

import gymnasium

from emu_embodied.errors import ConfigError, EmuEmbodiedError


def open_env(env_id: str, field: str = "env.id", **options: Any) -> gymnasium.Env:
    """`gymnasium.make` for a user's own words; `MODULE:ID` imports the user's module. Never for an id that a file names.

    Args:
        env_id: a Gymnasium id.
        field: what the error calls it.
        options: keywords of `gymnasium.make`.

    Raises:
        ConfigError: no such env, version or module, or an env that cannot be made.
        EmuEmbodiedError: what the env itself says of its options.
    """
    import emu_embodied.envs  # noqa: F401  registers the worlds

    module, _, name = env_id.rpartition(":") if isinstance(env_id, str) else ("", "", "")
    if not name or ":" in env_id and not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(field, env_id, "give a Gymnasium id, or MODULE:ID of your own")
    try:
        return gymnasium.make(env_id, **options)
    except gymnasium.error.Error as error:
        raise ConfigError(field, env_id, f"{_line(error)} Give a registered id, or MODULE:ID of your own") from None
    except EmuEmbodiedError:
        raise
    except ModuleNotFoundError as error:
        if module and error.name is None:  # Gymnasium's, of the module that the user named
            remedy = f"{_line(error)} Give a module that can be imported"
        else:
            remedy = f"{_line(error)} Install what the env needs"
        raise ConfigError(field, env_id, remedy) from error
    except Exception as error:  # of the env's own code, or of Gymnasium's checks of it: any type
        raise ConfigError(field, env_id, f"it cannot be made, {type(error).__name__}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") + "."
