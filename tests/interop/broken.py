"""gRPC servers that break off, or break the rules, each in its own way: HTTP/2 frame by frame.

The ways of the list in doc/negative-http2-interop-test-descriptions.md of grpc/grpc have the names
that they have there.
"""

import contextlib
import itertools
import socket
import threading

import world  # for the path of http2
import http2
from http2 import (ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS,
                   WINDOW_UPDATE, frame, grpc_message, header_block)

WINDOW_BYTES = 1 << 24
ANSWER_BYTES = 1024
OPENING = header_block([(":status", "200"), ("content-type", "application/grpc")])


def trailers(status="0", message=None):
    fields = [("grpc-status", status)] + ([("grpc-message", message)] if message else [])
    return header_block(fields)


def answer():
    return grpc_message(world.SimpleResponse(payload={"body": bytes(ANSWER_BYTES)}).SerializeToString())


class Peer(http2.Endpoint):
    """One connection of a client. `requests()` yields each stream whose request is complete."""

    def __init__(self, connected, number, most_streams):
        super().__init__(connected)
        self.number = number
        self.open = set()
        self.most_open = 0
        self.most_streams = most_streams
        limits = {"initial_window_size": WINDOW_BYTES}
        if most_streams:
            limits["max_concurrent_streams"] = most_streams
        self.send(http2.settings(**limits),
                  frame(WINDOW_UPDATE, 0, 0, (WINDOW_BYTES).to_bytes(4, "big")))

    def requests(self):
        while len(self.received) < len(http2.PREFACE):
            more = self.socket.recv(1 << 16)
            if not more:
                return
            self.received += more
        assert self.received.startswith(http2.PREFACE), self.received[:100]
        self.received = self.received[len(http2.PREFACE):]
        for kind, flags, stream, payload in self.frames(60):
            if kind == HEADERS:
                self.open.add(stream)
                self.most_open = max(self.most_open, len(self.open))
            if kind == RST_STREAM:
                self.open.discard(stream)
            if kind == DATA and payload:  # let the connection's window never end
                self.send(frame(WINDOW_UPDATE, 0, 0, len(payload).to_bytes(4, "big")))
            if kind in (HEADERS, DATA) and flags & END_STREAM:
                yield stream

    # Parts of answers.

    def opening(self, stream):
        self.send(frame(HEADERS, END_HEADERS, stream, OPENING))

    def data(self, stream, data):
        self.send(frame(DATA, 0, stream, data))

    def end(self, stream, block=None):
        self.open.discard(stream)
        self.send(frame(HEADERS, END_HEADERS | END_STREAM, stream,
                        trailers() if block is None else block))

    def reset(self, stream, code=http2.NO_ERROR):
        self.open.discard(stream)
        self.send(frame(RST_STREAM, 0, stream, code.to_bytes(4, "big")))

    def go_away(self, last, code=http2.NO_ERROR):
        self.send(frame(GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big")))

    def whole(self, stream):
        self.opening(stream)
        self.data(stream, answer())
        self.end(stream)


# -- the list

def goaway(peer, stream, count):
    if count == 1:
        peer.go_away(stream)
    peer.whole(stream)


def rst_after_header(peer, stream, _):
    peer.opening(stream)
    peer.reset(stream)


def rst_during_data(peer, stream, _):
    peer.opening(stream)
    peer.data(stream, answer()[:ANSWER_BYTES // 2])
    peer.reset(stream)


def rst_after_data(peer, stream, _):
    peer.opening(stream)
    peer.data(stream, answer())
    peer.reset(stream)


def ping(peer, stream, _):
    numbers = itertools.count(1)

    def send_ping():
        peer.send(frame(PING, 0, 0, next(numbers).to_bytes(8, "big")))

    send_ping()
    peer.opening(stream)
    send_ping()
    send_ping()
    peer.data(stream, answer())
    send_ping()
    peer.pings_sent = next(numbers) - 1
    peer.end(stream)


def max_streams(peer, stream, _):
    # What is open now began before this one ended: the client must not go beyond the limit.
    peer.whole(stream)


LIST = {function.__name__: function for function in
        (goaway, rst_after_header, rst_during_data, rst_after_data, ping, max_streams)}


# -- more of the kind: (what happens, the code a client makes of it, a part of its sentence)

def refused_stream(peer, stream, _):
    peer.reset(stream, http2.REFUSED_STREAM)


def cancelled_stream(peer, stream, _):
    peer.opening(stream)
    peer.reset(stream, http2.CANCEL)


def connection_is_cut(peer, stream, _):
    peer.opening(stream)
    peer.data(stream, answer()[:100])
    peer.socket.shutdown(socket.SHUT_RDWR)


def goaway_without_the_call(peer, _stream, _):
    peer.go_away(0)


def no_status(peer, stream, _):
    peer.opening(stream)
    peer.data(stream, answer())
    peer.end(stream, header_block([("x-other", "1")]))


def status_is_no_number(peer, stream, _):
    peer.opening(stream)
    peer.data(stream, answer())
    peer.end(stream, trailers("fine"))


def status_is_unknown(peer, stream, _):
    peer.opening(stream)
    peer.end(stream, trailers("99", "a new one"))


def http_error(peer, stream, _):
    peer.send(frame(HEADERS, END_HEADERS, stream,
                    header_block([(":status", "503"), ("content-type", "text/html")])))
    peer.send(frame(DATA, END_STREAM, stream, b"<html>busy</html>"))


def ok_without_answer(peer, stream, _):
    peer.opening(stream)
    peer.end(stream)


def two_answers(peer, stream, _):
    peer.opening(stream)
    peer.data(stream, answer() + answer())
    peer.end(stream)


def half_an_answer(peer, stream, _):
    peer.opening(stream)
    peer.data(stream, answer()[:500])
    peer.end(stream)


def endless_answer(peer, stream, _):
    """Says that 4 GiB follow."""
    peer.opening(stream)
    peer.data(stream, b"\0\xff\xff\xff\xff" + bytes(100))
    peer.end(stream)


def compressed_answer(peer, stream, _):
    peer.send(frame(HEADERS, END_HEADERS, stream, header_block(
        [(":status", "200"), ("content-type", "application/grpc"), ("grpc-encoding", "gzip")])))
    peer.data(stream, b"\1\0\0\0\4abcd")
    peer.end(stream)


def compressed_answer_of_no_encoding(peer, stream, _):
    peer.opening(stream)
    peer.data(stream, b"\1\0\0\0\4abcd")
    peer.end(stream)


def answer_is_no_message(peer, stream, _):
    peer.opening(stream)
    peer.data(stream, grpc_message(b"\x0a\xff\xff"))
    peer.end(stream)


def broken_frame(peer, stream, _):
    peer.send(frame(SETTINGS, ACK, 0, b"12345"))


def data_before_headers(peer, stream, _):
    peer.data(stream, answer())
    peer.end(stream)


WORSE = {
    refused_stream: ("UNAVAILABLE", ""),
    cancelled_stream: ("CANCELLED", ""),
    connection_is_cut: ("UNAVAILABLE", ""),
    goaway_without_the_call: ("UNAVAILABLE", ""),
    no_status: ("UNKNOWN", ""),
    status_is_no_number: ("UNKNOWN", ""),
    status_is_unknown: ("UNKNOWN", "a new one"),
    http_error: ("UNAVAILABLE", ""),
    ok_without_answer: ("INTERNAL", "the server gave no answer"),
    two_answers: ("INTERNAL", "only one"),
    half_an_answer: ("INTERNAL", ""),
    endless_answer: ("INTERNAL", ""),
    compressed_answer: ("INTERNAL", "compressed"),
    compressed_answer_of_no_encoding: ("INTERNAL", ""),
    answer_is_no_message: ("INTERNAL", "not a protobuf message"),
    broken_frame: ("UNKNOWN", ""),
    data_before_headers: ("OK", ""),  # gRPC core takes the order for no fault
}


class Broken:
    """A server that answers every call in one way. Use as a context manager."""

    def __init__(self, way, most_streams=0):
        self.way = way
        self.most_streams = most_streams
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.peers = []
        self.calls = []  # (number of the connection, stream)
        self.errors = []
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self):
        while True:
            try:
                connected, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connected,))
            self.threads.append(thread)
            thread.start()

    def _serve(self, connected):
        try:
            # A client that ends the connection while something is being sent is no error.
            with contextlib.suppress(ConnectionError, BrokenPipeError):
                peer = Peer(connected, len(self.peers), self.most_streams)
                self.peers.append(peer)
                for stream in peer.requests():
                    self.calls.append((peer.number, stream))
                    self.way(peer, stream, len(self.calls))
        except Exception as error:  # shown by the test
            self.errors.append(error)
        finally:
            connected.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(timeout=10)
        if kind is None:
            assert not self.errors, self.errors
