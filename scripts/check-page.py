#!/usr/bin/env python3
"""Opens reports in a headless browser, 390 and 1280 pixels wide, in the light and the dark theme, and checks them.

    scripts/check-page.py runs/demo/report.html

A page fails if it is wider than the window, if an image is missing, if the browser's console shows an error, or if an image cannot
be enlarged with the keyboard (Enter, closed by Escape) and with the mouse. The exit status is 1 if a page fails, and 2 without a browser (chromium or google-chrome on PATH, or $BROWSER). Needs only Python.
"""

import base64
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

WIDTHS, HEIGHT, PATIENCE = (390, 1280), 900, 30

MEASURE = """JSON.stringify({
    wide: document.documentElement.scrollWidth,
    inner: window.innerWidth,
    culprits: [...document.querySelectorAll('body *')].filter(element => {
        for (let up = element; up; up = up.parentElement)
            if (['auto', 'hidden', 'scroll'].includes(getComputedStyle(up).overflowX) && up !== document.documentElement) return false;
        return element.getBoundingClientRect().right > window.innerWidth + 1;
    }).slice(0, 3).map(element => element.outerHTML.slice(0, 80)),
    images: document.images.length,
    missing: [...document.images].filter(image => !(image.complete && image.naturalWidth > 0)).length,
    text: document.body.innerText.length,
})"""


# The first image that can be enlarged is scrolled into view and has the focus.
AIM = """(() => {
    const button = document.querySelector('.enlarge');
    if (!button) return 'null';
    button.scrollIntoView({block: 'center'});
    button.focus();
    const box = button.getBoundingClientRect();
    return JSON.stringify({x: box.x + box.width / 2, y: box.y + box.height / 2, width: box.width});
})()"""

# The place and size of the enlarged image.
VIEW = """(() => {
    const image = document.querySelector(':popover-open img');
    if (!image) return 'null';
    const box = image.getBoundingClientRect();
    return JSON.stringify({left: box.left, right: box.right, top: box.top, bottom: box.bottom, width: box.width});
})()"""


class Browser:
    """Chromium, controlled by its DevTools protocol over a minimal WebSocket client."""

    def __init__(self, program, folder):
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
                   "--disable-background-networking", "--disable-component-update", "--disable-sync",
                   "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = pathlib.Path(folder) / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE
        while not (port_file.exists() and port_file.read_text().count("\n")):
            if time.monotonic() > deadline or self.process.poll() is not None:
                sys.exit(f"{program} did not start")
            time.sleep(0.05)
        port = int(port_file.read_text().split("\n")[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE) as answer:
            target = next(target for target in json.load(answer) if target["type"] == "page")
        path = target["webSocketDebuggerUrl"].split(str(port), 1)[1]
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.socket.recv(1)
        self.number, self.events = 0, []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        self.process.kill()
        self.process.wait()

    def receive(self):
        def exactly(count):
            data = b""
            while len(data) < count:
                piece = self.socket.recv(count - len(data))
                if not piece:
                    sys.exit("the browser closed the connection")
                data += piece
            return data

        message = b""
        while True:
            first, second = exactly(2)
            length = second & 0x7F
            if length >= 126:
                length = struct.unpack(">H" if length == 126 else ">Q", exactly(2 if length == 126 else 8))[0]
            message += exactly(length)
            if first & 0x80:
                return json.loads(message)

    def call(self, method, **parameters):
        self.number += 1
        data = json.dumps({"id": self.number, "method": method, "params": parameters}).encode()
        length = bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0xFE]) + struct.pack(">H", len(data))
        mask = os.urandom(4)
        self.socket.sendall(b"\x81" + length + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(data)))
        while True:
            message = self.receive()
            if message.get("id") == self.number:
                if "error" in message:
                    sys.exit(f"{method}: {message['error']['message']}")
                return message["result"]
            self.events.append(message)

    def wait_for(self, event):
        while not any(message.get("method") == event for message in self.events):
            self.events.append(self.receive())

    def open(self, url, width, dark):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=HEIGHT, deviceScaleFactor=1, mobile=width < 600)
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired")
        measured = self.evaluate(MEASURE)
        complaints = [complaint for event in self.events if (complaint := complaint_of(event))]
        return measured, complaints + self.try_to_enlarge(width)

    def evaluate(self, expression):
        return json.loads(self.call("Runtime.evaluate", expression=expression)["result"]["value"])

    def press(self, key, code, text=None):
        for kind in ("keyDown", "keyUp"):
            content = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **content)

    def click(self, x, y):
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def try_to_enlarge(self, width):
        """Enlarges the first image and closes it again, in each way."""
        button = self.evaluate(AIM)
        if button is None:
            return []
        ways = {
            "the keyboard": (lambda: self.press("Enter", 13, "\r"), lambda: self.press("Escape", 27)),
            "the mouse": (lambda: self.click(button["x"], button["y"]), lambda: self.click(width / 2, HEIGHT / 2)),
            "a click beside it": (lambda: self.click(button["x"], button["y"]), lambda: self.click(3, 3)),
        }
        complaints = []
        for way, (enlarge, close) in ways.items():
            enlarge()
            view = self.evaluate(VIEW)
            if view is None or view["width"] < 1.2 * button["width"]:
                complaints.append(f"{way} does not enlarge an image: {view}")
            elif view["left"] < 0 or view["top"] < 0 or view["right"] > width or view["bottom"] > HEIGHT:
                complaints.append(f"an enlarged image is not in the window: {view}")
            close()
            if self.evaluate(VIEW) is not None:
                complaints.append(f"{way} does not close an image")
                self.press("Escape", 27)
        return complaints


def complaint_of(event):
    """Returns the error that an event of the browser reports, if any."""
    parameters = event.get("params", {})
    if event["method"] == "Runtime.exceptionThrown":
        return parameters["exceptionDetails"].get("text", "exception")
    if event["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
        return " ".join(str(argument.get("value")) for argument in parameters["args"])
    if event["method"] == "Log.entryAdded" and parameters["entry"]["level"] == "error":
        return parameters["entry"]["text"]
    if event["method"] == "Network.loadingFailed":
        return f"not loaded: {parameters['errorText']}"
    return None


def main():
    pages = sys.argv[1:]
    if not pages:
        sys.exit(__doc__)
    names = [os.environ.get("BROWSER"), "chromium", "chromium-browser", "google-chrome"]
    program = next((found for name in names if name and (found := shutil.which(name))), None)
    if program is None:
        print("no browser: install chromium, or name one in $BROWSER", file=sys.stderr)
        sys.exit(2)
    failed = False
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(program, folder)
        try:
            for page in pages:
                for width in WIDTHS:
                    for dark in (False, True):
                        measured, complaints = browser.open(pathlib.Path(page).resolve().as_uri(), width, dark)
                        if measured["wide"] > width or measured["culprits"]:
                            complaints.append(f"{measured['wide']} pixels wide: {' '.join(measured['culprits'])}")
                        if measured["missing"]:
                            complaints.append(f"{measured['missing']} of {measured['images']} images are missing")
                        if measured["text"] == 0:
                            complaints.append("the page has no text")
                        theme = "dark" if dark else "light"
                        print(f"{page} at {width}, {theme}: {'; '.join(complaints) or 'ok'}, {measured['images']} images")
                        failed |= bool(complaints)
        finally:
            browser.close()
    sys.exit(failed)


main()
