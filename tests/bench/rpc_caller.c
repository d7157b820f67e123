#include "tests/bench/rpc_caller.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>

#include "base/check.h"

enum { OPS_MAX = 6, STREAM_COUNT_MAX = 4096 };

struct talk {
    grpc_call *call;
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice details;
    grpc_byte_buffer *received;
    bool initial_asked;
};

struct caller {
    grpc_channel *channel;
    grpc_completion_queue *queue;
    struct talk *idle[STREAM_COUNT_MAX];
    uint32_t idle_count;
};

static double now_us(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e6 + (double)time.tv_nsec * 1e-3;
}

// An EchoMessage of 16 bytes: field 1 of 16 bytes, field 2 of four.
static grpc_byte_buffer *echo_message(uint32_t count) {
    uint8_t bytes[2 + 16 + 1 + 4] = {0x0a, 16};
    bytes[18] = 0x15;
    memcpy(bytes + 19, &count, sizeof(count));
    grpc_slice slice = grpc_slice_from_copied_buffer((const char *)bytes, sizeof(bytes));
    grpc_byte_buffer *message = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return message;
}

// -- one call
// --------------------------------------------------------------------------------------

static void talk_begin(struct caller *caller, struct talk *talk, const char *path) {
    memset(talk, 0, sizeof(*talk));
    grpc_metadata_array_init(&talk->initial);
    grpc_metadata_array_init(&talk->trailing);
    talk->call = grpc_channel_create_call(caller->channel, NULL, GRPC_PROPAGATE_DEFAULTS,
                                          caller->queue, grpc_slice_from_static_string(path), NULL,
                                          gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    CHECK(talk->call != NULL);
}

static void talk_free(struct talk *talk) {
    CHECK(talk->status == GRPC_STATUS_OK);
    grpc_metadata_array_destroy(&talk->initial);
    grpc_metadata_array_destroy(&talk->trailing);
    grpc_slice_unref(talk->details);
    grpc_call_unref(talk->call);
}

static size_t add_send(grpc_op *ops, size_t at, bool with_initial, grpc_byte_buffer *message,
                       bool with_end) {
    if (with_initial) ops[at++].op = GRPC_OP_SEND_INITIAL_METADATA;
    if (message != NULL) {
        ops[at].op = GRPC_OP_SEND_MESSAGE;
        ops[at++].data.send_message.send_message = message;
    }
    if (with_end) ops[at++].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    return at;
}

static size_t add_receive(struct talk *talk, grpc_op *ops, size_t at) {
    if (!talk->initial_asked) {
        talk->initial_asked = true;
        ops[at].op = GRPC_OP_RECV_INITIAL_METADATA;
        ops[at++].data.recv_initial_metadata.recv_initial_metadata = &talk->initial;
    }
    ops[at].op = GRPC_OP_RECV_MESSAGE;
    ops[at++].data.recv_message.recv_message = &talk->received;
    return at;
}

static size_t add_status(struct talk *talk, grpc_op *ops, size_t at) {
    ops[at].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[at].data.recv_status_on_client.trailing_metadata = &talk->trailing;
    ops[at].data.recv_status_on_client.status = &talk->status;
    ops[at++].data.recv_status_on_client.status_details = &talk->details;
    return at;
}

// Starts one batch and waits until it is done.
static void run(struct caller *caller, struct talk *talk, const grpc_op *ops, size_t op_count) {
    CHECK(grpc_call_start_batch(talk->call, ops, op_count, talk, NULL) == GRPC_CALL_OK);
    grpc_event event =
        grpc_completion_queue_next(caller->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    CHECK(event.type == GRPC_OP_COMPLETE && event.tag == talk && event.success != 0);
}

static bool drop_received(struct talk *talk) {
    bool was_message = talk->received != NULL;
    if (was_message) grpc_byte_buffer_destroy(talk->received);
    talk->received = NULL;
    return was_message;
}

// -- what is measured
// ------------------------------------------------------------------------------

double caller_unary_us(struct caller *caller) {
    grpc_byte_buffer *message = echo_message(1);
    double begun_us = now_us();
    struct talk talk;
    talk_begin(caller, &talk, "/stagecoach.bench.Echo/Unary");
    grpc_op ops[OPS_MAX] = {0};
    size_t count = add_send(ops, 0, true, message, true);
    count = add_receive(&talk, ops, count);
    count = add_status(&talk, ops, count);
    run(caller, &talk, ops, count);
    double us = now_us() - begun_us;
    CHECK(drop_received(&talk));
    talk_free(&talk);
    grpc_byte_buffer_destroy(message);
    return us;
}

double caller_stream_rate(struct caller *caller, uint32_t count) {
    grpc_byte_buffer *message = echo_message(count);
    double begun_us = now_us();
    struct talk talk;
    talk_begin(caller, &talk, "/stagecoach.bench.Echo/Stream");
    grpc_op ops[OPS_MAX] = {0};
    size_t op_count = add_send(ops, 0, true, message, true);
    run(caller, &talk, ops, add_receive(&talk, ops, op_count));
    uint32_t received_count = 0;
    while (drop_received(&talk)) {
        received_count++;
        grpc_op receive[2] = {0};
        run(caller, &talk, receive, add_receive(&talk, receive, 0));
    }
    double us = now_us() - begun_us;
    CHECK(received_count == count);
    grpc_op status[1] = {0};
    run(caller, &talk, status, add_status(&talk, status, 0));
    talk_free(&talk);
    grpc_byte_buffer_destroy(message);
    return count / us * 1e6;
}

static void ping_pong(struct caller *caller, struct talk *talk, grpc_byte_buffer *message) {
    grpc_op ops[OPS_MAX] = {0};
    size_t count = add_send(ops, 0, !talk->initial_asked, message, false);
    run(caller, talk, ops, add_receive(talk, ops, count));
    CHECK(drop_received(talk));
}

static void end_ping_pong(struct caller *caller, struct talk *talk) {
    grpc_op ops[OPS_MAX] = {0};
    size_t count = add_send(ops, 0, false, NULL, true);
    run(caller, talk, ops, add_status(talk, ops, count));
    talk_free(talk);
}

void caller_ping_pongs(struct caller *caller, uint32_t count, double *us_out) {
    grpc_byte_buffer *message = echo_message(1);
    struct talk talk;
    talk_begin(caller, &talk, "/stagecoach.bench.Echo/PingPong");
    for (uint32_t i = 0; i < count; i++) {
        double begun_us = now_us();
        ping_pong(caller, &talk, message);
        us_out[i] = now_us() - begun_us;
    }
    end_ping_pong(caller, &talk);
    grpc_byte_buffer_destroy(message);
}

void caller_open_streams(struct caller *caller, uint32_t count) {
    grpc_byte_buffer *message = echo_message(1);
    for (uint32_t i = 0; i < count; i++) {
        CHECK(caller->idle_count < STREAM_COUNT_MAX);
        struct talk *talk = malloc(sizeof(*talk));
        CHECK(talk != NULL);
        talk_begin(caller, talk, "/stagecoach.bench.Echo/PingPong");
        ping_pong(caller, talk, message);
        caller->idle[caller->idle_count++] = talk;
    }
    grpc_byte_buffer_destroy(message);
}

// -- life
// ------------------------------------------------------------------------------------------

struct caller *caller_open(uint16_t port) {
    struct caller *caller = calloc(1, sizeof(*caller));
    CHECK(caller != NULL);
    grpc_init();
    char target[64];
    (void)snprintf(target, sizeof(target), "127.0.0.1:%u", port);
    grpc_arg own = {.type = GRPC_ARG_INTEGER,
                    .key = (char *)GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL,
                    .value.integer = 1};
    grpc_channel_args args = {.num_args = 1, .args = &own};
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    caller->channel = grpc_channel_create(target, credentials, &args);
    grpc_channel_credentials_release(credentials);
    caller->queue = grpc_completion_queue_create_for_next(NULL);
    return caller;
}

void caller_close(struct caller *caller) {
    for (uint32_t i = 0; i < caller->idle_count; i++) {
        end_ping_pong(caller, caller->idle[i]);
        free(caller->idle[i]);
    }
    grpc_channel_destroy(caller->channel);
    grpc_completion_queue_shutdown(caller->queue);
    grpc_event event =
        grpc_completion_queue_next(caller->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    CHECK(event.type == GRPC_QUEUE_SHUTDOWN);
    grpc_completion_queue_destroy(caller->queue);
    grpc_shutdown();
    free(caller);
}
