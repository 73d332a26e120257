"""What a LeRobotDataset says of itself: version, sizes, columns and their elements, each checked. Reads no rows."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emu_embodied.errors import CheckpointError, DatasetError
from emu_embodied.storage.regular import read_json
from emu_embodied.types import ACTION, OBS_ENVIRONMENT_STATE, OBS_STATE, REWARD, SUCCESS
from emu_embodied.validation import number, whole_number

from .images import MOST_PIXELS

INFO = Path("meta", "info.json")
VECTORS = (OBS_STATE, ACTION, OBS_ENVIRONMENT_STATE)
MOST_FRAMES, MOST_NUMBERS = 10**9, 2**16  # of a dataset, of a vector
LARGEST, LARGEST_ACTION = (
    1e18,
    1e37,
)  # of recorded numbers, whose squares are float32 too; of actions, whose differences are
CONVERTER = "python -m lerobot.scripts.convert_dataset_v21_to_v30"  # of LeRobot 0.6.1
_PLAIN = re.compile(r"(?!.*\.\.)[\w. -]{1,200}")


def read_info(root: Path) -> dict[str, Any]:
    """A dataset's `meta/info.json`.

    Raises:
        DatasetError: there is no dataset, one of another version, or one that does not say what its sizes and columns are.
    """
    if not os.path.isdir(root):
        raise DatasetError(str(root), "no such folder", "record one with `emu-embodied collect`, or check the path")
    where = root / INFO
    try:
        info = read_json(where, root)
    except CheckpointError as error:
        raise DatasetError(error.field, error.value, f"{error.remedy}; expected a LeRobotDataset v3") from error
    if not isinstance(info, dict):
        raise DatasetError(str(where), info, "expected a JSON object; restore the file")
    _check_version(root, info.get("codebase_version"))
    frames = whole_number(f"{where}: total_frames", info.get("total_frames"), 1, MOST_FRAMES, DatasetError)
    whole_number(f"{where}: total_episodes", info.get("total_episodes"), 1, frames, DatasetError)
    number(f"{where}: fps", info.get("fps"), 1e-3, 1e5, DatasetError)
    features = info.get("features")
    if not isinstance(features, dict):
        raise DatasetError(f"{where}: features", features, "expected the columns by name; restore the file")
    for key, feature in features.items():
        _check_feature(f"{where}: features", key, feature)
    _check_columns(where, features)
    return info


def _check_version(root: Path, version: object) -> None:
    if isinstance(version, str) and version.startswith("v3."):
        return
    field = f"{root / INFO}: codebase_version"
    if version == "v2.1":
        remedy = f"v3 is read: convert it with LeRobot's `{CONVERTER} --repo-id=NAME --root={root} --push-to-hub=false`"
        raise DatasetError(field, version, remedy)
    if isinstance(version, str) and version.startswith(("v1.", "v2.")):
        remedy = "v3 is read: bring it to v2.1 with the converters of an older LeRobot, and from there to v3 with"
        raise DatasetError(field, version, f"{remedy} `{CONVERTER}`")
    raise DatasetError(field, version, "expected a LeRobotDataset v3 (v3.0)")


def _check_feature(where: str, key: str, feature: object) -> None:
    """Refuses a column's description that is none."""
    if not _PLAIN.fullmatch(key):  # it becomes a folder's name
        raise DatasetError(where, key, "names of columns are letters, digits, `_`, `-`, `.` and spaces")
    if not isinstance(feature, dict):
        raise DatasetError(f"{where}.{key}", feature, "expected dtype, shape and names; restore the file")
    dtype, shape, names = (feature.get(name) for name in ("dtype", "shape", "names"))
    if not isinstance(dtype, str):
        raise DatasetError(f"{where}.{key}.dtype", dtype, "expected a text such as float32 or image")
    sizes = [n for n in shape if type(n) is int and n >= 1] if isinstance(shape, list) else None
    if sizes is None or sizes != shape or len(sizes) > 5 or math.prod(sizes) > 4 * MOST_PIXELS:
        rule = f"expected at most 5 whole numbers of at least 1, and no more than {4 * MOST_PIXELS} values"
        raise DatasetError(f"{where}.{key}.shape", shape, rule)
    if not isinstance(names, list | dict | None):
        raise DatasetError(f"{where}.{key}.names", names, "expected a list, or null")


def _check_columns(where: Path, features: Mapping[str, Any]) -> None:
    """Refuses columns that are read and cannot be what their names say."""
    if ACTION not in features:
        near = [f"did you mean {name}? " for name in difflib.get_close_matches(ACTION, features, 1)]
        told = f"there are {', '.join(features) or 'none'}; call the actions `{ACTION}`, here and in the data files"
        raise DatasetError(f"{where}: features", f"no column `{ACTION}`", "".join(near) + told)
    for key in (*VECTORS, REWARD, SUCCESS):
        if key not in features:
            continue
        dtype, most = features[key]["dtype"], MOST_NUMBERS if key in VECTORS else 1
        if not re.fullmatch(r"bool|u?int(8|16|32|64)|float(16|32|64)", dtype):
            raise DatasetError(f"{where}: features.{key}.dtype", dtype, "expected numbers, such as float32")
        if math.prod(features[key]["shape"]) > most:
            raise DatasetError(f"{where}: features.{key}.shape", features[key]["shape"], f"expected {most} at most")


def cameras_of(features: Mapping[str, Any]) -> list[str]:
    """The columns that are colour pictures or videos; depth and grey ones are none."""
    return [key for key, value in features.items() if picture_shape(value) is not None]


def picture_shape(feature: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """(height, width, 3) of a colour camera's pictures, which are stored so whichever end the channels are described at.

    None: no colour camera.
    """
    shape, names = tuple(feature["shape"]), feature.get("names")
    depth = isinstance(feature.get("info"), dict) and feature["info"].get("is_depth_map") is True
    if feature["dtype"] not in ("image", "video") or len(shape) != 3 or depth:
        return None
    first = isinstance(names, list) and len(names) == 3 and names[0] in ("channel", "channels")
    if shape[0] == 3 and (first or shape[2] != 3):
        shape = (*shape[1:], 3)
    return shape if shape[2] == 3 else None


def element_names(feature: Mapping[str, Any] | None) -> list[str]:
    """A name for each of a vector's elements, all different; their numbers where the dataset has none.

    LeRobot's datasets give a list, lists by group ({"motors": [...]}), or each name's place ({"pan": 0}); some nest a list
    once more. A name that is there several times is numbered: x, y, x, y are x#1, y#1, x#2, y#2.
    """
    if feature is None:
        return []
    shape, names = feature["shape"], feature.get("names")
    size, numbered = math.prod(shape), [str(i) for i in range(math.prod(shape))]
    if isinstance(names, dict) and names and all(type(place) is int for place in names.values()):
        names = sorted(names, key=names.__getitem__) if sorted(names.values()) == list(range(size)) else None
    flat = _flatten(names)
    axes = len(shape) > 1 and isinstance(names, list) and len(names) == len(shape) == len(flat)
    if len(flat) != size or axes or not all(isinstance(name, str | int) and len(str(name)) <= 200 for name in flat):
        return numbered
    flat = [str(name) for name in flat]
    count, seen = Counter(flat), Counter()
    for i, name in enumerate(flat):
        seen[name] += 1
        flat[i] = f"{name}#{seen[name]}" if count[name] > 1 else name
    return flat if len(set(flat)) == size else numbered


def _flatten(names: Any) -> list[Any]:
    """The leaves of lists and of dicts' values, in order; none of what is nested deeper than three times."""
    leaves = [names]
    for _ in range(3):
        parts = [leaf.values() if isinstance(leaf, dict) else leaf for leaf in leaves]
        leaves = [
            leaf for part in parts for leaf in (part if not isinstance(part, str | int | float | None) else [part])
        ]
    return leaves


def choose_elements(field: str, names: list[str], wanted: tuple[str, ...]) -> list[int]:
    """Where the wanted elements are; all of them where none is wanted.

    Raises:
        DatasetError: a name that is not there, or there several times.
    """
    for key in wanted:
        if key in names:
            continue
        if several := [name for name in names if name.rpartition("#")[0] == key]:
            raise DatasetError(field, key, f"{len(several)} elements are called so: write {' or '.join(several)}")
        raise DatasetError(field, key, f"choose among {names}")
    return [names.index(key) for key in wanted] if wanted else list(range(len(names)))


def read_statistics(root: Path, key: str) -> dict[str, np.ndarray] | None:
    """A vector's statistics in `meta/stats.json`, flat float64 by name, those left out that are no finite numbers.

    None where there are none to be read.
    """
    try:
        found = read_json(root / "meta" / "stats.json", root)[key].items()
    except (CheckpointError, KeyError, TypeError, AttributeError):
        return None
    return {name: values for name, told in found if (values := _numbers(told)) is not None}


def _numbers(told: object) -> np.ndarray | None:
    try:
        values = np.asarray(told if isinstance(told, list) else [told], np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        return None
    return values if np.isfinite(values).all() and (np.abs(values) <= LARGEST_ACTION).all() else None
