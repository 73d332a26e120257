"""Folders as the Hub's snapshot cache keeps them."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path


def snapshot(folder: Path, cache: Path) -> Path:
    """A folder as the Hub's cache keeps it: links, two levels up, to files that are named after what is in them."""
    root = cache / "snapshots" / "0123abc"
    for path in [path for path in sorted(folder.rglob("*")) if path.is_file()]:
        blob, link = cache / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest(), root / path.relative_to(folder)
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return root
