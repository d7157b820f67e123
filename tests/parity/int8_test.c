// What int8 weights cost: the logits of each weight format against those of the same model as its
// checkpoint stores it, for every checkpoint of the test data and the demo model, with bf16
// activations beside them for scale. KV memory is f32, so that nothing else is rounded.
//
// Rows are those of the prompts and, teacher forced, of the continuations that transformers found.
// docs/performance.md has the figures.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "harness.h"

enum {
    TEXT_COUNT_MAX = 40,
    LENGTH_MAX = 400,       // positions of a text
    VARIANT_TEXT_COUNT = 8, // the plain variant is slow
};

static const char DEMO_CHECKPOINT[] = STAGECOACH_SOURCE_DIR "/deploy/demo-model/checkpoint";
static const char TESTDATA[] = STAGECOACH_SOURCE_DIR "/tests/parity/testdata";

// -- texts ----------------------------------------------------------------------------------------

struct text {
    struct ids prompt, continuation;
    uint32_t length; // of both
    uint32_t tokens[LENGTH_MAX];
};

// All that one model is asked.
struct texts {
    uint32_t count;
    uint32_t row_count; // of all
    struct text texts[TEXT_COUNT_MAX];
};

static void texts_add(struct texts *texts, const json_t *prompt, const json_t *continuation) {
    assert_true(texts->count < TEXT_COUNT_MAX);
    struct text *text = &texts->texts[texts->count++];
    text->prompt = ids_read(prompt);
    text->continuation = ids_read(continuation);
    text->length = text->prompt.count + text->continuation.count;
    assert_true(text->length <= LENGTH_MAX);
    uint32_t *end = text->tokens + text->prompt.count;
    memcpy(text->tokens, text->prompt.values, text->prompt.count * sizeof(*end));
    memcpy(end, text->continuation.values, text->continuation.count * sizeof(*end));
    texts->row_count += text->length;
}

static void texts_of_checkpoint(const struct reference *checkpoint, struct texts *texts_out) {
    *texts_out = (struct texts){0};
    json_t *root = json_read(checkpoint->directory, "expected.json");
    texts_add(texts_out, json_object_get(root, "prompt"), json_object_get(root, "greedy"));
    json_decref(root);
}

// Every n-th, so that there are at most count_max.
static void texts_of_demo(struct texts *texts_out, size_t count_max) {
    *texts_out = (struct texts){0};
    json_t *root = json_read(TESTDATA, "demo_greedy.json");
    const json_t *cases = json_object_get(root, "cases");
    size_t case_count = json_array_size(cases);
    for (size_t i = 0; i < case_count; i += (case_count + count_max - 1) / count_max) {
        const json_t *item = json_array_get(cases, i);
        texts_add(texts_out, json_object_get(item, "prompt_ids"), json_object_get(item, "ids"));
    }
    json_decref(root);
    assert_true(texts_out->count > 0);
}

static void texts_close(struct texts *texts) {
    for (uint32_t i = 0; i < texts->count; i++) {
        free(texts->texts[i].prompt.values);
        free(texts->texts[i].continuation.values);
    }
}

// -- formats --------------------------------------------------------------------------------------

// What was measured. Inputs that differ by a millionth are rounded to other neighbours here and
// there, which alone moves these figures by a quarter; a wrong scale, group, rounding or format
// moves them by more than LOSS_FACTOR, up or down.
struct expected_loss {
    double difference, divergence, prompts, continuations; // as in struct loss
};
static const double LOSS_FACTOR = 2;
// Of the best logit. Variants round a few inputs to different neighbours: they were seen to differ
// by 0.027, and two logits can move towards each other.
static const double VARIANT_LEAD = 0.06;

struct format {
    const char *name;
    enum weight_format weight_format;
    enum dtype activation_dtype;
    struct expected_loss checkpoints, demo;
};

static const struct format unquantized = {.name = "as stored", .activation_dtype = DTYPE_F32};
static const struct format formats[] = {
    {"bf16 activations",
     WEIGHT_FORMAT_CHECKPOINT,
     DTYPE_BF16,
     {0.029, 1.6e-4, 0.989, 0.997},
     {0.026, 5.7e-5, 1.000, 1.000}},
    {"int8-weight-only",
     WEIGHT_FORMAT_INT8_WEIGHT_ONLY,
     DTYPE_F32,
     {0.083, 1.5e-3, 0.961, 0.969},
     {0.057, 3.6e-4, 0.995, 1.000}},
    {"int8",
     WEIGHT_FORMAT_INT8,
     DTYPE_F32,
     {0.121, 3.4e-3, 0.958, 0.929},
     {0.071, 7.2e-4, 0.982, 0.997}},
    {"int8, bf16 activations",
     WEIGHT_FORMAT_INT8,
     DTYPE_BF16,
     {0.147, 3.5e-3, 0.955, 0.932},
     {0.078, 7.6e-4, 0.986, 0.999}},
};
enum { FORMAT_COUNT = sizeof(formats) / sizeof(formats[0]) };

static struct run format_run(struct backend *backend, const struct reference *checkpoint,
                             const struct format *format) {
    const struct model_options options = {.activation_dtype = format->activation_dtype,
                                          .kv_dtype = DTYPE_F32,
                                          .weight_format = format->weight_format,
                                          .position_count_max = LENGTH_MAX};
    return run_open(backend, checkpoint, &options);
}

// Logits of all rows of all texts, (texts->row_count, vocabulary); given back by free().
static float *texts_logits(struct backend *backend, const struct reference *checkpoint,
                           const struct texts *texts, const struct format *format) {
    uint32_t width = checkpoint->config.vocabulary_size;
    float *logits = memory_array((size_t)texts->row_count * width, sizeof(*logits));
    assert_non_null(logits);
    uint32_t rows[LENGTH_MAX];
    for (uint32_t i = 0; i < LENGTH_MAX; i++)
        rows[i] = i;
    struct run run = format_run(backend, checkpoint, format);
    float *out = logits;
    for (uint32_t i = 0; i < texts->count; i++) {
        const struct text *text = &texts->texts[i];
        run.position = 0;
        run_step(&run, text->tokens, text->length, NULL, NULL);
        size_t count = (size_t)text->length * width;
        memcpy(out, pipeline_logits(run.pipeline, rows, text->length), count * sizeof(*out));
        out += count;
    }
    run_close(&run);
    return logits;
}

// -- comparing ------------------------------------------------------------------------------------

// Shares of rows whose best token is the same.
struct agreement {
    uint32_t row_count;
    uint32_t equal_count;
};

struct loss {
    double difference_max; // of a logit, as a share of its row's largest
    double divergence_sum; // of the distributions of rows, in nats (Kullback and Leibler 1951)
    struct agreement prompts, continuations;
};

static double divergence_mean(const struct loss *loss) {
    return loss->divergence_sum / (loss->prompts.row_count + loss->continuations.row_count);
}

static double share_equal(const struct agreement *agreement) {
    return (double)agreement->equal_count / agreement->row_count;
}

// log of the sum of the exponentials of a row.
static double log_sum(const float *logits, uint32_t width) {
    double largest = (double)logits[best_token(logits, width)];
    double sum = 0;
    for (uint32_t i = 0; i < width; i++)
        sum += exp((double)logits[i] - largest);
    return largest + log(sum);
}

static double row_divergence(const float *got, const float *wanted, uint32_t width) {
    double got_log_sum = log_sum(got, width);
    double wanted_log_sum = log_sum(wanted, width);
    double divergence = 0;
    for (uint32_t i = 0; i < width; i++) {
        double wanted_log = (double)wanted[i] - wanted_log_sum;
        divergence += exp(wanted_log) * (wanted_log - ((double)got[i] - got_log_sum));
    }
    return divergence;
}

// A NaN is infinitely far from everything.
static double row_difference(const float *got, const float *wanted, uint32_t width) {
    double difference = 0;
    double largest = 0;
    for (uint32_t i = 0; i < width; i++) {
        double d = fabs((double)got[i] - (double)wanted[i]);
        if (!(d <= difference)) difference = isnan(d) ? INFINITY : d;
        largest = fmax(largest, fabs((double)wanted[i]));
    }
    return difference / largest;
}

static void loss_add_row(struct loss *loss, struct agreement *agreement, const float *got,
                         const float *wanted, uint32_t width) {
    loss->difference_max = fmax(loss->difference_max, row_difference(got, wanted, width));
    loss->divergence_sum += row_divergence(got, wanted, width);
    agreement->row_count++;
    agreement->equal_count += best_token(got, width) == best_token(wanted, width);
}

static void loss_add(struct loss *loss, const struct texts *texts, const float *got,
                     const float *wanted, uint32_t width) {
    for (uint32_t i = 0; i < texts->count; i++) {
        const struct text *text = &texts->texts[i];
        for (uint32_t r = 0; r < text->length; r++, got += width, wanted += width) {
            // The last row of the prompt has the first token of the continuation.
            bool is_prompt = r + 1 < text->prompt.count;
            loss_add_row(loss, is_prompt ? &loss->prompts : &loss->continuations, got, wanted,
                         width);
        }
    }
}

static void loss_check(const char *model, const struct format *format,
                       const struct expected_loss *expected, const struct loss *loss) {
    double divergence = divergence_mean(loss);
    print_message("%-12s %-22s  difference %.3f  divergence %.1e  same token: prompts %5.1f %%, "
                  "continuations %5.1f %%\n",
                  model, format->name, loss->difference_max, divergence,
                  100 * share_equal(&loss->prompts), 100 * share_equal(&loss->continuations));
    assert_true(loss->difference_max <= expected->difference * LOSS_FACTOR);
    assert_true(divergence <= expected->divergence * LOSS_FACTOR);
    assert_true(divergence >= expected->divergence / LOSS_FACTOR);
    assert_true(share_equal(&loss->prompts) >= expected->prompts - 0.01);
    assert_true(share_equal(&loss->continuations) >= expected->continuations - 0.01);
}

// -- tests ----------------------------------------------------------------------------------------

static void logits_of_checkpoints_stay_near_the_unquantized(void **state) {
    (void)state;
    struct reference checkpoints[CHECKPOINT_COUNT_MAX];
    uint32_t count = checkpoints_open(checkpoints);
    struct backend *backend = harness_backend("auto", 2);
    struct loss losses[FORMAT_COUNT] = {0};
    for (uint32_t i = 0; i < count; i++) {
        struct texts texts;
        texts_of_checkpoint(&checkpoints[i], &texts);
        float *wanted = texts_logits(backend, &checkpoints[i], &texts, &unquantized);
        for (size_t f = 0; f < FORMAT_COUNT; f++) {
            float *got = texts_logits(backend, &checkpoints[i], &texts, &formats[f]);
            loss_add(&losses[f], &texts, got, wanted, checkpoints[i].config.vocabulary_size);
            free(got);
        }
        free(wanted);
        texts_close(&texts);
    }
    for (size_t f = 0; f < FORMAT_COUNT; f++)
        loss_check("checkpoints", &formats[f], &formats[f].checkpoints, &losses[f]);
    backend_close(backend);
}

// The best token of each row that continues a text.
static bool is_continued(const struct text *text, const float *logits, uint32_t width) {
    for (uint32_t i = 0; i < text->continuation.count; i++) {
        size_t row = text->prompt.count - 1 + i;
        if (best_token(logits + row * width, width) != text->continuation.values[i]) return false;
    }
    return true;
}

// Greedy, the model would go on with these tokens: a row does not depend on those after it.
static uint32_t continued_count(const struct texts *texts, const float *logits, uint32_t width) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < texts->count; i++) {
        count += is_continued(&texts->texts[i], logits, width);
        logits += (size_t)texts->texts[i].length * width;
    }
    return count;
}

static void logits_of_the_demo_model_stay_near_the_unquantized(void **state) {
    (void)state;
    struct reference demo;
    reference_open(DEMO_CHECKPOINT, &demo);
    uint32_t width = demo.config.vocabulary_size;
    struct texts texts;
    texts_of_demo(&texts, TEXT_COUNT_MAX);
    struct backend *backend = harness_backend("auto", 2);
    float *wanted = texts_logits(backend, &demo, &texts, &unquantized);
    assert_int_equal(continued_count(&texts, wanted, width), texts.count);
    for (size_t f = 0; f < FORMAT_COUNT; f++) {
        float *got = texts_logits(backend, &demo, &texts, &formats[f]);
        struct loss loss = {0};
        loss_add(&loss, &texts, got, wanted, width);
        loss_check("demo model", &formats[f], &formats[f].demo, &loss);
        uint32_t count = continued_count(&texts, got, width);
        print_message("%-12s %-22s  %u of %u continuations equal\n", "demo model", formats[f].name,
                      count, texts.count);
        assert_true(count + 2 >= texts.count);
        free(got);
    }
    free(wanted);
    backend_close(backend);
    texts_close(&texts);
}

// Rows where one variant clearly prefers a token and the other one another.
static uint32_t contradiction_count(const float *got, const float *wanted, uint32_t row_count,
                                    uint32_t width) {
    uint32_t count = 0;
    for (uint32_t r = 0; r < row_count; r++, got += width, wanted += width) {
        float best = wanted[best_token(wanted, width)];
        float lead = best - wanted[best_token(got, width)];
        count += (double)lead > fabs((double)best) * VARIANT_LEAD;
    }
    return count;
}

static void variants_agree(const struct reference *demo, const struct texts *texts,
                           const struct format *format) {
    uint32_t width = demo->config.vocabulary_size;
    float *wanted = NULL;
    for (const char *const *variant = backend_cpu_variants(); *variant != NULL; variant++) {
        struct backend *backend = harness_backend(*variant, 2);
        float *got = texts_logits(backend, demo, texts, format);
        backend_close(backend);
        if (wanted == NULL) {
            wanted = got;
            continue;
        }
        struct loss loss = {0};
        loss_add(&loss, texts, got, wanted, width);
        print_message("%-12s %-22s  difference %.1e  other tokens %u of %u\n", *variant,
                      format->name, loss.difference_max,
                      texts->row_count - loss.prompts.equal_count - loss.continuations.equal_count,
                      texts->row_count);
        assert_int_equal(contradiction_count(got, wanted, texts->row_count, width), 0);
        free(got);
    }
    free(wanted);
}

static void all_variants_choose_the_same_tokens_of_the_demo_model(void **state) {
    (void)state;
    struct reference demo;
    reference_open(DEMO_CHECKPOINT, &demo);
    struct texts texts;
    texts_of_demo(&texts, VARIANT_TEXT_COUNT);
    for (size_t f = 0; f < FORMAT_COUNT; f++) {
        bool is_int8 = formats[f].weight_format != WEIGHT_FORMAT_CHECKPOINT;
        if (is_int8 && formats[f].activation_dtype == DTYPE_F32)
            variants_agree(&demo, &texts, &formats[f]);
    }
    texts_close(&texts);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_of_checkpoints_stay_near_the_unquantized),
        cmocka_unit_test(logits_of_the_demo_model_stay_near_the_unquantized),
        cmocka_unit_test(all_variants_choose_the_same_tokens_of_the_demo_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
