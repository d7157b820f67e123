"""Bare HTTP/2 (RFC 9113), for what gRPC libraries do not let one do."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0, 1, 3, 4, 6, 7, 8, 9)
END_STREAM, END_HEADERS, ACK = 1, 4, 1
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4  # settings
NO_ERROR, REFUSED_STREAM, CANCEL = 0, 7, 8


def _length(number):
    """A length of a string in HPACK (RFC 7541, section 5.1), without Huffman codes."""
    if number < 127:
        return bytes([number])
    number -= 127
    coded = b"\x7f"
    while number >= 128:
        coded += bytes([number % 128 | 128])
        number //= 128
    return coded + bytes([number])


def _text(value):
    data = value.encode()
    return _length(len(data)) + data


def header_block(fields):
    """Literal header fields that change no table."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def request_block(authority, method, *fields):
    return header_block([(":method", "POST"), (":scheme", "http"), (":path", method),
                         (":authority", authority), ("te", "trailers"),
                         ("content-type", "application/grpc"), *fields])


def grpc_message(body):
    """A message as gRPC frames it, uncompressed."""
    return struct.pack(">BI", 0, len(body)) + body


def frame(kind, flags, stream, payload):
    return (struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) +
            struct.pack(">I", stream) + payload)


def settings(**values):
    """A SETTINGS frame; values by the names of RFC 9113 in lower case."""
    numbers = {"max_concurrent_streams": MAX_CONCURRENT_STREAMS,
               "initial_window_size": INITIAL_WINDOW_SIZE}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", numbers[name], value)
                                          for name, value in values.items()))


class Endpoint:
    """One end of a connection: sends frames as they are, takes apart what comes."""

    def __init__(self, connected):
        self.socket = connected
        self.received = b""
        self.acknowledged_pings = 0

    def send(self, *frames):
        self.socket.sendall(b"".join(frames))

    def frames(self, seconds):
        """What comes until nothing did for so long, or the peer closed: (kind, flags, stream,
        payload). Settings and pings are acknowledged."""
        self.socket.settimeout(seconds)
        while True:
            while len(self.received) >= 9:
                size = int.from_bytes(self.received[:3], "big")
                if len(self.received) < 9 + size:
                    break
                kind, flags, stream = struct.unpack(">BBI", self.received[3:9])
                payload = self.received[9:9 + size]
                self.received = self.received[9 + size:]
                if kind == PING and flags & ACK:
                    self.acknowledged_pings += 1
                elif kind in (SETTINGS, PING) and not flags & ACK:
                    self.send(frame(kind, ACK, 0, payload if kind == PING else b""))
                yield kind, flags, stream, payload
            try:
                more = self.socket.recv(1 << 16)
            except (TimeoutError, ConnectionResetError):
                return
            if not more:
                return
            self.received += more

    def close(self):
        self.socket.close()


class Connection(Endpoint):
    """A client; `window_bytes` is how much of each answer the peer may send unasked."""

    def __init__(self, address, window_bytes):
        host, port = address.rsplit(":", 1)
        super().__init__(socket.create_connection((host, int(port)), timeout=10))
        self.address = address
        self.stream_next = 1
        self.send(PREFACE, settings(initial_window_size=window_bytes))

    def call(self, method, message, **fields):
        """Begins a gRPC call with its one message; returns its stream."""
        stream = self.stream_next
        self.stream_next += 2
        headers = request_block(self.address, method,
                                *((name.replace("_", "-"), value) for name, value in fields.items()))
        self.send(frame(HEADERS, END_HEADERS, stream, headers),
                  frame(DATA, END_STREAM, stream, grpc_message(message.SerializeToString())))
        return stream
