"""A page to look at a planned run: what happened, what was imagined, and what was chosen among. Knows files, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emu_embodied.errors import DatasetError
from emu_embodied.rollouts.agents.trace import PlanTrace
from emu_embodied.storage.atomic import write_bytes
from emu_embodied.storage.files import MANIFEST
from emu_embodied.storage.regular import check_tree, read_json

from .episode_record import Record, load_records
from .page_builder import Facts, build_page, film, picture, psnr

PLAYBACK_FPS = 4


@dataclass(frozen=True)
class Run:
    """A folder that `emu-embodied plan` wrote.

    Attributes:
        folder: its path.
        result: `result.json`.
        records: the recorded episodes, in the order of the seeds.
    """

    folder: Path
    result: dict[str, Any]
    records: tuple[Record, ...]


def read_run(folder: Path) -> Run:
    """Reads a planned run.

    Raises:
        DatasetError: no such folder, one without `result.json` or recorded episodes, or files that say something else.
        CheckpointError: a damaged file.
    """
    if not (folder / "result.json").is_file():
        rule = "it has no result.json; give a folder that `emu-embodied plan` finished"
        raise DatasetError("run", str(folder), rule if folder.is_dir() else "there is no such folder")
    check_tree(folder, DatasetError)  # the page is written there
    result = read_json(folder / "result.json")
    if not isinstance(result, dict) or not isinstance(result.get("episodes"), list) or "wilson_95" not in result:
        raise DatasetError(str(folder / "result.json"), type(result).__name__, "it is no planning result; plan anew")
    try:
        places = [folder / f"episode-{int(row['seed'])}" for row in result["episodes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(str(folder / "result.json"), repr(error), "it is no planning result; plan anew") from None
    if len(set(places)) != len(places):
        raise DatasetError(str(folder / "result.json"), f"{len(places)} episodes", "some have the same seed; plan anew")
    records = load_records(place for place in places if (place / MANIFEST).is_file())
    if not records:
        raise DatasetError("run", str(folder), "it has no recorded episode; plan with videos=1 or more")
    return Run(folder, result, records)


def write_report(run: Run, out: Path, command: str = "") -> None:
    """Writes the page: all of it, or the old one stays.

    Args:
        run: what to show.
        out: the HTML file.
        command: what makes the run again; empty where that is not known.

    Raises:
        DatasetError: the run's numbers are not those of a planned run.
        CheckpointError: a disk that does not take it.
    """
    try:
        episodes, headline = [_episode(record) for record in run.records], f"success {_rate(run.result)}"
        data = {"mode": "report", "fps": PLAYBACK_FPS, "headline": headline, "episodes": episodes}
        page = build_page(f"Rollouts: {run.folder.resolve().name}", _facts(run, command), data)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        rule = "its result.json and records are not those of a planned run; plan anew"
        raise DatasetError(str(run.folder), f"{type(error).__name__}: {error}", rule) from None
    write_bytes(out, page.encode("utf-8", "backslashreplace"))  # lone surrogates have no UTF-8


def _episode(record: Record) -> dict[str, Any]:
    facts, steps = record.facts, len(record.actions)
    left = "" if facts["end_cm"] is None else f", {facts['end_cm']:.1f} cm left"
    end = f"done in {steps} steps" if facts["success"] else f"not done{left}"
    return {
        "name": f"seed {facts['seed']}",
        "instruction": str(facts["instruction"]),
        "success": bool(facts["success"]),
        "note": end,
        "real": film(record.real),
        "imagined": film(record.imagined),
        "actions": record.actions.round(3).tolist(),
        "plots": _plots(record),
        "fans": _fans(record.trace) if record.trace else None,
        "subgoals": _subgoals(record),
    }


def _subgoals(record: Record) -> list[dict[str, Any]]:
    """Each subgoal's picture and what is written below it, as far as that is known."""
    pursued = [f"from t={one['at']}: {one['caption']}" for one in record.facts.get("subgoals", [])]
    captions = pursued if len(pursued) == len(record.subgoals) else [f"subgoal {i + 1}" for i in range(len(record.subgoals))]
    return [{"image": picture(frame), "caption": text} for frame, text in zip(record.subgoals, captions, strict=True)]


def _plots(record: Record) -> list[dict[str, Any]]:
    """What goes under the frames: each line has a value, or null, for every frame."""
    frames, plots = len(record.real), []
    plans = record.trace.plans if record.trace else ()
    lines = [{"name": "real", "values": _rounded(record.distances)}]
    dreamt = _by_frame(frames, [(plan.at + 1, plan.distances) for plan in plans])
    plots.append(_plot("distance left", "cm", lines + _line("imagined", dreamt)))
    if len(record.imagined):
        plots.append(_plot("real against imagined, PSNR", "dB", _line("", psnr(record.real, record.imagined))))
    costs = [cost for cost in record.facts["plan_costs"] if cost is not None]
    ats = [plan.at for plan in plans]
    if costs and len(costs) == len(ats):
        ends = [*ats[1:], frames]
        held = [(at, np.full(end - at, cost)) for at, end, cost in zip(ats, ends, costs, strict=True)]
        plots.append(_plot("cost of the plan", "", _line("", _by_frame(frames, held))))
    entropy = _by_frame(frames, [(plan.at + 1, plan.entropy) for plan in plans])
    plots.append(_plot("entropy of the imagined tokens", "nats", _line("", entropy)))
    return [plot for plot in plots if plot["lines"]]


def _plot(title: str, unit: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    return {"title": title, "unit": unit, "lines": lines}


def _line(name: str, values: Sequence[float | None]) -> list[dict[str, Any]]:
    """A line, or none where it has no value."""
    known = any(value is not None for value in values)
    return [{"name": name, "values": _rounded(values)}] if known else []


def _by_frame(frames: int, pieces: Sequence[tuple[int, np.ndarray]]) -> list[float | None]:
    """Values at each frame, None where there are none, from pieces that begin at a frame."""
    values: list[float | None] = [None] * frames
    for first, piece in pieces:
        for t, value in enumerate(piece, first):
            if t < frames and np.isfinite(value):
                values[t] = float(value)
    return values


def _fans(trace: PlanTrace) -> dict[str, Any]:
    """Each plan's candidates, as far as their objects are in view: paths as [x, y, x, y, ...], an object after the other."""
    seen = [i for i in range(len(trace.objects)) if any(plan.present[i] for plan in trace.plans)]
    return {
        "scale": list(trace.scale),
        "objects": [
            {"name": trace.objects[i], "colour": list(trace.colours.get(trace.objects[i], ()))} for i in seen
        ],
        "plans": [
            {
                "at": plan.at,
                "costs": plan.costs.astype(float).round(3).tolist(),
                "paths": [_path(path[:, seen]) for path in plan.paths],
                "chosen": _path(plan.chosen[:, seen]),
            }
            for plan in trace.plans
        ],
    }


def _path(positions_TO2: np.ndarray) -> list[list[float]]:
    return positions_TO2.swapaxes(0, 1).reshape(positions_TO2.shape[1], 2 * len(positions_TO2)).astype(float).round(2).tolist()


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(float(value), 3) for value in values]


# What stands below


def _facts(run: Run, command: str) -> dict[str, Facts]:
    result = run.result
    numbers = [("success", _rate(result))]
    numbers += [(f"of kind {kind}", _rate(rate)) for kind, rate in result.get("by_kind", {}).items() if kind]
    for name, key, unit in (
        ("steps of a success, median", "steps_median", ""),
        ("a plan takes, median", "seconds_per_plan_median", " s"),
        ("frames imagined a plan", "frames_per_plan", ""),
        ("frames imagined a second", "predicted_frames_per_second", ""),
    ):
        if result.get(key) is not None:
            numbers.append((name, f"{result[key]:.3g}{unit}" if result[key] < 100 else f"{result[key]:.0f}{unit}"))
    numbers.append(("episodes shown here", f"{len(run.records)} of {result['n']}"))
    settings = _flat(result.get("settings", {}))
    return {
        "Numbers": numbers,
        "To make it again": [("command", command)] if command else [("command", "not kept by this run")],
        "Settings": [(name, str(value)) for name, value in settings.items() if value not in ("", None)],
        "Versions": [(name, str(version)) for name, version in result.get("versions", {}).items()],
    }


def _rate(rate: Mapping[str, Any]) -> str:
    low, high = rate["wilson_95"]
    return f"{rate['successes']} of {rate['n']}, {rate['rate']:.0%} (Wilson's 95% interval {low:.0%} to {high:.0%})"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
