// loop_internal: what the loop*.c files share. The loop's thread only.
//
//   loop.c  requests, frames, one tick        loop_status.c  who asks how it is
#pragma once

#include "coordinator/loop.h"
#include "coordinator/meters.h"
#include "coordinator/metrics_http.h"
#include "coordinator/throughput.h"

struct loop {
    struct loop_config config;
    struct flow *flow;
    struct meters *meters;
    struct request_list requests; // all that the loop owns
    uint32_t request_count;       // of these, not ended
    bool is_draining;
    struct throughput throughput; // of answers
    uint32_t refused_count;       // requests refused and not logged yet
    uint64_t check_next_ms;
    uint64_t prompt_token_count, completion_token_count;
    uint64_t request_done_count, request_failed_count;
};

// -- loop_status.c
// ---------------------------------------------------------------------------------

// What the pipeline is and does. Free the stages whatever it returns. STATUS_NO_MEMORY.
MUST_USE enum status loop_describe(struct loop *loop, Stagecoach__V1__Pipeline *out);
void loop_free_stages(Stagecoach__V1__Pipeline *pipeline);
// Answers, and gives up its reference to the call; the query is freed.
void loop_on_pipeline_asked(struct loop *loop, struct rpc_call *call);
void loop_on_steps_asked(struct loop *loop, struct steps_query *query);
void loop_on_metrics_asked(struct loop *loop, struct metrics_http *http);
