// Rotations, KV memory and attention of every variant that this processor has, against formulas in
// double; and that a row's bits depend on nothing but the sequence up to its position.
#include "tests/unit/stage/backend_fixture.h"

enum {
    BLOCK = KV_BLOCK_POSITION_COUNT,
    SPARE_BLOCK_COUNT = 3,
    // Contexts are summed in spans; this is several of them, and part of one.
    LONG_ROW_COUNT = 1700,
};

// A sequence of random queries, keys and values, and KV memory with its blocks in random places and
// NaN in every cell, as if others had used it before.
struct world {
    struct attention_shape shape;
    enum dtype dtype;
    uint32_t row_count; // positions 0 .. row_count - 1
    float *q, *k, *v;
    float *rotations;
    uint32_t block_count;
    uint32_t *blocks;
    struct kv_layer kv;
    size_t kv_bytes;
};

static size_t q_width(const struct world *world) {
    return (size_t)world->shape.head_count * world->shape.head_size;
}

static size_t kv_width(const struct world *world) {
    return (size_t)world->shape.kv_head_count * world->shape.head_size;
}

static void world_init(struct world *world, struct attention_shape shape, enum dtype dtype,
                       uint32_t row_count) {
    *world = (struct world){.shape = shape, .dtype = dtype, .row_count = row_count};
    world->q = guarded_random(row_count * q_width(world));
    world->k = guarded_random(row_count * kv_width(world));
    world->v = guarded_random(row_count * kv_width(world));
    struct model_config config = {.head_size = shape.head_size, .rope = {.theta = 10000}};
    world->rotations = guarded_alloc(row_count * shape.head_size * sizeof(float));
    rope_table_fill(&config, row_count, world->rotations);
    uint32_t used = (row_count + BLOCK - 1) / BLOCK;
    world->block_count = used + SPARE_BLOCK_COUNT;
    world->blocks = calloc(used, sizeof(uint32_t));
    assert_non_null(world->blocks);
    // Steps of a number without common divisors with the count visit each block once.
    uint32_t first = random_count(0, world->block_count - 1);
    for (uint32_t i = 0; i < used; i++) {
        world->blocks[i] = (first + (world->block_count - 1) * i) % world->block_count;
    }
    world->kv_bytes = world->block_count * BLOCK * kv_width(world) * dtype_size_bytes(world->dtype);
}

static void world_fini(struct world *world) {
    free(world->blocks);
    guarded_free(world->rotations, world->row_count * world->shape.head_size * sizeof(float));
    guarded_free(world->v, world->row_count * kv_width(world) * sizeof(float));
    guarded_free(world->k, world->row_count * kv_width(world) * sizeof(float));
    guarded_free(world->q, world->row_count * q_width(world) * sizeof(float));
}

static void kv_open(struct world *world) {
    world->kv = (struct kv_layer){.keys = guarded_alloc(world->kv_bytes),
                                  .values = guarded_alloc(world->kv_bytes),
                                  .dtype = world->dtype};
    memset(world->kv.keys, 0xff, world->kv_bytes);
    memset(world->kv.values, 0xff, world->kv_bytes);
}

static void kv_close(struct world *world) {
    guarded_free(world->kv.values, world->kv_bytes);
    guarded_free(world->kv.keys, world->kv_bytes);
}

// Rows first .. first + count - 1 of the world as one microbatch, after `other_count` rows of an
// unrelated sequence of one block (the last spare one).
static void world_step(struct world *world, struct backend *backend, uint32_t first, uint32_t count,
                       uint32_t other_count, float *out) {
    uint32_t rows = other_count + count;
    float *q = guarded_random(rows * q_width(world));
    float *k = guarded_random(rows * kv_width(world));
    float *v = guarded_random(rows * kv_width(world));
    float *result = guarded_alloc(rows * q_width(world) * sizeof(float));
    memcpy(q + other_count * q_width(world), world->q + first * q_width(world),
           count * q_width(world) * sizeof(float));
    memcpy(k + other_count * kv_width(world), world->k + first * kv_width(world),
           count * kv_width(world) * sizeof(float));
    memcpy(v + other_count * kv_width(world), world->v + first * kv_width(world),
           count * kv_width(world) * sizeof(float));
    uint32_t used = (world->row_count + BLOCK - 1) / BLOCK;
    uint32_t other_block = (world->blocks[used - 1] + world->block_count - 1) % world->block_count;
    struct batch_sequence sequences[2] = {
        {.row_first = 0, .row_count = other_count, .blocks = &other_block},
        {.row_first = other_count,
         .row_count = count,
         .position_first = first,
         .blocks = world->blocks},
    };
    struct batch batch = {.row_count = rows,
                          .sequence_count = other_count > 0 ? 2 : 1,
                          .sequences = other_count > 0 ? sequences : sequences + 1};
    backend_rope_and_store(backend, &world->shape, &batch, world->rotations, q, k, v, &world->kv);
    backend_attention(backend, &world->shape, &batch, q, &world->kv, result);
    memcpy(out + first * q_width(world), result + other_count * q_width(world),
           count * q_width(world) * sizeof(float));
    guarded_free(result, rows * q_width(world) * sizeof(float));
    guarded_free(v, rows * kv_width(world) * sizeof(float));
    guarded_free(k, rows * kv_width(world) * sizeof(float));
    guarded_free(q, rows * q_width(world) * sizeof(float));
}

// The sequence's keys and values alone.
static void world_store(struct world *world, struct backend *backend) {
    float *q = calloc(world->row_count * q_width(world), sizeof(float));
    float *k = calloc(world->row_count * kv_width(world), sizeof(float));
    assert_true(q != NULL && k != NULL);
    memcpy(k, world->k, world->row_count * kv_width(world) * sizeof(float));
    struct batch_sequence sequence = {.row_count = world->row_count, .blocks = world->blocks};
    struct batch batch = {
        .row_count = world->row_count, .sequence_count = 1, .sequences = &sequence};
    backend_rope_and_store(backend, &world->shape, &batch, world->rotations, q, k, world->v,
                           &world->kv);
    free(k);
    free(q);
}

// Some rows as a microbatch of sequences of one row each, when all of the sequence is stored.
enum { DECODE_ROW_COUNT = 5 };
static void world_decode(struct world *world, struct backend *backend, const uint32_t *rows,
                         float *out) {
    struct batch_sequence sequences[DECODE_ROW_COUNT];
    float *q = guarded_alloc(DECODE_ROW_COUNT * q_width(world) * sizeof(float));
    float *k = guarded_alloc(DECODE_ROW_COUNT * kv_width(world) * sizeof(float));
    float *v = guarded_alloc(DECODE_ROW_COUNT * kv_width(world) * sizeof(float));
    float *result = guarded_alloc(DECODE_ROW_COUNT * q_width(world) * sizeof(float));
    for (uint32_t i = 0; i < DECODE_ROW_COUNT; i++) {
        sequences[i] = (struct batch_sequence){
            .row_first = i, .row_count = 1, .position_first = rows[i], .blocks = world->blocks};
        memcpy(q + i * q_width(world), world->q + rows[i] * q_width(world),
               q_width(world) * sizeof(float));
        memcpy(k + i * kv_width(world), world->k + rows[i] * kv_width(world),
               kv_width(world) * sizeof(float));
        memcpy(v + i * kv_width(world), world->v + rows[i] * kv_width(world),
               kv_width(world) * sizeof(float));
    }
    struct batch batch = {
        .row_count = DECODE_ROW_COUNT, .sequence_count = DECODE_ROW_COUNT, .sequences = sequences};
    backend_rope_and_store(backend, &world->shape, &batch, world->rotations, q, k, v, &world->kv);
    backend_attention(backend, &world->shape, &batch, q, &world->kv, result);
    for (uint32_t i = 0; i < DECODE_ROW_COUNT; i++) {
        memcpy(out + rows[i] * q_width(world), result + i * q_width(world),
               q_width(world) * sizeof(float));
    }
    guarded_free(result, DECODE_ROW_COUNT * q_width(world) * sizeof(float));
    guarded_free(v, DECODE_ROW_COUNT * kv_width(world) * sizeof(float));
    guarded_free(k, DECODE_ROW_COUNT * kv_width(world) * sizeof(float));
    guarded_free(q, DECODE_ROW_COUNT * q_width(world) * sizeof(float));
}

// -- against the formula --------------------------------------------------------------------------

static void rotated(const struct world *world, const float *x, uint32_t position, double *out) {
    uint32_t half = world->shape.head_size / 2;
    for (uint32_t j = 0; j < half; j++) {
        const float *rotation = world->rotations + ((size_t)position * half + j) * 2;
        out[j] = (double)x[j] * rotation[0] - (double)x[j + half] * rotation[1];
        out[j + half] = (double)x[j + half] * rotation[0] + (double)x[j] * rotation[1];
    }
}

static double world_score(const struct world *world, const double *query, uint32_t kv_head,
                          uint32_t t) {
    uint32_t size = world->shape.head_size;
    double key[MODEL_HEAD_SIZE_MAX], sum = 0;
    rotated(world, world->k + t * kv_width(world) + (size_t)kv_head * size, t, key);
    for (uint32_t d = 0; d < size; d++) {
        sum += query[d] * value_rounded((float)key[d], world->dtype);
    }
    return sum / sqrt(size);
}

// The whole softmax at once, nothing running.
static void expected_query(const struct world *world, uint32_t row, uint32_t head, double *out) {
    uint32_t size = world->shape.head_size;
    uint32_t kv_head = head / (world->shape.head_count / world->shape.kv_head_count);
    double query[MODEL_HEAD_SIZE_MAX], scores[LONG_ROW_COUNT], largest = -INFINITY, sum = 0;
    rotated(world, world->q + row * q_width(world) + (size_t)head * size, row, query);
    for (uint32_t t = 0; t <= row; t++) {
        scores[t] = world_score(world, query, kv_head, t);
        if (scores[t] > largest) largest = scores[t];
    }
    memset(out, 0, size * sizeof(*out));
    for (uint32_t t = 0; t <= row; t++) {
        double weight = exp(scores[t] - largest);
        sum += weight;
        const float *value = world->v + t * kv_width(world) + (size_t)kv_head * size;
        for (uint32_t d = 0; d < size; d++) {
            out[d] += weight * value_rounded(value[d], world->dtype);
        }
    }
    for (uint32_t d = 0; d < size; d++) {
        out[d] /= sum;
    }
}

// Some queries of the output: the largest error allowed is that of f32, or, when a rotated key lies
// between two numbers of the KV dtype, that of the other one being stored.
static void attention_compare(const struct world *world, const float *out) {
    double tolerance = world->dtype == DTYPE_F32 ? 2e-6 : 2e-3;
    for (uint32_t row = 0; row < world->row_count; row += 1 + row / 16) {
        uint32_t head = random_count(0, world->shape.head_count - 1);
        double expected[MODEL_HEAD_SIZE_MAX];
        expected_query(world, row, head, expected);
        const float *got = out + row * q_width(world) + (size_t)head * world->shape.head_size;
        for (uint32_t d = 0; d < world->shape.head_size; d++) {
            assert_true(fabs(got[d] - expected[d]) <= tolerance);
        }
    }
}

// Heads, KV heads, head size: one group and many, widths that are no whole vectors.
static const struct attention_shape shapes[] = {
    {4, 4, 64}, {8, 1, 16}, {6, 2, 20}, {14, 2, 64}, {3, 3, 6}, {5, 1, 128}, {70, 2, 8}, {2, 1, 2},
};
enum { SHAPE_COUNT = sizeof(shapes) / sizeof(shapes[0]) };

static void attention_is_the_softmax_of_all_positions_up_to_the_row(void **state) {
    (void)state;
    for (VARIANTS(variant)) {
        struct backend *backend = backend_make(*variant, 2);
        for (size_t s = 0; s < SHAPE_COUNT; s++) {
            struct world world;
            world_init(&world, shapes[s], fixture_dtypes[s % 3], random_count(1, 130));
            kv_open(&world);
            float *out = calloc(world.row_count * q_width(&world), sizeof(float));
            assert_non_null(out);
            world_step(&world, backend, 0, world.row_count, 0, out);
            attention_compare(&world, out);
            free(out);
            kv_close(&world);
            world_fini(&world);
        }
        backend_close(backend);
    }
}

static void attention_is_right_for_long_contexts(void **state) {
    (void)state;
    for (VARIANTS(variant)) {
        struct backend *backend = backend_make(*variant, 2);
        for (int dtype = 0; dtype < 3; dtype++) {
            struct world world;
            world_init(&world, (struct attention_shape){2, 1, 8}, fixture_dtypes[dtype],
                       LONG_ROW_COUNT);
            kv_open(&world);
            float *out = calloc(world.row_count * q_width(&world), sizeof(float));
            assert_non_null(out);
            world_step(&world, backend, 0, world.row_count, 0, out);
            attention_compare(&world, out);
            free(out);
            kv_close(&world);
            world_fini(&world);
        }
        backend_close(backend);
    }
}

// -- a row's bits ---------------------------------------------------------------------------------

static const uint32_t thread_counts[] = {1, 2, 3, 7};
enum { THREAD_COUNT_COUNT = sizeof(thread_counts) / sizeof(thread_counts[0]) };

static struct backend *random_backend(const char *variant) {
    return backend_make(variant, thread_counts[random_count(0, THREAD_COUNT_COUNT - 1)]);
}

// Cuts the sequence into random chunks beside rows of another sequence, on random thread counts.
static void world_cut(struct world *world, const char *variant, const float *expected) {
    size_t count = world->row_count * q_width(world);
    float *out = calloc(count, sizeof(float));
    assert_non_null(out);
    kv_open(world);
    for (uint32_t row = 0; row < world->row_count;) {
        struct backend *backend = random_backend(variant);
        uint32_t chunk = random_count(1, world->row_count - row);
        if (random_count(0, 1) == 0) chunk = random_count(1, chunk < 40 ? chunk : 40);
        uint32_t other_limit = world->row_count < BLOCK ? world->row_count : BLOCK;
        world_step(world, backend, row, chunk, random_count(0, other_limit), out);
        backend_close(backend);
        row += chunk;
    }
    kv_close(world);
    assert_memory_equal(out, expected, count * sizeof(float));
    free(out);
}

static void row_never_depends_on_chunks_batches_threads_or_later_cells(void **state) {
    (void)state;
    for (VARIANTS(variant)) {
        struct backend *one = backend_make(*variant, 1);
        for (size_t s = 0; s < SHAPE_COUNT; s++) {
            struct world world;
            world_init(&world, shapes[s], fixture_dtypes[(s + 1) % 3], random_count(1, 110));
            float *expected = calloc(world.row_count * q_width(&world), sizeof(float));
            assert_non_null(expected);
            kv_open(&world);
            for (uint32_t row = 0; row < world.row_count; row++) {
                world_step(&world, one, row, 1, 0, expected);
            }
            kv_close(&world);
            for (size_t i = 0; i < world.row_count * q_width(&world); i++) {
                assert_false(isnan(expected[i]));
            }
            for (int cut = 0; cut < 2; cut++) {
                world_cut(&world, *variant, expected);
            }
            free(expected);
            world_fini(&world);
        }
        backend_close(one);
    }
}

static void row_of_a_long_context_never_depends_on_chunks_batches_or_threads(void **state) {
    (void)state;
    for (VARIANTS(variant)) {
        struct backend *one = backend_make(*variant, 1);
        for (int dtype = 0; dtype < 3; dtype++) {
            struct world world;
            world_init(&world, (struct attention_shape){4, 2, 8}, fixture_dtypes[dtype],
                       LONG_ROW_COUNT);
            size_t count = world.row_count * q_width(&world);
            float *expected = calloc(count, sizeof(float));
            float *out = malloc(count * sizeof(float));
            assert_true(expected != NULL && out != NULL);
            kv_open(&world);
            world_step(&world, one, 0, world.row_count, 0, expected);
            memcpy(out, expected, count * sizeof(float));
            for (int run = 0; run < 30; run++) {
                struct backend *backend = random_backend(*variant);
                uint32_t rows[DECODE_ROW_COUNT];
                for (int i = 0; i < DECODE_ROW_COUNT; i++) {
                    rows[i] = random_count(0, run % 3 == 0 ? 50 : LONG_ROW_COUNT - 1);
                }
                rows[0] = random_count(0, LONG_ROW_COUNT - 1);
                world_decode(&world, backend, rows, out);
                backend_close(backend);
            }
            kv_close(&world);
            assert_memory_equal(out, expected, count * sizeof(float));
            world_cut(&world, *variant, expected);
            free(out);
            free(expected);
            world_fini(&world);
        }
        backend_close(one);
    }
}

// The largest heads and groups: partial results of a context do not fit into memory together.
static void widest_queries_never_depend_on_threads(void **state) {
    (void)state;
    enum { ROW_COUNT = 1060, SEEN_COUNT = 2 };
    for (VARIANTS(variant)) {
        struct backend *one = backend_make(*variant, 1);
        struct backend *seven = backend_make(*variant, 7);
        struct world world;
        world_init(&world, (struct attention_shape){34, 1, MODEL_HEAD_SIZE_MAX}, DTYPE_BF16,
                   ROW_COUNT);
        kv_open(&world);
        world_store(&world, one);
        size_t count = world.row_count * q_width(&world);
        float *expected = calloc(count, sizeof(float));
        float *out = calloc(count, sizeof(float));
        assert_true(expected != NULL && out != NULL);
        uint32_t first = ROW_COUNT - SEEN_COUNT;
        world_step(&world, one, first, SEEN_COUNT, 0, expected);
        world_step(&world, seven, first + 1, 1, 0, out);
        world_step(&world, seven, first, 1, 3, out);
        assert_memory_equal(out, expected, count * sizeof(float));
        double query[MODEL_HEAD_SIZE_MAX];
        expected_query(&world, ROW_COUNT - 1, 33, query);
        for (uint32_t d = 0; d < MODEL_HEAD_SIZE_MAX; d++) {
            float got = out[(ROW_COUNT - 1) * q_width(&world) + 33 * MODEL_HEAD_SIZE_MAX + d];
            assert_true(fabs((double)got - query[d]) <= 2e-3);
        }
        free(out);
        free(expected);
        kv_close(&world);
        world_fini(&world);
        backend_close(seven);
        backend_close(one);
    }
}

static void scores_far_apart_do_not_overflow(void **state) {
    (void)state;
    for (VARIANTS(variant)) {
        struct backend *backend = backend_make(*variant, 1);
        struct world world;
        world_init(&world, (struct attention_shape){2, 1, 16}, DTYPE_F32, 90);
        for (size_t i = 0; i < world.row_count * q_width(&world); i++) {
            world.q[i] *= 1000;
        }
        kv_open(&world);
        float *out = calloc(world.row_count * q_width(&world), sizeof(float));
        assert_non_null(out);
        world_step(&world, backend, 0, world.row_count, 0, out);
        for (size_t i = 0; i < world.row_count * q_width(&world); i++) {
            assert_true(fabsf(out[i]) <= 1.0001f);
        }
        free(out);
        kv_close(&world);
        world_fini(&world);
        backend_close(backend);
    }
}

// Rows of a chunk are computed together, but the later ones do not exist for the earlier ones.
static void infinite_value_reaches_only_rows_that_see_it(void **state) {
    (void)state;
    enum { ROW_COUNT = 45, INFINITE_ROW = 38 };
    for (VARIANTS(variant)) {
        struct backend *backend = backend_make(*variant, 1);
        struct world world;
        world_init(&world, (struct attention_shape){2, 2, 16}, DTYPE_F32, ROW_COUNT);
        for (size_t i = 0; i < kv_width(&world); i++) {
            world.v[INFINITE_ROW * kv_width(&world) + i] = INFINITY;
        }
        kv_open(&world);
        float *out = calloc(world.row_count * q_width(&world), sizeof(float));
        assert_non_null(out);
        world_step(&world, backend, 0, world.row_count, 0, out);
        for (size_t i = 0; i < world.row_count * q_width(&world); i++) {
            assert_int_equal(isfinite(out[i]) != 0, i / q_width(&world) < INFINITE_ROW);
        }
        free(out);
        kv_close(&world);
        world_fini(&world);
        backend_close(backend);
    }
}

// -- rotations ------------------------------------------------------------------------------------

// The table's angle is rounded to f32 after the frequency was: relative 2^-23 in all, and twice
// that where a scaling adds steps of its own.
static void rope_compare(const struct model_config *config, const double *frequencies,
                         double relative) {
    enum { POSITION_COUNT = 400 };
    uint32_t half = config->head_size / 2;
    float *table = guarded_alloc((size_t)POSITION_COUNT * config->head_size * sizeof(float));
    rope_table_fill(config, POSITION_COUNT, table);
    for (uint32_t p = 0; p < POSITION_COUNT; p++) {
        for (uint32_t j = 0; j < half; j++) {
            double angle = p * frequencies[j];
            double tolerance = angle * relative + 0x1p-23;
            const float *pair = table + ((size_t)p * half + j) * 2;
            assert_true(fabs(pair[0] - cos(angle)) <= tolerance);
            assert_true(fabs(pair[1] - sin(angle)) <= tolerance);
        }
    }
    guarded_free(table, (size_t)POSITION_COUNT * config->head_size * sizeof(float));
}

static void rope_table_follows_the_formula_of_each_kind(void **state) {
    (void)state;
    struct model_config config = {
        .head_size = 128,
        .rope = {.theta = 500000,
                 .factor = 8,
                 .low_freq_factor = 1,
                 .high_freq_factor = 4,
                 .original_position_count = 8192},
    };
    const double pi = acos(-1);
    double plain[64], linear[64], llama3[64];
    int kinds[3] = {0};
    for (int j = 0; j < 64; j++) {
        plain[j] = pow(500000, -j / 64.0);
        linear[j] = plain[j] / 8;
        double waves = 8192 * plain[j] / (2 * pi);
        double smooth = (waves - 1) / (4 - 1);
        if (smooth < 0) smooth = 0;
        if (smooth > 1) smooth = 1;
        kinds[smooth <= 0 ? 0 : smooth >= 1 ? 2 : 1]++;
        llama3[j] = (1 - smooth) * plain[j] / 8 + smooth * plain[j];
    }
    assert_true(kinds[0] > 0 && kinds[1] > 0 && kinds[2] > 0);
    config.rope.kind = ROPE_DEFAULT;
    rope_compare(&config, plain, 4 * 0x1p-24);
    config.rope.kind = ROPE_LINEAR;
    rope_compare(&config, linear, 4 * 0x1p-24);
    config.rope.kind = ROPE_LLAMA3;
    rope_compare(&config, llama3, 16 * 0x1p-24);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_is_the_softmax_of_all_positions_up_to_the_row),
        cmocka_unit_test(attention_is_right_for_long_contexts),
        cmocka_unit_test(row_never_depends_on_chunks_batches_threads_or_later_cells),
        cmocka_unit_test(row_of_a_long_context_never_depends_on_chunks_batches_or_threads),
        cmocka_unit_test(widest_queries_never_depend_on_threads),
        cmocka_unit_test(scores_far_apart_do_not_overflow),
        cmocka_unit_test(infinite_value_reaches_only_rows_that_see_it),
        cmocka_unit_test(rope_table_follows_the_formula_of_each_kind),
    };
    return cmocka_run_group_tests(tests, fixture_seed, NULL);
}
