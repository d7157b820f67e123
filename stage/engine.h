// engine: from a frame to a frame. Holds a stage's layers; a deterministic function of weights, KV
// memory and frame (law 1). No threads, no I/O but reading the model.
#pragma once

#include "base/clock.h"
#include "proto/frame.h"
#include "proto/weight_format.h"
#include "stage/backend.h"

struct engine;

// What the coordinator asks of a stage; the fields of stagecoach.v1.Assignment.
struct assignment {
    uint64_t epoch;
    uint32_t stage_index, stage_count;
    uint32_t layer_first, layer_count;
    char model_path[4096];
    uint64_t model_digest;
    enum dtype activation_dtype, kv_dtype;
    uint32_t kv_block_count, kv_block_positions;
    uint32_t row_count_max, sequence_count_max;
    uint32_t credit_count;
    uint32_t position_count_max;
    enum load_format load_format;
    enum weight_format weight_format;
};

struct engine_sizes {
    uint64_t weight_bytes, mapped_bytes, kv_bytes;
};

// Borrows `backend` until engine_close.
MUST_USE enum status engine_open(struct backend *backend, struct clock clock,
                                 struct engine **engine_out);
void engine_close(struct engine *engine); // NULL allowed

// Checks the assignment and loads its layers, or keeps them when they are loaded already. On
// failure nothing is loaded. The sentence names the file, tensor or field.
MUST_USE enum status engine_load(struct engine *engine, const struct assignment *assignment,
                                 weights_progress_fn *progress, void *progress_ctx,
                                 struct engine_sizes *sizes_out, struct error *error);

// The capacity that frames to and from this stage need; after engine_load.
size_t engine_frame_bytes(const struct engine *engine);

// One step: checks `in`, runs the layers over its rows, writes `out`: a STEP with activations, or
// on the last stage a RESULT. STATUS_UNAVAILABLE: of another epoch, drop it. STATUS_INVALID: the
// frame is wrong; nothing was computed.
MUST_USE enum status engine_step(struct engine *engine, struct frame *in, struct frame *out,
                                 struct error *error);

// Rows of the last step.
uint32_t engine_row_count(const struct engine *engine);
