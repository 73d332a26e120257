"""Worker processes that die or stop under their command, and commands that die over their workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import gymnasium

import emu_embodied.envs  # noqa: F401  registers them, in spawned workers, too

from .battery import Job, Trial, battery
from .kills import BUDGET, tiny_checkpoint
from .processes import Command, in_child, stretched, wait_for

DEATH, STALL = 5.0, 15.0  # seconds after a death; after a stop, of which 10 are the limit that the package states
FAULTS = {
    "worker killed": (signal.SIGKILL, DEATH),
    "worker terminated": (signal.SIGTERM, DEATH),
    "worker stopped": (signal.SIGSTOP, STALL),
}


def _commands(tiny, out) -> dict[str, list[str]]:
    many = ["workers=2", f"out={out}"]
    return {
        "plan": ["plan", f"checkpoint={tiny}", "episodes=500", "videos=0", *BUDGET, *many],
        "collect": ["collect", "episodes=3000", *many],
        "evaluate": ["evaluate", f"checkpoint={tiny}", "episodes=2", "steps=16", "horizons=[]", "planning=300", *many],
    }


@battery(
    "workers",
    fault="env worker killed or stuck",
    expected="typed error, no orphans; a stopped worker within the stated limit of 10 s and 5 more; workers end within 5 s of "
    "their command's kill -9; a killed worker of an AsyncVectorEnv is an error. Seconds are those of a free machine: on a busy "
    "one they are multiplied by its load per core",
    bar="< 5 s",
    n=30,
)
def workers(job: Job) -> Iterator[Trial]:
    """Kills, terminates or stops a worker of plan, collect and evaluate, or kills the command itself; a vector env's, too."""
    tiny = tiny_checkpoint(job.folder / "tiny")
    kinds = [(verb, fault) for verb in _commands("", "") for fault in (*FAULTS, "command killed")] + [("vector env", "")]
    for index in range(job.n):
        if index % len(kinds) == 0:
            job.chance.shuffle(kinds)
        verb, fault = kinds[index % len(kinds)]
        if verb == "vector env":
            yield _vector_env(job)
            continue
        folder, moment = job.folder / str(index), job.chance.uniform(0, 20)
        what = f"{verb}: {fault} after {moment:.1f} s"
        with Command(_commands(tiny, folder / "out")[verb], folder) as command:
            if not wait_for(lambda command=command: command.workers(), 180):
                yield Trial(what, False, found=f"no worker came up: {command.text[-200:]}")
                continue
            time.sleep(moment)
            yield _orphaned(command, what) if fault == "command killed" else _struck(command, what, *FAULTS[fault], job)


def _struck(command: Command, what: str, which: signal.Signals, limit: float, job: Job) -> Trial:
    victims = command.workers()
    if not victims:
        return Trial(what, False, found=f"it had ended by itself: {command.text[-200:]}")
    begun = time.monotonic()
    os.kill(job.chance.choice(sorted(victims)), which)
    limit = stretched(limit)
    wait_for(lambda: command.process.poll() is not None, limit + 30)
    seconds, code = time.monotonic() - begun, command.process.poll()
    orphans = command.orphans()
    typed = code == 2 and "Traceback" not in command.text and "emu-embodied: error:" in command.text
    held = typed and seconds <= limit and not orphans
    return Trial(what, held, seconds, "" if held else f"exit code {code}, {orphans} orphans: {command.text[-300:]}")


def _orphaned(command: Command, what: str) -> Trial:
    begun = time.monotonic()
    os.kill(command.pid, signal.SIGKILL)
    command.process.wait()
    left = command.orphans(60)
    seconds = time.monotonic() - begun
    held = not left and seconds <= stretched(DEATH)
    return Trial(what, held, seconds, "" if held else f"{left} workers after {seconds:.0f} s")


def _vector_env(job: Job) -> Trial:
    """Gymnasium's own workers: what a user of `AsyncVectorEnv` sees when one of them dies."""
    ending, which = in_child(_step_over_a_dead_worker, 600), "vector env: worker killed"
    held = ending.kind == "done" and ending.value["seconds"] <= stretched(DEATH)
    return Trial(which, held, ending.value["seconds"] if held else None, "" if held else str(ending))


def _small_table() -> gymnasium.Env:
    return gymnasium.make("emu_embodied/TabletopPush-v0", image_size=16)


def _step_over_a_dead_worker() -> dict:
    envs = gymnasium.vector.AsyncVectorEnv([_small_table, _small_table], context="spawn")
    envs.reset(seed=1)
    os.kill(envs.processes[0].pid, signal.SIGKILL)
    begun = time.monotonic()
    try:
        envs.step(envs.action_space.sample())
    except Exception as error:
        return {"seconds": time.monotonic() - begun, "error": f"{type(error).__name__}: {error}"}
    raise AssertionError("the step went on without its worker")
