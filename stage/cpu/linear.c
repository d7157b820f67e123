// linear: matrix products, cut into parts for the team.
#include "base/check.h"
#include "stage/cpu/parallel.h"

enum {
    // Outputs are handed out in units of this size.
    LINEAR_UNIT = 4,
};

struct linear_ctx {
    struct backend *backend;
    struct linear_job job;
};

static void linear_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    const struct linear_ctx *linear = ctx;
    uint64_t first, end;
    parallel_part(linear->job.weight->row_count, LINEAR_UNIT, thread_index, thread_count, &first,
                  &end);
    if (first == end) return;
    linear->backend->kernels->linear(&linear->job, (uint32_t)first, (uint32_t)end,
                                     parallel_scratch(linear->backend, thread_index));
}

void backend_linear(struct backend *backend, const struct tensor *weight, const struct tensor *bias,
                    const float *x, uint32_t row_count, float *out, uint32_t out_stride) {
    CHECK(out_stride >= weight->row_count);
    struct linear_ctx ctx = {.backend = backend,
                             .job = {.weight = weight,
                                     .bias = bias,
                                     .x = x,
                                     .row_count = row_count,
                                     .out = out,
                                     .out_stride = out_stride}};
    uint64_t weight_count = (uint64_t)weight->row_count * weight->column_count;
    parallel_run(backend, weight_count * row_count, linear_part, &ctx);
}
