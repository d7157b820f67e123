"""grpc.testing.TestService: its messages, and the C server that tests call."""

import contextlib
import os
import pathlib
import re
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import grpc  # noqa: E402

from processes import (BUILD, PATIENCE, SANITIZER, SOURCE, Process, run,  # noqa: E402, F401
                       wait_until)
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


class Certificates:
    """Certificates of deploy/certificates: those in `folder`, or new ones in a folder that goes away
    with the process."""

    def __init__(self, folder=None):
        self.folder = folder
        if folder is None:
            self.temporary = tempfile.TemporaryDirectory(prefix="stagecoach-interop-")
            self.folder = self.temporary.name
            made = run(SOURCE / "deploy" / "certificates", self.folder)
            if made.returncode != 0:
                raise AssertionError(f"deploy/certificates: {made.stderr}")

    def path(self, name):
        return pathlib.Path(self.folder, name)

    def options(self, name):
        """Of our programs, to be `name`."""
        return ("--tls-cert", self.path(f"{name}.pem"), "--tls-key", self.path(f"{name}.key"),
                "--tls-ca", self.path("ca.pem"))

    def files(self, name):
        """CA, key and certificate, as grpc wants them."""
        return [self.path(file).read_bytes() for file in ("ca.pem", f"{name}.key", f"{name}.pem")]


def _certificates():
    """INTEROP_TLS in the environment: everything over mutual TLS, with new certificates (1) or those
    of a folder, which is what processes that a test starts see."""
    wanted = os.environ.get("INTEROP_TLS")
    if not wanted:
        return None
    certificates = Certificates(None if wanted == "1" else wanted)
    os.environ["INTEROP_TLS"] = certificates.folder
    return certificates


CERTIFICATES = _certificates()
SERVER_OPTIONS = CERTIFICATES.options("coordinator") if CERTIFICATES else ()
CLIENT_OPTIONS = CERTIFICATES.options("client") if CERTIFICATES else ()


def dial(address, *options):
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1), *options]
    if CERTIFICATES is None:
        return grpc.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(*CERTIFICATES.files("client"))
    return grpc.secure_channel(address, credentials, options=options)


class Server:
    """interop_server. Use as a context manager: on leaving it must end cleanly."""

    def __init__(self, *options):
        self.process = Process("interop_server", PROGRAMS / "interop_server", *SERVER_OPTIONS,
                               *options)
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
            with contextlib.suppress(grpc.RpcError):  # refused while there are too many calls
                readings.append(self.read())
                return readings[-1].begun_count == readings[-1].closed_count
            return False

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
