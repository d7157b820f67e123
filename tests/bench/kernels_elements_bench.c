// Operations on elements, of the 1.1B shape. Their inputs are where the step before left them: in
// the caches, for few rows.
#include <math.h>
#include <stdio.h>

#include "base/check.h"
#include "base/limits.h"
#include "tests/bench/kernels_bench.h"

enum {
    HIDDEN = 2048,
    FFN = 5632,
    VOCABULARY = 32000,
    HEAD_COUNT = 32,
    KV_HEAD_COUNT = 4,
    HEAD_SIZE = 64,
    ROW_COUNT_MAX = 512,
    POSITION = 1000, // of rows of different sequences
    POSITION_COUNT = 1024,
    SEQUENCE_BLOCKS = POSITION_COUNT / KV_BLOCK_POSITION_COUNT,
    BLOCK_ELEMENTS = KV_HEAD_COUNT * KV_BLOCK_POSITION_COUNT * HEAD_SIZE,
    PROMPT_ROW_COUNT = 64, // so many rows and more are of one sequence
    TABLE_COUNT = VOCABULARY * HIDDEN,
    ROWS_ELEMENTS = ROW_COUNT_MAX * FFN,
    ROTATION_COUNT = POSITION_COUNT * HEAD_SIZE,
    KV_COUNT = PROMPT_ROW_COUNT * SEQUENCE_BLOCKS * BLOCK_ELEMENTS,
};

static const uint32_t row_counts[] = {1, 16, ROW_COUNT_MAX};
enum { ROWS_COUNT = sizeof(row_counts) / sizeof(row_counts[0]) };

struct elements_bench {
    struct backend *backend;
    uint32_t row_count;
    struct tensor norm, table;
    float *a, *b, *out, *rotations; // (ROW_COUNT_MAX, FFN); cosines and sines
    uint32_t tokens[ROW_COUNT_MAX];
    struct kv_layer kv;
    uint32_t blocks[PROMPT_ROW_COUNT * SEQUENCE_BLOCKS];
};

static void rms_norm_call(void *ctx, uint64_t index) {
    struct elements_bench *e = ctx;
    (void)index;
    backend_rms_norm(e->backend, &e->norm, 1e-5f, e->a, e->row_count, e->out);
}

static void swiglu_call(void *ctx, uint64_t index) {
    struct elements_bench *e = ctx;
    (void)index;
    backend_swiglu(e->backend, e->a, e->b, e->row_count, FFN, e->out);
}

static void add_call(void *ctx, uint64_t index) {
    struct elements_bench *e = ctx;
    (void)index;
    backend_add(e->backend, e->out, e->b, e->row_count, HIDDEN, DTYPE_F32);
}

static void add_rounded_call(void *ctx, uint64_t index) {
    struct elements_bench *e = ctx;
    (void)index;
    backend_add(e->backend, e->out, e->b, e->row_count, HIDDEN, DTYPE_BF16);
}

static void embed_call(void *ctx, uint64_t index) {
    struct elements_bench *e = ctx;
    for (uint32_t r = 0; r < e->row_count; r++)
        e->tokens[r] = (uint32_t)((index * ROW_COUNT_MAX + r) * 7919 % VOCABULARY);
    backend_embed(e->backend, &e->table, e->tokens, e->row_count, e->out);
}

static void rope_and_store_call(void *ctx, uint64_t index) {
    static const struct attention_shape shape = {HEAD_COUNT, KV_HEAD_COUNT, HEAD_SIZE};
    struct elements_bench *e = ctx;
    struct batch_sequence sequences[PROMPT_ROW_COUNT];
    struct batch batch = {.row_count = e->row_count, .sequences = sequences};
    (void)index;
    if (e->row_count >= PROMPT_ROW_COUNT) {
        batch.sequence_count = 1;
        sequences[0] = (struct batch_sequence){.row_count = e->row_count, .blocks = e->blocks};
    } else {
        batch.sequence_count = e->row_count;
        for (uint32_t s = 0; s < e->row_count; s++)
            sequences[s] = (struct batch_sequence){.row_first = s,
                                                   .row_count = 1,
                                                   .position_first = POSITION,
                                                   .blocks = e->blocks + s * SEQUENCE_BLOCKS};
    }
    backend_rope_and_store(e->backend, &shape, &batch, e->rotations, e->out, e->a, e->b, &e->kv);
}

static const struct operation {
    const char *name;
    call_fn *call;
    uint32_t row_elements;
} operations[] = {
    {"rms_norm", rms_norm_call, HIDDEN},
    {"swiglu", swiglu_call, FFN},
    {"rope_and_store", rope_and_store_call, (HEAD_COUNT + 2 * KV_HEAD_COUNT) * HEAD_SIZE},
    {"add", add_call, HIDDEN},
    {"add_rounded", add_rounded_call, HIDDEN},
    {"embed", embed_call, HIDDEN},
};

static json_t *operation_run(const struct kernels_bench *bench, struct elements_bench *elements,
                             const struct operation *operation) {
    struct measurement m;
    struct measure_plan plan = {.pieces = &(struct work){0, 0, 0},
                                .piece_count = 1,
                                .is_short = true,
                                .seconds = bench->seconds / 2,
                                .call = operation->call,
                                .ctx = elements};
    measure(&plan, &m);
    double count = (double)operation->row_elements * elements->row_count;
    struct result seconds = measurement_seconds(&m);
    printf("%-22s  %4u  %9.2f  %8.4f  %8.4f  %5.1f\n", operation->name, elements->row_count,
           seconds.median * 1e6, seconds.median / count * 1e9, seconds.best / count * 1e9,
           m.noise * 100);
    fflush(stdout);
    json_t *json = measurement_json(&m);
    json_add(json, "operation", json_string(operation->name));
    json_add(json, "rows", json_integer(elements->row_count));
    json_add(json, "ns_per_element", result_json(seconds, 1e9 / count));
    return json;
}

static void rotations_fill(float *rotations) {
    for (uint32_t i = 0; i < POSITION_COUNT * HEAD_SIZE / 2; i++) {
        rotations[2 * i] = cosf((float)i);
        rotations[2 * i + 1] = sinf((float)i);
    }
}

static void elements_run(const struct kernels_bench *bench, struct elements_bench *elements,
                         json_t *results) {
    printf("\nelements (medians, and the best time an element)\n"
           "operation               rows         us   ns each      best  noise\n");
    for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++) {
        for (uint32_t r = 0; r < ROWS_COUNT; r++) {
            elements->row_count = row_counts[r];
            json_t *result = operation_run(bench, elements, &operations[i]);
            CHECK(json_array_append_new(results, result) == 0);
        }
    }
}

static void elements_open(struct elements_bench *e, const struct kernels_bench *bench) {
    struct backend *backend = bench->backend;
    *e = (struct elements_bench){
        .backend = backend,
        .norm = {bench_random(backend, DTYPE_BF16, HIDDEN), DTYPE_BF16, 1, HIDDEN},
        .table = {bench_random(backend, DTYPE_BF16, TABLE_COUNT), DTYPE_BF16, VOCABULARY, HIDDEN},
        .a = bench_random(backend, DTYPE_F32, ROWS_ELEMENTS),
        .b = bench_random(backend, DTYPE_F32, ROWS_ELEMENTS),
        .out = bench_random(backend, DTYPE_F32, ROWS_ELEMENTS),
        .rotations = bench_random(backend, DTYPE_F32, ROTATION_COUNT),
        .kv = {bench_random(backend, bench->kv_dtype, KV_COUNT),
               bench_random(backend, bench->kv_dtype, KV_COUNT), bench->kv_dtype},
    };
    rotations_fill(e->rotations);
    for (uint32_t i = 0; i < PROMPT_ROW_COUNT * SEQUENCE_BLOCKS; i++)
        e->blocks[i] = i;
}

static void elements_close(struct elements_bench *e) {
    bench_random_free(e->backend, e->kv.values, e->kv.dtype, KV_COUNT);
    bench_random_free(e->backend, e->kv.keys, e->kv.dtype, KV_COUNT);
    bench_random_free(e->backend, e->rotations, DTYPE_F32, ROTATION_COUNT);
    bench_random_free(e->backend, e->out, DTYPE_F32, ROWS_ELEMENTS);
    bench_random_free(e->backend, e->b, DTYPE_F32, ROWS_ELEMENTS);
    bench_random_free(e->backend, e->a, DTYPE_F32, ROWS_ELEMENTS);
    bench_random_free(e->backend, (void *)e->table.data, DTYPE_BF16, TABLE_COUNT);
    bench_random_free(e->backend, (void *)e->norm.data, DTYPE_BF16, HIDDEN);
}

json_t *bench_elements(const struct kernels_bench *bench) {
    static struct elements_bench elements;
    json_t *results = json_array();
    CHECK(results != NULL);
    elements_open(&elements, bench);
    elements_run(bench, &elements, results);
    elements_close(&elements);
    return results;
}

json_t *bench_elements_calls(const struct kernels_bench *bench, uint64_t call_count) {
    static struct elements_bench elements;
    json_t *counts = json_object();
    CHECK(counts != NULL);
    elements_open(&elements, bench);
    elements.row_count = ELEMENTS_COUNTED_ROWS;
    for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++) {
        const struct operation *operation = &operations[i];
        for (uint64_t index = 0; index < call_count; index++)
            operation->call(&elements, index);
        uint64_t row_count = call_count * ELEMENTS_COUNTED_ROWS;
        json_add(counts, operation->name,
                 json_integer((json_int_t)(row_count * operation->row_elements)));
    }
    elements_close(&elements);
    return counts;
}
