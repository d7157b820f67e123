// team: a fixed group of threads that run one function together; the caller is one of them. Between
// runs the others look for work briefly, soon giving way to whoever has work, and then sleep: an
// idle team costs nothing.
#pragma once

#include <stdint.h>

#include "base/status.h"

struct core_list;
struct team;

// One thread's share of a run. thread_index 0 is the caller of team_run().
typedef void team_fn(void *ctx, uint32_t thread_index, uint32_t thread_count);

// thread_count 1 starts no thread. STATUS_INVALID (0 or above TEAM_THREAD_COUNT_MAX),
// STATUS_NO_MEMORY, STATUS_IO (a thread did not start).
MUST_USE enum status team_open(uint32_t thread_count, struct team **team_out, struct error *error);
void team_close(struct team *team); // NULL allowed; not while a run is in progress

uint32_t team_thread_count(const struct team *team);

// Pins thread i to processor cores->ids[i]; cores->count is the thread count. Thread 0 is pinned by
// team_enter(). STATUS_IO: the kernel refused.
MUST_USE enum status team_pin(struct team *team, const struct core_list *cores,
                              struct error *error);
// Once, by the thread that will call team_run(), after team_pin(): names and pins it. Threads that
// it creates later inherit the one processor.
void team_enter(struct team *team);

// Runs fn(ctx, i, n) for each i < n = thread_count, and returns when all have returned. What the
// caller wrote before is seen by all, and what they wrote is seen by the caller after. One run at a
// time, always from one thread.
void team_run(struct team *team, team_fn *fn, void *ctx);

// The part of `count` units that thread_index of thread_count owns: [*first_out, *end_out). Parts
// differ by at most one unit.
static inline void team_part(uint64_t count, uint32_t thread_index, uint32_t thread_count,
                             uint64_t *first_out, uint64_t *end_out) {
    *first_out = count * thread_index / thread_count;
    *end_out = count * (thread_index + 1) / thread_count;
}
