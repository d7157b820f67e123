"""Runs the built programs for tests: every process is bounded in time and ended by its id."""

import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time

SOURCE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("STAGECOACH_BUILD", SOURCE / "build" / "release"))
BIN = BUILD / "bin"

_cache = (BUILD / "CMakeCache.txt").read_text()
_sanitize = re.search(r"^STAGECOACH_SANITIZE:STRING=(.*)$", _cache, re.MULTILINE)
SANITIZER = _sanitize.group(1) if _sanitize else ""
# Under a sanitizer everything is several times slower; limits stretch accordingly.
PATIENCE = 6 if SANITIZER else 1


def wait_until(condition, seconds, what):
    """Polls until condition() is true and returns its value."""
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds * PATIENCE} s: {what}")
        time.sleep(0.01)


def run(*command, stdin="", timeout=60, **kwargs):
    """A program to its end; returns the CompletedProcess with text output."""
    return subprocess.run([str(word) for word in command], input=stdin, capture_output=True,
                          text=True, timeout=timeout * PATIENCE, **kwargs)


class Process:
    """A service that runs in the background with its log in a file."""

    def __init__(self, name, *command):
        self.name = name
        self.log_file = tempfile.NamedTemporaryFile(prefix=f"{name}-", suffix=".log")
        self.popen = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                      stdout=self.log_file, stderr=subprocess.STDOUT)

    @property
    def pid(self):
        return self.popen.pid

    def log(self):
        return pathlib.Path(self.log_file.name).read_text(errors="replace")

    def is_running(self):
        return self.popen.poll() is None

    def signal(self, number):
        self.popen.send_signal(number)

    def wait(self, seconds):
        return self.popen.wait(timeout=seconds * PATIENCE)

    def stop(self, seconds=10):
        """SIGTERM, then the exit status; SIGKILL and an error when it does not end."""
        if self.is_running():
            self.signal(signal.SIGTERM)
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end on SIGTERM:\n{self.log()}") from None

    def kill(self):
        self.signal(signal.SIGKILL)
        self.popen.wait()
