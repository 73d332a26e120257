"""Serves a played dream and its page to this machine alone. Knows HTTP and `session.Play`, no model.

Only 127.0.0.1 is listened on. The page itself has no secret; whoever dreams must send the token of this process, which the
address in the terminal carries behind its `#`, where browsers keep it to themselves. Host and Origin must be ours, so that no
other page, by whatever name it calls this address, can speak for its reader.
"""

from __future__ import annotations

import hmac
import json
import logging
import math
import secrets
import socketserver
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from emu_embodied.errors import ConfigError, EmuEmbodiedError

from .page_builder import Facts, build_page, policy
from .session import Play

HOST = "127.0.0.1"
MAX_BODY = 1 << 20
CONNECT = "'self'"
FIELDS = {
    "/api/reset": {"seed": int, "instruction": (str, type(None))},
    "/api/step": {"scene": int, "frame": int, "action": list},
}


class Refusal(Exception):
    """A request that is not answered as asked, with its HTTP status and a sentence for who asked."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class PlayServer(ThreadingHTTPServer):
    """Serves one `Play` until `shutdown`.

    Args:
        play: what is driven.
        port: to listen on; 0 is a free one.
        seed, instruction: of the scene that the page begins with.

    Attributes:
        token: without it nothing is dreamt.
        address: for the browser, token included.

    Raises:
        ConfigError: a port out of range, or one that is taken.
    """

    daemon_threads = True

    def __init__(self, play: Play, port: int = 0, seed: int = 0, instruction: str | None = None) -> None:
        if not 0 <= port <= 65535:
            raise ConfigError("port", port, "give one from 1 to 65535, or 0 for a free one")
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise ConfigError("port", port, f"{error.strerror}; choose another, or 0 for a free one") from None
        self.play, self.token = play, secrets.token_urlsafe(32)
        self.hosts = tuple(f"{name}:{self.server_port}" for name in (HOST, "localhost"))
        self.address = f"http://{HOST}:{self.server_port}/#token={self.token}"
        data = {"mode": "play", "fps": 4, "episodes": [], "seed": seed, "instruction": instruction}
        facts: dict[str, Facts] = {"About": _about(play)}
        self.page = build_page("Play", facts, data, CONNECT).encode("utf-8", "backslashreplace")

    def server_bind(self) -> None:
        """Binds, without asking any name server what we are called."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.socket.getsockname()[1]

    def handle_error(self, request, client_address) -> None:
        """A connection that broke is not reported."""
        logging.getLogger(__name__).debug("connection broke", exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection of a `PlayServer`."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds of silence, then the connection is closed
    disable_nagle_algorithm = True  # headers and body leave at once, not when the browser has thanked for the headers
    server: PlayServer  # pyright: ignore[reportIncompatibleVariableOverride] # http.server says BaseServer

    def do_GET(self) -> None:
        """The page, at `/` alone."""
        self._answer(self._page)

    def do_POST(self) -> None:
        """`/api/reset` and `/api/step`: see `Play`."""
        self._answer(self._call)

    def _page(self) -> tuple[bytes, str]:
        if self.path != "/":
            raise Refusal(404, "There is nothing but / here.")
        return self.server.page, "text/html; charset=utf-8"

    def _call(self) -> tuple[bytes, str]:
        if not hmac.compare_digest(self.headers.get("X-Token", "").encode(), self.server.token.encode()):
            raise Refusal(403, "The token is missing or wrong: open the address that the terminal shows.")
        if self.path not in FIELDS:
            raise Refusal(404, f"There are {' and '.join(FIELDS)}.")
        if self.headers.get_content_type() != "application/json":
            raise Refusal(415, "Send JSON, as application/json.")
        fields = parse_fields(self._body(), FIELDS[self.path])
        play = self.server.play
        result = play.reset(**fields) if self.path == "/api/reset" else play.step(**fields)
        return json.dumps(result, allow_nan=False).encode(), "application/json"

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdecimal() and len(length) < 20):
            raise Refusal(411, "Say how long the body is, in Content-Length.")
        if int(length) > MAX_BODY:
            left = min(int(length), 8 * MAX_BODY)  # hear it out, or the answer would not get through
            while left > 0 and (part := self.rfile.read(min(left, 1 << 16))):
                left -= len(part)
            raise Refusal(413, f"That is longer than {MAX_BODY} bytes.")
        return self.rfile.read(int(length))

    def _answer(self, work) -> None:
        """Does the work if who asks is one of ours; whatever goes wrong is a sentence and a status."""
        try:
            hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
            if len(hosts) != 1 or hosts[0] not in self.server.hosts:
                raise Refusal(403, "This server is known by 127.0.0.1 and localhost alone.")
            if any(origin != f"http://{hosts[0]}" for origin in origins):
                raise Refusal(403, "Another page asks: only this server's own may.")
            self._send(200, *work())
        except Refusal as refusal:
            self.send_error(refusal.status, str(refusal))
        except EmuEmbodiedError as error:
            self.send_error(422, str(error))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:
            logging.getLogger(__name__).exception("a request failed")
            self.send_error(500, "Something went wrong here; the terminal says what.")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A refusal as JSON; the connection ends, for its body may be unread. The base class refuses through this, too."""
        self.close_connection = True
        sentence = message or self.responses.get(code, ("refused",))[0]
        self._send(code, json.dumps({"error": sentence}).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"{policy(CONNECT)}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        """What serves, and no versions."""
        return "emu-embodied"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""


def parse_fields(body: bytes, known: dict[str, Any]) -> dict[str, Any]:
    """A request's fields: exactly the known ones, each of its type, lists of finite numbers.

    Raises:
        Refusal: 400, with what is wrong.
    """
    try:
        fields = json.loads(body.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is not UTF-8 JSON with unique keys.") from None
    if not isinstance(fields, dict) or fields.keys() != known.keys():
        raise Refusal(400, f"Give an object with exactly these fields: {', '.join(known)}.")
    for name, value in fields.items():
        fits = isinstance(value, known[name]) and not isinstance(value, bool)
        if fits and isinstance(value, int):
            fits = 0 <= value < 2**31
        if fits and isinstance(value, list):
            numbers = (type(x) in (int, float) and abs(x) < 1e6 and math.isfinite(x) for x in value)
            fits = len(value) <= 64 and all(numbers)
        if fits and isinstance(value, str):
            fits = len(value) <= 1000
        if not fits:
            raise Refusal(400, f"The field {name} has a wrong type or size.")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("duplicate keys")
    return dict(pairs)


def _about(play: Play) -> Facts:
    beside = (
        "the simulator acts beside the dream, with the same actions" if play.real else "none; real=true shows it beside"
    )
    return (("checkpoint", play.checkpoint), ("real world", beside), ("served to", "this machine alone"))
