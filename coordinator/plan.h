// plan: which stage owns which layers. Pure: no clock, no I/O.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/status.h"

struct plan {
    uint32_t stage_count;
    uint32_t layer_firsts[PIPELINE_STAGE_COUNT_MAX];
    uint32_t layer_counts[PIPELINE_STAGE_COUNT_MAX]; // each at least 1; they sum to the model's
};

// As even as can be; the last stage also has the head, so earlier stages get the remainder.
// STATUS_INVALID: more stages than layers or than PIPELINE_STAGE_COUNT_MAX, or none.
MUST_USE enum status plan_even(uint32_t layer_count, uint32_t stage_count, struct plan *plan_out,
                               struct error *error);

// From text such as "5,3": layers of stage 0, stage 1, ... STATUS_INVALID: not numbers, a zero, or
// the sum is not layer_count.
MUST_USE enum status plan_parse(const char *text, uint32_t layer_count, struct plan *plan_out,
                                struct error *error);
