"""What clients ask of a running pipeline: streams, limits, refusals, cancels, many at once."""

import concurrent.futures
import random
import threading
import unittest

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from harness import (PATIENCE, PROMPT, Completion, Pipeline, expect_code, inference_pb2,
                     wait_until)

STOP = inference_pb2.FINISH_REASON_STOP
LENGTH = inference_pb2.FINISH_REASON_LENGTH
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NAN = float("nan")
INFINITY = float("inf")

PROMPTS = [
    PROMPT,
    "Question: What is 12 plus 31? Answer:",
    "Question: What is 90 minus 8? Answer:",
    "The",
    "Question: Spell the word river. Answer:",
    "Question: What comes after Monday? Answer:",
    "Anna has 3 apples and buys 4 more. How many apples does Anna have?",
    "1, 2, 3, 4,",
]


class RequestsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pipeline = Pipeline(stages=2)
        cls.model = cls.pipeline.inference.GetModel(inference_pb2.GetModelRequest())

    @classmethod
    def tearDownClass(cls):
        cls.pipeline.close()

    def setUp(self):
        self.pipeline.check_running()

    def tearDown(self):
        self.pipeline.check_running()
        # Whatever a test did, nothing of it stays.
        wait_until(self.pipeline.is_idle, 10, "all requests and KV blocks are free again")

    def generate(self, *arguments, **fields):
        return self.pipeline.generate(*arguments, **fields)

    # -- streams

    def test_stream_has_its_shape(self):
        completion = self.generate()
        first, last = completion.messages[0], completion.last
        self.assertGreater(len(completion.messages), 1)
        self.assertNotEqual(first.request_id, "")
        self.assertTrue(all(m.request_id in ("", first.request_id) for m in completion.messages))
        self.assertTrue(all(m.finish_reason == 0 for m in completion.messages[:-1]))
        self.assertEqual(last.finish_reason, STOP)
        self.assertIn(last.stop_token_id, self.model.eos_token_ids)
        self.assertEqual(last.usage.prompt_tokens, len(self.pipeline.tokenize(PROMPT)))
        self.assertEqual(last.usage.completion_tokens, len(completion.token_ids))
        self.assertLessEqual(last.usage.queue_ms, last.usage.first_token_ms)
        self.assertLessEqual(last.usage.first_token_ms, last.usage.total_ms)
        self.assertIn("72", completion.text)

    def test_text_is_the_detokenized_ids(self):
        completion = self.generate("The", max_tokens=60)
        request = inference_pb2.DetokenizeRequest(token_ids=completion.token_ids)
        self.assertEqual(self.pipeline.inference.Detokenize(request).text.strip(),
                         completion.text.strip())

    def test_text_and_its_token_ids_give_the_same(self):
        self.assertEqual(self.generate().token_ids,
                         self.generate(self.pipeline.tokenize(PROMPT)).token_ids)

    def test_request_id_is_kept(self):
        self.assertEqual(self.generate(request_id="mine-1").messages[0].request_id, "mine-1")

    def test_tokenize_and_detokenize_are_inverse(self):
        text = "Question: What is 27 plus 45?"
        ids = self.pipeline.tokenize(text)
        request = inference_pb2.DetokenizeRequest(token_ids=ids)
        self.assertEqual(self.pipeline.inference.Detokenize(request).text.strip(), text)

    # -- stop conditions

    def test_max_tokens_ends_with_length(self):
        completion = self.generate("The", max_tokens=3, stop={"max_tokens": 3, "ignore_eos": True})
        self.assertEqual(len(completion.token_ids), 3)
        self.assertEqual(completion.last.finish_reason, LENGTH)

    def test_stop_string_is_not_in_the_text(self):
        whole = self.generate(max_tokens=40).text
        word = whole.split()[2]
        completion = self.generate(stop={"max_tokens": 40, "strings": ["\x01", word]})
        self.assertEqual(completion.text, whole[: whole.index(word)])
        self.assertEqual(completion.last.finish_reason, STOP)
        self.assertEqual(completion.last.stop_string, word)

    def test_stop_token_ends(self):
        ids = self.generate(max_tokens=20).token_ids
        completion = self.generate(stop={"max_tokens": 20, "token_ids": [ids[4]]})
        end = ids.index(ids[4]) + 1
        self.assertEqual(completion.token_ids, ids[:end])
        self.assertEqual(completion.last.stop_token_id, ids[4])

    def test_ignore_eos_goes_on(self):
        ended = self.generate()
        more = self.generate(stop={"max_tokens": len(ended.token_ids) + 5, "ignore_eos": True})
        self.assertEqual(len(more.token_ids), len(ended.token_ids) + 5)
        self.assertEqual(more.token_ids[: len(ended.token_ids)], ended.token_ids)

    def test_zero_max_tokens_fills_the_context(self):
        prompt = [5] * (self.model.position_count_max - 20)
        completion = self.generate(prompt, stop={"ignore_eos": True})
        self.assertEqual(len(completion.token_ids), 20)
        self.assertEqual(completion.last.finish_reason, LENGTH)

    # -- sampling

    def test_logprobs_come_for_each_token(self):
        completion = self.generate(logprobs=3)
        logprobs = [p for m in completion.messages for p in m.logprobs]
        self.assertEqual(len(logprobs), len(completion.token_ids))
        for token_id, entry in zip(completion.token_ids, logprobs):
            self.assertEqual(len(entry.top), 3)
            self.assertEqual(entry.top[0].token_id, token_id)  # greedy
            self.assertEqual(entry.top[0].logprob, entry.logprob)
            self.assertLessEqual(entry.logprob, 0)
            self.assertGreaterEqual(entry.top[0].logprob, entry.top[1].logprob)
        self.assertFalse(any(m.logprobs for m in self.generate().messages))
        alone = [p for m in self.generate(logprobs=0).messages for p in m.logprobs]
        self.assertEqual([p.logprob for p in alone], [p.logprob for p in logprobs])
        self.assertFalse(any(p.top for p in alone))

    def test_seed_decides_the_tokens(self):
        def draw(**seed):
            sampling = {"temperature": 1.5, **seed}
            stop = {"max_tokens": 24, "ignore_eos": True}
            return self.generate("The", sampling=sampling, stop=stop)

        first = draw(seed=7)
        self.assertEqual(draw(seed=7).token_ids, first.token_ids)
        self.assertEqual(first.last.seed, 7)
        self.assertNotEqual(draw(seed=8).token_ids, first.token_ids)
        drawn = draw()
        self.assertEqual(draw(seed=drawn.last.seed).token_ids, drawn.token_ids)

    def test_top_k_of_one_is_greedy(self):
        greedy = self.generate("The", max_tokens=16).token_ids
        sampling = {"temperature": 2, "top_k": 1, "seed": 1}
        self.assertEqual(self.generate("The", max_tokens=16, sampling=sampling).token_ids, greedy)

    def test_logit_bias_forces_and_forbids(self):
        ids = self.generate("The", max_tokens=1).token_ids
        forbid = {"logit_bias": [{"token_id": ids[0], "bias": -100}]}
        self.assertNotEqual(self.generate("The", max_tokens=1, sampling=forbid).token_ids, ids)
        force = {"logit_bias": [{"token_id": 9, "bias": 100}]}
        self.assertEqual(self.generate("The", max_tokens=1, sampling=force).token_ids, [9])

    # -- many at once

    def test_requests_at_once_give_what_they_give_alone(self):
        draw = random.Random(5)
        fields = []
        for index in range(24):
            sampling = {"temperature": draw.choice([0, 0.7, 1.2]), "seed": index,
                        "top_k": draw.choice([0, 5]), "repetition_penalty": draw.choice([0, 1.2])}
            fields.append({"prompt": draw.choice(PROMPTS), "sampling": sampling,
                           "stop": {"max_tokens": draw.randint(1, 40),
                                    "ignore_eos": draw.random() < 0.5}})
        alone = [self.generate(**each).token_ids for each in fields]
        with concurrent.futures.ThreadPoolExecutor(len(fields)) as pool:
            together = list(pool.map(lambda each: self.generate(**each).token_ids, fields))
        self.assertEqual(together, alone)

    def test_long_prompt_beside_short_ones(self):
        long_prompt = [3 + i % 200 for i in range(self.model.position_count_max - 10)]
        alone = [self.generate(long_prompt, max_tokens=5).token_ids,
                 self.generate("The", max_tokens=40).token_ids]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            short = pool.submit(self.generate, "The", 40)
            long = pool.submit(self.generate, long_prompt, 5)
            self.assertEqual([long.result().token_ids, short.result().token_ids], alone)

    # -- ends from outside

    def test_cancel_frees_and_others_go_on(self):
        other_ids = self.generate("The", stop={"max_tokens": 200, "ignore_eos": True}).token_ids
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            other = pool.submit(self.generate, "The",
                                stop={"max_tokens": 200, "ignore_eos": True})
            for _ in range(5):
                stream = self.pipeline.stream(stop={"max_tokens": 400, "ignore_eos": True})
                next(stream)
                stream.cancel()
            self.assertEqual(other.result().token_ids, other_ids)

    def test_deadline_ends_and_frees(self):
        stream = self.pipeline.stream(stop={"ignore_eos": True}, timeout=0.02 / PATIENCE)
        with expect_code(self, grpc.StatusCode.DEADLINE_EXCEEDED):
            for _ in stream:
                pass

    def test_slow_reader_gets_everything(self):
        stop = {"max_tokens": 300, "ignore_eos": True}
        expected = self.generate("The", stop=stop).token_ids
        stream = self.pipeline.stream("The", stop=stop)
        pause = threading.Event()
        messages = []
        for message in stream:
            messages.append(message)
            pause.wait(0.002)
        self.assertEqual(Completion(messages).token_ids, expected)

    # -- bad input

    def test_wrong_requests_are_refused_with_the_name_of_the_field(self):
        vocabulary = self.model.vocabulary_size
        cases = [
            ("prompt", {}),
            ("token_ids", {"token_ids": {"ids": []}}),
            ("token_ids", {"token_ids": {"ids": [1, vocabulary]}}),
            ("token_ids", {"token_ids": {"ids": [2**32 - 1]}}),
            ("temperature", {"sampling": {"temperature": -0.1}}),
            ("temperature", {"sampling": {"temperature": 100.5}}),
            ("temperature", {"sampling": {"temperature": NAN}}),
            ("temperature", {"sampling": {"temperature": INFINITY}}),
            ("top_p", {"sampling": {"top_p": 1.01}}),
            ("top_p", {"sampling": {"top_p": -1}}),
            ("top_p", {"sampling": {"top_p": NAN}}),
            ("min_p", {"sampling": {"min_p": 1.5}}),
            ("min_p", {"sampling": {"min_p": NAN}}),
            ("repetition_penalty", {"sampling": {"repetition_penalty": -1}}),
            ("repetition_penalty", {"sampling": {"repetition_penalty": 101}}),
            ("repetition_penalty", {"sampling": {"repetition_penalty": NAN}}),
            ("presence_penalty", {"sampling": {"presence_penalty": 2.5}}),
            ("presence_penalty", {"sampling": {"presence_penalty": NAN}}),
            ("frequency_penalty", {"sampling": {"frequency_penalty": -2.5}}),
            ("frequency_penalty", {"sampling": {"frequency_penalty": -INFINITY}}),
            ("logit_bias", {"sampling": {"logit_bias": [{"token_id": vocabulary, "bias": 1}]}}),
            ("logit_bias", {"sampling": {"logit_bias": [{"token_id": 1, "bias": 101}]}}),
            ("logit_bias", {"sampling": {"logit_bias": [{"token_id": 1, "bias": NAN}]}}),
            ("logit_bias", {"sampling": {"logit_bias": [{"token_id": 1, "bias": 1}] * 1025}}),
            ("logprobs", {"logprobs": 21}),
            ("max_tokens", {"stop": {"max_tokens": self.model.position_count_max}}),
            ("stop.strings", {"stop": {"strings": ["x"] * 17}}),
            ("stop.strings", {"stop": {"strings": ["x", ""]}}),
            ("stop.strings", {"stop": {"strings": ["x" * 257]}}),
            ("stop.token_ids", {"stop": {"token_ids": [1] * 65}}),
            ("stop.token_ids", {"stop": {"token_ids": [vocabulary]}}),
            ("request_id", {"request_id": "x" * 129}),
            ("request_id", {"request_id": "a\nb"}),
            ("text", {"text": "x" * (2**20 + 1)}),
            ("text", {"text": "a\0b"}),
        ]
        # A row that was ahead of the end of an earlier request may still be on its way.
        wait_until(lambda: self.pipeline.pipeline().microbatch_in_flight_count == 0, 5,
                   "nothing is in flight")
        steps = self.pipeline.pipeline().step_count
        for word, fields in cases:
            if word not in ("prompt", "token_ids", "text"):
                fields = {"text": "The", **fields}
            request = inference_pb2.GenerateRequest(**fields)
            with self.subTest(word=word, fields=str(fields)[:80]):
                with self.assertRaises(grpc.RpcError) as caught:
                    list(self.pipeline.inference.Generate(request, timeout=10 * PATIENCE))
                self.assertEqual(caught.exception.code(), INVALID)
                self.assertIn(word, caught.exception.details())
                self.check_violation(caught.exception, word)
        self.assertEqual(self.pipeline.pipeline().step_count, steps)

    def check_violation(self, error, word):
        """What programs read that know google.rpc.BadRequest."""
        status = rpc_status.from_call(error)  # checks code and message against the call's
        self.assertEqual(len(status.details), 1)
        bad_request = error_details_pb2.BadRequest()
        self.assertTrue(status.details[0].Unpack(bad_request))
        self.assertEqual(len(bad_request.field_violations), 1)
        violation = bad_request.field_violations[0]
        self.assertIn(word, violation.field)
        self.assertTrue(error.details().startswith(violation.field), violation.field)
        self.assertEqual(violation.description, error.details())

    def test_largest_allowed_values_are_accepted(self):
        sampling = {"temperature": 100, "top_p": 1, "min_p": 1, "repetition_penalty": 100,
                    "presence_penalty": -2, "frequency_penalty": 2, "seed": 2**64 - 1,
                    "top_k": 2**32 - 1,
                    "logit_bias": [{"token_id": i % 50, "bias": 100} for i in range(1024)]}
        stop = {"max_tokens": 3, "strings": ["\x02" * 256] * 16, "token_ids": [7] * 64}
        completion = self.generate("The", sampling=sampling, stop=stop, logprobs=20,
                                   request_id="x" * 128)
        self.assertEqual(completion.last.seed, 2**64 - 1)

    def test_prompt_fits_exactly_or_is_refused(self):
        limit = self.model.position_count_max
        self.assertEqual(len(self.generate([5] * (limit - 1), max_tokens=1).token_ids), 1)
        with expect_code(self, INVALID, "token_ids", str(limit - 1)):
            self.generate([5] * limit, max_tokens=1)
        with expect_code(self, INVALID, "max_tokens"):
            self.generate([5] * (limit - 1), max_tokens=2)

    def test_bytes_that_are_no_message_are_refused(self):
        call = self.pipeline.channel.unary_stream("/stagecoach.v1.Inference/Generate")
        for bad in [b"\xff\xff\xff\xff", b"\x0a\x05ab", b"\x1a\xff\xff\xff\xff\x7f", b"\0" * 100]:
            with self.assertRaises(grpc.RpcError) as caught:
                list(call(bad, timeout=10 * PATIENCE))
            self.assertIn(caught.exception.code(), (INVALID, grpc.StatusCode.INTERNAL))
        with self.assertRaises(grpc.RpcError) as caught:
            list(call(b"\x0a\xff\xff\xff\x03" + b"a" * (8 << 20), timeout=10 * PATIENCE))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertIn("72", self.generate().text)

    def test_text_that_is_not_utf8_is_refused(self):
        call = self.pipeline.channel.unary_stream("/stagecoach.v1.Inference/Generate")
        with self.assertRaises(grpc.RpcError) as caught:
            list(call(b"\x0a\x02\xc3\x28", timeout=10 * PATIENCE))
        self.assertEqual(caught.exception.code(), INVALID)
        self.check_violation(caught.exception, "text")

    def test_unknown_method_is_unimplemented(self):
        call = self.pipeline.channel.unary_unary("/stagecoach.v1.Inference/Dance")
        with expect_code(self, grpc.StatusCode.UNIMPLEMENTED):
            call(b"", timeout=10 * PATIENCE)

    def test_detokenize_refuses_unknown_ids(self):
        with expect_code(self, INVALID):
            self.pipeline.inference.Detokenize(
                inference_pb2.DetokenizeRequest(token_ids=[2**31]), timeout=10 * PATIENCE)


if __name__ == "__main__":
    unittest.main()
