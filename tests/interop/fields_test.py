"""Every field of every message that a coordinator takes, at its edges and beyond: each call ends with
a clear code, and nothing of it stays."""

import collections
import itertools
import random
import time
import unittest

import grpc

import world  # for the path of the next
from harness import BUILD, PATIENCE, Pipeline, admin_pb2, wait_until

import edges
from schema import Schema

Code = grpc.StatusCode
schema = Schema((BUILD / "proto" / "generated" / "descriptors.bin").read_bytes())

# What a call may end with. What is wrong with the server itself is not among them.
CLEAR = {Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS,
         Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED, Code.UNIMPLEMENTED}
CALL_SECONDS = 30 * PATIENCE
GROWTH_BYTES = 48 << 20
MIX_COUNT = 300

# Requests that are answered with OK, by method; others are so when empty.
VALID = {
    "/stagecoach.v1.Inference/Generate": {"text": "The", "stop": {"max_tokens": 1}},
    "/stagecoach.v1.Inference/Tokenize": {"text": "The"},
    "/stagecoach.v1.Inference/Detokenize": {"token_ids": [5]},
    "/vllm.grpc.engine.VllmEngine/Generate": {
        "text": "The", "stream": True, "sampling_params": {"max_tokens": 1}},
}


class Method:
    """One method of the coordinator, called with bytes."""

    def __init__(self, channel, service, method):
        name, request, _, client_streams, server_streams = method
        self.path = f"/{service}/{name}"
        self.request = request
        self.streams = server_streams
        kind = f"{'stream' if client_streams else 'unary'}_{'stream' if server_streams else 'unary'}"
        self.multi = getattr(channel, kind)(self.path)
        self.client_streams = client_streams

    def call(self, *messages):
        """The code and the sentence. Of a stream only the beginning is read, unless it also takes
        several messages: then it ends after they have."""
        request = iter(messages) if self.client_streams else messages[0]
        try:
            if not self.streams:
                self.multi(request, timeout=CALL_SECONDS)
                return Code.OK, ""
            stream = self.multi(request, timeout=CALL_SECONDS)
            for _ in stream:
                if not self.client_streams:
                    stream.cancel()
                    return Code.OK, ""
            return stream.code(), stream.details()
        except grpc.RpcError as error:
            return error.code(), error.details()


class FieldsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pipeline = Pipeline(stages=1, coordinator=("--log-level", "warn"))
        cls.pid = cls.pipeline.coordinator.pid

    @classmethod
    def tearDownClass(cls):
        cls.pipeline.close()

    def methods(self, *services):
        for service in services:
            for method in schema.methods(service):
                yield Method(self.pipeline.channel, service, method)

    def check(self, method, message, what, codes, words=()):
        code, sentence = method.call(*message)
        self.counts[method.path, code.name] += 1
        place = f"{method.path} {what}"
        self.assertIn(code, codes, f"{place}: {sentence}")
        if code is not Code.OK:
            self.assertNotEqual(sentence, "", place)
            self.assertLess(len(sentence), 1000, place)
        for word in words:
            self.assertIn(word, sentence, place)

    def sweep(self, method, base, before=lambda: ()):
        """`base()` makes the message that each value goes into, `before()` what is sent first."""
        invalid = {Code.INVALID_ARGUMENT}
        for path in edges.paths(method.request.DESCRIPTOR):
            field, name, word = path[-1], edges.name_of(path), edges.word_of(path)
            for values, codes, words in (
                    (edges.legal_of(field), CLEAR, ()),
                    (edges.numberless_of(field), invalid, (word,)),
                    (edges.illegal_of(field), invalid, (word,)),
                    (edges.broken_of(field), invalid, ("not a protobuf message",))):
                for what, data in values:
                    self.check(method, (*before(), edges.splice(base(), path, data)),
                               f"{name}: {what}", codes, words)

    def setUp(self):
        self.counts = collections.Counter()
        self.pipeline.generate(max_tokens=1)
        self.before = self.pipeline.pipeline()
        self.memory_before = world.resident_bytes(self.pid)
        self.began = time.monotonic()

    def tearDown(self):
        self.pipeline.check_running()
        wait_until(self.pipeline.is_idle, 20, "all requests and KV blocks are free again")
        after = self.pipeline.pipeline()
        self.assertEqual(after.epoch, self.before.epoch, "the pipeline had to begin anew")
        self.assertEqual(after.state, admin_pb2.PIPELINE_STATE_RUNNING)
        self.pipeline.generate(max_tokens=1)
        growth = world.resident_bytes(self.pid) - self.memory_before
        seconds = time.monotonic() - self.began
        print(f"{sum(self.counts.values())} calls in {seconds:.1f} s, memory grew by "
              f"{growth / 1e6:.1f} MB")
        for (path, code), count in sorted(self.counts.items()):
            print(f"  {path} {code}: {count}")
        if not world.SANITIZER:
            self.assertLess(growth, GROWTH_BYTES)

    def mix(self, method, base, count):
        """Several values at once, drawn from all."""
        values = [(path, what, data) for path in edges.paths(method.request.DESCRIPTOR)
                  for what, data in edges.legal_of(path[-1]) if len(data) < edges.LONG]
        if not values:
            return
        for seed in range(count):
            draw = random.Random(seed)
            message, names = base(), []
            for path, what, data in draw.choices(values, k=draw.randint(2, 6)):
                message.MergeFromString(edges.splice(None, path, data))
                names.append(f"{edges.name_of(path)}: {what}")
            self.check(method, (message.SerializeToString(),), f"seed {seed}: {names}", CLEAR)

    def sweep_service(self, *services):
        for method in self.methods(*services):
            with self.subTest(method=method.path):
                base = method.request(**VALID.get(method.path, {}))
                if not method.client_streams:
                    code, sentence = method.call(base.SerializeToString())
                    self.assertIn(code, (Code.OK, Code.UNIMPLEMENTED), sentence)
                self.sweep(method, lambda made=base: made)
                self.mix(method, lambda made=base: type(made).FromString(made.SerializeToString()),
                         MIX_COUNT)

    def test_inference(self):
        self.sweep_service("stagecoach.v1.Inference")

    def test_admin(self):
        self.sweep_service("stagecoach.v1.Admin")

    def test_vllm_engine(self):
        self.sweep_service("vllm.grpc.engine.VllmEngine")

    def test_health(self):
        self.sweep_service("grpc.health.v1.Health")

    def test_reflection(self):
        self.sweep_service("grpc.reflection.v1.ServerReflection",
                           "grpc.reflection.v1alpha.ServerReflection")

    def test_control(self):
        """As the first message, where only a hello may be, and after a good hello, as a spare stage
        that must not be able to disturb the others."""
        join, = self.methods("stagecoach.v1.Control")
        _, sentence = join.call(join.request(hello={"protocol_version": 999}).SerializeToString())
        version = int(sentence.split()[-1])  # "..., this coordinator speaks 1"
        numbers = itertools.count()

        def hello():
            return join.request(hello={
                "protocol_version": version, "name": f"edge-{next(numbers)}", "version": "1",
                "data_address": "127.0.0.1:9", "thread_count": 1, "kernel_variant": "portable",
                "memory_bytes": 1 << 30})

        self.assertEqual(join.call(hello().SerializeToString()), (Code.OK, ""))
        self.sweep(join, hello)
        self.mix(join, hello, MIX_COUNT)
        self.sweep(join, lambda: None, lambda: (hello().SerializeToString(),))

    def test_messages_of_no_field_at_all(self):
        services = [name for name in schema.services if "testing" not in name]
        for method in self.methods(*services):
            for data in (b"\xff", b"\0", b"\x07", bytes(range(256)), b"\x0b" * 100,
                         b"\x0a\x80\x80\x80\x80\x10"):
                with self.subTest(method=method.path, data=data[:10]):
                    self.check(method, (data,), repr(data[:10]),
                               {Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED})


if __name__ == "__main__":
    unittest.main()
