// model: runs a stage's layers over one microbatch. A deterministic function of the weights, the KV
// memory and the microbatch (law 1); knows neither frames nor links nor requests.
#pragma once

#include "stage/backend.h"
#include "stage/weights.h"

struct model;

struct model_options {
    enum dtype activation_dtype; // f32 or bf16: residual stream, rounded at each layer boundary
    enum dtype kv_dtype;         // f32, bf16 or f16
    // Products of int8 weights (stage/quantize.h) round their inputs to int8, or not at all for
    // WEIGHT_FORMAT_INT8_WEIGHT_ONLY; others round them to the activation dtype.
    enum weight_format weight_format;
    uint32_t kv_block_count;
    uint32_t row_count_max;      // of a microbatch
    uint32_t sample_count_max;   // rows whose logits are wanted in a microbatch
    uint32_t position_count_max; // of a sequence
};

// Borrows backend, config and weights until model_close. Allocates KV memory and work space.
// STATUS_NO_MEMORY names the bytes that were wanted; STATUS_UNSUPPORTED, the dtype. The counts
// are at least 1.
MUST_USE enum status model_open(struct backend *backend, const struct model_config *config,
                                const struct weights *weights, const struct model_options *options,
                                struct model **model_out, struct error *error);
void model_close(struct model *model); // NULL allowed

// KV memory in bytes: keys and values of all layers and blocks.
uint64_t model_kv_bytes(const struct model *model);

// The residual stream of the microbatch, (row_count, hidden_size) f32, valid until the next call.
// First stage: embeds tokens[row_count]. Other stages: converts `activations`, (row_count, hidden)
// of activation_dtype.
void model_embed(struct model *model, const uint32_t *tokens, uint32_t row_count);
void model_receive(struct model *model, const void *activations, uint32_t row_count);

// Runs layer `layer_index` (0 is the first of this stage) over the residual stream.
void model_layer(struct model *model, const struct batch *batch, uint32_t layer_index);

// Not the last stage: the residual stream in activation_dtype, to be sent.
void model_emit(struct model *model, uint32_t row_count, void *activations_out);

// Last stage: logits of the rows listed, (sample_count, vocabulary_size) f32 inside the model,
// valid until the next call. sample_count <= sample_count_max.
const float *model_logits(struct model *model, const uint32_t *rows, uint32_t sample_count);

// The residual stream itself, and a layer's KV memory (model_kv_bytes() / layer_count / 2 bytes of
// keys, as many of values), for tests.
const float *model_residual(const struct model *model);
struct kv_layer *model_kv(struct model *model, uint32_t layer_index);
