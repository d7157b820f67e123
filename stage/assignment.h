// assignment: what a stage is asked to serve, and its place among the others.
#pragma once

#include "base/dtype.h"
#include "proto/model_config.h"
#include "proto/weight_format.h"

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
    // How many steps before its own a frame's token may be drawn; 0: all tokens are known.
    uint32_t token_lag_max;
};

static inline bool assignment_is_first(const struct assignment *a) {
    return a->stage_index == 0;
}
static inline bool assignment_is_last(const struct assignment *a) {
    return a->stage_index + 1 == a->stage_count;
}
// Tokens go straight back from the last stage to the first, which needs them for frames that were
// sent before these were known. A stage alone has them already: it needs no link for that.
static inline bool assignment_takes_tokens(const struct assignment *a) {
    return assignment_is_first(a) && a->token_lag_max > 0;
}
static inline bool assignment_sends_tokens(const struct assignment *a) {
    return assignment_is_last(a) && a->stage_count > 1 && a->token_lag_max > 0;
}

// STATUS_INVALID: names the field, its value and the limits.
MUST_USE enum status assignment_check(const struct assignment *a, const struct model_config *config,
                                      struct error *error);
