#include "coordinator/plan.h"

#include <inttypes.h>
#include <stdlib.h>

enum status plan_even(uint32_t layer_count, uint32_t stage_count, struct plan *plan_out,
                      struct error *error) {
    uint32_t limit =
        layer_count < PIPELINE_STAGE_COUNT_MAX ? layer_count : PIPELINE_STAGE_COUNT_MAX;
    if (stage_count == 0 || stage_count > limit)
        return error_set(error, STATUS_INVALID,
                         "stages is %" PRIu32 ", it must be from 1 to %" PRIu32
                         " for a model of %" PRIu32 " layers",
                         stage_count, limit, layer_count);
    struct plan plan = {.stage_count = stage_count};
    uint32_t first = 0;
    for (uint32_t i = 0; i < stage_count; i++) {
        plan.layer_firsts[i] = first;
        plan.layer_counts[i] = layer_count / stage_count + (i < layer_count % stage_count ? 1 : 0);
        first += plan.layer_counts[i];
    }
    *plan_out = plan;
    return STATUS_OK;
}

enum status plan_parse(const char *text, uint32_t layer_count, struct plan *plan_out,
                       struct error *error) {
    struct plan plan = {0};
    uint64_t sum = 0;
    const char *at = text;
    for (;;) {
        char *end;
        unsigned long count = *at >= '0' && *at <= '9' ? strtoul(at, &end, 10) : 0;
        if (count == 0 || count > layer_count)
            return error_set(error, STATUS_INVALID,
                             "layers is '%s': entry %" PRIu32
                             " must be a whole number from 1 to %" PRIu32,
                             text, plan.stage_count + 1, layer_count);
        if (plan.stage_count == PIPELINE_STAGE_COUNT_MAX)
            return error_set(error, STATUS_INVALID, "layers has more than %d entries",
                             PIPELINE_STAGE_COUNT_MAX);
        plan.layer_firsts[plan.stage_count] = (uint32_t)sum;
        plan.layer_counts[plan.stage_count++] = (uint32_t)count;
        sum += count;
        if (*end == '\0') break;
        if (*end != ',' || sum > layer_count)
            return error_set(error, STATUS_INVALID, "layers is '%s', it must look like 5,3", text);
        at = end + 1;
    }
    if (sum != layer_count)
        return error_set(error, STATUS_INVALID,
                         "layers is '%s': it sums to %" PRIu64 ", the model has %" PRIu32 " layers",
                         text, sum, layer_count);
    *plan_out = plan;
    return STATUS_OK;
}
