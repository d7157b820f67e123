#include "stage/weights.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/check.h"
#include "base/memory.h"
#include "stage/checkpoint.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 // Linux 5.14
#endif

struct mapping {
    char *address;
    size_t size_bytes; // whole pages
    uint32_t shard_index;
};

// What weights_open() gives out is the first member.
struct owner {
    struct weights weights;
    struct mapping *mappings;
    uint32_t mapping_count;
};

// One tensor of the range: what it must be, where it goes, and, once located, where it is.
struct wanted {
    char name[64];
    struct tensor *slot;
    uint32_t row_count; // 0: a vector, which has one dimension
    uint32_t column_count;
    uint32_t shard_index;
    uint64_t file_offset;
    uint64_t size_bytes;
};

struct loader {
    const struct model_config *config;
    const struct weights_range *range;
    struct error *error;
    struct owner *owner;
    struct checkpoint checkpoint;
    struct wanted *wanted;
    uint32_t wanted_count;
};

// -- which tensors --------------------------------------------------------------------------------

enum extent { NONE, HIDDEN, QUERY, KV, FFN };
enum presence { ALWAYS, ATTENTION_BIAS, MLP_BIAS };

// The names of Hugging Face's LlamaForCausalLM, after "model.layers.N.".
static const struct layer_tensor {
    const char *name;
    size_t slot_offset;
    enum extent rows, columns; // rows NONE: a vector
    enum presence presence;
} layer_tensors[] = {
#define SLOT(member) offsetof(struct layer_weights, member)
    {"input_layernorm.weight", SLOT(attention_norm), NONE, HIDDEN, ALWAYS},
    {"self_attn.q_proj.weight", SLOT(q), QUERY, HIDDEN, ALWAYS},
    {"self_attn.k_proj.weight", SLOT(k), KV, HIDDEN, ALWAYS},
    {"self_attn.v_proj.weight", SLOT(v), KV, HIDDEN, ALWAYS},
    {"self_attn.q_proj.bias", SLOT(q_bias), NONE, QUERY, ATTENTION_BIAS},
    {"self_attn.k_proj.bias", SLOT(k_bias), NONE, KV, ATTENTION_BIAS},
    {"self_attn.v_proj.bias", SLOT(v_bias), NONE, KV, ATTENTION_BIAS},
    {"self_attn.o_proj.weight", SLOT(o), HIDDEN, QUERY, ALWAYS},
    {"self_attn.o_proj.bias", SLOT(o_bias), NONE, HIDDEN, ATTENTION_BIAS},
    {"post_attention_layernorm.weight", SLOT(ffn_norm), NONE, HIDDEN, ALWAYS},
    {"mlp.gate_proj.weight", SLOT(gate), FFN, HIDDEN, ALWAYS},
    {"mlp.up_proj.weight", SLOT(up), FFN, HIDDEN, ALWAYS},
    {"mlp.gate_proj.bias", SLOT(gate_bias), NONE, FFN, MLP_BIAS},
    {"mlp.up_proj.bias", SLOT(up_bias), NONE, FFN, MLP_BIAS},
    {"mlp.down_proj.weight", SLOT(down), HIDDEN, FFN, ALWAYS},
    {"mlp.down_proj.bias", SLOT(down_bias), NONE, HIDDEN, MLP_BIAS},
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
PRINTF_LIKE(5, 6)
static void want(struct loader *loader, struct tensor *slot, uint32_t row_count,
                 uint32_t column_count, const char *name_format, ...) {
    struct wanted *wanted = &loader->wanted[loader->wanted_count++];
    *wanted = (struct wanted){.slot = slot, .row_count = row_count, .column_count = column_count};
    va_list args;
    va_start(args, name_format);
    int length = vsnprintf(wanted->name, sizeof(wanted->name), name_format, args);
    va_end(args);
    CHECK(length > 0 && (size_t)length < sizeof(wanted->name));
}

static void want_layer(struct loader *loader, uint32_t index) {
    const struct model_config *config = loader->config;
    char *layer = (char *)&loader->owner->weights.layers[index];
    for (size_t i = 0; i < LAYER_TENSOR_COUNT; i++) {
        const struct layer_tensor *tensor = &layer_tensors[i];
        if (!is_present(config, tensor->presence)) continue;
        want(loader, (struct tensor *)(layer + tensor->slot_offset),
             extent_size(config, tensor->rows), extent_size(config, tensor->columns),
             "model.layers.%" PRIu32 ".%s", loader->range->layer_first + index, tensor->name);
    }
}

static enum status want_all(struct loader *loader) {
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
        want(loader, &weights->embedding, vocabulary, hidden, "model.embed_tokens.weight");
    if (!range->is_last) return STATUS_OK;
    want(loader, &weights->final_norm, 0, hidden, "model.norm.weight");
    if (!config->tied_embeddings)
        want(loader, &weights->head, vocabulary, hidden, "lm_head.weight");
    else if (!range->is_first) // otherwise the head becomes a copy of the embedding's pointer
        want(loader, &weights->head, vocabulary, hidden, "model.embed_tokens.weight");
    return STATUS_OK;
}

// -- where the tensors are ------------------------------------------------------------------------

static enum status check_tensor(const struct loader *loader, const struct wanted *wanted,
                                const struct safetensors_tensor *found) {
    if (found->dtype == DTYPE_NONE)
        return error_set(loader->error, STATUS_UNSUPPORTED,
                         "tensor %s has dtype %s; F32, BF16 and F16 are supported", wanted->name,
                         found->dtype_name);
    uint64_t dimensions[2] = {wanted->row_count, wanted->column_count};
    uint32_t first = wanted->row_count == 0 ? 1 : 0;
    uint32_t count = 2 - first;
    if (found->dimension_count != count ||
        memcmp(found->dimensions, dimensions + first, count * sizeof(dimensions[0])) != 0) {
        char has[200], needs[64];
        safetensors_shape_write(found->dimension_count, found->dimensions, has, sizeof(has));
        safetensors_shape_write(count, dimensions + first, needs, sizeof(needs));
        return error_set(loader->error, STATUS_INVALID,
                         "tensor %s has shape %s, config.json asks for %s", wanted->name, has,
                         needs);
    }
    if (found->file_offset % dtype_size_bytes(found->dtype) != 0)
        return error_set(loader->error, STATUS_UNSUPPORTED,
                         "tensor %s starts at byte %" PRIu64 ", not a multiple of its %zu-byte "
                         "elements: write the file again with an aligned header",
                         wanted->name, found->file_offset, dtype_size_bytes(found->dtype));
    return STATUS_OK;
}

static enum status locate(struct loader *loader, struct wanted *wanted) {
    const struct checkpoint *checkpoint = &loader->checkpoint;
    const struct safetensors_tensor *found;
    enum status status = checkpoint_find(&loader->checkpoint, wanted->name, &wanted->shard_index,
                                         &found, loader->error);
    if (status != STATUS_OK) return status;
    status = check_tensor(loader, wanted, found);
    if (status != STATUS_OK) {
        error_prefix(loader->error, "%.200s/%s", checkpoint->directory,
                     checkpoint->shards[wanted->shard_index].file_name);
        return status;
    }
    wanted->file_offset = found->file_offset;
    wanted->size_bytes = found->size_bytes;
    *wanted->slot = (struct tensor){.dtype = found->dtype,
                                    .row_count = wanted->row_count == 0 ? 1 : wanted->row_count,
                                    .column_count = wanted->column_count};
    loader->owner->weights.weight_bytes += found->size_bytes;
    return STATUS_OK;
}

// -- mapping --------------------------------------------------------------------------------------

static int compare_places(const void *a, const void *b) {
    const struct wanted *x = a, *y = b;
    if (x->shard_index != y->shard_index) return x->shard_index < y->shard_index ? -1 : 1;
    return (x->file_offset > y->file_offset) - (x->file_offset < y->file_offset);
}

// How many tensors from `first` on lie on the same or adjoining pages of one file.
static uint32_t run_length(const struct loader *loader, uint32_t first, uint64_t page_bytes,
                           uint64_t *end_out) {
    const struct wanted *wanted = &loader->wanted[first];
    uint32_t count = 0;
    uint64_t end = 0;
    do {
        end = wanted[count].file_offset + wanted[count].size_bytes;
        end = (end + page_bytes - 1) & ~(page_bytes - 1);
        count++;
    } while (first + count < loader->wanted_count &&
             wanted[count].shard_index == wanted[0].shard_index &&
             wanted[count].file_offset <= end);
    *end_out = end;
    return count;
}

static enum status map_run(struct loader *loader, uint32_t first, uint64_t page_bytes,
                           uint32_t *count_out) {
    struct owner *owner = loader->owner;
    uint64_t begin = loader->wanted[first].file_offset & ~(page_bytes - 1), end;
    uint32_t count = run_length(loader, first, page_bytes, &end);
    uint32_t shard_index = loader->wanted[first].shard_index;
    const struct checkpoint_shard *shard = &loader->checkpoint.shards[shard_index];
    void *address = mmap(NULL, end - begin, PROT_READ, MAP_SHARED, shard->fd, (off_t)begin);
    if (address == MAP_FAILED)
        return error_set(loader->error, errno == ENOMEM ? STATUS_NO_MEMORY : STATUS_IO,
                         "%.200s/%s: mapping %" PRIu64 " bytes for tensor %s: %s",
                         loader->checkpoint.directory, shard->file_name, end - begin,
                         loader->wanted[first].name, strerror(errno));
    owner->mappings[owner->mapping_count++] = (struct mapping){address, end - begin, shard_index};
    owner->weights.mapped_bytes += end - begin;
    for (uint32_t i = first; i < first + count; i++)
        loader->wanted[i].slot->data =
            (const char *)address + (loader->wanted[i].file_offset - begin);
    *count_out = count;
    return STATUS_OK;
}

static enum status map_all(struct loader *loader) {
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    struct owner *owner = loader->owner;
    qsort(loader->wanted, loader->wanted_count, sizeof(loader->wanted[0]), compare_places);
    owner->mappings = memory_array(loader->wanted_count, sizeof(owner->mappings[0]));
    if (owner->mappings == NULL)
        return error_set(loader->error, STATUS_NO_MEMORY, "no memory for %" PRIu32 " mappings",
                         loader->wanted_count);
    uint32_t count = 0;
    for (uint32_t i = 0; i < loader->wanted_count; i += count) {
        enum status status = map_run(loader, i, page_bytes, &count);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

// -- reading --------------------------------------------------------------------------------------

// Brings pages into memory and into the page tables. 0 or an errno; a file that became shorter, or
// a bad disk, is EFAULT, where touching the pages would be SIGBUS.
static int pages_read(char *address, size_t size_bytes) {
    while (madvise(address, size_bytes, MADV_POPULATE_READ) != 0) {
        if (errno == EINTR) continue;
        if (errno != EINVAL) return errno;
        size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE); // an older kernel: touch them
        for (size_t i = 0; i < size_bytes; i += page_bytes)
            (void)*(volatile char *)(address + i);
        return 0;
    }
    return 0;
}

// Starts reading the next piece from disk while the current one is waited for.
static void pages_announce(const struct mapping *mapping, size_t offset) {
    if (offset >= mapping->size_bytes) return;
    size_t left = mapping->size_bytes - offset;
    size_t step = left < WEIGHTS_READ_STEP_BYTES ? left : WEIGHTS_READ_STEP_BYTES;
    (void)madvise(mapping->address + offset, step, MADV_WILLNEED); // only a hint
}

static enum status mapping_read(struct loader *loader, const struct mapping *mapping,
                                weights_progress_fn *progress, void *progress_ctx,
                                uint64_t *done_bytes) {
    pages_announce(mapping, 0);
    size_t step;
    for (size_t offset = 0; offset < mapping->size_bytes; offset += step) {
        size_t left = mapping->size_bytes - offset;
        step = left < WEIGHTS_READ_STEP_BYTES ? left : WEIGHTS_READ_STEP_BYTES;
        pages_announce(mapping, offset + step);
        int failure = pages_read(mapping->address + offset, step);
        if (failure != 0)
            return error_set(loader->error, STATUS_IO, "%.200s/%s: reading weights: %s",
                             loader->checkpoint.directory,
                             loader->checkpoint.shards[mapping->shard_index].file_name,
                             failure == EFAULT ? "it became shorter, or the disk failed"
                                               : strerror(failure));
        *done_bytes += step;
        uint64_t total_bytes = loader->owner->weights.mapped_bytes;
        if (progress != NULL && !progress(progress_ctx, *done_bytes, total_bytes))
            return error_set(loader->error, STATUS_CANCELLED, "loading weights was cancelled");
    }
    return STATUS_OK;
}

static enum status read_all(struct loader *loader, weights_progress_fn *progress,
                            void *progress_ctx) {
    const struct owner *owner = loader->owner;
    uint64_t done_bytes = 0;
    if (progress != NULL && !progress(progress_ctx, 0, owner->weights.mapped_bytes))
        return error_set(loader->error, STATUS_CANCELLED, "loading weights was cancelled");
    for (uint32_t i = 0; i < owner->mapping_count; i++) {
        enum status status =
            mapping_read(loader, &owner->mappings[i], progress, progress_ctx, &done_bytes);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

// -- open and close -------------------------------------------------------------------------------

static enum status load(struct loader *loader, weights_progress_fn *progress, void *progress_ctx) {
    enum status status = want_all(loader);
    if (status != STATUS_OK) return status;
    status = checkpoint_open(&loader->checkpoint, loader->error);
    for (uint32_t i = 0; i < loader->wanted_count && status == STATUS_OK; i++)
        status = locate(loader, &loader->wanted[i]);
    if (status == STATUS_OK) status = map_all(loader);
    if (status == STATUS_OK) status = read_all(loader, progress, progress_ctx);
    return status;
}

enum status weights_open(const char *directory, const struct model_config *config,
                         const struct weights_range *range, weights_progress_fn *progress,
                         void *progress_ctx, struct weights **weights_out, struct error *error) {
    if (range->layer_first > config->layer_count ||
        range->layer_count > config->layer_count - range->layer_first)
        return error_set(error, STATUS_INVALID,
                         "layers %" PRIu32 " to %" PRIu64 " of a model of %" PRIu32 " layers",
                         range->layer_first, (uint64_t)range->layer_first + range->layer_count,
                         config->layer_count);
    struct owner *owner = calloc(1, sizeof(*owner));
    if (owner == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory for weights");
    struct loader loader = {.checkpoint = {.directory = directory},
                            .config = config,
                            .range = range,
                            .error = error,
                            .owner = owner};
    enum status status = load(&loader, progress, progress_ctx);
    checkpoint_close(&loader.checkpoint);
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
    struct owner *owner = (struct owner *)((char *)weights - offsetof(struct owner, weights));
    for (uint32_t i = 0; i < owner->mapping_count; i++)
        munmap(owner->mappings[i].address, owner->mappings[i].size_bytes);
    free(owner->mappings);
    free(owner->weights.layers);
    free(owner);
}
