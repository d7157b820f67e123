#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>

#include "base/check.h"
#include "tests/bench/rpc_servers.h"

enum { POSTED_COUNT = 32 };

struct call;

// What comes back from the queue.
struct step {
    void (*done)(struct call *call, bool success);
    struct call *call;
};

struct call {
    grpc_call *grpc;
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *message;
    int cancelled;
    bool initial_sent, is_over;
    uint32_t left_count; // messages of a stream that are not sent yet
    uint32_t batch_count;
    struct step step, close_step;
};

static grpc_server *server;
static grpc_completion_queue *queue;

static void post_call(void);

static void start(struct call *call, struct step *step, void (*done)(struct call *, bool),
                  const grpc_op *ops, size_t op_count) {
    *step = (struct step){done, call};
    call->batch_count++;
    CHECK(grpc_call_start_batch(call->grpc, ops, op_count, step, NULL) == GRPC_CALL_OK);
}

static void settle(struct call *call) {
    if (--call->batch_count > 0 || !call->is_over) return;
    if (call->message != NULL) grpc_byte_buffer_destroy(call->message);
    grpc_metadata_array_destroy(&call->metadata);
    grpc_call_details_destroy(&call->details);
    grpc_call_unref(call->grpc);
    free(call);
}

static void on_close(struct call *call, bool success) {
    (void)success;
    call->is_over = true;
}

static void on_done(struct call *call, bool success) {
    (void)call, (void)success;
}

// Sends what there is of the beginning, a message, and the end.
static void send_batch(struct call *call, bool with_message, bool with_end,
                       void (*done)(struct call *, bool)) {
    grpc_op ops[3] = {0};
    size_t count = 0;
    if (!call->initial_sent) ops[count++].op = GRPC_OP_SEND_INITIAL_METADATA;
    call->initial_sent = true;
    if (with_message) {
        ops[count].op = GRPC_OP_SEND_MESSAGE;
        ops[count++].data.send_message.send_message = call->message;
    }
    if (with_end) ops[count++].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    start(call, &call->step, done, ops, count);
}

static void read_message(struct call *call, void (*done)(struct call *, bool)) {
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &call->message;
    start(call, &call->step, done, &op, 1);
}

static void on_unary_read(struct call *call, bool success) {
    if (success && call->message != NULL) send_batch(call, true, true, on_done);
}

static void on_stream_sent(struct call *call, bool success) {
    if (!success) return;
    call->left_count--;
    send_batch(call, true, call->left_count == 1, call->left_count == 1 ? on_done : on_stream_sent);
}

static void on_stream_read(struct call *call, bool success) {
    if (!success || call->message == NULL) return;
    grpc_byte_buffer_reader reader;
    CHECK(grpc_byte_buffer_reader_init(&reader, call->message));
    grpc_slice bytes = grpc_byte_buffer_reader_readall(&reader);
    CHECK(GRPC_SLICE_LENGTH(bytes) >= 4); // the count is the last field
    memcpy(&call->left_count, GRPC_SLICE_END_PTR(bytes) - 4, 4);
    grpc_slice_unref(bytes);
    grpc_byte_buffer_reader_destroy(&reader);
    CHECK(call->left_count > 1);
    send_batch(call, true, false, on_stream_sent);
}

static void on_ping(struct call *call, bool success);

static void on_pong_sent(struct call *call, bool success) {
    grpc_byte_buffer_destroy(call->message);
    call->message = NULL;
    if (success) read_message(call, on_ping);
}

static void on_ping(struct call *call, bool success) {
    if (!success) return;
    if (call->message != NULL)
        send_batch(call, true, false, on_pong_sent);
    else
        send_batch(call, false, true, on_done);
}

static void on_new(struct call *call, bool success) {
    CHECK(success);
    post_call();
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    op.data.recv_close_on_server.cancelled = &call->cancelled;
    start(call, &call->close_step, on_close, &op, 1);
    grpc_slice path = call->details.method;
    if (grpc_slice_str_cmp(path, "/stagecoach.bench.Echo/Unary") == 0)
        read_message(call, on_unary_read);
    else if (grpc_slice_str_cmp(path, "/stagecoach.bench.Echo/Stream") == 0)
        read_message(call, on_stream_read);
    else
        read_message(call, on_ping);
}

static void post_call(void) {
    struct call *call = calloc(1, sizeof(*call));
    CHECK(call != NULL);
    grpc_call_details_init(&call->details);
    grpc_metadata_array_init(&call->metadata);
    call->step = (struct step){on_new, call};
    call->batch_count = 1;
    CHECK(grpc_server_request_call(server, &call->grpc, &call->details, &call->metadata, queue,
                                   queue, &call->step) == GRPC_CALL_OK);
}

void serve_minimal(void) {
    grpc_init();
    queue = grpc_completion_queue_create_for_next(NULL);
    server = grpc_server_create(NULL, NULL);
    grpc_server_register_completion_queue(server, queue, NULL);
    grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
    int port = grpc_server_add_http2_port(server, "127.0.0.1:0", credentials);
    CHECK(port > 0);
    grpc_server_start(server);
    for (int i = 0; i < POSTED_COUNT; i++)
        post_call();
    printf("%d\n", port);
    CHECK(fflush(stdout) == 0);
    for (;;) {
        grpc_event event =
            grpc_completion_queue_next(queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        CHECK(event.type == GRPC_OP_COMPLETE);
        struct step *step = event.tag;
        struct call *call = step->call;
        step->done(call, event.success != 0);
        settle(call);
    }
}
