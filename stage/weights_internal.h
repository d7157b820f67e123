// weights_internal: what the files of weights share. weights.c knows which tensors a range has,
// weights_map.c finds them in a checkpoint's files, weights_dummy.c makes them up.
#pragma once

#include "stage/checkpoint.h"
#include "stage/weights.h"

struct weights_mapping {
    char *address;
    size_t size_bytes;    // whole pages
    uint32_t shard_index; // of a checkpoint
};

// What weights_open() gives out is the first member.
struct weights_owner {
    struct weights weights;
    struct weights_mapping *mappings;
    uint32_t mapping_count;
};

// What a tensor does, which decides what values it gets when they are made up.
enum tensor_role {
    TENSOR_NORM,     // scales a normalised row
    TENSOR_BIAS,     // added to a product
    TENSOR_MATRIX,   // (outputs, inputs)
    TENSOR_RESIDUAL, // a matrix whose product is added to the residual stream
};

// One tensor of the range: what it must be, where it goes, and, once located, where it is.
struct wanted_tensor {
    char name[64];
    struct tensor *slot;
    enum tensor_role role;
    uint32_t row_count; // 0: a vector, which has one dimension
    uint32_t column_count;
    uint32_t shard_index;
    uint64_t offset_bytes; // in the file, or in the made-up mapping
    uint64_t size_bytes;
};

struct weights_loader {
    const struct model_config *config;
    const struct weights_range *range;
    struct error *error;
    struct weights_owner *owner;
    struct checkpoint checkpoint; // weights_map.c only
    struct wanted_tensor *wanted;
    uint32_t wanted_count;
    weights_progress_fn *progress;
    void *progress_ctx;
};

// Fill the slots of all wanted tensors, the mappings and the sums of bytes. On failure
// weights_close() cleans up.
MUST_USE enum status weights_map(struct weights_loader *loader);
MUST_USE enum status weights_make_up(struct weights_loader *loader);

// Writes size and dtype into the tensor's slot, and counts its bytes. data is still to be set.
void weights_fill_slot(struct weights_loader *loader, const struct wanted_tensor *wanted,
                       enum dtype dtype);
// Tells the progress function. STATUS_CANCELLED when it gives up.
MUST_USE enum status weights_progressed(const struct weights_loader *loader, uint64_t done_bytes);
