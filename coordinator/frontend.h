// frontend: the services Inference, Admin and Control on the rpc thread. Answers what needs no
// decision (Tokenize, GetModel); turns the rest into events for the loop.
#pragma once

#include <stdatomic.h>

#include "base/clock.h"
#include "coordinator/request.h"
#include "transport/inbox.h"

// What the frontend tells the loop.
enum event_kind {
    EVENT_REQUEST,          // subject: struct request, now the loop's
    EVENT_REQUEST_WRITABLE, // subject: struct request
    EVENT_REQUEST_CLOSED,   // subject: struct request; the last event about it
    EVENT_PIPELINE_ASKED,   // subject: struct rpc_call of Admin/GetPipeline, with a reference
    EVENT_STEPS_ASKED,      // subject: struct steps_query, now the loop's
    EVENT_VLLM_ASKED,       // subject: struct vllm_query, now the loop's
    EVENT_METRICS_ASKED,    // subject: struct metrics_http
    EVENT_STAGE_OPENED,     // subject: struct member, now the loop's
    EVENT_STAGE_MESSAGE,    // subject: struct member; message: StageMessage
    EVENT_STAGE_DONE,       // subject: struct member, which will say no more
    EVENT_STAGE_CLOSED,     // subject: struct member; the last event about it
};

// A call of Admin/GetSteps.
struct steps_query {
    struct rpc_call *call; // one reference
    uint64_t cursor;
};

struct frontend {
    struct request_rules rules;
    struct inbox *inbox; // borrowed
    struct clock clock;
    Stagecoach__V1__Model *model; // the answer of GetModel; borrowed
    atomic_bool is_draining;      // new requests are answered UNAVAILABLE
    atomic_uint retry_ms;         // not 0: new requests are refused, see struct loop_config
};

// Adds the services to `rpc`. `frontend` is borrowed until rpc_close.
MUST_USE enum status frontend_serve(struct frontend *frontend, struct rpc *rpc,
                                    struct error *error);
