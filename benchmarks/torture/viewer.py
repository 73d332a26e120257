"""Hostile requests to the local page of `play`, and hostile runs given to `report`."""

from __future__ import annotations

import contextlib
import html.parser
import http.client
import json
import os
import resource
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tiny import tiny_world_model

from emu_embodied.rollouts.viewer.server import FIELDS, MAX_BODY

from .battery import Job, NotRun, Trial, battery
from .kills import planned_run
from .processes import MiB, in_child

GROWTH = 256 * MiB  # that hostile requests may cause
SLOW, IDLE = 20, 300  # connections at once that send a byte now and then, and that send nothing
ACTIVE = ("script", "style", "svg", "img", "iframe", "link", "meta", "form", "object", "embed")
INJECTED = (
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=alert(1)>",
    "'\"><svg onload=alert(1)>",
    "<!--<script>",
    "{{data}}{{script}}",
    "javascript:alert(1)",
    "\u2028\u2029\u202e\x00",
    "]]><iframe srcdoc='<script>1</script>'>",
)


@battery(
    "http",
    fault="hostile HTTP to the local viewer",
    expected="loopback only; foreign Host and Origin, no token, traversal, large bodies and garbage are refused with 4xx or a "
    f"closed line; the page still dreams under {SLOW} slow and {IDLE} idle clients",
    bar="100%",
    n=150,
)
def http_requests(job: Job) -> Iterator[Trial]:
    """Sends seeded bad requests; then looks whether a good one is answered, and how much memory it took."""
    with _served() as (pid, port, token):
        before = _resident(pid)
        for _ in range(job.n):
            what, raw = _bad_request(job, port, token)
            status = _send(port, raw)
            yield Trial(what, status is None or 400 <= status < 600 and status != 500, found=f"answered {status}")
        yield _with_crowd(port, token)
        grown = _resident(pid) - before
        yield Trial("memory after all requests", grown < GROWTH, found=f"{grown / MiB:.0f} MiB more")


@contextlib.contextmanager
def _served():
    """A forked `PlayServer` of a tiny model: its process, port and token."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reader)
        try:
            _serve(writer)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        line = pipe.readline().split()
    try:
        if len(line) != 2:
            raise NotRun("the server did not come up")
        yield pid, int(line[0]), line[1]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve(writer: int) -> None:
    import gymnasium

    import emu_embodied.envs  # noqa: F401
    from emu_embodied.rollouts.viewer.server import PlayServer
    from emu_embodied.rollouts.viewer.session import Play

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    model = tiny_world_model()
    env = gymnasium.make(model.world.env_id, image_size=model.image_size, disable_env_checker=True)
    server = PlayServer(Play(model, env, "tiny"), 0)
    os.write(writer, f"{server.server_port} {server.token}\n".encode())
    os.close(writer)
    server.serve_forever()


def _bad_request(job: Job, port: int, token: str) -> tuple[str, bytes]:
    """A good request with one thing wrong, and what that is."""
    chance = job.chance
    headers = {"Host": f"127.0.0.1:{port}", "X-Token": token, "Content-Type": "application/json"}
    method, path, body = "POST", "/api/reset", b'{"seed": 1, "instruction": null}'
    foreign = ("evil.example", "127.0.0.1:1", "127.0.0.1.evil.example", "[::1]", "localhost", "0.0.0.0", "", "\x7f")
    kind = chance.choice(("host", "origin", "token", "path", "length", "body", "type", "method", "bytes"))
    if kind == "host":
        headers["Host"] = wrong = chance.choice(foreign)
    elif kind == "origin":
        headers["Origin"] = wrong = chance.choice(("null", *(f"http://{host}" for host in foreign)))
    elif kind == "token":
        headers["X-Token"] = wrong = chance.choice(("", "x" * len(token), token[:-1], token + "a", token.swapcase()))
    elif kind == "path":
        method = chance.choice(("GET", "POST"))
        path = wrong = chance.choice(
            ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/api/../x", "/page.js", "/api/", "/\x00", "*")
        )
    elif kind == "length":
        wrong = chance.choice(("-1", "1e3", "+5", "0x10", str(10**30), str(MAX_BODY + 1), ""))
        headers["Content-Length"], body = wrong, b""
    elif kind == "body":
        wrong = chance.choice((b"{", b"\xff\xfe", b"[" * 200_000, b'{"seed": NaN, "instruction": null}', _random_fields(job)))
        body, path = wrong, chance.choice(sorted(FIELDS))
    elif kind == "type":
        headers["Content-Type"] = wrong = chance.choice(("text/plain", "", "application/x-www-form-urlencoded"))
    elif kind == "method":
        method = wrong = chance.choice(("PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "get", "\x00"))
    else:
        wrong = chance.randbytes(chance.randrange(1, 3000))
        return f"bytes {wrong[:20]!r}", wrong
    headers.setdefault("Content-Length", str(len(body)))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return f"{kind} {wrong[:60]!r}", "\r\n".join(lines).encode("latin-1", "replace") + body


def _random_fields(job: Job) -> bytes:
    odd = (None, -1, True, 2**70, "1", [], {}, 1e308, "\ud800", "x" * 5000, [1e9, 0], [[0, 0]])
    names = job.chance.choice((["seed", "instruction"], ["scene", "frame", "action"]))
    fields = {name: job.chance.choice(odd) for name in names}
    fields[job.chance.choice(names)] = -1  # never one that is right
    return json.dumps(fields).encode()


def _send(port: int, raw: bytes) -> int | None:
    """The status that bytes are answered with; None where the line was closed without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        try:
            line.sendall(raw)
            line.shutdown(socket.SHUT_WR)
            answer = line.recv(1 << 16)
        except ConnectionError:
            return None
    words = answer.split()
    return int(words[1]) if len(words) > 1 and answer.startswith(b"HTTP/") and words[1].isdigit() else None


def _with_crowd(port: int, token: str) -> Trial:
    """A good request beside slow and idle ones."""
    what, crowd = f"a dream beside {SLOW} slow and {IDLE} idle clients", []
    try:
        for index in range(SLOW + IDLE):
            crowd.append(socket.create_connection(("127.0.0.1", port), timeout=10))
            if index < SLOW:
                crowd[-1].sendall(b"POST /api/reset HTTP/1.1\r\nHost: 127.0.0.1\r\nX")
        begun = time.monotonic()
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"Content-Type": "application/json", "X-Token": token}
        line.request("POST", "/api/reset", json.dumps({"seed": 1, "instruction": None}), headers)
        status = line.getresponse().status
        return Trial(what, status == 200, time.monotonic() - begun, f"answered {status}")
    except OSError as error:
        return Trial(what, False, found=repr(error))
    finally:
        for one in crowd:
            one.close()


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@battery(
    "reports",
    fault="hostile runs given to `report` (injected HTML, wrong types)",
    expected="texts stay texts, or a typed error",
    bar="100%",
    n=100,
)
def reports(job: Job) -> Iterator[Trial]:
    """Puts injections and odd values into a run's files, sums made anew, and reads the page as a browser does."""
    run = planned_run(job.folder)
    in_child(lambda: _report(run, job.folder / "clean.html"), 60)
    clean = (job.folder / "clean.html").read_text()
    for index in range(job.n):
        copy = Path(shutil.copytree(run, job.folder / f"{index}"))
        what = _injure(job, copy)
        page = copy / "page.html"
        ending = in_child(lambda copy=copy, page=page: _report(copy, page), 60)
        found = "" if ending.kind == "typed" else str(ending)
        if ending.kind == "done":
            found = _foreign_elements(page.read_text(), clean)
        yield Trial(what, not found, found=found)
        shutil.rmtree(copy)


def _report(run: Path, page: Path) -> None:
    from emu_embodied.rollouts.viewer.html_report import read_run, write_report

    write_report(read_run(run), page, INJECTED[0])


def _injure(job: Job, run: Path) -> str:
    """Changes a value of result.json or of an episode's document; returns which."""
    from emu_embodied.storage.files import load_folder, save_folder

    (episode,) = (path for path in run.glob("episode-*") if path.is_dir())
    tensors, documents = load_folder(episode)
    result = json.loads((run / "result.json").read_text())
    odd = (*INJECTED, *INJECTED, None, -1, [], {}, 1e300, [INJECTED[0]], {INJECTED[0]: INJECTED[1]}, True)
    tree = job.chance.choice((result, documents["episode"]))
    path = []
    while isinstance(tree, dict | list) and tree:
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        key = job.chance.choice(keys)
        path.append(str(key))
        if not isinstance(tree[key], dict | list) or not tree[key] or job.chance.random() < 0.3:
            tree[key] = value = job.chance.choice(odd)
            break
        tree = tree[key]
    (run / "result.json").write_text(json.dumps(result))
    save_folder(episode, tensors, documents)
    return f"{'.'.join(path)} = {str(value)[:60]!r}"


class _Elements(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.seen.append((tag, dict(attributes)))


def _foreign_elements(page: str, clean: str) -> str:
    """Elements of a page that the clean run's does not have, and attributes that act."""
    seen, known = _elements(page), _elements(clean)
    counts, expected = Counter(tag for tag, _ in seen), Counter(tag for tag, _ in known)
    foreign = [tag for tag in counts if tag not in expected or tag in ACTIVE and counts[tag] != expected[tag]]
    acting = {name for _, attributes in seen for name in attributes if name.startswith("on") or name == "srcdoc"}
    return f"foreign elements {foreign}, attributes {sorted(acting)}" if foreign or acting else ""


def _elements(page: str) -> list[tuple[str, dict]]:
    parser = _Elements()
    parser.feed(page)
    return parser.seen
