#include <stdio.h>
#include <string.h>

#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>

#include "base/check.h"
#include "base/log.h"
#include "transport/rpc_accept.h"
#include "transport/rpc_address.h"
#include "transport/rpc_internal.h"
#include "transport/rpc_methods.h"

// -- routes --------------------------------------------------------------------------------------

static enum status add_route(struct rpc *rpc, const ProtobufCServiceDescriptor *service,
                             const struct rpc_method *method, void *service_ctx, uint32_t roles,
                             struct error *error) {
    const ProtobufCMethodDescriptor *descriptor =
        protobuf_c_service_descriptor_get_method_by_name(service, method->name);
    struct rpc_streaming streaming;
    if (descriptor == NULL ||
        !rpc_methods_find(rpc->config.descriptor_set, rpc->config.descriptor_set_bytes,
                          service->name, method->name, &streaming)) {
        return error_set(error, STATUS_NOT_FOUND, "service %s has no method %s", service->name,
                         method->name);
    }
    if (rpc->route_count == RPC_METHOD_COUNT_MAX) {
        return error_set(error, STATUS_EXHAUSTED, "more than %d methods", RPC_METHOD_COUNT_MAX);
    }
    CHECK(method->handler.begin != NULL && method->handler.message != NULL &&
          method->handler.closed != NULL);
    struct rpc_route *route = &rpc->routes[rpc->route_count];
    int size = snprintf(route->path, sizeof(route->path), "/%s/%s", service->name, method->name);
    CHECK(size > 0 && (size_t)size < sizeof(route->path));
    route->service = service;
    route->method = descriptor;
    route->client_streams = streaming.client;
    route->server_streams = streaming.server;
    route->handler = method->handler;
    route->service_ctx = service_ctx;
    route->roles = roles;
    rpc->route_count++;
    return STATUS_OK;
}

enum status rpc_add_service(struct rpc *rpc, const ProtobufCServiceDescriptor *service,
                            const struct rpc_method *methods, size_t method_count,
                            void *service_ctx, uint32_t roles, struct error *error) {
    CHECK(rpc->server == NULL);
    for (size_t i = 0; i < method_count; i++) {
        enum status status = add_route(rpc, service, &methods[i], service_ctx, roles, error);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

void rpc_limit_messages(struct rpc *rpc, const ProtobufCServiceDescriptor *service,
                        const char *method, size_t receive_bytes_max) {
    CHECK(rpc->server == NULL);
    size_t limited_count = 0;
    for (size_t i = 0; i < rpc->route_count; i++) {
        struct rpc_route *route = &rpc->routes[i];
        if (route->service != service) continue;
        if (method != NULL && strcmp(route->method->name, method) != 0) continue;
        route->receive_bytes_max = receive_bytes_max;
        limited_count++;
    }
    CHECK(limited_count > 0);
}

static const struct rpc_route *find_route(const struct rpc *rpc, grpc_slice path) {
    for (size_t i = 0; i < rpc->route_count; i++) {
        if (grpc_slice_str_cmp(path, rpc->routes[i].path) == 0) return &rpc->routes[i];
    }
    return NULL;
}

// -- new calls; on the rpc thread ----------------------------------------------------------------

static void read_peer(struct rpc_call *call) {
    char *peer = grpc_call_get_peer(call->grpc);
    rpc_address_peer_host(peer, call->peer_host, sizeof(call->peer_host));
    call->peer_port = rpc_address_peer_port(peer);
    gpr_free(peer);
}

static void own(struct rpc_call *call, const struct rpc_route *route) {
    call->has_owner = true;
    call->handler = route->handler;
    call->service = route->service;
    call->method = route->method;
    call->receive_type = route->method->input;
    call->send_type = route->method->output;
    call->receives_many = route->client_streams;
    call->receive_bytes_max = route->receive_bytes_max;
    call->sends_many = route->server_streams;
}

// Whether the caller may call this method; RPC_OK, or how to answer it.
static enum rpc_code let_in(struct rpc *rpc, struct rpc_call *call, const struct rpc_route *route,
                            struct error *reason) {
    struct rpc_access *access = rpc->config.access;
    if (access == NULL) return RPC_OK;
    if (rpc_access_has_tls(access)) rpc_tls_read_caller(call->grpc, &call->caller);
    char service[sizeof(route->path)];
    (void)snprintf(service, sizeof(service), "%s", route->path + 1);
    *strchrnul(service, '/') = '\0';
    enum rpc_code code =
        rpc_access_decide(access, &call->caller, rpc_call_metadata(call, "authorization"), service,
                          route->roles, reason);
    if (code != RPC_OK)
        log_debug("rpc: %s refused to %s: %s", route->path, call->peer_host, reason->text);
    return code;
}

// Answers a call that has no owner.
static void turn_away(struct rpc_call *call, enum status room, grpc_slice path) {
    if (room != STATUS_OK) {
        call->read_done = true; // at once: a limit that waits for clients would be none
        if (room == STATUS_EXHAUSTED)
            rpc_call_refuse(call, rpc_code_of(room), "the server has too many calls in progress",
                            RPC_RETRY_MS);
        else
            rpc_call_end(call, rpc_code_of(room), "the server is shutting down");
        return;
    }
    struct error reason;
    (void)error_set(&reason, STATUS_NOT_FOUND, "there is no method %.*s",
                    GRPC_SLICE_LENGTH(path) > 200 ? 200 : (int)GRPC_SLICE_LENGTH(path),
                    (const char *)GRPC_SLICE_START_PTR(path));
    rpc_call_end(call, RPC_UNIMPLEMENTED, reason.text);
}

static void begin_call(struct rpc *rpc, grpc_call *grpc, const grpc_call_details *details,
                       const grpc_metadata_array *metadata) {
    struct rpc_call *call = rpc_call_new(rpc);
    if (call == NULL) {
        (void)grpc_call_cancel_with_status(grpc, GRPC_STATUS_RESOURCE_EXHAUSTED, "no memory", NULL);
        grpc_call_unref(grpc);
        return;
    }
    call->is_server = true;
    call->grpc = grpc;
    call->deadline = details->deadline;
    call->metadata = rpc_texts_copy(metadata);
    read_peer(call);
    enum status room = rpc_track(rpc, call, false);
    if (room != STATUS_OK) CHECK(rpc_track(rpc, call, true) == STATUS_OK);
    const struct rpc_route *route = room == STATUS_OK ? find_route(rpc, details->method) : NULL;
    struct error reason;
    enum rpc_code refusal = route != NULL ? let_in(rpc, call, route, &reason) : RPC_OK;
    if (route != NULL && refusal == RPC_OK) own(call, route);
    rpc_call_start(call);
    if (route == NULL)
        turn_away(call, room, details->method);
    else if (refusal != RPC_OK)
        rpc_call_end(call, refusal, reason.text);
    else
        call->ctx = call->handler.begin(call, route->service_ctx);
    rpc_call_start_receive(call);
    rpc_call_release(call);
}

static void on_new_call(void *owner, bool success) {
    struct rpc_slot *slot = owner;
    grpc_call *grpc = slot->grpc;
    grpc_call_details details = slot->details;
    grpc_metadata_array metadata = slot->metadata;
    if (success) {
        begin_call(slot->rpc, grpc, &details, &metadata);
        rpc_slot_post(slot); // after the call, which waits; there are more slots
    }
    grpc_metadata_array_destroy(&metadata);
    grpc_call_details_destroy(&details);
}

void rpc_slot_post(struct rpc_slot *slot) {
    slot->grpc = NULL;
    grpc_call_details_init(&slot->details);
    grpc_metadata_array_init(&slot->metadata);
    RPC_TAG_GIVEN(&slot->tag);
    // Once the server is shut down the tag comes back without success, and is not posted again.
    grpc_completion_queue *queue = slot->rpc->queue;
    CHECK(grpc_server_request_call(slot->rpc->server, &slot->grpc, &slot->details, &slot->metadata,
                                   queue, queue, &slot->tag) == GRPC_CALL_OK);
}

// -- listening -----------------------------------------------------------------------------------

// gRPC reads a whole message before it compares its size with the limit; only a quota bounds what
// all connections may hold. Beyond it gRPC resets streams, which clients see as RESOURCE_EXHAUSTED.
static grpc_arg memory_argument(const struct rpc_config *config, grpc_resource_quota *quota) {
    grpc_resource_quota_resize(quota,
                               RPC_SERVER_MEMORY_BYTES_BASE +
                                   RPC_SERVER_MEMORY_MESSAGE_COUNT * config->receive_bytes_max);
    return (grpc_arg){.type = GRPC_ARG_POINTER,
                      .key = (char *)GRPC_ARG_RESOURCE_QUOTA,
                      .value.pointer = {quota, grpc_resource_quota_arg_vtable()}};
}

static grpc_server *create_server(const struct rpc_config *config) {
    grpc_resource_quota *quota = grpc_resource_quota_create("rpc");
    grpc_arg arguments[] = {
        memory_argument(config, quota),
        // Otherwise a second server on the port gets a part of the connections.
        rpc_argument(GRPC_ARG_ALLOW_REUSEPORT, 0),
        rpc_argument(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)config->receive_bytes_max),
        rpc_argument(GRPC_ARG_MAX_CONCURRENT_STREAMS, (int)config->call_count_max),
        rpc_argument(GRPC_ARG_MAX_METADATA_SIZE, RPC_METADATA_BYTES_MAX),
        rpc_argument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, (int)config->idle_ms),
        rpc_argument(GRPC_ARG_KEEPALIVE_TIME_MS, RPC_KEEPALIVE_MS),
        rpc_argument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, RPC_KEEPALIVE_CLIENT_TIMEOUT_MS),
        rpc_argument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        rpc_argument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        rpc_argument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                     RPC_KEEPALIVE_INTERVAL_MIN_MS),
        rpc_argument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, RPC_HANDSHAKE_MS),
        // A compressed message can be a thousand times larger than the limit once unpacked.
        rpc_argument(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE),
        rpc_argument(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0),
        rpc_argument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
    };
    grpc_channel_args args = {.num_args = sizeof(arguments) / sizeof(arguments[0]),
                              .args = arguments};
    grpc_server *server = grpc_server_create(&args, NULL);
    grpc_resource_quota_unref(quota);
    return server;
}

static int listen_on(struct rpc *rpc, grpc_server *server, const char *address) {
    // gRPC wants a host; [::] takes IPv4 too where there is IPv6, and falls back to IPv4.
    char full[512];
    (void)snprintf(full, sizeof(full), "%s%s", address[0] == ':' ? "[::]" : "", address);
    grpc_server_credentials *credentials = rpc_tls_server_credentials(rpc);
    int port = grpc_server_add_http2_port(server, full, credentials);
    grpc_server_credentials_release(credentials);
    return port;
}

static enum status limit_connections(struct rpc *rpc, const char *address, uint16_t port) {
    bool is_unix = rpc_address_is_unix(address);
    return rpc_accept_open(is_unix ? 0 : port, rpc_address_unix_path(address),
                           rpc->config.connection_count_max, &rpc->accept);
}

enum status rpc_serve(struct rpc *rpc, const char *address, uint16_t *port_out,
                      struct error *error) {
    CHECK(rpc->server == NULL);
    enum status status = rpc_address_check(address, error);
    if (status == STATUS_OK) status = rpc_access_check_listen(rpc->config.access, address, error);
    if (status != STATUS_OK) return status;
    grpc_server *server = create_server(&rpc->config);
    grpc_server_register_completion_queue(server, rpc->queue, NULL);
    int port = listen_on(rpc, server, address);
    if (port == 0) {
        grpc_server_destroy(server);
        return error_set(error, STATUS_IO, "cannot listen on %s: %s", address,
                         rpc_address_refusal(address));
    }
    status = limit_connections(rpc, address, (uint16_t)port);
    if (status != STATUS_OK) {
        grpc_server_destroy(server);
        return error_set(error, status, "cannot serve on %s: no room to count connections",
                         address);
    }
    rpc->server = server;
    grpc_server_start(server);
    for (size_t i = 0; i < RPC_ACCEPT_COUNT; i++) {
        struct rpc_slot *slot = &rpc->slots[i];
        slot->rpc = rpc;
        slot->tag = (struct rpc_tag){.done = on_new_call, .owner = slot};
        rpc_slot_post(slot);
    }
    *port_out = rpc_address_is_unix(address) ? 0 : (uint16_t)port;
    return STATUS_OK;
}
