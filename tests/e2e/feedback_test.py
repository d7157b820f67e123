"""How a drawn token comes back to the first stage changes when it comes, never what it is."""

import concurrent.futures
import unittest

from harness import BIN, MODEL, PROMPT, Pipeline, run

PENALTIES = {"temperature": 0.9, "seed": 5, "repetition_penalty": 1.3, "presence_penalty": 0.4,
             "frequency_penalty": 0.3}
REQUESTS = [
    {"max_tokens": 40, "stop": {"max_tokens": 40, "ignore_eos": True}},
    {"prompt": "The", "stop": {"max_tokens": 50, "ignore_eos": True}, "sampling": PENALTIES},
    {"prompt": "Once upon a time", "stop": {"max_tokens": 33, "ignore_eos": True},
     "sampling": {**PENALTIES, "temperature": 0}, "logprobs": 3},
    {"prompt": PROMPT * 12, "max_tokens": 20},
    {"prompt": "A", "max_tokens": 1, "sampling": {"temperature": 1, "seed": 8}},
    {"prompt": "A", "max_tokens": 2, "sampling": {"temperature": 1, "seed": 9}},
    {"prompt": "Say", "stop": {"max_tokens": 60, "ignore_eos": True, "strings": ["e"]},
     "sampling": {"temperature": 1, "seed": 10}},
]
WAYS = [
    (1, ["--feedback", "coordinator"]),
    (1, ["--microbatches", "4"]),
    (2, []),
    (2, ["--feedback", "coordinator"]),
    (2, ["--schedule", "naive"]),
    (2, ["--microbatches", "1"]),
    (3, ["--microbatches", "7", "--chunk", "16"]),
]


def answers(stages, options):
    """All requests at once; of each, its tokens with their log-probabilities, and why it ended."""
    with Pipeline(stages=stages, coordinator=options) as pipeline, \
            concurrent.futures.ThreadPoolExecutor(len(REQUESTS)) as pool:
        done = list(pool.map(lambda fields: pipeline.generate(**fields), REQUESTS))
        pipeline.check_running()
    return [(completion.token_ids, completion.text, completion.last.finish_reason,
             [str(logprob) for message in completion.messages for logprob in message.logprobs])
            for completion in done]


class FeedbackTest(unittest.TestCase):
    def test_tokens_are_the_same_whichever_way_they_come_back(self):
        expected = answers(*WAYS[0])
        self.assertEqual([len(tokens) for tokens, *_ in expected[:3]], [40, 50, 33])
        for stages, options in WAYS[1:]:
            with self.subTest(stages=stages, options=options):
                self.assertEqual(answers(stages, options), expected)

    def test_other_ways_are_refused(self):
        for option, choices in (("feedback", "direct or coordinator"),
                                ("schedule", "pipelined or naive")):
            result = run(BIN / "stagecoach-coordinator", "--model", MODEL, f"--{option}", "other")
            self.assertEqual(result.returncode, 2)
            self.assertIn(f"--{option} is 'other', it must be {choices}", result.stderr)
        result = run(BIN / "stagecoach-coordinator", "--model", MODEL, "--microbatches", "65")
        self.assertEqual(result.returncode, 2)
        self.assertIn("--microbatches", result.stderr)


if __name__ == "__main__":
    unittest.main()
