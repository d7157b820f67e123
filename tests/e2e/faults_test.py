"""Stages that die, hang or cannot load, and a coordinator that comes and goes."""

import concurrent.futures
import signal
import socket
import tempfile
import time
import unittest

import grpc

from checkpoint import copy_model, truncate, weight_files
from harness import (BIN, MODEL, PATIENCE, Pipeline, Process, admin_pb2, expect_code,
                     inference_pb2, wait_until)

LONG = {"max_tokens": 300, "ignore_eos": True}
RUNNING = admin_pb2.PIPELINE_STATE_RUNNING


def stage_named(pipeline, name):
    return next((s for s in pipeline.pipeline().stages if s.name == name), None)


class FaultsTest(unittest.TestCase):
    def test_request_in_flight_survives_the_death_of_any_stage(self):
        sampling = {"temperature": 0.8, "seed": 3}
        with Pipeline(stages=3) as pipeline:
            expected = pipeline.generate("The", sampling=sampling, stop=LONG).token_ids
            for index in range(3):
                stream = pipeline.stream("The", sampling=sampling, stop=LONG)
                messages = [next(stream) for _ in range(5)]
                victim = next(s for s in pipeline.stages if s.name.startswith(f"stage-{index}"))
                pipeline.kill_stage(victim)
                pipeline.add_stage(f"stage-{index}-{index}")
                messages += stream
                self.assertEqual([i for m in messages for i in m.token_ids], expected)
                self.assertEqual(messages[-1].finish_reason, inference_pb2.FINISH_REASON_LENGTH)
            self.assertGreater(pipeline.pipeline().replay_count, 0)

    def test_many_requests_survive_the_death_of_a_stage(self):
        with Pipeline(stages=2) as pipeline:
            fields = [{"prompt": "The", "sampling": {"temperature": 1, "seed": seed},
                       "stop": {"max_tokens": 100, "ignore_eos": True}} for seed in range(12)]
            expected = [pipeline.generate(**each).token_ids for each in fields]
            with concurrent.futures.ThreadPoolExecutor(len(fields)) as pool:
                running = [pool.submit(pipeline.generate, **each) for each in fields]
                wait_until(lambda: pipeline.pipeline().request_running_count > 3, 10, "they run")
                pipeline.kill_stage(pipeline.stages[1])
                pipeline.add_stage("another")
                self.assertEqual([each.result().token_ids for each in running], expected)

    def test_stopped_stage_that_comes_back_does_no_harm(self):
        with Pipeline(stages=2) as pipeline:
            expected = pipeline.generate("The", stop=LONG).token_ids
            stream = pipeline.stream("The", stop=LONG)
            messages = [next(stream) for _ in range(3)]
            frozen = pipeline.stages[0]
            frozen.signal(signal.SIGSTOP)
            try:
                wait_until(lambda: pipeline.pipeline().state != RUNNING, 15, "its loss is noticed")
            finally:
                frozen.signal(signal.SIGCONT)
            messages += stream
            self.assertEqual([i for m in messages for i in m.token_ids], expected)
            self.assertEqual(pipeline.generate("The", stop=LONG).token_ids, expected)

    def test_requests_wait_for_stages_and_then_give_up(self):
        with Pipeline(stages=2, coordinator=["--absent-seconds", 1]) as pipeline:
            pipeline.kill_stage(pipeline.stages[0])
            wait_until(lambda: pipeline.pipeline().state != RUNNING, 10, "its loss is noticed")
            begin = time.monotonic()
            with expect_code(self, grpc.StatusCode.UNAVAILABLE):
                pipeline.generate()
            self.assertLess(time.monotonic() - begin, 10 * PATIENCE)
            self.assertNotEqual(pipeline.pipeline().explanation, "")
            pipeline.add_stage("another")
            pipeline.wait_running()
            self.assertIn("72", pipeline.generate().text)

    def test_spare_stage_takes_over(self):
        with Pipeline(stages=2) as pipeline:
            pipeline.add_stage("spare")
            wait_until(lambda: stage_named(pipeline, "spare"), 10, "the spare has joined")
            self.assertEqual(stage_named(pipeline, "spare").layer_count, 0)
            pipeline.kill_stage(pipeline.stages[1])
            self.assertIn("72", pipeline.generate().text)
            self.assertGreater(stage_named(pipeline, "spare").layer_count, 0)

    def test_stage_with_a_broken_model_says_so_and_the_service_goes_on(self):
        with tempfile.TemporaryDirectory() as folder:
            broken = copy_model(folder)
            for path in weight_files(broken):
                truncate(path)
            with Pipeline(stages=0, wanted=2, wait=False) as pipeline:
                pipeline.add_stage("good")
                pipeline.add_stage("broken", "--model", broken)
                stage = wait_until(
                    lambda: (s := stage_named(pipeline, "broken")) and s.error and s, 10,
                    "the coordinator shows the failure")
                self.assertEqual(stage.state, admin_pb2.STAGE_STATE_FAILED)
                self.assertIn(".safetensors", stage.error)
                pipeline.inference.GetModel(inference_pb2.GetModelRequest(), timeout=10)
                pipeline.add_stage("another")
                pipeline.wait_running()
                self.assertIn("72", pipeline.generate().text)

    def test_stages_find_a_coordinator_that_was_started_again(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        with Pipeline(stages=2, coordinator=["--listen", address]) as pipeline:
            expected = pipeline.generate().token_ids
            pipeline.coordinator.kill()
            pipeline.coordinator = Process("coordinator-again", BIN / "stagecoach-coordinator",
                                           "--model", MODEL, "--listen", address, "--stages", 2)
            wait_until(lambda: self.is_running(pipeline), 20, "the pipeline runs again")
            self.assertEqual(pipeline.generate().token_ids, expected)

    @staticmethod
    def is_running(pipeline):
        try:
            return pipeline.pipeline().state == RUNNING
        except grpc.RpcError:
            return False


if __name__ == "__main__":
    unittest.main()
