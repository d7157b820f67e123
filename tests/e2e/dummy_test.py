"""A model that is a config.json alone, served with random weights."""

import json
import math
import pathlib
import tempfile
import unittest

import grpc

from checkpoint import copy_model, edit_json, weight_files
from harness import BIN, PROMPT, Pipeline, expect_code, inference_pb2, run

INVALID = grpc.StatusCode.INVALID_ARGUMENT
DUMMY = ("--load-format", "dummy")
PROMPT_IDS = [[1, 2, 3], [5], [7 + 3 * i % 90 for i in range(70)]]

# Sizes that divide nothing evenly; the dtype is bf16 when the file names none.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_hidden_layers": 5,
    "vocab_size": 331,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}


class ConfigAloneTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.model = pathlib.Path(folder.name)
        pathlib.Path(self.model, "config.json").write_text(json.dumps(CONFIG))

    def serve(self, stages=1, weights="checkpoint"):
        return Pipeline(stages=stages, model=self.model,
                        coordinator=(*DUMMY, "--weights", weights))

    def answers(self, stages, weights="checkpoint"):
        stop = {"max_tokens": 40, "ignore_eos": True}
        sampled = {"temperature": 0.9, "seed": 3}
        with self.serve(stages, weights) as pipeline:
            return [pipeline.generate(ids, stop=stop, sampling=sampling, logprobs=2)
                    for ids in PROMPT_IDS for sampling in ({}, sampled)]

    def test_tokens_do_not_depend_on_the_stages(self):
        answers = {stages: self.answers(stages) for stages in (1, 2, 5)}
        for stages, completions in answers.items():
            for completion, expected in zip(completions, answers[1]):
                self.assertEqual(completion.token_ids, expected.token_ids, stages)
                self.assertEqual([p for m in completion.messages for p in m.logprobs],
                                 [p for m in expected.messages for p in m.logprobs])
        for completion in answers[1]:
            self.assertEqual(completion.text, "")
            self.assertEqual(len(completion.token_ids), 40)
            # Lively: not as if all tokens were equally likely, nor sure of one.
            best = [p.top[0].logprob for m in completion.messages for p in m.logprobs]
            self.assertGreater(min(best), math.log(3 / CONFIG["vocab_size"]))
            self.assertLess(max(best), math.log(0.5))
        self.assertNotEqual(answers[1][0].token_ids, answers[1][2].token_ids)

    def test_tokens_in_eight_bits_do_not_depend_on_the_stages(self):
        for weights in ("int8", "int8-weight-only"):
            one, two = ([c.token_ids for c in self.answers(stages, weights)] for stages in (1, 2))
            self.assertEqual(one, two, weights)

    def test_text_is_refused_with_what_to_send(self):
        with self.serve() as pipeline:
            with expect_code(self, INVALID, "text", "tokenizer.json", "token_ids"):
                pipeline.generate("The")
            with expect_code(self, INVALID, "text", "tokenizer.json", "token_ids"):
                pipeline.tokenize("The")
            with expect_code(self, INVALID, "token_ids", "tokenizer.json"):
                pipeline.inference.Detokenize(inference_pb2.DetokenizeRequest(token_ids=[1]))
            with expect_code(self, INVALID, "stop.strings", "tokenizer.json"):
                pipeline.generate([1, 2], stop={"max_tokens": 2, "strings": ["x"]})
            with expect_code(self, INVALID, "token_ids", "331"):
                pipeline.generate([331])
            pipeline.check_running()

    def test_eos_and_stop_tokens_end(self):
        stop = {"max_tokens": 10}
        force_eos = {"logit_bias": [{"token_id": CONFIG["eos_token_id"], "bias": 100}]}
        with self.serve() as pipeline:
            completion = pipeline.generate([9], stop=stop, sampling=force_eos)
            self.assertEqual(completion.token_ids, [2])
            self.assertEqual(completion.last.finish_reason, inference_pb2.FINISH_REASON_STOP)
            ids = pipeline.generate([9], stop={**stop, "ignore_eos": True}).token_ids
            completion = pipeline.generate([9], stop={"max_tokens": 10, "token_ids": [ids[2]],
                                                      "ignore_eos": True})
            self.assertEqual(completion.token_ids, ids[: ids.index(ids[2]) + 1])

    def test_client_shows_token_ids_and_the_model(self):
        with self.serve() as pipeline:
            generate = run(BIN / "stagecoach", "generate", "--coordinator", pipeline.address,
                           "--token-ids", "1,2", "--max-tokens", 5, "--ignore-eos")
            self.assertRegex(generate.stdout, r"^\d+( \d+){4}\n$")
            model = run(BIN / "stagecoach", "model", "--coordinator", pipeline.address)
            self.assertIn("from dummy, kept as checkpoint", model.stdout)

    def test_weights_in_files_still_need_a_tokenizer(self):
        result = run(BIN / "stagecoach-coordinator", "--listen", "127.0.0.1:0", "--model",
                     self.model, timeout=20)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("tokenizer.json", result.stderr)


class TokenizerTest(unittest.TestCase):
    def test_tokenizer_is_used_when_it_is_there(self):
        with tempfile.TemporaryDirectory() as folder:
            model = copy_model(folder)
            for path in weight_files(model):
                path.unlink()
            with Pipeline(stages=2, model=model, coordinator=DUMMY) as pipeline:
                stop = {"max_tokens": 12, "ignore_eos": True}
                completion = pipeline.generate(PROMPT, stop=stop)
                self.assertEqual(len(completion.token_ids), 12)
                self.assertNotEqual(completion.text, "")
                ids = pipeline.generate(pipeline.tokenize(PROMPT), stop=stop).token_ids
                self.assertEqual(ids, completion.token_ids)

    def test_broken_tokenizer_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            model = copy_model(folder)
            edit_json(model / "tokenizer.json", model=None)
            result = run(BIN / "stagecoach-coordinator", "--listen", "127.0.0.1:0", "--model",
                         model, *DUMMY, timeout=20)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("tokenizer.json", result.stderr)


if __name__ == "__main__":
    unittest.main()
