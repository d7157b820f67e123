// quantize: the matrices of a stage in int8, made from its weights when they are loaded.
#pragma once

#include "stage/backend.h"
#include "stage/weights.h"

struct quantized;

// Makes int8 of every matrix that rows are multiplied with (backend_quantize), points `weights` at
// it, and gives the memory of what it was made from back. Norms, biases and the embedding stay.
// Calls `progress` (may be NULL) before each layer with all bytes done.
// `backend` is borrowed until quantized_close(), after which the tensors of `weights` are gone.
// STATUS_NO_MEMORY names the bytes; STATUS_CANCELLED.
MUST_USE enum status quantized_open(struct backend *backend, struct weights *weights,
                                    weights_progress_fn *progress, void *progress_ctx,
                                    struct quantized **quantized_out, struct error *error);
void quantized_close(struct quantized *quantized); // NULL allowed
