"""The log as programs read it: a line for each request that is over."""

import json
import unittest

import grpc

from harness import PROMPT, Pipeline, expect_code, inference_pb2, wait_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


class AccessLogTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pipeline = Pipeline(stages=1, coordinator=("--log-format", "json"),
                                stage=("--log-format", "json"))

    @classmethod
    def tearDownClass(cls):
        cls.pipeline.close()

    def lines(self):
        return [json.loads(line) for line in self.pipeline.coordinator.log().splitlines()]

    def wait_line(self, **fields):
        """The one request line that has these fields."""
        def find():
            return [line for line in self.lines() if line["message"] == "request" and
                    fields.items() <= line.items()]

        found = wait_until(find, 5, f"a line of the access log with {fields}")
        self.assertEqual(len(found), 1, found)
        return found[0]

    def test_every_line_of_every_process_is_an_object(self):
        for process in self.pipeline.processes():
            lines = [json.loads(line) for line in process.log().splitlines()]
            self.assertGreater(len(lines), 1)
            for line in lines:
                self.assertLessEqual({"time", "level", "process", "message"}, line.keys())

    def test_answered_request_has_its_tokens_times_and_trace(self):
        request = inference_pb2.GenerateRequest(text=PROMPT, request_id="answered", n=2,
                                                stop={"max_tokens": 5, "ignore_eos": True})
        messages = list(self.pipeline.inference.Generate(
            request, timeout=60, metadata=[("traceparent", TRACEPARENT)]))
        usage = messages[-1].usage
        line = self.wait_line(request_id="answered")
        self.assertEqual(line["method"], "stagecoach.v1.Inference/Generate")
        self.assertEqual(line["code"], "OK")
        self.assertEqual(line["trace_id"], TRACE)
        self.assertEqual(line["peer"], "127.0.0.1")
        self.assertEqual(line["answers"], 2)
        self.assertEqual(line["prompt_tokens"], usage.prompt_tokens)
        self.assertEqual(line["cached_tokens"], usage.cached_tokens)
        self.assertEqual(line["completion_tokens"], 10)
        self.assertAlmostEqual(line["queue_ms"], usage.queue_ms, delta=0.01)
        self.assertAlmostEqual(line["first_token_ms"], usage.first_token_ms, delta=0.01)
        self.assertGreaterEqual(line["total_ms"], usage.total_ms)
        self.assertNotIn("reason", line)

    def test_refused_request_says_why(self):
        with expect_code(self, grpc.StatusCode.INVALID_ARGUMENT):
            self.pipeline.generate("The", sampling={"temperature": 101})
        line = self.wait_line(code="INVALID_ARGUMENT")
        self.assertIn("sampling.temperature is 101", line["reason"])
        self.assertNotIn("completion_tokens", line)

    def test_cancelled_request_has_the_tokens_made_for_nobody(self):
        call = self.pipeline.stream(PROMPT, 200, request_id="cancelled",
                                    stop={"max_tokens": 200, "ignore_eos": True})
        next(call)
        call.cancel()
        line = self.wait_line(request_id="cancelled")
        self.assertEqual(line["code"], "CANCELLED")
        self.assertGreater(line["completion_tokens"], 0)
        self.assertLess(line["completion_tokens"], 200)

    def test_unary_calls_are_there_too(self):
        self.pipeline.tokenize("a b c")
        line = self.wait_line(method="stagecoach.v1.Inference/Tokenize")
        self.assertEqual(line["code"], "OK")


class NoAccessLogTest(unittest.TestCase):
    def test_it_can_be_left_out(self):
        with Pipeline(stages=1, coordinator=("--access-log", "off")) as pipeline:
            pipeline.generate("The", max_tokens=1)
            pipeline.tokenize("a")
        self.assertNotIn(" request method=", pipeline.coordinator.log())
        self.assertIn("epoch 1 runs", pipeline.coordinator.log())


if __name__ == "__main__":
    unittest.main()
