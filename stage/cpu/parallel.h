// parallel: what the operations of the CPU backend share: the backend itself, and how work is cut
// into parts for the team.
#pragma once

#include "base/limits.h"
#include "stage/cpu/kernels.h"
#include "stage/cpu/team.h"

enum {
    // Multiplications below which handing work to other threads costs more than it saves.
    PARALLEL_WORK_MIN = 1 << 15,
    // Of the list of cores as text: TEAM_THREAD_COUNT_MAX ids of up to 4 digits, and commas.
    BACKEND_CORES_BYTES = 5 * TEAM_THREAD_COUNT_MAX,
};

struct backend {
    const struct kernels *kernels;
    struct team *team;
    char *scratch; // scratch_stride for each thread
    size_t scratch_stride;
    size_t scratch_bytes;
    char cores[BACKEND_CORES_BYTES]; // what the team is pinned to; empty: nothing
    linear_fn *linear_i8;            // of the kernels, or what the processor does faster
    void *pack;                      // packed inputs of a matrix product
    size_t pack_bytes;
    struct attention_memory *attention_memory; // one for each thread
};

// What packed inputs of so many rows take at most.
size_t linear_pack_bytes(uint32_t row_count, uint32_t column_count);

size_t attention_memory_bytes(uint32_t thread_count);

// Runs fn on the team, or on the calling thread alone when there is little to do.
static inline void parallel_run(struct backend *backend, uint64_t work, team_fn *fn, void *ctx) {
    if (work < PARALLEL_WORK_MIN) {
        fn(ctx, 0, 1);
    } else {
        team_run(backend->team, fn, ctx);
    }
}

static inline void *parallel_scratch(const struct backend *backend, uint32_t thread_index) {
    return backend->scratch + backend->scratch_stride * thread_index;
}

// The thread's part of `count` things handed out in units.
static inline void parallel_part(uint64_t count, uint32_t unit, uint32_t thread_index,
                                 uint32_t thread_count, uint64_t *first_out, uint64_t *end_out) {
    team_part((count + unit - 1) / unit, thread_index, thread_count, first_out, end_out);
    *first_out *= unit;
    *end_out *= unit;
    if (*end_out > count) *end_out = count;
}
