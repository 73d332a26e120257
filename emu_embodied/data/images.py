"""Encoded pictures and videos into rows of an array, letterboxed where sizes differ. Knows no dataset."""

from __future__ import annotations

import io
import math
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from emu_embodied.errors import CheckpointError, DatasetError, InputError
from emu_embodied.framing import fitted, letterbox
from emu_embodied.storage.regular import read_file

THREADS = 2
MOST_PIXELS = 2**25  # of a picture
MOST_CHUNKS, MOST_SEGMENTS, MOST_SCANS = 2**15, 512, 32  # of a PNG, and of a JPEG, each scan of which goes over all its pixels
MOST_EXIF = 4096  # bytes that are looked at; which way up a photo is stands at their beginning
MOST_SECONDS = 1e7  # of a video
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # of a JPEG; the others have no length, or are escaped bytes
VIDEO_MARGIN, VIDEO_LEAST = 4, 2**22  # a video's frames may have so many times the announced pixels, and always so many


def tiles(cameras: int, height: int, width: int) -> list[tuple[slice, slice]]:
    """Where in a frame (height, width) each camera's picture goes: rows of equal rectangles, filled from the left."""
    columns = math.ceil(math.sqrt(cameras))
    h, w = height // math.ceil(cameras / columns), width // columns
    return [
        (slice(i // columns * h, (i // columns + 1) * h), slice(i % columns * w, (i % columns + 1) * w))
        for i in range(cameras)
    ]


def picture_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) that the header of a PNG, JPEG or WebP file tells, before anything is decoded; None: none of them."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        return _webp_size(data)
    for marker, at in _segments(data) if data[:2] == b"\xff\xd8" else ():
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 9 <= len(data):  # the frame's header
            return struct.unpack(">HH", data[at + 5 : at + 9])
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The markers of a JPEG file, one more than it may have at most, and where they stand. What is between them is skipped."""
    at = 2
    for _ in range(MOST_SEGMENTS + 1):
        found = _MARKER.search(data, at)
        if found is None:
            return
        at, marker = found.start(), data[found.start() + 1]
        yield marker, at
        if marker == 0xD9:  # the end
            return
        at += 2 if marker == 0xD8 else 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))


def _chunks(data: bytes) -> Iterator[int]:
    """Where the chunks of a PNG file stand, one more than it may have at most."""
    at = 8
    for _ in range(MOST_CHUNKS + 1):
        if at >= len(data):
            return
        yield at
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _has_many_parts(data: bytes) -> bool:
    """Whether a picture is of more parts than any camera writes, each of which takes time; a file has room for millions."""
    if data[:2] == b"\xff\xd8":
        markers = [marker for marker, _ in _segments(data)]
        return len(markers) > MOST_SEGMENTS or markers.count(0xDA) > MOST_SCANS
    return data[:4] == b"\x89PNG" and len(list(_chunks(data))) > MOST_CHUNKS


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """The same of a WebP file, by its first chunk: extended, lossless or lossy."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    width, height = struct.unpack("<HH", data[26:30])
    return (height & 0x3FFF, width & 0x3FFF) if data[12:16] == b"VP8 " else None


def read_picture(path: str | Path, size: int, field: str = "image") -> np.ndarray:
    """A picture file as (size, size, 3) uint8 RGB, letterboxed; see `load_picture`."""
    return fitted(load_picture(path, field), size)


def load_picture(path: str | Path, field: str = "image") -> np.ndarray:
    """A PNG, JPEG or WebP file as (h, w, 3) uint8 RGB; grey ones get three channels, transparency is dropped.

    Raises:
        InputError: no such file, none that can be read, or a picture of more than `MOST_PIXELS`.
    """
    try:
        data = read_file(path, 4 * MOST_PIXELS)
        with _quiet():
            return _decode(data, picture_size(data))
    except CheckpointError as error:
        raise InputError(field, str(path), f"{error.value}: give a PNG, JPEG or WebP file") from None
    except ValueError as error:
        least = f"of at most {MOST_PIXELS / 1e6:.0f} megapixels"
        raise InputError(field, str(path), f"{error}: give a PNG, JPEG or WebP file {least}") from None


def _decode(data: bytes, size: tuple[int, int] | None) -> np.ndarray:
    """A PNG, JPEG or WebP file of a known size as (h, w, 3) uint8 RGB, the way up that it says.

    Pillow decodes, for it bounds the texts and profiles that a file may hold, and writes no lines of its own; its pixels are
    those of OpenCV.

    Raises:
        ValueError: a picture that is too large, of too many parts, damaged, or none.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if size is None:
        raise ValueError("no image that can be read")
    if math.prod(size) > MOST_PIXELS or _has_many_parts(data):
        raise ValueError(f"an image of {size[1]} x {size[0]} px in too many parts")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            image.load()
            shown = Image.fromarray(np.uint8(np.asarray(image) >> 8)) if image.mode.startswith("I;16") else image
            shown.info = {name: image.info[name][:MOST_EXIF] for name in ("exif",) if name in image.info}
            return np.array(ImageOps.exif_transpose(shown).convert("RGB"))
    except UnidentifiedImageError:  # which names an object in memory
        raise ValueError("no image that can be read") from None
    except Exception as error:  # Pillow raises nearly anything about a damaged file
        raise ValueError(" ".join(str(error).split()) or repr(error)) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Pillow's warnings of odd files off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode_pictures(pictures: Sequence[bytes | None], into: np.ndarray, shape: tuple[int, ...]) -> dict[int, str]:
    """Decodes PNG, JPEG or WebP pictures of `shape` (h, w, 3) into (rows, H, W, 3) RGB; those whose header tells of other
    sizes are not decoded.

    Returns:
        What was wrong, by row.
    """

    def one(i: int) -> str:
        size = picture_size(picture := pictures[i] or b"")
        if size is None or sorted(size) != sorted(shape[:2]):  # a photo's orientation may turn it
            return "cannot be decoded" if size is None else f"has the shape {(*size, 3)}, not {shape}"
        try:
            found = _decode(picture, size)
        except ValueError as error:
            return f"cannot be decoded: {error}"
        if found.shape != shape:
            return f"has the shape {found.shape}, not {shape}"
        letterbox(found, into[i])
        return ""

    with _quiet(), ThreadPoolExecutor(THREADS) as pool:
        # Each thread takes one stretch: a task a picture costs more than a small picture.
        stretches = np.array_split(np.arange(len(pictures)), THREADS)
        results = [fault for part in pool.map(lambda rows: [one(i) for i in rows], stretches) for fault in part]
    return {i: f"picture {fault}" for i, fault in enumerate(results) if fault}


def decode_video(path: Path, seconds: np.ndarray, tolerance: float, into: np.ndarray, shape: tuple[int, ...]) -> str:
    """Decodes the frames of an MP4 nearest to ascending moments into (rows, H, W, 3) RGB, forwards, one frame held at a time.

    The file's own header must tell of frames not much larger than `shape` (h, w, 3); what lies in it is never taken for
    another format, of those that name other files.

    Returns:
        What was wrong; empty where nothing was.

    Raises:
        DatasetError: PyAV, which LeRobot brings, is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise DatasetError(str(path), str(error), "install LeRobot to read videos, or give a frame cache") from error

    if not np.isfinite(seconds).all() or not (0 <= seconds[0] and seconds[-1] < MOST_SECONDS):
        return "moments that are no seconds of a video"
    try:
        most = max(VIDEO_LEAST, VIDEO_MARGIN * math.prod(shape[:2]))
        limit = {"max_pixels": str(most)}  # also of frames later on, which may grow
        with closing(av.open(str(path), format="mp4", options=limit)) as container:
            stream = container.streams.video[0]
            assert (tick := stream.time_base) is not None  # as MP4 has it
            if not 0 < stream.height * stream.width <= most:
                return f"holds frames that are larger than {shape[0]} x {shape[1]} px"
            stream.codec_context.options = limit
            first = round(float(seconds[0]) / tick) - 1
            container.seek(first, backward=True, any_frame=False, stream=stream)
            frames = ((float(f.pts * tick), f) for f in container.decode(stream) if f.pts is not None)
            return _take_nearest(frames, seconds, tolerance, into)
    except Exception as error:  # PyAV raises many kinds
        return " ".join(str(error).partition("\n")[0].split()) or repr(error)


def _take_nearest(frames: Iterator[tuple[float, Any]], seconds: np.ndarray, tolerance: float, into: np.ndarray) -> str:
    """Writes, for each of ascending moments, the nearest of (moment, video frame) into (rows, H, W, 3)."""
    last, row, shown = None, 0, None

    def take(moment: float, frame: Any) -> bool:
        nonlocal row, shown
        if abs(moment - seconds[row]) >= tolerance:
            return False
        if shown is None or shown[0] is not frame:
            shown = frame, frame.to_ndarray(format="rgb24")
        letterbox(shown[1], into[row])
        row += 1
        return True

    for moment, frame in frames:
        while row < len(seconds) and moment >= seconds[row]:
            nearest = moment, frame
            if last is not None and abs(last[0] - seconds[row]) <= abs(moment - seconds[row]):
                nearest = last
            if not take(*nearest):
                return f"no frame within {tolerance:.3g} s of {seconds[row]:.3f} s"
        if row == len(seconds):
            return ""
        last = moment, frame
    while row < len(seconds):
        if last is None or not take(*last):
            return f"ends before {seconds[row]:.3f} s"
    return ""
