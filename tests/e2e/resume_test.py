"""Calls that break and go on: by hand in Python, and by the client."""

import unittest

import grpc

from harness import Pipeline, expect_code, inference_pb2, wait_until

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
        for count in range(0, len(messages), stride):
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


if __name__ == "__main__":
    unittest.main()
