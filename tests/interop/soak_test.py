"""Many calls, half of them broken off at a random point: nothing of any stays, at either end.

SOAK_CALLS in the environment makes it longer, such as SOAK_CALLS=200000.
"""

import json
import os
import unittest

from world import (CLIENT_OPTIONS, PATIENCE, PROGRAMS, SANITIZER, Server, open_file_count, resident_bytes, run,
                   wait_until)
from harness import Pipeline

# Under a sanitizer what happens is looked at more closely, and takes ten times as long.
CALLS = int(os.environ.get("SOAK_CALLS", 1000 if SANITIZER else 6000))
GENERATE_CALLS = CALLS // 10
# Of a whole run. Pools that gRPC and malloc keep move by some hundred KB either way; one object of
# 100 bytes for each call would be more than this from 10,000 calls on.
HEAP_GROWTH_BYTES = 1 << 20
# malloc's caches of each thread count as what is in use.
EXACT_HEAP = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
RESIDENT_GROWTH_BYTES = 8 << 20


def soak(address, service, calls, seed, options=()):
    """Runs the calls in a process of their own; returns what it says."""
    result = run(PROGRAMS / "interop_soak", "--server", address, "--service", service, "--calls",
                 calls, "--seed", seed, *options, timeout=60 + calls / 100, env=EXACT_HEAP)
    if result.returncode != 0:
        raise AssertionError(f"interop_soak ended with {result.returncode}:\n{result.stdout}"
                             f"{result.stderr[-4000:]}")
    return json.loads(result.stdout)


class SoakTest(unittest.TestCase):
    def check(self, report, calls):
        print(report)
        self.assertEqual((report["calls"], report["wrong"]), (calls, 0))
        for code in ("OK", "CANCELLED"):
            self.assertGreater(report.get(code, 0), calls // 8, code)
        self.check_growth("heap of the client", report["heap_before"], report["heap_after"],
                          HEAP_GROWTH_BYTES)

    def check_growth(self, what, before, after, limit):
        print(f"{what}: {before / 1e6:.2f} MB before, {after / 1e6:.2f} MB after")
        if not SANITIZER:
            self.assertLess(after - before, limit, what)

    def test_nothing_of_any_call_stays(self):
        with Server() as server:
            pid = server.process.pid
            soak(server.address, "test", max(CALLS // 4, 100), 1, CLIENT_OPTIONS)
            heap = server.wait_idle().heap_bytes
            files, resident = open_file_count(pid), resident_bytes(pid)

            report = soak(server.address, "test", CALLS, 2, CLIENT_OPTIONS)
            self.check(report, CALLS)
            reading = server.wait_idle()
            self.check_growth("heap of the server", heap, reading.heap_bytes, HEAP_GROWTH_BYTES)
            self.check_growth("memory of the server", resident, resident_bytes(pid),
                              RESIDENT_GROWTH_BYTES)
            wait_until(lambda: open_file_count(pid) <= files, 10, "no descriptor is left")
            # Not every cancelled call got as far as the server.
            self.assertGreater(reading.begun_count, CALLS // 2)

    def test_nothing_of_any_request_stays_in_a_coordinator(self):
        with Pipeline(stages=2, coordinator=("--log-level", "warn")) as pipeline:
            pid = pipeline.coordinator.pid
            pids = [process.pid for process in pipeline.processes()]
            soak(pipeline.address, "inference", max(GENERATE_CALLS // 2, 50), 3)
            wait_until(pipeline.is_idle, 20, "nothing is computed any more")
            files = {each: open_file_count(each) for each in pids}
            resident = {each: resident_bytes(each) for each in pids}
            epoch = pipeline.pipeline().epoch

            report = soak(pipeline.address, "inference", GENERATE_CALLS, 4)
            self.check(report, GENERATE_CALLS)
            wait_until(pipeline.is_idle, 20, "nothing is computed any more")
            self.assertEqual(pipeline.pipeline().epoch, epoch)
            for each in pids:
                what = "coordinator" if each == pid else "stage"
                self.check_growth(f"memory of a {what}", resident[each], resident_bytes(each),
                                  RESIDENT_GROWTH_BYTES)
                wait_until(lambda: open_file_count(each) <= files[each], 10 * PATIENCE,
                           f"no descriptor of a {what} is left")
            self.assertTrue(pipeline.generate().text)


if __name__ == "__main__":
    unittest.main()
