"""Built engines on disk, each under the hash of all it follows from; knows neither how they are built nor how they run.

An engine file can run code, so it is loaded from here alone, and only when its SHA-256 is that of the manifest and its key
the one asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from emu_embodied.errors import CheckpointError, EngineError
from emu_embodied.storage.files import load_file, save_folder
from emu_embodied.storage.strict_json import parse_object

FOLDER = "EMU_EMBODIED_CACHE"  # environment variable
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineKey:
    """What an engine follows from; a change of any of them is another engine.

    Attributes:
        weights, config, code: hashes or texts of the model and of the code that computes with it.
        step: of `static_step.STEPS`.
        flavour: what runs it: onnx, tensorrt or tensorrt_rtx.
        version: of the flavour's package.
        compute_capability, driver: of the GPU; "none" where it is built without one.
        precision: fp32, fp16 or bf16.
        profiles: the largest batch of each optimisation profile; empty where any batch fits.
    """

    weights: str
    config: str
    code: str
    step: str
    flavour: str
    version: str
    compute_capability: str = "none"
    driver: str = "none"
    precision: str = "fp32"
    profiles: tuple[int, ...] = ()

    @property
    def document(self) -> dict:
        return json.loads(json.dumps(asdict(self)))  # as it reads back: lists for tuples

    @property
    def digest(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(json.dumps(self.document, sort_keys=True).encode()).hexdigest()


class EngineCache:
    """A folder with one sub-folder an engine, written whole or not at all.

    Args:
        folder: by default `$EMU_EMBODIED_CACHE`, else `~/.cache/emu-embodied/engines`; only its owner should be able to write
            there.

    Raises:
        EngineError: a place in the home of somebody who has none.
    """

    def __init__(self, folder: str | os.PathLike | None = None) -> None:
        place = folder or os.environ.get(FOLDER) or "~/.cache/emu-embodied/engines"
        try:
            self.folder = Path(place).expanduser()
        except RuntimeError as error:  # who has no home
            raise EngineError(FOLDER, str(place), f"{error} Set {FOLDER} to a folder of your own") from None

    def path(self, key: EngineKey) -> Path:
        """The sub-folder of an engine, whether it is there or not."""
        return self.folder / key.digest

    def fetch(
        self, key: EngineKey, build: Callable[[], bytes], use: Callable[[bytes], None] = lambda engine: None
    ) -> bytes:
        """An engine's bytes, from the cache, or built and kept there.

        An entry that is damaged or of no use is thrown away with a warning and built again; what the disk does not take is used
        all the same.

        Args:
            key: what it follows from.
            build: makes it.
            use: takes it; an EngineError says that these bytes are no such engine.

        Raises:
            EngineError: what was built just now is of no use either.
        """
        entry = self.path(key)
        if os.path.lexists(entry):
            try:
                data = self._load(entry, key)
                use(data)
                return data
            except (CheckpointError, EngineError) as error:
                logger.warning("building the %s engine of %s again: %s", key.flavour, key.step, error)
                _discard(entry)
        data = build()
        use(data)
        try:
            self._make_folder()
            save_folder(entry, {}, {"key": key.document, _name(key): data})
        except (CheckpointError, OSError) as error:
            logger.warning("the %s engine of %s is not kept for the next time: %s", key.flavour, key.step, error)
        return data

    def _load(self, entry: Path, key: EngineKey) -> bytes:
        if entry.is_symlink():
            raise CheckpointError(str(entry), "a link", "engines are read from the cache's own folder alone")
        found = parse_object(str(entry / "key.json"), load_file(entry, "key.json"))
        if found != key.document:
            raise CheckpointError(str(entry), "the key of another engine", "an entry stays under its own name")
        return load_file(entry, _name(key))

    def _make_folder(self) -> None:
        """The cache's own folder is for its owner alone."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)


def _name(key: EngineKey) -> str:
    return f"{key.step}.{key.flavour}"


def _discard(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
