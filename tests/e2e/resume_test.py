"""Calls that break and go on: by hand in Python, and by the client."""

import json
import signal
import socket
import subprocess
import threading
import unittest

import grpc

from harness import (BIN, MODEL, PATIENCE, SANITIZER, Pipeline, Process, expect_code, inference_pb2,
                     inference_pb2_grpc, run, wait_until)

CLIENT = BIN / "stagecoach"
# What differs between two calls that give the same: times, what was cached, who computed it.
DIFFERS = ("queue_ms", "first_token_ms", "total_ms", "tokens_per_second", "cached_tokens", "stages")

ANSWER_STEP = 0x9E3779B97F4A7C15  # between the seeds of neighbouring answers
SAMPLING = {"temperature": 0.9, "seed": 17, "repetition_penalty": 1.3, "presence_penalty": 0.5,
            "frequency_penalty": 0.25}
STOP = {"max_tokens": 40, "ignore_eos": True, "strings": ["zzzz", "e x", "  \n"]}


class Answer:
    """What came of one answer, by one call or several."""

    def __init__(self):
        self.text, self.token_ids, self.logprobs, self.last = "", [], [], None

    def take(self, message):
        assert message.token_first == len(self.token_ids), (message.token_first, self.token_ids)
        assert self.last is None, "a message after the last one"
        self.text += message.text
        self.token_ids += message.token_ids
        self.logprobs += [(p.logprob, [(t.token_id, t.logprob) for t in p.top])
                          for p in message.logprobs]
        if message.finish_reason:
            self.last = (message.finish_reason, message.WhichOneof("stop_cause"),
                         message.stop_string, message.stop_token_id)

    def __eq__(self, other):
        return vars(self) == vars(other)

    def __repr__(self):
        return repr(vars(self))


def take_all(messages, n=1, answers=None):
    """The answers, and the usage of the last message."""
    answers = answers or [Answer() for _ in range(n)]
    usage = None
    for message in messages:
        answers[message.index].take(message)
        usage = message.usage if message.HasField("usage") else usage
    return answers, usage


def resume_of(answers):
    return [inference_pb2.ResumedAnswer(token_ids=a.token_ids, complete=a.last is not None)
            for a in answers]


class ResumeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pipeline = Pipeline(stages=2)
        cls.addClassCleanup(cls.pipeline.close)

    def setUp(self):
        self.pipeline.check_running()

    def check_every_cut(self, prompt, stride=1, n=1, **fields):
        """Cuts the call after each number of messages and goes on; nothing may differ."""
        messages = list(self.pipeline.stream(prompt, n=n, **fields))
        expected, usage = take_all(messages, n)
        for count in range(0, len(messages), stride * (5 if SANITIZER else 1)):
            answers, _ = take_all(messages[:count], n)
            answers, usage_after = take_all(
                self.pipeline.stream(prompt, n=n, resume=resume_of(answers), **fields), n, answers)
            self.assertEqual(answers, expected, f"cut after message {count}")
            for field in ("prompt_tokens", "completion_tokens"):
                self.assertEqual(getattr(usage_after, field), getattr(usage, field))
            self.assertLessEqual(usage_after.cached_tokens, usage.prompt_tokens)
        return expected

    def test_rest_is_as_if_the_call_had_not_broken_wherever_it_broke(self):
        answer, = self.check_every_cut("The", sampling=SAMPLING, stop=STOP, logprobs=2)
        self.assertEqual(len(answer.logprobs), len(answer.token_ids))

    def test_text_of_characters_of_many_tokens_and_stop_strings_is_neither_lost_nor_double(self):
        biases = [{"token_id": i, "bias": 8} for i in self.pipeline.tokenize("日本語😀é—")]
        whole = self.pipeline.generate("The", sampling={**SAMPLING, "logit_bias": biases},
                                       stop={"max_tokens": 30, "ignore_eos": True})
        self.assertTrue(any(m.token_ids and not m.text for m in whole.messages), whole.text)
        # The string ends in the middle of what is drawn, and begins several tokens before.
        middle = len(whole.text) * 2 // 3
        answer, = self.check_every_cut(
            "The", sampling={**SAMPLING, "logit_bias": biases},
            stop={"max_tokens": 30, "ignore_eos": True,
                  "strings": [whole.text[middle - 4:middle], whole.text[:8] + "#", "\ufffd\ufffd#"]})
        self.assertEqual(answer.last[1], "stop_string")

    def is_all_made(self):
        pipeline = self.pipeline.pipeline()
        return (pipeline.completion_token_count > self.made_before and
                pipeline.request_running_count == 0)

    def test_text_belongs_to_its_tokens_also_when_a_slow_reader_gets_many_at_once(self):
        # More than fits on the way.
        fields = {"text": "The", "n": 8, "logprobs": 20, "stop": {**STOP, "max_tokens": 100},
                  "sampling": {**SAMPLING, "temperature": 1.2}}
        # A channel that takes little ahead of its reader.
        channel = grpc.insecure_channel(self.pipeline.address, options=[
            ("grpc.enable_http_proxy", 0), ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", 1 << 14)])
        self.addCleanup(channel.close)
        stub = inference_pb2_grpc.InferenceStub(channel)
        request = inference_pb2.GenerateRequest(**fields)
        texts = {}  # of an answer, after so many tokens
        for is_slow in (False, True):
            self.made_before = self.pipeline.pipeline().completion_token_count
            stream = stub.Generate(request, timeout=60 * PATIENCE)
            if is_slow:  # the whole is made and waits at the coordinator before it is read
                wait_until(self.is_all_made, 30, "all is made")
            answers = [Answer() for _ in range(8)]
            longest = 0
            for message in stream:
                answer = answers[message.index]
                answer.text += message.text
                answer.token_ids += message.token_ids
                longest = max(longest, len(message.token_ids))
                if message.token_ids:
                    at = (message.index, message.token_first + len(message.token_ids))
                    texts.setdefault(at, []).append(answer.text)
            self.assertEqual(longest > 1, is_slow)
        for at, pair in texts.items():
            self.assertEqual(pair[0], pair[-1], at)

    def test_several_answers_of_which_some_are_complete_or_have_no_token(self):
        ended = 0
        for seed in range(3):
            answers = self.check_every_cut(
                "The", n=4, stride=5, sampling={"temperature": 1.2, "seed": seed},
                stop={"max_tokens": 12, "strings": ["a", "o"]})
            ended += sum(a.last[1] == "stop_string" for a in answers)
        self.assertGreater(ended, 0)  # so that they did not all end together

    def test_drawn_seed_of_any_answer_is_enough(self):
        sampling = {"temperature": 1}
        messages = list(self.pipeline.stream("The", n=3, max_tokens=10, sampling=sampling))
        expected, _ = take_all(messages, 3)
        some = [m for m in messages if m.index == 2][:4]
        answers, _ = take_all(some, 3)
        seed = (some[-1].seed - 2 * ANSWER_STEP) % 2**64
        answers, _ = take_all(self.pipeline.stream(
            "The", n=3, max_tokens=10, sampling={"temperature": 1, "seed": seed},
            resume=resume_of(answers)), 3, answers)
        self.assertEqual(answers, expected)

    def test_last_message_comes_again_when_its_tokens_came(self):
        fields = {"stop": {"max_tokens": 5, "ignore_eos": True}, "sampling": {"seed": 1}}
        whole = self.pipeline.generate("The", **fields)
        last, = self.pipeline.stream(
            "The", **fields,
            resume=[inference_pb2.ResumedAnswer(token_ids=whole.token_ids)])
        self.assertEqual(last.finish_reason, inference_pb2.FINISH_REASON_LENGTH)
        self.assertEqual((last.text, list(last.token_ids), last.token_first), ("", [], 5))
        self.assertEqual(last.usage.completion_tokens, 5)
        wait_until(self.pipeline.is_idle, 10, "nothing is left of it")

    def test_what_cannot_be_gone_on_with_is_refused_by_name(self):
        vocabulary = self.pipeline.inference.GetModel(
            inference_pb2.GetModelRequest()).vocabulary_size
        seed = {"seed": 1}
        for words, fields in [
                (["sampling.seed"], {"resume": [{"token_ids": [5]}]}),
                (["resume", "2", "1"], {"resume": [{}, {}], "sampling": seed}),
                (["resume[0].token_ids[1]", str(vocabulary)],
                 {"resume": [{"token_ids": [5, vocabulary]}], "sampling": seed}),
                (["resume[0].token_ids", "33", "32"],
                 {"resume": [{"token_ids": [5] * 33}], "sampling": seed}),
                (["complete"], {"resume": [{"token_ids": [5], "complete": True}],
                                "sampling": seed})]:
            with expect_code(self, grpc.StatusCode.INVALID_ARGUMENT, *words):
                self.pipeline.generate(**fields)
        wait_until(self.pipeline.is_idle, 10, "nothing is left of them")


class CuttingProxy:
    """Passes TCP connections on to `address`; cuts each, by a reset, after so many bytes have come
    back over it. Beyond the last number connections live."""

    def __init__(self, address, byte_counts):
        host, port = address.split(":")
        self.target = (host, int(port))
        self.byte_counts = list(byte_counts)
        self.cut_count = 0
        self.sockets = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(self.target)
            self.sockets += [near, far]
            limit = self.byte_counts.pop(0) if self.byte_counts else None
            threading.Thread(target=self.copy, args=(near, far, None), daemon=True).start()
            threading.Thread(target=self.copy, args=(far, near, limit), daemon=True).start()

    def copy(self, source, sink, limit):
        try:
            while data := source.recv(65536 if limit is None else max(1, min(limit, 65536))):
                sink.sendall(data)
                if limit is None:
                    continue
                limit -= len(data)
                if limit <= 0:
                    self.cut_count += 1
                    break
        except OSError:
            pass
        for each in (source, sink):
            # Closed with nothing to wait for: a reset.
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.listener.close()
        for each in self.sockets:
            each.close()


def without_what_differs(line):
    return {key: value for key, value in line.items() if key not in DIFFERS}


def generate(address, *options, timeout=60):
    """`stagecoach generate --json` to its end; its line without what may differ."""
    result = run(CLIENT, "generate", "--coordinator", address, "--json", *options, timeout=timeout)
    if result.returncode != 0:
        raise AssertionError(f"ended with {result.returncode}: {result.stderr}")
    line = json.loads(result.stdout)
    assert line["first_token_ms"] <= line["total_ms"]
    return without_what_differs(line)


class ClientResumeTest(unittest.TestCase):
    OPTIONS = ["--temperature", "0.9", "--seed", "5", "--ignore-eos", "--logprobs", "2",
               "--presence-penalty", "0.5", "--repetition-penalty", "1.2", "--stop", "zzzz",
               "--prompt", "The"]

    def test_cut_connections_cannot_be_seen_in_the_answer(self):
        with Pipeline(stages=2) as pipeline:
            for options in (["--max-tokens", "120"], ["--max-tokens", "40", "--n", "4"]):
                expected = generate(pipeline.address, *self.OPTIONS, *options)
                for counts in ([1000, 2000, 3000], [40, 700, 701, 702, 703], [5000, 1, 2500]):
                    proxy = CuttingProxy(pipeline.address, counts)
                    self.addCleanup(proxy.close)
                    self.assertEqual(generate(proxy.address, *self.OPTIONS, *options), expected)
                    # Where messages go out together the answer may be whole before the last cut.
                    self.assertGreaterEqual(proxy.cut_count, 2)
                    proxy.close()
            wait_until(pipeline.is_idle, 10, "nothing is left of the calls that broke")

    @staticmethod
    def restart_coordinator(pipeline):
        """kill -9 while a stage stands still, so that no answer can end meanwhile."""
        frozen = pipeline.stages[0]
        frozen.signal(signal.SIGSTOP)
        pipeline.coordinator.kill()
        pipeline.coordinator = Process(
            "coordinator-again", BIN / "stagecoach-coordinator", "--model", MODEL, "--listen",
            pipeline.address, "--stages", 2)
        frozen.signal(signal.SIGCONT)

    @staticmethod
    def pipeline_at_fixed_port():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        return Pipeline(stages=2, coordinator=["--listen", address])

    def popen(self, address, *options):
        popen = subprocess.Popen([CLIENT, "generate", "--coordinator", address, "--retry-seconds",
                                  str(30 * PATIENCE), *options],
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True)
        self.addCleanup(popen.stdout.close)
        self.addCleanup(popen.stderr.close)
        self.addCleanup(lambda: popen.poll() is None and (popen.kill(), popen.wait()))
        return popen

    def test_killed_coordinator_cannot_be_seen_in_the_answer(self):
        with self.pipeline_at_fixed_port() as pipeline:
            for options in (["--max-tokens", "300", "--n", "1"], ["--max-tokens", "60", "--n", "5"]):
                expected = generate(pipeline.address, *self.OPTIONS, *options)
                before = pipeline.pipeline().completion_token_count
                client = self.popen(pipeline.address, "--json", *self.OPTIONS, *options)
                wait_until(lambda: pipeline.pipeline().completion_token_count > before + 20, 10,
                           "some tokens have come")
                self.restart_coordinator(pipeline)
                out, err = client.communicate(timeout=60 * PATIENCE)
                self.assertEqual(client.returncode, 0, err)
                line = json.loads(out)
                self.assertEqual(without_what_differs(line), expected)
                # The second coordinator made the rest, and nothing that was there already.
                self.assertLess(pipeline.pipeline().completion_token_count,
                                expected["completion_tokens"])

    def test_client_of_any_kind_goes_on_after_a_killed_coordinator(self):
        fields = {"prompt": "The", "n": 3, "logprobs": 1, "sampling": SAMPLING,
                  "stop": {"max_tokens": 100, "ignore_eos": True}}
        with self.pipeline_at_fixed_port() as pipeline:
            expected, usage = take_all(pipeline.stream(**fields), 3)
            stream = pipeline.stream(**fields)
            answers, _ = take_all([next(stream) for _ in range(50)], 3)
            self.restart_coordinator(pipeline)
            with self.assertRaises(grpc.RpcError) as broken:
                while True:
                    take_all([next(stream)], 3, answers)
            self.assertEqual(broken.exception.code(), grpc.StatusCode.UNAVAILABLE)
            wait_until(lambda: self.answers(pipeline), 20, "the coordinator is there again")
            answers, usage_after = take_all(
                pipeline.stream(resume=resume_of(answers), **fields), 3, answers)
            self.assertEqual(answers, expected)
            self.assertEqual(usage_after.completion_tokens, usage.completion_tokens)

    @staticmethod
    def answers(pipeline):
        try:
            return pipeline.pipeline()
        except grpc.RpcError:
            return None

    def test_text_goes_on_in_the_middle_of_a_line(self):
        with Pipeline(stages=2) as pipeline:
            whole = run(CLIENT, "generate", "--coordinator", pipeline.address, *self.OPTIONS,
                        "--max-tokens", "100").stdout
            proxy = CuttingProxy(pipeline.address, [1500, 1500])
            self.addCleanup(proxy.close)
            result = run(CLIENT, "generate", "--coordinator", proxy.address, *self.OPTIONS,
                         "--max-tokens", "100")
            self.assertEqual(result.stdout, whole)
            self.assertEqual(proxy.cut_count, 2)
            broken = CuttingProxy(pipeline.address, [1500])
            self.addCleanup(broken.close)
            result = run(CLIENT, "generate", "--coordinator", broken.address, "--retry-seconds",
                         "0", *self.OPTIONS, "--max-tokens", "100")
            self.assertEqual(result.returncode, 1)
            self.assertIn("(UNAVAILABLE)", result.stderr)
            self.assertTrue(whole.startswith(result.stdout[:-1]))


if __name__ == "__main__":
    unittest.main()
