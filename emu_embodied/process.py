"""What the package asks of the process it runs in: settings that libraries read when they are first loaded, and what holds
in a forked child. Knows libraries by their names only, and loads none.
"""

from __future__ import annotations

import os
import sys
import warnings

# Libraries that would report home: ONNX Runtime (1.32) with its import, huggingface_hub with its requests.
QUIET = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
# How threads of OpenMP (GNU's and others', Intel's) wait for each other: they spin for a few microseconds, about as long as the
# others need with cores of their own, and then sleep. Spinning on, as they do by themselves, they take the core that another
# process needs, and wait for what that core would compute (measured by `benchmarks.beside`).
PATIENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
OPENGL_REMEDY = "install EGL (Debian, Ubuntu: apt-get install libegl1 libgl1), or set MUJOCO_GL=osmesa or glfw"
FORK_REMEDY = 'start worker processes with context="spawn": gymnasium.make_vec(..., vector_kwargs={"context": "spawn"})'
DISPLAYS = ("mujoco.egl", "dm_control._render.pyopengl.egl_renderer")  # modules that hold a process's connection to EGL

_state = {"spins": False, "opengl": False, "inherited": False}


def prepare() -> None:
    """Sets what the user has not set; called with the package's first import. Worker processes inherit it."""
    if sys.platform.startswith("linux"):  # elsewhere MuJoCo has one way to draw, and refuses this word
        os.environ.setdefault("MUJOCO_GL", "egl")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not any(name in os.environ for name in PATIENT):  # who sets one of them has decided how threads wait
        os.environ.update(PATIENT)
        _state["spins"] = "torch" in sys.modules  # its OpenMP has read them already
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_in_forked_child)


def warn_of_spinning(threads: int) -> None:
    """Says, once, that torch's threads spin because it was loaded before the environment variables against it were set.

    Args:
        threads: that torch computes with; a single one waits for no other.
    """
    if _state["spins"] and threads > 1:
        _state["spins"] = False
        warnings.warn(
            "torch was imported before emu_embodied, so its threads spin while they wait, and one other busy process can slow "
            "dreams many times over. Import emu_embodied first, set OMP_WAIT_POLICY=passive, or call torch.set_num_threads(1)",
            RuntimeWarning,
            stacklevel=3,
        )


def opengl_in_use() -> None:
    """Notes that this process draws, so that its forked children do not."""
    _state["opengl"] = True


def opengl_inherited() -> bool:
    """Whether this process was forked from one that drew: OpenGL's calls then wait for threads that are not here."""
    return _state["inherited"]


def _in_forked_child() -> None:
    drawn = any(getattr(sys.modules.get(name), "EGL_DISPLAY", None) for name in DISPLAYS)
    _state["inherited"] = _state["inherited"] or _state["opengl"] or drawn
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):  # its import may be under way
        torch.set_num_threads(1)  # OpenMP would wait without end for the parent's threads
