"""grpc.testing.TestService: its messages, and the C server that tests call."""

import contextlib
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import grpc  # noqa: E402

from processes import BUILD, PATIENCE, SANITIZER, Process, run, wait_until  # noqa: E402, F401
from schema import Schema  # noqa: E402

PROGRAMS = BUILD / "tests" / "interop"
schema = Schema((PROGRAMS / "generated" / "interop.bin").read_bytes())
TEST = "grpc.testing.TestService"
METER = "stagecoach.interop.Meter"

Empty = schema.message("grpc.testing.Empty")
Payload = schema.message("grpc.testing.Payload")
SimpleRequest = schema.message("grpc.testing.SimpleRequest")
SimpleResponse = schema.message("grpc.testing.SimpleResponse")
InputRequest = schema.message("grpc.testing.StreamingInputCallRequest")
InputResponse = schema.message("grpc.testing.StreamingInputCallResponse")
OutputRequest = schema.message("grpc.testing.StreamingOutputCallRequest")
OutputResponse = schema.message("grpc.testing.StreamingOutputCallResponse")
ReadRequest = schema.message("stagecoach.interop.ReadRequest")


def resident_bytes(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text).group(1)) * 1024


def open_file_count(pid):
    return len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))


def dial(address, *options):
    return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0),
                                                   ("grpc.use_local_subchannel_pool", 1), *options])


class Server:
    """interop_server. Use as a context manager: on leaving it must end cleanly."""

    def __init__(self, *options):
        self.process = Process("interop_server", PROGRAMS / "interop_server", *options)
        try:
            self.port = wait_until(self._port, 10, "interop_server listens")
        except BaseException:
            self.process.kill()
            raise
        self.address = f"127.0.0.1:{self.port}"
        self.channel = dial(self.address)
        self.stub = schema.stub(self.channel, TEST)
        self.meter = schema.stub(self.channel, METER)

    def _port(self):
        first, newline, _ = self.process.log().partition("\n")
        if not self.process.is_running():
            raise AssertionError(f"interop_server ended:\n{self.process.log()}")
        return int(first) if newline else None

    def read(self):
        return self.meter.Read(ReadRequest(), timeout=10 * PATIENCE)

    def wait_idle(self, seconds=10):
        """Until no call is in progress; returns the reading."""
        readings = []

        def is_idle():
            readings.append(self.read())
            return readings[-1].begun_count == readings[-1].closed_count

        wait_until(is_idle, seconds, "interop_server has no call in progress")
        return readings[-1]

    def close(self):
        self.channel.close()
        status = self.process.stop()
        if status != 0:
            raise AssertionError(f"interop_server ended with status {status}:\n{self.process.log()}")

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.close()
            return
        with contextlib.suppress(AssertionError):
            self.close()
        print(f"--- log of interop_server\n{self.process.log()}", file=sys.stderr)
