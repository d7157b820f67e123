#include "stage/cpu/parallel.h"

#include <stdatomic.h>

struct parallel_job {
    backend_fn *fn;
    void *ctx;
    uint32_t count;
    _Atomic uint32_t next; // index that nobody has taken yet
};

static void parallel_take(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    (void)thread_count;
    struct parallel_job *job = ctx;
    uint32_t index;
    while ((index = atomic_fetch_add_explicit(&job->next, 1, memory_order_relaxed)) < job->count)
        job->fn(job->ctx, index, thread_index);
}

void backend_parallel(struct backend *backend, uint32_t count, uint64_t work, backend_fn *fn,
                      void *ctx) {
    struct parallel_job job = {.fn = fn, .ctx = ctx, .count = count};
    if (count == 1) work = 0; // for one thread, so let the others sleep
    parallel_run(backend, work, parallel_take, &job);
}
