// The receiving half of a call: messages, and what ends them.
#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/slice.h>

#include "base/check.h"
#include "base/log.h"
#include "transport/rpc_internal.h"
#include "transport/rpc_message.h"

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
    rpc_call_start_batch(call, &call->receive_tag, ops, op_count);
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
    free(call->refusal_text);
    call->refusal_text = strdup(why->text);
    call->refusal_code = rpc_code_of(status);
    if (call->is_server) {
        rpc_call_fail(call, status, why);
        return;
    }
    if (status == STATUS_INVALID) call->refusal_code = RPC_INTERNAL;
    rpc_call_cancel(call);
}

static enum status check_size(const struct rpc_call *call, grpc_byte_buffer *bytes,
                              struct error *error) {
    size_t size_bytes = grpc_byte_buffer_length(bytes), limit_bytes = call->receive_bytes_max;
    if (limit_bytes == 0 || size_bytes <= limit_bytes) return STATUS_OK;
    return error_set(error, STATUS_EXHAUSTED, "message: %zu bytes, the limit of %s is %zu",
                     size_bytes, call->method->name, limit_bytes);
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
    enum status status = check_size(call, bytes, &error);
    if (status == STATUS_OK) status = unpack(call, bytes, &message, &error);
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
    rpc_call_pump(call);
    pthread_mutex_unlock(&call->mutex);
}

// Whether "no message" means that the call was cut, not that the peer is done. On a client gRPC
// says so after each end too, and the status tells all: there the end is taken as one.
static bool was_cut(const struct rpc_call *call, bool success) {
    return !success || (call->is_server && grpc_call_failed_before_recv_message(call->grpc));
}

void rpc_call_on_receive(void *owner, bool success) {
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
    rpc_call_settle(call);
}
