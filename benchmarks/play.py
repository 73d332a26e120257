"""How many frames a second the played dream gives a browser: steps over HTTP on loopback, one after the other.

    python -m benchmarks.play [--checkpoint NAME] [--steps N] [--out FILE]

A step is a request, the dreamt frame, its picture and the answer; then again with the simulator's step and picture beside it.
What the browser does with it comes on top. The median and its bootstrap interval are over the steps of one run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np

import emu_embodied.envs  # noqa: F401
from benchmarks.timing import publish
from emu_embodied.loading import load
from emu_embodied.metrics import bootstrap_interval
from emu_embodied.rollouts.viewer.server import PlayServer
from emu_embodied.rollouts.viewer.session import Play

WARM_UP = 5  # steps that are not timed


def time_steps(server: PlayServer, steps: int) -> list[float]:
    """Seconds of each step, driven in circles over one connection."""
    line = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)

    def call(name: str, body: dict) -> dict:
        headers = {"Content-Type": "application/json", "X-Token": server.token}
        line.request("POST", f"/api/{name}", json.dumps(body), headers)
        answer = line.getresponse()
        content = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(content["error"])
        return content

    scene, seconds = call("reset", {"seed": 0, "instruction": None})["scene"]["number"], []
    for i in range(WARM_UP + steps):
        action = [float(np.cos(i / 3)), float(np.sin(i / 3))]
        begun = time.perf_counter()
        call("step", {"scene": scene, "frame": i, "action": action})
        seconds.append(time.perf_counter() - begun)
    return seconds[WARM_UP:]


def measure(checkpoint: str, steps: int, real: bool) -> dict:
    """Frames a second at the median step, and its interval."""
    model = load(checkpoint)
    env = gymnasium.make(model.world.env_id, image_size=model.image_size, disable_env_checker=True)
    play, load_before = Play(model, env, checkpoint, real), os.getloadavg()[0]
    try:
        with PlayServer(play) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            seconds = np.array(time_steps(server, steps))
            server.shutdown()
    finally:
        play.close()
    slow, fast = bootstrap_interval(1 / seconds)
    return {
        "checkpoint": checkpoint,
        "engine": model.engine.name,
        "n": steps,
        "frames_per_second": float(1 / np.median(seconds)),
        "interval_95": [slow, fast],
        "frames_per_second_overall": float(steps / seconds.sum()),
        "ms_p95": float(1e3 * np.percentile(seconds, 95)),
        "load_average_before": round(load_before, 2),
    }


def main() -> None:
    """Measures, prints JSON, and writes it where asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.play", description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", default="nano-tabletop")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    result = {
        "dream": measure(arguments.checkpoint, arguments.steps, False),
        "dream_and_simulator": measure(arguments.checkpoint, arguments.steps, True),
        "cores": os.cpu_count(),
    }
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
