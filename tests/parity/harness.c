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

// Uniform around `centre`, scaled by the number of columns like the usual initialisation.
static struct tensor random_tensor(struct random *random, uint32_t row_count, uint32_t column_count,
                                   float centre) {
    size_t count = (size_t)row_count * column_count;
    uint16_t *data = memory_array(count, sizeof(*data));
    CHECK(data != NULL);
    double width = 3 / sqrt(column_count);
    for (size_t i = 0; i < count; i++)
        data[i] = f32_to_bf16(centre + (float)((random_unit(random) - 0.5) * width));
    return (struct tensor){
        .data = data, .dtype = DTYPE_BF16, .row_count = row_count, .column_count = column_count};
}

void reference_make_wide(struct reference *reference_out) {
    const struct model_config config = {.architecture = "LlamaForCausalLM",
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
                                        .dtype = DTYPE_BF16};
    *reference_out = (struct reference){.name = "wide", .config = config};
    uint32_t hidden = config.hidden_size;
    uint32_t q_width = config.head_count * config.head_size;
    uint32_t kv_width = config.kv_head_count * config.head_size;
    struct random random = {.seed = 1};
    struct weights *weights = memory_array(1, sizeof(*weights));
    CHECK(weights != NULL);
    weights->layers = memory_array(config.layer_count, sizeof(*weights->layers));
    CHECK(weights->layers != NULL);
    for (uint32_t i = 0; i < config.layer_count; i++) {
        weights->layers[i] = (struct layer_weights){
            .attention_norm = random_tensor(&random, 1, hidden, 1),
            .q = random_tensor(&random, q_width, hidden, 0),
            .k = random_tensor(&random, kv_width, hidden, 0),
            .v = random_tensor(&random, kv_width, hidden, 0),
            .o = random_tensor(&random, hidden, q_width, 0),
            .ffn_norm = random_tensor(&random, 1, hidden, 1),
            .gate = random_tensor(&random, config.ffn_size, hidden, 0),
            .up = random_tensor(&random, config.ffn_size, hidden, 0),
            .down = random_tensor(&random, hidden, config.ffn_size, 0),
        };
    }
    weights->embedding = random_tensor(&random, config.vocabulary_size, hidden, 0);
    weights->final_norm = random_tensor(&random, 1, hidden, 1);
    weights->head = random_tensor(&random, config.vocabulary_size, hidden, 0);
    weights->layer_count = config.layer_count;
    reference_out->weights = weights;
}

void reference_unmake(struct reference *checkpoint) {
    struct weights *weights = checkpoint->weights;
    for (uint32_t i = 0; i < checkpoint->config.layer_count; i++) {
        const struct layer_weights *layer = &weights->layers[i];
        const struct tensor *tensors[] = {
            &layer->attention_norm, &layer->q,    &layer->k,  &layer->v,   &layer->o,
            &layer->ffn_norm,       &layer->gate, &layer->up, &layer->down};
        for (size_t t = 0; t < sizeof(tensors) / sizeof(tensors[0]); t++)
            free((void *)(uintptr_t)tensors[t]->data);
    }
    free((void *)(uintptr_t)weights->embedding.data);
    free((void *)(uintptr_t)weights->final_norm.data);
    free((void *)(uintptr_t)weights->head.data);
    free(weights->layers);
    free(weights);
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
    const struct reference *checkpoint;
    uint32_t stage_count;
    struct weights *weights[PIPELINE_STAGE_COUNT_MAX];
    struct model *models[PIPELINE_STAGE_COUNT_MAX];
    void *wire; // the payload of a frame
};

// From the files, or a view of the weights in memory.
static struct weights *stage_weights_open(const struct reference *checkpoint,
                                          const struct weights_range *range) {
    struct weights *weights = NULL;
    struct error error = {0};
    if (checkpoint->weights == NULL) {
        must(weights_open(&(struct weights_source){checkpoint->directory, LOAD_FORMAT_SAFETENSORS},
                          &checkpoint->config, range, NULL, NULL, &weights, &error),
             &error, checkpoint->name);
        return weights;
    }
    weights = memory_array(1, sizeof(*weights));
    CHECK(weights != NULL);
    *weights = *checkpoint->weights;
    weights->layer_first = range->layer_first;
    weights->layer_count = range->layer_count;
    weights->layers += range->layer_first;
    if (!range->is_first) weights->embedding = (struct tensor){0};
    if (!range->is_last) weights->final_norm = weights->head = (struct tensor){0};
    return weights;
}

static void stage_weights_close(const struct reference *checkpoint, struct weights *weights) {
    if (checkpoint->weights == NULL)
        weights_close(weights);
    else
        free(weights);
}

struct pipeline *pipeline_open(struct backend *backend, const struct reference *checkpoint,
                               const uint32_t *layer_counts, uint32_t stage_count,
                               const struct model_options *options) {
    const struct model_config *config = &checkpoint->config;
    struct pipeline *pipeline = memory_array(1, sizeof(*pipeline));
    CHECK(pipeline != NULL && stage_count > 0 && stage_count <= PIPELINE_STAGE_COUNT_MAX);
    pipeline->checkpoint = checkpoint;
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
        pipeline->weights[i] = stage_weights_open(checkpoint, &range);
        struct error error = {0};
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
        stage_weights_close(pipeline->checkpoint, pipeline->weights[i]);
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
