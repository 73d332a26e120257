"""A driven dream: branches and their determinism, the real world beside it, and a server that answers nobody else."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import gymnasium
import numpy as np
import pytest
from browser import CHROMIUM, Tab
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_world_model

import emu_embodied.envs  # noqa: F401
from emu_embodied.checkpoint import save_checkpoint
from emu_embodied.commands import main
from emu_embodied.envs.imagined.env import ImaginedEnv
from emu_embodied.errors import ConfigError, InputError
from emu_embodied.rollouts.viewer import session as play_module
from emu_embodied.rollouts.viewer.server import FIELDS, MAX_BODY, PlayServer, Refusal, parse_fields
from emu_embodied.rollouts.viewer.session import Play
from emu_embodied.types import PIXELS

ENV = "emu_embodied/TabletopPush-v0"
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 2)).round(3).astype(np.float32).tolist()


def make(real: bool = False, env_options: dict | None = None, **decoding) -> Play:
    return Play(tiny_world_model(**decoding), gymnasium.make(ENV, **(env_options or {})), "tiny", real)


@pytest.fixture(scope="module")
def game() -> Iterator[Play]:
    """A play with the simulator beside it, which tests share: each begins with a reset."""
    game = make(real=True)
    yield game
    game.close()


@pytest.fixture(scope="module")
def server(game: Play) -> Iterator[PlayServer]:
    with PlayServer(game) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def drive(game: Play, scene: int, frame: int, actions: list[list[float]]) -> list[dict]:
    """Steps on from a frame; the new frames."""
    frames = []
    for action in actions:
        frames.append(game.step(scene, frame, action)["frame"])
        frame = frames[-1]["id"]
    return frames


def pixels(uri: str) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def codes(game: Play, frames: list[dict]) -> list[list[int]]:
    return [game.frames[frame["id"]].history.codes_BCN[0, -1].tolist() for frame in frames]


# The dream


@pytest.mark.parametrize("decoding", [{}, {"temperature": 1.0}])
def test_branches_with_the_same_actions_are_the_same_whatever_was_between(decoding: dict):
    game = make(**decoding)
    scene = game.reset(3)["scene"]["number"]
    trunk = drive(game, scene, 0, ACTIONS)
    branch = drive(game, scene, trunk[1]["id"], ACTIONS[2:])
    other = drive(game, scene, trunk[1]["id"], ACTIONS[::-1])
    again = drive(game, scene, trunk[1]["id"], ACTIONS[2:])
    assert codes(game, branch) == codes(game, again) == codes(game, trunk[2:]) != codes(game, other[:4])
    before = codes(game, trunk)
    game.reset(4)
    scene = game.reset(3)["scene"]["number"]
    assert codes(game, drive(game, scene, 0, ACTIONS)) == before
    game.close()


def test_the_dream_is_that_of_the_imagined_env(game: Play):
    env = gymnasium.make(ENV)
    dream = ImaginedEnv(tiny_world_model(), env, terminate_on_success=False)
    observation, info = dream.reset(seed=5)
    answer = game.reset(5)
    assert answer["scene"]["instruction"] == info["task"]
    assert np.array_equal(pixels(answer["frame"]["imagined"]), observation[PIXELS])
    for action, frame in zip(ACTIONS, drive(game, answer["scene"]["number"], 0, ACTIONS), strict=True):
        observation, _, _, _, info = dream.step(np.array(action, np.float32))
        assert np.array_equal(pixels(frame["imagined"]), observation[PIXELS])
        assert frame["values"]["success"] == pytest.approx(info["success_probability"], abs=1e-4)
        assert frame["values"]["entropy"] == pytest.approx(info["entropy"], abs=1e-4)
    dream.close()
    env.close()


@pytest.mark.parametrize("stochastic", [False, True])
def test_the_world_beside_it_is_the_env_from_every_branch(stochastic: bool):
    game, env = make(real=True, env_options={"stochastic": stochastic}), gymnasium.make(ENV, stochastic=stochastic)
    scene = game.reset(6)["scene"]["number"]
    trunk = drive(game, scene, 0, ACTIONS)
    branch = drive(game, scene, trunk[2]["id"], ACTIONS[::-1][:3])
    for actions, frames in ((ACTIONS, trunk), (ACTIONS[:3] + ACTIONS[::-1][:3], trunk[:3] + branch)):
        env.reset(seed=6)
        for action, frame in zip(actions, frames, strict=True):
            observation, _, _, _, info = env.unwrapped.step(np.array(action, np.float32))
            assert np.array_equal(pixels(frame["real"]), observation[PIXELS])
            assert frame["values"]["real_distance"] == pytest.approx(info["distance"], abs=1e-4)
    game.close()
    env.close()


def test_an_instruction_is_followed_or_refused_and_the_scene_before_goes_on(game: Play):
    own = game.reset(7)
    scene = game.reset(7, "push the red cube into the middle" if "red" in own["scene"]["instruction"] else None)[
        "scene"
    ]
    first = drive(game, scene["number"], 0, ACTIONS[:2])
    for wish in ("push the purple cube to the left", "sing", "push the"):
        with pytest.raises(InputError, match="instruction"):
            game.reset(8, wish)
    second = drive(game, scene["number"], 0, ACTIONS[:2])
    assert [frame["real"] for frame in first] == [frame["real"] for frame in second]
    assert game.reset(7, "push the blue cube to the top")["scene"]["asked"] == "push the blue cube to the top"


def test_what_does_not_fit_is_refused(game: Play, monkeypatch: pytest.MonkeyPatch):
    scene = game.reset(0)["scene"]["number"]
    for field, words in {
        "scene": (scene - 1, 0, ACTIONS[0]),
        "frame": (scene, 1, ACTIONS[0]),
        "actions": (scene, 0, [0.0]),
        "actions:": (scene, 0, [2.0, 0.0]),
    }.items():
        with pytest.raises(InputError, match=field):
            game.step(*words)
    assert len(game.frames) == 1
    monkeypatch.setattr(play_module, "MAX_FRAMES", 1)
    with pytest.raises(InputError, match="that is enough"):
        game.step(scene, 0, ACTIONS[0])
    with pytest.raises(InputError, match="observation_space"):
        Play(tiny_world_model(), gymnasium.make("CartPole-v1"))


def test_pictures_of_another_size_are_letterboxed():
    large = make(real=True, env_options={"image_size": 96})
    shown = large.reset(0)
    step = large.step(shown["scene"]["number"], 0, ACTIONS[0])["frame"]
    large.close()
    assert pixels(shown["frame"]["real"]).shape == pixels(step["real"]).shape == pixels(step["imagined"]).shape == (64, 64, 3)


# The server


def ask(server: PlayServer, path: str = "/api/reset", body: object = None, method: str = "POST", **changed: str | None):
    """One request as the page would make it, with some headers changed, or left out (None): status, headers, content."""
    body = {"seed": 0, "instruction": None} if body is None else body
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    own = f"127.0.0.1:{server.server_port}"
    headers = {"Host": own, "Origin": f"http://{own}", "Content-Type": "application/json", "X-Token": server.token}
    headers["Content-Length"] = str(len(sent))
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(sent)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def test_the_page_can_reset_and_step(server: PlayServer):
    status, headers, page = ask(server, "/", b"", "GET", X_Token=None)
    assert status == 200 and headers["Content-Type"].startswith("text/html") and server.token.encode() not in page
    rules = headers["Content-Security-Policy"]
    assert (
        "default-src 'none'" in rules
        and "connect-src 'self'" in rules
        and "unsafe" not in rules
        and "http" not in rules
    )
    assert headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in headers
    status, _, content = ask(server)
    scene = json.loads(content)["scene"]
    assert status == 200 and scene["engine"] == "eager" and scene["axes"] == ["right", "up"]
    body = {"scene": scene["number"], "frame": 0, "action": [1.0, 0]}
    status, _, content = ask(server, "/api/step", body, Host=f"localhost:{server.server_port}", Origin=None)
    answer = json.loads(content)
    assert status == 200 and answer["frame"]["id"] == 1 and answer["frames_per_second"] > 0
    assert pixels(answer["frame"]["imagined"]).shape == pixels(answer["frame"]["real"]).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (403, {"Host": "evil.example"}),
        (403, {"Host": "127.0.0.1:1"}),
        (403, {"Host": None}),
        (403, {"Host": "127.0.0.1.evil.example"}),
        (403, {"Host": "evil.example", "method": "GET", "path": "/"}),
        (403, {"Origin": "http://evil.example"}),
        (403, {"Origin": "null"}),
        (403, {"Origin": "http://127.0.0.1:1"}),
        (403, {"Origin": "http://evil.example", "method": "GET", "path": "/"}),
        (403, {"X_Token": None}),
        (403, {"X_Token": "x" * 43}),
        (403, {"X_Token": "\u00fc"}),
        (404, {"path": "/api/"}),
        (404, {"path": "/api/reset/"}),
        (404, {"path": "/../../etc/passwd", "method": "GET"}),
        (404, {"path": "/page.js", "method": "GET"}),
        (404, {"path": "//evil.example/", "method": "GET"}),
        (411, {"Content_Length": None}),
        (411, {"Content_Length": "-1"}),
        (411, {"Content_Length": "1e3"}),
        (411, {"Transfer_Encoding": "chunked"}),
        (413, {"body": b" " * (MAX_BODY + 1)}),
        (415, {"Content_Type": "text/plain"}),
        (415, {"Content_Type": "application/x-www-form-urlencoded"}),
        (400, {"body": b"{"}),
        (400, {"body": b"\xff"}),
        (400, {"body": b"[" * 100_000}),
        (400, {"body": b'{"seed": 0, "seed": 1, "instruction": null}'}),
        (400, {"body": {"seed": 0}}),
        (400, {"body": {"seed": 0, "instruction": None, "more": 1}}),
        (400, {"body": {"seed": "0", "instruction": None}}),
        (400, {"body": {"seed": True, "instruction": None}}),
        (400, {"body": {"seed": -1, "instruction": None}}),
        (400, {"body": {"seed": 2**63, "instruction": None}}),
        (400, {"body": b'{"seed": NaN, "instruction": null}'}),
        (400, {"body": {"scene": 1, "frame": 0, "action": ["1", 0]}, "path": "/api/step"}),
        (400, {"body": b'{"scene": 1, "frame": 0, "action": [NaN, 0]}', "path": "/api/step"}),
        (400, {"body": {"scene": 1, "frame": 0, "action": [10**400]}, "path": "/api/step"}),
        (422, {"body": {"seed": 0, "instruction": "sing"}}),
        (422, {"body": {"scene": 2**30, "frame": 0, "action": [0, 0]}, "path": "/api/step"}),
        (501, {"method": "PUT"}),
        (501, {"method": "OPTIONS"}),
    ],
)
def test_everybody_else_is_refused_with_a_sentence(server: PlayServer, status: int, request_: dict):
    found, headers, content = ask(server, **request_)
    assert found == status, content
    assert list(json.loads(content)) == ["error"] and b"Traceback" not in content and b".py" not in content
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"] and headers["Connection"] == "close"


def test_what_breaks_inside_stays_inside(server: PlayServer, monkeypatch: pytest.MonkeyPatch):
    def broken(*_, **__):
        raise RuntimeError("a secret")

    monkeypatch.setattr(server.play, "reset", broken)
    status, _, content = ask(server)
    assert status == 500 and b"secret" not in content and b"terminal" in content


def test_it_listens_on_loopback_alone_and_says_which_port_is_taken(server: PlayServer, game: Play):
    assert server.socket.getsockname()[0] == "127.0.0.1" and server.server_port != 0
    with pytest.raises(ConfigError, match=f"port: {server.server_port}; .*choose another, or 0"):
        PlayServer(game, server.server_port)
    for port in (-1, 65536):
        with pytest.raises(ConfigError, match="from 1 to 65535"):
            PlayServer(game, port)


def test_garbage_and_silence_do_not_stop_it(server: PlayServer):
    for garbage in (
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost",
        b"A" * 70_000,
        b"",
    ):
        with socket.create_connection(server.server_address, timeout=10) as line:
            line.sendall(garbage)
            line.shutdown(socket.SHUT_WR)
            assert b"Traceback" not in line.recv(1 << 16)
    assert ask(server)[0] == 200


@given(st.binary(max_size=200), st.sampled_from(sorted(FIELDS)))
def test_any_bytes_are_fields_or_a_refusal(body: bytes, path: str):
    try:
        parsed = parse_fields(body, FIELDS[path])
    except Refusal as refusal:
        assert refusal.status == 400
    else:  # Hypothesis also tries the byte strings of our own sources, and these are requests.
        assert_of_their_types(parsed, FIELDS[path])


def assert_of_their_types(parsed: dict, kinds: dict):
    assert parsed.keys() == kinds.keys()
    for name, kind in kinds.items():
        assert isinstance(parsed[name], kind) and not isinstance(parsed[name], bool)
        assert not isinstance(parsed[name], list) or np.isfinite(np.array(parsed[name], float)).all()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x, max_size=3), max_leaves=5
)


@given(st.data(), st.sampled_from(sorted(FIELDS)))
def test_fields_that_pass_are_of_their_types(data: st.DataObject, path: str):
    fields = {name: data.draw(json_values) for name in FIELDS[path]}
    try:
        parsed = parse_fields(json.dumps(fields).encode(), FIELDS[path])
    except Refusal as refusal:
        assert refusal.status == 400
    else:
        assert_of_their_types(parsed, FIELDS[path])


# The command


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("port=70000", "port: 70000; give a whole number from 0 to 65535"),
        ("seed=-1", "seed: -1; give"),
        ("instruction=sing", "instruction: sing"),
        ("instruction=[1]", "instruction: [1]; give a text"),
        ("checkpoint=nowhere", "checkpoint: nowhere; choose among"),
        ("passes=0", "passes: 0; give"),
    ],
)
def test_a_wrong_word_ends_the_command(word: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    model = tiny_world_model()
    world = replace(model.world, objects=dict(model.world.objects))
    save_checkpoint(tmp_path / "tiny", model.tokenizer, model.text, model.model, world, {})
    assert main(["play", f"checkpoint={tmp_path / 'tiny'}", "port=0", word]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


# In a browser


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_drives_fifty_steps_branches_and_dreams_anew(server: PlayServer, tmp_path: Path):
    pytest.importorskip("aiohttp", reason="drives the browser")
    place = "Number(document.getElementById('scrubber').value)"
    with Tab(server.address, tmp_path / "profile") as tab:
        tab.wait("document.querySelectorAll('.plot svg[role]').length === 4")
        tab.run("document.getElementById('speed').value = '1000'")
        tab.down("ArrowRight")
        tab.wait(f"{place} >= 50")
        tab.up("ArrowRight")
        for _ in range(10):
            tab.press(",")
        assert 39 <= tab.run(place) < tab.run("Number(document.getElementById('scrubber').max)")
        tab.run("document.getElementById('scrubber').focus()")
        before, branches = tab.run(place), "document.getElementById('episode').options.length"
        for key, step in (
            ("ArrowRight", 1),
            ("ArrowUp", 2),
            ("ArrowLeft", 1),
        ):  # the slider's own, while it has the focus
            tab.press(key)
            tab.wait(f"{place} === {before + step}")
        assert tab.run(branches) == 1 and tab.run("document.activeElement.id") == "scrubber"
        tab.press("Escape")
        assert tab.run("document.activeElement === document.body")
        tab.press("ArrowUp")
        tab.wait("document.getElementById('episode').options.length === 2")
        tab.wait("document.getElementById('episode').value === '1'")
        tab.press("PageUp")
        tab.wait("document.getElementById('episode').value === '0'")
        box = tab.run(
            "(b => [b.left, b.top, b.width])(document.querySelector('#imagined canvas').getBoundingClientRect())"
        )
        spot = (box[0] + 0.3 * box[2], box[1] + 0.3 * box[2])
        tab.mouse("mousePressed", *spot)
        tab.wait("document.getElementById('episode').options.length === 3")
        tab.mouse("mouseReleased", *spot)
        tab.wait("document.getElementById('pace').textContent.includes('frames/s')")
        tab.screenshot(tmp_path / "play.png")
        tab.run("document.getElementById('seed').value = 9; document.getElementById('drive').requestSubmit()")
        tab.wait(f"{place} === 0 && document.getElementById('episode').options.length === 1")
        assert tab.run("document.getElementById('status').textContent") == "" and tab.faults == []
        assert all(request.startswith(server.address.partition("#")[0]) for request in tab.requests)
    with Tab(server.address.partition("#")[0], tmp_path / "other") as tab:  # without the token
        tab.wait("document.getElementById('status').className === 'wrong'")
        assert "token is missing" in tab.run("document.getElementById('status').textContent")
