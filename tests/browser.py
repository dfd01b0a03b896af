"""A headless Chromium over its debugging pipe: enough to open a page, look at it and click. Standard library only."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PATIENCE = 30.0


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for name in names if (found := shutil.which(name))), None)


class Browser:
    """One page. `problems` collects console errors, uncaught exceptions and requests that leave the page."""

    def __init__(self, program: str) -> None:
        self.problems: list[str] = []
        self._number, self._buffer = 0, b""
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        command_out, self._send = os.pipe()
        self._receive, answer_in = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={self._profile}", "--no-first-run", "about:blank"]
        # Chromium reads commands from descriptor 3 and answers on 4; a shell is the portable way to put them there.
        moved = f'exec 3<&{command_out} 4>&{answer_in}; exec "$0" "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", moved, program, *options],
            pass_fds=(command_out, answer_in),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_out)
        os.close(answer_in)
        self._session = ""
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(item["targetId"] for item in targets if item["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            if not select.select([self._receive], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            chunk = os.read(self._receive, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser ended")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.problems.append(str([item.get("value") for item in told["args"]]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(told["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not told["request"]["url"].startswith(("file:", "data:")):
            self.problems.append(f"request to {told['request']['url']}")

    def open(self, path: Path, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Load a local page at a size and colour scheme, and wait until it has loaded."""
        scale = 2 if phone else 1
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        # Smooth scrolling would move the page under the mouse.
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, still])
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def run(self, script: str) -> Any:
        """Evaluate JavaScript in the page and return its value."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", script))
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript condition holds."""
        until = time.monotonic() + PATIENCE
        while not self.run(condition):
            if time.monotonic() > until:
                raise TimeoutError(f"never true: {condition}")
            time.sleep(0.05)

    def _place(self, selector: str, dx: float, dy: float) -> dict[str, float]:
        """Scroll an element to the middle and return the point at a fraction of its width and height."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const b = e.getBoundingClientRect();"
            "return [b.x, b.y, b.width, b.height]; })()"
        )
        return {"x": box[0] + dx * box[2], "y": box[1] + dy * box[3]}

    def _mouse(self, kind: str, place: dict[str, float], held: int) -> None:
        button = {"button": "left", "buttons": held} if held or kind != "mouseMoved" else {}
        self.call("Input.dispatchMouseEvent", type=kind, clickCount=1, **button, **place)

    def click(self, selector: str, dx: float = 0.5, dy: float = 0.5) -> None:
        """Click with the mouse into an element, at a fraction of its width and height."""
        self.drag(selector, 0, 0, dx, dy)

    def drag(self, selector: str, x: float, y: float, dx: float = 0.5, dy: float = 0.5) -> None:
        """Press in an element, move by (x, y) pixels and let go."""
        start = self._place(selector, dx, dy)
        self._mouse("mouseMoved", start, 0)
        self._mouse("mousePressed", start, 1)
        end = start
        for part in (0.25, 0.5, 0.75, 1.0) if x or y else ():
            end = {"x": start["x"] + part * x, "y": start["y"] + part * y}
            self._mouse("mouseMoved", end, 1)
        self._mouse("mouseReleased", end, 0)

    def swipe(self, selector: str, x: float, y: float, dx: float = 0.5, dy: float = 0.5) -> None:
        """Put a finger on an element, move it by (x, y) pixels and lift it; (0, 0) is a tap."""
        start = self._place(selector, dx, dy)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[start])
        for part in (0.25, 0.5, 0.75, 1.0) if x or y else ():
            point = {"x": start["x"] + part * x, "y": start["y"] + part * y}
            self.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[point])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, name: str) -> None:
        """Press and release a key, for instance Enter or ArrowDown."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select element."""
        self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
            "e.dispatchEvent(new Event('change')); })()"
        )

    def screenshot(self, path: Path, whole: bool = False) -> Path:
        """Save what is seen, or the whole page, as PNG."""
        options: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))
        return path

    def close(self) -> None:
        """End the browser and remove its profile."""
        self._process.terminate()
        self._process.wait(PATIENCE)
        os.close(self._send)
        os.close(self._receive)
        shutil.rmtree(self._profile, ignore_errors=True)
