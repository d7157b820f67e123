"""More requests than fit, clients that do not read, leave or come too late: all get an answer, memory
stays flat, and others go on."""

import asyncio
import collections
import contextlib
import json
import os
import pathlib
import re
import subprocess
import threading
import time
import unittest

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import http2
from harness import (BIN, PATIENCE, PROMPT, Pipeline, expect_code, inference_pb2, run,
                     wait_until)

GENERATE = "/stagecoach.v1.Inference/Generate"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
DEADLINE = grpc.StatusCode.DEADLINE_EXCEEDED
INVALID = grpc.StatusCode.INVALID_ARGUMENT
RETRY = "grpc-retry-pushback-ms"
WAITING_MAX = 64
RUNNING_MAX = 16
SEED_STEP = 0x9E3779B97F4A7C15  # as inference.proto says
SANITIZED = PATIENCE > 1  # allocators of sanitizers keep what is freed


def memory_bytes(pid, field="VmRSS"):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text).group(1)) * 1024


def reset_peak(pid):
    """From now on VmHWM is the most that the process has been resident since now."""
    pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")


async def ask_at_once(address, request, count):
    """Sends `count` requests without waiting for any; how many ended with which code, and whether
    each that was refused was told when to try again."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(4)]
    calls = [channel.unary_stream(GENERATE) for channel in channels]

    async def ask(index):
        call = calls[index % len(calls)](request, timeout=60 * PATIENCE)
        try:
            last = None
            async for message in call:
                last = message
            response = inference_pb2.GenerateResponse.FromString(last)
            return "OK" if response.finish_reason else "no end", None
        except grpc.aio.AioRpcError as error:
            return error.code().name, dict(error.trailing_metadata() or {}).get(RETRY)

    results = await asyncio.gather(*(ask(index) for index in range(count)))
    for channel in channels:
        await channel.close()
    return results


def answer_ids(completion, index):
    """The token ids of one of several answers."""
    return [i for m in completion.messages if m.index == index for i in m.token_ids]


@contextlib.contextmanager
def kept_alive(connections):
    """Answers pings: gRPC would take a client that does not for dead."""
    is_over = threading.Event()

    def answer():
        while not is_over.is_set():
            for connection in connections:
                collections.deque(connection.frames(0.01), maxlen=0)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        for connection in connections:
            connection.close()


class OverloadTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pipeline = Pipeline(stages=1, coordinator=(
            "--max-waiting", WAITING_MAX, "--max-running", RUNNING_MAX, "--unread-seconds", 1))
        cls.model = cls.pipeline.inference.GetModel(inference_pb2.GetModelRequest())

    @classmethod
    def tearDownClass(cls):
        cls.pipeline.close()

    def setUp(self):
        self.pipeline.check_running()

    def tearDown(self):
        self.pipeline.check_running()
        wait_until(self.pipeline.is_idle, 10, "all requests and KV blocks are free again")

    def coordinator_bytes(self, field="VmRSS"):
        return memory_bytes(self.pipeline.coordinator.pid, field)

    def request(self, **fields):
        return inference_pb2.GenerateRequest(**{"text": PROMPT, **fields})

    # -- too many

    def test_ten_thousand_at_once_each_get_an_answer(self):
        expected = self.pipeline.generate(max_tokens=4).token_ids
        request = self.request(stop={"max_tokens": 4}).SerializeToString()
        peaks = []
        for count in (10000, 5000, 5000):
            reset_peak(self.pipeline.coordinator.pid)
            begin = time.monotonic()
            results = asyncio.run(ask_at_once(self.pipeline.address, request, count))
            codes = collections.Counter(code for code, _ in results)
            peaks.append(self.coordinator_bytes("VmHWM"))
            print(f"{count} at once, {time.monotonic() - begin:.1f} s: {dict(codes)}, peak "
                  f"{peaks[-1] / 1e6:.0f} MB")
            self.assertEqual(set(codes) - {"OK", EXHAUSTED.name}, set())
            # Those that fit are answered, and most do not fit.
            self.assertGreaterEqual(codes["OK"], WAITING_MAX)
            self.assertGreater(codes[EXHAUSTED.name], 0)
            for code, retry_ms in results:
                if code == EXHAUSTED.name:
                    self.assertTrue(100 <= int(retry_ms) <= 30000, retry_ms)
        if not SANITIZED:
            self.assertLess(peaks[0], 200e6)
            # Nothing of it stayed. How many are under way at once differs, and the peak with it.
            self.assertLess(min(peaks[1:]), peaks[0] + 16e6)
        self.assertEqual(self.pipeline.generate(max_tokens=4).token_ids, expected)

    def check_retry_info(self, call, retry_ms):
        """What programs read that know google.rpc.RetryInfo."""
        status = rpc_status.from_call(call)  # checks code and message against the call's
        self.assertEqual(status.code, EXHAUSTED.value[0])
        self.assertEqual(len(status.details), 1)
        info = error_details_pb2.RetryInfo()
        self.assertTrue(status.details[0].Unpack(info))
        self.assertEqual(info.retry_delay.ToMilliseconds(), retry_ms)

    def test_refusal_says_when_to_come_back(self):
        stop = {"max_tokens": 400, "ignore_eos": True}
        calls = []

        def find_refused():
            calls.extend(self.pipeline.stream("The", stop=stop) for _ in range(16))
            return next((call for call in calls if call.done() and call.code() == EXHAUSTED), None)

        refused = wait_until(find_refused, 10, "one is refused")
        with expect_code(self, EXHAUSTED, "too many requests wait", "try again in"):
            list(refused)
        retry_ms = int(dict(refused.trailing_metadata())[RETRY])
        self.assertTrue(100 <= retry_ms <= 30000, retry_ms)
        self.check_retry_info(refused, retry_ms)
        for call in calls:
            call.cancel()
        # After so long there is room.
        time.sleep(min(retry_ms / 1000, 5))
        self.assertEqual(len(self.pipeline.generate("The", max_tokens=1).token_ids), 1)

    # -- clients that do not read

    def test_clients_that_never_read_hold_up_nobody(self):
        stop = {"max_tokens": 480, "ignore_eos": True}
        expected = self.pipeline.generate("The", stop=stop).token_ids
        pid = self.pipeline.coordinator.pid
        request = self.request(text="The", stop=stop, logprobs=20)
        connections = [http2.Connection(self.pipeline.address, 0) for _ in range(4)]
        before = self.coordinator_bytes()
        reset_peak(pid)
        for connection in connections:
            for _ in range(8):
                connection.call(GENERATE, request)
        with kept_alive(connections):
            wait_until(lambda: self.pipeline.pipeline().request_running_count > 0, 10, "they run")
            self.assertEqual(self.pipeline.generate("The", stop=stop).token_ids, expected)
            # What they do not read is kept for a while, and costs what its tokens cost.
            wait_until(self.pipeline.is_idle, 20, "all are computed")
            peak = self.coordinator_bytes("VmHWM")
            print(f"32 unread answers: {(peak - before) / 1e6:.1f} MB")
            if not SANITIZED:
                self.assertLess(peak - before, 40e6)
            wait_until(lambda: self.pipeline.coordinator.log().count("does not read") >= 32, 10,
                       "their answers are dropped")

    # -- clients that leave

    def test_cancelled_requests_leave_nothing(self):
        stop = {"max_tokens": 400, "ignore_eos": True}
        done = self.pipeline.pipeline().request_done_count
        for _ in range(4):
            calls = [self.pipeline.stream("The", stop=stop, n=1 + index % 3)
                     for index in range(WAITING_MAX // 2)]
            for call in calls[::2]:
                call.cancel()
            next(calls[1])
            for call in calls[1::2]:
                call.cancel()
        wait_until(self.pipeline.is_idle, 5, "nothing of them is left")
        self.assertEqual(self.pipeline.pipeline().request_done_count, done)

    def test_client_that_is_killed_frees_its_blocks(self):
        arguments = [BIN / "stagecoach", "generate", "--coordinator", self.pipeline.address,
                     "--ignore-eos", "The"]
        client = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            self.assertNotEqual(os.read(client.stdout.fileno(), 1), b"")  # it is running
            client.kill()
            begin = time.monotonic()
            wait_until(self.pipeline.is_idle, 2, "its blocks are free")
            seconds = time.monotonic() - begin
        finally:
            client.kill()
            client.wait()
            client.stdout.close()
        self.assertLess(seconds, 0.2 * PATIENCE)

    # -- deadlines

    def test_deadline_in_the_past_never_reaches_the_pipeline(self):
        steps = self.pipeline.pipeline().step_count
        for answer in self.ask_late("0n", "0u", "0m", "0S"):
            self.assertIn(b"grpc-status\x01" + b"4", answer)  # DEADLINE_EXCEEDED
        self.assertEqual(self.pipeline.pipeline().step_count, steps)

    def test_deadline_of_no_time_at_all_is_answered(self):
        self.ask_late("1n", "1u", "1m", "2m")  # gRPC rounds up to milliseconds

    def ask_late(self, *timeouts):
        """The headers with which each of many calls with these deadlines was answered."""
        connection = http2.Connection(self.pipeline.address, 65535)
        streams = {connection.call(GENERATE, self.request(), grpc_timeout=timeout)
                   for timeout in timeouts for _ in range(25)}
        answers = {}
        for kind, _, stream, payload in connection.frames(0.5):
            if kind == http2.HEADERS:
                answers.setdefault(stream, payload)
        connection.close()
        self.assertEqual(set(answers), streams)
        return answers.values()

    def test_deadline_of_one_that_waits_ends_it(self):
        stop = {"max_tokens": 400, "ignore_eos": True}
        blockers = [self.pipeline.stream("The", stop=stop) for _ in range(RUNNING_MAX)]
        for call in blockers:
            next(call)
        late = [self.pipeline.stream("The", stop=stop, timeout=0.05 / PATIENCE) for _ in range(8)]
        for call in late:
            with expect_code(self, DEADLINE):
                list(call)
        for call in blockers:
            call.cancel()

    # -- several answers

    def test_answers_are_those_of_requests_of_their_own(self):
        fields = {"stop": {"max_tokens": 24, "ignore_eos": True}}
        sampling = {"temperature": 1.2, "repetition_penalty": 1.1, "presence_penalty": 0.5}
        seed = 2**64 - 3  # the seeds of further answers wrap around
        completion = self.pipeline.generate("The", n=5, sampling={**sampling, "seed": seed},
                                            **fields)
        seeds = {message.index: message.seed for message in completion.messages}
        self.assertEqual(seeds, {i: (seed + i * SEED_STEP) % 2**64 for i in range(5)})
        answers = [answer_ids(completion, index) for index in range(5)]
        self.assertEqual(len({tuple(ids) for ids in answers}), 5)
        for index, ids in enumerate(answers):
            alone = self.pipeline.generate("The", sampling={**sampling, "seed": seeds[index]},
                                           **fields)
            self.assertEqual(alone.token_ids, ids, index)

    def test_each_answer_ends_once_and_the_call_with_usage(self):
        completion = self.pipeline.generate(PROMPT, n=8, max_tokens=40,
                                            sampling={"temperature": 1, "seed": 5})
        ends = [m.index for m in completion.messages if m.finish_reason]
        self.assertEqual(sorted(ends), list(range(8)))
        last_index = {m.index: position for position, m in enumerate(completion.messages)}
        self.assertEqual(sorted(last_index), list(range(8)))
        for index, position in last_index.items():
            self.assertNotEqual(completion.messages[position].finish_reason, 0)
        self.assertEqual([m.HasField("usage") for m in completion.messages],
                         [False] * (len(completion.messages) - 1) + [True])
        usage = completion.last.usage
        self.assertEqual(usage.prompt_tokens, len(self.pipeline.tokenize(PROMPT)))
        self.assertEqual(usage.completion_tokens, len(completion.token_ids))
        self.assertEqual([m.request_id != "" for m in completion.messages],
                         [True] + [False] * (len(completion.messages) - 1))

    def test_one_answer_is_like_none_asked(self):
        expected = self.pipeline.generate(PROMPT, max_tokens=12)
        for n in (0, 1):
            completion = self.pipeline.generate(PROMPT, max_tokens=12, n=n)
            self.assertEqual(completion.token_ids, expected.token_ids)
            self.assertEqual({m.index for m in completion.messages}, {0})

    def test_answers_share_the_blocks_of_their_prompt(self):
        prompt = [11 + i % 90 for i in range(450)]  # 14 blocks of 32 and a part
        stream = self.pipeline.stream(prompt, n=RUNNING_MAX,
                                      stop={"max_tokens": 60, "ignore_eos": True},
                                      sampling={"temperature": 1, "seed": 1}, cache_salt="share")
        used, running = 0, 0
        for position, _ in enumerate(stream):
            if position % 16 == 0:
                pipeline = self.pipeline.pipeline()
                used = max(used, pipeline.kv_block_used_count)
                running = max(running, pipeline.request_running_count)
        self.assertEqual(running, RUNNING_MAX)
        self.assertLessEqual(used, 14 + RUNNING_MAX * 2)  # 256 if each had its own

    def test_client_shows_all_answers(self):
        arguments = [BIN / "stagecoach", "generate", "--coordinator", self.pipeline.address, "--n",
                     "3", "--temperature", "1.5", "--seed", "5", "--max-tokens", "12", "The"]
        result = json.loads(run(*arguments, "--json").stdout)
        self.assertEqual([a["index"] for a in result["answers"]], [0, 1, 2])
        self.assertEqual([int(a["seed"]) for a in result["answers"]],
                         [(5 + i * SEED_STEP) % 2**64 for i in range(3)])
        self.assertEqual(sum(len(a["token_ids"]) for a in result["answers"]),
                         result["completion_tokens"])
        text = run(*arguments).stdout
        self.assertEqual(text, "".join(
            f"[{a['index']}] {a['text']}" + ("" if a["text"].endswith("\n") else "\n")
            for a in result["answers"]))

    # -- priority

    def test_higher_priority_starts_first(self):
        stop = {"max_tokens": 200, "ignore_eos": True}
        blockers = [self.pipeline.stream("The", stop=stop) for _ in range(RUNNING_MAX)]
        for call in blockers:
            next(call)
        low = [self.pipeline.stream("The", stop=stop, priority=-1) for _ in range(RUNNING_MAX)]
        wait_until(lambda: self.pipeline.pipeline().request_waiting_count >= RUNNING_MAX, 10,
                   "the others wait")
        high = self.pipeline.generate("The", max_tokens=1, priority=1)
        self.assertEqual(len(high.token_ids), 1)
        self.assertEqual([call for call in low if call.done()], [])
        for call in blockers + low:
            call.cancel()

    # -- prefix cache

    def test_usage_says_what_the_prefix_cache_knew(self):
        prompt = [7 + i % 100 for i in range(200)]
        first = self.pipeline.generate(prompt, max_tokens=8, cache_salt="a")
        again = self.pipeline.generate(prompt, max_tokens=8, cache_salt="a")
        other = self.pipeline.generate(prompt, max_tokens=8, cache_salt="b")
        several = self.pipeline.generate(prompt, max_tokens=8, cache_salt="c", n=4)
        self.assertEqual(first.last.usage.cached_tokens, 0)
        self.assertEqual(again.last.usage.cached_tokens, 192)  # whole blocks of 32
        self.assertEqual(other.last.usage.cached_tokens, 0)
        self.assertEqual(several.last.usage.cached_tokens, 0)
        self.assertEqual(several.last.usage.prompt_tokens, 200)
        for completion in (again, other):
            self.assertEqual(completion.token_ids, first.token_ids)
        for index in range(4):
            self.assertEqual(answer_ids(several, index), first.token_ids)

    # -- limits

    def test_limits_are_allowed_and_one_more_is_refused(self):
        most = self.model.position_count_max
        prompt = [5] * (most - 4)
        completion = self.pipeline.generate(prompt, n=64, stop={"max_tokens": 4,
                                                               "ignore_eos": True})
        self.assertEqual([len(answer_ids(completion, index)) for index in range(64)], [4] * 64)
        self.pipeline.generate("The", cache_salt="x" * 128, priority=-2**31, max_tokens=1)
        self.pipeline.generate("The", priority=2**31 - 1, max_tokens=1)
        cases = [
            (("n", "65", "64"), {"n": 65}),
            (("n", str(2**32 - 1), "64"), {"n": 2**32 - 1}),
            (("cache_salt", "129", "128"), {"cache_salt": "x" * 129}),
            (("stop.max_tokens", "5", "4"), {"stop": {"max_tokens": 5}}),
            (("stop.max_tokens", str(2**32 - 1), "4"), {"stop": {"max_tokens": 2**32 - 1}}),
            (("token_ids", str(most), str(most - 1)), {"prompt": [5] * most}),
        ]
        for words, fields in cases:
            fields = {"prompt": prompt, "max_tokens": 4, **fields}
            with self.subTest(words=words), expect_code(self, INVALID, *words):
                self.pipeline.generate(**fields)

    def test_text_of_exactly_the_most_tokens_and_one_more(self):
        most = self.model.position_count_max
        text = "The"
        while len(self.pipeline.tokenize(text + " The")) <= most - 1:
            text += " The"
        self.assertEqual(len(self.pipeline.tokenize(text)), most - 1)
        self.assertEqual(len(self.pipeline.generate(text, max_tokens=1).token_ids), 1)
        with expect_code(self, INVALID, "prompt", str(most), str(most - 1)):
            self.pipeline.generate(text + " The", max_tokens=1)


class NoPrefixCacheTest(unittest.TestCase):
    def test_same_tokens_without_the_prefix_cache(self):
        prompts = [PROMPT, [9] * 150]
        tokens = []
        for word in ("on", "off"):
            with Pipeline(stages=2, coordinator=("--prefix-cache", word)) as pipeline:
                tokens.append([])
                for prompt in prompts:
                    for _ in range(2):
                        completion = pipeline.generate(prompt, n=2, max_tokens=16,
                                                       sampling={"temperature": 1.2, "seed": 3})
                        tokens[-1].append([answer_ids(completion, i) for i in range(2)])
                self.assertEqual(completion.last.usage.cached_tokens, 128 if word == "on" else 0)
        self.assertEqual(tokens[0], tokens[1])


if __name__ == "__main__":
    unittest.main()
