#include "transport/rpc.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include <grpc/support/log.h>
#include <grpc/support/time.h>

#include "base/check.h"
#include "base/log.h"
#include "proto/descriptors.h"
#include "transport/rpc_accept.h"
#include "transport/rpc_internal.h"

static const char *const code_names[] = {
    [RPC_OK] = "OK",
    [RPC_CANCELLED] = "CANCELLED",
    [RPC_UNKNOWN] = "UNKNOWN",
    [RPC_INVALID_ARGUMENT] = "INVALID_ARGUMENT",
    [RPC_DEADLINE_EXCEEDED] = "DEADLINE_EXCEEDED",
    [RPC_NOT_FOUND] = "NOT_FOUND",
    [RPC_ALREADY_EXISTS] = "ALREADY_EXISTS",
    [RPC_PERMISSION_DENIED] = "PERMISSION_DENIED",
    [RPC_RESOURCE_EXHAUSTED] = "RESOURCE_EXHAUSTED",
    [RPC_FAILED_PRECONDITION] = "FAILED_PRECONDITION",
    [RPC_ABORTED] = "ABORTED",
    [RPC_OUT_OF_RANGE] = "OUT_OF_RANGE",
    [RPC_UNIMPLEMENTED] = "UNIMPLEMENTED",
    [RPC_INTERNAL] = "INTERNAL",
    [RPC_UNAVAILABLE] = "UNAVAILABLE",
    [RPC_DATA_LOSS] = "DATA_LOSS",
    [RPC_UNAUTHENTICATED] = "UNAUTHENTICATED",
};

const char *rpc_code_name(enum rpc_code code) {
    size_t index = (size_t)code;
    return index < sizeof(code_names) / sizeof(code_names[0]) ? code_names[index] : "UNKNOWN";
}

enum rpc_code rpc_code_of(enum status status) {
    switch (status) {
    case STATUS_OK:
        return RPC_OK;
    case STATUS_INVALID:
        return RPC_INVALID_ARGUMENT;
    case STATUS_NOT_FOUND:
        return RPC_NOT_FOUND;
    case STATUS_UNSUPPORTED:
        return RPC_UNIMPLEMENTED;
    case STATUS_EXHAUSTED:
    case STATUS_NO_MEMORY:
        return RPC_RESOURCE_EXHAUSTED;
    case STATUS_IO:
        return RPC_INTERNAL;
    case STATUS_UNAVAILABLE:
        return RPC_UNAVAILABLE;
    case STATUS_TIMEOUT:
        return RPC_DEADLINE_EXCEEDED;
    case STATUS_CANCELLED:
        return RPC_CANCELLED;
    }
    return RPC_UNKNOWN;
}

// -- the library ---------------------------------------------------------------------------------

// What gRPC calls errors are mostly peers that come and go, which its callers are told anyway.
static void write_grpc_log(gpr_log_func_args *args) {
    log_debug("grpc: %s", args->message);
}

static void quiet_library(void) {
    if (getenv("GRPC_VERBOSITY") != NULL) return;
    gpr_set_log_function(write_grpc_log);
    gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
}

#ifdef RPC_THREAD_SANITIZER
// The gRPC libraries are not instrumented: their atomics are invisible, so what they do with memory
// looks unordered. Applies to every program with this file; TSAN_OPTIONS can still say otherwise.
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) {
    return "ignore_noninstrumented_modules=1";
}
#endif

grpc_arg rpc_argument(const char *key, int value) {
    return (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)key, .value.integer = value};
}

// -- the thread ----------------------------------------------------------------------------------

static void *run_queue(void *context) {
    struct rpc *rpc = context;
    gpr_timespec never = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    for (;;) {
        grpc_event event = grpc_completion_queue_next(rpc->queue, never, NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN) return NULL;
        CHECK(event.type == GRPC_OP_COMPLETE);
        struct rpc_tag *tag = event.tag;
        RPC_TAG_TAKEN(tag);
        tag->done(tag->owner, event.success != 0);
    }
}

bool rpc_is_own_thread(struct rpc *rpc) {
    return pthread_equal(pthread_self(), rpc->thread) != 0;
}

// -- life ----------------------------------------------------------------------------------------

static struct rpc_config with_defaults(const struct rpc_config *config) {
    struct rpc_config result = *config;
    if (result.receive_bytes_max == 0) result.receive_bytes_max = RPC_RECEIVE_BYTES_DEFAULT;
    if (result.receive_bytes_max > INT32_MAX) result.receive_bytes_max = INT32_MAX;
    if (result.call_count_max == 0) result.call_count_max = RPC_CALL_COUNT_DEFAULT;
    if (result.call_count_max > INT32_MAX) result.call_count_max = INT32_MAX;
    if (result.send_count_max == 0) result.send_count_max = RPC_SEND_COUNT_DEFAULT;
    if (result.descriptor_set == NULL) {
        result.descriptor_set = descriptors_begin;
        result.descriptor_set_bytes = descriptors_size_bytes();
    }
    if (result.connection_count_max == 0)
        result.connection_count_max = RPC_CONNECTION_COUNT_DEFAULT;
    if (result.idle_ms == 0) result.idle_ms = RPC_IDLE_MS_DEFAULT;
    if (result.idle_ms > INT32_MAX) result.idle_ms = INT32_MAX;
    if (result.send_bytes_max == 0) result.send_bytes_max = RPC_SEND_BYTES_DEFAULT;
    return result;
}

// The wait in rpc_close is measured on the monotonic clock.
static bool init_changed(pthread_cond_t *changed) {
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0) return false;
    bool done = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 &&
                pthread_cond_init(changed, &attributes) == 0;
    pthread_condattr_destroy(&attributes);
    return done;
}

enum status rpc_open(const struct rpc_config *config, struct rpc **rpc_out) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct rpc *rpc = calloc(1, sizeof(*rpc));
    if (rpc == NULL) return STATUS_NO_MEMORY;
    rpc->config = with_defaults(config);
    enum status status = STATUS_IO;
    if (pthread_mutex_init(&rpc->mutex, NULL) != 0) goto free_rpc;
    if (!init_changed(&rpc->changed)) goto destroy_mutex;
    (void)pthread_once(&once, quiet_library);
    grpc_init();
    rpc->queue = grpc_completion_queue_create_for_next(NULL);
    if (pthread_create(&rpc->thread, NULL, run_queue, rpc) != 0) goto shut_grpc;
    (void)pthread_setname_np(rpc->thread, "rpc");
    *rpc_out = rpc;
    return STATUS_OK;
shut_grpc:
    grpc_completion_queue_shutdown(rpc->queue);
    (void)run_queue(rpc);
    grpc_completion_queue_destroy(rpc->queue);
    grpc_shutdown();
    pthread_cond_destroy(&rpc->changed);
destroy_mutex:
    pthread_mutex_destroy(&rpc->mutex);
free_rpc:
    free(rpc);
    return status;
}

enum status rpc_track(struct rpc *rpc, struct rpc_call *call, bool always) {
    enum status status = STATUS_OK;
    pthread_mutex_lock(&rpc->mutex);
    if ((rpc->closing || (rpc->server_stopping && call->is_server)) && !always)
        status = STATUS_UNAVAILABLE;
    else if (rpc->call_count >= rpc->config.call_count_max && !always)
        status = STATUS_EXHAUSTED;
    if (status == STATUS_OK) {
        call->next = rpc->calls;
        if (rpc->calls != NULL) rpc->calls->previous = call;
        rpc->calls = call;
        rpc->call_count++;
    }
    pthread_mutex_unlock(&rpc->mutex);
    return status;
}

// The mutex is held.
static void shut_idle_connections(struct rpc *rpc) {
    struct rpc_ports busy = {0};
    for (const struct rpc_call *call = rpc->calls; call != NULL; call = call->next) {
        if (call->is_server)
            busy.words[call->peer_port / 64] |= UINT64_C(1) << call->peer_port % 64;
    }
    rpc_accept_shut_others(rpc->accept, &busy);
}

void rpc_untrack(struct rpc *rpc, struct rpc_call *call) {
    pthread_mutex_lock(&rpc->mutex);
    if (call->previous != NULL)
        call->previous->next = call->next;
    else
        rpc->calls = call->next;
    if (call->next != NULL) call->next->previous = call->previous;
    CHECK(rpc->call_count > 0);
    rpc->call_count--;
    if (call->is_server && rpc->server_stopping) shut_idle_connections(rpc);
    pthread_cond_signal(&rpc->changed);
    pthread_mutex_unlock(&rpc->mutex);
}

static struct timespec after_ms(uint32_t ms) {
    struct timespec time;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &time) == 0);
    time.tv_sec += ms / 1000;
    time.tv_nsec += (long)(ms % 1000) * 1000000;
    if (time.tv_nsec >= 1000000000) {
        time.tv_sec++;
        time.tv_nsec -= 1000000000;
    }
    return time;
}

// Waits until no call is in progress and a server that was shut has stopped. NULL: without limit.
// The mutex is held.
static void wait_until_idle(struct rpc *rpc, const struct timespec *until) {
    int rc = 0;
    while (rc != ETIMEDOUT && (rpc->call_count > 0 || (rpc->server_shut && !rpc->server_stopped))) {
        rc = until == NULL ? pthread_cond_wait(&rpc->changed, &rpc->mutex)
                           : pthread_cond_timedwait(&rpc->changed, &rpc->mutex, until);
    }
}

static void on_stopped(void *owner, bool success) {
    (void)success;
    struct rpc *rpc = owner;
    pthread_mutex_lock(&rpc->mutex);
    rpc->server_stopped = true;
    pthread_cond_signal(&rpc->changed);
    pthread_mutex_unlock(&rpc->mutex);
}

// gRPC's own shutdown answers calls that cross its GOAWAY with CANCELLED, which no client repeats.
// So it has to wait: first new calls are refused here, and connections closed once they carry no
// call.
void rpc_stop_serving(struct rpc *rpc) {
    CHECK(!rpc_is_own_thread(rpc));
    pthread_mutex_lock(&rpc->mutex);
    if (rpc->server != NULL && !rpc->server_stopping) {
        rpc->server_stopping = true;
        rpc_accept_stop(rpc->accept);
        shut_idle_connections(rpc);
    }
    pthread_mutex_unlock(&rpc->mutex);
}

// What still runs is cancelled, by gRPC and so that clients see UNAVAILABLE.
static void shut_server(struct rpc *rpc) {
    if (rpc->server == NULL) return;
    rpc->stopped_tag = (struct rpc_tag){.done = on_stopped, .owner = rpc};
    RPC_TAG_GIVEN(&rpc->stopped_tag);
    grpc_server_shutdown_and_notify(rpc->server, rpc->queue, &rpc->stopped_tag);
    grpc_server_cancel_all_calls(rpc->server);
}

void rpc_close(struct rpc *rpc, uint32_t grace_ms) {
    if (rpc == NULL) return;
    struct timespec until = after_ms(grace_ms);
    pthread_mutex_lock(&rpc->mutex);
    rpc->closing = true;
    pthread_mutex_unlock(&rpc->mutex);
    rpc_stop_serving(rpc);

    pthread_mutex_lock(&rpc->mutex);
    wait_until_idle(rpc, &until);
    for (struct rpc_call *call = rpc->calls; call != NULL; call = call->next) {
        if (!call->is_server) rpc_call_cancel(call);
    }
    rpc->server_shut = rpc->server != NULL;
    pthread_mutex_unlock(&rpc->mutex);
    shut_server(rpc);
    pthread_mutex_lock(&rpc->mutex);
    wait_until_idle(rpc, NULL);
    pthread_mutex_unlock(&rpc->mutex);

    if (rpc->server != NULL) grpc_server_destroy(rpc->server);
    rpc_accept_close(rpc->accept);
    grpc_completion_queue_shutdown(rpc->queue);
    CHECK(pthread_join(rpc->thread, NULL) == 0);
    grpc_completion_queue_destroy(rpc->queue);
    grpc_shutdown();
    pthread_cond_destroy(&rpc->changed);
    pthread_mutex_destroy(&rpc->mutex);
    free(rpc);
}
