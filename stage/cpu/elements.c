// elements: operations on elements and rows, cut into parts for the team.
#include "base/check.h"
#include "stage/cpu/parallel.h"

enum {
    // Elements are handed out in units of this size.
    ELEMENT_UNIT = 64,
};

// Operands of any of them; each function below reads its own.
struct element_job {
    const struct kernels *kernels;
    const struct tensor *tensor;
    const uint32_t *tokens;
    const void *a;
    const void *b;
    void *out;
    uint64_t count;
    float epsilon;
    enum dtype dtype;
};

static void embed_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    const struct element_job *job = ctx;
    size_t width = job->tensor->column_count;
    size_t row_bytes = width * dtype_size_bytes(job->tensor->dtype);
    uint64_t first, end;
    team_part(job->count, thread_index, thread_count, &first, &end);
    for (uint64_t r = first; r < end; r++) {
        const char *row = (const char *)job->tensor->data + job->tokens[r] * row_bytes;
        job->kernels->widen(row, job->tensor->dtype, width, (float *)job->out + r * width);
    }
}

void backend_embed(struct backend *backend, const struct tensor *table, const uint32_t *tokens,
                   uint32_t row_count, float *out) {
    for (uint32_t r = 0; r < row_count; r++) {
        CHECK(tokens[r] < table->row_count);
    }
    struct element_job job = {.kernels = backend->kernels,
                              .tensor = table,
                              .tokens = tokens,
                              .out = out,
                              .count = row_count};
    parallel_run(backend, (uint64_t)row_count * table->column_count, embed_part, &job);
}

static void rms_norm_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    const struct element_job *job = ctx;
    uint64_t first, end;
    team_part(job->count, thread_index, thread_count, &first, &end);
    size_t offset = first * job->tensor->column_count;
    job->kernels->rms_norm(job->tensor, job->epsilon, (const float *)job->a + offset,
                           (uint32_t)(end - first), (float *)job->out + offset);
}

void backend_rms_norm(struct backend *backend, const struct tensor *weight, float epsilon,
                      const float *x, uint32_t row_count, float *out) {
    struct element_job job = {.kernels = backend->kernels,
                              .tensor = weight,
                              .a = x,
                              .out = out,
                              .count = row_count,
                              .epsilon = epsilon};
    parallel_run(backend, (uint64_t)row_count * weight->column_count, rms_norm_part, &job);
}

static void add_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    const struct element_job *job = ctx;
    uint64_t first, end;
    parallel_part(job->count, ELEMENT_UNIT, thread_index, thread_count, &first, &end);
    job->kernels->add((float *)job->out + first, (const float *)job->a + first, end - first,
                      job->dtype);
}

void backend_add(struct backend *backend, float *x, const float *delta, uint32_t row_count,
                 uint32_t width, enum dtype round_dtype) {
    struct element_job job = {.kernels = backend->kernels,
                              .a = delta,
                              .out = x,
                              .count = (uint64_t)row_count * width,
                              .dtype = round_dtype};
    parallel_run(backend, job.count, add_part, &job);
}

static void swiglu_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    const struct element_job *job = ctx;
    uint64_t first, end;
    parallel_part(job->count, ELEMENT_UNIT, thread_index, thread_count, &first, &end);
    job->kernels->swiglu((const float *)job->a + first, (const float *)job->b + first, end - first,
                         (float *)job->out + first);
}

void backend_swiglu(struct backend *backend, const float *gate, const float *up, uint32_t row_count,
                    uint32_t width, float *out) {
    struct element_job job = {.kernels = backend->kernels,
                              .a = gate,
                              .b = up,
                              .out = out,
                              .count = (uint64_t)row_count * width};
    parallel_run(backend, 8 * job.count, swiglu_part, &job);
}

static void to_wire_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    const struct element_job *job = ctx;
    uint64_t first, end;
    parallel_part(job->count, ELEMENT_UNIT, thread_index, thread_count, &first, &end);
    char *out = (char *)job->out + first * dtype_size_bytes(job->dtype);
    job->kernels->narrow((const float *)job->a + first, end - first, job->dtype, out);
}

void backend_to_wire(struct backend *backend, const float *x, size_t count, enum dtype dtype,
                     void *out) {
    struct element_job job = {
        .kernels = backend->kernels, .a = x, .out = out, .count = count, .dtype = dtype};
    parallel_run(backend, count, to_wire_part, &job);
}

static void from_wire_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    const struct element_job *job = ctx;
    uint64_t first, end;
    parallel_part(job->count, ELEMENT_UNIT, thread_index, thread_count, &first, &end);
    const char *x = (const char *)job->a + first * dtype_size_bytes(job->dtype);
    job->kernels->widen(x, job->dtype, end - first, (float *)job->out + first);
}

void backend_from_wire(struct backend *backend, const void *x, size_t count, enum dtype dtype,
                       float *out) {
    struct element_job job = {
        .kernels = backend->kernels, .a = x, .out = out, .count = count, .dtype = dtype};
    parallel_run(backend, count, from_wire_part, &job);
}
