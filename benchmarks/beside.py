"""Frames a second alone, beside one and beside two busy processes: threads that soon wait asleep against threads that spin.

    python -m benchmarks.beside [--threads 2] [--seconds 3] [--rounds 5] [--cases eager onnx ...] [--out FILE]

Each case runs in two processes: as the package sets things up, and with threads that spin as GNU's OpenMP and ONNX Runtime have
them spin by themselves. They are asked in turn, so that both meet the same company. Figures are medians over the rounds, and
the shares that the bars are about: at least 45% of the free speed beside one, asleep at most 5% slower than spinning alone.
What runs on the machine besides counts as company: measure on a free one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

WAITING = {"asleep": {}, "spinning": {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "300000"}}  # GNU's own count
CASES = ("eager", "onnx", "compiled", "collecting", "training")
BUSY = (0, 1, 2)
ENV = "emu_embodied/TabletopPush-v0"
CANDIDATES, HORIZON = 16, 4  # of a plan's round
BATCH = 16  # windows of a training step
SEED = 4_000_000


# In a process of its own: one case


def dreaming(engine: str) -> Callable[[], int]:
    """A round of a plan in `nano-tabletop`; what is called returns how many frames it dreamt."""
    import numpy as np

    from emu_embodied.loading import load
    from emu_embodied.types import Observation

    model = load("nano-tabletop", engine=engine)
    history = model.encode([Observation(np.full((64, 64, 3), 128, np.uint8), np.zeros(2, np.float32))])
    actions = np.random.default_rng(SEED).uniform(-1, 1, (1, CANDIDATES, HORIZON, 2)).astype(np.float32)

    def dream() -> int:
        model.rollout(history, actions)
        return CANDIDATES * HORIZON

    return dream


def collecting() -> Callable[[], int]:
    """A scripted episode of the table-top, as one worker of `collect` plays it, without writing it."""
    import gymnasium

    import emu_embodied.envs  # noqa: F401  registers it
    from emu_embodied.rollouts.collection.episodes import collect_episode

    env = gymnasium.make(ENV, max_episode_steps=-1, terminate_on_success=False)
    return lambda: len(collect_episode(env, SEED, 10).pixels)


def training() -> Callable[[], int]:
    """A step of the trajectory stage on `nano-tabletop`'s weights."""
    import torch

    from emu_embodied.loading import load
    from emu_embodied.rollouts.collection.episodes import record_frames
    from emu_embodied.training.objectives import TrajectoryConfig
    from emu_embodied.training.stages.trajectory import encode_frames, trajectory_objective

    world_model, steps = load("nano-tabletop"), 1_000_000
    parts = (world_model.model.train(), world_model.tokenizer, world_model.text, world_model.world)
    cache = record_frames(ENV, {}, range(SEED, SEED + 2), 24)
    codes = encode_frames(world_model.tokenizer, cache, lambda line: None)
    config = TrajectoryConfig(batch=BATCH)
    objective = trajectory_objective(*parts, cache, codes, config, steps, SEED)
    optimiser, first = torch.optim.AdamW(world_model.model.parameters(), 1e-5), int(steps * config.joint_until) - 1

    def train() -> int:
        loss, _ = objective(world_model.model, first)  # clean and noisy frames together
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return BATCH * config.frames

    return train


def serve(case: str, threads: int) -> None:
    """Says that it is ready, and then, for each line of seconds that it reads, frames a second in so many."""
    import emu_embodied  # noqa: F401  before torch

    # isort: split
    import torch

    torch.set_num_threads(threads)
    work = {"collecting": collecting, "training": training}.get(case, lambda: dreaming(case))()
    work()
    print("ready", flush=True)
    for line in sys.stdin:
        frames, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < float(line):
            frames += work()
        print(frames / (time.perf_counter() - begun), flush=True)


# The one that asks


@contextmanager
def served(case: str, waiting: str, threads: int) -> Iterator[Callable[[float], float]]:
    """A process of one case; what is yielded asks it for frames a second in so many seconds."""
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "KMP_BLOCKTIME")}
    own = {name: value for name, value in own.items() if name not in WAITING["spinning"]} | WAITING[waiting]
    command = [sys.executable, "-m", "benchmarks.beside", "--serve", case, "--threads", str(threads)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=own, **pipes) as process:

        def ask(seconds: float) -> float:
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
            return float(process.stdout.readline() or "nan")

        try:
            while (line := process.stdout.readline()) not in ("ready\n", ""):
                pass
            if not line:
                raise RuntimeError(f"{case} did not start; what it said is above")
            yield ask
        finally:
            process.kill()


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute and do nothing else."""
    idlers = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for idler in idlers:
            idler.kill()
            idler.wait()


def measure(case: str, threads: int, seconds: float, rounds: int) -> dict:
    """Frames a second of a case, by how threads wait and how many busy processes are beside."""
    with ExitStack() as stack:
        ask = {waiting: stack.enter_context(served(case, waiting, threads)) for waiting in WAITING}
        rates: dict[str, dict[int, list[float]]] = {waiting: {count: [] for count in BUSY} for waiting in WAITING}
        for _ in range(rounds):
            for count in BUSY:
                with busy(count):
                    for waiting in WAITING:
                        rates[waiting][count].append(ask[waiting](seconds))
    medians = {w: {n: statistics.median(values) for n, values in by.items()} for w, by in rates.items()}
    return {
        "frames_per_second": medians,
        "all": rates,
        "share_beside_one": {w: by[1] / by[0] for w, by in medians.items()},
        "share_beside_two": {w: by[2] / by[0] for w, by in medians.items()},
        "asleep_over_spinning_alone": medians["asleep"][0] / medians["spinning"][0],
    }


def main() -> None:
    """Measures, prints a table, and writes the JSON where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside", description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--serve", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.threads)
        return
    from benchmarks.timing import publish

    load_before, cases = round(os.getloadavg()[0], 2), {}
    for case in arguments.cases:
        cases[case] = measure(case, arguments.threads, arguments.seconds, arguments.rounds)
        for waiting, by in cases[case]["frames_per_second"].items():
            figures = ", ".join(f"{rate:.0f} beside {count}" for count, rate in by.items())
            share = cases[case]["share_beside_one"][waiting]
            print(f"{case}, {waiting}: {figures} (beside one {share:.0%} of the free speed)", file=sys.stderr)
    settings = {name: getattr(arguments, name) for name in ("threads", "seconds", "rounds")}
    result = {"cases": cases, **settings, "cores": os.cpu_count(), "load_average_before": load_before}
    publish(json.loads(json.dumps(result)), arguments.out)


if __name__ == "__main__":
    main()
