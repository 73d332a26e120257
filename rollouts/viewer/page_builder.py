"""One HTML page out of template, style, script and data, which needs nothing else. Knows no run, no model and no server."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import cv2
import numpy as np

from emu_embodied import metrics

SHEET_PIXELS, SHEET_SIDE = 1 << 22, 16_383  # of a film, whose frames are shown smaller where they are more; of a WebP picture
SHEET_BYTES = 320 << 10  # of a film; what does not fit without loss, such as a camera's noise, is kept with a little
Facts = Sequence[tuple[str, str]]


def build_page(title: str, facts: Mapping[str, Facts], data: Mapping[str, Any], connect: str = "'none'") -> str:
    """The page as one text.

    Args:
        title: the heading, as text.
        facts: heading -> (name, value) pairs, shown as text; a value of several lines is shown as code.
        data: what the script shows, as JSON: see `page/page.js`.
        connect: whom the script may call, as a source of the Content-Security-Policy.
    """
    style, script = _part("page.css"), _part("page.js")
    parts = {
        "title": html.escape(title),
        "policy": html.escape(policy(connect)),
        "style": style,
        "script": script,
        "facts": "".join(map(_section, facts, facts.values())),
        "data": embed_json(data),
    }
    # in one go, so that nothing that is filled in is looked through again
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], _part("page.html"))


def policy(connect: str = "'none'") -> str:
    """The page's Content-Security-Policy: nothing but its own style and script, by their hashes, and pictures inside it."""
    style, script = (f"'sha256-{_hash(_part(name))}'" for name in ("page.css", "page.js"))
    rules = {
        "default-src": "'none'",
        "style-src": style,
        "script-src": script,
        "img-src": "data:",
        "connect-src": connect,
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {source}" for name, source in rules.items())


def embed_json(value: Any) -> str:
    """JSON for inside a script element: ASCII, and without a character by which HTML could end or begin anything."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def film(frames: np.ndarray) -> dict[str, Any] | None:
    """Frames (T, H, W, 3) uint8 as one sheet, row by row, for the page's data; None for no frames."""
    if not len(frames):
        return None
    count, height, width = frames.shape[:3]
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sides = rows * height, columns * width
    scale = min(SHEET_SIDE / max(sides), (SHEET_PIXELS / math.prod(sides)) ** 0.5)
    if scale < 1:
        height, width = max(1, int(scale * height)), max(1, int(scale * width))
        frames = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[:count] = frames
    sheet = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    return {"sheet": picture(sheet), "columns": columns, "count": count, "width": width, "height": height}


def picture(image: np.ndarray, quick: bool = False) -> str:
    """An image (H, W, 3) uint8 as a data: URI, WebP: without loss, unless that takes more than `SHEET_BYTES`.

    Args:
        image: RGB.
        quick: PNG, which is larger and takes a tenth of the time.
    """
    if quick:
        data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
        return "data:image/png;base64," + base64.b64encode(data).decode()
    for quality in (101, 80, 50, 20):  # above 100 is without loss
        data = cv2.imencode(".webp", image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
        if len(data) <= SHEET_BYTES:
            break
    return "data:image/webp;base64," + base64.b64encode(data).decode()


def psnr(real: np.ndarray, imagined: np.ndarray) -> list[float]:
    """Peak signal-to-noise ratio in dB of each pair of frames (T, H, W, 3) uint8, at most 60."""
    pairs = zip(imagined[:, None], real[:, None], strict=True)  # one at a time: as float64 they take 16 times as much
    return [round(min(60.0, float(metrics.psnr(one, other)[0])), 2) for one, other in pairs]


def _section(heading: str, pairs: Facts) -> str:
    rows = []
    for name, value in pairs:
        shown = html.escape(value)
        shown = f"<pre><code>{shown}</code></pre>" if "\n" in value or name == "command" else shown
        rows.append(f"<dt>{html.escape(name)}</dt><dd>{shown}</dd>")
    return f"<section><h2>{html.escape(heading)}</h2><dl>{''.join(rows)}</dl></section>"


def _part(name: str) -> str:
    return (resources.files("emu_embodied.rollouts.viewer") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
