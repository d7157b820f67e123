"""The gRPC interoperability cases, and more of the kind, from Python's grpcio against our server.

The cases of doc/interop-test-descriptions.md of grpc/grpc have the names they have there, but for
those of cloud accounts and of HTTP caches. Compressed messages are refused on purpose: the cases
with compression check how.
"""

import itertools
import queue
import threading
import time
import unittest

import grpc

from edges import varint
from schema import Schema
from world import (PATIENCE, Empty, InputRequest, OutputRequest, Payload, Server, SimpleRequest,
                   dial, schema, wait_until)

Code = grpc.StatusCode
TIMEOUT = 30 * PATIENCE
SERVER_MESSAGE_BYTES_MAX = 4 << 20
STREAM_COUNT = 1000


def payload(size):
    return Payload(body=bytes(size))


def large_request(**fields):
    return SimpleRequest(response_size=314159, payload=payload(271828), **fields)


def output_request(*sizes, interval_us=0, **fields):
    return OutputRequest(
        response_parameters=[{"size": size, "interval_us": interval_us} for size in sizes], **fields)


def sizes_of(responses):
    return [len(response.payload.body) for response in responses]


class Requests:
    """An iterator of requests that a test feeds step by step."""

    def __init__(self):
        self.waiting = queue.Queue()

    def send(self, request):
        self.waiting.put(request)

    def end(self):
        self.waiting.put(None)

    def __iter__(self):
        return iter(self.waiting.get, None)


class CaseTest(unittest.TestCase):
    """A server for all tests of the class; whatever a test did, no call of it stays."""

    options = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.options)
        cls.stub = cls.server.stub

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def tearDown(self):
        self.assertTrue(self.server.process.is_running(), self.server.process.log())
        self.server.wait_idle()

    def expect(self, code, call, *words):
        """The call must fail with this code and a sentence with the words; returns the error."""
        with self.assertRaises(grpc.RpcError) as caught:
            result = call()
            if hasattr(result, "__next__"):
                list(result)
        error = caught.exception
        self.assertEqual(error.code(), code, error.details())
        for word in words:
            self.assertIn(word, error.details())
        return error


class InteropTest(CaseTest):
    def test_empty_unary(self):
        self.assertEqual(self.stub.EmptyCall(Empty(), timeout=TIMEOUT), Empty())

    def test_large_unary(self):
        response = self.stub.UnaryCall(large_request(), timeout=TIMEOUT)
        self.assertEqual(response.payload.body, bytes(314159))

    def test_client_streaming(self):
        requests = [InputRequest(payload=payload(size)) for size in (27182, 8, 1828, 45904)]
        response = self.stub.StreamingInputCall(iter(requests), timeout=TIMEOUT)
        self.assertEqual(response.aggregated_payload_size, 74922)

    def test_server_streaming(self):
        sizes = [31415, 9, 2653, 58979]
        responses = self.stub.StreamingOutputCall(output_request(*sizes), timeout=TIMEOUT)
        self.assertEqual(sizes_of(responses), sizes)

    def test_ping_pong(self):
        requests = Requests()
        responses = self.stub.FullDuplexCall(iter(requests), timeout=TIMEOUT)
        for answer_size, size in ((31415, 27182), (9, 8), (2653, 1828), (58979, 45904)):
            requests.send(output_request(answer_size, payload=payload(size)))
            self.assertEqual(len(next(responses).payload.body), answer_size)
        requests.end()
        self.assertEqual(list(responses), [])

    def test_half_duplex(self):
        requests = [output_request(*sizes) for sizes in ((5, 7), (), (11,))]
        responses = self.stub.HalfDuplexCall(iter(requests), timeout=TIMEOUT)
        self.assertEqual(sizes_of(responses), [5, 7, 11])

    def test_half_duplex_answers_nothing_before_the_end(self):
        requests = Requests()
        responses = self.stub.HalfDuplexCall(iter(requests), timeout=TIMEOUT)
        got = queue.Queue()
        reader = threading.Thread(target=lambda: got.put(sizes_of(responses)))
        reader.start()
        requests.send(output_request(3))
        with self.assertRaises(queue.Empty):
            got.get(timeout=0.3)
        requests.end()
        self.assertEqual(got.get(timeout=TIMEOUT), [3])
        reader.join()

    def test_empty_stream(self):
        self.assertEqual(list(self.stub.FullDuplexCall(iter([]), timeout=TIMEOUT)), [])

    def test_custom_metadata(self):
        metadata = (("x-grpc-test-echo-initial", "test_initial_metadata_value"),
                    ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab"))
        _, unary = self.stub.UnaryCall.with_call(large_request(), metadata=metadata, timeout=TIMEOUT)
        stream = self.stub.FullDuplexCall(iter([output_request(314159, payload=payload(271828))]),
                                          metadata=metadata, timeout=TIMEOUT)
        self.assertEqual(sizes_of(stream), [314159])
        for call in (unary, stream):
            self.assertIn(metadata[0], [tuple(entry) for entry in call.initial_metadata()])
            self.assertIn(metadata[1], [tuple(entry) for entry in call.trailing_metadata()])

    def test_status_code_and_message(self):
        status = {"code": 2, "message": "test status message"}
        unary = self.expect(Code.UNKNOWN, lambda: self.stub.UnaryCall(
            SimpleRequest(response_status=status), timeout=TIMEOUT))
        stream = self.expect(Code.UNKNOWN, lambda: self.stub.FullDuplexCall(
            iter([OutputRequest(response_status=status)]), timeout=TIMEOUT))
        self.assertEqual([unary.details(), stream.details()], [status["message"]] * 2)

    def test_special_status_message(self):
        message = "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n"
        error = self.expect(Code.UNKNOWN, lambda: self.stub.UnaryCall(
            SimpleRequest(response_status={"code": 2, "message": message}), timeout=TIMEOUT))
        self.assertEqual(error.details(), message)

    def test_unimplemented_method(self):
        self.expect(Code.UNIMPLEMENTED,
                    lambda: self.stub.UnimplementedCall(Empty(), timeout=TIMEOUT),
                    "/grpc.testing.TestService/UnimplementedCall")

    def test_unimplemented_service(self):
        stub = schema.stub(self.server.channel, "grpc.testing.UnimplementedService")
        self.expect(Code.UNIMPLEMENTED, lambda: stub.UnimplementedCall(Empty(), timeout=TIMEOUT))

    def test_cancel_after_begin(self):
        requests = Requests()
        call = self.stub.StreamingInputCall.future(iter(requests), timeout=TIMEOUT)
        call.cancel()
        self.assertEqual(call.code(), Code.CANCELLED)
        requests.end()

    def test_cancel_after_first_response(self):
        requests = Requests()
        requests.send(output_request(31415, payload=payload(27182)))
        responses = self.stub.FullDuplexCall(iter(requests), timeout=TIMEOUT)
        self.assertEqual(len(next(responses).payload.body), 31415)
        responses.cancel()
        self.expect(Code.CANCELLED, lambda: responses)
        requests.end()

    def test_timeout_on_sleeping_server(self):
        requests = Requests()
        requests.send(OutputRequest(payload=payload(27182)))
        self.expect(Code.DEADLINE_EXCEEDED,
                    lambda: self.stub.FullDuplexCall(iter(requests), timeout=0.001))
        requests.end()

    def test_client_compressed_unary_is_refused(self):
        self.expect(Code.INVALID_ARGUMENT, lambda: self.stub.UnaryCall(
            large_request(expect_compressed={"value": True}), timeout=TIMEOUT), "expect_compressed")
        for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            self.expect(Code.UNIMPLEMENTED, lambda: self.stub.UnaryCall(
                large_request(), compression=algorithm, timeout=TIMEOUT))
        response = self.stub.UnaryCall(large_request(expect_compressed={"value": False}),
                                       timeout=TIMEOUT)
        self.assertEqual(len(response.payload.body), 314159)

    def test_client_compressed_streaming_is_refused(self):
        probe = InputRequest(expect_compressed={"value": True}, payload=payload(27182))
        self.expect(Code.INVALID_ARGUMENT, lambda: self.stub.StreamingInputCall(
            iter([probe]), timeout=TIMEOUT), "expect_compressed")
        self.expect(Code.UNIMPLEMENTED, lambda: self.stub.StreamingInputCall(
            iter([probe]), compression=grpc.Compression.Gzip, timeout=TIMEOUT))

    def test_server_compressed_unary_is_refused(self):
        self.expect(Code.UNIMPLEMENTED, lambda: self.stub.UnaryCall(
            large_request(response_compressed={"value": True}), timeout=TIMEOUT), "compressed")
        response = self.stub.UnaryCall(large_request(response_compressed={"value": False}),
                                       timeout=TIMEOUT)
        self.assertEqual(len(response.payload.body), 314159)

    def test_server_compressed_streaming_is_refused(self):
        request = OutputRequest(response_parameters=[{"size": 31415, "compressed": {"value": True}}])
        self.expect(Code.UNIMPLEMENTED,
                    lambda: self.stub.StreamingOutputCall(request, timeout=TIMEOUT), "compressed")


class EdgesTest(CaseTest):
    """Beyond the list: every code, both ends of sizes, deadlines, cancels, readers that are slow."""

    def test_every_status_code_arrives(self):
        for code in Code:
            if code is Code.OK:
                continue
            status = {"code": code.value[0], "message": f"it is {code.name}"}
            with self.subTest(code=code.name):
                for call in (
                        lambda: self.stub.UnaryCall(SimpleRequest(response_status=status),
                                                    timeout=TIMEOUT),
                        lambda: self.stub.StreamingOutputCall(
                            output_request(5, response_status=status), timeout=TIMEOUT),
                        lambda: self.stub.FullDuplexCall(
                            iter([OutputRequest(response_status=status)]), timeout=TIMEOUT)):
                    self.assertEqual(self.expect(code, call).details(), status["message"])

    def test_ok_with_a_message_ends_a_stream(self):
        call = self.stub.StreamingOutputCall(
            OutputRequest(response_status={"code": 0, "message": "fine"}), timeout=TIMEOUT)
        self.assertEqual(list(call), [])
        self.assertEqual(call.code(), Code.OK)

    def test_values_out_of_range_are_refused_by_name(self):
        self.expect(Code.INVALID_ARGUMENT, lambda: self.stub.UnaryCall(
            SimpleRequest(response_size=-1), timeout=TIMEOUT), "response_size", "-1")
        self.expect(Code.INVALID_ARGUMENT, lambda: self.stub.UnaryCall(
            SimpleRequest(response_status={"code": 17}), timeout=TIMEOUT), "17")
        self.expect(Code.INVALID_ARGUMENT, lambda: self.stub.StreamingOutputCall(
            output_request(1, interval_us=-1), timeout=TIMEOUT), "interval_us")

    def test_request_of_the_largest_size_is_taken_and_one_byte_more_is_not(self):
        overhead = SimpleRequest(payload=payload(SERVER_MESSAGE_BYTES_MAX - 20)).ByteSize() - (
            SERVER_MESSAGE_BYTES_MAX - 20)
        largest = SERVER_MESSAGE_BYTES_MAX - overhead
        request = SimpleRequest(payload=payload(largest), response_size=0)
        self.assertEqual(request.ByteSize(), SERVER_MESSAGE_BYTES_MAX)
        self.stub.UnaryCall(request, timeout=TIMEOUT)
        self.expect(Code.RESOURCE_EXHAUSTED, lambda: self.stub.UnaryCall(
            SimpleRequest(payload=payload(largest + 1)), timeout=TIMEOUT), str(4 << 20))
        self.expect(Code.RESOURCE_EXHAUSTED, lambda: self.stub.FullDuplexCall(
            iter([OutputRequest(payload=payload(largest + 1))]), timeout=TIMEOUT))

    def test_answer_may_be_larger_than_requests_may(self):
        channel = dial(self.server.address, ("grpc.max_receive_message_length", -1))
        stub = schema.stub(channel, "grpc.testing.TestService")
        response = stub.UnaryCall(SimpleRequest(response_size=32 << 20), timeout=TIMEOUT)
        self.assertEqual(len(response.payload.body), 32 << 20)
        channel.close()

    def test_answer_that_is_too_large_for_the_client_ends_only_that_call(self):
        self.expect(Code.RESOURCE_EXHAUSTED, lambda: self.stub.UnaryCall(
            SimpleRequest(response_size=(4 << 20) + 1), timeout=TIMEOUT))
        self.stub.EmptyCall(Empty(), timeout=TIMEOUT)

    def test_metadata_of_every_shape_comes_back(self):
        values = ["", "a", "x" * 1000, "with spaces, and; signs = %41", "~!@#$^&*()"]
        for value in values:
            with self.subTest(value=value[:20]):
                _, call = self.stub.UnaryCall.with_call(
                    SimpleRequest(), metadata=(("x-grpc-test-echo-initial", value),),
                    timeout=TIMEOUT)
                self.assertIn(("x-grpc-test-echo-initial", value),
                              [tuple(entry) for entry in call.initial_metadata()])
        for value in (b"", b"\0", bytes(range(256)), b"\xff" * 1000):
            with self.subTest(value=value[:20]):
                _, call = self.stub.UnaryCall.with_call(
                    SimpleRequest(), metadata=(("x-grpc-test-echo-trailing-bin", value),),
                    timeout=TIMEOUT)
                self.assertIn(("x-grpc-test-echo-trailing-bin", value),
                              [tuple(entry) for entry in call.trailing_metadata()])

    def test_metadata_comes_with_errors_too(self):
        error = self.expect(Code.ABORTED, lambda: self.stub.UnaryCall(
            SimpleRequest(response_status={"code": 10, "message": "no"}),
            metadata=(("x-grpc-test-echo-trailing-bin", b"\1\2"),), timeout=TIMEOUT))
        self.assertIn(("x-grpc-test-echo-trailing-bin", b"\1\2"),
                      [tuple(entry) for entry in error.trailing_metadata()])

    def test_answers_keep_their_pace(self):
        begin = time.monotonic()
        times = []
        for _ in self.stub.StreamingOutputCall(output_request(*[1] * 5, interval_us=50000),
                                               timeout=TIMEOUT):
            times.append(time.monotonic() - begin)
        self.assertEqual(len(times), 5)
        for index, seconds in enumerate(times):
            self.assertGreaterEqual(seconds, 0.05 * (index + 1) - 0.001)

    def test_deadline_ends_a_stream_in_the_middle(self):
        responses = self.stub.StreamingOutputCall(
            output_request(*[10] * 1000, interval_us=20000), timeout=0.5)
        got = []
        with self.assertRaises(grpc.RpcError) as caught:
            for response in responses:
                got.append(response)
        self.assertEqual(caught.exception.code(), Code.DEADLINE_EXCEEDED)
        self.assertLess(len(got), 30)

    def test_deadline_that_is_over_before_it_begins(self):
        self.expect(Code.DEADLINE_EXCEEDED, lambda: self.stub.UnaryCall(SimpleRequest(), timeout=-1))

    def test_deadline_of_a_unary_call_whose_answer_never_comes(self):
        self.expect(Code.DEADLINE_EXCEEDED, lambda: self.stub.StreamingInputCall(
            iter(Requests()), timeout=0.2))

    def test_cancel_stops_what_is_being_sent(self):
        responses = self.stub.StreamingOutputCall(
            output_request(*[100000] * 10000), timeout=TIMEOUT)
        next(responses)
        responses.cancel()
        self.expect(Code.CANCELLED, lambda: responses)

    def test_client_that_goes_away_ends_its_calls(self):
        channel = dial(self.server.address)
        stub = schema.stub(channel, "grpc.testing.TestService")
        calls = [stub.FullDuplexCall(iter(Requests()), timeout=TIMEOUT) for _ in range(20)]
        wait_until(lambda: self.open_count() == 20, 10, "the calls have begun")
        channel.close()
        self.server.wait_idle()
        del calls

    def open_count(self):
        reading = self.server.read()
        return reading.begun_count - reading.closed_count

    def test_slow_reader_gets_everything(self):
        """The server has far more to send than may wait, and waits for the reader."""
        responses = self.stub.StreamingOutputCall(output_request(*[10000] * 3000), timeout=TIMEOUT)
        next(responses)
        time.sleep(0.5)
        self.assertEqual(sizes_of(responses), [10000] * 2999)

    def test_error_in_the_middle_of_a_client_stream(self):
        """The server ends the call while the client is still sending."""
        requests = itertools.chain([OutputRequest(response_status={"code": 9, "message": "stop"})],
                                   (OutputRequest(payload=payload(100000)) for _ in range(200)))
        self.expect(Code.FAILED_PRECONDITION,
                    lambda: self.stub.FullDuplexCall(requests, timeout=TIMEOUT), "stop")

    def test_malformed_message_is_refused_by_name(self):
        for raw, words in ((b"\x0a\xff", "not a protobuf message"),
                           (b"\x3a\x03\x12\x01\xff", "response_status.message"),
                           (b"\x3a\x03\x12\x01\0", "response_status.message"),
                           (b"\x12\x01a", "response_size")):
            with self.subTest(raw=raw):
                call = self.server.channel.unary_unary("/grpc.testing.TestService/UnaryCall",
                                                       request_serializer=None,
                                                       response_deserializer=None)
                self.expect(Code.INVALID_ARGUMENT, lambda: call(raw, timeout=TIMEOUT), words)

    def test_unary_call_with_two_messages_or_none_is_refused(self):
        call = self.server.channel.stream_unary("/grpc.testing.TestService/UnaryCall",
                                                request_serializer=None,
                                                response_deserializer=None)
        for requests in ([], [b"", b""]):
            with self.subTest(count=len(requests)):
                self.expect(Code.INVALID_ARGUMENT,
                            lambda: call(iter(requests), timeout=TIMEOUT), "message")


class StandardServicesTest(CaseTest):
    """Health and reflection, as clients know them that know nothing else of the server."""

    SERVICES = {"grpc.testing.TestService", "stagecoach.interop.Meter", "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}

    def test_health_check_and_list(self):
        health = schema.stub(self.server.channel, "grpc.health.v1.Health")
        request = schema.message("grpc.health.v1.HealthCheckRequest")
        for service in ("", "grpc.testing.TestService"):
            self.assertEqual(health.Check(request(service=service), timeout=TIMEOUT).status, 1)
        self.expect(Code.NOT_FOUND,
                    lambda: health.Check(request(service="no.such.Service"), timeout=TIMEOUT))
        listed = health.List(schema.message("grpc.health.v1.HealthListRequest")(), timeout=TIMEOUT)
        self.assertEqual(set(listed.statuses), {"", "grpc.testing.TestService"})

    def test_health_watch(self):
        """The status comes at once; then nothing, while it does not change."""
        health = schema.stub(self.server.channel, "grpc.health.v1.Health")
        request = schema.message("grpc.health.v1.HealthCheckRequest")
        for service, status in (("grpc.testing.TestService", 1), ("no.such.Service", 3)):
            watch = health.Watch(request(service=service), timeout=1)
            self.assertEqual(next(watch).status, status)
            self.expect(Code.DEADLINE_EXCEEDED, lambda: watch)

    def test_reflection_alone_is_enough_to_call(self):
        for version in ("v1", "v1alpha"):
            with self.subTest(version=version):
                package = f"grpc.reflection.{version}"
                stub = schema.stub(self.server.channel, f"{package}.ServerReflection")
                request = schema.message(f"{package}.ServerReflectionRequest")

                def ask(**fields):
                    answer, = stub.ServerReflectionInfo(iter([request(**fields)]), timeout=TIMEOUT)
                    return answer

                listed = ask(list_services="").list_services_response.service
                self.assertEqual({service.name for service in listed}, self.SERVICES)
                answer = ask(file_containing_symbol="grpc.testing.TestService")
                files = answer.file_descriptor_response.file_descriptor_proto
                found = Schema(b"".join(b"\x0a" + varint(len(file)) + file for file in files))
                test = found.stub(self.server.channel, "grpc.testing.TestService")
                wanted = found.message("grpc.testing.SimpleRequest")(response_size=77)
                self.assertEqual(len(test.UnaryCall(wanted, timeout=TIMEOUT).payload.body), 77)
                self.assertEqual(ask(file_containing_symbol="no.such").error_response.error_code,
                                 Code.NOT_FOUND.value[0])


class ManyTest(CaseTest):
    def test_thousand_parallel_streams(self):
        """All open at once on one connection; each then answers in turn, and all end well."""
        feeds = [Requests() for _ in range(STREAM_COUNT)]
        calls = [self.stub.FullDuplexCall(iter(feed), timeout=120 * PATIENCE) for feed in feeds]
        wait_until(lambda: self.open_count() == STREAM_COUNT, 60, "all streams are open")
        for index, feed in enumerate(feeds):
            feed.send(output_request(index, 2 * index))
        for feed in feeds:
            feed.end()
        for index, call in enumerate(calls):
            self.assertEqual(sizes_of(call), [index, 2 * index])

    def open_count(self):
        reading = self.server.read()
        return reading.begun_count - reading.closed_count

    def test_concurrent_large_unary(self):
        calls = [self.stub.UnaryCall.future(large_request(), timeout=120 * PATIENCE)
                 for _ in range(STREAM_COUNT)]
        self.assertEqual({len(call.result().payload.body) for call in calls}, {314159})


class LimitTest(CaseTest):
    options = ("--calls", 8)

    def test_call_beyond_the_limit_waits_or_is_refused(self):
        """The client of one connection waits by itself; others are refused, and told to retry."""
        feeds = [Requests() for _ in range(8)]
        calls = [self.stub.FullDuplexCall(iter(feed), timeout=TIMEOUT) for feed in feeds]
        for feed, call in zip(feeds, calls):
            feed.send(output_request(1))
            next(call)
        waiting = self.stub.EmptyCall.future(Empty(), timeout=TIMEOUT)
        other = dial(self.server.address)
        error = self.expect(Code.RESOURCE_EXHAUSTED, lambda: schema.stub(
            other, "grpc.testing.TestService").EmptyCall(Empty(), timeout=TIMEOUT), "too many calls")
        self.assertIn("grpc-retry-pushback-ms", dict(error.trailing_metadata()))
        self.assertFalse(waiting.done())
        for feed, call in zip(feeds, calls):
            feed.end()
            self.assertEqual(list(call), [])
        self.assertEqual(waiting.result(), Empty())
        other.close()


if __name__ == "__main__":
    unittest.main()
