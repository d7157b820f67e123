// Attention of the 1.1B shape over paged KV memory that comes from memory, not from a cache, as it
// does when all other layers come between: calls take turns with blocks all over it.
#include <stdio.h>

#include "base/check.h"
#include "base/limits.h"
#include "tests/bench/kernels_bench.h"

enum {
    HEAD_COUNT = 32,
    KV_HEAD_COUNT = 4,
    HEAD_SIZE = 64,
    BLOCK_COUNT = 1 << 14, // 512 MB in 16 bits; the most that a point needs is a quarter
    BLOCK_STEP = 6151,     // odd: neighbours of a sequence are strangers in memory
    SEQUENCE_COUNT_MAX = 16,
    ROW_COUNT_MAX = 512,
    BLOCK_ELEMENTS = KV_HEAD_COUNT * KV_BLOCK_POSITION_COUNT * HEAD_SIZE,
};

static const struct attention_point {
    uint32_t sequence_count, position_first, row_count; // of each sequence
} points[] = {
    {1, 511, 1},
    {1, 2047, 1},
    {1, 8191, 1},
    {16, 511, 1},
    {16, 2047, 1},
    {16, 8191, 1},
    {1, 0, 512},
    {1, 1536, ROW_COUNT_MAX},
    {1, 7680, ROW_COUNT_MAX},
};

struct attention_bench {
    const struct kernels_bench *bench;
    const struct attention_point *point;
    struct kv_layer kv;
    uint32_t blocks[BLOCK_COUNT]; // all of them, shuffled
    float *q, *out;
};

static uint32_t block_count_of(const struct attention_point *point) {
    uint32_t position_count = point->position_first + point->row_count;
    return (position_count + KV_BLOCK_POSITION_COUNT - 1) / KV_BLOCK_POSITION_COUNT;
}

static void attention_call(void *ctx, uint64_t index) {
    static const struct attention_shape shape = {HEAD_COUNT, KV_HEAD_COUNT, HEAD_SIZE};
    struct attention_bench *attention = ctx;
    const struct attention_point *point = attention->point;
    struct batch_sequence sequences[SEQUENCE_COUNT_MAX];
    uint32_t block_count = block_count_of(point);
    uint32_t turn_count = BLOCK_COUNT / (block_count * point->sequence_count);
    const uint32_t *blocks =
        attention->blocks + index % turn_count * block_count * point->sequence_count;
    for (uint32_t s = 0; s < point->sequence_count; s++) {
        sequences[s] = (struct batch_sequence){.row_first = s * point->row_count,
                                               .row_count = point->row_count,
                                               .position_first = point->position_first,
                                               .blocks = blocks + (size_t)s * block_count};
    }
    struct batch batch = {.row_count = point->sequence_count * point->row_count,
                          .sequence_count = point->sequence_count,
                          .sequences = sequences};
    backend_attention(attention->bench->backend, &shape, &batch, attention->q, &attention->kv,
                      attention->out);
}

// A row at position p multiplies with p + 1 keys and as many values.
static struct work attention_work(const struct attention_bench *attention) {
    const struct attention_point *point = attention->point;
    double first = point->position_first, rows = point->row_count;
    double pairs = rows * (first + 1) + rows * (rows - 1) / 2;
    double position_bytes =
        2.0 * KV_HEAD_COUNT * HEAD_SIZE * (double)dtype_size_bytes(attention->kv.dtype);
    return (struct work){.bytes = (first + rows) * position_bytes * point->sequence_count,
                         .operations =
                             4.0 * HEAD_COUNT * HEAD_SIZE * pairs * point->sequence_count};
}

static json_t *attention_report(const struct attention_point *point, const struct measurement *m) {
    printf("%9u  %8u  %4u ", point->sequence_count, point->position_first, point->row_count);
    measurement_print(m);
    json_t *json = measurement_json(m);
    json_add(json, "sequences", json_integer(point->sequence_count));
    json_add(json, "position_first", json_integer(point->position_first));
    json_add(json, "rows", json_integer(point->row_count));
    return json;
}

static void points_run(struct attention_bench *attention, json_t *results) {
    for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
        attention->point = &points[i];
        struct work work = attention_work(attention);
        struct measure_plan plan = {.limits = attention->bench->limits,
                                    .unit = LIMIT_F32,
                                    .pieces = &work,
                                    .piece_count = 1,
                                    .is_short = true,
                                    .seconds = attention->bench->seconds,
                                    .call = attention_call,
                                    .ctx = attention};
        struct measurement m;
        measure(&plan, &m);
        CHECK(json_array_append_new(results, attention_report(&points[i], &m)) == 0);
    }
}

json_t *bench_attention(const struct kernels_bench *bench) {
    static struct attention_bench attention;
    size_t kv_count = (size_t)BLOCK_COUNT * BLOCK_ELEMENTS;
    size_t q_count = (size_t)ROW_COUNT_MAX * HEAD_COUNT * HEAD_SIZE;
    attention = (struct attention_bench){
        .bench = bench,
        .kv = {.keys = bench_random(bench->backend, bench->kv_dtype, kv_count),
               .values = bench_random(bench->backend, bench->kv_dtype, kv_count),
               .dtype = bench->kv_dtype},
        .q = bench_random(bench->backend, DTYPE_F32, q_count),
        .out = bench_random(bench->backend, DTYPE_F32, q_count),
    };
    for (uint32_t i = 0; i < BLOCK_COUNT; i++)
        attention.blocks[i] = i * BLOCK_STEP % BLOCK_COUNT;
    json_t *results = json_array();
    CHECK(results != NULL);
    printf("\nattention, %s KV (shares in %%; medians, and the roofline also of the bests)\n"
           "sequences  position  rows %s\n",
           dtype_name(bench->kv_dtype), measurement_heading);
    points_run(&attention, results);
    bench_random_free(bench->backend, attention.out, DTYPE_F32, q_count);
    bench_random_free(bench->backend, attention.q, DTYPE_F32, q_count);
    bench_random_free(bench->backend, attention.kv.values, bench->kv_dtype, kv_count);
    bench_random_free(bench->backend, attention.kv.keys, bench->kv_dtype, kv_count);
    return results;
}
