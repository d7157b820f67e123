"""Our client's end: interop_client against our server, Python's grpcio, and servers that break off."""

import pathlib
import sys
import unittest

import broken
from world import CLIENT_OPTIONS, PROGRAMS, Process, Server, run, wait_until

NOT_THERE = "127.0.0.1:1"


def client(address, case, timeout=120, is_plain=False):
    options = () if is_plain else CLIENT_OPTIONS
    return run(PROGRAMS / "interop_client", "--server", address, "--case", case, *options,
               timeout=timeout)


class ClientTest(unittest.TestCase):
    def check(self, result, *cases):
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        for case in cases:
            self.assertIn(f"{case}: ok", result.stdout.splitlines())

    def test_every_case_against_our_server(self):
        with Server() as server:
            result = client(server.address, "all")
            self.check(result, "ping_pong", "custom_metadata", "concurrent_streams")
            server.wait_idle()

    def test_every_case_against_grpcio(self):
        peer = Process("peer", sys.executable, "-B", pathlib.Path(__file__).parent / "peer.py")
        try:
            port = wait_until(lambda: peer.log().partition("\n")[0], 20, "the server listens")
            self.check(client(f"127.0.0.1:{port}", "all"), "ping_pong", "custom_metadata",
                       "concurrent_streams")
            self.assertEqual(peer.stop(), 0, peer.log())
        finally:
            peer.kill()

    def test_client_reports_what_is_not_met(self):
        self.assertEqual(client(NOT_THERE, "empty_unary").returncode, 1)
        self.assertEqual(client(NOT_THERE, "no_such_case").returncode, 1)

    # -- the negative HTTP/2 cases

    def negative(self, case, most_streams=0):
        with broken.Broken(broken.LIST[case], most_streams) as server:
            self.check(client(server.address, case, is_plain=True), case)
            return server

    def test_goaway(self):
        server = self.negative("goaway")
        (first, _), (second, _) = server.calls
        self.assertNotEqual(first, second, "the second call went where GOAWAY had come from")

    def test_rst_after_header(self):
        self.negative("rst_after_header")

    def test_rst_during_data(self):
        self.negative("rst_during_data")

    def test_rst_after_data(self):
        self.negative("rst_after_data")

    def test_ping(self):
        peer = self.negative("ping").peers[0]
        self.assertEqual((peer.pings_sent, peer.acknowledged_pings), (4, 4))

    def test_max_streams(self):
        server = self.negative("max_streams", most_streams=1)
        self.assertEqual(len(server.peers), 1)
        self.assertEqual(server.peers[0].most_open, 1)
        self.assertEqual(len(server.calls), 11)

    # -- more of the kind

    def test_broken_answers_end_the_call_with_a_clear_code(self):
        for way, (code, words) in broken.WORSE.items():
            with self.subTest(way=way.__name__), broken.Broken(way) as server:
                result = client(server.address, "outcome", is_plain=True)
                self.assertEqual(result.returncode, 0, result.stderr)
                line = result.stdout.splitlines()[0]
                print(f"{way.__name__}: {line}")
                self.assertTrue(line.startswith(code + ":"), line)
                self.assertIn(words, line)


if __name__ == "__main__":
    unittest.main()
