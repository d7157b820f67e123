"""The data plane among strangers: who has no key of a link changes nothing and learns nothing."""

import concurrent.futures
import contextlib
import os
import socket
import struct
import threading
import unittest
from unittest.mock import patch

from harness import Pipeline, wait_until

REQUESTS = [
    {"prompt": "The", "stop": {"max_tokens": 150, "ignore_eos": True},
     "sampling": {"temperature": 0.9, "seed": 3}},
    {"prompt": "Once upon a time", "stop": {"max_tokens": 150, "ignore_eos": True}},
]

# proto/link_wire.h
MAGIC, VERSION = 0x4c475453, 2
HELLO, ACCEPT, REFUSE, CREDIT, PING, BYE, WORKER, CHALLENGE = 1, 2, 3, 4, 5, 6, 8, 9
CHALLENGE_BYTES, REFUSE_BYTES = 40, 56
REFUSED_LINK = 1


def head(kind):
    return struct.pack("<IHH", MAGIC, VERSION, kind)


def hello(epoch, link_id):
    """Of a sender that guesses: everything is right but the proof."""
    return (head(HELLO) + struct.pack("<QIIQII", epoch, link_id, 4, 1 << 20, 0, 0) + b"\x07" * 32 +
            b"\x08" * 32)


def receive_all(connection):
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(4096):
            data += chunk
    return data


def say(address, message):
    """What a data port answers until it closes the connection, the challenge first."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(message)
        return receive_all(connection)


def listening_ports(pid):
    """The TCP ports on which a process listens, as texts."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    ports = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}") as rows:
            for row in list(rows)[1:]:
                _, local, _, state, *rest = row.split()
                if state == "0A" and f"socket:[{rest[5]}]" in inodes:
                    ports.add(str(int(local.rsplit(":", 1)[1], 16)))
    return ports


class Rogue(threading.Thread):
    """Dials data ports again and again, in every way, and notes what came of it."""

    def __init__(self, addresses, epoch):
        super().__init__()
        self.addresses, self.epoch = addresses, epoch
        self.stop = threading.Event()
        self.dialed_count = 0
        self.wrong = []

    def messages(self):
        for link_id in range(5):
            yield hello(self.epoch, link_id), True
        yield hello(self.epoch + 1, 0), True
        yield b"GET / HTTP/1.1\r\n\r\n", False
        # The rest of the handshake, and what belongs to a link, without one.
        for kind in (ACCEPT, REFUSE, CREDIT, PING, BYE, CHALLENGE):
            yield head(kind) + b"\x00" * 100, False
        yield head(WORKER) + struct.pack("<QIHH", 1, 64, 1, 13) + b"\x00" * 80, False

    def run(self):
        while not self.stop.is_set():
            for message, is_refused in self.messages():
                for address in self.addresses:
                    self.check(message, is_refused, say(address, message))

    def check(self, message, is_refused, answer):
        self.dialed_count += 1
        # A reset may have overtaken what was said.
        expected = CHALLENGE_BYTES + (REFUSE_BYTES if is_refused else 0)
        refusal = head(REFUSE) + struct.pack("<IIQ", REFUSED_LINK, 0, 0) + b"\x00" * 32
        if len(answer) > expected or (is_refused and
                                      answer[CHALLENGE_BYTES:] not in (b"", refusal)):
            self.wrong.append((message, answer))


def generate_all(pipeline):
    with concurrent.futures.ThreadPoolExecutor(len(REQUESTS)) as pool:
        return [done.token_ids
                for done in pool.map(lambda fields: pipeline.generate(**fields), REQUESTS)]


class LinksTest(unittest.TestCase):
    def test_strangers_change_no_token_and_are_counted(self):
        with Pipeline(stages=3) as pipeline:
            expected = generate_all(pipeline)
            before = pipeline.pipeline()
            rogue = Rogue([stage.data_address for stage in before.stages], before.epoch)
            rogue.start()
            try:
                rounds = [generate_all(pipeline) for _ in range(3)]
                wait_until(lambda: rogue.dialed_count > 100, 60, "the rogue has dialed often")
            finally:
                rogue.stop.set()
                rogue.join()
            self.assertEqual(rounds, [expected] * 3)
            self.assertEqual(rogue.wrong, [])
            refused_before = sum(stage.refused_count for stage in before.stages)
            wait_until(lambda: sum(stage.refused_count for stage in pipeline.pipeline().stages) >=
                       refused_before + rogue.dialed_count, 10, "every one of them is counted")
            after = pipeline.pipeline()
            self.assertEqual(after.epoch, before.epoch)
            self.assertEqual(after.replay_count, 0)
            self.assertFalse(after.encrypts)
            for stage in pipeline.stages:
                strangers = [line for line in stage.log().splitlines() if "refused, the last" in line]
                # At once, and then every 10 s at most.
                self.assertIn(len(strangers), range(1, 20))

    def test_silent_strangers_hear_one_number_and_keep_nobody_out(self):
        with Pipeline(stages=2, wanted=3, wait=False) as pipeline, contextlib.ExitStack() as stack:
            wait_until(lambda: len(pipeline.pipeline().stages) == 2, 20, "two stages joined")
            heard = []
            for stage in pipeline.pipeline().stages:
                host, port = stage.data_address.rsplit(":", 1)
                for _ in range(150):
                    connection = socket.create_connection((host, int(port)), timeout=15)
                    heard.append(stack.enter_context(connection))
            pipeline.add_stage("late")
            pipeline.wait_running()
            self.assertEqual(len(generate_all(pipeline)[0]), 150)
            numbers = set()
            for connection in heard:
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    data = connection.recv(4096)
                    self.assertIn(len(data), (0, CHALLENGE_BYTES))
                    numbers.add(data)
            self.assertGreater(len(numbers), 100)

    def test_nothing_listens_but_what_was_asked_for(self):
        """UCX would open ports of its own, where no key is asked for. Without shared memory frames go
        over the links' own connections."""
        for environment in ({}, {"UCX_SHM_DEVICES": "none"}):
            with self.subTest(environment), patch.dict(os.environ, environment), \
                    Pipeline(stages=2) as pipeline:
                generate_all(pipeline)
                data_ports = {stage.data_address.rsplit(":", 1)[1]
                              for stage in pipeline.pipeline().stages}
                found = [listening_ports(stage.pid) for stage in pipeline.stages]
                self.assertEqual(set().union(*found), data_ports)
                self.assertEqual([len(ports) for ports in found], [1, 1])
                # The requests' and the results'.
                self.assertEqual(len(listening_ports(pipeline.coordinator.pid)), 2)

    def test_encryption_changes_no_token(self):
        answers = []
        for way in ("off", "on"):
            with Pipeline(stages=3, coordinator=["--data-encryption", way]) as pipeline:
                self.assertEqual(pipeline.pipeline().encrypts, way == "on")
                answers.append(generate_all(pipeline))
                pipeline.check_running()
        self.assertEqual(answers[0], answers[1])

    def test_a_lost_stage_is_replaced_with_new_keys(self):
        options = ["--data-encryption", "on"]
        with Pipeline(stages=3, wanted=2, coordinator=options) as pipeline:
            expected = generate_all(pipeline)
            last = next(s.name for s in pipeline.pipeline().stages if s.layer_count and s.stage_index)
            stream = pipeline.stream(**REQUESTS[0])
            tokens = list(next(stream).token_ids)
            pipeline.kill_stage(next(s for s in pipeline.stages if s.name == last))
            for message in stream:
                tokens += message.token_ids
            self.assertEqual(tokens, expected[0])
            wait_until(lambda: pipeline.pipeline().epoch == 2, 20, "a new epoch begins")


if __name__ == "__main__":
    unittest.main()
