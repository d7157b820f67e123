// rpc_world: a server and a client in one process, and what tests wait for.
//
// The server's behaviour:
//   Tokenize    answers with the length of the text; "hang": never answers; "bad": answers with a
//               message that cannot be unpacked; "big": with one of `big_bytes`; "refuse" ends the
//               call with FAILED_PRECONDITION
//   Detokenize  answers with the peer's host
//   Generate    streams stop.max_tokens messages, each with its own index as token id, as fast as
//               it may; "hang" as text: streams nothing and does not end
//   any method  answers the metadata "x-echo" with the metadata "x-initial" and the trailer
//               "x-trailer" of the same value
//   Join        answers each Heartbeat with one of the same epoch, and ends at the half-close
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "stagecoach/v1/admin.pb-c.h"
#include "stagecoach/v1/control.pb-c.h"
#include "stagecoach/v1/inference.pb-c.h"
#include "transport/rpc.h"

enum { WAIT_MS = 20000 };

typedef Stagecoach__V1__TokenizeRequest TokenizeRequest;
typedef Stagecoach__V1__TokenizeResponse TokenizeResponse;
typedef Stagecoach__V1__GenerateRequest GenerateRequest;
typedef Stagecoach__V1__GenerateResponse GenerateResponse;
typedef Stagecoach__V1__StageMessage StageMessage;
typedef Stagecoach__V1__CoordinatorMessage CoordinatorMessage;

#define INFERENCE (&stagecoach__v1__inference__descriptor)
#define CONTROL (&stagecoach__v1__control__descriptor)
#define ADMIN (&stagecoach__v1__admin__descriptor)

// What one side of a call has seen, or the server of all its calls.
struct seen {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    atomic_uint begun_count;
    atomic_uint message_count;
    atomic_uint refused_send_count;
    atomic_uint writable_count;
    atomic_uint half_close_count;
    atomic_uint closed_count;
    uint64_t last_number;
    bool out_of_order;
    enum rpc_code code; // of the last closed call
    char text[512];
};

static inline void seen_init(struct seen *seen) {
    *seen = (struct seen){0};
    assert_int_equal(pthread_mutex_init(&seen->mutex, NULL), 0);
    assert_int_equal(pthread_cond_init(&seen->changed, NULL), 0);
}

static inline void seen_fini(struct seen *seen) {
    pthread_cond_destroy(&seen->changed);
    pthread_mutex_destroy(&seen->mutex);
}

static inline void seen_add(struct seen *seen, atomic_uint *count) {
    pthread_mutex_lock(&seen->mutex);
    (*count)++;
    pthread_cond_broadcast(&seen->changed);
    pthread_mutex_unlock(&seen->mutex);
}

static inline void seen_close(struct seen *seen, enum rpc_code code, const char *text) {
    pthread_mutex_lock(&seen->mutex);
    seen->closed_count++;
    seen->code = code;
    (void)snprintf(seen->text, sizeof(seen->text), "%s", text);
    pthread_cond_broadcast(&seen->changed);
    pthread_mutex_unlock(&seen->mutex);
}

static inline enum rpc_code seen_code(struct seen *seen) {
    pthread_mutex_lock(&seen->mutex);
    enum rpc_code code = seen->code;
    pthread_mutex_unlock(&seen->mutex);
    return code;
}

static inline bool seen_in_order(struct seen *seen) {
    pthread_mutex_lock(&seen->mutex);
    bool in_order = !seen->out_of_order;
    pthread_mutex_unlock(&seen->mutex);
    return in_order;
}

static inline void seen_text_is(struct seen *seen, const char *text) {
    char copy[sizeof(seen->text)];
    pthread_mutex_lock(&seen->mutex);
    memcpy(copy, seen->text, sizeof(copy));
    pthread_mutex_unlock(&seen->mutex);
    assert_string_equal(copy, text);
}

// Whether *count reaches `wanted` within the time.
static inline bool seen_wait(struct seen *seen, atomic_uint *count, uint32_t wanted,
                             uint32_t wait_ms) {
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += wait_ms / 1000 + 1;
    int rc = 0;
    pthread_mutex_lock(&seen->mutex);
    while (*count < wanted && rc == 0) {
        rc = pthread_cond_timedwait(&seen->changed, &seen->mutex, &until);
    }
    bool reached = *count >= wanted;
    pthread_mutex_unlock(&seen->mutex);
    return reached;
}

struct world {
    struct rpc *server_rpc;
    struct rpc *client_rpc;
    struct rpc_channel *channel;
    uint16_t port;
    char address[128];
    struct seen server; // of all calls
    atomic_size_t big_bytes;
};

// For handlers: cmocka's assertions belong to the test's own thread.
static inline void must(bool holds) {
    if (!holds) abort();
}

static inline uint64_t now_ms(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

// -- the server's handlers -----------------------------------------------------------------------

struct server_call {
    struct world *world;
    uint32_t next, count; // of a stream
};

static inline void *server_begin(struct rpc_call *call, void *service_ctx) {
    struct server_call *ctx = calloc(1, sizeof(*ctx));
    must(ctx != NULL);
    const char *echo = rpc_call_metadata(call, "x-echo");
    if (echo != NULL) {
        const struct rpc_metadata initial = {.key = "x-initial", .value = echo},
                                  trailer = {.key = "x-trailer", .value = echo};
        must(rpc_call_add_metadata(call, &initial, 1) == STATUS_OK);
        must(rpc_call_add_trailers(call, &trailer, 1) == STATUS_OK);
    }
    ctx->world = service_ctx;
    seen_add(&ctx->world->server, &ctx->world->server.begun_count);
    return ctx;
}

static inline void server_closed(struct rpc_call *call, void *ctx, enum rpc_code code,
                                 const char *message) {
    (void)call;
    struct server_call *server_call = ctx;
    seen_close(&server_call->world->server, code, message);
    free(server_call);
}

static inline void server_half_close(struct rpc_call *call, void *ctx) {
    (void)call;
    struct server_call *server_call = ctx;
    seen_add(&server_call->world->server, &server_call->world->server.half_close_count);
}

// Puts raw bytes behind a tag into any message: an unknown field that the peer knows.
static inline ProtobufCMessageUnknownField raw_field(uint32_t tag, const char *bytes, size_t size) {
    return (ProtobufCMessageUnknownField){.tag = tag,
                                          .wire_type = PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED,
                                          .len = size,
                                          .data = (uint8_t *)(uintptr_t)bytes};
}

static inline void tokenize_message(struct rpc_call *call, void *ctx,
                                    const ProtobufCMessage *message) {
    const char *text = ((const TokenizeRequest *)message)->text;
    struct world *world = ((struct server_call *)ctx)->world;
    seen_add(&world->server, &world->server.message_count);
    if (strcmp(text, "hang") == 0) return;
    if (strcmp(text, "refuse") == 0) {
        rpc_call_end(call, RPC_FAILED_PRECONDITION, "not today: 100 % r\xc3\xa9serv\xc3\xa9");
        return;
    }
    TokenizeResponse response = STAGECOACH__V1__TOKENIZE_RESPONSE__INIT;
    uint32_t id = (uint32_t)strlen(text);
    response.n_token_ids = 1;
    response.token_ids = &id;
    ProtobufCMessageUnknownField raw;
    char *big = NULL;
    if (strcmp(text, "bad") == 0) {
        raw = raw_field(1, "\x05\x01", 2);
    } else if (strcmp(text, "big") == 0) {
        // A length of three bytes, so at most 2 MiB.
        big = calloc(1, world->big_bytes + 3);
        must(big != NULL);
        big[0] = (char)(world->big_bytes | 0x80);
        big[1] = (char)(world->big_bytes >> 7 | 0x80);
        big[2] = (char)(world->big_bytes >> 14);
        raw = raw_field(15, big, world->big_bytes + 3);
    }
    if (strcmp(text, "bad") == 0 || big != NULL) {
        response.base.n_unknown_fields = 1;
        response.base.unknown_fields = &raw;
    }
    must(rpc_call_send(call, &response.base));
    rpc_call_end(call, RPC_OK, "");
    free(big);
}

static inline void detokenize_message(struct rpc_call *call, void *ctx,
                                      const ProtobufCMessage *message) {
    (void)ctx;
    (void)message;
    char host[64];
    rpc_call_peer_host(call, host, sizeof(host));
    Stagecoach__V1__DetokenizeResponse response = STAGECOACH__V1__DETOKENIZE_RESPONSE__INIT;
    response.text = host;
    must(rpc_call_send(call, &response.base));
    rpc_call_end(call, RPC_OK, "");
}

static inline void generate_more(struct rpc_call *call, struct server_call *ctx) {
    while (ctx->next < ctx->count) {
        GenerateResponse response = STAGECOACH__V1__GENERATE_RESPONSE__INIT;
        response.n_token_ids = 1;
        response.token_ids = &ctx->next;
        response.text = (char *)(uintptr_t) "some text that a token might stand for";
        if (!rpc_call_send(call, &response.base)) {
            seen_add(&ctx->world->server, &ctx->world->server.refused_send_count);
            return;
        }
        ctx->next++;
    }
    rpc_call_end(call, RPC_OK, "");
}

static inline void generate_message(struct rpc_call *call, void *ctx,
                                    const ProtobufCMessage *message) {
    const GenerateRequest *request = (const GenerateRequest *)message;
    struct server_call *server_call = ctx;
    seen_add(&server_call->world->server, &server_call->world->server.message_count);
    bool hangs = request->prompt_case == STAGECOACH__V1__GENERATE_REQUEST__PROMPT_TEXT &&
                 strcmp(request->text, "hang") == 0;
    if (hangs) return;
    server_call->count = request->stop == NULL ? 1 : request->stop->max_tokens;
    generate_more(call, server_call);
}

static inline void generate_writable(struct rpc_call *call, void *ctx) {
    struct server_call *server_call = ctx;
    seen_add(&server_call->world->server, &server_call->world->server.writable_count);
    generate_more(call, server_call);
}

static inline void join_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)ctx;
    const StageMessage *in = (const StageMessage *)message;
    if (in->kind_case != STAGECOACH__V1__STAGE_MESSAGE__KIND_HEARTBEAT) return;
    CoordinatorMessage out = STAGECOACH__V1__COORDINATOR_MESSAGE__INIT;
    out.kind_case = STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_HEARTBEAT;
    out.heartbeat = in->heartbeat;
    if (!rpc_call_send(call, &out.base)) rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "slow reader");
}

static inline void join_half_close(struct rpc_call *call, void *ctx) {
    server_half_close(call, ctx);
    rpc_call_end(call, RPC_OK, "");
}

static inline const struct rpc_method *world_inference(void) {
    static const struct rpc_method methods[] = {
        {"Tokenize", {server_begin, tokenize_message, server_half_close, server_closed, NULL}},
        {"Detokenize", {server_begin, detokenize_message, NULL, server_closed, NULL}},
        {"Generate",
         {server_begin, generate_message, server_half_close, server_closed, generate_writable}},
    };
    return methods;
}

static inline const struct rpc_method *world_control(void) {
    static const struct rpc_method methods[] = {
        {"Join", {server_begin, join_message, join_half_close, server_closed, NULL}},
    };
    return methods;
}

// -- life ----------------------------------------------------------------------------------------

static inline void world_serve(struct world *world, const struct rpc_config *config,
                               const char *address) {
    seen_init(&world->server);
    struct error error = {0};
    assert_int_equal(rpc_open(config, &world->server_rpc), STATUS_OK);
    assert_int_equal(rpc_add_service(world->server_rpc, INFERENCE, world_inference(), 3, world,
                                     RPC_ROLE_CLIENT, &error),
                     STATUS_OK);
    assert_int_equal(rpc_add_service(world->server_rpc, CONTROL, world_control(), 1, world,
                                     RPC_ROLE_STAGE, &error),
                     STATUS_OK);
    enum status status = rpc_serve(world->server_rpc, address, &world->port, &error);
    if (status != STATUS_OK) print_error("%s\n", error.text);
    assert_int_equal(status, STATUS_OK);
}

static inline void world_dial(struct world *world, const struct rpc_config *config,
                              const char *target) {
    (void)snprintf(world->address, sizeof(world->address), "%s", target);
    assert_int_equal(rpc_open(config, &world->client_rpc), STATUS_OK);
    assert_int_equal(rpc_channel_open(world->client_rpc, target, &world->channel), STATUS_OK);
}

static inline void world_open_with(struct world *world, const struct rpc_config *server_config,
                                   const struct rpc_config *client_config) {
    *world = (struct world){0};
    world_serve(world, server_config, "127.0.0.1:0");
    assert_int_not_equal(world->port, 0);
    char target[64];
    (void)snprintf(target, sizeof(target), "127.0.0.1:%u", world->port);
    world_dial(world, client_config, target);
}

static inline void world_open(struct world *world) {
    const struct rpc_config config = {0};
    world_open_with(world, &config, &config);
}

static inline void world_close(struct world *world) {
    rpc_channel_close(world->channel);
    rpc_close(world->client_rpc, 0);
    rpc_close(world->server_rpc, 0);
    assert_int_equal(world->server.begun_count, world->server.closed_count);
    seen_fini(&world->server);
}

// -- the client ----------------------------------------------------------------------------------

static inline enum rpc_code tokenize(struct world *world, const char *text, uint32_t deadline_ms,
                                     uint32_t *id_out, struct error *error) {
    TokenizeRequest request = STAGECOACH__V1__TOKENIZE_REQUEST__INIT;
    request.text = (char *)(uintptr_t)text;
    const struct rpc_call_options options = {.deadline_ms = deadline_ms};
    ProtobufCMessage *response = NULL;
    enum rpc_code code = rpc_call_wait(world->channel, INFERENCE, "Tokenize", &request.base,
                                       &options, &response, error);
    if (code != RPC_OK) return code;
    const TokenizeResponse *answer = (TokenizeResponse *)response;
    if (id_out != NULL) *id_out = answer->n_token_ids == 1 ? answer->token_ids[0] : UINT32_MAX;
    protobuf_c_message_free_unpacked(response, NULL);
    return RPC_OK;
}

static inline void client_generate_message(struct rpc_call *call, void *ctx,
                                           const ProtobufCMessage *message) {
    (void)call;
    struct seen *seen = ctx;
    const GenerateResponse *response = (const GenerateResponse *)message;
    pthread_mutex_lock(&seen->mutex);
    if (response->n_token_ids != 1 || response->token_ids[0] != seen->message_count) {
        seen->out_of_order = true;
    }
    pthread_mutex_unlock(&seen->mutex);
    seen_add(seen, &seen->message_count);
}

static inline void client_join_message(struct rpc_call *call, void *ctx,
                                       const ProtobufCMessage *message) {
    (void)call;
    struct seen *seen = ctx;
    const CoordinatorMessage *in = (const CoordinatorMessage *)message;
    pthread_mutex_lock(&seen->mutex);
    if (in->kind_case != STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_HEARTBEAT ||
        in->heartbeat->epoch != seen->last_number + 1) {
        seen->out_of_order = true;
    } else {
        seen->last_number++;
    }
    pthread_mutex_unlock(&seen->mutex);
    seen_add(seen, &seen->message_count);
}

static inline void client_half_close(struct rpc_call *call, void *ctx) {
    (void)call;
    struct seen *seen = ctx;
    seen_add(seen, &seen->half_close_count);
}

static inline void client_closed(struct rpc_call *call, void *ctx, enum rpc_code code,
                                 const char *message) {
    (void)call;
    seen_close(ctx, code, message);
}

static inline void client_writable(struct rpc_call *call, void *ctx) {
    (void)call;
    struct seen *seen = ctx;
    seen_add(seen, &seen->writable_count);
}

static inline struct rpc_call *start_generate(struct world *world, struct seen *seen,
                                              const char *text, uint32_t count,
                                              uint32_t deadline_ms) {
    const struct rpc_handler handler = {.message = client_generate_message,
                                        .half_close = client_half_close,
                                        .closed = client_closed};
    const struct rpc_call_options options = {.deadline_ms = deadline_ms};
    struct rpc_call *call;
    assert_int_equal(
        rpc_call_begin(world->channel, INFERENCE, "Generate", &handler, seen, &options, &call),
        STATUS_OK);
    Stagecoach__V1__Stop stop = STAGECOACH__V1__STOP__INIT;
    stop.max_tokens = count;
    GenerateRequest request = STAGECOACH__V1__GENERATE_REQUEST__INIT;
    request.prompt_case = STAGECOACH__V1__GENERATE_REQUEST__PROMPT_TEXT;
    request.text = (char *)(uintptr_t)text;
    request.stop = &stop;
    bool sent = rpc_call_send(call, &request.base);
    (void)sent; // the outcome says why not
    return call;
}

static inline struct rpc_call *start_join(struct world *world, struct seen *seen) {
    const struct rpc_handler handler = {.message = client_join_message,
                                        .half_close = client_half_close,
                                        .closed = client_closed,
                                        .writable = client_writable};
    struct rpc_call *call;
    assert_int_equal(rpc_call_begin(world->channel, CONTROL, "Join", &handler, seen, NULL, &call),
                     STATUS_OK);
    return call;
}

static inline bool send_heartbeat(struct rpc_call *call, uint64_t number) {
    Stagecoach__V1__Heartbeat heartbeat = STAGECOACH__V1__HEARTBEAT__INIT;
    heartbeat.epoch = number;
    StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_HEARTBEAT;
    message.heartbeat = &heartbeat;
    return rpc_call_send(call, &message.base);
}
