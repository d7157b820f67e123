// attention: RoPE, the KV cache and attention over it, cut into parts for the team.
#include <stdatomic.h>

#include "base/check.h"
#include "stage/cpu/parallel.h"

struct rope_ctx {
    struct backend *backend;
    const struct batch *batch;
    const float *rotations;
    float *k;
    const float *v;
    float *rotated_q;
    struct kv_layer *kv;
    const struct attention_shape *shape;
};

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

static void row_rotate_and_store(const struct rope_ctx *ctx, const struct batch_sequence *sequence,
                                 uint32_t row) {
    const struct attention_shape *shape = ctx->shape;
    const struct kernels *kernels = ctx->backend->kernels;
    size_t head_size = shape->head_size;
    uint32_t position = sequence->position_first + (row - sequence->row_first);
    const float *rotation = ctx->rotations + position * head_size;
    uint32_t half = shape->head_size / 2;
    float cosines[MODEL_HEAD_SIZE_MAX / 2], sines[MODEL_HEAD_SIZE_MAX / 2];
    for (uint32_t j = 0; j < half; j++) {
        cosines[j] = rotation[2 * j];
        sines[j] = rotation[2 * j + 1];
    }
    float *q = ctx->rotated_q + (size_t)row * shape->head_count * head_size;
    for (uint32_t h = 0; h < shape->head_count; h++) {
        kernels->rotate(cosines, sines, half, q + h * head_size);
    }
    size_t width = shape->kv_head_count * head_size;
    uint32_t block = sequence->blocks[position / KV_BLOCK_POSITION_COUNT];
    uint32_t t = position % KV_BLOCK_POSITION_COUNT;
    for (uint32_t h = 0; h < shape->kv_head_count; h++) {
        float *key = ctx->k + row * width + h * head_size;
        kernels->rotate(cosines, sines, half, key);
        size_t cell = kv_block_offset(shape, block, h);
        key_store(kernels, key, shape->head_size, cell, t, ctx->kv);
        char *values = ctx->kv->values;
        values += (cell + t * head_size) * dtype_size_bytes(ctx->kv->dtype);
        kernels->narrow(ctx->v + row * width + h * head_size, head_size, ctx->kv->dtype, values);
    }
}

static void rope_part(void *argument, uint32_t thread_index, uint32_t thread_count) {
    const struct rope_ctx *ctx = argument;
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
    struct rope_ctx ctx = {.backend = backend,
                           .batch = batch,
                           .rotations = rotations,
                           .k = k,
                           .v = v,
                           .rotated_q = q,
                           .kv = kv,
                           .shape = shape};
    uint64_t width = (uint64_t)(shape->head_count + 2 * shape->kv_head_count) * shape->head_size;
    // A multiplication takes an eighth of the time of one that waits for weights.
    parallel_run(backend, width * batch->row_count / 4, rope_part, &ctx);
}

// -- attention ------------------------------------------------------------------------------------
//
// An item is a group of queries of a sequence and a KV head. Most items are computed whole, by one
// thread. Few items that cost much, such as those of a single sequence with a long context, would
// leave threads without work: their spans are computed by different threads, and who finishes the
// last one merges them. Either way the same partials are merged in the same order.

enum {
    // An item is split when it costs more than this part of a thread's share of all: so a thread
    // has at most this many split items.
    SPLIT_COUNT = 8,
    PARTIAL_BYTES_MAX = ATTENTION_QUERY_COUNT * (MODEL_HEAD_SIZE_MAX + 2) * (int)sizeof(float),
};

// An item whose spans are computed in windows: in one run, as many as there is memory for.
struct split_item {
    struct attention_job job;
    uint32_t span_count;
    uint32_t window_count;          // spans of a window
    _Atomic uint32_t running_count; // spans of this window that are not finished
    // First the merged spans before the window, then the window's: smaller partials, more of them.
    _Alignas(64) char partials[2 * PARTIAL_BYTES_MAX];
};

// backend->attention_memory: one for each thread.
struct attention_memory {
    _Alignas(64) char whole[2][PARTIAL_BYTES_MAX];
    struct split_item splits[SPLIT_COUNT];
};

struct attention_run {
    struct backend *backend;
    const struct batch *batch;
    struct attention_job job; // of no item yet
    uint64_t split_cost;      // an item that costs more is split
    uint32_t split_count;
    uint32_t window_index;
    uint32_t window_count_max; // units of a split item in this run
    _Alignas(
        64) _Atomic uint64_t ticket; // the next piece of work: units of split items, then items
};

size_t attention_memory_bytes(uint32_t thread_count) {
    return thread_count * sizeof(struct attention_memory);
}

static struct split_item *split_at(const struct attention_run *run, uint32_t index) {
    return &run->backend->attention_memory[index / SPLIT_COUNT].splits[index % SPLIT_COUNT];
}

static struct attention_partial partial_at(const struct attention_job *job, char *memory,
                                           size_t index) {
    uint32_t head_size = job->shape->head_size;
    size_t count = attention_partial_count(head_size, job->query_count);
    return attention_partial_at((float *)memory + index * count, head_size, job->query_count);
}

static uint64_t job_cost(const struct attention_job *job) {
    return (uint64_t)job->query_count *
           ((uint64_t)attention_position(job, job->query_count - 1) + 1);
}

static bool job_is_split(const struct attention_run *run, const struct attention_job *job) {
    return job_cost(job) > run->split_cost && attention_span_count(job) > 1;
}

// The job of item `chunk` of a sequence, for every KV head.
static void job_set_chunk(struct attention_job *job, uint32_t chunk) {
    uint32_t query_count = job->sequence->row_count * attention_group(job->shape);
    job->query_first = chunk * ATTENTION_QUERY_COUNT;
    job->query_count = query_count - job->query_first;
    if (job->query_count > ATTENTION_QUERY_COUNT) job->query_count = ATTENTION_QUERY_COUNT;
}

static uint32_t chunk_count(const struct attention_job *job) {
    uint32_t query_count = job->sequence->row_count * attention_group(job->shape);
    return (query_count + ATTENTION_QUERY_COUNT - 1) / ATTENTION_QUERY_COUNT;
}

static void item_attend(const struct attention_run *run, const struct attention_job *job,
                        uint32_t thread_index) {
    const struct kernels *kernels = run->backend->kernels;
    struct attention_memory *memory = &run->backend->attention_memory[thread_index];
    void *scratch = parallel_scratch(run->backend, thread_index);
    struct attention_partial merged = partial_at(job, memory->whole[0], 0);
    struct attention_partial partial = partial_at(job, memory->whole[1], 0);
    kernels->attention_span(job, 0, &merged, scratch);
    uint32_t span_count = attention_span_count(job);
    for (uint32_t span = 1; span < span_count; span++) {
        kernels->attention_span(job, span, &partial, scratch);
        kernels->attention_merge(job, span, &merged, &partial);
    }
    kernels->attention_finish(job, &merged);
}

static uint32_t window_end(const struct split_item *item, uint32_t first) {
    uint32_t rest = item->span_count - first;
    return first + (rest < item->window_count ? rest : item->window_count);
}

// The spans of the window that begins at `first`, which all are finished.
static void window_merge(const struct kernels *kernels, struct split_item *item, uint32_t first) {
    struct attention_partial merged = partial_at(&item->job, item->partials, 0);
    uint32_t end = window_end(item, first);
    for (uint32_t span = first == 0 ? 1 : first; span < end; span++) {
        struct attention_partial partial = partial_at(&item->job, item->partials, 1 + span - first);
        kernels->attention_merge(&item->job, span, &merged, &partial);
    }
    if (end == item->span_count) kernels->attention_finish(&item->job, &merged);
}

// One span of a split item; the thread that finishes the window's last one merges them.
static void unit_attend(const struct attention_run *run, uint64_t unit, uint32_t thread_index) {
    struct split_item *item = split_at(run, (uint32_t)(unit / run->window_count_max));
    uint32_t first = run->window_index * item->window_count;
    uint32_t index = (uint32_t)(unit % run->window_count_max);
    if (first >= item->span_count || index >= window_end(item, first) - first) return;
    uint32_t span = first + index;
    struct attention_partial partial =
        partial_at(&item->job, item->partials, span == 0 ? 0 : 1 + index);
    const struct kernels *kernels = run->backend->kernels;
    kernels->attention_span(&item->job, span, &partial,
                            parallel_scratch(run->backend, thread_index));
    if (atomic_fetch_sub(&item->running_count, 1) == 1) window_merge(kernels, item, first);
}

// Threads take work by tickets. Of a sequence the last queries, which see most, come first, so that
// what is left for the end is small.
static void attention_part(void *argument, uint32_t thread_index, uint32_t thread_count) {
    (void)thread_count;
    struct attention_run *run = argument;
    uint64_t unit_count = (uint64_t)run->split_count * run->window_count_max;
    uint64_t ticket = atomic_fetch_add(&run->ticket, 1);
    for (; ticket < unit_count; ticket = atomic_fetch_add(&run->ticket, 1)) {
        unit_attend(run, ticket, thread_index);
    }
    if (run->window_index > 0) return;
    struct attention_job job = run->job;
    uint64_t item = unit_count;
    for (uint32_t s = 0; s < run->batch->sequence_count; s++) {
        job.sequence = &run->batch->sequences[s];
        for (uint32_t chunk = chunk_count(&job); chunk-- > 0;) {
            job_set_chunk(&job, chunk);
            for (job.kv_head = 0; job.kv_head < job.shape->kv_head_count; job.kv_head++) {
                if (item++ != ticket) continue;
                if (!job_is_split(run, &job)) item_attend(run, &job, thread_index);
                ticket = atomic_fetch_add(&run->ticket, 1);
            }
        }
    }
}

// Cost of all items: a query and a position each.
static uint64_t batch_cost(const struct attention_run *run) {
    struct attention_job job = run->job;
    uint64_t cost = 0;
    for (uint32_t s = 0; s < run->batch->sequence_count; s++) {
        job.sequence = &run->batch->sequences[s];
        for (uint32_t chunk = chunk_count(&job); chunk-- > 0;) {
            job_set_chunk(&job, chunk);
            cost += job_cost(&job) * job.shape->kv_head_count;
        }
    }
    return cost;
}

static void split_add(struct attention_run *run, const struct attention_job *job) {
    struct split_item *item = split_at(run, run->split_count++);
    item->job = *job;
    item->span_count = attention_span_count(job);
    size_t partial_bytes =
        attention_partial_count(job->shape->head_size, job->query_count) * sizeof(float);
    item->window_count = (uint32_t)(sizeof(item->partials) / partial_bytes) - 1;
}

static void splits_find(struct attention_run *run) {
    struct attention_job job = run->job;
    for (uint32_t s = 0; s < run->batch->sequence_count; s++) {
        job.sequence = &run->batch->sequences[s];
        for (uint32_t chunk = chunk_count(&job); chunk-- > 0;) {
            job_set_chunk(&job, chunk);
            if (!job_is_split(run, &job)) continue;
            for (job.kv_head = 0; job.kv_head < job.shape->kv_head_count; job.kv_head++) {
                split_add(run, &job);
            }
        }
    }
}

// Prepares the next window of the split items. Returns false when there is none.
static bool window_open(struct attention_run *run) {
    run->window_count_max = 0;
    for (uint32_t i = 0; i < run->split_count; i++) {
        struct split_item *item = split_at(run, i);
        uint32_t first = run->window_index * item->window_count;
        if (first >= item->span_count) continue;
        uint32_t count = window_end(item, first) - first;
        atomic_store(&item->running_count, count);
        if (count > run->window_count_max) run->window_count_max = count;
    }
    atomic_store(&run->ticket, 0);
    return run->window_count_max > 0;
}

void backend_attention(struct backend *backend, const struct attention_shape *shape,
                       const struct batch *batch, const float *q, const struct kv_layer *kv,
                       float *out) {
    shape_check(shape);
    struct attention_run run = {.backend = backend,
                                .batch = batch,
                                .job = {.shape = shape, .kv = kv, .q = q, .out = out},
                                .split_cost = UINT64_MAX};
    uint64_t cost = batch_cost(&run);
    uint64_t work = 2 * cost * shape->head_size;
    uint32_t thread_count = backend_thread_count(backend);
    if (thread_count > 1 && work >= PARALLEL_WORK_MIN) {
        run.split_cost = cost / (thread_count * SPLIT_COUNT);
        splits_find(&run);
    }
    window_open(&run);
    do {
        parallel_run(backend, work, attention_part, &run);
        run.window_index++;
    } while (window_open(&run));
}
