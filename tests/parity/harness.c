#include "harness.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/memory.h"
#include "base/rng.h"
#include "stage/quantize.h"
#include "stage/weights.h"

static void must(enum status status, const struct error *error, const char *what) {
    if (status != STATUS_OK) fail_msg("%s: %s: %s", what, status_name(status), error->text);
}

// -- random numbers -------------------------------------------------------------------------------

double random_unit(struct random *random) {
    return rng_uniform(random->seed, random->position++);
}

uint32_t random_below(struct random *random, uint32_t bound) {
    return (uint32_t)(random_unit(random) * bound);
}

void random_shuffle(struct random *random, uint32_t *values, uint32_t count) {
    for (uint32_t i = count; i > 1; i--) {
        uint32_t other = random_below(random, i);
        uint32_t value = values[i - 1];
        values[i - 1] = values[other];
        values[other] = value;
    }
}

// -- checkpoints ----------------------------------------------------------------------------------

void reference_open(const char *directory, struct reference *reference_out) {
    memset(reference_out, 0, sizeof(*reference_out));
    const char *name = strrchr(directory, '/') + 1;
    CHECK(strlen(directory) < sizeof(reference_out->directory));
    CHECK(strlen(name) < sizeof(reference_out->name));
    strcpy(reference_out->directory, directory);
    strcpy(reference_out->name, name);
    struct error error = {0};
    must(model_config_read(directory, &reference_out->config, &error), &error, name);
}

static int is_visible(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

uint32_t checkpoints_open(struct reference checkpoints_out[CHECKPOINT_COUNT_MAX]) {
    static const char root[] = STAGECOACH_SOURCE_DIR "/tests/parity/testdata/checkpoints";
    struct dirent **entries = NULL;
    int count = scandir(root, &entries, is_visible, alphasort);
    if (count < 1 || count > CHECKPOINT_COUNT_MAX) fail_msg("%s: %d checkpoints", root, count);
    for (int i = 0; i < count; i++) {
        char directory[512];
        int length = snprintf(directory, sizeof(directory), "%s/%s", root, entries[i]->d_name);
        CHECK(length > 0 && (size_t)length < sizeof(directory));
        reference_open(directory, &checkpoints_out[i]);
        free(entries[i]);
    }
    free(entries);
    return (uint32_t)count;
}

void reference_wide(struct reference *reference_out) {
    *reference_out = (struct reference){.name = "wide",
                                        .load_format = LOAD_FORMAT_DUMMY,
                                        .config = {.architecture = "LlamaForCausalLM",
                                                   .layer_count = 4,
                                                   .hidden_size = 328,
                                                   .head_count = 6,
                                                   .kv_head_count = 2,
                                                   .head_size = 64,
                                                   .ffn_size = 872,
                                                   .vocabulary_size = 1031,
                                                   .position_count_max = 512,
                                                   .rms_norm_epsilon = 1e-5,
                                                   .rope = {.kind = ROPE_DEFAULT, .theta = 10000},
                                                   .dtype = DTYPE_BF16}};
}

struct weights *reference_weights(const struct reference *checkpoint,
                                  const struct weights_range *range) {
    const struct weights_source source = {checkpoint->directory, checkpoint->load_format};
    struct weights *weights = NULL;
    struct error error = {0};
    must(weights_open(&source, &checkpoint->config, range, NULL, NULL, &weights, &error), &error,
         checkpoint->name);
    return weights;
}

// -- expected results -----------------------------------------------------------------------------

json_t *json_read(const char *directory, const char *name) {
    char path[640];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    if (root == NULL) fail_msg("%s: %s", path, error.text);
    return root;
}

struct ids ids_read(const json_t *array) {
    struct ids ids = {.count = (uint32_t)json_array_size(array)};
    assert_true(ids.count > 0);
    ids.values = memory_array(ids.count, sizeof(*ids.values));
    assert_non_null(ids.values);
    for (uint32_t i = 0; i < ids.count; i++) {
        assert_true(json_is_integer(json_array_get(array, i)));
        ids.values[i] = (uint32_t)json_integer_value(json_array_get(array, i));
    }
    return ids;
}

uint32_t best_token(const float *logits, uint32_t count) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

// -- backends -------------------------------------------------------------------------------------

struct backend *harness_backend(const char *variant, uint32_t thread_count) {
    struct error error = {0};
    struct backend *backend = NULL;
    struct backend_config config = {.thread_count = thread_count, .variant = variant};
    must(backend_cpu_open(&config, &backend, &error), &error, variant);
    return backend;
}

// -- pipelines ------------------------------------------------------------------------------------

struct pipeline {
    uint32_t stage_count;
    struct weights *weights[PIPELINE_STAGE_COUNT_MAX];
    struct quantized *quantized[PIPELINE_STAGE_COUNT_MAX]; // NULL: as the checkpoint has them
    struct model *models[PIPELINE_STAGE_COUNT_MAX];
    void *wire; // the payload of a frame
};

struct pipeline *pipeline_open(struct backend *backend, const struct reference *checkpoint,
                               const uint32_t *layer_counts, uint32_t stage_count,
                               const struct model_options *options) {
    const struct model_config *config = &checkpoint->config;
    struct pipeline *pipeline = memory_array(1, sizeof(*pipeline));
    CHECK(pipeline != NULL && stage_count > 0 && stage_count <= PIPELINE_STAGE_COUNT_MAX);
    pipeline->stage_count = stage_count;
    pipeline->wire = memory_array((size_t)options->row_count_max * config->hidden_size,
                                  dtype_size_bytes(options->activation_dtype));
    CHECK(pipeline->wire != NULL);
    uint32_t layer_first = 0;
    for (uint32_t i = 0; i < stage_count; i++) {
        struct weights_range range = {.layer_first = layer_first,
                                      .layer_count = layer_counts[i],
                                      .is_first = i == 0,
                                      .is_last = i == stage_count - 1};
        layer_first += layer_counts[i];
        pipeline->weights[i] = reference_weights(checkpoint, &range);
        struct error error = {0};
        if (options->weight_format != WEIGHT_FORMAT_CHECKPOINT)
            must(quantized_open(backend, pipeline->weights[i], NULL, NULL, &pipeline->quantized[i],
                                &error),
                 &error, checkpoint->name);
        must(model_open(backend, config, pipeline->weights[i], options, &pipeline->models[i],
                        &error),
             &error, checkpoint->name);
    }
    CHECK(layer_first == config->layer_count);
    return pipeline;
}

void pipeline_close(struct pipeline *pipeline) {
    for (uint32_t i = 0; i < pipeline->stage_count; i++) {
        model_close(pipeline->models[i]);
        quantized_close(pipeline->quantized[i]);
        weights_close(pipeline->weights[i]);
    }
    free(pipeline->wire);
    free(pipeline);
}

void pipeline_poison(struct pipeline *pipeline) {
    for (uint32_t i = 0; i < pipeline->stage_count; i++) {
        uint32_t layer_count = pipeline->weights[i]->layer_count;
        for (uint32_t layer = 0; layer < layer_count; layer++) {
            struct kv_layer *kv = model_kv(pipeline->models[i], layer);
            size_t size_bytes = (size_t)model_kv_bytes(pipeline->models[i]) / layer_count / 2;
            // All bits set is a NaN in every dtype.
            memset(kv->keys, 0xff, size_bytes);
            memset(kv->values, 0xff, size_bytes);
        }
    }
}

void pipeline_step(struct pipeline *pipeline, const struct batch *batch, const uint32_t *tokens,
                   after_layer_fn *after, void *ctx) {
    uint32_t index = 0;
    for (uint32_t i = 0; i < pipeline->stage_count; i++) {
        struct model *model = pipeline->models[i];
        if (i == 0)
            model_embed(model, tokens, batch->row_count);
        else
            model_receive(model, pipeline->wire, batch->row_count);
        if (i == 0 && after != NULL) after(ctx, 0, model_residual(model));
        for (uint32_t layer = 0; layer < pipeline->weights[i]->layer_count; layer++) {
            model_layer(model, batch, layer);
            index++;
            if (after != NULL) after(ctx, index, model_residual(model));
        }
        if (i + 1 < pipeline->stage_count) model_emit(model, batch->row_count, pipeline->wire);
    }
}

const float *pipeline_logits(struct pipeline *pipeline, const uint32_t *rows, uint32_t row_count) {
    return model_logits(pipeline->models[pipeline->stage_count - 1], rows, row_count);
}

// -- one sequence through one stage ---------------------------------------------------------------

struct run run_open(struct backend *backend, const struct reference *checkpoint,
                    const struct model_options *options) {
    uint32_t block_count =
        (options->position_count_max + KV_BLOCK_POSITION_COUNT - 1) / KV_BLOCK_POSITION_COUNT;
    struct model_options all = *options;
    all.kv_block_count = block_count;
    all.row_count_max = all.sample_count_max = options->position_count_max;
    struct run run = {.checkpoint = checkpoint};
    run.pipeline = pipeline_open(backend, checkpoint, &checkpoint->config.layer_count, 1, &all);
    run.blocks = memory_array(block_count, sizeof(*run.blocks));
    assert_non_null(run.blocks);
    for (uint32_t i = 0; i < block_count; i++)
        run.blocks[i] = block_count - 1 - i;
    return run;
}

void run_close(struct run *run) {
    pipeline_close(run->pipeline);
    free(run->blocks);
}

void run_step(struct run *run, const uint32_t *tokens, uint32_t count, after_layer_fn *after,
              void *ctx) {
    struct batch_sequence sequence = {
        .row_count = count, .position_first = run->position, .blocks = run->blocks};
    struct batch batch = {.row_count = count, .sequence_count = 1, .sequences = &sequence};
    pipeline_step(run->pipeline, &batch, tokens, after, ctx);
    run->position += count;
}
