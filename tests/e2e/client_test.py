"""The `stagecoach` command against a coordinator that answers as each test says."""

import concurrent.futures
import json
import signal
import socket
import subprocess
import threading
import time
import unittest

import grpc

from harness import (BIN, admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc, run,
                     wait_until)

CLIENT = BIN / "stagecoach"
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "queue_ms": 1.0, "first_token_ms": 10.0,
         "total_ms": 30.0}


class Coordinator(inference_pb2_grpc.InferenceServicer, admin_pb2_grpc.AdminServicer):
    """Keeps the last request and answers with what the test put here."""

    def __init__(self):
        self.request = None
        self.pieces = ["Hello", " wörld", "!"]
        self.piece_delay_s = 0.0
        self.refusal = None  # (code, sentence)
        self.refusal_count = 1 << 30  # so many times, of calls of any method
        self.retry_ms = None  # what refused calls are told
        self.request_count = 0
        self.break_after = []  # messages after which a Generate call breaks, one a call
        self.breaks_with_ok = False
        self.resumes = True
        self.cancelled = threading.Event()
        self.pipelines = [self.running()]

    @staticmethod
    def running():
        stage = admin_pb2.Stage(name="s0", state=admin_pb2.STAGE_STATE_RUNNING, layer_count=8,
                                weight_bytes=1000000, kernel_variant="avx2", thread_count=1)
        return admin_pb2.Pipeline(state=admin_pb2.PIPELINE_STATE_RUNNING, stage_count=1,
                                  model_name="m", stages=[stage])

    def take(self, request, context):
        self.request = request
        self.request_count += 1
        if self.refusal and self.refusal_count > 0:
            self.refusal_count -= 1
            if self.retry_ms is not None:
                context.set_trailing_metadata([("grpc-retry-pushback-ms", str(self.retry_ms))])
            context.abort(*self.refusal)

    def Generate(self, request, context):
        context.add_callback(self.cancelled.set)
        self.take(request, context)
        break_after = self.break_after.pop(0) if self.break_after else None
        first = len(request.resume[0].token_ids) if request.resume and self.resumes else 0
        for index, piece in enumerate(self.pieces[first:], first):
            if index - first == break_after:
                if self.breaks_with_ok:
                    return
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
            time.sleep(self.piece_delay_s)
            last = index == len(self.pieces) - 1
            yield inference_pb2.GenerateResponse(
                text=piece, token_ids=[index + 10], seed=2**63 + 1, token_first=index,
                request_id="made" if index == first else "",
                finish_reason="FINISH_REASON_STOP" if last else "FINISH_REASON_NONE",
                usage=USAGE if last else None, stop_token_id=2 if last else None)
        if break_after == len(self.pieces) - first:
            context.abort(grpc.StatusCode.UNAVAILABLE, "broken")

    def Tokenize(self, request, context):
        self.take(request, context)
        return inference_pb2.TokenizeResponse(token_ids=[1, 2, 3])

    def Detokenize(self, request, context):
        self.request = request
        return inference_pb2.DetokenizeResponse(text="a b c")

    def GetModel(self, request, context):
        return inference_pb2.Model(name="m", layer_count=8, eos_token_ids=[2])

    def GetPipeline(self, request, context):
        return self.pipelines.pop(0) if len(self.pipelines) > 1 else self.pipelines[0]


class ClientTest(unittest.TestCase):
    def setUp(self):
        self.coordinator = Coordinator()
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
        inference_pb2_grpc.add_InferenceServicer_to_server(self.coordinator, self.server)
        admin_pb2_grpc.add_AdminServicer_to_server(self.coordinator, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()
        self.addCleanup(lambda: self.server.stop(0).wait(10))

    def client(self, verb, *arguments, **kwargs):
        return run(CLIENT, verb, "--coordinator", self.address, *arguments, **kwargs)

    def start(self, *arguments, **kwargs):
        popen = subprocess.Popen([CLIENT, "generate", "--coordinator", self.address, *arguments],
                                 stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                 **kwargs)
        self.addCleanup(popen.stderr.close)
        self.addCleanup(lambda: popen.poll() is None and (popen.kill(), popen.wait()))
        return popen

    def test_generate_writes_text_and_one_line_about_it(self):
        result = self.client("generate", "hi")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout, "Hello wörld!\n")
        self.assertEqual(result.stderr, "3 tokens, 100.0 tokens/s, first token after 10.0 ms, "
                                        f"ended by stop, seed {2**63 + 1}\n")

    def test_generate_json_is_one_line_with_everything(self):
        result = self.client("generate", "--json", "hi")
        self.assertEqual(len(result.stdout.splitlines()), 1)
        answer = json.loads(result.stdout)
        self.assertEqual(answer["text"], "Hello wörld!")
        self.assertEqual(answer["token_ids"], [10, 11, 12])
        self.assertEqual(answer["finish_reason"], "stop")
        self.assertEqual(answer["stop_token_id"], 2)
        self.assertEqual(int(answer["seed"]), 2**63 + 1)
        self.assertEqual(answer["tokens_per_second"], 100.0)
        self.assertEqual(answer["stages"][0]["layer_count"], 8)

    def test_every_option_reaches_the_message(self):
        self.client("generate", "--token-ids", "1,2 3", "--max-tokens=7", "--temperature", "0.5",
                    "--top-p", "0.75", "--top-k", "4", "--min-p", "0.25", "--repetition-penalty",
                    "1.5", "--presence-penalty", "-1", "--frequency-penalty", "-2", "--seed",
                    str(2**64 - 1), "--logit-bias", "5=-1.5,6=2", "--logprobs", "0", "--stop", "a",
                    "--stop", "b", "--stop-token-ids", "8,9", "--ignore-eos",
                    "--keep-special-tokens", "--request-id", "r1", "--n", "3", "--priority", "-7",
                    "--cache-salt", "mine",
                    "--retry-seconds", "0")  # two of the three answers do not come
        expected = inference_pb2.GenerateRequest(
            token_ids={"ids": [1, 2, 3]},
            sampling={"temperature": 0.5, "top_p": 0.75, "top_k": 4, "min_p": 0.25,
                      "repetition_penalty": 1.5, "presence_penalty": -1, "frequency_penalty": -2,
                      "seed": 2**64 - 1, "logit_bias": [{"token_id": 5, "bias": -1.5},
                                                        {"token_id": 6, "bias": 2}]},
            stop={"max_tokens": 7, "strings": ["a", "b"], "token_ids": [8, 9],
                  "ignore_eos": True},
            logprobs=0, keep_special_tokens=True, request_id="r1", n=3, priority=-7,
            cache_salt="mine")
        self.assertEqual(self.coordinator.request, expected)

    def test_prompt_comes_from_option_argument_or_standard_input(self):
        for arguments, stdin in [(["--prompt", "one"], ""), (["one"], ""), (["-"], "one\n"),
                                 ([], "one\n"), (["--prompt", "-"], "one")]:
            result = self.client("generate", *arguments, stdin=stdin)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(self.coordinator.request.text, "one")
            self.assertFalse(self.coordinator.request.HasField("logprobs"))
            self.assertFalse(self.coordinator.request.sampling.HasField("seed"))

    def test_wrong_values_end_with_status_2_and_name_the_option(self):
        for arguments in [("--temperature", "nan"), ("--temperature", "x"), ("--max-tokens", "-1"),
                          ("--seed", "-1"), ("--seed", str(2**64)), ("--token-ids", "1,a"),
                          ("--token-ids", str(2**32)), ("--logit-bias", "1=x"),
                          ("--logit-bias", "1"), ("--stop-token-ids", "1;2"),
                          ("--stop", "x") * 65, ("--priority", "1.5"),
                          ("--priority", str(2**31)), ("--n", "-1")]:
            result = self.client("generate", *arguments)
            self.assertEqual(result.returncode, 2, arguments)
            self.assertIn(arguments[0], result.stderr)
            self.assertEqual(result.stdout, "")
        self.assertEqual(self.client("generate", "a", "--prompt", "b").returncode, 2)
        self.assertEqual(run(CLIENT, "dance").returncode, 2)
        self.assertEqual(run(CLIENT).returncode, 2)

    def test_refusal_is_one_sentence_with_the_code(self):
        self.coordinator.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "top_p is 7, at most 1")
        result = self.client("generate", "hi")
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stderr, "stagecoach: top_p is 7, at most 1 (INVALID_ARGUMENT)\n")

    def test_unreachable_coordinator_is_said_at_once(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
            for verb in ["generate", "status", "model", "tokenize", "detokenize"]:
                words = [] if verb in ("status", "model") else ["1"]
                result = run(CLIENT, verb, "--coordinator", address, "--retry-seconds", "0",
                             *words, timeout=10)
                self.assertEqual(result.returncode, 1)
                self.assertIn("(UNAVAILABLE)", result.stderr)
                self.assertIn(address, result.stderr)

    def refuse(self, code, count, retry_ms=None):
        self.coordinator.refusal = (code, "not now")
        self.coordinator.refusal_count = count
        self.coordinator.retry_ms = retry_ms
        self.coordinator.request_count = 0

    def test_unavailable_is_tried_again_by_every_verb(self):
        for verb, expected in [("generate", "Hello wörld!\n"), ("tokenize", "1 2 3\n")]:
            self.refuse(grpc.StatusCode.UNAVAILABLE, 3)
            result = self.client(verb, "hi")
            self.assertEqual((result.returncode, result.stdout), (0, expected), result.stderr)
            self.assertEqual(self.coordinator.request_count, 4)
            # Said once, however often it was tried.
            self.assertEqual(result.stderr.count("not now (UNAVAILABLE), trying for"), 1)

    def test_trying_again_is_bounded(self):
        for verb in ["generate", "tokenize"]:
            self.refuse(grpc.StatusCode.UNAVAILABLE, 1 << 30)
            begin = time.monotonic()
            result = self.client(verb, "--retry-seconds", "1", "hi")
            self.assertLess(time.monotonic() - begin, 5)
            self.assertEqual(result.returncode, 1)
            self.assertTrue(result.stderr.endswith("not now (UNAVAILABLE)\n"), result.stderr)
            self.assertGreater(self.coordinator.request_count, 2)
            self.refuse(grpc.StatusCode.UNAVAILABLE, 1 << 30)
            self.client(verb, "--retry-seconds", "0", "hi")
            self.assertEqual(self.coordinator.request_count, 1)

    def test_exhausted_is_tried_again_when_the_coordinator_says_when(self):
        exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
        for verb in ["generate", "tokenize"]:
            self.refuse(exhausted, 1, retry_ms=700)
            begin = time.monotonic()
            self.assertEqual(self.client(verb, "hi").returncode, 0)
            self.assertGreaterEqual(time.monotonic() - begin, 0.7)
            self.assertEqual(self.coordinator.request_count, 2)
            for code, retry_ms in [(exhausted, None), (exhausted, 11000), (exhausted, -1),
                                   (grpc.StatusCode.UNAVAILABLE, -1),
                                   (grpc.StatusCode.INTERNAL, 10)]:
                self.refuse(code, 1 << 30, retry_ms)
                begin = time.monotonic()
                self.assertEqual(self.client(verb, "hi").returncode, 1)
                self.assertLess(time.monotonic() - begin, 5)
                self.assertEqual(self.coordinator.request_count, 1, (code, retry_ms))

    def test_interrupt_while_waiting_to_try_again_ends_at_once(self):
        self.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, 1 << 30, retry_ms=20000)
        client = self.start("--retry-seconds", "60", "hi", stdout=subprocess.DEVNULL)
        # What it waits for is said, since it is long.
        self.assertIn("trying for 60.0 s more", client.stderr.readline())
        begin = time.monotonic()
        client.send_signal(signal.SIGINT)
        self.assertEqual(client.wait(10), 130)
        self.assertLess(time.monotonic() - begin, 2)

    def test_broken_answer_goes_on_with_what_came(self):
        for breaks in [[1], [2], [1, 1], [0, 2], [0, 1, 0, 1]] * 2:
            self.coordinator.break_after = list(breaks)
            self.coordinator.breaks_with_ok = not self.coordinator.breaks_with_ok
            result = self.client("generate", "--json", "--top-k", "5", "--n", "1", "hi")
            self.assertEqual(result.returncode, 0, result.stderr)
            answer = json.loads(result.stdout)
            self.assertEqual(answer["text"], "Hello wörld!")
            self.assertEqual(answer["token_ids"], [10, 11, 12])
            self.assertEqual(answer["finish_reason"], "stop")
            came = sum(breaks)
            expected = inference_pb2.GenerateRequest(
                text="hi", sampling={"top_k": 5, "seed": 2**63 + 1}, stop={}, n=1,
                request_id="made",
                resume=[inference_pb2.ResumedAnswer(token_ids=range(10, 10 + came))])
            self.assertEqual(self.coordinator.request, expected)

    def test_answer_that_came_whole_is_not_asked_for_again(self):
        self.coordinator.break_after = [3]
        self.coordinator.request_count = 0
        result = self.client("generate", "hi")
        self.assertEqual((result.returncode, result.stdout), (0, "Hello wörld!\n"))
        self.assertEqual(self.coordinator.request_count, 1)

    def test_coordinator_that_begins_again_is_not_mistaken_for_one_that_goes_on(self):
        self.coordinator.break_after = [2]
        self.coordinator.resumes = False
        result = self.client("generate", "hi")
        self.assertEqual((result.returncode, result.stdout), (1, "Hello wörld\n"))
        self.assertIn("did not go on with it", result.stderr)

    def test_text_is_flushed_as_it_comes(self):
        self.coordinator.piece_delay_s = 0.4
        client = self.start("hi", stdout=subprocess.PIPE)
        self.addCleanup(client.stdout.close)
        self.assertEqual(client.stdout.read(5), "Hello")
        self.assertIsNone(client.poll())
        self.assertEqual(client.wait(10), 0)

    def test_interrupt_cancels_the_call(self):
        self.coordinator.pieces = ["x"] * 10000
        self.coordinator.piece_delay_s = 0.01
        client = self.start("hi", stdout=subprocess.PIPE)
        self.addCleanup(client.stdout.close)
        client.stdout.read(1)
        client.send_signal(signal.SIGINT)
        self.assertEqual(client.wait(10), 130)
        self.assertTrue(self.coordinator.cancelled.wait(10))
        self.assertIn("interrupted after", client.stderr.read())

    def test_closed_output_ends_quietly_and_cancels_the_call(self):
        self.coordinator.pieces = ["x"] * 10000
        self.coordinator.piece_delay_s = 0.01
        client = self.start("hi", stdout=subprocess.PIPE)
        client.stdout.read(1)
        client.stdout.close()
        self.assertEqual(client.wait(10), 0)
        self.assertEqual(client.stderr.read(), "")
        self.assertTrue(self.coordinator.cancelled.wait(10))

    def test_full_disk_is_an_error(self):
        with open("/dev/full", "w") as full:
            client = self.start("hi", stdout=full)
            self.assertEqual(client.wait(10), 1)
        self.assertIn("No space left", client.stderr.read())

    def test_wait_shows_progress_and_goes_on_when_the_pipeline_runs(self):
        loading = admin_pb2.Stage(name="s0", state=admin_pb2.STAGE_STATE_LOADING,
                                  load_bytes_done=55, load_bytes_total=100)
        self.coordinator.pipelines = [
            admin_pb2.Pipeline(state=admin_pb2.PIPELINE_STATE_WAITING, explanation="1 of 2 joined"),
            admin_pb2.Pipeline(state=admin_pb2.PIPELINE_STATE_LOADING, explanation="loading",
                               stages=[loading]),
            Coordinator.running()]
        result = self.client("generate", "--wait", "10", "hi")
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = result.stderr.splitlines()
        self.assertEqual(lines[0], "1 of 2 joined")
        self.assertEqual(lines[1], "loading, s0 loads 50 %")
        self.assertIn("stage 0: layers 0-7, 1.0 MB of weights, avx2, 1 thread (s0)", lines[2])

    def test_wait_gives_up_when_a_stage_cannot_serve_the_model(self):
        failed = admin_pb2.Stage(name="s1", state=admin_pb2.STAGE_STATE_FAILED,
                                 error="model.safetensors: truncated")
        self.coordinator.pipelines = [
            admin_pb2.Pipeline(state=admin_pb2.PIPELINE_STATE_LOADING, stages=[failed])]
        result = self.client("generate", "--wait", "10", "hi")
        self.assertEqual(result.returncode, 1)
        self.assertIn("s1 cannot serve the model: model.safetensors: truncated", result.stderr)

    def test_wait_is_bounded(self):
        self.coordinator.pipelines = [admin_pb2.Pipeline(state=admin_pb2.PIPELINE_STATE_WAITING)]
        begin = time.monotonic()
        result = self.client("generate", "--wait", "0.5", "hi")
        self.assertEqual(result.returncode, 1)
        self.assertLess(time.monotonic() - begin, 5)
        self.assertIn("does not run after 0.5 s", result.stderr)

    def test_tokenize_and_detokenize(self):
        self.assertEqual(self.client("tokenize", "abc").stdout, "1 2 3\n")
        self.assertEqual(self.coordinator.request.text, "abc")
        self.assertEqual(json.loads(self.client("tokenize", "--json", stdin="x").stdout),
                         {"token_ids": [1, 2, 3]})
        result = self.client("detokenize", "--keep-special-tokens", "1,2", "3")
        self.assertEqual(result.returncode, 2)
        self.assertEqual(self.client("detokenize", "1,2").stdout, "a b c\n")
        self.assertEqual(list(self.coordinator.request.token_ids), [1, 2])
        self.assertEqual(self.client("detokenize", stdin="4 5\n").stdout, "a b c\n")
        self.assertEqual(list(self.coordinator.request.token_ids), [4, 5])

    def test_status_and_model_as_table_and_as_json(self):
        table = self.client("status").stdout
        self.assertIn("running", table)
        self.assertIn("0-7", table)
        answer = json.loads(self.client("status", "--json").stdout)
        self.assertEqual(answer["state"], "PIPELINE_STATE_RUNNING")
        self.assertEqual(answer["stages"][0]["weight_bytes"], 1000000)
        self.assertIn("layers             8", self.client("model").stdout)
        self.assertEqual(json.loads(self.client("model", "--json").stdout)["eos_token_ids"], [2])

    def test_second_interrupt_is_not_needed_when_output_hangs(self):
        # Nobody reads: the text fills the pipe and the client's writer blocks.
        self.coordinator.pieces = ["x" * 65536] * 100
        client = self.start("hi", stdout=subprocess.PIPE)
        self.addCleanup(client.stdout.close)
        wait_until(lambda: self.coordinator.request is not None, 10, "the call has begun")
        time.sleep(0.3)
        client.send_signal(signal.SIGTERM)
        self.assertEqual(client.wait(10), 130)


if __name__ == "__main__":
    unittest.main()
