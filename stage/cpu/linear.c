// linear: matrix products, cut into parts for the team.
#include <assert.h>

#include "base/check.h"
#include "stage/cpu/parallel.h"

enum {
    // Outputs are handed out in units of this size.
    LINEAR_UNIT = I8_BLOCK_OUTPUTS,
    // Inputs that must be packed are packed for so many rows at a time, and so often are the
    // weights
    // read again.
    PACK_ROW_COUNT = 192,
};

struct linear_ctx {
    struct backend *backend;
    linear_fn *multiply;
    pack_fn *pack; // NULL: inputs are used as they are
    struct linear_job job;
};

static void linear_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    const struct linear_ctx *linear = ctx;
    uint64_t first, end;
    parallel_part(linear->job.weight->row_count, LINEAR_UNIT, thread_index, thread_count, &first,
                  &end);
    if (first == end) return;
    linear->multiply(&linear->job, (uint32_t)first, (uint32_t)end,
                     parallel_scratch(linear->backend, thread_index));
}

// What linear() takes where inputs are rounded to bf16 and multiplied as f32.
static void round_rows(const struct kernels *kernels, const struct linear_job *job,
                       uint32_t row_first, uint32_t row_end) {
    size_t width = job->weight->column_count;
    size_t first = row_first * width, count = (row_end - row_first) * width;
    float *rounded = (float *)job->packed + first;
    // Narrow into the upper half of the place, then widen upwards from there: each element is read
    // before it is overwritten.
    uint16_t *narrow = (uint16_t *)rounded + count;
    kernels->narrow(job->x + first, count, DTYPE_BF16, narrow);
    kernels->widen(narrow, DTYPE_BF16, count, rounded);
}

static void pack_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    const struct linear_ctx *linear = ctx;
    uint64_t first, end;
    team_part(linear->job.row_count, thread_index, thread_count, &first, &end);
    if (first == end) return;
    if (linear->pack == NULL) {
        round_rows(linear->backend->kernels, &linear->job, (uint32_t)first, (uint32_t)end);
    } else {
        linear->pack(&linear->job, (uint32_t)first, (uint32_t)end);
    }
}

static void multiply(struct linear_ctx *ctx) {
    const struct tensor *weight = ctx->job.weight;
    uint64_t weight_count = (uint64_t)weight->row_count * weight->column_count;
    parallel_run(ctx->backend, weight_count * ctx->job.row_count, linear_part, ctx);
}

static void pack_and_multiply(struct linear_ctx *ctx) {
    struct backend *backend = ctx->backend;
    struct linear_job *job = &ctx->job;
    uint32_t width = job->weight->column_count;
    CHECK(linear_pack_bytes(job->row_count, width) <= backend->pack_bytes);
    job->inputs = job->packed = backend->pack;
    uint32_t row_count = job->row_count;
    for (uint32_t row = 0; row < row_count; row += job->row_count) {
        job->row_count = row_count - row < PACK_ROW_COUNT ? row_count - row : PACK_ROW_COUNT;
        parallel_run(backend, (uint64_t)job->row_count * width, pack_part, ctx);
        multiply(ctx);
        job->x += (size_t)job->row_count * width;
        job->out += (size_t)job->row_count * job->out_stride;
    }
}

size_t linear_pack_bytes(uint32_t row_count, uint32_t column_count) {
    size_t rows = row_count < PACK_ROW_COUNT ? row_count : PACK_ROW_COUNT;
    // No packing takes more than 4 bytes for each input of whole groups.
    static_assert(sizeof(struct i8_inputs) <= 4 * I8_GROUP_INPUTS, "i8 inputs");
    return rows * i8_group_count(column_count) * I8_GROUP_INPUTS * sizeof(float);
}

void backend_linear(struct backend *backend, const struct tensor *weight, const struct tensor *bias,
                    const float *x, enum dtype x_dtype, uint32_t row_count, float *out,
                    uint32_t out_stride) {
    CHECK(out_stride >= weight->row_count);
    const struct kernels *kernels = backend->kernels;
    struct linear_ctx ctx = {.backend = backend,
                             .job = {.weight = weight,
                                     .bias = bias,
                                     .x = x,
                                     .row_count = row_count,
                                     .out = out,
                                     .out_stride = out_stride,
                                     .inputs = x}};
    if (weight->dtype == DTYPE_I8 && x_dtype == DTYPE_I8) {
        ctx.pack = kernels->pack_i8;
        ctx.multiply = backend->linear_i8;
        pack_and_multiply(&ctx);
    } else if (weight->dtype == DTYPE_I8) {
        CHECK(x_dtype == DTYPE_F32);
        ctx.multiply = kernels->linear_i8_weights;
        multiply(&ctx);
    } else if (x_dtype == DTYPE_F32) {
        ctx.multiply = kernels->linear;
        multiply(&ctx);
    } else {
        CHECK(x_dtype == DTYPE_BF16);
        bool has_pairs = weight->dtype == DTYPE_BF16 && kernels->linear_bf16 != NULL;
        ctx.pack = has_pairs ? kernels->pack_bf16 : NULL;
        ctx.multiply = has_pairs ? kernels->linear_bf16 : kernels->linear;
        pack_and_multiply(&ctx);
    }
}

// -- int8 weights ---------------------------------------------------------------------------------

static uint32_t block_count_of(uint32_t row_count) {
    return (row_count + I8_BLOCK_OUTPUTS - 1) / I8_BLOCK_OUTPUTS;
}

size_t backend_quantized_bytes(uint32_t row_count, uint32_t column_count) {
    return block_count_of(row_count) * i8_group_count(column_count) * sizeof(struct i8_weights);
}

struct quantize_ctx {
    const struct kernels *kernels;
    const struct tensor *source;
    void *out;
};

static void quantize_part(void *argument, uint32_t thread_index, uint32_t thread_count) {
    const struct quantize_ctx *ctx = argument;
    uint64_t first, end;
    team_part(block_count_of(ctx->source->row_count), thread_index, thread_count, &first, &end);
    ctx->kernels->quantize(ctx->source, (uint32_t)first, (uint32_t)end, ctx->out);
}

struct tensor backend_quantize(struct backend *backend, const struct tensor *source, void *memory) {
    CHECK(dtype_size_bytes(source->dtype) > 0);
    struct quantize_ctx ctx = {backend->kernels, source, memory};
    team_run(backend->team, quantize_part, &ctx);
    return (struct tensor){memory, DTYPE_I8, source->row_count, source->column_count};
}
