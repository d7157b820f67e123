"""grpc.testing.TestService on Python's grpcio, for our client. Prints the port; serves until SIGTERM.
"""

import concurrent.futures
import signal
import time

import grpc

from world import (CERTIFICATES, TEST, Empty, InputResponse, OutputResponse, Payload, SimpleResponse, schema)

CODES = {code.value[0]: code for code in grpc.StatusCode}


def echo(context):
    for key, value in context.invocation_metadata():
        if key == "x-grpc-test-echo-initial":
            context.send_initial_metadata(((key, value),))
        if key == "x-grpc-test-echo-trailing-bin":
            context.set_trailing_metadata(((key, value),))


def end_as_asked(request, context):
    if request.HasField("response_status") and request.response_status.code:
        context.abort(CODES[request.response_status.code], request.response_status.message)


def answer_unary(request, context):
    echo(context)
    end_as_asked(request, context)
    return SimpleResponse(payload=Payload(body=bytes(request.response_size)))


def answers_of(request, context):
    end_as_asked(request, context)
    for wanted in request.response_parameters:
        time.sleep(wanted.interval_us / 1e6)
        yield OutputResponse(payload=Payload(body=bytes(wanted.size)))


def full_duplex(requests, context):
    echo(context)
    for request in requests:
        yield from answers_of(request, context)


def half_duplex(requests, context):
    for request in list(requests):
        yield from answers_of(request, context)


FUNCTIONS = {
    "EmptyCall": lambda _request, _context: Empty(),
    "UnaryCall": answer_unary,
    "StreamingOutputCall": answers_of,
    "StreamingInputCall": lambda requests, _context: InputResponse(
        aggregated_payload_size=sum(len(request.payload.body) for request in requests)),
    "FullDuplexCall": full_duplex,
    "HalfDuplexCall": half_duplex,
}


def listen(server):
    if CERTIFICATES is None:
        return server.add_insecure_port("127.0.0.1:0")
    ca, key, certificate = CERTIFICATES.files("coordinator")
    return server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(
        [(key, certificate)], ca, require_client_auth=True))


def main():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    # A thread for every stream that may be open at once.
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1100),
                         options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((schema.handler(TEST, FUNCTIONS),))
    port = listen(server)
    server.start()
    print(port, flush=True)
    signal.sigwait([signal.SIGTERM])
    server.stop(1).wait()


if __name__ == "__main__":
    main()
