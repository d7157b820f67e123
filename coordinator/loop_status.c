#include <stdlib.h>

#include "coordinator/loop_internal.h"

static void fill_counts(struct loop *loop, Stagecoach__V1__Pipeline *out) {
    out->version = (char *)STAGECOACH_VERSION;
    out->metrics_address = (char *)loop->config.metrics_address;
    out->model_name = (char *)loop->config.model_name;
    out->prompt_token_count = loop->prompt_token_count;
    out->completion_token_count = loop->completion_token_count;
    out->request_done_count = loop->request_done_count;
    out->request_failed_count = loop->request_failed_count;
}

enum status loop_describe(struct loop *loop, Stagecoach__V1__Pipeline *out) {
    stagecoach__v1__pipeline__init(out);
    enum status status = flow_describe(loop->flow, out);
    if (status != STATUS_OK) return status;
    fill_counts(loop, out);
    out->refused_count = io_refused_count(loop->config.io);
    meters_describe(loop->meters, clock_now_ns(&loop->config.clock), out);
    if (loop->is_draining) out->state = STAGECOACH__V1__PIPELINE_STATE__PIPELINE_STATE_DRAINING;
    return STATUS_OK;
}

void loop_free_stages(Stagecoach__V1__Pipeline *pipeline) {
    for (size_t i = 0; i < pipeline->n_stages; i++)
        free(pipeline->stages[i]);
    free(pipeline->stages);
}

void loop_on_pipeline_asked(struct loop *loop, struct rpc_call *call) {
    Stagecoach__V1__Pipeline out;
    if (loop_describe(loop, &out) == STATUS_OK) {
        if (rpc_call_send(call, &out.base)) rpc_call_end(call, RPC_OK, "");
    } else {
        rpc_call_end(call, RPC_RESOURCE_EXHAUSTED, "no memory");
    }
    loop_free_stages(&out);
    rpc_call_release(call);
}

void loop_on_metrics_asked(struct loop *loop, struct metrics_http *http) {
    Stagecoach__V1__Pipeline out;
    if (loop_describe(loop, &out) == STATUS_OK) metrics_http_answer(http, &out);
    loop_free_stages(&out);
}

void loop_on_steps_asked(struct loop *loop, struct steps_query *query) {
    uint64_t now_ns = clock_now_ns(&loop->config.clock);
    const Stagecoach__V1__Steps *steps = meters_steps(loop->meters, now_ns, query->cursor);
    if (rpc_call_send(query->call, &steps->base)) rpc_call_end(query->call, RPC_OK, "");
    rpc_call_release(query->call);
    free(query);
}
