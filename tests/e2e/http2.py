"""A bare HTTP/2 client of the coordinator (RFC 9113), for what gRPC libraries do not let one do."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4  # a setting


def _text(value):
    """A string of less than 127 bytes as HPACK has it (RFC 7541), without Huffman codes."""
    data = value.encode()
    return bytes([len(data)]) + data


def _headers(fields):
    """Literal header fields that change no table."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


class Connection:
    """Sends requests; `window_bytes` is how much of each answer the peer may send unasked."""

    def __init__(self, address, window_bytes):
        host, port = address.rsplit(":", 1)
        self.address = address
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.stream_next = 1
        self.received = b""
        self.socket.sendall(PREFACE + self._frame(
            SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window_bytes)))

    @staticmethod
    def _frame(kind, flags, stream, payload):
        return (struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) +
                struct.pack(">I", stream) + payload)

    def call(self, method, message, **fields):
        """Begins a gRPC call with its one message; returns its stream."""
        stream = self.stream_next
        self.stream_next += 2
        headers = _headers([(":method", "POST"), (":scheme", "http"), (":path", method),
                            (":authority", self.address), ("te", "trailers"),
                            ("content-type", "application/grpc"),
                            *((name.replace("_", "-"), value) for name, value in fields.items())])
        body = message.SerializeToString()
        self.socket.sendall(
            self._frame(HEADERS, END_HEADERS, stream, headers) +
            self._frame(DATA, END_STREAM, stream, struct.pack(">BI", 0, len(body)) + body))
        return stream

    def frames(self, seconds):
        """What comes until nothing did for so long, or the peer closed: (kind, stream, payload)."""
        self.socket.settimeout(seconds)
        while True:
            while len(self.received) >= 9:
                size = int.from_bytes(self.received[:3], "big")
                if len(self.received) < 9 + size:
                    break
                kind, flags, stream = struct.unpack(">BBI", self.received[3:9])
                payload = self.received[9:9 + size]
                self.received = self.received[9 + size:]
                if kind in (SETTINGS, PING) and not flags & ACK:
                    answer = payload if kind == PING else b""
                    self.socket.sendall(self._frame(kind, ACK, 0, answer))
                yield kind, stream, payload
            try:
                more = self.socket.recv(1 << 16)
            except TimeoutError:
                return
            if not more:
                return
            self.received += more

    def close(self):
        self.socket.close()
