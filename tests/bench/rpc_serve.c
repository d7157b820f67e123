#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/check.h"
#include "rpc_echo.pb-c.h"
#include "tests/bench/rpc_servers.h"
#include "transport/rpc.h"

typedef Stagecoach__Bench__EchoMessage echo_message;

extern const uint8_t echo_descriptors_begin[], echo_descriptors_end[];
__asm__(".section .rodata\n"
        ".global echo_descriptors_begin\n"
        ".global echo_descriptors_end\n"
        "echo_descriptors_begin:\n"
        ".incbin \"" ECHO_DESCRIPTORS_PATH "\"\n"
        "echo_descriptors_end:\n"
        ".byte 0\n"
        ".previous\n");

static void *on_begin(struct rpc_call *call, void *service_ctx) {
    (void)call;
    return service_ctx;
}

static void on_closed(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message) {
    (void)call, (void)ctx, (void)code, (void)message;
}

static void on_unary(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)ctx;
    if (rpc_call_send(call, message)) rpc_call_end(call, RPC_OK, "");
}

static void on_ping(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)ctx;
    CHECK(rpc_call_send(call, message) || rpc_call_is_over(call));
}

static void on_pings_end(struct rpc_call *call, void *ctx) {
    (void)ctx;
    rpc_call_end(call, RPC_OK, "");
}

// What is left of an answer of many messages.
struct stream {
    uint32_t left_count;
    uint8_t body[16];
};

static void *on_stream_begin(struct rpc_call *call, void *service_ctx) {
    (void)call, (void)service_ctx;
    struct stream *stream = calloc(1, sizeof(*stream));
    CHECK(stream != NULL);
    return stream;
}

static void on_stream_writable(struct rpc_call *call, void *ctx) {
    struct stream *stream = ctx;
    echo_message message = STAGECOACH__BENCH__ECHO_MESSAGE__INIT;
    message.body = (ProtobufCBinaryData){sizeof(stream->body), stream->body};
    message.count = 1;
    while (stream->left_count > 0) {
        if (!rpc_call_send(call, &message.base)) return;
        stream->left_count--;
    }
    rpc_call_end(call, RPC_OK, "");
}

static void on_stream_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    ((struct stream *)ctx)->left_count = ((const echo_message *)message)->count;
    on_stream_writable(call, ctx);
}

static void on_stream_closed(struct rpc_call *call, void *ctx, enum rpc_code code,
                             const char *message) {
    on_closed(call, ctx, code, message);
    free(ctx);
}

void serve_rpc(void) {
    static const struct rpc_method methods[] = {
        {"Unary", {.begin = on_begin, .message = on_unary, .closed = on_closed}},
        {"Stream",
         {.begin = on_stream_begin,
          .message = on_stream_message,
          .closed = on_stream_closed,
          .writable = on_stream_writable}},
        {"PingPong",
         {.begin = on_begin, .message = on_ping, .half_close = on_pings_end, .closed = on_closed}},
    };
    struct rpc_config config = {.descriptor_set = echo_descriptors_begin,
                                .descriptor_set_bytes =
                                    (size_t)(echo_descriptors_end - echo_descriptors_begin)};
    struct rpc *rpc;
    struct error error;
    uint16_t port;
    CHECK(rpc_open(&config, &rpc) == STATUS_OK);
    CHECK(rpc_add_service(rpc, &stagecoach__bench__echo__descriptor, methods, 3, NULL,
                          RPC_ROLES_ANY, &error) == STATUS_OK);
    CHECK(rpc_serve(rpc, "127.0.0.1:0", &port, &error) == STATUS_OK);
    printf("%d\n", port);
    CHECK(fflush(stdout) == 0);
    for (;;)
        pause();
}
