// attention: RoPE, the KV cache and attention over it, cut into parts for the team.
#include "base/check.h"
#include "stage/cpu/parallel.h"

struct attention_ctx {
    struct backend *backend;
    const struct batch *batch;
    const float *rotations;
    float *k;
    const float *v;
    float *rotated_q;
    struct kv_layer *kv;
    struct attention_job job;
};

static void head_rotate(const float *rotation, uint32_t head_size, float *x) {
    uint32_t half = head_size / 2;
    for (uint32_t j = 0; j < half; j++) {
        float cosine = rotation[2 * j], sine = rotation[2 * j + 1];
        float a = x[j], b = x[j + half];
        x[j] = a * cosine - b * sine;
        x[j + half] = b * cosine + a * sine;
    }
}

// Key element d of position t is at (d, t) of its block: a column.
static void key_store(const struct kernels *kernels, const float *key, uint32_t head_size,
                      size_t cell, uint32_t t, const struct kv_layer *kv) {
    if (kv->dtype == DTYPE_F32) {
        float *column = (float *)kv->keys + cell + t;
        for (size_t d = 0; d < head_size; d++) {
            column[d * KV_BLOCK_POSITION_COUNT] = key[d];
        }
        return;
    }
    uint16_t narrow[MODEL_HEAD_SIZE_MAX];
    kernels->narrow(key, head_size, kv->dtype, narrow);
    uint16_t *column = (uint16_t *)kv->keys + cell + t;
    for (size_t d = 0; d < head_size; d++) {
        column[d * KV_BLOCK_POSITION_COUNT] = narrow[d];
    }
}

static void row_rotate_and_store(const struct attention_ctx *ctx,
                                 const struct batch_sequence *sequence, uint32_t row) {
    const struct attention_shape *shape = ctx->job.shape;
    const struct kernels *kernels = ctx->backend->kernels;
    size_t head_size = shape->head_size;
    uint32_t position = sequence->position_first + (row - sequence->row_first);
    const float *rotation = ctx->rotations + position * head_size;
    float *q = ctx->rotated_q + (size_t)row * shape->head_count * head_size;
    for (uint32_t h = 0; h < shape->head_count; h++) {
        head_rotate(rotation, shape->head_size, q + h * head_size);
    }
    size_t width = shape->kv_head_count * head_size;
    uint32_t block = sequence->blocks[position / KV_BLOCK_POSITION_COUNT];
    uint32_t t = position % KV_BLOCK_POSITION_COUNT;
    for (uint32_t h = 0; h < shape->kv_head_count; h++) {
        float *key = ctx->k + row * width + h * head_size;
        head_rotate(rotation, shape->head_size, key);
        size_t cell = kv_block_offset(shape, block, h);
        key_store(kernels, key, shape->head_size, cell, t, ctx->kv);
        char *values = ctx->kv->values;
        values += (cell + t * head_size) * dtype_size_bytes(ctx->kv->dtype);
        kernels->narrow(ctx->v + row * width + h * head_size, head_size, ctx->kv->dtype, values);
    }
}

static void rope_part(void *argument, uint32_t thread_index, uint32_t thread_count) {
    const struct attention_ctx *ctx = argument;
    uint64_t first, end;
    team_part(ctx->batch->row_count, thread_index, thread_count, &first, &end);
    for (uint32_t s = 0; s < ctx->batch->sequence_count; s++) {
        const struct batch_sequence *sequence = &ctx->batch->sequences[s];
        uint64_t row_end = (uint64_t)sequence->row_first + sequence->row_count;
        uint64_t row = sequence->row_first > first ? sequence->row_first : first;
        for (; row < row_end && row < end; row++) {
            row_rotate_and_store(ctx, sequence, (uint32_t)row);
        }
    }
}

static void shape_check(const struct attention_shape *shape) {
    CHECK(shape->kv_head_count > 0 && shape->head_count % shape->kv_head_count == 0);
    CHECK(shape->head_size % 2 == 0 && shape->head_size <= MODEL_HEAD_SIZE_MAX);
}

void backend_rope_and_store(struct backend *backend, const struct attention_shape *shape,
                            const struct batch *batch, const float *rotations, float *q, float *k,
                            const float *v, struct kv_layer *kv) {
    shape_check(shape);
    struct attention_ctx ctx = {.backend = backend,
                                .batch = batch,
                                .rotations = rotations,
                                .k = k,
                                .v = v,
                                .rotated_q = q,
                                .kv = kv,
                                .job = {.shape = shape}};
    uint64_t width = (uint64_t)(shape->head_count + 2 * shape->kv_head_count) * shape->head_size;
    parallel_run(backend, 2 * width * batch->row_count, rope_part, &ctx);
}

// Items (a group of queries of a KV head and a sequence) go round the threads: neighbours, which
// cost about the same, to different ones.
static void attention_part(void *argument, uint32_t thread_index, uint32_t thread_count) {
    const struct attention_ctx *ctx = argument;
    struct attention_job job = ctx->job;
    uint32_t group = job.shape->head_count / job.shape->kv_head_count;
    uint64_t item = 0;
    for (uint32_t s = 0; s < ctx->batch->sequence_count; s++) {
        job.sequence = &ctx->batch->sequences[s];
        uint32_t query_count = job.sequence->row_count * group;
        for (uint32_t first = 0; first < query_count; first += ATTENTION_QUERY_COUNT) {
            job.query_first = first;
            job.query_count = query_count - first;
            if (job.query_count > ATTENTION_QUERY_COUNT) job.query_count = ATTENTION_QUERY_COUNT;
            for (job.kv_head = 0; job.kv_head < job.shape->kv_head_count; job.kv_head++) {
                if (item++ % thread_count != thread_index) continue;
                ctx->backend->kernels->attention(&job,
                                                 parallel_scratch(ctx->backend, thread_index));
            }
        }
    }
}

void backend_attention(struct backend *backend, const struct attention_shape *shape,
                       const struct batch *batch, const float *q, const struct kv_layer *kv,
                       float *out) {
    shape_check(shape);
    struct attention_ctx ctx = {
        .backend = backend, .batch = batch, .job = {.shape = shape, .kv = kv, .q = q, .out = out}};
    uint64_t work = 0;
    uint64_t width = (uint64_t)shape->head_count * shape->head_size;
    for (uint32_t s = 0; s < batch->sequence_count; s++) {
        const struct batch_sequence *sequence = &batch->sequences[s];
        uint64_t position_end = (uint64_t)sequence->position_first + sequence->row_count;
        work += 2 * width * sequence->row_count * position_end;
    }
    parallel_run(backend, work, attention_part, &ctx);
}
