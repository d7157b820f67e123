// readiness: tells rpc_health whether a process is alive and ready, judged by what gets done.
//
// The main thread reports at every tick. Another thread looks at the reports, so that a main thread
// that stands still is noticed too: then nothing is SERVING, although the rpc thread answers. A
// process that is only busy goes on counting, and stays SERVING.
#pragma once

#include <stdint.h>

#include "base/clock.h"
#include "transport/rpc_health.h"

struct readiness;

struct readiness_config {
    struct clock clock;
    struct rpc_health *health; // borrowed until readiness_close
    // "", live, is told in any case; these are what is ready, names of which are borrowed as
    // rpc_health does.
    const char *const *services;
    size_t service_count;
    uint32_t
        tick_ms_max; // without a report for so long the process is not alive; 0: READINESS_TICK_MS
    uint32_t
        stall_ms_max; // something that is to be done and does not get on for so long is stalled
};

struct readiness_report {
    bool is_ready; // everything is in place; ready unless what is owed is stalled
    // What was asked for and not given yet (work in flight), and a count that moves when any of it
    // gets on, here or elsewhere. Stalled: not ready.
    bool is_owed;
    uint64_t owed_count;
    // What this process alone can finish, and a count that moves while it does. Stalled: not alive.
    bool is_working;
    uint64_t work_count;
};

// Everything is NOT_SERVING until the first report, but "", which is SERVING. Starts the thread.
// STATUS_NO_MEMORY, STATUS_IO.
MUST_USE enum status readiness_open(const struct readiness_config *config,
                                    struct readiness **readiness_out);
// Stops the thread; statuses stay as they are. NULL allowed.
void readiness_close(struct readiness *readiness);

// From one thread, at every tick; it only copies. A change of is_ready is told at once, the rest
// within READINESS_LOOK_MS.
void readiness_tick(struct readiness *readiness, const struct readiness_report *report);
