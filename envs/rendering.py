"""MuJoCo's offscreen pictures for all worlds: where they cannot be drawn one typed error says why. Knows MuJoCo, no world."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from threading import Lock

import numpy as np

from emu_embodied.errors import ConfigError
from emu_embodied.process import FORK_REMEDY, OPENGL_REMEDY, opengl_in_use, opengl_inherited

from .renderer_cleanup import close_at_exit


def no_opengl(error: Exception) -> ConfigError:
    """The error where this machine, as it is set up, draws nothing."""
    return ConfigError("offscreen render", f"{type(error).__name__}: {' '.join(str(error).split())}", OPENGL_REMEDY)


try:
    import mujoco
except Exception as error:  # it looks at MUJOCO_GL, and some libraries fail with an AttributeError
    raise no_opengl(error) from error


_failures: list[Exception] = []  # GLFW's: it aborts the process at the second try


class Renderers:
    """Draws one simulated scene in pictures of several sizes; any thread may, one at a time.

    A copy, by `copy.deepcopy` or `pickle`, begins without OpenGL contexts.
    """

    def __init__(self) -> None:
        self._made: dict[int, mujoco.Renderer] = {}
        self._lock = Lock()

    def draw(self, model: mujoco.MjModel, data: mujoco.MjData, camera: int | str | mujoco.MjvCamera, size: int) -> np.ndarray:
        """A picture (size, size, 3) uint8 without shadows and reflections.

        Raises:
            ConfigError: OpenGL does not work here, or this process was forked from one that had drawn.
        """
        if opengl_inherited():  # it would hang
            raise ConfigError("offscreen render", "in a process forked from one that had drawn", FORK_REMEDY)
        with self._lock:
            before = _current_context()
            try:
                renderer = self._made.get(size) or self._make(model, size)
                renderer.update_scene(data, camera)
                return renderer.render()
            finally:
                if self._made:
                    _put_back(before)

    def close(self) -> None:
        """Frees the OpenGL contexts."""
        with self._lock:
            while self._made:
                self._made.popitem()[1].close()

    def _make(self, model: mujoco.MjModel, size: int) -> mujoco.Renderer:
        try:
            if _failures:
                raise _failures[0]
            renderer = _make_renderer(model, size)
        except Exception as error:  # of many types, by driver and platform
            if _library() == "mujoco.glfw":
                _failures[:] = [error]
            raise no_opengl(error) from error
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = False
        self._made[size] = renderer
        close_at_exit(self)
        return renderer

    def __reduce__(self):
        return Renderers, ()


# OpenGL contexts. MuJoCo leaves its own current in the thread that draws: no other thread can draw in it then, and who drew
# here before (a viewer of Gymnasium's) would go on in the wrong one. It has no function to let go: each library has its own.


def _library() -> str:
    """The module of MuJoCo's that makes contexts here: "mujoco.egl" and the like; empty where none can."""
    context = getattr(sys.modules.get("mujoco.rendering.classic.gl_context"), "GLContext", None)
    return getattr(context, "__module__", "")


def _current_context() -> tuple | None:
    """What of EGL is current in this thread, for `_put_back`; None for nothing, and for other libraries."""
    if _library() != "mujoco.egl":
        return None
    from mujoco.egl import egl_ext as egl

    egl.eglBindAPI(egl.EGL_OPENGL_API)  # of this thread: the API whose context is meant
    if not (context := egl.eglGetCurrentContext()):
        return None
    surfaces = (egl.eglGetCurrentSurface(which) for which in (egl.EGL_DRAW, egl.EGL_READ))
    return egl.eglGetCurrentDisplay(), *surfaces, context


def _put_back(before: tuple | None) -> None:
    """Makes current what was before, or nothing."""
    library = _library()
    if library == "mujoco.egl":
        from mujoco import egl as display
        from mujoco.egl import egl_ext as egl

        egl.eglMakeCurrent(display.EGL_DISPLAY, egl.EGL_NO_SURFACE, egl.EGL_NO_SURFACE, egl.EGL_NO_CONTEXT)
        if before is not None:
            with suppress(egl.error.GLError):  # it was destroyed meanwhile
                egl.eglMakeCurrent(*before)
    elif library == "mujoco.glfw":
        import glfw

        glfw.make_context_current(None)  # pyright: ignore[reportArgumentType] # None lets go, which its types forget
    elif library == "mujoco.osmesa":
        from mujoco.osmesa import GL, osmesa

        osmesa.OSMesaMakeCurrent(None, None, GL.GL_FLOAT, 0, 0)


def _make_renderer(model: mujoco.MjModel, size: int) -> mujoco.Renderer:
    """MuJoCo's renderer, with nothing on the terminal where it cannot be had."""
    # Where this fails there is just no `mujoco.Renderer`.
    from mujoco.rendering.classic.renderer import GLContext, Renderer

    opengl_in_use()
    if GLContext is not None and "_context" not in vars(GLContext):
        type.__setattr__(GLContext, "_context", None)  # its __del__ looks there, also where __init__ did not come so far
    if _library() != "mujoco.glfw":
        return Renderer(model, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GLFW's of a missing display: the error says it
        return Renderer(model, size, size)
