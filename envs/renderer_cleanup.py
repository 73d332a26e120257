"""Closes envs whose renderers are open when Python ends. Knows no simulator."""

from __future__ import annotations

import atexit
import weakref
from typing import Any

_opened: weakref.WeakSet[Any] = weakref.WeakSet()


def close_at_exit(env: Any) -> None:
    """Has `env.close()` called at exit; call it whenever the env made a renderer.

    Exit handlers run in reverse, and libraries that draw (MuJoCo with its first context, dm_control with its import) register
    ones that end OpenGL: so this one is moved in front of theirs each time.
    """
    _opened.add(env)
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    for env in list(_opened):
        env.close()
