// loop: the thread that makes all decisions of a coordinator. loop_tick() is the story of the
// service, read from top to bottom.
#pragma once

#include "coordinator/flow.h"
#include "coordinator/frontend.h"
#include "transport/readiness.h"

struct loop;

struct loop_config {
    struct clock clock;
    struct wake *wake;   // borrowed; signalled by io, inbox and whoever calls loop_drain
    struct inbox *inbox; // borrowed
    struct io *io;       // borrowed; opened with `wake`
    struct flow_config flow;
    uint32_t waiting_count_max; // sequences; when as many wait, requests are refused
    uint32_t absent_ms;         // a request waits this long for a pipeline, then fails UNAVAILABLE
    uint32_t unread_ms; // an answer that is complete is dropped when nothing of it is read so long
    const char *model_name;      // borrowed
    const char *metrics_address; // borrowed; "": metrics are off
    // Written: 0 while requests are accepted, else what to tell those that are refused. Borrowed.
    atomic_uint *retry_ms;
};

MUST_USE enum status loop_open(const struct loop_config *config, struct loop **loop_out);
// After the rpc and io threads have ended.
void loop_close(struct loop *loop); // NULL allowed

// Handles everything that has come, once; then there is nothing to do but wait.
void loop_tick(struct loop *loop);

// Accepted requests that have not ended.
uint32_t loop_request_count(const struct loop *loop);
// Whether every request is over and its client has all of the answer.
bool loop_is_idle(const struct loop *loop);
// Whether requests should come here, and what there is to show for those that did.
struct readiness_report loop_report(const struct loop *loop);
// Ends every request with UNAVAILABLE.
void loop_end_requests(struct loop *loop, const char *reason);
// Says so in the status, and is not ready from now on.
void loop_set_draining(struct loop *loop);
