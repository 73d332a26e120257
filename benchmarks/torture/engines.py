"""A cache of built engines that is damaged or of another model: built anew, or eager with one warning."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from emu_embodied.loading import load
from emu_embodied.storage.files import MANIFEST, save_folder

from .battery import Job, NotRun, Trial, battery
from .hostile_files import flip
from .kills import tiny_checkpoint
from .processes import in_child


@battery(
    "engines",
    fault="engine cache mismatched or corrupt",
    expected="rebuild or plain eager with one warning, and the name of the backend tells",
    bar="100%",
    n=30,
)
def engines(job: Job) -> Iterator[Trial]:
    """Spoils entries of a cache of ONNX engines, sums as they were or made anew, and loads with `engine=onnx`."""
    try:
        importlib.import_module("onnxruntime")
    except ImportError as error:
        raise NotRun(f"ONNX Runtime is not installed: {error}") from None
    checkpoint, cache = tiny_checkpoint(job.folder / "tiny"), job.folder / "engines"
    built = in_child(lambda: _load_onnx(checkpoint, cache), 900)
    if built.kind != "done" or built.value["engine"] != "onnx":
        raise NotRun(f"no ONNX engine could be built: {built}")
    for index in range(job.n):
        copy = Path(shutil.copytree(cache, job.folder / f"engines-{index}"))
        what = _spoil(copy, job.chance)
        ending = in_child(lambda copy=copy: _load_onnx(checkpoint, copy), 600)
        held = ending.kind == "done" and ending.value["engine"] in ("onnx", "eager") and ending.value["same"]
        held = held and ending.value["warnings"] == 1
        yield Trial(what, held, ending.seconds, "" if held else str(ending))
        shutil.rmtree(copy)


def _spoil(cache: Path, chance: random.Random) -> str:
    """Spoils one entry of a cache; returns how."""
    entries = sorted(path for path in cache.iterdir() if (path / MANIFEST).is_file())
    entry, other = chance.sample(entries, 2)
    (engine,) = (path for path in entry.iterdir() if path.name not in (MANIFEST, "key.json"))
    (foreign,) = (path for path in other.iterdir() if path.name not in (MANIFEST, "key.json"))
    key = json.loads((entry / "key.json").read_text())
    kind = chance.choice(("flip", "truncate", "garbage", "other step", "empty", "other key", "no key", "file", "wrong name"))
    data = engine.read_bytes()
    if kind == "flip":
        engine.write_bytes(flip(bytearray(data), chance))
    elif kind == "truncate":
        engine.write_bytes(data[: chance.randrange(len(data))])
    elif kind in ("garbage", "other step", "empty"):  # under right sums
        content = {"garbage": chance.randbytes(1000), "other step": foreign.read_bytes(), "empty": b""}[kind]
        save_folder(entry, {}, {"key": key, engine.name: content})
    elif kind == "other key":
        save_folder(entry, {}, {"key": {**key, "weights": "0" * 64}, engine.name: data})
    elif kind == "no key":
        save_folder(entry, {}, {"key": {}, engine.name: data})
    elif kind == "wrong name":
        save_folder(entry, {}, {"key": key, "zz.onnx": data})
    else:
        shutil.rmtree(entry)
        entry.write_bytes(b"x")
    return f"{kind} in the entry of {key.get('step')}"


def _load_onnx(checkpoint: Path, cache: Path) -> dict:
    """Loads with ONNX and dreams two frames: what runs, how often it was warned, and whether they are eager's."""
    import logging

    from emu_embodied.types import Observation

    warnings: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    logging.getLogger("emu_embodied").addHandler(Listener(logging.WARNING))
    os.environ["EMU_EMBODIED_CACHE"] = str(cache)
    model, eager = load(checkpoint, engine="onnx"), load(checkpoint)
    seen = [Observation(np.zeros((64, 64, 3), np.uint8), np.zeros(2, np.float32), "push the red cube to the left")]
    actions = np.full((1, 1, 2, 2), 0.3, np.float32)
    one, other = (world.rollout(world.encode(seen), actions).codes_BSTN for world in (model, eager))
    same = bool((one == other).all())
    return {"engine": model.engine.name, "warnings": len(warnings), "same": same, "first": warnings[:3]}
