"""Looks at web pages with a headless Chromium, steered over two pipes (the DevTools protocol, no driver needed)."""

import base64
import contextlib
import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dng_lightning.data.pixels import from_png

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --disable-dev-shm-usage --mute-audio --remote-debugging-pipe"

# The text that one sees, which textContent does not give: much of TensorBoard stands in shadow roots.
TEXT = """
(() => {
  const text = node => node.nodeType === Node.TEXT_NODE ? [node.textContent.trim()]
    : ["STYLE", "SCRIPT", "TEMPLATE"].includes(node.nodeName) ? []
    : [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes].flatMap(text);
  return text(document.body).filter(words => words).join("\\n");
})()
"""


class Page:
    """A tab of a Chromium."""

    def __init__(self, commands: int, answers: int, seconds: float) -> None:
        self.commands, self.answers = commands, answers
        self.grace, self.deadline = seconds / 5, time.monotonic() + seconds
        self.numbers, self.buffer, self.session = itertools.count(1), b"", {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events are left aside."""
        number = next(self.numbers)
        os.write(
            self.commands,
            json.dumps({"id": number, "method": method, "params": params, **self.session}).encode() + b"\0",
        )
        while True:
            while b"\0" not in self.buffer:
                patience = max(self.grace, self.deadline - time.monotonic())  # at the end to say what is missing
                assert select.select([self.answers], [], [], patience)[0], f"no answer to {method}"
                piece = os.read(self.answers, 1 << 20)
                assert piece, "Chromium has ended"
                self.buffer += piece
            message, self.buffer = self.buffer.split(b"\0", 1)
            answer = json.loads(message)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        """What a script in the page says."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        """Go to a page."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url="about:blank")  # else a change behind the # would load nothing
        self.call("Page.navigate", url=url)

    def wait_for(self, *words: str) -> str:
        """The page's text, once all these words are in it."""
        while True:
            text = str(self.evaluate(TEXT) or "")
            missing = [word for word in words if word not in text]
            if not missing:
                return text
            assert time.monotonic() < self.deadline, f"{missing} not on the page:\n{text}"
            time.sleep(0.5)

    def screenshot(self, path: Path) -> None:
        """Write what is seen as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def assert_drawn(page: Page, url: str, words: Iterable[str], screenshot: Path) -> str:
    """A dashboard comes to show these words, and more than boxes around them; returns its text."""
    page.open(url)
    text = page.wait_for(*words)
    assert "No dashboards are active" not in text
    page.screenshot(screenshot)
    pixels = from_png(screenshot)
    assert pixels.shape == (3, 900, 1280)
    below_the_bar = pixels[:, 100:, 300:].flatten(1)
    assert len(below_the_bar.unique(dim=1)[0]) > 50  # neither blank nor boxes alone
    return text


def slowness(sample: float = 0.2) -> float:
    """How many times longer than alone this process takes on this machine now, >= 1; for scaling time limits."""
    began, used = time.monotonic(), time.process_time()
    while time.process_time() - used < sample:
        pass
    return max(1.0, (time.monotonic() - began) / sample)


@contextlib.contextmanager
def ended(process: "subprocess.Popen[Any]") -> Iterator["subprocess.Popen[Any]"]:
    """Ends a process and its children, whatever happens; it must lead a session of its own."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def tensorboard(logdir: Path, told: Path) -> Iterator[str]:
    """The address of a TensorBoard that has read the runs below a folder; ``told`` is a file for what it says."""
    deadline = time.monotonic() + 30 * slowness()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host=localhost", "--port=0"]
    command += ["--load_fast=false"]  # no second server process
    with told.open("w") as file, ended(subprocess.Popen(command, stderr=file, start_new_session=True)) as process:
        while not (found := re.search(r"http://\S+/", told.read_text())):
            assert process.poll() is None, told.read_text()
            assert time.monotonic() < deadline, told.read_text()
            time.sleep(0.1)
        runs = b"[]"
        while json.loads(runs) == []:  # it reads in the background
            assert time.monotonic() < deadline, "TensorBoard found no run"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{found[0]}data/runs") as answer:
                runs = answer.read()
            time.sleep(0.1)
        yield found[0]


@contextlib.contextmanager
def chromium(program: str, profile: Path, seconds: float) -> Iterator[Page]:
    """A page of a new Chromium, which ends with the context; it may be used for so many seconds."""
    theirs_in, commands = os.pipe()
    answers, theirs_out = os.pipe()
    # The browser reads commands from descriptor 3 and answers on 4.
    started = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
    command = ["bash", "-c", started, "bash", program, *FLAGS.split(), f"--user-data-dir={profile}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with ended(subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), **quiet)):
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Page(commands, answers, seconds)
        finally:
            os.close(commands)
            os.close(answers)
