// engine: from a frame to a frame. Holds a stage's layers; a deterministic function of weights, KV
// memory and frame (law 1). No threads, no I/O but reading the model.
#pragma once

#include "base/clock.h"
#include "proto/frame.h"
#include "stage/assignment.h"
#include "stage/backend.h"

struct engine;

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

// Checks a frame that came in, and gives its parts. STATUS_UNAVAILABLE: of another epoch, drop it.
// STATUS_INVALID: the frame is wrong.
MUST_USE enum status engine_check(const struct engine *engine, struct frame *in,
                                  struct frame_view *view_out, struct error *error);
// The same for a RESULT that came back to the first stage.
MUST_USE enum status engine_check_result(const struct engine *engine, struct frame *result,
                                         struct frame_view *view_out, struct error *error);

// One step: runs the layers over the rows of a frame that engine_check() let pass, all of whose
// tokens are known by now, and writes `out`: a STEP with activations, or on the last stage a
// RESULT.
void engine_step(struct engine *engine, const struct frame_view *in, struct frame *out,
                 struct frame_view *view_out);

// Moves with every layer that a step has computed. Any thread.
uint64_t engine_progress_count(const struct engine *engine);

// Rows of the last step.
uint32_t engine_row_count(const struct engine *engine);
