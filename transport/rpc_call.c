#include <stdlib.h>
#include <string.h>

#include <grpc/slice.h>
#include <grpc/support/time.h>

#include "base/check.h"
#include "transport/rpc_internal.h"
#include "transport/rpc_refusal.h"

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
    call->send_tag = (struct rpc_tag){.done = rpc_call_on_send, .owner = call};
    call->receive_tag = (struct rpc_tag){.done = rpc_call_on_receive, .owner = call};
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
    free(call->end_text);
    free(call->refusal_text);
    pthread_mutex_destroy(&call->mutex);
    free(call);
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

static void tell_owner(struct rpc_call *call, enum rpc_code code, const char *message) {
    if (call->has_owner) call->handler.closed(call, call->ctx, code, message);
}

// How a server's call ended, other than by our refusal: also who answered and was cut before the
// answer was out is told that.
static void note_server_outcome(struct rpc_call *call) {
    call->outcome_code = call->end_code;
    call->outcome_text = call->end_text == NULL ? "" : call->end_text;
    if (!call->cancelled) return;
    bool is_late = deadline_was_reached(call);
    call->outcome_code = is_late ? RPC_DEADLINE_EXCEEDED : RPC_CANCELLED;
    call->outcome_text = is_late ? "the deadline passed" : "cancelled, or the connection was lost";
}

static void tell_server(struct rpc_call *call) {
    if (call->cancelled)
        tell_owner(call, call->outcome_code, call->outcome_text);
    else
        tell_owner(call, RPC_OK, "");
}

// gRPC gives a call the server's OK also when messages are missing: those of a call that is
// cancelled or runs out of time while the OK is here already are dropped, and what broke off inside
// a message counts as no message. Such an end is none to rely on: *text_out says why.
static enum rpc_code check_good_end(struct rpc_call *call, const char **text_out) {
    pthread_mutex_lock(&call->mutex);
    bool was_cancelled = call->ended;
    pthread_mutex_unlock(&call->mutex);
    *text_out = "cancelled";
    if (was_cancelled) return RPC_CANCELLED;
    *text_out = "the deadline passed";
    if (gpr_time_cmp(call->deadline, gpr_now(GPR_CLOCK_MONOTONIC)) <= 0)
        return RPC_DEADLINE_EXCEEDED;
    *text_out = "the server gave no answer";
    if (!call->receives_many && call->received_count == 0) return RPC_INTERNAL;
    return RPC_OK;
}

static void tell_client(struct rpc_call *call) {
    struct error message;
    (void)error_set(&message, STATUS_OK, "%.*s", (int)GRPC_SLICE_LENGTH(call->status_details),
                    (const char *)GRPC_SLICE_START_PTR(call->status_details));
    bool is_known = call->status <= GRPC_STATUS_UNAUTHENTICATED;
    enum rpc_code code = is_known ? (enum rpc_code)call->status : RPC_UNKNOWN;
    const char *text = message.text, *doubt;
    if (code == RPC_OK) {
        code = check_good_end(call, &doubt);
        if (code != RPC_OK) text = doubt;
    }
    tell_owner(call, code, text);
}

// All tags are back: tells the owner and frees the gRPC call.
static void finish(struct rpc_call *call) {
    if (call->is_server) note_server_outcome(call);
    call->lasted = gpr_time_sub(gpr_now(GPR_CLOCK_MONOTONIC), call->begun);
    if (call->request != NULL) protobuf_c_message_free_unpacked(call->request, NULL);
    call->request = NULL;
    if (call->refusal_code != RPC_OK)
        tell_owner(call, call->refusal_code, call->refusal_text == NULL ? "" : call->refusal_text);
    else if (call->is_server)
        tell_server(call);
    else
        tell_client(call);

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
void rpc_call_settle(struct rpc_call *call) {
    pthread_mutex_lock(&call->mutex);
    bool is_finished = call->closed_seen && call->tag_count == 0;
    pthread_mutex_unlock(&call->mutex);
    if (is_finished) finish(call);
}

// -- batches; the mutex is held ------------------------------------------------------------------

void rpc_call_start_batch(struct rpc_call *call, struct rpc_tag *tag, const grpc_op *ops,
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
    rpc_call_start_batch(call, &call->close_tag, &op, 1);
}

void rpc_call_start(struct rpc_call *call) {
    pthread_mutex_lock(&call->mutex);
    start_close(call);
    rpc_call_pump(call);
    pthread_mutex_unlock(&call->mutex);
}

// -- the other tags ------------------------------------------------------------------------------

static void on_close(void *owner, bool success) {
    (void)success; // these two operations always succeed
    struct rpc_call *call = owner;
    call->trailers = rpc_texts_copy(&call->trailing);
    pthread_mutex_lock(&call->mutex);
    call->tag_count--;
    call->closed_seen = true;
    rpc_call_drop_queue(call);
    pthread_mutex_unlock(&call->mutex);
    rpc_call_settle(call);
}

// -- what owners do, on any thread ---------------------------------------------------------------

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

const char *rpc_call_caller(const struct rpc_call *call) {
    return call->caller.name;
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

uint32_t rpc_call_retry_ms(const struct rpc_call *call) {
    return rpc_refusal_read_retry(rpc_call_trailer(call, "grpc-retry-pushback-ms"));
}

const void *rpc_call_metadata_bytes(const struct rpc_call *call, const char *key,
                                    size_t *size_bytes_out) {
    return rpc_texts_find_bytes(call->metadata, key, size_bytes_out);
}

const void *rpc_call_trailer_bytes(const struct rpc_call *call, const char *key,
                                   size_t *size_bytes_out) {
    return rpc_texts_find_bytes(call->trailers, key, size_bytes_out);
}

// -- what a server tells of a call ---------------------------------------------------------------

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
