// The model against transformers' LlamaForCausalLM: residual stream after every layer, logits and
// greedy continuations, for each checkpoint of the test data, each kernel variant of this processor
// and each KV dtype. make_checkpoints.py says what the files hold.
//
// Tolerances, for the greatest difference within a row:
//   KV f32: relative to the row's largest value, TOLERANCE_F32. Both sides sum in f32 in their own
//     order; transformers' own two kernels differ by up to 1e-6 of a row's largest value.
//   KV bf16: what expected.json says, four times the change that rounding keys and values to bf16
//     made in transformers. KV f16: a quarter of that (three bits more).
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/check.h"
#include "base/memory.h"
#include "harness.h"

static const double TOLERANCE_F32 = 2e-5;
// bf16 keeps 8 bits of a value: so much of a row's largest value is lost at each layer boundary, at
// most, and layers pass it on.
static const double TOLERANCE_BF16_ACTIVATIONS = 0.03;

static struct reference checkpoints[CHECKPOINT_COUNT_MAX];
static uint32_t checkpoint_count;

// -- expected results -----------------------------------------------------------------------------

struct expected {
    struct ids prompt, rows, greedy;
    float *logits;                         // (rows, vocabulary)
    float *hidden;                         // (layers + 1, rows, hidden)
    double kv_bf16_logits, kv_bf16_hidden; // tolerances
};

static float *floats_read(const char *directory, const char *name, size_t count) {
    char path[640];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    char *data;
    size_t size_bytes;
    struct error error;
    if (file_read(path, 1 << 30, &data, &size_bytes, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    assert_int_equal(size_bytes, count * sizeof(float));
    return (float *)(void *)data;
}

static double tolerance_read(const json_t *root, const char *name) {
    double value = json_number_value(json_object_get(json_object_get(root, "tolerance"), name));
    assert_true(value > 0);
    return value;
}

// The results in `directory` for a checkpoint that may be elsewhere.
static struct expected expected_open(const struct reference *checkpoint, const char *directory) {
    json_t *root = json_read(directory, "expected.json");
    const json_t *greedy = json_object_get(root, "greedy");
    struct expected e = {
        .prompt = ids_read(json_object_get(root, "prompt")),
        .rows = ids_read(json_object_get(root, "rows")),
        .greedy = greedy != NULL ? ids_read(greedy) : (struct ids){0},
        .kv_bf16_logits = tolerance_read(root, "kv_bf16_logits"),
        .kv_bf16_hidden = tolerance_read(root, "kv_bf16_hidden"),
    };
    json_decref(root);
    const struct model_config *config = &checkpoint->config;
    e.logits = floats_read(directory, "logits.f32", (size_t)e.rows.count * config->vocabulary_size);
    e.hidden = floats_read(directory, "hidden.f32",
                           (size_t)(config->layer_count + 1) * e.rows.count * config->hidden_size);
    return e;
}

static void expected_close(struct expected *e) {
    free(e->prompt.values);
    free(e->rows.values);
    free(e->greedy.values);
    free(e->logits);
    free(e->hidden);
}

// -- comparing ------------------------------------------------------------------------------------

// Greatest difference of a row; a NaN is infinitely far from everything.
static double difference(const float *got, const float *wanted, uint32_t width, double *max_out) {
    double difference_max = 0;
    *max_out = 0;
    for (uint32_t i = 0; i < width; i++) {
        double d = fabs((double)got[i] - (double)wanted[i]);
        if (!(d <= difference_max)) difference_max = isnan(d) ? INFINITY : d;
        *max_out = fmax(*max_out, fabs((double)wanted[i]));
    }
    return difference_max;
}

struct comparison {
    const struct reference *checkpoint;
    const struct expected *expected;
    const char *variant;
    enum dtype activation_dtype, kv_dtype;
    double relative_max; // the greatest difference so far, of a row's largest value
};

static double tolerance_of(const struct comparison *c, double row_max, double kv_bf16) {
    if (c->activation_dtype == DTYPE_BF16) return row_max * TOLERANCE_BF16_ACTIVATIONS;
    if (c->kv_dtype == DTYPE_F32) return row_max * TOLERANCE_F32;
    return c->kv_dtype == DTYPE_F16 ? kv_bf16 / 4 : kv_bf16;
}

static void compare_row(struct comparison *c, const float *got, const float *wanted, uint32_t width,
                        double kv_bf16, const char *what, uint32_t index, uint32_t row) {
    double row_max;
    double d = difference(got, wanted, width, &row_max);
    double tolerance = tolerance_of(c, row_max, kv_bf16);
    c->relative_max = fmax(c->relative_max, d / row_max);
    if (d <= tolerance) return;
    fail_msg("%s, %s, activations %s, kv %s: %s %u of row %u differ by %g, more than %g",
             c->checkpoint->name, c->variant, dtype_name(c->activation_dtype),
             dtype_name(c->kv_dtype), what, index, row, d, tolerance);
}

static void compare_layer(void *ctx, uint32_t index, const float *residual) {
    struct comparison *c = ctx;
    uint32_t width = c->checkpoint->config.hidden_size;
    const struct ids *rows = &c->expected->rows;
    const float *wanted = c->expected->hidden + (size_t)index * rows->count * width;
    for (uint32_t i = 0; i < rows->count; i++)
        compare_row(c, residual + (size_t)rows->values[i] * width, wanted + (size_t)i * width,
                    width, c->expected->kv_bf16_hidden, "hidden states after layer", index,
                    rows->values[i]);
    if (c->activation_dtype != DTYPE_BF16) return;
    for (size_t i = 0; i < (size_t)rows->count * width; i++)
        assert_true(residual[i] == bf16_to_f32(f32_to_bf16(residual[i])));
}

static void compare_logits(struct comparison *c, struct run *run) {
    uint32_t width = c->checkpoint->config.vocabulary_size;
    const struct ids *rows = &c->expected->rows;
    const float *logits = pipeline_logits(run->pipeline, rows->values, rows->count);
    for (uint32_t i = 0; i < rows->count; i++)
        compare_row(c, logits + (size_t)i * width, c->expected->logits + (size_t)i * width, width,
                    c->expected->kv_bf16_logits, "logits", i, rows->values[i]);
}

// Steps along the expected continuation, so that each token is judged on its own: the best one must
// be the expected one, unless rounding of KV or activations may have turned a close choice.
static void compare_greedy(struct comparison *c, struct run *run) {
    uint32_t width = c->checkpoint->config.vocabulary_size;
    const struct ids *greedy = &c->expected->greedy;
    const float *logits = pipeline_logits(run->pipeline, &(uint32_t){run->position - 1}, 1);
    for (uint32_t i = 0; i < greedy->count; i++) {
        uint32_t token = greedy->values[i];
        uint32_t best = best_token(logits, width);
        double lead = (double)logits[best] - (double)logits[token];
        double row_max = fabs((double)logits[best]);
        bool rounded = c->kv_dtype != DTYPE_F32 || c->activation_dtype != DTYPE_F32;
        // Two logits, each off by the tolerance.
        double allowed = 2 * tolerance_of(c, row_max, c->expected->kv_bf16_logits);
        if (best != token && (!rounded || lead > allowed))
            fail_msg("%s, %s, activations %s, kv %s: greedy token %u is %u (by %g), not %u",
                     c->checkpoint->name, c->variant, dtype_name(c->activation_dtype),
                     dtype_name(c->kv_dtype), i, best, lead, token);
        run_step(run, &token, 1, NULL, NULL);
        logits = pipeline_logits(run->pipeline, &(uint32_t){0}, 1);
    }
}

// Returns the greatest difference, of a row's largest value.
static double compare_checkpoint(struct backend *backend, const struct reference *checkpoint,
                                 const char *results, enum dtype activation_dtype,
                                 enum dtype kv_dtype) {
    struct expected e = expected_open(checkpoint, results);
    struct comparison c = {.checkpoint = checkpoint,
                           .expected = &e,
                           .variant = backend_variant(backend),
                           .activation_dtype = activation_dtype,
                           .kv_dtype = kv_dtype};
    const struct model_options options = {.activation_dtype = activation_dtype,
                                          .kv_dtype = kv_dtype,
                                          .position_count_max = e.prompt.count + e.greedy.count};
    struct run run = run_open(backend, checkpoint, &options);
    run_step(&run, e.prompt.values, e.prompt.count, compare_layer, &c);
    compare_logits(&c, &run);
    compare_greedy(&c, &run);
    run_close(&run);
    expected_close(&e);
    return c.relative_max;
}

static void compare_checkpoints(enum dtype activation_dtype, enum dtype kv_dtype) {
    for (const char *const *variant = backend_cpu_variants(); *variant != NULL; variant++) {
        struct backend *backend = harness_backend(*variant, 2);
        double relative_max = 0;
        for (uint32_t i = 0; i < checkpoint_count; i++)
            relative_max = fmax(relative_max, compare_checkpoint(backend, &checkpoints[i],
                                                                 checkpoints[i].directory,
                                                                 activation_dtype, kv_dtype));
        print_message("%s, activations %s, kv %s: greatest difference %.1e of a row's maximum\n",
                      *variant, dtype_name(activation_dtype), dtype_name(kv_dtype), relative_max);
        backend_close(backend);
    }
}

static void model_computes_what_transformers_does_with_kv_f32(void **state) {
    (void)state;
    compare_checkpoints(DTYPE_F32, DTYPE_F32);
}

static void model_computes_about_the_same_with_kv_bf16(void **state) {
    (void)state;
    compare_checkpoints(DTYPE_F32, DTYPE_BF16);
}

static void model_computes_about_the_same_with_kv_f16(void **state) {
    (void)state;
    compare_checkpoints(DTYPE_F32, DTYPE_F16);
}

static void model_rounds_bf16_activations_at_layer_boundaries(void **state) {
    (void)state;
    compare_checkpoints(DTYPE_BF16, DTYPE_F32);
}

// -- opening --------------------------------------------------------------------------------------

static void open_refused(struct backend *backend, const struct reference *checkpoint,
                         const struct weights *weights, const struct model_options *options,
                         enum status wanted, const char *sentence_part) {
    struct model *model = NULL;
    struct error error = {0};
    enum status status = model_open(backend, &checkpoint->config, weights, options, &model, &error);
    assert_int_equal(status, wanted);
    assert_null(model);
    if (strstr(error.text, sentence_part) == NULL) fail_msg("the sentence is: %s", error.text);
}

static void model_says_what_it_cannot_open(void **state) {
    (void)state;
    struct reference wide;
    reference_wide(&wide);
    struct weights *weights =
        reference_weights(&wide, &(struct weights_range){.layer_count = wide.config.layer_count});
    struct backend *backend = harness_backend("reference", 1);
    const struct model_options good = {.activation_dtype = DTYPE_F32,
                                       .kv_dtype = DTYPE_F32,
                                       .kv_block_count = 1,
                                       .row_count_max = 1,
                                       .sample_count_max = 1,
                                       .position_count_max = 32};
    struct model_options options = good;
    options.activation_dtype = DTYPE_F16;
    open_refused(backend, &wide, weights, &options, STATUS_UNSUPPORTED, "f16");
    options = good;
    options.kv_dtype = DTYPE_NONE;
    open_refused(backend, &wide, weights, &options, STATUS_UNSUPPORTED, "none");
    // 4 layers of keys and values of (2^32 - 1) blocks: more than a 47-bit address space.
    options = good;
    options.kv_block_count = UINT32_MAX;
    open_refused(backend, &wide, weights, &options, STATUS_NO_MEMORY, "562949953290240 bytes");
    backend_close(backend);
    weights_close(weights);
}

// -- the demo model -------------------------------------------------------------------------------

static const char DEMO_CHECKPOINT[] = STAGECOACH_SOURCE_DIR "/deploy/demo-model/checkpoint";
static const char TESTDATA[] = STAGECOACH_SOURCE_DIR "/tests/parity/testdata";
static const char DEMO_RESULTS[] = STAGECOACH_SOURCE_DIR "/tests/parity/testdata/demo";

static void demo_model_computes_what_transformers_does(void **state) {
    (void)state;
    struct reference demo;
    reference_open(DEMO_CHECKPOINT, &demo);
    for (const char *const *variant = backend_cpu_variants(); *variant != NULL; variant++) {
        struct backend *backend = harness_backend(*variant, 2);
        for (enum dtype kv = DTYPE_F32; kv <= DTYPE_F16; kv++)
            print_message("%s, kv %s: greatest difference %.1e of a row's maximum\n", *variant,
                          dtype_name(kv),
                          compare_checkpoint(backend, &demo, DEMO_RESULTS, DTYPE_F32, kv));
        backend_close(backend);
    }
}

// Whether the model, left to itself, continues the prompt with these tokens.
static bool continues_with(struct run *run, const struct ids *prompt, const struct ids *wanted) {
    run->position = 0;
    run_step(run, prompt->values, prompt->count, NULL, NULL);
    uint32_t row = prompt->count - 1;
    for (uint32_t i = 0; i < wanted->count; i++) {
        const float *logits = pipeline_logits(run->pipeline, &row, 1);
        uint32_t token = best_token(logits, run->checkpoint->config.vocabulary_size);
        if (token != wanted->values[i]) return false;
        if (i + 1 < wanted->count) run_step(run, &token, 1, NULL, NULL);
        row = 0;
    }
    return true;
}

// Each continuation must be the expected one if the best token always leads by more than
// margin_min; returns how many of all are.
static uint32_t compare_demo_greedy(struct run *run, const json_t *cases, double margin_min) {
    uint32_t equal_count = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *item = json_array_get(cases, i);
        struct ids prompt = ids_read(json_object_get(item, "prompt_ids"));
        struct ids wanted = ids_read(json_object_get(item, "ids"));
        bool equal = continues_with(run, &prompt, &wanted);
        if (!equal && json_number_value(json_object_get(item, "margin")) > margin_min)
            fail_msg("another continuation of: %s",
                     json_string_value(json_object_get(item, "prompt")));
        equal_count += equal;
        free(prompt.values);
        free(wanted.values);
    }
    return equal_count;
}

static void compare_demo(enum dtype kv_dtype, double margin_min) {
    struct reference demo;
    reference_open(DEMO_CHECKPOINT, &demo);
    json_t *root = json_read(TESTDATA, "demo_greedy.json");
    const json_t *cases = json_object_get(root, "cases");
    assert_true(json_array_size(cases) > 0);
    for (const char *const *variant = backend_cpu_variants(); *variant != NULL; variant++) {
        struct backend *backend = harness_backend(*variant, 2);
        const struct model_options options = {.activation_dtype = DTYPE_F32,
                                              .kv_dtype = kv_dtype,
                                              .position_count_max = demo.config.position_count_max};
        struct run run = run_open(backend, &demo, &options);
        uint32_t equal_count = compare_demo_greedy(&run, cases, margin_min);
        print_message("%s, kv %s: %u of %zu continuations equal\n", *variant, dtype_name(kv_dtype),
                      equal_count, json_array_size(cases));
        run_close(&run);
        backend_close(backend);
    }
    json_decref(root);
}

static void demo_model_continues_every_prompt_as_transformers_does(void **state) {
    (void)state;
    compare_demo(DTYPE_F32, 0);
}

// Rounding of keys and values moves two logits towards each other by the tolerance each, at most:
// a choice closer than that may turn.
static void demo_model_with_kv_bf16_continues_clear_prompts_the_same(void **state) {
    (void)state;
    json_t *root = json_read(DEMO_RESULTS, "expected.json");
    double tolerance = tolerance_read(root, "kv_bf16_logits");
    json_decref(root);
    compare_demo(DTYPE_BF16, 2 * tolerance);
}

static int setup(void **state) {
    (void)state;
    checkpoint_count = checkpoints_open(checkpoints);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(model_computes_what_transformers_does_with_kv_f32),
        cmocka_unit_test(model_computes_about_the_same_with_kv_bf16),
        cmocka_unit_test(model_computes_about_the_same_with_kv_f16),
        cmocka_unit_test(model_rounds_bf16_activations_at_layer_boundaries),
        cmocka_unit_test(model_says_what_it_cannot_open),
        cmocka_unit_test(demo_model_computes_what_transformers_does),
        cmocka_unit_test(demo_model_continues_every_prompt_as_transformers_does),
        cmocka_unit_test(demo_model_with_kv_bf16_continues_clear_prompts_the_same),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
