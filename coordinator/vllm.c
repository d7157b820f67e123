#include "coordinator/vllm.h"

#include <stdlib.h>
#include <time.h>

#include "coordinator/access_log.h"
#include "coordinator/generate.h"
#include "coordinator/vllm_query.h"
#include "coordinator/vllm_reply.h"
#include "coordinator/vllm_request.h"

static double wall_seconds(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void *begin_plain(struct rpc_call *call, void *service_ctx) {
    (void)call;
    return service_ctx;
}

static void closed_call(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message) {
    (void)ctx, (void)code, (void)message;
    access_log_write_call(call);
}

// For what gateways ask every few seconds: no line of the log.
static void closed_poll(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message) {
    (void)call, (void)ctx, (void)code, (void)message;
}

// -- Generate -------------------------------------------------------------------------------------

static void *begin_generate(struct rpc_call *call, void *service_ctx) {
    struct vllm *vllm = service_ctx;
    vllm->generate_seconds = wall_seconds();
    return generate_begin(call, vllm->frontend);
}

static enum status open_request(const struct frontend *frontend, const ProtobufCMessage *message,
                                struct request **request_out, struct error *error) {
    enum status status =
        vllm_request_open(&frontend->rules, (const Vllm__Grpc__Engine__GenerateRequest *)message,
                          clock_now_ns(&frontend->clock), request_out, error);
    if (status == STATUS_OK) (*request_out)->send = vllm_reply_send;
    return status;
}

static void generate_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    generate_take(call, ctx, message, open_request);
}

// -- what the loop answers ------------------------------------------------------------------------

// NULL: the call was ended.
static struct vllm_query *make_query(const struct vllm *vllm, struct rpc_call *call,
                                     enum vllm_question question) {
    struct vllm_query *query = calloc(1, sizeof(*query));
    if (query == NULL) {
        rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "no memory");
        return NULL;
    }
    rpc_call_hold(call);
    uint64_t now_ns = clock_now_ns(&vllm->frontend->clock);
    *query = (struct vllm_query){
        .question = question,
        .call = call,
        .running_count_max = vllm->running_count_max,
        .uptime_seconds = (double)(now_ns - vllm->opened_ns) / 1e9,
        .generate_seconds = vllm->generate_seconds,
    };
    return query;
}

static void offer_query(const struct vllm *vllm, struct vllm_query *query) {
    if (inbox_offer(vllm->frontend->inbox, EVENT_VLLM_ASKED, query)) return;
    vllm_query_fail(query, "the coordinator has too much to do");
}

static void ask(struct rpc_call *call, const struct vllm *vllm, enum vllm_question question) {
    struct vllm_query *query = make_query(vllm, call, question);
    if (query != NULL) offer_query(vllm, query);
}

static void health_check_message(struct rpc_call *call, void *ctx,
                                 const ProtobufCMessage *message) {
    (void)message;
    ask(call, ctx, VLLM_HEALTH);
}

static void get_server_info_message(struct rpc_call *call, void *ctx,
                                    const ProtobufCMessage *message) {
    (void)message;
    ask(call, ctx, VLLM_SERVER);
}

static void get_loads_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    const Vllm__Grpc__Engine__GetLoadsRequest *m =
        (const Vllm__Grpc__Engine__GetLoadsRequest *)message;
    if (m->dp_rank_presence_case != 0 && m->dp_rank != 0) {
        struct error error;
        (void)error_set_field(&error, STATUS_INVALID, "dp_rank is %d, there is rank 0 alone",
                              (int)m->dp_rank);
        rpc_call_fail(call, STATUS_INVALID, &error);
        return;
    }
    ask(call, ctx, VLLM_LOADS);
}

static void abort_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    const Vllm__Grpc__Engine__AbortRequest *m = (const Vllm__Grpc__Engine__AbortRequest *)message;
    if (m->n_request_ids > VLLM_ABORT_ID_COUNT_MAX) {
        struct error error;
        (void)error_set_field(&error, STATUS_INVALID,
                              "request_ids has %zu entries, the limit is %d", m->n_request_ids,
                              VLLM_ABORT_ID_COUNT_MAX);
        rpc_call_fail(call, STATUS_INVALID, &error);
        return;
    }
    struct vllm_query *query = make_query(ctx, call, VLLM_ABORT);
    if (query == NULL) return;
    if (vllm_query_set_ids(query, m->request_ids, m->n_request_ids) == STATUS_OK)
        offer_query(ctx, query);
    else
        vllm_query_fail(query, "no memory");
}

// -- what needs no loop ---------------------------------------------------------------------------

static void get_model_info_message(struct rpc_call *call, void *ctx,
                                   const ProtobufCMessage *message) {
    (void)message;
    const struct vllm *vllm = ctx;
    if (rpc_call_send(call, &vllm->model.message.base)) rpc_call_end(call, RPC_OK, "");
}

static void embed_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)ctx, (void)message;
    rpc_call_end(call, RPC_UNIMPLEMENTED, "this service generates tokens, it has no embeddings");
}

static void subscribe_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)ctx, (void)message;
    rpc_call_end(call, RPC_UNIMPLEMENTED, "what the prefix cache holds is not published");
}

struct tokenizer_call {
    const struct vllm_tokenizer *tokenizer;
    size_t sent_bytes;
};

static void *begin_tokenizer(struct rpc_call *call, void *service_ctx) {
    const struct vllm *vllm = service_ctx;
    struct tokenizer_call *ctx = calloc(1, sizeof(*ctx));
    if (ctx == NULL)
        rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "no memory");
    else
        ctx->tokenizer = &vllm->tokenizer;
    return ctx;
}

static void send_tokenizer(struct rpc_call *call, void *ctx) {
    struct tokenizer_call *t = ctx;
    if (t != NULL) vllm_tokenizer_send(t->tokenizer, call, &t->sent_bytes);
}

static void get_tokenizer_message(struct rpc_call *call, void *ctx,
                                  const ProtobufCMessage *message) {
    (void)message;
    send_tokenizer(call, ctx);
}

static void closed_tokenizer(struct rpc_call *call, void *ctx, enum rpc_code code,
                             const char *message) {
    (void)code, (void)message;
    access_log_write_call(call);
    free(ctx);
}

// -- the service ----------------------------------------------------------------------------------

static const struct rpc_method methods[] = {
    {"Generate",
     {.begin = begin_generate,
      .message = generate_message,
      .closed = generate_closed,
      .writable = generate_writable}},
    {"Embed", {.begin = begin_plain, .message = embed_message, .closed = closed_call}},
    {"HealthCheck", {.begin = begin_plain, .message = health_check_message, .closed = closed_poll}},
    {"Abort", {.begin = begin_plain, .message = abort_message, .closed = closed_call}},
    {"GetModelInfo",
     {.begin = begin_plain, .message = get_model_info_message, .closed = closed_call}},
    {"GetServerInfo",
     {.begin = begin_plain, .message = get_server_info_message, .closed = closed_poll}},
    {"GetLoads", {.begin = begin_plain, .message = get_loads_message, .closed = closed_poll}},
    {"GetTokenizer",
     {.begin = begin_tokenizer,
      .message = get_tokenizer_message,
      .closed = closed_tokenizer,
      .writable = send_tokenizer}},
    {"SubscribeKvEvents",
     {.begin = begin_plain, .message = subscribe_message, .closed = closed_call}},
};

void vllm_open(struct vllm *vllm, const struct vllm_config *config) {
    *vllm = (struct vllm){
        .frontend = config->frontend,
        .running_count_max = config->running_count_max,
        .opened_ns = clock_now_ns(&config->frontend->clock),
    };
    vllm_model_init(&vllm->model, &config->model);
    if (config->model.has_tokenizer)
        vllm_tokenizer_init(&vllm->tokenizer, config->model.path);
    else
        (void)error_set(&vllm->tokenizer.explanation, STATUS_NOT_FOUND,
                        "this model has no tokenizer.json");
}

void vllm_close(struct vllm *vllm) {
    vllm_tokenizer_fini(&vllm->tokenizer);
}

enum status vllm_serve(struct vllm *vllm, struct rpc *rpc, struct error *error) {
    return rpc_add_service(rpc, &vllm__grpc__engine__vllm_engine__descriptor, methods,
                           sizeof(methods) / sizeof(methods[0]), vllm, RPC_ROLE_CLIENT, error);
}
