#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>

#include "base/check.h"
#include "base/log.h"
#include "transport/rpc_internal.h"
#include "transport/rpc_message.h"
#include "transport/rpc_retry.h"

static void on_send(void *owner, bool success);
static void on_receive(void *owner, bool success);
static void on_close(void *owner, bool success);

// -- life ----------------------------------------------------------------------------------------

struct rpc_call *rpc_call_new(struct rpc *rpc) {
    struct rpc_call *call = calloc(1, sizeof(*call));
    if (call == NULL) return NULL;
    if (pthread_mutex_init(&call->mutex, NULL) != 0) {
        free(call);
        return NULL;
    }
    call->rpc = rpc;
    call->send_tag = (struct rpc_tag){.done = on_send, .owner = call};
    call->receive_tag = (struct rpc_tag){.done = on_receive, .owner = call};
    call->close_tag = (struct rpc_tag){.done = on_close, .owner = call};
    call->begun = gpr_now(GPR_CLOCK_MONOTONIC);
    call->status_details = grpc_empty_slice();
    grpc_metadata_array_init(&call->initial);
    grpc_metadata_array_init(&call->trailing);
    grpc_metadata_array_init(&call->send_initial);
    grpc_metadata_array_init(&call->send_trailing);
    atomic_init(&call->reference_count, 2);
    return call;
}

void rpc_call_hold(struct rpc_call *call) {
    atomic_fetch_add_explicit(&call->reference_count, 1, memory_order_relaxed);
}

void rpc_call_release(struct rpc_call *call) {
    unsigned before = atomic_fetch_sub_explicit(&call->reference_count, 1, memory_order_acq_rel);
    CHECK(before > 0);
    if (before > 1) return;
    CHECK(call->grpc == NULL);
    CHECK(call->first == NULL);
    rpc_metadata_fini(&call->send_initial);
    rpc_metadata_fini(&call->send_trailing);
    pthread_mutex_destroy(&call->mutex);
    free(call);
}

// Frees what waits to be sent. The mutex is held.
static void drop_queue(struct rpc_call *call) {
    while (call->first != NULL) {
        struct rpc_message_node *node = call->first;
        call->first = node->next;
        grpc_byte_buffer_destroy(node->bytes);
        free(node);
    }
    call->last = NULL;
    call->queued_count = 0;
}

// Whether a server's call that was cut ran into its deadline. The client's own timer cancels the
// call at about the time when ours would end it, and its deadline comes rounded by up to 1 %.
static bool deadline_was_reached(const struct rpc_call *call) {
    gpr_timespec infinite = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (gpr_time_cmp(call->deadline, infinite) == 0) return false;
    int32_t allowed_ms = gpr_time_to_millis(gpr_time_sub(call->deadline, call->begun));
    gpr_timespec left = gpr_time_sub(call->deadline, gpr_now(GPR_CLOCK_MONOTONIC));
    return gpr_time_to_millis(left) <= 10 + allowed_ms / 64;
}

// How a server's call ended, other than by our refusal: also who answered and was cut before the
// answer was out is told that.
static void note_server_outcome(struct rpc_call *call) {
    call->outcome_code = call->end_code;
    call->outcome_text = call->end_message.text;
    if (!call->cancelled) return;
    bool is_late = deadline_was_reached(call);
    call->outcome_code = is_late ? RPC_DEADLINE_EXCEEDED : RPC_CANCELLED;
    call->outcome_text = is_late ? "the deadline passed" : "cancelled, or the connection was lost";
}

static enum rpc_code client_outcome(const struct rpc_call *call, struct error *message) {
    (void)error_set(message, STATUS_OK, "%.*s", (int)GRPC_SLICE_LENGTH(call->status_details),
                    (const char *)GRPC_SLICE_START_PTR(call->status_details));
    return call->status > GRPC_STATUS_UNAUTHENTICATED ? RPC_UNKNOWN : (enum rpc_code)call->status;
}

// All tags are back: tells the owner and frees the gRPC call.
static void finish(struct rpc_call *call) {
    struct error message = call->refusal;
    enum rpc_code code = call->refusal_code;
    if (call->is_server) note_server_outcome(call);
    if (code == RPC_OK && call->is_server && call->cancelled) {
        code = call->outcome_code;
        (void)error_set(&message, STATUS_OK, "%s", call->outcome_text);
    } else if (code == RPC_OK && !call->is_server) {
        code = client_outcome(call, &message);
    }
    call->lasted = gpr_time_sub(gpr_now(GPR_CLOCK_MONOTONIC), call->begun);
    if (call->request != NULL) protobuf_c_message_free_unpacked(call->request, NULL);
    call->request = NULL;
    if (call->has_owner) call->handler.closed(call, call->ctx, code, message.text);

    pthread_mutex_lock(&call->mutex);
    grpc_call *grpc = call->grpc;
    call->grpc = NULL;
    pthread_mutex_unlock(&call->mutex);
    struct rpc *rpc = call->rpc;
    grpc_slice_unref(call->status_details);
    grpc_metadata_array_destroy(&call->initial);
    grpc_metadata_array_destroy(&call->trailing);
    rpc_texts_free(call->metadata);
    rpc_texts_free(call->trailers);
    call->metadata = call->trailers = NULL;
    grpc_call_unref(grpc);
    rpc_untrack(rpc, call);
    rpc_call_release(call);
}

// The last thing that is done for every tag.
static void settle(struct rpc_call *call) {
    pthread_mutex_lock(&call->mutex);
    bool is_finished = call->closed_seen && call->tag_count == 0;
    pthread_mutex_unlock(&call->mutex);
    if (is_finished) finish(call);
}

// -- batches; the mutex is held ------------------------------------------------------------------

static void start_batch(struct rpc_call *call, struct rpc_tag *tag, const grpc_op *ops,
                        size_t op_count) {
    call->tag_count++;
    RPC_TAG_GIVEN(tag);
    CHECK(grpc_call_start_batch(call->grpc, ops, op_count, tag, NULL) == GRPC_CALL_OK);
}

static void start_close(struct rpc_call *call) {
    grpc_op op = {0};
    if (call->is_server) {
        op.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
        op.data.recv_close_on_server.cancelled = &call->cancelled;
    } else {
        op.op = GRPC_OP_RECV_STATUS_ON_CLIENT;
        op.data.recv_status_on_client.trailing_metadata = &call->trailing;
        op.data.recv_status_on_client.status = &call->status;
        op.data.recv_status_on_client.status_details = &call->status_details;
    }
    start_batch(call, &call->close_tag, &op, 1);
}

static void start_receive(struct rpc_call *call) {
    if (call->closed_seen) return;
    grpc_op ops[2] = {0};
    size_t op_count = 0;
    if (!call->is_server && !call->initial_metadata_asked) {
        call->initial_metadata_asked = true;
        ops[op_count].op = GRPC_OP_RECV_INITIAL_METADATA;
        ops[op_count++].data.recv_initial_metadata.recv_initial_metadata = &call->initial;
    }
    ops[op_count].op = GRPC_OP_RECV_MESSAGE;
    ops[op_count++].data.recv_message.recv_message = &call->received;
    start_batch(call, &call->receive_tag, ops, op_count);
}

static grpc_byte_buffer *take_queued(struct rpc_call *call) {
    struct rpc_message_node *node = call->first;
    if (node == NULL) return NULL;
    call->first = node->next;
    if (call->first == NULL) call->last = NULL;
    call->queued_count--;
    grpc_byte_buffer *bytes = node->bytes;
    free(node);
    return bytes;
}

static bool may_send(const struct rpc_call *call) {
    if (call->send_busy || call->send_broken || call->closed_seen || call->end_sent) return false;
    // A status that overtakes the request can be lost, when the stream is reset for the rest of it.
    bool end_allowed = !call->is_server || call->receives_many || call->read_done;
    // What has one message only goes out in one piece, with the end.
    if (!call->sends_many) return (call->end_due && end_allowed) || call->initial_due;
    return call->first != NULL || (call->end_due && end_allowed) || call->initial_due;
}

// Fills in how the call ends; *details is to be released once the batch has started.
static void write_status(struct rpc_call *call, grpc_op *op, grpc_slice *details) {
    grpc_status_code code = (grpc_status_code)call->end_code;
    *details = grpc_slice_from_copied_string(call->end_message.text);
    op->op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    op->data.send_status_from_server.status = code;
    op->data.send_status_from_server.status_details = details;
    if (call->end_retry_ms != 0) {
        rpc_metadata_take(&call->send_trailing, "grpc-retry-pushback-ms",
                          rpc_retry_text(call->end_retry_ms));
        rpc_metadata_take(&call->send_trailing, "grpc-status-details-bin",
                          rpc_retry_details(code, call->end_message.text, call->end_retry_ms));
    }
    op->data.send_status_from_server.trailing_metadata = call->send_trailing.metadata;
    op->data.send_status_from_server.trailing_metadata_count = call->send_trailing.count;
}

// Starts the next send batch when there is something to send and none is in flight.
static void pump(struct rpc_call *call) {
    if (!may_send(call)) return;
    grpc_op ops[3] = {0};
    size_t op_count = 0;
    if (!call->initial_sent) {
        call->initial_sent = true;
        ops[op_count].op = GRPC_OP_SEND_INITIAL_METADATA;
        ops[op_count].data.send_initial_metadata.metadata = call->send_initial.metadata;
        ops[op_count++].data.send_initial_metadata.count = call->send_initial.count;
    }
    call->initial_due = false;
    call->sending = take_queued(call);
    if (call->sending != NULL) {
        ops[op_count].op = GRPC_OP_SEND_MESSAGE;
        // Lets gRPC write several messages at once when the next is here already.
        ops[op_count].flags = call->first != NULL ? GRPC_WRITE_BUFFER_HINT : 0;
        ops[op_count++].data.send_message.send_message = call->sending;
    }
    grpc_slice details = grpc_empty_slice();
    if (call->first == NULL && call->end_due &&
        (!call->is_server || call->receives_many || call->read_done)) {
        call->end_sent = true;
        if (call->is_server)
            write_status(call, &ops[op_count++], &details);
        else
            ops[op_count++].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    }
    call->send_busy = true;
    start_batch(call, &call->send_tag, ops, op_count);
    grpc_slice_unref(details);
}

void rpc_call_start(struct rpc_call *call) {
    pthread_mutex_lock(&call->mutex);
    start_close(call);
    pump(call);
    pthread_mutex_unlock(&call->mutex);
}

void rpc_call_start_receive(struct rpc_call *call) {
    pthread_mutex_lock(&call->mutex);
    start_receive(call);
    pthread_mutex_unlock(&call->mutex);
}

// -- receiving; on the rpc thread ----------------------------------------------------------------

// Ends the call because the peer sent what it must not. The peer's own status may be here already:
// ours goes before it.
static void refuse(struct rpc_call *call, const struct error *why, enum status status) {
    log_debug("rpc: message refused: %s", why->text);
    call->refusal = *why;
    call->refusal_code = rpc_code_of(status);
    if (call->is_server) {
        rpc_call_end(call, call->refusal_code, why->text);
        return;
    }
    if (status == STATUS_INVALID) call->refusal_code = RPC_INTERNAL;
    rpc_call_cancel(call);
}

static enum status unpack(struct rpc_call *call, grpc_byte_buffer *bytes,
                          ProtobufCMessage **message_out, struct error *error) {
    if (bytes->data.raw.compression != GRPC_COMPRESS_NONE) {
        return error_set(error, STATUS_INVALID, "message: compressed, which is not accepted");
    }
    grpc_slice_buffer *slices = &bytes->data.raw.slice_buffer;
    if (slices->count == 1) {
        return rpc_message_unpack(call->receive_type, GRPC_SLICE_START_PTR(slices->slices[0]),
                                  GRPC_SLICE_LENGTH(slices->slices[0]), message_out, error);
    }
    grpc_byte_buffer_reader reader;
    CHECK(grpc_byte_buffer_reader_init(&reader, bytes));
    grpc_slice whole = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    enum status status = rpc_message_unpack(call->receive_type, GRPC_SLICE_START_PTR(whole),
                                            GRPC_SLICE_LENGTH(whole), message_out, error);
    grpc_slice_unref(whole);
    return status;
}

static void deliver(struct rpc_call *call, ProtobufCMessage *message) {
    if (call->keep_out != NULL) {
        *call->keep_out = message;
        return;
    }
    call->handler.message(call, call->ctx, message);
    protobuf_c_message_free_unpacked(message, NULL);
}

// Whether the owner wants no more. A call that is closed already can still have a message to give:
// the tags of its last batches come back in any order.
static bool has_ended(struct rpc_call *call) {
    pthread_mutex_lock(&call->mutex);
    bool ended = call->ended;
    pthread_mutex_unlock(&call->mutex);
    return ended;
}

static void take_message(struct rpc_call *call, grpc_byte_buffer *bytes) {
    call->received_count++;
    if (!call->has_owner || has_ended(call)) return;
    struct error error = {0};
    ProtobufCMessage *message = NULL;
    if (!call->receives_many && call->received_count > 1) {
        refuse(call, &error,
               error_set(&error, STATUS_INVALID, "message: only one is allowed in this call"));
        return;
    }
    enum status status = unpack(call, bytes, &message, &error);
    if (status != STATUS_OK) {
        refuse(call, &error, status);
    } else if (call->is_server && !call->receives_many) {
        call->request = message;
    } else {
        deliver(call, message);
    }
}

static void take_end(struct rpc_call *call) {
    if (!call->has_owner || has_ended(call)) return;
    if (call->is_server && !call->receives_many) {
        struct error error;
        if (call->request == NULL) {
            refuse(call, &error, error_set(&error, STATUS_INVALID, "message: none was sent"));
            return;
        }
        ProtobufCMessage *request = call->request;
        call->request = NULL;
        deliver(call, request);
    }
    if (call->handler.half_close != NULL && !has_ended(call)) {
        call->handler.half_close(call, call->ctx);
    }
}

// Notes what has been read, for the sake of a status that waits for it.
static void note_read(struct rpc_call *call, bool is_end) {
    pthread_mutex_lock(&call->mutex);
    call->tag_count--;
    if (is_end || !call->has_owner || call->received_count > 0) call->read_done = true;
    pump(call);
    pthread_mutex_unlock(&call->mutex);
}

// Whether "no message" means that the call was cut, not that the peer is done. On a client gRPC
// says so after each end too, and the status tells all: there the end is taken as one.
static bool was_cut(const struct rpc_call *call, bool success) {
    return !success || (call->is_server && grpc_call_failed_before_recv_message(call->grpc));
}

static void on_receive(void *owner, bool success) {
    struct rpc_call *call = owner;
    grpc_byte_buffer *bytes = call->received;
    call->received = NULL;
    if (!call->is_server && !call->metadata_seen) {
        call->metadata_seen = true;
        call->metadata = rpc_texts_copy(&call->initial);
    }
    note_read(call, bytes == NULL);
    if (bytes != NULL) {
        take_message(call, bytes);
        grpc_byte_buffer_destroy(bytes);
        rpc_call_start_receive(call);
    } else if (!was_cut(call, success)) {
        take_end(call);
    }
    settle(call);
}

// -- the other tags ------------------------------------------------------------------------------

static void on_send(void *owner, bool success) {
    struct rpc_call *call = owner;
    pthread_mutex_lock(&call->mutex);
    call->tag_count--;
    call->send_busy = false;
    if (call->sending != NULL) grpc_byte_buffer_destroy(call->sending);
    call->sending = NULL;
    if (!success) {
        call->send_broken = true;
        drop_queue(call);
    }
    pump(call);
    bool is_writable = call->writable_due && !call->ended && !call->closed_seen &&
                       !call->send_broken &&
                       call->queued_count <= call->rpc->config.send_count_max / 2;
    if (is_writable) call->writable_due = false;
    pthread_mutex_unlock(&call->mutex);
    if (is_writable && call->has_owner && call->handler.writable != NULL) {
        call->handler.writable(call, call->ctx);
    }
    settle(call);
}

static void on_close(void *owner, bool success) {
    (void)success; // these two operations always succeed
    struct rpc_call *call = owner;
    call->trailers = rpc_texts_copy(&call->trailing);
    pthread_mutex_lock(&call->mutex);
    call->tag_count--;
    call->closed_seen = true;
    drop_queue(call);
    pthread_mutex_unlock(&call->mutex);
    settle(call);
}

// -- what owners do, on any thread ---------------------------------------------------------------

static struct rpc_message_node *pack(const ProtobufCMessage *message) {
    struct rpc_message_node *node = calloc(1, sizeof(*node));
    if (node == NULL) return NULL;
    size_t size_bytes = protobuf_c_message_get_packed_size(message);
    grpc_slice slice = grpc_slice_malloc(size_bytes);
    CHECK(protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(slice)) == size_bytes);
    node->bytes = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return node;
}

// The mutex is held. False: not now, or never.
static bool may_queue(struct rpc_call *call) {
    if (call->ended || call->end_due || call->closed_seen || call->send_broken) return false;
    CHECK(call->sends_many || call->first == NULL);
    if (call->queued_count < call->rpc->config.send_count_max) return true;
    call->writable_due = true;
    return false;
}

bool rpc_call_send(struct rpc_call *call, const ProtobufCMessage *message) {
    CHECK(message->descriptor == call->send_type);
    pthread_mutex_lock(&call->mutex);
    struct rpc_message_node *node = NULL;
    if (may_queue(call)) {
        node = pack(message);
        if (node == NULL) {
            call->ended = true;
            (void)grpc_call_cancel_with_status(call->grpc, GRPC_STATUS_RESOURCE_EXHAUSTED,
                                               "no memory for a message", NULL);
        }
    }
    if (node != NULL) {
        if (call->last != NULL)
            call->last->next = node;
        else
            call->first = node;
        call->last = node;
        call->queued_count++;
        if (!call->is_server && !call->sends_many) call->end_due = true;
        pump(call);
    }
    pthread_mutex_unlock(&call->mutex);
    return node != NULL;
}

void rpc_call_send_end(struct rpc_call *call) {
    CHECK(!call->is_server);
    pthread_mutex_lock(&call->mutex);
    if (!call->ended && !call->closed_seen) {
        call->end_due = true;
        pump(call);
    }
    pthread_mutex_unlock(&call->mutex);
}

void rpc_call_end(struct rpc_call *call, enum rpc_code code, const char *message) {
    rpc_call_refuse(call, code, message, 0);
}

void rpc_call_refuse(struct rpc_call *call, enum rpc_code code, const char *message,
                     uint32_t retry_ms) {
    CHECK(call->is_server);
    pthread_mutex_lock(&call->mutex);
    if (!call->ended && !call->closed_seen) {
        call->ended = true;
        call->end_due = true;
        call->end_code = code;
        call->end_retry_ms = retry_ms;
        (void)error_set(&call->end_message, STATUS_OK, "%s", message);
        // An error is the whole answer of a call that has one message.
        if (code != RPC_OK && !call->sends_many) drop_queue(call);
        // Our handler's mistake, but a client must not take it for an answer.
        if (code == RPC_OK && !call->sends_many && call->has_owner && call->first == NULL) {
            call->end_code = RPC_INTERNAL;
            (void)error_set(&call->end_message, STATUS_OK, "the server gave no answer");
        }
        pump(call);
    }
    pthread_mutex_unlock(&call->mutex);
}

void rpc_call_cancel(struct rpc_call *call) {
    pthread_mutex_lock(&call->mutex);
    if (call->grpc != NULL && !call->closed_seen) {
        call->ended = true;
        (void)grpc_call_cancel_with_status(call->grpc, GRPC_STATUS_CANCELLED, "cancelled", NULL);
    }
    pthread_mutex_unlock(&call->mutex);
}

bool rpc_call_is_over(struct rpc_call *call) {
    pthread_mutex_lock(&call->mutex);
    bool is_over = call->ended || call->closed_seen;
    pthread_mutex_unlock(&call->mutex);
    return is_over;
}

bool rpc_call_is_late(const struct rpc_call *call) {
    return call->is_server && gpr_time_cmp(call->deadline, gpr_now(GPR_CLOCK_MONOTONIC)) <= 0;
}

void rpc_call_peer_host(const struct rpc_call *call, char *host_out, size_t host_capacity_bytes) {
    CHECK(host_capacity_bytes > 0);
    size_t size_bytes = strnlen(call->peer_host, host_capacity_bytes - 1);
    memcpy(host_out, call->peer_host, size_bytes);
    host_out[size_bytes] = '\0';
}

// -- metadata ------------------------------------------------------------------------------------

const char *rpc_call_metadata(const struct rpc_call *call, const char *key) {
    return rpc_texts_find(call->metadata, key);
}

const char *rpc_call_trailer(const struct rpc_call *call, const char *key) {
    return rpc_texts_find(call->trailers, key);
}

const void *rpc_call_metadata_bytes(const struct rpc_call *call, const char *key,
                                    size_t *size_bytes_out) {
    return rpc_texts_find_bytes(call->metadata, key, size_bytes_out);
}

const void *rpc_call_trailer_bytes(const struct rpc_call *call, const char *key,
                                   size_t *size_bytes_out) {
    return rpc_texts_find_bytes(call->trailers, key, size_bytes_out);
}

uint32_t rpc_call_retry_ms(const struct rpc_call *call) {
    return rpc_retry_read(rpc_call_trailer(call, "grpc-retry-pushback-ms"));
}

enum status rpc_call_add_metadata(struct rpc_call *call, const struct rpc_metadata *entries,
                                  size_t entry_count) {
    CHECK(call->is_server);
    enum status status = STATUS_UNAVAILABLE;
    pthread_mutex_lock(&call->mutex);
    if (!call->initial_sent && !call->closed_seen)
        status = rpc_metadata_append(&call->send_initial, entries, entry_count);
    pthread_mutex_unlock(&call->mutex);
    return status;
}

enum status rpc_call_add_trailers(struct rpc_call *call, const struct rpc_metadata *entries,
                                  size_t entry_count) {
    CHECK(call->is_server);
    enum status status = STATUS_UNAVAILABLE;
    pthread_mutex_lock(&call->mutex);
    if (!call->end_sent && !call->closed_seen)
        status = rpc_metadata_append(&call->send_trailing, entries, entry_count);
    pthread_mutex_unlock(&call->mutex);
    return status;
}

enum rpc_code rpc_call_outcome(const struct rpc_call *call, const char **message_out) {
    CHECK(call->is_server && call->outcome_text != NULL);
    *message_out = call->outcome_text;
    return call->outcome_code;
}

uint64_t rpc_call_lasted_ns(const struct rpc_call *call) {
    return (uint64_t)call->lasted.tv_sec * 1000000000 + (uint64_t)call->lasted.tv_nsec;
}

const char *rpc_call_service_name(const struct rpc_call *call) {
    return call->service->name;
}

const char *rpc_call_method_name(const struct rpc_call *call) {
    return call->method->name;
}
