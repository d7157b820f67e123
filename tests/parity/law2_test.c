// Law 2: a token never depends on how the work was cut. Random cases compare, bit by bit, the
// logits of every row of a pipeline (random stages, splits, microbatches, prompt chunks, block ids,
// threads and shared prefixes, in KV memory full of NaN, with any format of weights) with one stage
// that computes one sequence, one token at a time, on one thread.
//
//   STAGECOACH_SEED=N   seed of the first case; the following cases take the following seeds
//   STAGECOACH_CASES=N  how many cases, for each kernel variant
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "harness.h"

enum {
    SEQUENCE_COUNT_MAX = 6,
    LENGTH_MAX = 130, // positions of a sequence: five blocks
    SEQUENCE_BLOCK_COUNT_MAX = (LENGTH_MAX + KV_BLOCK_POSITION_COUNT - 1) / KV_BLOCK_POSITION_COUNT,
    ROW_COUNT_MAX = 96, // of a microbatch
    BLOCK_COUNT = SEQUENCE_COUNT_MAX * SEQUENCE_BLOCK_COUNT_MAX + 5,
    THREAD_COUNT_MAX = 3,
    STAGE_COUNT_MAX = 8,
    CASE_COUNT_DEFAULT = SANITIZED ? 6 : 60,
};
static const uint64_t SEED_DEFAULT = 1;

struct sequence {
    uint32_t length;
    uint32_t tokens[LENGTH_MAX];
    uint32_t blocks[SEQUENCE_BLOCK_COUNT_MAX];
    uint32_t done;   // positions computed, or taken from the first sequence's blocks
    uint32_t shared; // positions whose blocks are those of sequence 0, which computes them
    float *logits;   // (length, vocabulary), of the reference
    bool *compared;  // length
};

struct law_case {
    uint64_t seed;
    struct random random;
    const struct reference *checkpoint;
    const char *variant;
    enum weight_format weight_format;
    enum dtype activation_dtype, kv_dtype;
    uint32_t thread_count;
    uint32_t stage_count;
    uint32_t layer_counts[STAGE_COUNT_MAX];
    uint32_t sequence_count;
    struct sequence sequences[SEQUENCE_COUNT_MAX];
};

static struct reference checkpoints[CHECKPOINT_COUNT_MAX];
static uint32_t checkpoint_count;

static uint64_t environment_number(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text == NULL || *text == '\0' ? otherwise : strtoull(text, NULL, 10);
}

// -- drawing a case -------------------------------------------------------------------------------

// 1, 2, 4 or 8 stages, as many as the layers allow, and any split of the layers.
static void draw_split(struct law_case *c) {
    uint32_t layer_count = c->checkpoint->config.layer_count;
    uint32_t log2_max = layer_count >= 8 ? 3 : layer_count >= 4 ? 2 : layer_count >= 2 ? 1 : 0;
    c->stage_count = 1u << random_below(&c->random, log2_max + 1);
    for (uint32_t i = 0; i < c->stage_count; i++)
        c->layer_counts[i] = 1;
    for (uint32_t left = layer_count - c->stage_count; left > 0; left--)
        c->layer_counts[random_below(&c->random, c->stage_count)]++;
}

static void draw_sequences(struct law_case *c) {
    uint32_t ids[BLOCK_COUNT];
    uint32_t id_count = 0;
    for (uint32_t i = 0; i < BLOCK_COUNT; i++)
        ids[i] = i;
    random_shuffle(&c->random, ids, BLOCK_COUNT);
    // The model that is made up costs more than all others together.
    bool is_wide = c->checkpoint->load_format == LOAD_FORMAT_DUMMY;
    uint32_t length_max = is_wide ? LENGTH_MAX / 2 : LENGTH_MAX;
    c->sequence_count = 1 + random_below(&c->random, is_wide ? 2 : SEQUENCE_COUNT_MAX);
    for (uint32_t s = 0; s < c->sequence_count; s++) {
        struct sequence *sequence = &c->sequences[s];
        const struct sequence *first = &c->sequences[0];
        sequence->length = 1 + random_below(&c->random, length_max);
        for (uint32_t i = 0; i < sequence->length; i++)
            sequence->tokens[i] = random_below(&c->random, c->checkpoint->config.vocabulary_size);
        for (uint32_t b = 0; b < SEQUENCE_BLOCK_COUNT_MAX; b++)
            sequence->blocks[b] = ids[id_count++];
        uint32_t common = sequence->length < first->length ? sequence->length : first->length;
        uint32_t block_count = (common - 1) / KV_BLOCK_POSITION_COUNT; // the last row is computed
        if (s == 0 || block_count == 0 || random_below(&c->random, 2) == 0) continue;
        block_count = 1 + random_below(&c->random, block_count);
        sequence->shared = block_count * KV_BLOCK_POSITION_COUNT;
        sequence->done = sequence->shared;
        memcpy(sequence->tokens, first->tokens, sequence->shared * sizeof(uint32_t));
        memcpy(sequence->blocks, first->blocks, block_count * sizeof(uint32_t));
    }
}

static void draw_case(struct law_case *c, uint64_t seed, const char *variant) {
    static const enum dtype kv_dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    *c = (struct law_case){.seed = seed, .random.seed = seed, .variant = variant};
    // The model that is made up (the last) is wide enough for threads to share most of its work.
    bool is_wide = random_below(&c->random, 6) == 0;
    c->checkpoint = &checkpoints[is_wide ? checkpoint_count - 1
                                         : random_below(&c->random, checkpoint_count - 1)];
    c->weight_format = (enum weight_format)(seed % WEIGHT_FORMAT_COUNT); // few cases have all
    c->activation_dtype = random_below(&c->random, 2) == 0 ? DTYPE_F32 : DTYPE_BF16;
    c->kv_dtype = kv_dtypes[random_below(&c->random, 3)];
    c->thread_count = 1 + random_below(&c->random, THREAD_COUNT_MAX);
    draw_split(c);
    draw_sequences(c);
}

static struct pipeline *case_pipeline(const struct law_case *c, struct backend *backend,
                                      const uint32_t *layer_counts, uint32_t stage_count) {
    struct model_options options = {.activation_dtype = c->activation_dtype,
                                    .kv_dtype = c->kv_dtype,
                                    .weight_format = c->weight_format,
                                    .kv_block_count = BLOCK_COUNT,
                                    .row_count_max = ROW_COUNT_MAX,
                                    .sample_count_max = ROW_COUNT_MAX,
                                    .position_count_max = LENGTH_MAX};
    return pipeline_open(backend, c->checkpoint, layer_counts, stage_count, &options);
}

// -- the reference --------------------------------------------------------------------------------

static void compute_reference(struct law_case *c, struct backend *backend) {
    const struct model_config *config = &c->checkpoint->config;
    struct pipeline *pipeline = case_pipeline(c, backend, &config->layer_count, 1);
    for (uint32_t s = 0; s < c->sequence_count; s++) {
        struct sequence *sequence = &c->sequences[s];
        sequence->logits =
            memory_array((size_t)sequence->length * config->vocabulary_size, sizeof(float));
        sequence->compared = memory_array(sequence->length, sizeof(bool));
        assert_non_null(sequence->logits);
        assert_non_null(sequence->compared);
        const uint32_t blocks[SEQUENCE_BLOCK_COUNT_MAX] = {0, 1, 2, 3, 4};
        for (uint32_t position = 0; position < sequence->length; position++) {
            struct batch_sequence row = {
                .row_count = 1, .position_first = position, .blocks = blocks};
            struct batch batch = {.row_count = 1, .sequence_count = 1, .sequences = &row};
            pipeline_step(pipeline, &batch, &sequence->tokens[position], NULL, NULL);
            memcpy(sequence->logits + (size_t)position * config->vocabulary_size,
                   pipeline_logits(pipeline, &(uint32_t){0}, 1),
                   config->vocabulary_size * sizeof(float));
        }
    }
    pipeline_close(pipeline);
}

// -- the same work, cut ---------------------------------------------------------------------------

struct microbatch {
    uint32_t row_count;
    uint32_t sequence_count;
    uint32_t tokens[ROW_COUNT_MAX];
    struct batch_sequence parts[SEQUENCE_COUNT_MAX];
    struct sequence *row_sequences[ROW_COUNT_MAX];
    uint32_t row_positions[ROW_COUNT_MAX];
};

// One row as in decoding, a few, any number, or as many as fit.
static uint32_t draw_chunk(struct random *random, uint32_t count_max) {
    switch (random_below(random, 4)) {
    case 0:
        return 1;
    case 1:
        return 1 + random_below(random, count_max < 7 ? count_max : 7);
    case 2:
        return 1 + random_below(random, count_max);
    default:
        return count_max;
    }
}

static void microbatch_add(struct microbatch *m, struct sequence *sequence, uint32_t row_count) {
    m->parts[m->sequence_count++] = (struct batch_sequence){.row_first = m->row_count,
                                                            .row_count = row_count,
                                                            .position_first = sequence->done,
                                                            .blocks = sequence->blocks};
    for (uint32_t i = 0; i < row_count; i++) {
        m->tokens[m->row_count] = sequence->tokens[sequence->done];
        m->row_sequences[m->row_count] = sequence;
        m->row_positions[m->row_count] = sequence->done;
        m->row_count++;
        sequence->done++;
    }
}

// Some of the sequences in any order, each with a chunk of what is left of it.
static void microbatch_draw(struct law_case *c, struct microbatch *m) {
    m->row_count = 0;
    m->sequence_count = 0;
    uint32_t order[SEQUENCE_COUNT_MAX];
    for (uint32_t i = 0; i < c->sequence_count; i++)
        order[i] = i;
    random_shuffle(&c->random, order, c->sequence_count);
    uint32_t first_done = c->sequences[0].done; // before this microbatch
    uint32_t room = draw_chunk(&c->random, ROW_COUNT_MAX);
    for (uint32_t i = 0; i < c->sequence_count; i++) {
        struct sequence *sequence = &c->sequences[order[i]];
        uint32_t left = sequence->length - sequence->done;
        if (left > room - m->row_count) left = room - m->row_count;
        if (left == 0 || sequence->shared > first_done) continue;
        if (m->row_count > 0 && random_below(&c->random, 4) == 0) continue;
        microbatch_add(m, sequence, draw_chunk(&c->random, left));
    }
}

static void compare_row(const struct law_case *c, struct sequence *sequence, uint32_t position,
                        const float *logits) {
    uint32_t width = c->checkpoint->config.vocabulary_size;
    const float *wanted = sequence->logits + (size_t)position * width;
    sequence->compared[position] = true;
    if (memcmp(logits, wanted, width * sizeof(float)) == 0) return;
    uint32_t i = 0;
    while (memcmp(&logits[i], &wanted[i], sizeof(float)) == 0)
        i++;
    print_error("%s, %s, weights %s, activations %s, kv %s, %u threads, %u stages: sequence %u "
                "position %u logit %u is %.9g, not %.9g\n",
                c->checkpoint->name, c->variant, weight_format_name(c->weight_format),
                dtype_name(c->activation_dtype), dtype_name(c->kv_dtype), c->thread_count,
                c->stage_count, (unsigned)(sequence - c->sequences), position, i, (double)logits[i],
                (double)wanted[i]);
    fail_msg("repeat: STAGECOACH_SEED=%llu STAGECOACH_CASES=1 law2_test",
             (unsigned long long)c->seed);
}

// Asks for the logits of all rows, in any order and in groups of any size.
static void compare_rows(struct law_case *c, const struct microbatch *m,
                         struct pipeline *pipeline) {
    uint32_t rows[ROW_COUNT_MAX];
    for (uint32_t i = 0; i < m->row_count; i++)
        rows[i] = i;
    random_shuffle(&c->random, rows, m->row_count);
    uint32_t width = c->checkpoint->config.vocabulary_size;
    for (uint32_t at = 0; at < m->row_count;) {
        uint32_t count = draw_chunk(&c->random, m->row_count - at);
        const float *logits = pipeline_logits(pipeline, rows + at, count);
        for (uint32_t i = 0; i < count; i++, at++)
            compare_row(c, m->row_sequences[rows[at]], m->row_positions[rows[at]],
                        logits + (size_t)i * width);
    }
}

static void compare_cut(struct law_case *c, struct backend *backend) {
    struct pipeline *pipeline = case_pipeline(c, backend, c->layer_counts, c->stage_count);
    pipeline_poison(pipeline);
    for (;;) {
        struct microbatch m;
        microbatch_draw(c, &m);
        if (m.row_count == 0) break;
        struct batch batch = {
            .row_count = m.row_count, .sequence_count = m.sequence_count, .sequences = m.parts};
        pipeline_step(pipeline, &batch, m.tokens, NULL, NULL);
        compare_rows(c, &m, pipeline);
    }
    pipeline_close(pipeline);
}

static void case_end(struct law_case *c) {
    for (uint32_t s = 0; s < c->sequence_count; s++) {
        struct sequence *sequence = &c->sequences[s];
        for (uint32_t i = sequence->shared; i < sequence->length; i++)
            assert_true(sequence->compared[i]);
        free(sequence->logits);
        free(sequence->compared);
    }
}

static void run_cases(const char *variant) {
    uint64_t seed = environment_number("STAGECOACH_SEED", SEED_DEFAULT);
    uint64_t case_count = environment_number("STAGECOACH_CASES", CASE_COUNT_DEFAULT);
    print_message("%s: STAGECOACH_SEED=%llu STAGECOACH_CASES=%llu law2_test\n", variant,
                  (unsigned long long)seed, (unsigned long long)case_count);
    struct backend *backends[THREAD_COUNT_MAX];
    for (uint32_t i = 0; i < THREAD_COUNT_MAX; i++)
        backends[i] = harness_backend(variant, i + 1);
    struct law_case *c = memory_array(1, sizeof(*c));
    assert_non_null(c);
    for (uint64_t i = 0; i < case_count; i++) {
        draw_case(c, seed + i, variant);
        compute_reference(c, backends[0]);
        compare_cut(c, backends[c->thread_count - 1]);
        case_end(c);
    }
    free(c);
    for (uint32_t i = 0; i < THREAD_COUNT_MAX; i++)
        backend_close(backends[i]);
}

static void logits_are_bitwise_the_same_however_the_work_is_cut(void **state) {
    (void)state;
    for (const char *const *variant = backend_cpu_variants(); *variant != NULL; variant++)
        run_cases(*variant);
}

static int setup(void **state) {
    (void)state;
    checkpoint_count = checkpoints_open(checkpoints);
    assert_true(checkpoint_count < CHECKPOINT_COUNT_MAX);
    reference_wide(&checkpoints[checkpoint_count++]);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_bitwise_the_same_however_the_work_is_cut),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
