"""Plays episodes in worker processes. Knows no environment and no model."""

from __future__ import annotations

import multiprocessing
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

import torch

from emu_embodied.errors import EmuEmbodiedError, SimulationError


def play_in_parallel(make: Callable[[], Any], seeds: Sequence[int], workers: int) -> Iterator[Any]:
    """Plays in worker processes, each with its own player; episodes come as they finish.

    Args:
        make: makes a player, whose `play(seed)` plays an episode; picklable.
        seeds: of the episodes.
        workers: processes.

    Raises:
        EmuEmbodiedError: what a player raised; SimulationError where a process died.
    """
    context = multiprocessing.get_context("spawn")
    todo, players = deque(seeds), {}
    try:
        for _ in range(min(workers, len(todo))):
            ours, theirs = context.Pipe()
            players[ours] = context.Process(target=_play_in_worker, args=(make, theirs), daemon=True)
            players[ours].start()
            theirs.close()
            ours.send(todo.popleft())
        while players:
            for pipe in connection.wait(list(players)):
                try:
                    answer = pipe.recv()
                except EOFError:
                    players[pipe].join()
                    code = players[pipe].exitcode
                    raise SimulationError(
                        "worker", f"died, exit code {code}", "call with workers=1 to see why"
                    ) from None
                if isinstance(answer, Exception):
                    raise answer
                yield answer
                if todo:
                    pipe.send(todo.popleft())
                else:
                    pipe.send(None)
                    players.pop(pipe).join()
    finally:
        for process in players.values():
            process.terminate()
            process.join()


def _play_in_worker(make: Callable[[], Any], pipe: connection.Connection) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it ends its workers
    torch.set_num_threads(1)
    try:
        player = make()
        while (seed := pipe.recv()) is not None:
            pipe.send(player.play(seed))
    except EmuEmbodiedError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError):  # the parent is gone
        pass
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
