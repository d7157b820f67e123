// harness: checkpoints of the test data, and whole pipelines of models inside one process. Whatever
// goes wrong fails the running cmocka test, so nothing here returns a status.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "proto/model_config.h"
#include "stage/backend.h"
#include "stage/model.h"

enum {
    CHECKPOINT_COUNT_MAX = 64,
    SANITIZED =
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
        1,
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
        1,
#else
        0,
#endif
#else
        0,
#endif
};

// -- random numbers, from a seed ------------------------------------------------------------------
struct random {
    uint64_t seed;
    uint64_t position;
};
double random_unit(struct random *random); // in [0, 1)
uint32_t random_below(struct random *random, uint32_t bound);
void random_shuffle(struct random *random, uint32_t *values, uint32_t count);

// -- checkpoints ----------------------------------------------------------------------------------
struct reference {
    char name[128];
    char directory[512]; // empty for LOAD_FORMAT_DUMMY
    enum load_format load_format;
    struct model_config config;
};

// Opens the checkpoint in DIRECTORY; its last part is the name.
void reference_open(const char *directory, struct reference *reference_out);
// All of testdata/checkpoints, by name. Returns how many.
uint32_t checkpoints_open(struct reference checkpoints_out[CHECKPOINT_COUNT_MAX]);
// bf16 weights that are made up, with layers wide enough for kernels that work in tiles.
void reference_wide(struct reference *reference_out);
// The weights of some of its layers; closed by weights_close().
struct weights *reference_weights(const struct reference *checkpoint,
                                  const struct weights_range *range);

// -- expected results -----------------------------------------------------------------------------
// DIRECTORY/NAME; given back by json_decref().
json_t *json_read(const char *directory, const char *name);

struct ids {
    uint32_t count; // at least 1
    uint32_t *values;
};
// Of a JSON array of token ids; `values` is given back by free().
struct ids ids_read(const json_t *array);

// The first of the largest.
uint32_t best_token(const float *logits, uint32_t count);

// -- backends -------------------------------------------------------------------------------------
struct backend *harness_backend(const char *variant, uint32_t thread_count);

// -- pipelines ------------------------------------------------------------------------------------
// One model for each stage; activations go from one to the next in their dtype, as on a link.
struct pipeline;

// layer_counts[stage_count] sum to the config's layers; all stages share `backend`. Weights are
// quantized as options->weight_format says.
struct pipeline *pipeline_open(struct backend *backend, const struct reference *checkpoint,
                               const uint32_t *layer_counts, uint32_t stage_count,
                               const struct model_options *options);
void pipeline_close(struct pipeline *pipeline);

// Fills the KV memory of all stages with NaN.
void pipeline_poison(struct pipeline *pipeline);

// Runs one microbatch. `after`, if not NULL, is called with the residual stream (row_count, hidden)
// after the embedding (index 0) and after each layer (its index + 1) of the whole model.
typedef void after_layer_fn(void *ctx, uint32_t index, const float *residual);
void pipeline_step(struct pipeline *pipeline, const struct batch *batch, const uint32_t *tokens,
                   after_layer_fn *after, void *ctx);

// Logits (row_count, vocabulary) of rows of the last step, valid until the next call.
const float *pipeline_logits(struct pipeline *pipeline, const uint32_t *rows, uint32_t row_count);

// -- one sequence through one stage ---------------------------------------------------------------
struct run {
    const struct reference *checkpoint;
    struct pipeline *pipeline;
    uint32_t *blocks;
    uint32_t position; // of the next row; 0 begins the sequence again
};

// options->kv_block_count, row_count_max and sample_count_max are set from position_count_max.
struct run run_open(struct backend *backend, const struct reference *checkpoint,
                    const struct model_options *options);
void run_close(struct run *run);

// The next `count` positions in one microbatch.
void run_step(struct run *run, const uint32_t *tokens, uint32_t count, after_layer_fn *after,
              void *ctx);
