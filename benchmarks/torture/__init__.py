"""The package under faults: seeded batteries of kills, damage, hostile files and odd calls. `make torture`, see `__main__`.

A benchmark like the others, with a JSON of its own; its hostile inputs and tiny models are those of the tests, in `tests/`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))  # as pytest's `pythonpath`

from . import disks, engines, hostile_files, kills, network, odd_calls, signals, steadiness, viewer, workers  # noqa: E402, F401  register
from .battery import BATTERIES  # noqa: E402, F401
