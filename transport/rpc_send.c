// The sending half of a call: its queue, how it ends, and its metadata.
#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer.h>
#include <grpc/slice.h>

#include "base/check.h"
#include "transport/rpc_internal.h"
#include "transport/rpc_refusal.h"

// Frees what waits to be sent. The mutex is held.
void rpc_call_drop_queue(struct rpc_call *call) {
    while (call->first != NULL) {
        struct rpc_message_node *node = call->first;
        call->first = node->next;
        grpc_byte_buffer_destroy(node->bytes);
        free(node);
    }
    call->last = NULL;
    call->queued_count = 0;
    call->queued_bytes = 0;
}

static grpc_byte_buffer *take_queued(struct rpc_call *call) {
    struct rpc_message_node *node = call->first;
    if (node == NULL) return NULL;
    call->first = node->next;
    if (call->first == NULL) call->last = NULL;
    call->queued_count--;
    call->queued_bytes -= node->size_bytes;
    grpc_byte_buffer *bytes = node->bytes;
    free(node);
    return bytes;
}

static bool may_end(const struct rpc_call *call) {
    // A status that overtakes the request can be lost, when the stream is reset for the rest of it.
    return call->end_due && (!call->is_server || call->receives_many || call->read_done);
}

static bool may_send(const struct rpc_call *call) {
    if (call->send_busy || call->send_broken || call->closed_seen || call->end_sent) return false;
    // What has one message only goes out in one piece, with the end.
    return (call->sends_many && call->first != NULL) || may_end(call) || call->initial_due;
}

// *text is to be released once the batch has started.
static void write_status(struct rpc_call *call, grpc_op *op, grpc_slice *text) {
    if (call->end_text != NULL) *text = grpc_slice_from_copied_string(call->end_text);
    op->op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    op->data.send_status_from_server.status = (grpc_status_code)call->end_code;
    op->data.send_status_from_server.status_details = text;
    op->data.send_status_from_server.trailing_metadata = call->send_trailing.metadata;
    op->data.send_status_from_server.trailing_metadata_count = call->send_trailing.count;
}

// Starts the next send batch when there is something to send and none is in flight.
void rpc_call_pump(struct rpc_call *call) {
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
    grpc_slice text = grpc_empty_slice();
    if (call->first == NULL && may_end(call)) {
        call->end_sent = true;
        if (call->is_server)
            write_status(call, &ops[op_count++], &text);
        else
            ops[op_count++].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    }
    call->send_busy = true;
    rpc_call_start_batch(call, &call->send_tag, ops, op_count);
    grpc_slice_unref(text);
}

// Whether the owner, who was told to wait, may go on. The mutex is held.
static bool is_drained(const struct rpc_call *call) {
    const struct rpc_config *config = &call->rpc->config;
    return call->writable_due && !call->ended && !call->closed_seen && !call->send_broken &&
           call->queued_count <= config->send_count_max / 2 &&
           call->queued_bytes <= config->send_bytes_max / 2;
}

void rpc_call_on_send(void *owner, bool success) {
    struct rpc_call *call = owner;
    pthread_mutex_lock(&call->mutex);
    call->tag_count--;
    call->send_busy = false;
    if (call->sending != NULL) grpc_byte_buffer_destroy(call->sending);
    call->sending = NULL;
    if (!success) {
        call->send_broken = true;
        rpc_call_drop_queue(call);
    }
    rpc_call_pump(call);
    bool is_writable = is_drained(call);
    if (is_writable) call->writable_due = false;
    pthread_mutex_unlock(&call->mutex);
    if (is_writable && call->has_owner && call->handler.writable != NULL) {
        call->handler.writable(call, call->ctx);
    }
    rpc_call_settle(call);
}

static struct rpc_message_node *pack(const ProtobufCMessage *message, size_t size_bytes) {
    struct rpc_message_node *node = malloc(sizeof(*node));
    if (node == NULL) return NULL;
    *node = (struct rpc_message_node){.size_bytes = size_bytes};
    grpc_slice slice = grpc_slice_malloc(size_bytes);
    CHECK(protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(slice)) == size_bytes);
    node->bytes = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return node;
}

// The mutex is held. False: not now, or never.
static bool may_queue(struct rpc_call *call, size_t size_bytes) {
    if (call->ended || call->end_due || call->closed_seen || call->send_broken) return false;
    CHECK(call->sends_many || call->first == NULL);
    const struct rpc_config *config = &call->rpc->config;
    bool has_room = call->queued_count < config->send_count_max &&
                    call->queued_bytes + size_bytes <= config->send_bytes_max;
    if (has_room || call->first == NULL) return true;
    call->writable_due = true;
    return false;
}

// The mutex is held. NULL, for want of memory, ends the call.
static bool queue(struct rpc_call *call, struct rpc_message_node *node) {
    if (node == NULL) {
        call->ended = true;
        (void)grpc_call_cancel_with_status(call->grpc, GRPC_STATUS_RESOURCE_EXHAUSTED,
                                           "no memory for a message", NULL);
        return false;
    }
    if (call->last != NULL)
        call->last->next = node;
    else
        call->first = node;
    call->last = node;
    call->queued_count++;
    call->queued_bytes += node->size_bytes;
    if (!call->is_server && !call->sends_many) call->end_due = true;
    return true;
}

bool rpc_call_send(struct rpc_call *call, const ProtobufCMessage *message) {
    CHECK(message->descriptor == call->send_type);
    size_t size_bytes = protobuf_c_message_get_packed_size(message);
    pthread_mutex_lock(&call->mutex);
    bool is_queued = may_queue(call, size_bytes) && queue(call, pack(message, size_bytes));
    if (is_queued) rpc_call_pump(call);
    pthread_mutex_unlock(&call->mutex);
    return is_queued;
}

void rpc_call_send_end(struct rpc_call *call) {
    CHECK(!call->is_server);
    pthread_mutex_lock(&call->mutex);
    if (!call->ended && !call->closed_seen) {
        call->end_due = true;
        rpc_call_pump(call);
    }
    pthread_mutex_unlock(&call->mutex);
}

// How a server ends a call.
struct ending {
    enum rpc_code code;
    const char *message;
    uint32_t retry_ms; // 0: says nothing
    const char *field; // NULL: none is at fault
};

// The mutex is held.
static void set_ending(struct rpc_call *call, const struct ending *ending) {
    if (ending->message[0] != '\0') call->end_text = strdup(ending->message);
    call->end_code = ending->code;
    grpc_metadata_array *trailing = &call->send_trailing;
    if (ending->retry_ms != 0) {
        rpc_metadata_take(trailing, "grpc-retry-pushback-ms",
                          rpc_refusal_retry_text(ending->retry_ms));
    }
    if (ending->retry_ms != 0 || ending->field != NULL) {
        rpc_metadata_take(
            trailing, "grpc-status-details-bin",
            rpc_refusal_details(ending->code, ending->message, ending->retry_ms, ending->field));
    }
}

static void end_call(struct rpc_call *call, struct ending ending) {
    CHECK(call->is_server);
    pthread_mutex_lock(&call->mutex);
    if (!call->ended && !call->closed_seen) {
        call->ended = true;
        call->end_due = true;
        // An error is the whole answer of a call that has one message.
        if (ending.code != RPC_OK && !call->sends_many) rpc_call_drop_queue(call);
        // Our handler's mistake, but a client must not take it for an answer.
        if (ending.code == RPC_OK && !call->sends_many && call->has_owner && call->first == NULL) {
            ending = (struct ending){.code = RPC_INTERNAL, .message = "the server gave no answer"};
        }
        set_ending(call, &ending);
        rpc_call_pump(call);
    }
    pthread_mutex_unlock(&call->mutex);
}

void rpc_call_end(struct rpc_call *call, enum rpc_code code, const char *message) {
    end_call(call, (struct ending){.code = code, .message = message});
}

void rpc_call_refuse(struct rpc_call *call, enum rpc_code code, const char *message,
                     uint32_t retry_ms) {
    end_call(call, (struct ending){.code = code, .message = message, .retry_ms = retry_ms});
}

void rpc_call_fail(struct rpc_call *call, enum status status, const struct error *error) {
    bool names_field = status == STATUS_INVALID && error->field[0] != '\0';
    end_call(call, (struct ending){.code = rpc_code_of(status),
                                   .message = error->text,
                                   .field = names_field ? error->field : NULL});
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
