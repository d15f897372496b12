"""A headless Chromium, driven by its DevTools protocol: real mouse strokes and touches, no driver to download."""

import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest
import websocket

WAIT = 60  # seconds until the browser is up, or a condition holds: CI's cores are busy


def chromium() -> str:
    """The browser's path; without one the test is skipped, with a sentence."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or pytest.skip("no Chromium here: what is done with a mouse is not tested")


class Page:
    """One page: run JavaScript in it, press, move, tap."""

    def __init__(self, socket):
        self.socket, self.numbers = socket, itertools.count(1)

    def call(self, method, **params):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (reply := json.loads(self.socket.recv())).get("id") != number:
            pass  # events in between
        assert "error" not in reply, reply
        return reply["result"]

    def run(self, script):
        """The value of a JavaScript expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script):
        end = time.monotonic() + WAIT
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never came true: {script}"
            time.sleep(0.05)
        return value

    def box(self, selector):
        """(left, top, width, height) of an element on the screen."""
        return self.run(
            f"(r => [r.x, r.y, r.width, r.height])(document.querySelector('{selector}').getBoundingClientRect())"
        )

    def mouse(self, kind, x, y, buttons=1):
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1
        )

    def stroke(self, points):
        """Press the left button, move through the points, let go."""
        (x, y), *more = points
        self.mouse("mouseMoved", x, y, 0)
        self.mouse("mousePressed", x, y)
        for x, y in more:
            self.mouse("mouseMoved", x, y)
        self.mouse("mouseReleased", x, y, 0)

    def click(self, selector):
        left, top, width, height = self.box(selector)
        self.stroke([(left + width / 2, top + height / 2)])

    def touch(self, points):
        """One finger through the points."""
        for i, (x, y) in enumerate(points):
            self.call(
                "Input.dispatchTouchEvent",
                type="touchMove" if i else "touchStart",
                touchPoints=[{"x": x, "y": y}],
            )
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


@contextmanager
def open_page(folder, address="about:blank"):
    """A page in a browser of its own, which keeps its things in `folder` and is ended afterwards."""
    command = [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={folder}", "--window-size=1400,1000", "--no-first-run", address]
    with open(os.devnull, "w") as nothing:
        browser = subprocess.Popen(command, stdout=nothing, stderr=nothing)
    try:
        end, port = time.monotonic() + WAIT, folder / "DevToolsActivePort"
        while not (port.exists() and port.read_text().strip()):
            assert browser.poll() is None and time.monotonic() < end, "Chromium did not start"
            time.sleep(0.05)
        number = port.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/json") as reply:
            page = next(p for p in json.load(reply) if p["type"] == "page")
        socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=WAIT, suppress_origin=True)
        yield Page(socket)
        socket.close()
    finally:
        browser.terminate()
        browser.wait(timeout=30)
