"""A client that breaks HTTP/2, frame by frame, against a mutual-TLS port without a certificate, and
where it is let in: memory stays, calls of others go on, and the server ends cleanly.
"""

import contextlib
import pathlib
import random
import re
import socket
import ssl
import threading
import time
import unittest
from typing import NamedTuple

import grpc

import world  # for the path of the next
import http2
from harness import Pipeline
from http2 import (ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE,
                   RST_STREAM, SETTINGS, WINDOW_UPDATE, frame)
from world import Certificates, Empty, Server, run, wait_until

SANITIZED = bool(world.SANITIZER)
ATTACK_SECONDS = 0.3 if SANITIZED else 1.0
ATTACK_BYTES = 64 << 20
# Of those that the library does not bound: each stream of some 40 bytes costs it 50 us of processor
# time after the attack, and others wait for that.
UNBOUNDED_BYTES = 3 << 20
HELD_CONNECTIONS = 100
HELD_BYTES = 200 << 10  # of each, while its handshake may still come
GROWTH_LOCKED_OUT_BYTES = 1 << 20  # without a certificate
GROWTH_LET_IN_BYTES = 96 << 20  # as a client that may call
HEAP_AFTER_BYTES = 4 << 20  # when all that has gone
METHOD = "/grpc.testing.TestService/EmptyCall"


# -- attacks: each yields bytes to send on one connection, without an end

def _streams():
    return range(1, 2**31, 2)


def _request(method=METHOD):
    return http2.request_block("localhost", method)


def rapid_reset():
    yield PREFACE + frame(SETTINGS, 0, 0, b"")
    for stream in _streams():
        yield (frame(HEADERS, END_HEADERS, stream, _request()) +
               frame(RST_STREAM, 0, stream, http2.CANCEL.to_bytes(4, "big")))


def rapid_reset_by_a_fault():
    """Made to break the rules on each stream, so that the server is the one that resets it."""
    yield PREFACE + frame(SETTINGS, 0, 0, b"")
    for stream in _streams():
        yield (frame(HEADERS, END_HEADERS, stream, _request()) +
               frame(WINDOW_UPDATE, 0, stream, (2**31 - 1).to_bytes(4, "big")))


def continuation_flood():
    yield PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, 0, 1, _request())
    piece = http2.header_block([("x-piece", "v" * 1000)] * 16)
    while True:
        yield frame(CONTINUATION, 0, 1, piece)


def empty_continuation_flood():
    yield PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, 0, 1, _request())
    while True:
        yield frame(CONTINUATION, 0, 1, b"") * 1000


def endless_header():
    """One header whose value says that it has a gigabyte."""
    begin = b"\0" + b"\x06x-long" + b"\x7f" + b"\x81\xff\xff\xff\x03"
    yield PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, 0, 1, _request() + begin)
    while True:
        yield frame(CONTINUATION, 0, 1, b"v" * 16000)


def many_headers():
    """Whole requests with as many headers as fit a frame; the table of HPACK grows with them."""
    yield PREFACE + frame(SETTINGS, 0, 0, b"")
    for stream in _streams():
        fields = b"".join(b"\x40" + b"\x0bx-%08x-" % (stream + i) + b"\x10" + b"v" * 16
                          for i in range(300))
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream, _request() + fields)


def unending_requests():
    """Streams that are opened and never go on, beyond any limit on them."""
    yield PREFACE + frame(SETTINGS, 0, 0, b"")
    for stream in _streams():
        yield frame(HEADERS, END_HEADERS, stream, _request())


def data_flood():
    yield PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, END_HEADERS, 1, _request())
    while True:
        yield frame(DATA, 0, 1, bytes(16384))


def ping_flood():
    yield PREFACE + frame(SETTINGS, 0, 0, b"")
    while True:
        yield frame(PING, 0, 0, bytes(8)) * 500


def settings_flood():
    yield PREFACE + frame(SETTINGS, 0, 0, b"")
    while True:
        yield (http2.settings(initial_window_size=1) + http2.settings(initial_window_size=2)) * 300


def goaway_flood():
    yield PREFACE + frame(SETTINGS, 0, 0, b"")
    while True:
        yield frame(GOAWAY, 0, 0, bytes(8) + b"x" * 1000) * 10


def noise():
    draw = random.Random(5)
    while True:
        yield draw.randbytes(10000)


def noise_of_frames():
    """Frames of every kind, with flags, streams and lengths that may or may not fit."""
    draw = random.Random(7)
    yield PREFACE + frame(SETTINGS, 0, 0, b"")
    while True:
        yield frame(draw.randint(0, 10), draw.randint(0, 255) & ~ACK,
                    draw.choice((0, 1, 2, 3, 5, 2**31 - 1)), draw.randbytes(draw.randint(0, 40)))


def silence():
    yield PREFACE
    while True:
        yield b""
        time.sleep(0.05)


ATTACKS = (rapid_reset, rapid_reset_by_a_fault, continuation_flood, empty_continuation_flood,
           endless_header, many_headers, unending_requests, data_flood, ping_flood, settings_flood,
           goaway_flood, noise, noise_of_frames, silence)


UNBOUNDED = (rapid_reset, rapid_reset_by_a_fault, unending_requests, continuation_flood)


class Outcome(NamedTuple):
    sent_bytes: int  # that the system took
    connections: int  # that were made, with TLS where there is TLS
    answered_bytes: int


class Target:
    """A process that listens, and what it takes in memory."""

    def __init__(self, pid, address):
        self.pid = pid
        self.host, port = address.rsplit(":", 1)
        self.port = int(port)

    def connect(self):
        return socket.create_connection((self.host, self.port), timeout=10)

    def reset_peak(self):
        pathlib.Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def peak_bytes(self):
        text = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", text).group(1)) * 1024


def tls_context(certificates, version, name=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates.path("ca.pem"))
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    if name is not None:
        context.load_cert_chain(certificates.path(f"{name}.pem"), certificates.path(f"{name}.key"))
    return context


def client_hello():
    """The first bytes of a TLS connection."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def attack(connect, pieces, seconds=ATTACK_SECONDS, bytes_max=ATTACK_BYTES):
    """Sends until time is up, on a new connection whenever the server ends one."""
    sent = connections = 0
    answers = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and sent < bytes_max:
        # Whatever the server does to the connection is its right.
        with contextlib.suppress(OSError, ssl.SSLError):
            with connect() as connected:
                connections += 1
                connected.settimeout(0.5)
                drain = threading.Thread(target=_drain, args=(connected, answers))
                drain.start()
                try:
                    for piece in pieces():
                        connected.sendall(piece)
                        sent += len(piece)
                        if time.monotonic() > end or sent > bytes_max:
                            break
                finally:
                    with contextlib.suppress(OSError):
                        connected.shutdown(socket.SHUT_RDWR)
                    drain.join()
    return Outcome(sent, connections, sum(answers))


def _drain(connected, answers):
    """Takes what the server sends, so that it can go on sending; adds how much it was."""
    with contextlib.suppress(OSError, ssl.SSLError, ValueError):
        while True:
            try:
                data = connected.recv(1 << 16)
                if not data:
                    return
                answers.append(len(data))
            except TimeoutError:
                continue


class AbuseTest(unittest.TestCase):
    def check_growth(self, target, what, limit, act):
        """What the peak of memory during act() is above what there was before."""
        target.reset_peak()
        before = world.resident_bytes(target.pid)
        result = act()
        growth = target.peak_bytes() - before
        print(f"{what}: {tuple(result)}, memory grew by at most {growth / 1e6:.2f} MB")
        if not SANITIZED:
            self.assertLessEqual(growth, limit, what)
        return result


class LockedOutTest(AbuseTest):
    """A coordinator with mutual TLS; the abuser has the CA's certificate, as anyone may, and none of
    its own."""

    @classmethod
    def setUpClass(cls):
        cls.certificates = Certificates()
        cls.pipeline = Pipeline(stages=0, wanted=1, wait=False,
                                coordinator=(*cls.certificates.options("coordinator"),
                                             "--log-level", "error"))
        cls.target = Target(cls.pipeline.coordinator.pid, cls.pipeline.address)

    @classmethod
    def tearDownClass(cls):
        cls.pipeline.close()

    def call(self):
        """A call of one who may: the server still serves."""
        operator = run(world.BUILD / "bin" / "stagecoach", "status", "--coordinator",
                       self.pipeline.address, "--json", *self.certificates.options("operator"))
        self.assertEqual(operator.returncode, 0, operator.stderr)

    def tearDown(self):
        self.pipeline.check_running()
        self.call()

    def connect(self, version, name=None):
        context = tls_context(self.certificates, version, name)
        return context.wrap_socket(self.target.connect(), server_hostname="localhost")

    def test_attacks_over_tls_without_a_certificate(self):
        self.call()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            for pieces in ATTACKS:
                with self.subTest(attack=pieces.__name__, version=version.name):
                    outcome = self.check_growth(
                        self.target, f"{version.name} {pieces.__name__}", GROWTH_LOCKED_OUT_BYTES,
                        lambda: attack(lambda: self.connect(version), pieces, ATTACK_SECONDS / 2))
                    self.assertEqual(outcome.answered_bytes, 0, "nobody is to be answered")

    def test_with_a_certificate_the_same_connection_is_served(self):
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            outcome = attack(lambda: self.connect(version, "client"), silence, 0.3)
            self.assertEqual(outcome.connections, 1)
            self.assertGreater(outcome.answered_bytes, 9)  # a SETTINGS frame at least

    def test_connections_that_never_shake_hands(self):
        """Held open: nothing sent, half of a ClientHello, and all of one and nothing after it."""
        hello = client_hello()
        for name, data in (("nothing", b""), ("half", hello[:len(hello) // 2]), ("all", hello)):
            def hold():
                with contextlib.ExitStack() as stack:
                    for _ in range(HELD_CONNECTIONS):
                        held = stack.enter_context(self.target.connect())
                        held.sendall(data)
                    time.sleep(0.5)
                    self.call()
                return (HELD_CONNECTIONS,)

            with self.subTest(sent=name):
                self.check_growth(self.target, f"{name} of a ClientHello",
                                  HELD_CONNECTIONS * HELD_BYTES, hold)
        files = world.open_file_count(self.target.pid)
        wait_until(lambda: world.open_file_count(self.target.pid) <= files, 10, "they are gone")

    def test_plaintext_on_the_port_of_tls(self):
        for pieces in (rapid_reset, continuation_flood, noise, silence):
            with self.subTest(attack=pieces.__name__):
                self.check_growth(self.target, f"plaintext {pieces.__name__}",
                                  GROWTH_LOCKED_OUT_BYTES,
                                  lambda: attack(self.target.connect, pieces))


class LetInTest(AbuseTest):
    """A server that takes everyone's connections, as one with tokens does. libgrpc 1.51 bounds neither
    the streams of a client that acknowledges no settings nor a header without an end, so for a while
    an attack takes memory. All of it goes with the connection, and others are served again."""

    def setUp(self):
        self.server = Server()
        self.target = Target(self.server.process.pid, self.server.address)
        self.assertTrue(self.is_served())

    def tearDown(self):
        self.server.close()

    def is_served(self):
        with contextlib.suppress(grpc.RpcError):
            return self.server.stub.EmptyCall(Empty(), timeout=10) is not None
        return False

    def test_attacks_of_a_client(self):
        for pieces in ATTACKS:
            with self.subTest(attack=pieces.__name__):
                is_bounded = pieces not in UNBOUNDED
                limit = GROWTH_LET_IN_BYTES if is_bounded else 1 << 40
                bytes_max = ATTACK_BYTES if is_bounded else UNBOUNDED_BYTES
                self.check_growth(self.target, pieces.__name__, limit,
                                  lambda: attack(self.target.connect, pieces, bytes_max=bytes_max))
                wait_until(self.is_served, 60, f"others are served after {pieces.__name__}")
                wait_until(lambda: self.server.wait_idle(60).heap_bytes < HEAP_AFTER_BYTES, 60,
                           f"nothing is held after {pieces.__name__}")

    # -- connections that stand still

    def begin(self):
        """A connection with a stream that waits for its end."""
        connection = http2.Connection(self.server.address, 65535)
        connection.send(frame(HEADERS, END_HEADERS, 1, http2.request_block(
            self.server.address, "/grpc.testing.TestService/StreamingInputCall")))
        return connection

    def test_client_that_stands_still_for_seconds_is_not_cut(self):
        with contextlib.closing(self.begin()) as connection:
            time.sleep(4)  # the server's pings wait
            connection.send(frame(DATA, END_STREAM, 1, http2.grpc_message(b"")))
            kinds = []
            for kind, flags, stream, _ in connection.frames(10):
                kinds.append((kind, stream))
                if kind == GOAWAY or (kind == HEADERS and flags & END_STREAM):
                    break
            self.assertIn((DATA, 1), kinds)
            self.assertNotIn((GOAWAY, 0), kinds)

    def test_client_that_is_gone_is_cut(self):
        with contextlib.closing(self.begin()) as connection:
            begin = time.monotonic()
            connection.socket.settimeout(30)
            with contextlib.suppress(ConnectionError):
                while connection.socket.recv(1 << 16):
                    pass
            seconds = time.monotonic() - begin
        print(f"cut after {seconds:.1f} s")
        self.assertGreater(seconds, 5)
        self.assertLess(seconds, 20)
        self.server.wait_idle()


if __name__ == "__main__":
    unittest.main()
