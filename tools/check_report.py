"""Open a report in headless Chromium: ``python tools/check_report.py REPORT.html [--out DIR]``.

Fails if the page asks for anything beyond its own file, says anything on the console that is a warning or an error, or
is wider than a phone. Leaves screenshots, light and dark, as wide as a desktop and as a phone, in DIR (default: beside
the report). Installs nothing: ``apt-get install chromium`` gives what it needs. Talks to the browser over the pipes of
Chromium's ``--remote-debugging-pipe``: messages of the DevTools protocol as JSON, a NUL after each.
"""

import argparse
import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WIDTHS = {"desktop": 1200, "phone": 400}
SCHEMES = ("light", "dark")
BROWSERS = ("chromium", "chromium-browser")
# Root may not use Chromium's sandbox; the page is our own file.
ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run")


class Browser:
    """One page of a running browser.

    Attributes:
        complaints: What the page said or asked for that it should not.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self._number = 0
        self._session = ""
        self.complaints: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result, noting every complaint that comes before it."""
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        request |= {"sessionId": self._session} if self._session else {}
        self._write.write(json.dumps(request).encode() + b"\0")
        self._write.flush()
        for message in self._messages():
            if message.get("id") == self._number:
                if "error" in message:
                    sys.exit(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result
        sys.exit(f"the browser ended at {method}")

    def open(self, url: str) -> None:
        """Load ``url`` and wait until it is drawn."""
        self.ask("Page.navigate", url=url)
        for message in self._messages():
            if message.get("method") == "Page.loadEventFired":
                return

    def _messages(self) -> Iterator[dict[str, Any]]:
        text = bytearray()
        while byte := self._read.read(1):
            if byte != b"\0":
                text += byte
                continue
            message = json.loads(text)
            text.clear()
            self._listen(message.get("method"), message.get("params", {}))
            yield message

    def _listen(self, event: str | None, said: dict[str, Any]) -> None:
        if event == "Log.entryAdded" and said["entry"]["level"] in ("warning", "error"):
            self.complaints.append(f"log: {said['entry']['text']}")
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(f"exception: {said['exceptionDetails']['text']}")
        elif event == "Runtime.consoleAPICalled":
            self.complaints.append(f"console.{said['type']}")
        elif event == "Network.requestWillBeSent" and not said["request"]["url"].startswith(("file:", "about:")):
            self.complaints.append(f"asked for {said['request']['url']}")


@contextmanager
def browser(command: str) -> Iterator[Browser]:
    """Start a browser with an empty profile, and end it."""
    requests, replies = os.pipe(), os.pipe()
    # Out of the way of 3 and 4, where Chromium expects its ends.
    ours = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (requests[0], replies[1])]

    def place() -> None:
        os.dup2(ours[0], 3)
        os.dup2(ours[1], 4)

    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.Popen(
            [command, *ARGUMENTS, f"--user-data-dir={profile}"],
            pass_fds=(3, 4),
            preexec_fn=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (requests[0], replies[1], *ours):
            os.close(end)
        try:
            yield Browser(replies[0], requests[1])
        finally:
            process.kill()
            process.wait()


def check(report: Path, out: Path, command: str) -> list[str]:
    """Open ``report`` in every way and return all complaints."""
    with browser(command) as page:
        for width_name, width in WIDTHS.items():
            for scheme in SCHEMES:
                metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width_name == "phone"}
                page.ask("Emulation.setDeviceMetricsOverride", **metrics)
                page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
                page.open(report.absolute().as_uri())
                size = page.ask("Page.getLayoutMetrics")["cssContentSize"]
                if size["width"] > width:
                    page.complaints.append(f"{size['width']} px wide on a screen of {width} px")
                picture = page.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
                path = out / f"{report.stem}-{width_name}-{scheme}.png"
                path.write_bytes(base64.b64decode(picture["data"]))
                print(f"{path}: {size['width']:.0f} x {size['height']:.0f} px")
        return page.complaints


def main() -> None:
    """Check the report that the command line names."""
    parser = argparse.ArgumentParser(description="Open a report in headless Chromium and take screenshots.")
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, help="directory of the screenshots")
    options = parser.parse_args()
    command = next(filter(None, map(shutil.which, BROWSERS)), None)
    if command is None:
        sys.exit("no chromium on PATH: apt-get install chromium")
    if not options.report.is_file():
        sys.exit(f"no report at {options.report}")
    out = options.out or options.report.parent
    out.mkdir(parents=True, exist_ok=True)
    complaints = check(options.report, out, command)
    for complaint in complaints:
        print(f"FAILED: {complaint}")
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
