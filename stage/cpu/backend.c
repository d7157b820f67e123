// backend, on processors: cuts each operation into parts for the team and runs the variant's
// kernels on them.
#include "stage/backend.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/memory.h"
#include "stage/cpu/kernels.h"
#include "stage/cpu/team.h"

enum {
    // Multiplications below which handing work to other threads costs more than it saves.
    PARALLEL_WORK_MIN = 1 << 15,
    // Outputs of a matrix product are handed out in units of this size.
    LINEAR_UNIT = 4,
    // Elements of elementwise operations, likewise.
    ELEMENT_UNIT = 64,
};

struct backend {
    const struct kernels *kernels;
    struct team *team;
    char *scratch; // scratch_stride for each thread
    size_t scratch_stride;
    size_t scratch_bytes;
};

// Best first.
static const struct kernels *const all_kernels[] = {
#if STAGE_X86_KERNELS
    &kernels_avx512,
    &kernels_avx2,
#endif
    &kernels_portable,
    &kernels_reference,
};
enum { KERNELS_COUNT = sizeof(all_kernels) / sizeof(all_kernels[0]) };

const char *const *backend_cpu_variants(void) {
    // Each thread's own, so that threads need not agree on who fills it.
    static _Thread_local const char *names[KERNELS_COUNT + 1];
    size_t count = 0;
    for (size_t i = 0; i < KERNELS_COUNT; i++) {
        if (all_kernels[i]->is_supported()) names[count++] = all_kernels[i]->name;
    }
    names[count] = NULL;
    return names;
}

static enum status kernels_find(const char *variant, const struct kernels **kernels_out,
                                struct error *error) {
    char names[128] = "";
    for (size_t i = 0; i < KERNELS_COUNT; i++) {
        const struct kernels *kernels = all_kernels[i];
        if (!kernels->is_supported()) continue;
        if (strcmp(variant, "auto") == 0 || strcmp(variant, kernels->name) == 0) {
            *kernels_out = kernels;
            return STATUS_OK;
        }
        size_t length = strlen(names);
        CHECK(length + strlen(kernels->name) + 3 <= sizeof(names));
        if (length > 0) strcat(names, ", ");
        strcat(names, kernels->name);
    }
    return error_set(error, STATUS_UNSUPPORTED,
                     "kernel variant \"%s\" is not one of those of this processor: auto, %s",
                     variant, names);
}

static size_t round_up(size_t size, size_t unit) {
    return (size + unit - 1) / unit * unit;
}

static void *pages_map(size_t size_bytes) {
    if (size_bytes == 0) size_bytes = 1;
    void *memory =
        mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    // Fewer page faults and translations; a kernel that cannot do it loses nothing else.
    (void)madvise(memory, size_bytes, MADV_HUGEPAGE);
    return memory;
}

static void pages_unmap(void *memory, size_t size_bytes) {
    if (memory == NULL) return;
    CHECK(munmap(memory, size_bytes == 0 ? 1 : size_bytes) == 0);
}

enum status backend_cpu_open(const struct backend_config *config, struct backend **backend_out,
                             struct error *error) {
    struct backend *backend = memory_array(1, sizeof(*backend));
    if (backend == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory for a backend");
    enum status status = kernels_find(config->variant, &backend->kernels, error);
    if (status != STATUS_OK) goto free_backend;
    uint32_t thread_count = config->thread_count;
    if (thread_count == 0) {
        thread_count = team_core_count();
        if (thread_count > TEAM_THREAD_COUNT_MAX) thread_count = TEAM_THREAD_COUNT_MAX;
    }
    status = team_open(thread_count, &backend->team, error);
    if (status != STATUS_OK) goto free_backend;
    // An odd number of pages: the threads' scratches do not compete for the same cache sets.
    backend->scratch_stride = round_up(backend->kernels->scratch_bytes, 8192) + 4096;
    backend->scratch_bytes = backend->scratch_stride * thread_count;
    backend->scratch = pages_map(backend->scratch_bytes);
    if (backend->scratch == NULL) {
        status = error_set(error, STATUS_NO_MEMORY, "no memory for %zu bytes of compute scratch",
                           backend->scratch_bytes);
        goto close_team;
    }
    *backend_out = backend;
    return STATUS_OK;
close_team:
    team_close(backend->team);
free_backend:
    free(backend);
    return status;
}

void backend_close(struct backend *backend) {
    if (backend == NULL) return;
    pages_unmap(backend->scratch, backend->scratch_bytes);
    team_close(backend->team);
    free(backend);
}

const char *backend_variant(const struct backend *backend) {
    return backend->kernels->name;
}

uint32_t backend_thread_count(const struct backend *backend) {
    return team_thread_count(backend->team);
}

void *backend_alloc(struct backend *backend, size_t size_bytes) {
    (void)backend;
    return pages_map(size_bytes);
}

void backend_free(struct backend *backend, void *memory, size_t size_bytes) {
    (void)backend;
    pages_unmap(memory, size_bytes);
}

// Runs fn on the team, or on the calling thread alone when there is little to do.
static void run(struct backend *backend, uint64_t work, team_fn *fn, void *ctx) {
    if (work < PARALLEL_WORK_MIN) {
        fn(ctx, 0, 1);
    } else {
        team_run(backend->team, fn, ctx);
    }
}

static void *scratch_of(const struct backend *backend, uint32_t thread_index) {
    return backend->scratch + backend->scratch_stride * thread_index;
}

// The thread's part of `count` things handed out in units.
static void part_of(uint64_t count, uint32_t unit, uint32_t thread_index, uint32_t thread_count,
                    uint64_t *first_out, uint64_t *end_out) {
    team_part((count + unit - 1) / unit, thread_index, thread_count, first_out, end_out);
    *first_out *= unit;
    *end_out *= unit;
    if (*end_out > count) *end_out = count;
}

// -- operations on elements and rows --------------------------------------------------------------

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
    run(backend, (uint64_t)row_count * table->column_count, embed_part, &job);
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
    run(backend, (uint64_t)row_count * weight->column_count, rms_norm_part, &job);
}

static void add_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    const struct element_job *job = ctx;
    uint64_t first, end;
    part_of(job->count, ELEMENT_UNIT, thread_index, thread_count, &first, &end);
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
    run(backend, job.count, add_part, &job);
}

static void swiglu_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    const struct element_job *job = ctx;
    uint64_t first, end;
    part_of(job->count, ELEMENT_UNIT, thread_index, thread_count, &first, &end);
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
    run(backend, 8 * job.count, swiglu_part, &job);
}

static void to_wire_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    const struct element_job *job = ctx;
    uint64_t first, end;
    part_of(job->count, ELEMENT_UNIT, thread_index, thread_count, &first, &end);
    char *out = (char *)job->out + first * dtype_size_bytes(job->dtype);
    job->kernels->narrow((const float *)job->a + first, end - first, job->dtype, out);
}

void backend_to_wire(struct backend *backend, const float *x, size_t count, enum dtype dtype,
                     void *out) {
    struct element_job job = {
        .kernels = backend->kernels, .a = x, .out = out, .count = count, .dtype = dtype};
    run(backend, count, to_wire_part, &job);
}

static void from_wire_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    const struct element_job *job = ctx;
    uint64_t first, end;
    part_of(job->count, ELEMENT_UNIT, thread_index, thread_count, &first, &end);
    const char *x = (const char *)job->a + first * dtype_size_bytes(job->dtype);
    job->kernels->widen(x, job->dtype, end - first, (float *)job->out + first);
}

void backend_from_wire(struct backend *backend, const void *x, size_t count, enum dtype dtype,
                       float *out) {
    struct element_job job = {
        .kernels = backend->kernels, .a = x, .out = out, .count = count, .dtype = dtype};
    run(backend, count, from_wire_part, &job);
}

// -- matrix products ------------------------------------------------------------------------------

struct linear_ctx {
    struct backend *backend;
    struct linear_job job;
};

static void linear_part(void *ctx, uint32_t thread_index, uint32_t thread_count) {
    const struct linear_ctx *linear = ctx;
    uint64_t first, end;
    part_of(linear->job.weight->row_count, LINEAR_UNIT, thread_index, thread_count, &first, &end);
    if (first == end) return;
    linear->backend->kernels->linear(&linear->job, (uint32_t)first, (uint32_t)end,
                                     scratch_of(linear->backend, thread_index));
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
    run(backend, weight_count * row_count, linear_part, &ctx);
}

// -- attention ------------------------------------------------------------------------------------

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
    run(backend, 2 * width * batch->row_count, rope_part, &ctx);
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
                ctx->backend->kernels->attention(&job, scratch_of(ctx->backend, thread_index));
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
    run(backend, work, attention_part, &ctx);
}
