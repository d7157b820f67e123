"""VllmEngine, the service by which gateways call a vLLM engine, called with an interface of its own
writing (vllm_interface.py)."""

import hashlib
import io
import json
import pathlib
import random
import signal
import tempfile
import time
import unittest
import zipfile

import grpc
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

import vllm_interface
from checkpoint import copy_model, edit_json
from harness import MODEL, PATIENCE, PROMPT, SOURCE, Pipeline, expect_code, inference_pb2, wait_until
from vllm_interface import message_class

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
NAN = float("nan")


class Answer:
    """What a Generate stream gave for one index."""

    def __init__(self, responses, index=0):
        self.chunks = [r.chunk for r in responses
                       if r.WhichOneof("response") == "chunk" and r.chunk.index == index]
        self.completes = [r.complete for r in responses
                          if r.WhichOneof("response") == "complete" and r.complete.index == index]
        self.complete = self.completes[-1]
        self.chunk_ids = [i for c in self.chunks for i in c.token_ids]
        self.ids = list(self.complete.output_ids)


class VllmTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pipeline = Pipeline(stages=2)
        cls.stub = vllm_interface.Stub(cls.pipeline.channel)
        cls.model = cls.pipeline.inference.GetModel(inference_pb2.GetModelRequest())

    @classmethod
    def tearDownClass(cls):
        cls.pipeline.close()

    def setUp(self):
        self.pipeline.check_running()

    def tearDown(self):
        self.pipeline.check_running()
        wait_until(self.pipeline.is_idle, 10, "all requests and KV blocks are free again")

    def call(self, method, **fields):
        request = vllm_interface.METHODS[method][0]
        return getattr(self.stub, method)(message_class(request)(**fields), timeout=60 * PATIENCE)

    def stream(self, prompt=PROMPT, stream=True, fields=None, **sampling):
        sampling.setdefault("temperature", 0)
        sampling.setdefault("max_tokens", 32)
        fields = dict(fields or {})
        if isinstance(prompt, str):
            fields["text"] = prompt
        elif prompt is not None:
            fields["tokenized"] = {"input_ids": prompt}
        return self.call("Generate", stream=stream, sampling_params=sampling, **fields)

    def generate(self, *arguments, **fields):
        return Answer(list(self.stream(*arguments, **fields)))

    def refuse(self, field, *words, **fields):
        """The field is named in the sentence and, for programs, in a google.rpc.BadRequest."""
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.stream(**fields))
        error = caught.exception
        self.assertEqual(error.code(), INVALID, error.details())
        for word in (field, *words):
            self.assertIn(word, error.details())
        bad_request = error_details_pb2.BadRequest()
        self.assertTrue(rpc_status.from_call(error).details[0].Unpack(bad_request))
        self.assertEqual([v.field for v in bad_request.field_violations], [field])

    # -- the interface

    def test_interface_is_that_of_gateways(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "set")
            status = protoc.main(["protoc", f"-I{SOURCE / 'proto'}", f"--descriptor_set_out={path}",
                                  "vllm/common.proto", "vllm/vllm_engine.proto"])
            self.assertEqual(status, 0)
            own = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
        lines = vllm_interface.shape(vllm_interface.FILES)
        lines |= {f"{vllm_interface.ENGINE}.VllmEngine.{name} .{request} .{response} False {streams}"
                  for name, (request, response, streams) in vllm_interface.METHODS.items()}
        self.assertEqual(sorted(vllm_interface.shape(own.file) ^ lines), [])
        self.assertGreater(len(lines), 200)

    # -- tokens

    def test_tokens_are_those_of_inference(self):
        for prompt in (PROMPT, "The", self.pipeline.tokenize(PROMPT)):
            expected = self.pipeline.generate(prompt)
            self.assertEqual(self.generate(prompt).ids, expected.token_ids)
            self.assertEqual(self.generate(prompt, stream=False).ids, expected.token_ids)

    def test_seed_draws_what_it_draws_in_inference(self):
        for seed, same_seed in ((7, 7), (-3, 2**64 - 3), (2**31 - 1, 2**31 - 1)):
            sampling = {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "min_p": 0.01,
                        "repetition_penalty": 1.1, "presence_penalty": 0.5,
                        "frequency_penalty": 0.25}
            expected = self.pipeline.generate(
                "The", sampling={**sampling, "seed": same_seed,
                                 "logit_bias": [{"token_id": 40, "bias": 2.5}]})
            answer = self.generate("The", seed=seed, logit_bias={40: 2.5}, **sampling)
            self.assertEqual(answer.ids, expected.token_ids)

    def test_temperature_left_out_is_one(self):
        request = message_class("GenerateRequest")(text="The", stream=True)
        request.sampling_params.seed = 5
        request.sampling_params.max_tokens = 24
        answer = Answer(list(self.stub.Generate(request, timeout=60 * PATIENCE)))
        expected = self.pipeline.generate("The", 24, sampling={"temperature": 1, "seed": 5})
        self.assertEqual(answer.ids, expected.token_ids)
        self.assertNotEqual(answer.ids, self.generate("The", max_tokens=24).ids)

    def test_seeds_that_say_nothing_are_drawn(self):
        for seed in ({}, {"seed": -1}):
            drawn = {tuple(self.generate("The", temperature=1.5, **seed).ids) for _ in range(4)}
            self.assertGreater(len(drawn), 1)

    def test_request_without_sampling_fields_is_answered(self):
        request = message_class("GenerateRequest")(text=PROMPT)
        answer = Answer(list(self.stub.Generate(request, timeout=60 * PATIENCE)))
        self.assertEqual(answer.complete.completion_tokens, len(answer.ids))
        self.assertGreater(len(answer.ids), 0)

    # -- messages

    def test_chunks_add_up_to_the_complete(self):
        answer = self.generate(max_tokens=40)
        self.assertGreater(len(answer.chunks), 1)
        self.assertEqual(len(answer.completes), 1)
        self.assertEqual(answer.chunk_ids, answer.ids)
        self.assertEqual([c.completion_tokens for c in answer.chunks],
                         [len(c.token_ids) for c in answer.chunks])
        self.assertTrue(all(c.token_ids for c in answer.chunks))
        complete = answer.complete
        self.assertEqual(complete.completion_tokens, len(answer.ids))
        self.assertEqual(complete.prompt_tokens, len(self.pipeline.tokenize(PROMPT)))
        self.assertEqual({c.prompt_tokens for c in answer.chunks}, {complete.prompt_tokens})
        self.assertEqual({c.cached_tokens for c in answer.chunks}, {complete.cached_tokens})
        self.assertFalse(complete.HasField("output_logprobs"))

    def test_without_stream_there_is_the_complete_alone(self):
        responses = list(self.stream(stream=False))
        self.assertEqual([r.WhichOneof("response") for r in responses], ["complete"])
        self.assertEqual(responses[0].complete.completion_tokens,
                         len(responses[0].complete.output_ids))

    def test_cached_tokens_are_counted(self):
        prompt = [(7 * i) % 200 + 10 for i in range(150)]
        self.assertEqual(self.generate(prompt).complete.cached_tokens, 0)
        again = self.generate(prompt).complete
        self.assertGreater(again.cached_tokens, 100)
        self.assertEqual(again.prompt_tokens, 150)

    def test_several_answers_have_their_index(self):
        expected = list(self.pipeline.stream("The", n=3, sampling={"temperature": 1, "seed": 11}))
        for stream in (True, False):
            responses = list(self.stream("The", n=3, temperature=1, seed=11, stream=stream))
            self.assertEqual(
                sum(r.WhichOneof("response") == "complete" for r in responses), 3)
            for index in range(3):
                answer = Answer(responses, index)
                self.assertEqual(answer.ids, [i for m in expected if m.index == index
                                              for i in m.token_ids])
                self.assertEqual(answer.chunk_ids, answer.ids if stream else [])
                self.assertEqual(answer.complete.completion_tokens, len(answer.ids))

    def test_logprobs_are_those_of_inference(self):
        expected = [p for m in self.pipeline.generate(logprobs=3).messages for p in m.logprobs]
        streamed, whole = self.generate(logprobs=3), self.generate(logprobs=3, stream=False)
        parts = [c.output_logprobs for c in streamed.chunks]
        for source in (parts, [whole.complete.output_logprobs]):
            self.assertEqual([i for p in source for i in p.token_ids], streamed.ids)
            self.assertEqual([v for p in source for v in p.token_logprobs],
                             [e.logprob for e in expected])
            tops = [t for p in source for t in p.top_logprobs]
            self.assertEqual([list(t.token_ids) for t in tops],
                             [[a.token_id for a in e.top] for e in expected])
            self.assertEqual([list(t.values) for t in tops],
                             [[a.logprob for a in e.top] for e in expected])
        self.assertFalse(any(c.HasField("output_logprobs") for c in self.generate().chunks))

    def test_zero_alternatives_give_the_logprobs_alone(self):
        for answer in (self.generate(logprobs=0), self.generate(logprobs=0, stream=False)):
            parts = [c.output_logprobs for c in answer.chunks] or [answer.complete.output_logprobs]
            self.assertEqual(sum(len(p.token_logprobs) for p in parts), len(answer.ids))
            self.assertFalse(any(p.top_logprobs for p in parts))

    # -- why it ended

    def test_eos_matches_no_stop(self):
        complete = self.generate().complete
        self.assertEqual(complete.finish_reason, "stop")
        self.assertIn(complete.output_ids[-1], self.model.eos_token_ids)
        self.assertIsNone(complete.WhichOneof("matched_stop"))

    def test_stop_token_is_told(self):
        ids = self.generate().ids
        answer = self.generate(stop_token_ids=[ids[4]])
        self.assertEqual(answer.ids, ids[: ids.index(ids[4]) + 1])
        self.assertEqual(answer.complete.matched_token_id, ids[4])
        self.assertEqual(answer.complete.finish_reason, "stop")

    def test_stop_string_is_told(self):
        word = self.pipeline.generate().text.split()[2]
        for stream in (True, False):
            complete = self.generate(stop=["\x01", word], stream=stream).complete
            self.assertEqual(complete.matched_stop_str, word)
            self.assertEqual(complete.finish_reason, "stop")
        expected = self.pipeline.generate(stop={"max_tokens": 32, "strings": [word]})
        self.assertEqual(list(complete.output_ids), expected.token_ids)

    def test_length_is_told(self):
        complete = self.generate(max_tokens=3, ignore_eos=True).complete
        self.assertEqual(complete.finish_reason, "length")
        self.assertEqual(len(complete.output_ids), 3)
        self.assertIsNone(complete.WhichOneof("matched_stop"))

    def test_more_tokens_than_there_is_room_for_fill_the_context(self):
        prompt = [5] * (self.model.position_count_max - 20)
        for max_tokens in (21, 2**32 - 1):
            complete = self.generate(prompt, max_tokens=max_tokens, ignore_eos=True).complete
            self.assertEqual(len(complete.output_ids), 20)
            self.assertEqual(complete.finish_reason, "length")

    # -- refusals

    def test_what_is_not_done_is_refused_by_name(self):
        for field, value in {"json_schema": "{}", "regex": "a*", "grammar": "root ::= 'a'",
                             "structural_tag": "{}", "json_object": True,
                             "choice": {"choices": ["a"]}, "prompt_logprobs": 0, "min_tokens": 1,
                             "truncate_prompt_tokens": -1}.items():
            self.refuse(f"sampling_params.{field}", **{field: value})
        for field, value in {"kv_transfer_params": {"remote_host": "h", "remote_port": 1},
                             "kv_transfer_params_json": "{}", "data_parallel_rank": 1,
                             "mm_inputs": {"mm_hashes": ["a"]},
                             "extra_mm_inputs": [{"mm_hashes": ["a"]}],
                             "media_refs": {"items": [{"url": "file:a.png"}]}}.items():
            self.refuse(field, fields={field: value})

    def test_values_that_ask_for_nothing_are_accepted(self):
        plain = self.generate().ids
        answer = self.generate(json_object=False, min_tokens=0, skip_special_tokens=True,
                               spaces_between_special_tokens=True, include_stop_str_in_output=True,
                               top_p=1, repetition_penalty=1,
                               fields={"data_parallel_rank": 0, "kv_transfer_params_json": ""})
        self.assertEqual(answer.ids, plain)

    def test_bad_values_are_refused_with_their_own_names(self):
        vocabulary = self.model.vocabulary_size
        for words, fields in (
                (["sampling_params.temperature", "-1"], {"temperature": -1}),
                (["sampling_params.temperature", "nan"], {"temperature": NAN}),
                (["sampling_params.top_p", "1.5"], {"top_p": 1.5}),
                (["sampling_params.min_p"], {"min_p": -0.5}),
                (["sampling_params.repetition_penalty"], {"repetition_penalty": -1}),
                (["sampling_params.presence_penalty"], {"presence_penalty": 3}),
                (["sampling_params.frequency_penalty"], {"frequency_penalty": -3}),
                (["sampling_params.max_tokens", "0"], {"max_tokens": 0}),
                (["sampling_params.logprobs", "21", "20"], {"logprobs": 21}),
                (["sampling_params.logprobs", "-1"], {"logprobs": -1}),
                (["sampling_params.n", "65", "64"], {"n": 65}),
                (["sampling_params.stop[1]", "empty"], {"stop": ["a", ""]}),
                (["sampling_params.stop", "17", "16"], {"stop": ["a"] * 17}),
                (["sampling_params.stop_token_ids[0]", str(vocabulary)],
                 {"stop_token_ids": [vocabulary]}),
                (["sampling_params.logit_bias", "-5"], {"logit_bias": {-5: 1}}),
                (["sampling_params.logit_bias[0]", str(vocabulary)], {"logit_bias": {vocabulary: 1}}),
                (["sampling_params.logit_bias", "101"], {"logit_bias": {1: 101}}),
                (["sampling_params.logit_bias", "1025"],
                 {"logit_bias": {i: 1 for i in range(1025)}}),
                (["tokenized.input_ids", "empty"], {"prompt": []}),
                (["tokenized.input_ids[1]", str(vocabulary)], {"prompt": [1, vocabulary]}),
                (["tokenized.input_ids", "100000"], {"prompt": [1] * 100_000}),
                (["input", "tokenized", "text"], {"prompt": None}),
                (["request_id", "0x20"], {"fields": {"request_id": "a b"}})):
            with self.subTest(words=words):
                self.refuse(*words, **fields)

    def test_last_bias_of_a_token_counts(self):
        def entry(token_id, bias):
            sampling = message_class("SamplingParams")(logit_bias={token_id: bias})
            return sampling.SerializeToString()

        base = message_class("SamplingParams")(temperature=0, max_tokens=8).SerializeToString()
        twice = message_class("GenerateRequest")(text="The").SerializeToString()
        packed = base + entry(40, 100) + entry(40, 0)
        twice += b"\x22" + bytes([len(packed)]) + packed  # sampling_params
        call = self.pipeline.channel.unary_stream(
            "/vllm.grpc.engine.VllmEngine/Generate", request_serializer=lambda data: data,
            response_deserializer=message_class("GenerateResponse").FromString)
        answer = Answer(list(call(twice, timeout=60 * PATIENCE)))
        self.assertEqual(answer.ids, self.generate("The", max_tokens=8).ids)
        self.assertNotEqual(answer.ids[0], 40)
        biased = self.generate("The", max_tokens=8, logit_bias={40: 100}).ids
        self.assertEqual(set(biased), {40})

    # -- Abort

    def begin_long(self, request_id, **sampling):
        stream = self.stream("The", max_tokens=400, ignore_eos=True,
                             fields={"request_id": request_id}, **sampling)
        return stream, next(stream)

    def test_abort_ends_the_call_and_frees_its_blocks(self):
        stream, first = self.begin_long("long-1", n=2, temperature=1)
        self.assertGreater(self.pipeline.pipeline().kv_block_used_count, 0)
        self.call("Abort", request_ids=["unknown", "long-1", ""])
        pipeline = self.pipeline.pipeline()
        self.assertEqual(pipeline.request_running_count + pipeline.request_waiting_count, 0)
        self.assertEqual(pipeline.kv_block_used_count, 0)
        responses = [first, *stream]
        for index in range(2):
            answer = Answer(responses, index)
            self.assertEqual(answer.complete.finish_reason, "abort")
            self.assertEqual(answer.chunk_ids, answer.ids)
            self.assertEqual(answer.complete.completion_tokens, len(answer.ids))
            self.assertLess(len(answer.ids), 400)
        self.call("Abort", request_ids=["long-1"])  # once more

    def test_abort_ends_all_requests_of_the_name_and_no_others(self):
        streams = [self.begin_long(name)[0] for name in ("a", "b", "b", "c")]
        inference = self.pipeline.stream("The", stop={"max_tokens": 100, "ignore_eos": True},
                                         request_id="b")
        next(inference)
        self.call("Abort", request_ids=["b"])
        reasons = [list(s)[-1].complete.finish_reason for s in streams]
        self.assertEqual(reasons, ["length", "abort", "abort", "length"])
        self.assertEqual(list(inference)[-1].finish_reason,
                         inference_pb2.FINISH_REASON_LENGTH)

    def test_abort_without_ids_is_answered(self):
        self.call("Abort")
        with expect_code(self, INVALID, "request_ids", "4097", "4096"):
            self.call("Abort", request_ids=["x"] * 4097)

    def test_cancelled_calls_free_their_blocks(self):
        stream, _ = self.begin_long("gone")
        stream.cancel()
        wait_until(self.pipeline.is_idle, 10, "the request is gone")
        self.call("Abort", request_ids=["gone"])

    def test_replies_that_nobody_reads_hold_no_blocks(self):
        """All of an answer without `stream` waits in one message; its memory is bounded by it."""
        stream = self.stream("The", max_tokens=400, ignore_eos=True, stream=False, logprobs=20)
        wait_until(self.pipeline.is_idle, 20, "the answer is complete")
        answer = Answer(list(stream))
        self.assertEqual(len(answer.complete.output_logprobs.top_logprobs), 400)
        self.assertTrue(all(len(t.values) == 20
                            for t in answer.complete.output_logprobs.top_logprobs))

    # -- what gateways ask of an engine

    def test_health_is_told(self):
        answer = self.call("HealthCheck")
        self.assertTrue(answer.healthy)
        self.assertEqual(answer.message, "running")

    def test_health_is_bad_without_stages(self):
        with Pipeline(stages=0, wanted=1, wait=False) as pipeline:
            request = message_class("HealthCheckRequest")()
            answer = vllm_interface.Stub(pipeline.channel).HealthCheck(request, timeout=10 * PATIENCE)
            self.assertFalse(answer.healthy)
            self.assertIn("stage", answer.message)

    def test_model_is_told(self):
        info = self.call("GetModelInfo")
        config = json.loads((MODEL / "config.json").read_text())
        self.assertTrue(info.is_generation)
        self.assertFalse(info.supports_vision)
        self.assertEqual(info.vocab_size, config["vocab_size"])
        self.assertEqual(info.max_context_length, self.model.position_count_max)
        self.assertEqual(info.max_req_input_len, self.model.position_count_max - 1)
        self.assertEqual(info.served_model_name, self.model.name)
        self.assertEqual(info.model_type, config["model_type"])
        self.assertEqual(list(info.architectures), config["architectures"])
        self.assertEqual(list(info.eos_token_ids), list(self.model.eos_token_ids))
        self.assertEqual(info.bos_token_id, config["bos_token_id"])
        self.assertEqual(pathlib.Path(info.model_path), MODEL.resolve())
        self.assertEqual(info.tokenizer_path, info.model_path)
        self.assertEqual(info.default_sampling_params_json, "")

    def test_server_is_told(self):
        self.assertEqual(self.call("GetServerInfo").active_requests, 0)
        stream, _ = self.begin_long("busy")
        before = time.time()
        info = self.call("GetServerInfo")
        self.assertEqual(info.active_requests, 1)
        self.assertFalse(info.is_paused)
        self.assertEqual(info.data_parallel_size, 1)
        self.assertGreater(info.block_size, 0)
        self.assertGreater(info.max_num_seqs, 0)
        self.assertEqual(info.server_type, "stagecoach")
        self.assertGreater(info.uptime_seconds, 0)
        self.assertLess(abs(info.last_receive_timestamp - before), 60)
        stream.cancel()

    def test_loads_are_told(self):
        stream, _ = self.begin_long("busy", n=2, temperature=1)
        loads = self.call("GetLoads", dp_rank=0, include=["core"])
        self.assertEqual(loads.dp_rank_count, 1)
        self.assertRegex(loads.timestamp, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        self.assertEqual(loads.version, self.pipeline.pipeline().version)
        load = loads.loads[0]
        self.assertEqual(load.num_running_reqs + load.num_waiting_reqs, 2)
        self.assertEqual(load.num_total_reqs, 2)
        self.assertGreater(load.num_used_tokens, 0)
        self.assertAlmostEqual(load.token_usage, load.num_used_tokens / load.max_total_num_tokens)
        self.assertLessEqual(load.token_usage, load.utilization)
        self.assertGreaterEqual(load.utilization, load.num_running_reqs / load.max_running_requests)
        stream.cancel()
        with expect_code(self, INVALID, "dp_rank", "3"):
            self.call("GetLoads", dp_rank=3)

    def test_tokenizer_unpacks_to_the_files_of_the_model(self):
        chunks = list(self.call("GetTokenizer"))
        data = b"".join(c.data for c in chunks)
        self.assertEqual(chunks[-1].sha256, hashlib.sha256(data).hexdigest())
        self.assertEqual({c.sha256 for c in chunks[:-1]} - {""}, set())
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            self.assertIsNone(archive.testzip())
            names = archive.namelist()
            self.assertEqual(sorted(names), ["config.json", "generation_config.json",
                                             "tokenizer.json", "tokenizer_config.json"])
            for name in names:
                self.assertEqual(archive.read(name), (MODEL / name).read_bytes())

    def test_what_is_not_served_says_so(self):
        with expect_code(self, UNIMPLEMENTED, "embeddings"):
            self.call("Embed", request_id="e", tokenized={"input_ids": [1]})
        with expect_code(self, UNIMPLEMENTED, "prefix cache"):
            list(self.call("SubscribeKvEvents"))


class ModelFolderTest(unittest.TestCase):
    """What is told of models whose folders differ from the demo's."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.model = copy_model(folder.name)

    def serve(self, *options):
        return Pipeline(stages=0, wanted=1, wait=False, model=self.model, coordinator=options)

    def ask(self, pipeline, method):
        request = message_class(vllm_interface.METHODS[method][0])()
        return getattr(vllm_interface.Stub(pipeline.channel), method)(request, timeout=60 * PATIENCE)

    def test_sampling_defaults_are_told(self):
        edit_json(self.model / "generation_config.json", temperature=0.6, top_k=20, top_p=None,
                  min_p="none", repetition_penalty=1.05)
        edit_json(self.model / "config.json", pad_token_id=3, bos_token_id=[1, 2])
        with self.serve("--model-name", "other", "--context", 100) as pipeline:
            info = self.ask(pipeline, "GetModelInfo")
        self.assertEqual(json.loads(info.default_sampling_params_json),
                         {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05})
        self.assertEqual((info.pad_token_id, info.bos_token_id), (3, 0))
        self.assertEqual(info.served_model_name, "other")
        self.assertEqual(info.max_context_length, 100)

    def test_large_tokenizer_comes_in_pieces_also_to_a_slow_reader(self):
        large = random.Random(1).randbytes(24 << 20)
        (self.model / "large.model").write_bytes(large)
        (self.model / "weights.bin").write_bytes(b"no part of a tokenizer")
        (self.model / "folder.model").mkdir()
        with self.serve() as pipeline:
            stream = self.ask(pipeline, "GetTokenizer")
            chunks = [next(stream)]
            time.sleep(0.3)  # more than may be sent waits
            chunks += stream
        data = b"".join(c.data for c in chunks)
        self.assertGreater(len(chunks), 256)
        self.assertEqual([c.sha256 for c in chunks if c.sha256],
                         [hashlib.sha256(data).hexdigest()])
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            self.assertEqual(archive.read("large.model"), large)
            self.assertNotIn("weights.bin", archive.namelist())

    def refuse_tokenizer(self, pipeline, *words):
        with expect_code(self, grpc.StatusCode.FAILED_PRECONDITION, *words):
            list(self.ask(pipeline, "GetTokenizer"))

    def test_tokenizer_of_too_many_files_is_refused(self):
        for i in range(50):
            (self.model / f"{i}.jinja").write_text("")
        with self.serve() as pipeline:
            self.refuse_tokenizer(pipeline, "54", "50")

    def test_model_without_tokenizer_has_none_to_send(self):
        (self.model / "tokenizer.json").unlink()
        with self.serve("--load-format", "dummy") as pipeline:
            self.refuse_tokenizer(pipeline, "tokenizer.json")
            self.assertEqual(self.ask(pipeline, "GetModelInfo").tokenizer_path, "")


class DrainTest(unittest.TestCase):
    def test_draining_is_told(self):
        with Pipeline(stages=1, coordinator=("--drain-notice-seconds", 10)) as pipeline:
            stub = vllm_interface.Stub(pipeline.channel)
            request = message_class("GenerateRequest")(
                text="The", stream=True, sampling_params={"max_tokens": 400, "ignore_eos": True})
            stream = stub.Generate(request, timeout=60 * PATIENCE)
            next(stream)
            pipeline.coordinator.signal(signal.SIGTERM)
            info = message_class("GetServerInfoRequest")()
            wait_until(lambda: stub.GetServerInfo(info).is_paused, 10, "the coordinator drains")
            health = stub.HealthCheck(message_class("HealthCheckRequest")())
            self.assertEqual((health.healthy, health.message), (False, "draining"))
            self.assertEqual(list(stream)[-1].complete.finish_reason, "length")


if __name__ == "__main__":
    unittest.main()
