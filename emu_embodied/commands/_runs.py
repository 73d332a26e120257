"""Where a verb writes: a new folder named by the time, or one to go on with. Knows no verb."""

from __future__ import annotations

import time
from pathlib import Path

from emu_embodied.errors import ConfigError


def run_folder(out: str, resume: str | None, journal: str) -> Path:
    """The folder to write to.

    Args:
        out: where a new one is made.
        resume: the one to go on with; None for a new one.
        journal: a pattern of the file that tells a folder to go on with.

    Raises:
        ConfigError: there is nothing to go on with, or the folder cannot be made.
    """
    if resume is not None:
        folder = Path(str(resume))
        if not any(folder.glob(journal)):
            raise ConfigError("resume", str(folder), f"it has no {journal}; give a folder that this command made")
        return folder
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for n in range(1, 1000):
        folder = Path(out) / (stamp if n == 1 else f"{stamp}-{n}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not Path(out).is_dir():
                raise ConfigError("out", out, "it is a file; choose a folder") from None
        except OSError as error:
            raise ConfigError("out", out, f"{error.strerror}; choose a folder that can be written") from None
    raise ConfigError("out", out, "a thousand runs began in this second; choose another folder")
