// parallel: what the operations of the CPU backend share: the backend itself, and how work is cut
// into parts for the team.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>

#include "base/limits.h"
#include "stage/cpu/kernels.h"
#include "stage/cpu/team.h"

enum {
    // Multiplications below which handing work to other threads costs more than it saves.
    PARALLEL_WORK_MIN = 1 << 15,
    // Pieces for each thread of a queue: 4 to 32 were equally good beside a neighbour that takes
    // half of one processor of two.
    PARALLEL_PIECES = 8,
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

// `count` things handed out piece by piece while a run lasts, in place of one part a thread: a
// thread that something else slows down takes fewer. For jobs of a millisecond and more; shorter
// ones end sooner with equal parts. Which thread computes what is not known, so use it only where a
// result does not depend on that (law 2).
struct parallel_queue {
    _Atomic uint64_t next;
    uint64_t count, piece_count;
};

// Pieces are multiples of `unit`, some PARALLEL_PIECES a thread.
static inline void parallel_queue_init(struct parallel_queue *queue, uint64_t count, uint32_t unit,
                                       uint32_t thread_count) {
    uint64_t share = count / ((uint64_t)thread_count * PARALLEL_PIECES);
    queue->piece_count = (share / unit + 1) * unit;
    queue->count = count;
    atomic_init(&queue->next, 0);
}

// The next piece: [*first_out, *end_out). False when there are no more.
static inline bool parallel_queue_take(struct parallel_queue *queue, uint64_t *first_out,
                                       uint64_t *end_out) {
    uint64_t first =
        atomic_fetch_add_explicit(&queue->next, queue->piece_count, memory_order_relaxed);
    if (first >= queue->count) return false;
    *first_out = first;
    *end_out =
        queue->count - first < queue->piece_count ? queue->count : first + queue->piece_count;
    return true;
}
