"""Odd command lines, each refused in one line with exit code 2 before anything heavy is loaded; more of them by seed.

`FIXED` are instances that users met. `odd_commands(seed, n)` draws others: any verb, any of its keys, a value that is never
right for it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import OmegaConf

from emu_embodied.commands import verbs
from emu_embodied.commands._config import _leaves, compose_config

DIGITS = "1" * 5000
LONG_NAME, LONG_PATH = "x" * 300, "x/" * 3000
NEVER = {
    bool: ("5", "maybe", "null", "''", "[true]"),
    int: ("-1", "1.5", "true", "null", "many", "[1]", "nan", "1e400", DIGITS),
    float: ("-1", "nan", "-inf", "true", "null", "fast", "[0.5]", DIGITS),
    list: ("5", "null", "one", "{a: 1}"),
    dict: ("5", "null", "[1]"),
}
NO_PATH = ("''", "' '", "true", "5", "[a,b]", "{a: 1}", LONG_NAME, LONG_PATH)
REQUIRED = {
    "collect": "episodes=1",
    "evaluate-policy": "policy=random",
    "generate": "checkpoint=x",
    "imagine": "episodes=1",
    "report": "run=x",
}
PATHS = ("out", "root", "checkpoint", "resume", "frames", "recordings", "probes", "from", "vision", "run", "image", "starts")


@dataclass(frozen=True)
class Odd:
    """A command line, and what its error names."""

    words: tuple[str, ...]
    names: str


FIXED = [
    Odd(("palan",), "did you mean plan?"),
    Odd(("plan", "sede=1"), "did you mean seed?"),
    Odd(("plan", "seed"), "key=value"),
    Odd(("plan", "seed=1\0"), "null byte"),
    Odd(("plan", "out=\udcff"), "not UTF-8"),
    Odd(("plan", "out=" + "[" * 2000), "argument"),
    Odd(("plan", f"seed={DIGITS}"), "seed: 1111"),
    Odd(("plan", f"seed={2**70}"), "seed: 1180591620717411303424; give a whole number from 0"),
    Odd(("plan", "checkpoint=null"), "checkpoint: None; give a text"),
    Odd(("plan", "checkpoint=true"), "checkpoint: True; give a text"),
    Odd(("plan", "checkpoint=5"), "checkpoint: 5; give a text"),
    Odd(("plan", "checkpoint=[a,b]"), "checkpoint: ['a', 'b']; give a text"),
    Odd(("plan", "checkpoint=nano-tabeltop"), "did you mean nano-tabletop?"),
    Odd(("evaluate", "checkpoint=nano-tabltop"), "did you mean nano-tabletop?"),
    Odd(("evaluate-policy", "policy=random", "checkpoint=nano"), "choose among: nano-language"),
    Odd(("subgoal", "checkpoint=nano-langauge"), "did you mean nano-language?"),
    Odd(("play", f"checkpoint={LONG_NAME}"), "at most 255 bytes"),
    Odd(("compile", "engine=onx"), "did you mean onnx?"),
    Odd(("plan", "engine=xla"), "engine: xla; choose among: eager"),
    Odd(("play", "port=65536"), "port: 65536; give a whole number from 0 to 65535"),
    Odd(("train", "threads=-5"), "threads: -5; give a whole number from 0"),
    Odd(("train", "recipe.tokenizer.patch=0"), "recipe.tokenizer.patch: 0; give a whole number from 1"),
    Odd(("train", "recipe.transformer.num_key_value_heads=0"), "num_key_value_heads: 0; give a whole number from 1"),
    Odd(("train", "frames=5"), "frames: 5; give a text"),
    Odd(("train", "device=gpu"), "device: gpu; "),
    Odd(("collect", "episodes=1", "out=null"), "out: None; give a text"),
    Odd(("collect", "episodes=1", "out=''"), "out: ; it is empty"),
    Odd(("collect", "episodes=1", "out=."), "you are in that folder"),
    Odd(("imagine", "episodes=1", "out=/"), "you are in that folder"),
    Odd(("collect", "episodes=1", "env.options.image_size=63"), "image_size: 63; give a multiple of 8"),
    Odd(("collect", "episodes=1", "env.id=zork"), "env.id: zork; Environment `zork` doesn't exist"),
    Odd(("collect", "episodes=1", "env.id=nosuch:X-v0"), "env.id: nosuch:X-v0; No module named 'nosuch'"),
    Odd(("collect", "episodes=1", "env.id=emu_embodied/TabletopPush-v7"), "Environment version `v7`"),
    Odd(("collect", "episodes=1", "env.id=''"), "env.id: ; it is empty"),
    Odd(("collect",), "episodes: not given; it has no default"),
    Odd(("evaluate", f"out={LONG_PATH}"), "at most 255 bytes, its path 4095"),
    Odd(("plan", "out=/dev/null"), "/dev/null is no folder"),
    Odd(("plan", "out=/dev/null/below"), "/dev/null is no folder"),
    Odd(("subgoal", "image=5"), "image: 5; give a text"),
    Odd(("report", "run=''"), "run: ; it is empty"),
    Odd(("compile", "cache=/dev/null"), "/dev/null is no folder"),
    Odd(("report", "run=x", "out=/"), "out: /; a folder or a device is there: name a file"),
    Odd(("report", "run=x", "gif=."), "gif: .; a folder or a device is there: name a file"),
    Odd(("report", "run=x", "gif=/dev/null/x.gif"), "/dev/null is no folder"),
]


def odd_commands(seed: int, n: int) -> Iterator[Odd]:
    """Commands with one wrong value each; the same seed, the same commands."""
    rng = random.Random(seed)
    keys = {verb: list(_keys(verb)) for verb in sorted(verbs())}
    for _ in range(n):
        verb = rng.choice([verb for verb in keys if keys[verb]])
        key, values = rng.choice(keys[verb])
        required = REQUIRED.get(verb, f"{key}=")
        others = () if required.startswith(f"{key}=") else (required,)
        yield Odd((verb, *others, f"{key}={rng.choice(values)}"), key)


def _keys(verb: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A verb's keys, each with values that are never right for it."""
    config = compose_config(verb.replace("-", "_"), [], complete=False)
    for key, default in _leaves(OmegaConf.to_container(config)):
        if key in PATHS and not (verb == "plan" and key == "frames"):
            yield key, NO_PATH
        elif type(default) in NEVER:
            yield key, NEVER[type(default)]
