#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>

#include "base/check.h"
#include "transport/rpc_address.h"
#include "transport/rpc_internal.h"
#include "transport/rpc_metadata.h"
#include "transport/rpc_methods.h"

// -- channels ------------------------------------------------------------------------------------

static grpc_arg text_argument(const char *key, const char *value) {
    return (grpc_arg){
        .type = GRPC_ARG_STRING, .key = (char *)key, .value.string = (char *)(uintptr_t)value};
}

static grpc_channel *create_channel(const struct rpc_config *config, const char *target,
                                    uint32_t *tls_generation_out) {
    const char *server_name = rpc_access_server_name(config->access);
    grpc_arg arguments[] = {
        rpc_argument(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)config->receive_bytes_max),
        rpc_argument(GRPC_ARG_MAX_METADATA_SIZE, RPC_METADATA_BYTES_MAX),
        rpc_argument(GRPC_ARG_KEEPALIVE_TIME_MS, RPC_KEEPALIVE_MS),
        rpc_argument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, RPC_KEEPALIVE_TIMEOUT_MS),
        rpc_argument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        rpc_argument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        rpc_argument(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, RPC_RECONNECT_FIRST_MS),
        rpc_argument(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, RPC_RECONNECT_LAST_MS),
        rpc_argument(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, RPC_CONNECT_MS),
        // A call is made once: who calls knows whether it may be made again.
        rpc_argument(GRPC_ARG_ENABLE_RETRIES, 0),
        // Only what the target says: no proxy of the environment, no configuration from DNS, no
        // connection shared with another channel.
        rpc_argument(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
        rpc_argument(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),
        rpc_argument(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
        rpc_argument(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE),
        rpc_argument(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0),
        rpc_argument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
        text_argument(GRPC_SSL_TARGET_NAME_OVERRIDE_ARG, server_name), // the last: may be left out
    };
    size_t count = sizeof(arguments) / sizeof(arguments[0]);
    grpc_channel_args args = {.num_args = server_name != NULL ? count : count - 1,
                              .args = arguments};
    grpc_channel_credentials *credentials =
        rpc_tls_channel_credentials(config->access, tls_generation_out);
    grpc_channel *channel = grpc_channel_create(target, credentials, &args);
    grpc_channel_credentials_release(credentials);
    return channel;
}

enum status rpc_channel_open(struct rpc *rpc, const char *target,
                             struct rpc_channel **channel_out) {
    enum status status = rpc_access_check_dial(rpc->config.access, target, NULL);
    if (status != STATUS_OK) return status;
    struct rpc_channel *channel = calloc(1, sizeof(*channel));
    if (channel == NULL) return STATUS_NO_MEMORY;
    CHECK(pthread_mutex_init(&channel->mutex, NULL) == 0);
    // Without the scheme a host called "dns" or "ipv4" would be taken for one.
    (void)snprintf(channel->target, sizeof(channel->target), "%s%s",
                   rpc_address_is_unix(target) ? "" : "dns:///", target);
    grpc_init(); // so that a channel may be closed after its rpc
    channel->rpc = rpc;
    channel->grpc = create_channel(&rpc->config, channel->target, &channel->tls_generation);
    *channel_out = channel;
    return STATUS_OK;
}

// Certificates of a channel cannot be changed: new calls get a channel with the new ones, and those
// of the one before go on.
static void renew(struct rpc_channel *channel) {
    const struct rpc_config *config = &channel->rpc->config;
    if (rpc_access_generation(config->access) == channel->tls_generation) return;
    if (channel->previous != NULL) grpc_channel_destroy(channel->previous);
    channel->previous = channel->grpc;
    channel->grpc = create_channel(config, channel->target, &channel->tls_generation);
}

void rpc_channel_close(struct rpc_channel *channel) {
    if (channel == NULL) return;
    grpc_channel_destroy(channel->grpc);
    if (channel->previous != NULL) grpc_channel_destroy(channel->previous);
    grpc_shutdown();
    pthread_mutex_destroy(&channel->mutex);
    free(channel);
}

// -- calls ---------------------------------------------------------------------------------------

static gpr_timespec deadline_after(uint32_t deadline_ms) {
    if (deadline_ms == 0) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_millis(deadline_ms, GPR_TIMESPAN));
}

static grpc_call *create_call(struct rpc_channel *channel, const char *service, const char *method,
                              gpr_timespec deadline) {
    char path[256];
    int size = snprintf(path, sizeof(path), "/%s/%s", service, method);
    CHECK(size > 0 && (size_t)size < sizeof(path));
    grpc_slice slice = grpc_slice_from_copied_string(path);
    pthread_mutex_lock(&channel->mutex);
    if (rpc_access_has_tls(channel->rpc->config.access)) renew(channel);
    grpc_call *call = grpc_channel_create_call(channel->grpc, NULL, GRPC_PROPAGATE_DEFAULTS,
                                               channel->rpc->queue, slice, NULL, deadline, NULL);
    pthread_mutex_unlock(&channel->mutex);
    grpc_slice_unref(slice);
    return call;
}

static void add_authorization(struct rpc_access *access, struct rpc_call *call) {
    char text[RPC_AUTHORIZATION_BYTES_MAX];
    if (!rpc_access_authorization(access, text)) return;
    rpc_metadata_take(&call->send_initial, "authorization", grpc_slice_from_copied_string(text));
    explicit_bzero(text, sizeof(text));
}

// Makes a call that has not started, so that it can still be changed.
static enum status prepare(struct rpc_channel *channel, const ProtobufCServiceDescriptor *service,
                           const char *method, const struct rpc_handler *handler, void *ctx,
                           const struct rpc_call_options *options, struct rpc_call **call_out) {
    static const struct rpc_call_options none;
    if (options == NULL) options = &none;
    const ProtobufCMethodDescriptor *descriptor =
        protobuf_c_service_descriptor_get_method_by_name(service, method);
    const struct rpc_config *config = &channel->rpc->config;
    struct rpc_streaming streaming;
    if (descriptor == NULL ||
        !rpc_methods_find(config->descriptor_set, config->descriptor_set_bytes, service->name,
                          method, &streaming)) {
        return STATUS_NOT_FOUND;
    }
    struct rpc_call *call = rpc_call_new(channel->rpc);
    if (call == NULL) return STATUS_NO_MEMORY;
    call->has_owner = true;
    call->handler = *handler;
    call->ctx = ctx;
    call->send_type = descriptor->input;
    call->receive_type = descriptor->output;
    call->sends_many = streaming.client;
    call->receives_many = streaming.server;
    // A peer that is to answer a stream must learn of it; one message alone goes out in one piece.
    call->initial_due = streaming.client;
    call->deadline = deadline_after(options->deadline_ms);
    enum status status =
        rpc_metadata_append(&call->send_initial, options->metadata, options->metadata_count);
    if (status != STATUS_OK) goto drop_call;
    add_authorization(config->access, call);
    call->grpc = create_call(channel, service->name, method, call->deadline);
    status = rpc_track(channel->rpc, call, false);
    if (status != STATUS_OK) goto drop_grpc_call;
    *call_out = call;
    return STATUS_OK;
drop_grpc_call:
    grpc_call_unref(call->grpc);
    call->grpc = NULL;
drop_call:
    rpc_call_release(call);
    rpc_call_release(call);
    return status;
}

static void start_call(struct rpc_call *call) {
    rpc_call_start(call);
    rpc_call_start_receive(call);
}

enum status rpc_call_begin(struct rpc_channel *channel, const ProtobufCServiceDescriptor *service,
                           const char *method, const struct rpc_handler *handler, void *ctx,
                           const struct rpc_call_options *options, struct rpc_call **call_out) {
    CHECK(handler->message != NULL && handler->closed != NULL);
    struct rpc_call *call;
    enum status status = prepare(channel, service, method, handler, ctx, options, &call);
    if (status != STATUS_OK) return status;
    *call_out = call; // before a callback can run
    start_call(call);
    return STATUS_OK;
}

// -- waiting -------------------------------------------------------------------------------------

struct wait {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool is_over;
    enum rpc_code code;
    uint32_t retry_ms;
    struct error message;
};

static void end_wait(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message) {
    struct wait *wait = ctx;
    pthread_mutex_lock(&wait->mutex);
    wait->is_over = true;
    wait->code = code;
    wait->retry_ms = rpc_call_retry_ms(call);
    (void)error_set(&wait->message, STATUS_OK, "%s", message);
    pthread_cond_signal(&wait->changed);
    pthread_mutex_unlock(&wait->mutex);
}

static enum rpc_code outcome_of_wait(enum rpc_code code, const char *text,
                                     ProtobufCMessage *response, ProtobufCMessage **response_out,
                                     struct error *error) {
    if (code == RPC_OK && response == NULL) {
        code = RPC_INTERNAL;
        text = "the server gave no answer";
    }
    if (code == RPC_OK) {
        *response_out = response;
        return RPC_OK;
    }
    if (response != NULL) protobuf_c_message_free_unpacked(response, NULL);
    (void)error_set(error, STATUS_OK, "%s", text);
    return code;
}

enum rpc_code rpc_call_wait(struct rpc_channel *channel, const ProtobufCServiceDescriptor *service,
                            const char *method, const ProtobufCMessage *request,
                            const struct rpc_call_options *options, ProtobufCMessage **response_out,
                            struct error *error) {
    CHECK(!rpc_is_own_thread(channel->rpc));
    struct wait wait = {.mutex = PTHREAD_MUTEX_INITIALIZER,
                        .changed = PTHREAD_COND_INITIALIZER,
                        .retry_ms = RPC_RETRY_UNSAID};
    const struct rpc_handler handler = {.closed = end_wait};
    ProtobufCMessage *response = NULL;
    struct rpc_call *call;
    if (options != NULL && options->retry_ms_out != NULL) *options->retry_ms_out = RPC_RETRY_UNSAID;
    enum status status = prepare(channel, service, method, &handler, &wait, options, &call);
    if (status != STATUS_OK) {
        (void)error_set(error, status, "%s %s: cannot be called: %s", service->name, method,
                        status_name(status));
        return rpc_code_of(status);
    }
    CHECK(!call->sends_many && !call->receives_many);
    call->keep_out = &response;
    start_call(call);
    bool sent = rpc_call_send(call, request);
    (void)sent; // when it is over already the outcome says why

    pthread_mutex_lock(&wait.mutex);
    while (!wait.is_over) {
        pthread_cond_wait(&wait.changed, &wait.mutex);
    }
    pthread_mutex_unlock(&wait.mutex);
    rpc_call_release(call);
    if (options != NULL && options->retry_ms_out != NULL) *options->retry_ms_out = wait.retry_ms;
    pthread_cond_destroy(&wait.changed);
    pthread_mutex_destroy(&wait.mutex);
    return outcome_of_wait(wait.code, wait.message.text, response, response_out, error);
}
