"""Health checks of coordinator and stages, and how they stop."""

import collections
import contextlib
import ctypes
import json
import os
import pathlib
import queue
import signal
import tempfile
import threading
import time
import unittest

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness import (BIN, PATIENCE, Pipeline, Process, admin_pb2, expect_code, inference_pb2,
                     inference_pb2_grpc, run, wait_until)

Status = health_pb2.HealthCheckResponse
SERVING, NOT_SERVING = Status.SERVING, Status.NOT_SERVING
INFERENCE, STAGE = "stagecoach.v1.Inference", "stagecoach.v1.Stage"
OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE

# Slow enough that an answer takes as long as a test asks for.
SLOW_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 8,
    "vocab_size": 512,
    "max_position_embeddings": 16000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}


class Health:
    """The health service at an address."""

    def __init__(self, address):
        self.address = address
        self.channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self.stub = health_pb2_grpc.HealthStub(self.channel)

    def check(self, service=""):
        request = health_pb2.HealthCheckRequest(service=service)
        return self.stub.Check(request, timeout=10 * PATIENCE, wait_for_ready=True).status

    def list(self):
        response = self.stub.List(health_pb2.HealthListRequest(), timeout=10 * PATIENCE)
        return {name: value.status for name, value in response.statuses.items()}

    def wait(self, service, status, seconds=10):
        wait_until(lambda: self.check(service) == status, seconds,
                   f"'{service}' is {Status.ServingStatus.Name(status)}")


class Watch:
    """A Watch stream, read by a thread of its own."""

    def __init__(self, health, service):
        self.items = queue.Queue()
        self.call = health.stub.Watch(health_pb2.HealthCheckRequest(service=service))
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self):
        try:
            for response in self.call:
                self.items.put(response.status)
        except grpc.RpcError as error:
            self.items.put(error.code())

    def next(self, seconds=10):
        return self.items.get(timeout=seconds * PATIENCE)

    def close(self):
        self.call.cancel()
        self.thread.join()


@contextlib.contextmanager
def frozen(pid, name=None):
    """One thread of a child stands still: the main one, or the one of this name."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    seize, interrupt, detach = 0x4206, 0x4207, 17  # <sys/ptrace.h>
    wall = 0x40000000  # __WALL

    def trace(request, tid):
        if libc.ptrace(request, tid, None, None) != 0:
            raise OSError(ctypes.get_errno(), f"ptrace request {request:#x}")

    tid = pid
    if name is not None:
        tids = [int(task.name) for task in pathlib.Path(f"/proc/{pid}/task").iterdir()
                if (task / "comm").read_text().strip() == name]
        assert len(tids) == 1, f"{len(tids)} threads are called {name}"
        tid = tids[0]
    trace(seize, tid)
    trace(interrupt, tid)
    os.waitpid(tid, wall)
    try:
        yield
    finally:
        trace(detach, tid)


class StageHealth:
    """A stage with its health service."""

    def __init__(self, pipeline, name, *options):
        port_file = pathlib.Path(pipeline.folder.name, f"port-{name}")
        self.process = pipeline.add_stage(name, "--listen", "127.0.0.1:0", "--port-file", port_file,
                                          *options)
        wait_until(port_file.exists, 10, "the stage listens")
        self.health = Health(f"127.0.0.1:{port_file.read_text().strip()}")


class HealthTest(unittest.TestCase):
    def serve(self, **options):
        pipeline = self.enterContext(Pipeline(**options))
        return pipeline, Health(pipeline.address)

    def watch(self, health, service, first=None):
        """A Watch stream; with `first`, once the service has that status."""
        if first is not None:
            health.wait(service, first)
        watch = Watch(health, service)
        self.addCleanup(watch.close)
        if first is not None:
            self.assertEqual(watch.next(), first)
        return watch

    def test_ready_is_told_from_alive(self):
        pipeline, health = self.serve(stages=1, wanted=2, wait=False)
        self.assertEqual(health.list(), {"": SERVING, INFERENCE: NOT_SERVING,
                                         "vllm.grpc.engine.VllmEngine": NOT_SERVING})
        watch, live = self.watch(health, INFERENCE, NOT_SERVING), self.watch(health, "", SERVING)
        second = StageHealth(pipeline, "second")
        self.assertEqual(watch.next(), SERVING)
        wait_until(lambda: set(health.list().values()) == {SERVING}, 10, "all are SERVING")
        second.health.wait(STAGE, SERVING)
        self.assertEqual(second.health.list(), {"": SERVING, STAGE: SERVING})
        spare = StageHealth(pipeline, "spare")
        self.assertEqual(spare.health.list(), {"": SERVING, STAGE: NOT_SERVING})
        self.assertTrue(live.items.empty())

    def test_unknown_services(self):
        _, health = self.serve(stages=1)
        with expect_code(self, grpc.StatusCode.NOT_FOUND, "no.Such", "not known"):
            health.check("no.Such")
        watch = self.watch(health, "no.Such")
        self.assertEqual(watch.next(), Status.SERVICE_UNKNOWN)
        with self.assertRaises(queue.Empty):
            watch.items.get(timeout=0.5)  # and goes on

    def test_a_stopped_stage_makes_the_service_not_ready(self):
        pipeline, health = self.serve(stages=1, wanted=2, wait=False)
        second = StageHealth(pipeline, "second")
        pipeline.wait_running()
        expected = pipeline.generate().token_ids
        watch, live = self.watch(health, INFERENCE, SERVING), self.watch(health, "", SERVING)
        pipeline.stages[0].signal(signal.SIGSTOP)
        self.assertEqual(watch.next(15), NOT_SERVING)
        self.assertEqual(health.check(""), SERVING)
        second.health.wait(STAGE, NOT_SERVING)
        self.assertEqual(second.health.check(""), SERVING)
        pipeline.stages[0].signal(signal.SIGCONT)
        self.assertEqual(watch.next(15), SERVING)
        second.health.wait(STAGE, SERVING)
        self.assertEqual(pipeline.generate().token_ids, expected)
        self.assertTrue(live.items.empty())

    def test_a_stage_that_computes_nothing_is_noticed_though_it_answers(self):
        pipeline, health = self.serve(stages=1, wanted=2, wait=False,
                                      coordinator=("--stall-seconds", 2 * PATIENCE))
        second = StageHealth(pipeline, "second", "--stall-seconds", 1 * PATIENCE)
        pipeline.wait_running()
        watch = self.watch(health, INFERENCE, SERVING)
        stop = {"max_tokens": 200, "ignore_eos": True}
        expected = pipeline.generate("The", stop=stop).token_ids
        stream = pipeline.stream("The", stop=stop)
        with frozen(second.process.pid, "compute"):
            begin = time.monotonic()
            self.assertEqual(watch.next(20), NOT_SERVING)
            self.assertGreater(time.monotonic() - begin, 1.5 * PATIENCE)
            self.assertEqual(health.check(""), SERVING)
            # Nobody else is at fault, and nothing is lost.
            self.assertEqual(pipeline.pipeline().state, admin_pb2.PIPELINE_STATE_RUNNING)
            second.health.wait("", NOT_SERVING)
            second.health.wait(STAGE, NOT_SERVING)
        self.assertEqual(watch.next(), SERVING)
        self.assertEqual([i for m in stream for i in m.token_ids], expected)
        second.health.wait(STAGE, SERVING)
        second.health.wait("", SERVING)

    def test_a_coordinator_that_stands_still_is_not_alive_though_it_answers(self):
        pipeline, health = self.serve(stages=1)
        live = self.watch(health, "", SERVING)
        with frozen(pipeline.coordinator.pid):
            self.assertEqual(live.next(15), NOT_SERVING)
            health.wait(INFERENCE, NOT_SERVING)
        self.assertEqual(live.next(15), SERVING)
        health.wait(INFERENCE, SERVING, 15)
        self.assertIn("72", pipeline.generate().text)

    def test_a_stage_whose_main_thread_stands_still_is_not_alive(self):
        pipeline, _ = self.serve(stages=0, wanted=1, wait=False)
        stage = StageHealth(pipeline, "stage")
        pipeline.wait_running()
        stage.health.wait(STAGE, SERVING)
        with frozen(stage.process.pid):
            stage.health.wait("", NOT_SERVING)
            stage.health.wait(STAGE, NOT_SERVING)
        stage.health.wait("", SERVING)
        stage.health.wait(STAGE, SERVING, 20)

    def test_a_busy_service_stays_ready(self):
        pipeline, health = self.serve(stages=2, coordinator=("--stall-seconds", 2 * PATIENCE))
        ready, live = self.watch(health, INFERENCE, SERVING), self.watch(health, "", SERVING)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            streams = [pipeline.stream("The", stop={"max_tokens": 100, "ignore_eos": True})
                       for _ in range(64)]
            for stream in streams:
                for _ in stream:
                    pass
        self.assertTrue(ready.items.empty() and live.items.empty())


class SlowModel(unittest.TestCase):
    """Tests whose answers take as long as they say."""

    @classmethod
    def setUpClass(cls):
        cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.model = pathlib.Path(cls.folder)
        (cls.model / "config.json").write_text(json.dumps(SLOW_CONFIG))

    def serve(self, *options, stages=1, **more):
        return self.enterContext(Pipeline(stages=stages, model=self.model, coordinator=(
            "--load-format", "dummy", "--kv-tokens", 16000, *options), **more))

    def start(self, pipeline, seconds):
        """A stream that takes about so long, once its first token is there; and its first message."""
        stop = {"max_tokens": 100, "ignore_eos": True}
        pipeline.generate([1, 2, 3], stop={"max_tokens": 8, "ignore_eos": True})
        begin = time.monotonic()
        pipeline.generate([1, 2, 3], stop=stop)
        self.count = max(100, int(100 * seconds / (time.monotonic() - begin)))
        self.assertLess(self.count, 15900, "the model is too fast for this test")
        stream = pipeline.stream([1, 2, 3], stop={"max_tokens": self.count, "ignore_eos": True},
                                 timeout=100)
        return stream, next(stream)

    def finish(self, stream, first):
        token_ids = [*first.token_ids, *(i for m in stream for i in m.token_ids)]
        self.assertEqual(len(token_ids), self.count)


class Caller(threading.Thread):
    """Makes short calls over a connection of its own, and keeps their codes."""

    def __init__(self, address):
        super().__init__()
        self.stub = inference_pb2_grpc.InferenceStub(grpc.insecure_channel(address, [
            ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]))
        self.stop = threading.Event()
        self.codes = collections.Counter()
        self.start()

    def run(self):
        while not self.stop.is_set():
            try:
                self.stub.GetModel(inference_pb2.GetModelRequest(), timeout=10 * PATIENCE)
                self.codes[OK] += 1
            except grpc.RpcError as error:
                self.codes[error.code()] += 1
                self.stop.wait(0.002)


class DrainTest(SlowModel):
    def test_notice_then_refusal_then_the_end_of_what_runs(self):
        pipeline = self.serve("--drain-notice-seconds", 2)
        health = Health(pipeline.address)
        health.wait(INFERENCE, SERVING)
        ready, live = Watch(health, INFERENCE), Watch(health, "")
        self.addCleanup(ready.close)
        self.addCleanup(live.close)
        self.assertEqual((ready.next(), live.next()), (SERVING, SERVING))
        stream, first = self.start(pipeline, 6)
        begin = time.monotonic()
        pipeline.coordinator.signal(signal.SIGTERM)
        # Notice: not ready, but alive, and it serves.
        self.assertEqual(ready.next(), NOT_SERVING)
        self.assertLess(time.monotonic() - begin, 1.9)
        self.assertEqual(health.check(""), SERVING)
        self.assertEqual(pipeline.pipeline().state, admin_pb2.PIPELINE_STATE_DRAINING)
        self.assertEqual(len(pipeline.generate([4], max_tokens=2).token_ids), 2)
        # Refusal: on connections that exist and on new ones, while the stream goes on.
        wait_until(lambda: "draining: 1 requests run" in pipeline.coordinator.log(), 10,
                   "new requests are refused")
        self.assertGreater(time.monotonic() - begin, 1.9)
        with expect_code(self, UNAVAILABLE):
            pipeline.generate([4], max_tokens=2)
        new = Health(pipeline.address)
        with expect_code(self, UNAVAILABLE):
            new.stub.Check(health_pb2.HealthCheckRequest(), timeout=10 * PATIENCE)
        self.assertTrue(pipeline.coordinator.is_running())
        self.assertTrue(ready.items.empty() and live.items.empty())
        self.finish(stream, first)
        # The end: at once, and watchers learn of it.
        end = time.monotonic()
        self.assertEqual(pipeline.coordinator.wait(10), 0)
        self.assertLess(time.monotonic() - end, 4 * PATIENCE)
        self.assertEqual((ready.next(), live.next()), (UNAVAILABLE, UNAVAILABLE))

    def test_who_calls_all_the_time_sees_answers_and_then_unavailable(self):
        pipeline = self.serve("--drain-notice-seconds", 0)
        stream, first = self.start(pipeline, 2)
        callers = [Caller(pipeline.address) for _ in range(16)]
        time.sleep(0.3)
        pipeline.coordinator.signal(signal.SIGTERM)
        self.finish(stream, first)
        self.assertEqual(pipeline.coordinator.wait(10), 0)
        for caller in callers:
            caller.stop.set()
            caller.join()
            self.assertEqual(set(caller.codes), {OK, UNAVAILABLE})

    def test_an_idle_coordinator_stops_after_the_notice(self):
        for notice, least, most in [(0, 0, 1.9), (2, 1.95, 5)]:
            pipeline = self.serve("--drain-notice-seconds", notice)
            begin = time.monotonic()
            pipeline.coordinator.signal(signal.SIGTERM)
            self.assertEqual(pipeline.coordinator.wait(10), 0)
            self.assertGreaterEqual(time.monotonic() - begin, least)
            self.assertLess(time.monotonic() - begin, most * PATIENCE)

    def test_requests_have_only_so_long_to_finish(self):
        pipeline = self.serve("--drain-seconds", 1)
        stream, _ = self.start(pipeline, 8)
        begin = time.monotonic()
        pipeline.coordinator.signal(signal.SIGTERM)
        with expect_code(self, UNAVAILABLE, "the coordinator stops"):
            for _ in stream:
                pass
        self.assertGreater(time.monotonic() - begin, 0.95)
        self.assertEqual(pipeline.coordinator.wait(10), 0)
        self.assertLess(time.monotonic() - begin, 5 * PATIENCE)

    def test_a_second_signal_ends_the_wait(self):
        pipeline = self.serve("--drain-notice-seconds", 60)
        stream, _ = self.start(pipeline, 8)
        begin = time.monotonic()
        pipeline.coordinator.signal(signal.SIGTERM)
        wait_until(lambda: "not ready any more" in pipeline.coordinator.log(), 10, "it stops")
        pipeline.coordinator.signal(signal.SIGTERM)
        with expect_code(self, UNAVAILABLE, "the coordinator stops"):
            for _ in stream:
                pass
        self.assertEqual(pipeline.coordinator.wait(10), 0)
        self.assertLess(time.monotonic() - begin, 5 * PATIENCE)

    def test_all_told_to_stop_at_once_finish_what_runs(self):
        pipeline = self.serve(stages=2)
        stream, first = self.start(pipeline, 3)
        for process in pipeline.processes():
            process.signal(signal.SIGTERM)
        self.finish(stream, first)
        end = time.monotonic()
        for process in pipeline.processes():
            self.assertEqual(process.wait(10), 0, process.name)
        self.assertLess(time.monotonic() - end, 4 * PATIENCE)

    def test_a_stage_leaves_when_nothing_runs(self):
        pipeline = self.serve()
        pipeline.generate([1], max_tokens=2)
        begin = time.monotonic()
        pipeline.stages[0].signal(signal.SIGTERM)
        self.assertEqual(pipeline.stages[0].wait(10), 0)
        self.assertLess(time.monotonic() - begin, 3 * PATIENCE)

    def test_a_stage_leaves_in_the_end_and_a_spare_goes_on(self):
        pipeline = self.serve(wait=False, stages=0, wanted=1)
        stage = StageHealth(pipeline, "first", "--drain-seconds", 1)
        pipeline.wait_running()
        spare = StageHealth(pipeline, "spare")
        stream, first = self.start(pipeline, 4)
        begin = time.monotonic()
        stage.process.signal(signal.SIGTERM)
        stage.health.wait(STAGE, NOT_SERVING)
        self.assertTrue(stage.process.is_running())
        self.assertEqual(stage.process.wait(10), 0)
        self.assertGreater(time.monotonic() - begin, 0.95)
        spare.health.wait(STAGE, SERVING)
        self.finish(stream, first)


class ProbeTest(unittest.TestCase):
    def health(self, address, *arguments):
        return run(BIN / "stagecoach", "health", "--coordinator", address, *arguments, timeout=20)

    def test_exit_status_says_what_is_known(self):
        with Pipeline(stages=0, wanted=1, wait=False) as pipeline:
            def ends_with(status, output, *arguments, address=pipeline.address):
                result = self.health(address, *arguments)
                self.assertEqual((result.returncode, result.stdout), (status, output), result.stderr)
                return result.stderr

            ends_with(0, "SERVING\n")
            ends_with(1, "NOT_SERVING\n", INFERENCE)
            self.assertIn("NOT_FOUND", ends_with(1, "", "no.Such"))
            self.assertIn("stage", ends_with(2, "", "--stage"))
            ends_with(2, "", "a", "b")
            ends_with(2, "", "--list", "--watch")
            stage = StageHealth(pipeline, "stage")
            pipeline.wait_running()
            Health(pipeline.address).wait(INFERENCE, SERVING)
            ends_with(0, "SERVING\n", INFERENCE)
            ends_with(0, '{"service":"%s","status":"SERVING"}\n' % INFERENCE, INFERENCE, "--json")
            stage.health.wait(STAGE, SERVING)
            result = self.health(stage.health.address, "--list", "--json")
            self.assertEqual(json.loads(result.stdout),
                             {"statuses": {"": "SERVING", STAGE: "SERVING"}})
        self.assertIn("UNAVAILABLE", ends_with(3, ""))

    def test_no_answer_in_time_is_not_waited_for(self):
        with Pipeline(stages=0, wanted=1, wait=False) as pipeline:
            pipeline.coordinator.signal(signal.SIGSTOP)
            try:
                begin = time.monotonic()
                result = self.health(pipeline.address, "--timeout", "0.5")
                self.assertEqual((result.returncode, result.stdout), (3, ""))
                self.assertLess(time.monotonic() - begin, 2 * PATIENCE)
            finally:
                pipeline.coordinator.signal(signal.SIGCONT)

    def test_watch_writes_changes_until_it_is_interrupted(self):
        with Pipeline(stages=0, wanted=1, wait=False) as pipeline:
            watch = Process("watch", BIN / "stagecoach", "health", INFERENCE, "--watch",
                            "--coordinator", pipeline.address)
            self.addCleanup(lambda: watch.is_running() and watch.kill())
            wait_until(lambda: watch.log() == "NOT_SERVING\n", 10, "the first status")
            pipeline.add_stage("stage")
            wait_until(lambda: watch.log() == "NOT_SERVING\nSERVING\n", 10, "the change")
            watch.signal(signal.SIGINT)
            self.assertEqual(watch.wait(10), 0)
            other = Process("watch", BIN / "stagecoach", "health", "--watch", "--json",
                            "--coordinator", pipeline.address)
            self.addCleanup(lambda: other.is_running() and other.kill())
            wait_until(lambda: other.log() == '{"service":"","status":"SERVING"}\n', 10, "JSON")
        self.assertEqual(other.wait(10), 3)
        self.assertIn("the server stops", other.log())


if __name__ == "__main__":
    unittest.main()
