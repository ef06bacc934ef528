"""How do tests open a page in headless Chromium?

Chromium is driven over a pipe (its DevTools protocol: JSON messages that end in a zero byte), so
that no port is open and nothing more needs to be installed.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_S = 60.0
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)
_SKIPPED: list[str] = []


def program() -> str | None:
    """$CHROMIUM, or the first that is on PATH."""
    found = (shutil.which(name) for name in (os.environ.get("CHROMIUM", ""), *NAMES) if name)
    return next((path for path in found if path), None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("browser") and program() is None:
        _SKIPPED.append(item.nodeid)
        pytest.skip(f"no Chromium: install one of {', '.join(NAMES)}, or set CHROMIUM")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _SKIPPED:
        terminalreporter.section("SKIPPED, something is missing", red=True, bold=True)
        terminalreporter.line(f"{len(_SKIPPED)} tests marked browser: no Chromium")


@dataclass(repr=False)
class Chromium:
    """A running browser with one tab."""

    process: subprocess.Popen[bytes]
    writes: int
    reads: int
    session: str = ""
    complaints: list[str] = field(default_factory=list)  # console errors, exceptions, refusals
    requests: list[str] = field(default_factory=list)  # addresses that were asked for
    _last: int = 0
    _rest: bytes = b""

    def open(self, path: Path) -> None:
        """Loads a file and waits until it is there."""
        self.complaints.clear()
        self.requests.clear()
        self.send("Page.navigate", {"url": path.resolve().as_uri()})
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """What a JavaScript expression gives; a promise is waited for."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.send("Runtime.evaluate", asked)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"{expression} did not come true"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """A key as the keyboard gives it."""
        text: dict[str, Any] = {"text": key} if len(key) == 1 else {}
        if key == "Escape":  # closes dialogs by its code, not by its name
            text = {"windowsVirtualKeyCode": 27}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", {"type": kind, "key": key, **text})

    def look(self, *, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """The size of the window (CSS px) and what the system prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.send("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.send("Emulation.setEmulatedMedia", {"features": [scheme, still]})

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """What the window shows as a PNG; whole: the page from top to bottom."""
        asked: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            asked["clip"] = {**size, "scale": 1}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", asked)["data"]))
        return path

    def send(self, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Asks and waits for the answer; what the browser tells meanwhile is noted."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params or {}}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next(method)
            if told.get("id") == self._last:
                assert "error" not in told, f"{method}: {told['error']}"
                result: dict[str, Any] = told["result"]
                return result
            self._note(told.get("method", ""), told.get("params", {}))

    def _next(self, method: str) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self.reads], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"Chromium did not answer {method} in {PATIENCE_S:.0f} s"
            part = os.read(self.reads, 1 << 20)
            assert part, f"Chromium ended at {method}"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        return told

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(str(params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A browser for all tests of the session; `open` forgets what was noted before."""
    found = program()
    assert found is not None
    profile = tmp_path_factory.mktemp("profile")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()

    def connect() -> None:
        """Chromium reads from 3 and writes to 4. Both are moved up first: one may be the other."""
        high_in, high_out = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(high_in, 3)
        os.dup2(high_out, 4)

    process = subprocess.Popen(
        [found, *FLAGS, *as_root, f"--user-data-dir={profile}", "about:blank"],
        env={**os.environ, "TMPDIR": str(profile)},  # its sockets and caches go with the test
        preexec_fn=connect,
        close_fds=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    browser = Chromium(process, ours_out, ours_in)
    try:
        targets = browser.send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        attached = browser.send("Target.attachToTarget", {"targetId": page, "flatten": True})
        browser.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.send(f"{domain}.enable")
        yield browser
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(ours_out)
        os.close(ours_in)
