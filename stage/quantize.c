#include "stage/quantize.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/memory.h"

struct quantized {
    struct backend *backend;
    char *memory; // of all matrices, one after another
    size_t size_bytes;
};

static const size_t layer_matrices[] = {
    offsetof(struct layer_weights, q),    offsetof(struct layer_weights, k),
    offsetof(struct layer_weights, v),    offsetof(struct layer_weights, o),
    offsetof(struct layer_weights, gate), offsetof(struct layer_weights, up),
    offsetof(struct layer_weights, down),
};
enum { LAYER_MATRIX_COUNT = sizeof(layer_matrices) / sizeof(layer_matrices[0]) };

static struct tensor *matrix_of(struct layer_weights *layer, size_t index) {
    return (struct tensor *)((char *)layer + layer_matrices[index]);
}

// Whole cache lines: matrices follow each other.
static size_t place_bytes(const struct tensor *matrix) {
    size_t size_bytes = backend_quantized_bytes(matrix->row_count, matrix->column_count);
    return (size_bytes + 63) / 64 * 64;
}

static size_t total_bytes(const struct weights *weights) {
    size_t size_bytes = 0;
    for (uint32_t i = 0; i < weights->layer_count; i++) {
        for (size_t m = 0; m < LAYER_MATRIX_COUNT; m++)
            size_bytes += place_bytes(matrix_of(&weights->layers[i], m));
    }
    if (weights->head.data != NULL) size_bytes += place_bytes(&weights->head);
    return size_bytes;
}

// Returns the place behind it.
static char *replace(struct quantized *quantized, struct weights *weights, struct tensor *matrix,
                     char *place) {
    struct tensor source = *matrix;
    *matrix = backend_quantize(quantized->backend, &source, place);
    size_t size_bytes = place_bytes(&source);
    weights->weight_bytes += size_bytes;
    if (source.data == weights->embedding.data) return place + size_bytes; // a tied head
    weights->weight_bytes -=
        (uint64_t)source.row_count * source.column_count * dtype_size_bytes(source.dtype);
    weights_give_back(&source);
    return place + size_bytes;
}

static enum status replace_all(struct quantized *quantized, struct weights *weights,
                               weights_progress_fn *progress, void *progress_ctx,
                               struct error *error) {
    char *place = quantized->memory;
    for (uint32_t i = 0; i < weights->layer_count; i++) {
        uint64_t done_bytes = weights->mapped_bytes;
        if (progress != NULL && !progress(progress_ctx, done_bytes, done_bytes))
            return error_set(error, STATUS_CANCELLED, "quantizing weights was cancelled");
        for (size_t m = 0; m < LAYER_MATRIX_COUNT; m++)
            place = replace(quantized, weights, matrix_of(&weights->layers[i], m), place);
    }
    if (weights->head.data != NULL) replace(quantized, weights, &weights->head, place);
    return STATUS_OK;
}

enum status quantized_open(struct backend *backend, struct weights *weights,
                           weights_progress_fn *progress, void *progress_ctx,
                           struct quantized **quantized_out, struct error *error) {
    struct quantized *quantized = memory_array(1, sizeof(*quantized));
    if (quantized == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory for int8 weights");
    quantized->backend = backend;
    quantized->size_bytes = total_bytes(weights);
    quantized->memory = backend_alloc(backend, quantized->size_bytes);
    enum status status =
        quantized->memory != NULL
            ? replace_all(quantized, weights, progress, progress_ctx, error)
            : error_set(error, STATUS_NO_MEMORY, "no memory for %zu bytes of int8 weights",
                        quantized->size_bytes);
    if (status != STATUS_OK) {
        quantized_close(quantized);
        return status;
    }
    *quantized_out = quantized;
    return STATUS_OK;
}

void quantized_close(struct quantized *quantized) {
    if (quantized == NULL) return;
    if (quantized->memory != NULL)
        backend_free(quantized->backend, quantized->memory, quantized->size_bytes);
    free(quantized);
}
