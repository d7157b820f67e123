#include "stage/assignment.h"

#include <inttypes.h>

#include "base/limits.h"

static enum status check_field(const char *field, uint64_t value, uint64_t minimum,
                               uint64_t maximum, struct error *error) {
    if (value >= minimum && value <= maximum) return STATUS_OK;
    return error_set(error, STATUS_INVALID,
                     "assignment: %s is %" PRIu64 ", it must be from %" PRIu64 " to %" PRIu64,
                     field, value, minimum, maximum);
}

enum status assignment_check(const struct assignment *a, const struct model_config *config,
                             struct error *error) {
    bool is_f16 = a->activation_dtype == DTYPE_F16;
    const struct {
        const char *field;
        uint64_t value, minimum, maximum;
    } fields[] = {
        {"stage_count", a->stage_count, 1, PIPELINE_STAGE_COUNT_MAX},
        {"stage_index", a->stage_index, 0, a->stage_count - 1},
        {"layer_count", a->layer_count, 1, config->layer_count},
        {"layer_first", a->layer_first, 0, config->layer_count - a->layer_count},
        {"activation_dtype", is_f16 ? 0 : a->activation_dtype, DTYPE_F32, DTYPE_BF16},
        {"kv_dtype", a->kv_dtype, DTYPE_F32, DTYPE_F16},
        {"kv_block_count", a->kv_block_count, 1, UINT32_MAX / KV_BLOCK_POSITION_COUNT},
        {"kv_block_positions", a->kv_block_positions, KV_BLOCK_POSITION_COUNT,
         KV_BLOCK_POSITION_COUNT},
        {"row_count_max", a->row_count_max, 1, MICROBATCH_ROW_COUNT_MAX},
        {"sequence_count_max", a->sequence_count_max, 1, MICROBATCH_SEQUENCE_COUNT_MAX},
        {"credit_count", a->credit_count, 1, LINK_CREDIT_COUNT_MAX},
        {"position_count_max", a->position_count_max, 1, config->position_count_max},
        {"load_format", a->load_format, 0, LOAD_FORMAT_COUNT - 1},
        {"weight_format", a->weight_format, 0, WEIGHT_FORMAT_COUNT - 1},
        {"token_lag_max", a->token_lag_max, 0, a->credit_count - 1},
    };
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        enum status status = check_field(fields[i].field, fields[i].value, fields[i].minimum,
                                         fields[i].maximum, error);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}
