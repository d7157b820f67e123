// retry: whether a call that failed is made again, and after how long. Knows no calls and does not
// wait.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "transport/rpc.h"

struct retry {
    uint32_t limit_ms;      // for how long after the first failure attempts go on; 0: not at all
    uint64_t seed;          // of the jitter
    uint64_t draw_count;    // of the jitter
    uint32_t failure_count; // since the last progress
    uint64_t failed_ms;     // when the first of these was
    bool is_noted;          // is_notable was given since the last progress
};

// How an attempt failed.
struct retry_failure {
    enum rpc_code code;
    uint32_t said_ms; // rpc_call_retry_ms
};

struct retry_plan {
    uint32_t wait_ms; // until the next attempt
    uint32_t left_ms; // until the last one
    bool is_notable;  // once in a row of failures, when they are more than a hiccup: tell the user
};

// Clients that failed together must not come back together: give each a seed of its own.
void retry_init(struct retry *retry, uint32_t limit_ms, uint64_t seed);
// Such a seed.
uint64_t retry_draw(void);

// Something came of the call: what fails now is a new row of failures.
void retry_progress(struct retry *retry);

// An attempt failed at now_ms. False: it is not worth another one, for the failure does not pass by
// itself (only UNAVAILABLE does, and RESOURCE_EXHAUSTED when the server said when to come back),
// the server does not want it (RPC_RETRY_NEVER), or the limit is reached. The wait is what the
// server said and up to an eighth more; else CLIENT_RETRY_FIRST_MS, doubled with each failure up to
// CLIENT_RETRY_LAST_MS, of which a random part of up to a half is left out.
MUST_USE bool retry_plan(struct retry *retry, const struct retry_failure *failure, uint64_t now_ms,
                         struct retry_plan *plan_out);
