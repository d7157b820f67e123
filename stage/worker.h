// worker: the stage's compute thread. Loads layers, takes frames from the io thread, runs the
// engine over them, gives the results back to io. Told what to do by control; tells it what
// happened.
#pragma once

#include <stdatomic.h>

#include "stage/engine.h"
#include "stage/step_log.h"
#include "transport/inbox.h"
#include "transport/io.h"

struct worker;

// What control orders.
enum worker_order {
    WORKER_LOAD,  // subject: struct assignment, taken
    WORKER_START, // subject: struct io_ring_position, taken; epoch of the last WORKER_LOAD
    WORKER_STOP,  // links are closed; layers stay loaded
    WORKER_QUIT,
};

// What the worker reports to control's inbox; kinds are `report_base` plus these.
enum worker_report {
    WORKER_LOADED,    // subject: struct worker_loaded
    WORKER_CONNECTED, // subject: struct worker_connected
    WORKER_FAILED,    // subject: struct worker_failed
    WORKER_REPORT_COUNT,
};
struct worker_loaded {
    uint64_t epoch;
    struct engine_sizes sizes;
    uint64_t load_ms;
};
struct worker_connected {
    uint64_t epoch;
};
enum worker_failure { WORKER_FAILED_LOAD, WORKER_FAILED_LINK, WORKER_FAILED_FRAME };
struct worker_failed {
    uint64_t epoch;
    enum worker_failure failure;
    struct error error;
};

// Written by the worker, read by control at any time.
struct worker_stats {
    atomic_uint_fast64_t step_count, busy_ns, row_count; // of the epoch
    atomic_uint_fast64_t load_epoch, load_bytes_done, load_bytes_total;
    atomic_uint_fast64_t load_step_count; // pieces of weights, in all
    atomic_bool is_awake;                 // the thread, from when it is told of something to do
    atomic_uint frame_count;              // frames that wait to be computed
    atomic_uint_fast64_t stale_frame_count;
};

struct worker_config {
    struct backend *backend; // borrowed; used by the worker's thread only
    struct clock clock;
    struct inbox *reports; // borrowed; subjects are malloc'ed, the reader frees them
    int report_base;
    const char *data_host; // where the data plane listens; the port comes after
    uint16_t data_port;
};

// Opens the data plane and starts the thread.
MUST_USE enum status worker_open(const struct worker_config *config, struct worker **worker_out,
                                 struct error *error);
// Cancels a load, stops the thread. NULL allowed.
void worker_close(struct worker *worker);

// "host:port" of the data plane.
const char *worker_data_address(const struct worker *worker);
const struct worker_stats *worker_stats(const struct worker *worker);
// Whether the thread has something to do that it alone can do, and a count that moves while it gets
// on with loading or computing. Any thread.
bool worker_is_working(const struct worker *worker);
uint64_t worker_progress_count(const struct worker *worker);
struct step_log *worker_step_log(struct worker *worker); // to be read by control
// What the data plane has refused since it was opened. Any thread.
uint64_t worker_refused_count(const struct worker *worker);

// Any thread. `subject` is malloc'ed and taken.
void worker_order(struct worker *worker, enum worker_order order, void *subject);
