"""The modules of this package, found in the source tree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTER = ("envs", "policies", "rollouts", "configs")  # folders beside emu_embodied/ that are its sub-packages


def modules() -> Iterator[tuple[Path, str, str]]:
    """Every module's (path, dotted name inside emu_embodied, full name of its package)."""
    for top in ("emu_embodied", *OUTER):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT / "emu_embodied" if top == "emu_embodied" else ROOT).with_suffix("").parts
            package = ".".join(("emu_embodied", *parts[:-1]))
            yield path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts), package
