"""Seeded calls of the package's doors with good and bad arguments: what becomes of each. Knows no test runner.

`fuzz_calls(seed, n)` yields n calls of env, vector env, planner, proposer, world model and `load`, each a `Call` whose `fault`
is empty where the right thing happened: good arguments are taken, bad ones get a typed error, at once and without a warning.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from tiny import tiny_world_model
from tiny_key_frames import proposer

import emu_embodied.envs  # noqa: F401  registers them
from emu_embodied.checkpoint import save_checkpoint
from emu_embodied.envs.imagined.env import ImaginedEnv
from emu_embodied.envs.imagined.vector_env import ImaginedVectorEnv
from emu_embodied.envs.tabletop.env import TabletopPushEnv
from emu_embodied.errors import EmuEmbodiedError
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.loading import load
from emu_embodied.policies.costs import RewardHead
from emu_embodied.policies.planners.cem import CEM
from emu_embodied.policies.planners.registry import PLANNERS, planner_config
from emu_embodied.types import Observation
from emu_embodied.world_model import TokenWorldModel

SLOW = 5.0  # CPU seconds that no call may take
TEXT = "push the red cube to the left"
GOOD, BAD, EITHER = "good", "bad", "either"
Value = tuple[str, Any, str]  # how it is called in a report, the value itself, and GOOD, BAD or EITHER


@dataclass(frozen=True)
class Call:
    """One call and what came of it.

    Attributes:
        door: what was called.
        arguments: what with, in words.
        expected: GOOD, BAD or EITHER.
        outcome: "accepted", "typed" or "untyped".
        said: the error's message, or the warning's.
        seconds: of the CPU.
    """

    door: str
    arguments: str
    expected: str
    outcome: str
    said: str
    seconds: float

    @property
    def fault(self) -> str:
        """What is wrong; empty if nothing."""
        if self.outcome == "untyped":
            return f"{self.door}({self.arguments}): not typed: {self.said}"
        if self.outcome == "accepted" and self.expected == BAD:
            return f"{self.door}({self.arguments}): accepted in silence"
        if self.outcome == "typed" and self.expected == GOOD:
            return f"{self.door}({self.arguments}): refused: {self.said}"
        if self.outcome == "accepted" and self.said:
            return f"{self.door}({self.arguments}): warned: {self.said}"
        return f"{self.door}({self.arguments}): {self.seconds:.1f} s" if self.seconds > SLOW else ""


class Opaque:
    """A value that nothing can be made of."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("this is no array")

    def __repr__(self) -> str:
        return "Opaque()"


JUNK = (
    None,
    "a",
    "",
    b"x",
    -1,
    3.7,
    float("nan"),
    True,
    [],
    {},
    {"a": 1},
    (1, "b"),
    10**30,
    1j,
    Opaque(),
    Opaque,
    lambda: 0,
)


def seeds(optional: bool) -> list[Value]:
    """Values for a seed."""
    good = [0, 4, 2**31, 2**62, np.int64(4), np.uint8(7), np.int32(3), np.uint64(9)]
    bad = [-1, np.int8(-3), "a", "4", True, np.True_, 1.5, np.float32(2), float("nan"), [1, "x"], b"x", 2**70, -(2**70)]
    bad += [Opaque(), {}, 10**400, np.array([1.5])]
    return (
        [(repr(x), x, GOOD) for x in good]
        + [(_shown(x), x, BAD) for x in bad]
        + [("None", None, GOOD if optional else BAD)]
    )


def numbers(base: np.ndarray, low: float = -1.0, high: float = 1.0) -> list[Value]:
    """Values for an array of numbers within bounds, by a good one."""
    wide = np.zeros((*base.shape[:-1], 2 * base.shape[-1]), base.dtype)
    wide[..., ::2] = base
    locked = base.copy()
    locked.flags.writeable = False
    good = {
        "float32": base,
        "float64": base.astype(np.float64),
        "float16": base.astype(np.float16),
        "float128": base.astype(np.longdouble),
        "big-endian float32": base.astype(">f4"),
        "big-endian float64": base.astype(">f8"),
        "int64 zeros": np.zeros(base.shape, np.int64),
        "big-endian int16 zeros": np.zeros(base.shape, ">i2"),
        "uint8 zeros": np.zeros(base.shape, np.uint8),
        "every second": wide[..., ::2],
        "negative strides": base[..., ::-1],
        "read-only": locked,
        "Fortran order": np.asfortranarray(base),
        "list": base.tolist(),
        "torch": torch.from_numpy(base.copy()),
    }
    big = base.copy().reshape(-1)
    big[0] = 3 * max(abs(low), abs(high))
    sick = {name: np.full_like(base, value) for name, value in (("NaN", np.nan), ("inf", np.inf), ("-inf", -np.inf))}
    bad = {
        **sick,
        "out of bounds": big.reshape(base.shape),
        "1e300": base.astype(np.float64) + 1e300,
        "float128 1e4000": base.astype(np.longdouble) + np.longdouble("1e4000"),
        "masked": np.ma.masked_array(base, mask=np.ones(base.shape, bool)),
        "masked, no mask": np.ma.masked_array(base),
        "objects": base.astype(object),
        "bool": np.zeros(base.shape, bool),
        "complex": base.astype(complex),
        "text": base.astype(str),
        "datetime": np.zeros(base.shape, "datetime64[s]"),
        "one more axis": base[None],
        "one more value": np.zeros((*base.shape[:-1], base.shape[-1] + 1), np.float32),
        "empty": base[..., :0],
        "ragged": [[0.0], [0.0, 1.0]],
        "scalar": np.float32(0.5),
        "set": {0.5},
    }
    return [(k, v, GOOD) for k, v in good.items()] + [(k, v, BAD) for k, v in bad.items()] + _junk()


def pictures(base: np.ndarray) -> list[Value]:
    """Values for a picture (H, W, 3) uint8."""
    locked = base.copy()
    locked.flags.writeable = False
    good = {"uint8": base, "read-only": locked, "mirrored": base[:, ::-1], "Fortran order": np.asfortranarray(base)}
    bad = {
        "float": base / 255,
        "int64": base.astype(np.int64),
        "masked": np.ma.masked_array(base),
        "objects": base.astype(object),
        "grey": base[..., 0],
        "RGBA": np.concatenate([base, base[..., :1]], -1),
        "larger": np.zeros((base.shape[0] + 1, *base.shape[1:]), np.uint8),
        "channels first": base.transpose(2, 0, 1),
        "empty": base[:0],
        "list": base[:2].tolist(),
    }
    return [(k, v, GOOD) for k, v in good.items()] + [(k, v, BAD) for k, v in bad.items()] + _junk()


def counts(good: list[int], most: int) -> list[Value]:
    """Values for a count of at least 1."""
    bad = [0, -1, True, 1.0, "1", float("nan"), most + 1, 10**400, [1], Opaque(), np.float64(2)]
    return [(str(x), x, GOOD) for x in good] + [(_shown(x), x, BAD) for x in bad]


def _junk(good: tuple = ()) -> list[Value]:
    return [(_shown(x), x, BAD) for x in JUNK if _shown(x) not in map(_shown, good)]


def _shown(value: Any) -> str:
    try:
        return repr(value)[:60]
    except ValueError:  # more digits than Python writes
        return "an integer of many digits"


class Bench:
    """What the calls are made of: tiny real models and their envs, made once.

    Args:
        folder: where a checkpoint may lie.
    """

    def __init__(self, folder: Path) -> None:
        self.model, self.proposer = tiny_world_model(), proposer()
        self.path = folder / "checkpoint"
        parts = (self.model.tokenizer, self.model.text, self.model.model, self.model.world)
        save_checkpoint(self.path, *parts, {"episodes": 1})
        self.real = gymnasium.make("emu_embodied/TabletopPush-v0")
        self.dream, self.dreams = (
            ImaginedEnv(self.model, self.real),
            ImaginedVectorEnv(self.model, 3, real_env=self.real),
        )
        self.frame = self.real.reset(seed=0)[0]["pixels"]
        self.begin = {"observation": {"pixels": self.frame, "agent_pos": np.zeros(2, np.float32)}, "instruction": TEXT}
        self.history = self.model.encode([self.seen()])
        for env in (self.dream, self.dreams):
            env.reset(seed=0, options=self.begin)

    def seen(self, **changed: Any) -> Observation:
        """A good observation with something changed."""
        return Observation(
            **{"pixels": self.frame, "agent_pos": np.zeros(2, np.float32), "instruction": TEXT, **changed}
        )

    def close(self) -> None:
        self.real.close()

    def observe(self, **changed: Any):
        """Resets the dream to an observation with something changed."""
        observation = {**self.begin["observation"], **changed}
        return self.dream.reset(seed=0, options={**self.begin, "observation": observation})

    def plan(self, **options: Any):
        """A plan by CEM, small unless the options say otherwise."""
        config = planner_config("cem", **{"horizon": 2, "candidates": 4, "iterations": 1, "elites": 2, **options})
        return CEM(config).plan(self.model, self.history, RewardHead())


Door = tuple[Callable[[Any], Any], list[Value]]


def doors(bench: Bench) -> dict[str, Door]:
    """Everything that can be called, by name: a function of one value, and the values."""
    b, texts = bench, [(repr(x), x, GOOD) for x in (TEXT, "")] + _junk(good=("", "a"))
    names = [("'zork'", "zork", BAD), ("'Pixels'", "Pixels", BAD), ("5", 5, BAD), ("[]", [], BAD), ("True", True, BAD)]
    observed = [(repr(x), x, GOOD) for x in (["pixels"], ("agent_pos", "beliefs"), ["instruction", "pixels"])]
    observed += [
        (repr(x), x, BAD)
        for x in ([["pixels"]], ["zork"], "pixels", [], None, [5], ["pixels"] * 2, {"pixels": 1}, [None], [np.zeros(2)])
    ]
    each = [(repr(x), x, GOOD) for x in ([1, 2, 3], (np.int64(4), None, 5), [0, 0, 0], np.array([1, 2, 3]))]
    each += [
        (repr(x), x, BAD) for x in ([1, 2], [1, 2, -3], ["a", 1, 2], [True, 1, 2], [1.5, 2, 3], np.array([0.5] * 3))
    ]
    decoding = {
        "decoding": [("'dida'", "dida", GOOD), ("'exact'", "exact", GOOD), *names, *_junk()],
        "order": [("'random'", "random", GOOD), *names, *_junk()],
        "schedule": [("'linear'", "linear", GOOD), *names],
        "redraft": [("'noisy'", "noisy", GOOD), *names],
        "passes": counts([1, 3, np.int64(2)], 16),
        "top_k": [("0", 0, GOOD), ("3", 3, GOOD), ("np.int64(2)", np.int64(2), GOOD), *_junk(good=(10**30,))],
        "temperature": [("0", 0, GOOD), ("0.7", 0.7, GOOD), ("np.float32", np.float32(0.5), GOOD), *_junk(good=(3.7, 10**30))],
        "top_p": [("1", 1, GOOD), ("0.9", 0.9, GOOD), ("0", 0, BAD), ("1.1", 1.1, BAD), *_junk()],
        "guidance": [("1.5", 1.5, GOOD), *_junk(good=(3.7, -1, 10**30))],
        "remask": [("True", True, GOOD), ("1", 1, BAD), ("'yes'", "yes", BAD), ("None", None, BAD)],
    }
    planning = {
        "horizon": counts([2, np.int64(4)], 10_000),
        "candidates": counts([4, 5], 10**6),
        "iterations": counts([1, 2], 10**6),
        "elites": counts([1, 2], 4),
        "execute": counts([1, 2], 2),
        "block": counts([1, 2], 2),
        "prune": [("True", True, GOOD), ("1", 1, BAD), *_junk(good=(True,))],
        "frames": [("None", None, GOOD), ("1000", 1000, GOOD), ("1", 1, BAD), *_junk(good=(None, 10**30))],
        "seconds": [("None", None, GOOD), ("0.5", 0.5, GOOD), ("0", 0, BAD), *_junk(good=(None, 3.7, 10**30))],
    }
    load_options = {
        "device": [("'cpu'", "cpu", GOOD), ("None", None, GOOD), ("torch.device", torch.device("cpu"), GOOD)]
        + [("'gpu'", "gpu", BAD), ("'mps'", "mps", EITHER), *_junk(good=(None, "", -1))],
        "engine": [("'eager'", "eager", GOOD), *names, *_junk()],
        "precision": [("'fp32'", "fp32", GOOD), ("'fp8'", "fp8", BAD), *names, *_junk()],
        "seed": seeds(optional=False),
        "zork": [("1", 1, BAD)],
    }
    return {
        **_real_doors(b),
        **_dream_doors(b, observed),
        **_dreams_doors(b, observed, each),
        **{f"planner {name}=": (lambda x, name=name: b.plan(**{name: x}), values) for name, values in planning.items()},
        **_planner_doors(b),
        **_proposer_doors(b, texts),
        **_model_doors(b, texts),
        **{
            f"decoding {name}=": (lambda x, name=name: _decoded(b, **{name: x}), values)
            for name, values in decoding.items()
        },
        **{
            f"load {name}=": (lambda x, name=name: load(b.path, **{name: x}), values)
            for name, values in load_options.items()
        },
        "load": (load, [("its folder", b.path, GOOD), ("its folder as text", str(b.path), GOOD), *_junk()]),
    }


ONE, THREE = np.array([0.25, -0.5], np.float32), np.full((3, 2), 0.25, np.float32)


def _real_doors(b: Bench) -> dict[str, Door]:
    def made(name: str, x: Any) -> None:
        TabletopPushEnv(**{name: x}).close()

    may_be_none = ("shift", "render_mode")
    options = ("image_size", "cubes", "control_steps", "zork", *may_be_none)
    return {
        "env.reset seed=": (lambda x: b.real.reset(seed=x), seeds(optional=True)),
        "env.reset options=": (lambda x: b.real.reset(seed=0, options=x), _junk(good=(None, {}))),
        "env.step": (lambda x: (b.real.reset(seed=0), b.real.step(x)), numbers(ONE)),
        **{
            f"env {name}=": (lambda x, name=name: made(name, x), _junk(good=(None,) if name in may_be_none else ()))
            for name in options
        },
    }


def _dream_doors(b: Bench, observed: list[Value]) -> dict[str, Door]:
    def told(x: Any) -> None:
        b.dream.reset(seed=0, options={**b.begin, "instruction": x})

    return {
        "dream.reset seed=": (lambda x: b.dream.reset(seed=x, options=b.begin), seeds(optional=True)),
        "dream.reset options=": (lambda x: b.dream.reset(seed=0, options=x), _junk(good=(None, {}))),
        "dream.reset pixels=": (lambda x: b.observe(pixels=x), pictures(b.frame)),
        "dream.reset agent_pos=": (lambda x: b.observe(agent_pos=x), numbers(ONE, -16, 16)),
        "dream.reset instruction=": (told, _junk(good=(None, "", "a"))),
        "dream.step": (b.dream.step, numbers(ONE)),
        "dream observe=": (lambda x: ImaginedEnv(b.model, b.real, observe=x), observed),
        "dream render_mode=": (lambda x: ImaginedEnv(b.model, b.real, render_mode=x), _junk(good=(None,))),
        "dream real_env=": (lambda x: ImaginedEnv(b.model, x).reset(seed=0), _junk(good=(None,))),
        "dream starts=": (lambda x: ImaginedEnv(b.model, b.real, starts=x), _junk(good=(None,))),
    }


def _dreams_doors(b: Bench, observed: list[Value], each: list[Value]) -> dict[str, Door]:
    def make(count: Any = 2, **options: Any) -> None:
        ImaginedVectorEnv(b.model, count, real_env=b.real, **options)

    def masked(x: Any) -> None:
        b.dreams.reset(seed=0, options={**b.begin, "reset_mask": x})

    masks = [("one", np.array([True, False, False]), GOOD), ("none", np.zeros(3, bool), BAD)]
    masks += [("ints", np.ones(3, int), BAD), ("two", np.ones(2, bool), BAD), *_junk(good=(None,))]
    return {
        "dreams.reset seed=": (lambda x: b.dreams.reset(seed=x, options=b.begin), seeds(optional=True) + each),
        "dreams.reset options=": (lambda x: b.dreams.reset(seed=0, options=x), _junk(good=(None, {}))),
        "dreams.reset reset_mask=": (masked, masks),
        "dreams.step": (lambda x: (b.dreams.reset(seed=0, options=b.begin), b.dreams.step(x)), numbers(THREE)),
        "dreams num_envs=": (make, counts([1, 2, np.int64(2)], 65_536)),
        "dreams max_episode_steps=": (lambda x: make(max_episode_steps=x), counts([1, np.int64(5)], 2**63)),
        "dreams autoreset_mode=": (lambda x: make(autoreset_mode=x), [("'SameStep'", "SameStep", GOOD), *_junk()]),
        "dreams observe=": (lambda x: make(observe=x), observed),
    }


def _planner_doors(b: Bench) -> dict[str, Door]:
    small = planner_config("cem", horizon=2, candidates=4, iterations=1, elites=2)
    return {
        "planner name=": (planner_config, [(repr(x), x, GOOD) for x in PLANNERS] + _junk()),
        "planner seed=": (lambda x: CEM(small, x).plan(b.model, b.history, RewardHead()), seeds(optional=False)),
        "planner config=": (CEM, _junk(good=(None,))),
        "planner history=": (lambda x: CEM(small).plan(b.model, x, RewardHead()), _junk()),
        "planner cost=": (lambda x: CEM(small).plan(b.model, b.history, x), [v for v in _junk() if not callable(v[1])]),
    }


def _proposer_doors(b: Bench, texts: list[Value]) -> dict[str, Door]:
    return {
        "proposer pixels=": (lambda x: b.proposer.propose(b.seen(pixels=x), 1), pictures(b.frame)),
        "proposer instruction=": (lambda x: b.proposer.propose(b.seen(instruction=x), 1), _junk(good=("a",))),
        "proposer count=": (lambda x: b.proposer.propose(b.seen(), x), counts([1, 2, np.int64(1)], 100)),
        "proposer seed=": (lambda x: b.proposer.propose(b.seen(), 1, x), seeds(optional=False)),
        "proposer observation=": (lambda x: b.proposer.propose(x, 1), _junk()),
    }


def _model_doors(b: Bench, texts: list[Value]) -> dict[str, Door]:
    def chunked(x: Any) -> None:
        TokenWorldModel(b.model.tokenizer, b.model.text, b.model.model, b.model.world, chunk=x)

    codes = {"too large": torch.full((1, 16), 99), "negative": torch.full((1, 16), -1), "floats": torch.zeros(1, 16)}
    codes |= {"few": torch.zeros(1, 15, dtype=torch.int64), "scalar": torch.tensor(1)}
    futures = [value for value in numbers(ONE[None, None, None]) if value[0] != "one more axis"]
    beyond = ("out of bounds", "1e300", "float128 1e4000")
    places = [value for value in numbers(ONE) if value[0] not in beyond]  # a place has no bounds that the model knows
    return {
        "model.seed": (b.model.seed, seeds(optional=False)),
        "model.encode": (b.model.encode, _junk()),
        "model.encode [x]": (lambda x: b.model.encode([x]), _junk()),
        "model.encode pixels=": (lambda x: b.model.encode([b.seen(pixels=x)]), pictures(b.frame)),
        "model.encode agent_pos=": (lambda x: b.model.encode([b.seen(agent_pos=x)]), places),
        "model.encode instruction=": (lambda x: b.model.encode([b.seen(instruction=x)]), texts),
        "model.step": (lambda x: b.model.step(b.history, x), numbers(ONE[None])),
        "model.step history=": (lambda x: b.model.step(x, ONE[None]), _junk()),
        "model.step seeds=": (lambda x: b.model.step(b.history, ONE[None], [x]), seeds(optional=False)),
        "model.rollout": (lambda x: b.model.rollout(b.history, x), futures),
        "model.soft_rollout": (lambda x: b.model.soft_rollout(b.history, x), futures),
        "model.observe": (lambda x: b.model.observe(b.history, x, [b.seen()]), numbers(ONE[None])),
        "model.decode": (b.model.decode, [(name, x, BAD) for name, x in codes.items()] + _junk()),
        "model chunk=": (chunked, [(repr(x), x, GOOD) for x in (1, 7, np.int64(3))] + _junk(good=(None, 10**30))),
    }


def _decoded(bench: Bench, **options: Any):
    """One frame of a model that decodes so."""
    parts = (bench.model.tokenizer, bench.model.text, bench.model.model, bench.model.world)
    model = TokenWorldModel(*parts, decoding=DecodingConfig(**options))
    return model.step(bench.history, np.zeros((1, 2), np.float32))


def fuzz_calls(seed: int, n: int) -> Iterator[Call]:
    """Makes n calls and yields what came of each; the same seed makes the same calls, and every door is called in turn.

    Args:
        seed: of the choice of values, and of the order of the doors.
        n: how many.
    """
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        known = doors(bench)
        queues: dict[str, list[Value]] = {name: [] for name in known}
        try:
            for _ in range(-(-n // len(known))):
                for name in rng.permutation(list(known))[:n]:
                    if not queues[name]:  # all values come before one comes again
                        queues[name] = [known[name][1][i] for i in rng.permutation(len(known[name][1]))]
                    yield _made(name, known[name][0], queues[name].pop())
                    n -= 1
        finally:
            bench.close()


def _made(door: str, deed: Callable[[Any], Any], value: Value) -> Call:
    called, argument, expected = value
    began = time.process_time()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            deed(argument)
            outcome, said = "accepted", "; ".join(str(w.message).partition("\n")[0][:100] for w in warned)
        except EmuEmbodiedError as error:
            outcome, said = "typed", str(error)
        except Exception as error:
            outcome, said = "untyped", f"{type(error).__name__}: {str(error).partition(chr(10))[0][:100]}"
    return Call(door, called, expected, outcome, said, time.process_time() - began)
