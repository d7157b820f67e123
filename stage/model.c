#include "stage/model.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/memory.h"

enum { WORK_COUNT_MAX = 16 };

struct model {
    struct backend *backend;
    const struct model_config *config;
    const struct weights *weights;
    struct model_options options;
    struct attention_shape shape;
    enum dtype product_dtype; // that inputs of products are rounded to
    uint32_t row_count;       // of the microbatch in `residual`

    struct kv_layer *kv; // weights->layer_count of them
    size_t kv_bytes;     // of the keys of one layer, and of the values

    // Work space: (row_count_max, width) f32 unless said otherwise.
    float *rotations; // (position_count_max, head_size / 2, 2)
    float *residual;  // hidden
    float *normed;    // hidden
    float *delta;     // hidden
    float *q, *mixed; // head_count * head_size
    float *k, *v;     // kv_head_count * head_size
    float *gate, *up; // ffn
    float *sampled;   // (sample_count_max, hidden); last stage only
    float *logits;    // (sample_count_max, vocabulary); last stage only

    // The memory behind all of these.
    struct work {
        void *memory;
        size_t size_bytes;
    } works[WORK_COUNT_MAX];
    uint32_t work_count;
};

static enum status options_check(const struct model_options *options, struct error *error) {
    if (options->activation_dtype != DTYPE_F32 && options->activation_dtype != DTYPE_BF16)
        return error_set(error, STATUS_UNSUPPORTED, "activation dtype %s: use f32 or bf16",
                         dtype_name(options->activation_dtype));
    if (dtype_size_bytes(options->kv_dtype) == 0)
        return error_set(error, STATUS_UNSUPPORTED, "kv dtype %s: use f32, bf16 or f16",
                         dtype_name(options->kv_dtype));
    CHECK(options->kv_block_count > 0);
    CHECK(options->row_count_max > 0);
    CHECK(options->sample_count_max > 0);
    CHECK(options->position_count_max > 0);
    return STATUS_OK;
}

static enum dtype product_dtype_of(const struct model_options *options) {
    switch (options->weight_format) {
    case WEIGHT_FORMAT_INT8:
        return DTYPE_I8;
    case WEIGHT_FORMAT_INT8_WEIGHT_ONLY:
        return DTYPE_F32;
    case WEIGHT_FORMAT_CHECKPOINT:
        break;
    }
    return options->activation_dtype;
}

static enum status out_of_memory(struct error *error, const char *what, size_t count,
                                 size_t width) {
    return error_set(error, STATUS_NO_MEMORY, "no memory for %s: %zu times %zu bytes", what, count,
                     width);
}

static enum status work_open(struct model *model, const char *what, size_t count, size_t width,
                             float **data_out, struct error *error) {
    CHECK(model->work_count < WORK_COUNT_MAX);
    size_t width_bytes = width * sizeof(float); // fits: limits.h
    size_t size_bytes;
    if (!size_multiply(count, width_bytes, &size_bytes))
        return out_of_memory(error, what, count, width_bytes);
    void *memory = backend_alloc(model->backend, size_bytes);
    if (memory == NULL) return out_of_memory(error, what, count, width_bytes);
    model->works[model->work_count++] = (struct work){.memory = memory, .size_bytes = size_bytes};
    *data_out = memory;
    return STATUS_OK;
}

static enum status kv_open(struct model *model, struct error *error) {
    const struct model_config *config = model->config;
    size_t position_bytes = (size_t)config->kv_head_count * config->head_size *
                            dtype_size_bytes(model->options.kv_dtype);
    size_t block_bytes = position_bytes * KV_BLOCK_POSITION_COUNT;
    size_t block_count = model->options.kv_block_count;
    size_t layer_count = model->weights->layer_count;
    size_t total_bytes;
    if (!size_multiply(block_count, block_bytes, &model->kv_bytes) ||
        !size_multiply(model->kv_bytes, 2 * layer_count, &total_bytes))
        return out_of_memory(error, "KV blocks", block_count, block_bytes);
    model->kv = memory_array(layer_count + 1, sizeof(*model->kv)); // a stage may have no layers
    if (model->kv == NULL) return out_of_memory(error, "layers", layer_count, sizeof(*model->kv));
    for (size_t i = 0; i < layer_count; i++) {
        struct kv_layer *kv = &model->kv[i];
        kv->dtype = model->options.kv_dtype;
        kv->keys = backend_alloc(model->backend, model->kv_bytes);
        kv->values = backend_alloc(model->backend, model->kv_bytes);
        if (kv->keys == NULL || kv->values == NULL)
            return error_set(error, STATUS_NO_MEMORY,
                             "no memory for %zu bytes of KV blocks (%zu layers)", total_bytes,
                             layer_count);
    }
    return STATUS_OK;
}

static enum status works_open(struct model *model, struct error *error) {
    const struct model_config *config = model->config;
    const struct model_options *options = &model->options;
    size_t rows = options->row_count_max;
    size_t samples = model->weights->head.data != NULL ? options->sample_count_max : 0;
    size_t hidden = config->hidden_size;
    size_t q_width = (size_t)config->head_count * config->head_size;
    size_t kv_width = (size_t)config->kv_head_count * config->head_size;
    const struct {
        const char *name;
        float **data;
        size_t count, width;
    } works[] = {
        {"rotations", &model->rotations, options->position_count_max, config->head_size},
        {"the residual stream", &model->residual, rows, hidden},
        {"normed rows", &model->normed, rows, hidden},
        {"deltas", &model->delta, rows, hidden},
        {"queries", &model->q, rows, q_width},
        {"mixed values", &model->mixed, rows, q_width},
        {"keys", &model->k, rows, kv_width},
        {"values", &model->v, rows, kv_width},
        {"gates", &model->gate, rows, config->ffn_size},
        {"ups", &model->up, rows, config->ffn_size},
        {"sampled rows", &model->sampled, samples, hidden},
        {"logits", &model->logits, samples, config->vocabulary_size},
    };
    for (size_t i = 0; i < sizeof(works) / sizeof(works[0]); i++) {
        if (works[i].count == 0) continue;
        enum status status =
            work_open(model, works[i].name, works[i].count, works[i].width, works[i].data, error);
        if (status != STATUS_OK) return status;
    }
    rope_table_fill(config, options->position_count_max, model->rotations);
    uint32_t width =
        config->hidden_size > config->ffn_size ? config->hidden_size : config->ffn_size;
    if (q_width > width) width = (uint32_t)q_width;
    return backend_reserve(model->backend, options->row_count_max, width, error);
}

enum status model_open(struct backend *backend, const struct model_config *config,
                       const struct weights *weights, const struct model_options *options,
                       struct model **model_out, struct error *error) {
    enum status status = options_check(options, error);
    if (status != STATUS_OK) return status;
    struct model *model = memory_array(1, sizeof(*model));
    if (model == NULL) return out_of_memory(error, "the model", 1, sizeof(*model));
    model->backend = backend;
    model->config = config;
    model->weights = weights;
    model->options = *options;
    model->product_dtype = product_dtype_of(options);
    model->shape = (struct attention_shape){.head_count = config->head_count,
                                            .kv_head_count = config->kv_head_count,
                                            .head_size = config->head_size};
    status = works_open(model, error);
    if (status == STATUS_OK) status = kv_open(model, error);
    if (status != STATUS_OK) {
        model_close(model);
        return status;
    }
    *model_out = model;
    return STATUS_OK;
}

static void memory_give(struct model *model, void *memory, size_t size_bytes) {
    if (memory != NULL) backend_free(model->backend, memory, size_bytes);
}

void model_close(struct model *model) {
    if (model == NULL) return;
    for (uint32_t i = 0; model->kv != NULL && i < model->weights->layer_count; i++) {
        memory_give(model, model->kv[i].keys, model->kv_bytes);
        memory_give(model, model->kv[i].values, model->kv_bytes);
    }
    free(model->kv);
    for (uint32_t i = 0; i < model->work_count; i++)
        memory_give(model, model->works[i].memory, model->works[i].size_bytes);
    free(model);
}

uint64_t model_kv_bytes(const struct model *model) {
    return (uint64_t)model->kv_bytes * 2 * model->weights->layer_count;
}

static void begin_rows(struct model *model, uint32_t row_count) {
    CHECK(row_count > 0 && row_count <= model->options.row_count_max);
    model->row_count = row_count;
}

void model_embed(struct model *model, const uint32_t *tokens, uint32_t row_count) {
    begin_rows(model, row_count);
    float *x = model->residual;
    backend_embed(model->backend, &model->weights->embedding, tokens, row_count, x);
    enum dtype dtype = model->options.activation_dtype;
    if (dtype == DTYPE_F32) return;
    // Rounded like at the boundary of a layer, through work space that the first layer overwrites.
    size_t count = (size_t)row_count * model->config->hidden_size;
    backend_to_wire(model->backend, x, count, dtype, model->delta);
    backend_from_wire(model->backend, model->delta, count, dtype, x);
}

void model_receive(struct model *model, const void *activations, uint32_t row_count) {
    begin_rows(model, row_count);
    backend_from_wire(model->backend, activations, (size_t)row_count * model->config->hidden_size,
                      model->options.activation_dtype, model->residual);
}

// residual += o(attention(norm(residual)))
static void attention_part(struct model *model, const struct batch *batch,
                           const struct layer_weights *layer, struct kv_layer *kv) {
    struct backend *backend = model->backend;
    uint32_t rows = model->row_count;
    uint32_t hidden = model->config->hidden_size;
    float epsilon = (float)model->config->rms_norm_epsilon;
    float *x = model->normed;
    float *q = model->q;
    float *k = model->k;
    float *v = model->v;
    backend_rms_norm(backend, &layer->attention_norm, epsilon, model->residual, rows, x);
    backend_linear(backend, &layer->q, &layer->q_bias, x, model->product_dtype, rows, q,
                   layer->q.row_count);
    backend_linear(backend, &layer->k, &layer->k_bias, x, model->product_dtype, rows, k,
                   layer->k.row_count);
    backend_linear(backend, &layer->v, &layer->v_bias, x, model->product_dtype, rows, v,
                   layer->v.row_count);
    backend_rope_and_store(backend, &model->shape, batch, model->rotations, q, k, v, kv);
    backend_attention(backend, &model->shape, batch, q, kv, model->mixed);
    backend_linear(backend, &layer->o, &layer->o_bias, model->mixed, model->product_dtype, rows,
                   model->delta, hidden);
    // Not rounded here: the residual stream is rounded at the boundaries of layers only.
    backend_add(backend, model->residual, model->delta, rows, hidden, DTYPE_F32);
}

// residual += down(silu(gate(norm(residual))) * up(norm(residual))), rounded
static void ffn_part(struct model *model, const struct layer_weights *layer) {
    struct backend *backend = model->backend;
    uint32_t rows = model->row_count;
    uint32_t hidden = model->config->hidden_size;
    uint32_t ffn = model->config->ffn_size;
    float epsilon = (float)model->config->rms_norm_epsilon;
    float *x = model->normed;
    backend_rms_norm(backend, &layer->ffn_norm, epsilon, model->residual, rows, x);
    backend_linear(backend, &layer->gate, &layer->gate_bias, x, model->product_dtype, rows,
                   model->gate, ffn);
    backend_linear(backend, &layer->up, &layer->up_bias, x, model->product_dtype, rows, model->up,
                   ffn);
    float *activated = model->gate;
    backend_swiglu(backend, model->gate, model->up, rows, ffn, activated);
    backend_linear(backend, &layer->down, &layer->down_bias, activated, model->product_dtype, rows,
                   model->delta, hidden);
    backend_add(backend, model->residual, model->delta, rows, hidden,
                model->options.activation_dtype);
}

void model_layer(struct model *model, const struct batch *batch, uint32_t layer_index) {
    CHECK(layer_index < model->weights->layer_count);
    CHECK(batch->row_count == model->row_count);
    for (uint32_t i = 0; i < batch->sequence_count; i++) {
        const struct batch_sequence *sequence = &batch->sequences[i];
        CHECK((uint64_t)sequence->position_first + sequence->row_count <=
              model->options.position_count_max);
    }
    const struct layer_weights *layer = &model->weights->layers[layer_index];
    attention_part(model, batch, layer, &model->kv[layer_index]);
    ffn_part(model, layer);
}

void model_emit(struct model *model, uint32_t row_count, void *activations_out) {
    CHECK(row_count == model->row_count);
    backend_to_wire(model->backend, model->residual, (size_t)row_count * model->config->hidden_size,
                    model->options.activation_dtype, activations_out);
}

const float *model_logits(struct model *model, const uint32_t *rows, uint32_t sample_count) {
    CHECK(model->logits != NULL && sample_count <= model->options.sample_count_max);
    size_t hidden = model->config->hidden_size;
    float *sampled = model->sampled;
    for (uint32_t i = 0; i < sample_count; i++) {
        CHECK(rows[i] < model->row_count);
        memcpy(sampled + i * hidden, model->residual + rows[i] * hidden, hidden * sizeof(float));
    }
    if (sample_count == 0) return model->logits;
    backend_rms_norm(model->backend, &model->weights->final_norm,
                     (float)model->config->rms_norm_epsilon, sampled, sample_count, sampled);
    backend_linear(model->backend, &model->weights->head, &(struct tensor){0}, sampled,
                   model->product_dtype, sample_count, model->logits,
                   model->config->vocabulary_size);
    return model->logits;
}

const float *model_residual(const struct model *model) {
    return model->residual;
}

struct kv_layer *model_kv(struct model *model, uint32_t layer_index) {
    CHECK(layer_index < model->weights->layer_count);
    return &model->kv[layer_index];
}
