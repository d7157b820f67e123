#include "stage/weights.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/check.h"
#include "base/memory.h"
#include "stage/weights_internal.h"

// -- which tensors --------------------------------------------------------------------------------

enum extent { NONE, HIDDEN, QUERY, KV, FFN };
enum presence { ALWAYS, ATTENTION_BIAS, MLP_BIAS };

// The names of Hugging Face's LlamaForCausalLM, after "model.layers.N.".
static const struct layer_tensor {
    const char *name;
    size_t slot_offset;
    enum tensor_role role;
    enum extent rows, columns; // rows NONE: a vector
    enum presence presence;
} layer_tensors[] = {
#define SLOT(member) offsetof(struct layer_weights, member)
    {"input_layernorm.weight", SLOT(attention_norm), TENSOR_NORM, NONE, HIDDEN, ALWAYS},
    {"self_attn.q_proj.weight", SLOT(q), TENSOR_MATRIX, QUERY, HIDDEN, ALWAYS},
    {"self_attn.k_proj.weight", SLOT(k), TENSOR_MATRIX, KV, HIDDEN, ALWAYS},
    {"self_attn.v_proj.weight", SLOT(v), TENSOR_MATRIX, KV, HIDDEN, ALWAYS},
    {"self_attn.q_proj.bias", SLOT(q_bias), TENSOR_BIAS, NONE, QUERY, ATTENTION_BIAS},
    {"self_attn.k_proj.bias", SLOT(k_bias), TENSOR_BIAS, NONE, KV, ATTENTION_BIAS},
    {"self_attn.v_proj.bias", SLOT(v_bias), TENSOR_BIAS, NONE, KV, ATTENTION_BIAS},
    {"self_attn.o_proj.weight", SLOT(o), TENSOR_RESIDUAL, HIDDEN, QUERY, ALWAYS},
    {"self_attn.o_proj.bias", SLOT(o_bias), TENSOR_BIAS, NONE, HIDDEN, ATTENTION_BIAS},
    {"post_attention_layernorm.weight", SLOT(ffn_norm), TENSOR_NORM, NONE, HIDDEN, ALWAYS},
    {"mlp.gate_proj.weight", SLOT(gate), TENSOR_MATRIX, FFN, HIDDEN, ALWAYS},
    {"mlp.up_proj.weight", SLOT(up), TENSOR_MATRIX, FFN, HIDDEN, ALWAYS},
    {"mlp.gate_proj.bias", SLOT(gate_bias), TENSOR_BIAS, NONE, FFN, MLP_BIAS},
    {"mlp.up_proj.bias", SLOT(up_bias), TENSOR_BIAS, NONE, FFN, MLP_BIAS},
    {"mlp.down_proj.weight", SLOT(down), TENSOR_RESIDUAL, HIDDEN, FFN, ALWAYS},
    {"mlp.down_proj.bias", SLOT(down_bias), TENSOR_BIAS, NONE, HIDDEN, MLP_BIAS},
#undef SLOT
};
enum {
    LAYER_TENSOR_COUNT = sizeof(layer_tensors) / sizeof(layer_tensors[0]),
    OUTER_TENSOR_COUNT_MAX = 3, // embedding, final norm, head
};

static uint32_t extent_size(const struct model_config *config, enum extent extent) {
    switch (extent) {
    case NONE:
        return 0;
    case HIDDEN:
        return config->hidden_size;
    case QUERY:
        return config->head_count * config->head_size;
    case KV:
        return config->kv_head_count * config->head_size;
    case FFN:
        return config->ffn_size;
    }
    return 0;
}

static bool is_present(const struct model_config *config, enum presence presence) {
    return presence == ALWAYS || (presence == ATTENTION_BIAS && config->attention_bias) ||
           (presence == MLP_BIAS && config->mlp_bias);
}

// row_count 0: a vector.
PRINTF_LIKE(6, 7)
static void want(struct weights_loader *loader, struct tensor *slot, enum tensor_role role,
                 uint32_t row_count, uint32_t column_count, const char *name_format, ...) {
    struct wanted_tensor *wanted = &loader->wanted[loader->wanted_count++];
    *wanted = (struct wanted_tensor){
        .slot = slot, .role = role, .row_count = row_count, .column_count = column_count};
    va_list args;
    va_start(args, name_format);
    int length = vsnprintf(wanted->name, sizeof(wanted->name), name_format, args);
    va_end(args);
    CHECK(length > 0 && (size_t)length < sizeof(wanted->name));
}

static void want_layer(struct weights_loader *loader, uint32_t index) {
    const struct model_config *config = loader->config;
    char *layer = (char *)&loader->owner->weights.layers[index];
    for (size_t i = 0; i < LAYER_TENSOR_COUNT; i++) {
        const struct layer_tensor *tensor = &layer_tensors[i];
        if (!is_present(config, tensor->presence)) continue;
        want(loader, (struct tensor *)(layer + tensor->slot_offset), tensor->role,
             extent_size(config, tensor->rows), extent_size(config, tensor->columns),
             "model.layers.%" PRIu32 ".%s", loader->range->layer_first + index, tensor->name);
    }
}

static enum status want_all(struct weights_loader *loader) {
    const struct model_config *config = loader->config;
    const struct weights_range *range = loader->range;
    struct weights *weights = &loader->owner->weights;
    weights->layer_first = range->layer_first;
    weights->layer_count = range->layer_count;
    weights->layers = memory_array(range->layer_count, sizeof(weights->layers[0]));
    loader->wanted =
        memory_array((size_t)range->layer_count * LAYER_TENSOR_COUNT + OUTER_TENSOR_COUNT_MAX,
                     sizeof(loader->wanted[0]));
    if (weights->layers == NULL || loader->wanted == NULL)
        return error_set(loader->error, STATUS_NO_MEMORY,
                         "no memory for a table of %" PRIu32 " layers", range->layer_count);
    for (uint32_t i = 0; i < range->layer_count; i++)
        want_layer(loader, i);
    uint32_t vocabulary = config->vocabulary_size, hidden = config->hidden_size;
    if (range->is_first)
        want(loader, &weights->embedding, TENSOR_MATRIX, vocabulary, hidden,
             "model.embed_tokens.weight");
    if (!range->is_last) return STATUS_OK;
    want(loader, &weights->final_norm, TENSOR_NORM, 0, hidden, "model.norm.weight");
    if (!config->tied_embeddings)
        want(loader, &weights->head, TENSOR_MATRIX, vocabulary, hidden, "lm_head.weight");
    else if (!range->is_first) // otherwise the head becomes a copy of the embedding's pointer
        want(loader, &weights->head, TENSOR_MATRIX, vocabulary, hidden,
             "model.embed_tokens.weight");
    return STATUS_OK;
}

// -- open and close -------------------------------------------------------------------------------

void weights_fill_slot(struct weights_loader *loader, const struct wanted_tensor *wanted,
                       enum dtype dtype) {
    *wanted->slot = (struct tensor){.dtype = dtype,
                                    .row_count = wanted->row_count == 0 ? 1 : wanted->row_count,
                                    .column_count = wanted->column_count};
    loader->owner->weights.weight_bytes += wanted->size_bytes;
}

enum status weights_progressed(const struct weights_loader *loader, uint64_t done_bytes) {
    uint64_t total_bytes = loader->owner->weights.mapped_bytes;
    if (loader->progress == NULL || loader->progress(loader->progress_ctx, done_bytes, total_bytes))
        return STATUS_OK;
    return error_set(loader->error, STATUS_CANCELLED, "loading weights was cancelled");
}

enum status weights_open(const struct weights_source *source, const struct model_config *config,
                         const struct weights_range *range, weights_progress_fn *progress,
                         void *progress_ctx, struct weights **weights_out, struct error *error) {
    if (range->layer_first > config->layer_count ||
        range->layer_count > config->layer_count - range->layer_first)
        return error_set(error, STATUS_INVALID,
                         "layers %" PRIu32 " to %" PRIu64 " of a model of %" PRIu32 " layers",
                         range->layer_first, (uint64_t)range->layer_first + range->layer_count,
                         config->layer_count);
    struct weights_owner *owner = calloc(1, sizeof(*owner));
    if (owner == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory for weights");
    struct weights_loader loader = {
        .config = config,
        .range = range,
        .error = error,
        .owner = owner,
        .checkpoint = {.directory = source->directory},
        .progress = progress,
        .progress_ctx = progress_ctx,
    };
    enum status status = want_all(&loader);
    if (status == STATUS_OK)
        status = source->load_format == LOAD_FORMAT_DUMMY ? weights_make_up(&loader)
                                                          : weights_map(&loader);
    free(loader.wanted);
    if (status != STATUS_OK) {
        weights_close(&owner->weights);
        return status;
    }
    if (config->tied_embeddings && range->is_first && range->is_last)
        owner->weights.head = owner->weights.embedding;
    *weights_out = &owner->weights;
    return STATUS_OK;
}

void weights_close(struct weights *weights) {
    if (weights == NULL) return;
    struct weights_owner *owner =
        (struct weights_owner *)((char *)weights - offsetof(struct weights_owner, weights));
    for (uint32_t i = 0; i < owner->mapping_count; i++)
        munmap(owner->mappings[i].address, owner->mappings[i].size_bytes);
    free(owner->mappings);
    free(owner->weights.layers);
    free(owner);
}

void weights_give_back(const struct tensor *tensor) {
    uintptr_t page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    size_t size_bytes =
        (size_t)tensor->row_count * tensor->column_count * dtype_size_bytes(tensor->dtype);
    uintptr_t first = ((uintptr_t)tensor->data + page_bytes - 1) & ~(page_bytes - 1);
    uintptr_t end = ((uintptr_t)tensor->data + size_bytes) & ~(page_bytes - 1);
    // Only a hint: memory that is not given back costs nothing but itself.
    if (end > first) (void)madvise((void *)first, end - first, MADV_DONTNEED);
}
