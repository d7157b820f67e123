#include "coordinator/frontend.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/cluster.h"
#include "coordinator/generate.h"
#include "coordinator/reply.h"
#include "stagecoach/v1/admin.pb-c.h"
#include "stagecoach/v1/control.pb-c.h"

// False: the call was ended.
static bool has_tokenizer(const struct frontend *frontend, struct rpc_call *call,
                          const char *field) {
    struct error error;
    enum status status = request_needs_tokenizer(&frontend->rules, field, &error);
    if (status != STATUS_OK) rpc_call_fail(call, status, &error);
    return status == STATUS_OK;
}

// For methods that keep nothing between begin and closed but what the service has.
static void *begin_plain(struct rpc_call *call, void *service_ctx) {
    (void)call;
    return service_ctx;
}

static void closed_plain(struct rpc_call *call, void *ctx, enum rpc_code code,
                         const char *message) {
    (void)call, (void)ctx, (void)code, (void)message;
}

static void closed_inference(struct rpc_call *call, void *ctx, enum rpc_code code,
                             const char *message) {
    (void)ctx, (void)code, (void)message;
    access_log_write_call(call);
}

// -- Inference/Generate ---------------------------------------------------------------------------

static void *inference_generate_begin(struct rpc_call *call, void *service_ctx) {
    return generate_begin(call, service_ctx);
}

static enum status open_request(const struct frontend *frontend, const ProtobufCMessage *message,
                                struct request **request_out, struct error *error) {
    enum status status =
        request_open(&frontend->rules, (const Stagecoach__V1__GenerateRequest *)message,
                     clock_now_ns(&frontend->clock), request_out, error);
    if (status == STATUS_OK) (*request_out)->send = reply_send_one;
    return status;
}

static void inference_generate_message(struct rpc_call *call, void *ctx,
                                       const ProtobufCMessage *message) {
    generate_take(call, ctx, message, open_request);
}

// -- Inference, the unary methods -----------------------------------------------------------------

static void tokenize_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    const struct frontend *frontend = ctx;
    const Stagecoach__V1__TokenizeRequest *m = (const Stagecoach__V1__TokenizeRequest *)message;
    if (!has_tokenizer(frontend, call, "text")) return;
    struct error error;
    size_t size_bytes = strlen(m->text);
    if (size_bytes > REQUEST_TEXT_BYTES_MAX) {
        rpc_call_fail(call,
                      error_set_field(&error, STATUS_INVALID, "text has %zu bytes, the limit is %d",
                                      size_bytes, REQUEST_TEXT_BYTES_MAX),
                      &error);
        return;
    }
    size_t capacity_count = size_bytes + 64;
    uint32_t *ids = malloc(capacity_count * sizeof(*ids));
    if (ids == NULL) {
        rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "no memory");
        return;
    }
    uint32_t flags = TOKENIZER_PARSE_SPECIAL | (m->no_special_tokens ? 0 : TOKENIZER_ADD_SPECIAL);
    Stagecoach__V1__TokenizeResponse response = STAGECOACH__V1__TOKENIZE_RESPONSE__INIT;
    enum status status = tokenizer_encode(frontend->rules.tokenizer, m->text, size_bytes, flags,
                                          ids, capacity_count, &response.n_token_ids, &error);
    if (status == STATUS_OK) {
        response.token_ids = ids;
        if (rpc_call_send(call, &response.base)) rpc_call_end(call, RPC_OK, "");
    } else {
        rpc_call_fail(call, status, &error);
    }
    free(ids);
}

static void detokenize_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    const struct frontend *frontend = ctx;
    const Stagecoach__V1__DetokenizeRequest *m = (const Stagecoach__V1__DetokenizeRequest *)message;
    if (!has_tokenizer(frontend, call, "token_ids")) return;
    struct error error;
    if (m->n_token_ids > REQUEST_DETOKENIZE_COUNT_MAX) {
        rpc_call_fail(call,
                      error_set_field(&error, STATUS_INVALID,
                                      "token_ids has %zu entries, the limit is %d", m->n_token_ids,
                                      REQUEST_DETOKENIZE_COUNT_MAX),
                      &error);
        return;
    }
    struct buffer text;
    buffer_init(&text, 64u << 20);
    enum status status = tokenizer_decode(frontend->rules.tokenizer, m->token_ids, m->n_token_ids,
                                          !m->keep_special_tokens, &text, &error);
    if (status == STATUS_OK && detokenizer_replace_zeros(&text, 0) != STATUS_OK)
        status = error_set(&error, STATUS_EXHAUSTED, "no room for the text");
    if (status == STATUS_OK) {
        Stagecoach__V1__DetokenizeResponse response = STAGECOACH__V1__DETOKENIZE_RESPONSE__INIT;
        if (text.data != NULL) response.text = text.data;
        if (rpc_call_send(call, &response.base)) rpc_call_end(call, RPC_OK, "");
    } else {
        rpc_call_fail(call, status, &error);
    }
    buffer_fini(&text);
}

static void get_model_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)message;
    const struct frontend *frontend = ctx;
    if (rpc_call_send(call, &frontend->model->base)) rpc_call_end(call, RPC_OK, "");
}

// -- Admin ----------------------------------------------------------------------------------------

static void get_pipeline_message(struct rpc_call *call, void *ctx,
                                 const ProtobufCMessage *message) {
    (void)message;
    struct frontend *frontend = ctx;
    rpc_call_hold(call);
    if (inbox_offer(frontend->inbox, EVENT_PIPELINE_ASKED, call)) return;
    rpc_call_release(call);
    rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "the coordinator has too much to do");
}

static void get_steps_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    struct frontend *frontend = ctx;
    struct steps_query *query = malloc(sizeof(*query));
    if (query == NULL) {
        rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "no memory");
        return;
    }
    *query = (struct steps_query){
        .call = call, .cursor = ((const Stagecoach__V1__GetStepsRequest *)message)->cursor};
    rpc_call_hold(call);
    if (inbox_offer(frontend->inbox, EVENT_STEPS_ASKED, query)) return;
    free(query);
    rpc_call_release(call);
    rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "the coordinator has too much to do");
}

// -- Control/Join ---------------------------------------------------------------------------------

struct join {
    struct inbox *inbox;
    struct member *member; // the loop's
};

static void *join_begin(struct rpc_call *call, void *service_ctx) {
    struct frontend *frontend = service_ctx;
    struct join *join = calloc(1, sizeof(*join));
    struct member *member = calloc(1, sizeof(*member));
    if (join == NULL || member == NULL) {
        free(join);
        free(member);
        rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "no memory");
        return NULL;
    }
    rpc_call_hold(call);
    member->stream = call;
    rpc_call_peer_host(call, member->peer_host, sizeof(member->peer_host));
    *join = (struct join){.inbox = frontend->inbox, .member = member};
    inbox_put(join->inbox, EVENT_STAGE_OPENED, member, NULL);
    return join;
}

static void join_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)call;
    struct join *join = ctx;
    if (join != NULL) inbox_put(join->inbox, EVENT_STAGE_MESSAGE, join->member, message);
}

static void join_half_close(struct rpc_call *call, void *ctx) {
    (void)call;
    struct join *join = ctx;
    if (join != NULL) inbox_put(join->inbox, EVENT_STAGE_DONE, join->member, NULL);
}

static void join_closed(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message) {
    (void)call, (void)code, (void)message;
    struct join *join = ctx;
    if (join == NULL) return;
    inbox_put(join->inbox, EVENT_STAGE_CLOSED, join->member, NULL);
    free(join);
}

// -- tables ---------------------------------------------------------------------------------------

static const struct rpc_method inference_methods[] = {
    {"Generate",
     {.begin = inference_generate_begin,
      .message = inference_generate_message,
      .closed = generate_closed,
      .writable = generate_writable}},
    {"Tokenize", {.begin = begin_plain, .message = tokenize_message, .closed = closed_inference}},
    {"Detokenize",
     {.begin = begin_plain, .message = detokenize_message, .closed = closed_inference}},
    {"GetModel", {.begin = begin_plain, .message = get_model_message, .closed = closed_inference}},
};

static const struct rpc_method admin_methods[] = {
    {"GetPipeline",
     {.begin = begin_plain, .message = get_pipeline_message, .closed = closed_plain}},
    {"GetSteps", {.begin = begin_plain, .message = get_steps_message, .closed = closed_plain}},
};

static const struct rpc_method control_methods[] = {
    {"Join",
     {.begin = join_begin,
      .message = join_message,
      .half_close = join_half_close,
      .closed = join_closed}},
};

enum status frontend_serve(struct frontend *frontend, struct rpc *rpc, struct error *error) {
    enum status status = rpc_add_service(
        rpc, &stagecoach__v1__inference__descriptor, inference_methods,
        sizeof(inference_methods) / sizeof(inference_methods[0]), frontend, RPC_ROLE_CLIENT, error);
    if (status != STATUS_OK) return status;
    status = rpc_add_service(rpc, &stagecoach__v1__admin__descriptor, admin_methods,
                             sizeof(admin_methods) / sizeof(admin_methods[0]), frontend,
                             RPC_ROLE_OPERATOR, error);
    if (status != STATUS_OK) return status;
    rpc_limit_messages(rpc, &stagecoach__v1__inference__descriptor, "GetModel",
                       RPC_QUERY_BYTES_MAX);
    rpc_limit_messages(rpc, &stagecoach__v1__admin__descriptor, NULL, RPC_QUERY_BYTES_MAX);
    return rpc_add_service(rpc, &stagecoach__v1__control__descriptor, control_methods,
                           sizeof(control_methods) / sizeof(control_methods[0]), frontend,
                           RPC_ROLE_STAGE, error);
}
