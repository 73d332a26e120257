"""A planned run as a Rerun recording (https://rerun.io): frames, curves and candidates on one timeline. Knows no model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from emu_embodied.errors import CheckpointError, ConfigError
from emu_embodied.rollouts.agents.trace import PlanTrace

from .episode_record import Record
from .html_report import Run


def write_rerun(run: Run, out: Path) -> None:
    """Writes the recording, whole or not at all; `rerun FILE` shows it.

    Args:
        run: what to show.
        out: the file, ending in .rrd.

    Raises:
        ConfigError: rerun-sdk is not installed, or the file's name ends otherwise.
        CheckpointError: a disk that does not take it.
    """
    try:
        import rerun as rr
    except ImportError as error:
        raise ConfigError("rerun", str(out), f'{error}; pip install "emu-embodied[rerun]"') from None
    if out.suffix != ".rrd":
        raise ConfigError("rerun", str(out), "give a file that ends in .rrd")
    partial = out.with_name(f".{out.stem}.partial.rrd")
    try:
        partial.write_bytes(b"")  # rerun itself only warns of a disk that it cannot write to
        with rr.RecordingStream("emu-embodied", recording_id=run.folder.resolve().name) as stream:
            stream.save(str(partial))
            for record in run.records:
                _log(rr, record, f"seed {record.facts['seed']}")
            stream.flush()
        os.replace(partial, out)
    except OSError as error:
        raise CheckpointError(str(out), error.strerror, "choose a place that can be written") from None
    finally:
        partial.unlink(missing_ok=True)


def _log(rr, record: Record, name: str) -> None:
    """One episode under its own path, a step of it at a time."""
    plans = {plan.at: plan for plan in record.trace.plans} if record.trace else {}
    rr.log(f"{name}/instruction", rr.TextDocument(str(record.facts["instruction"])), static=True)
    for t, real in enumerate(record.real):
        rr.set_time("step", sequence=t)
        rr.log(f"{name}/real", rr.Image(real))
        if len(record.imagined):
            difference = np.abs(real.astype(np.int16) - record.imagined[t]).astype(np.uint8)
            rr.log(f"{name}/imagined", rr.Image(record.imagined[t]))
            rr.log(f"{name}/difference", rr.Image(difference))
        if record.distances[t] is not None:
            rr.log(f"{name}/distance, cm", rr.Scalars(record.distances[t]))
        if record.trace and t in plans:
            _log_plan(rr, record.trace, plans[t], real.shape[0] / 2, f"{name}/real/plan")


def _log_plan(rr, trace: PlanTrace, plan, half: float, name: str) -> None:
    """Candidates as thin grey lines over the real frame, the chosen path in each object's colour."""

    def pixels(path_TO2: np.ndarray, i: int) -> np.ndarray:
        return half * (1 + path_TO2[:, i] / np.asarray(trace.scale))

    shown = [i for i in range(len(trace.objects)) if plan.present[i]]
    others = [pixels(path, i) for path in plan.paths for i in shown]
    rr.log(f"{name}/candidates", rr.LineStrips2D(others, colors=(128, 128, 128), radii=0.15))
    colours = [trace.colours.get(trace.objects[i], (0, 0, 0)) for i in shown]
    rr.log(f"{name}/chosen", rr.LineStrips2D([pixels(plan.chosen, i) for i in shown], colors=colours, radii=0.4))
