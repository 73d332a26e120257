"""The folder of a training run, which knows what it is of: no other run continues it, and a finished one is not trained again.

`run.json` has all that determines the result (data, recipe, source, code), and beside it the command, its whole configuration
and the versions that began and last continued it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import emu_embodied
from emu_embodied.checkpoint import versions
from emu_embodied.data.frame_cache import FrameCache, content_digest
from emu_embodied.errors import CheckpointError
from emu_embodied.storage.atomic import write_json
from emu_embodied.storage.files import MANIFEST, sums
from emu_embodied.storage.regular import read_json
from emu_embodied.storage.runs import locked, refuse_other

RUN = "run.json"
INTERVALS = ("evaluate_every", "save_every", "log_every")  # what may change between two calls
CHOOSING = ("data", "frames", "camera", "action_keys", "fps", "skipped_actions", "action_range", "quality")  # of data
# Of the package: where a change of code changes weights; "" has what lies in none.
ROOMS = ("", "training", "training/stages", "model", "tokenizers", "inference", "inference/decoding", "emu35")


@dataclass(frozen=True)
class TrainingRun:
    """Where a training is at work, and what is shown and noted of it.

    Attributes:
        folder: of the run; stages keep their state in it, and go on from where they stopped.
        device: where to train; bf16 on CUDA, fp32 on the CPU.
        report: prints a line of progress.
        evaluate_tokenizer, evaluate_model: figures on held-out episodes, shown as training goes: of the frame tokenizer, and
            of (frame tokenizer, text tokenizer, token model).
        notes: the command and its configuration, to be kept in `run.json`.
    """

    folder: Path
    device: torch.device = torch.device("cpu")
    report: Callable[[str], None] = print
    evaluate_tokenizer: Callable[[Any], dict[str, float]] | None = None
    evaluate_model: Callable[[Any, Any, Any], dict[str, float]] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def judge(self, tokenizer: Any, text: Any) -> Callable[[Any], dict[str, float]] | None:
        """What shows the figures of a token model with these tokenizers."""
        evaluate = self.evaluate_model
        return evaluate and (lambda model: evaluate(tokenizer, text, model))


def facts_of(stage: str, cache: FrameCache, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that determines what a stage makes of a dataset.

    Args:
        stage: what is trained.
        cache: the whole dataset, as it was read.
        settings: sizes, schedules and fingerprints, as JSON has them.
    """
    data = {"episodes": cache.episodes, "frames": len(cache), "digest": content_digest(cache)}
    code = {"version": emu_embodied.__version__, "sources": _sources()}
    return {"stage": stage, "data": data, **_without_intervals(settings), "code": code}


def train_once(run: TrainingRun, result: str, facts: Mapping[str, Any], work: Callable[[], None]) -> Path:
    """Does the work of a run, if it is not done, while no other process is at work in its folder.

    Args:
        run: where.
        result: the folder within the run's that the work writes last.
        facts: of `facts_of`.
        work: trains from where it stopped, and writes `run.folder / result`.

    Returns:
        `run.folder / result`.

    Raises:
        CheckpointError: the folder holds a run of other facts, which are named, or states of unknown ones.
        ConfigError: another training is at work in it.
    """
    folder = run.folder
    with locked(folder, "training"):
        document = _open(folder, result, facts, run.notes)
        if document.get("finished") and document["finished"] == _sums(folder / result):
            run.report(f"{folder / result} is finished already: nothing is left to train")
            return folder / result
        try:
            work()
        except BaseException:
            if not _begun(folder, result):  # nothing is there yet that another run could be mixed with
                (folder / RUN).unlink(missing_ok=True)
            raise
        write_json(folder / RUN, document | {"finished": _sums(folder / result)})
    return folder / result


def _open(folder: Path, result: str, facts: Mapping[str, Any], notes: Mapping[str, Any]) -> dict[str, Any]:
    """The run's document, begun or continued."""
    now = {**notes, "versions": versions(), "at": time.strftime("%Y-%m-%d %H:%M:%S")}
    if (folder / RUN).is_file():
        run = read_json(folder / RUN)
        if not isinstance(run, dict) or not isinstance(run.get("determined_by"), dict):
            raise CheckpointError(str(folder / RUN), "no run's document", "restore it, or use another out=")
        _refuse_other(folder, facts, run, notes)
        run["continued"] = now
    elif _begun(folder, result):
        remedy = (
            "an older version began it and did not note what it is of: use another out=, or finish it with that version"
        )
        raise CheckpointError(str(folder), f"a training without its {RUN}", remedy)
    else:
        run = {"determined_by": facts, "begun": now}
    write_json(folder / RUN, run)
    return run


def _refuse_other(folder: Path, facts: Mapping[str, Any], run: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Refuses other facts than the run's. Other data are named by the keys that chose them, where those differ: a digest
    does not say what to give."""
    now, then, asked, begun = dict(facts), dict(run["determined_by"]), _choice(notes), _choice(run.get("begun"))
    if now["data"] != then.get("data") and asked and begun and asked != begun:
        now, then = now | asked, then | begun
    refuse_other(now, then, folder, "use another out=", CheckpointError)


def _choice(notes: Any) -> dict[str, Any]:
    """What a command asked for that chooses its data; empty where nothing was noted."""
    config = notes.get("config") if isinstance(notes, Mapping) else None
    return {name: config.get(name) for name in CHOOSING} if isinstance(config, Mapping) else {}


def _begun(folder: Path, result: str) -> bool:
    """Whether a state or a result of any training is in the folder."""
    return (folder / result).exists() or any(folder.glob("*/progress.json"))


def _sums(path: Path) -> dict[str, str] | None:
    """The sums of a finished result's weights; None where there is none."""
    if not (path / MANIFEST).is_file():
        return None
    return {name: found for name, found in sums(path).items() if name.endswith(".safetensors")}


def _without_intervals(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _without_intervals(value) for name, value in values.items() if name not in INTERVALS}
    return values


def _sources() -> str:
    """A digest of the sources that trainings run on."""
    digest, root = hashlib.sha256(), Path(emu_embodied.__file__).parent
    for path in sorted(path for room in ROOMS for path in (root / room).glob("*.py")):
        digest.update(f"{path.relative_to(root)} ".encode() + path.read_bytes())
    return digest.hexdigest()
