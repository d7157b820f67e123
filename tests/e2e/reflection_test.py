"""Clients that have no .proto files: what a server tells of itself is enough to call it."""

import re
import sys
import unittest

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase)

from harness import PROMPT, SOURCE, Pipeline, run

SERVICES = {"stagecoach.v1.Inference", "stagecoach.v1.Admin", "stagecoach.v1.Control",
            "vllm.grpc.engine.VllmEngine", "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}


class Client:
    """Calls what reflection describes."""

    def __init__(self, channel):
        self.channel = channel
        self.pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))

    def call(self, service, method, /, **fields):
        descriptor = self.pool.FindServiceByName(service).FindMethodByName(method)
        request, response = (message_factory.GetMessageClass(descriptor.input_type),
                             message_factory.GetMessageClass(descriptor.output_type))
        make = self.channel.unary_stream if descriptor.server_streaming else self.channel.unary_unary
        return make(f"/{service}/{method}", request_serializer=request.SerializeToString,
                    response_deserializer=response.FromString)(request(**fields), timeout=60)


class ReflectionTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pipeline = cls.enterClassContext(Pipeline(stages=2))
        cls.channel = cls.pipeline.channel

    def test_every_service_is_listed_and_described_with_all_it_refers_to(self):
        client = Client(self.channel)
        database = ProtoReflectionDescriptorDatabase(self.channel)
        services = set(database.get_services())
        self.assertEqual(services, SERVICES)
        for service in services:
            for method in client.pool.FindServiceByName(service).methods:
                message_factory.GetMessageClass(method.input_type)()
                message_factory.GetMessageClass(method.output_type)()
                self.assertIsNotNone(client.pool.FindMethodByName(method.full_name))
        for symbol in ("stagecoach.v1.Nothing", "Nothing", ""):
            with self.assertRaises(KeyError):
                database.FindFileContainingSymbol(symbol)

    def test_a_client_without_proto_files_generates(self):
        client = Client(self.channel)
        messages = list(client.call("stagecoach.v1.Inference", "Generate", text=PROMPT))
        self.assertIn("72", "".join(m.text for m in messages))
        expected = self.pipeline.generate()
        self.assertEqual([i for m in messages for i in m.token_ids], expected.token_ids)
        model = client.call("stagecoach.v1.Inference", "GetModel")
        self.assertEqual(model.layer_count, 8)
        health = client.call("grpc.health.v1.Health", "Check", service="stagecoach.v1.Inference")
        self.assertEqual(health.status, 1)

    def test_the_first_version_and_the_second_answer_alike(self):
        questions = [reflection_pb2.ServerReflectionRequest(**fields) for fields in (
            {"list_services": "", "host": "here"},
            {"file_by_filename": "stagecoach/v1/inference.proto"},
            {"file_by_filename": "no/such.proto"},
            {"file_containing_symbol": "vllm.grpc.engine.VllmEngine.Generate"},
            {"file_containing_symbol": "no.Such"},
            {"all_extension_numbers_of_type": "stagecoach.v1.GenerateRequest"},
            {"file_containing_extension": {"containing_type": "stagecoach.v1.GenerateRequest",
                                           "extension_number": 9}},
            {})]
        answers = []
        for version in ("v1", "v1alpha"):
            ask = self.channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString)
            answers.append(list(ask(iter(questions), timeout=20)))
        self.assertEqual(*answers)
        self.assertEqual([a.original_request for a in answers[0]], questions)
        self.assertEqual([a.WhichOneof("message_response") for a in answers[0]], [
            "list_services_response", "file_descriptor_response", "error_response",
            "file_descriptor_response", "error_response", "all_extension_numbers_response",
            "error_response", "error_response"])
        codes = [a.error_response.error_code for a in answers[0]]
        self.assertEqual(codes, [0, 0, 5, 0, 5, 0, 5, 3])

    def test_files_come_after_one_another_with_their_imports(self):
        ask = self.channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString)
        for name in ("vllm.grpc.engine.VllmEngine", "stagecoach.v1.Admin", "grpc.health.v1.Health"):
            request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
            (answer,) = ask(iter([request]), timeout=20)
            files = [descriptor_pb2.FileDescriptorProto.FromString(data)
                     for data in answer.file_descriptor_response.file_descriptor_proto]
            self.assertIn(name, [f"{files[0].package}.{s.name}" for s in files[0].service])
            names = {file.name for file in files}
            self.assertEqual(len(names), len(files))
            for file in files:
                self.assertLessEqual(set(file.dependency), names)

    def test_the_client_of_the_readme_works_as_written(self):
        blocks = re.findall(r"<<'END'\n(.*?)\nEND\n", (SOURCE / "README.md").read_text(), re.DOTALL)
        (program,) = [block for block in blocks if "grpc_reflection" in block]
        result = run(sys.executable, "-", self.pipeline.address, stdin=program)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertEqual(result.stdout, self.pipeline.generate(
            "Question: What is 27 plus 45? Answer:").text + "\n")


if __name__ == "__main__":
    unittest.main()
