"""Chromium without a window, driven over its debugging protocol: for tests of pages. Needs `chromium` and aiohttp."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 120  # until something has gone wrong
KEYS = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "PageUp": 33,
    "PageDown": 34,
    " ": 32,
    ",": 188,
    "Escape": 27,
}


class Tab:
    """One page; use it as a context.

    Args:
        address: of the page.
        profile: an empty folder for the browser's own files.
        size: of the window in px.
        scheme: "light" or "dark".

    Attributes:
        faults: console errors and uncaught exceptions so far, as text.
        requests: addresses that were asked for, but data:.
    """

    def __init__(
        self, address: str, profile: Path, size: tuple[int, int] = (1280, 1100), scheme: str = "light"
    ) -> None:
        self.address, self.profile, self.size, self.scheme = address, profile, size, scheme
        self.faults: list[str] = []
        self.requests: list[str] = []

    def __enter__(self) -> Tab:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += [
            "--remote-debugging-port=0",
            f"--user-data-dir={self.profile}",
            f"--window-size={self.size[0]},{self.size[1]}",
        ]
        flags += ["--disable-background-networking", "--disable-component-update", "about:blank"]
        self._browser = subprocess.Popen([CHROMIUM, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._loop, self._number = asyncio.new_event_loop(), 0
        try:
            self._loop.run_until_complete(self._connect())
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
            self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": self.scheme}])
            self.send("Page.navigate", url=self.address)
            self.wait("document.readyState === 'complete'")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        if hasattr(self, "_session"):
            self._loop.run_until_complete(self._session.close())
        self._browser.terminate()
        self._browser.wait(30)
        self._loop.close()

    def run(self, code: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise."""
        answer = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, code: str) -> None:
        """Waits until an expression in the page is true."""
        end = time.monotonic() + SECONDS
        while not self.run(code):
            assert time.monotonic() < end, (
                f"{code} did not come true; status: {self.run('document.body.innerText')[:300]}"
            )
            time.sleep(0.05)

    def down(self, key: str) -> None:
        """Presses a key, and holds it."""
        self._key("rawKeyDown", key)

    def up(self, key: str) -> None:
        """Lets it go."""
        self._key("keyUp", key)

    def press(self, key: str) -> None:
        """Presses a key and lets it go."""
        self.down(key)
        self.up(key)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """kind: mousePressed, mouseMoved or mouseReleased, with the left button."""
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Writes what is to be seen as PNG."""
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol; what the page reports meanwhile is kept."""
        return self._loop.run_until_complete(self._send(method, parameters))

    def _key(self, kind: str, key: str) -> None:
        code = KEYS.get(key, ord(key[0]))
        self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    async def _connect(self) -> None:
        import aiohttp

        port_file, end = self.profile / "DevToolsActivePort", time.monotonic() + SECONDS
        while not (port_file.is_file() and port_file.read_text().count("\n")):
            assert time.monotonic() < end and self._browser.poll() is None, "chromium did not start"
            await asyncio.sleep(0.1)
        port = port_file.read_text().split()[0]
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(SECONDS))
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            page = next(tab for tab in await answer.json() if tab["type"] == "page")
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)

    async def _send(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive(SECONDS)).data)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.faults.append(str(event["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.faults.append(str(event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.faults.append(str(event["entry"]))
        elif method == "Network.requestWillBeSent" and not event["request"]["url"].startswith("data:"):
            self.requests.append(event["request"]["url"])
