// meters: what operators see of a pipeline: where the time of its stages went, how fast tokens
// come, how long requests wait. Pure: times are arguments; memory is fixed.
#pragma once

#include "coordinator/timeline.h"
#include "stagecoach/v1/admin.pb-c.h"

struct meters;

MUST_USE enum status meters_open(uint32_t stage_count, uint64_t now_ns, struct meters **meters_out);
void meters_close(struct meters *meters); // NULL allowed

// Filled by the flow and the cluster.
struct timeline *meters_timeline(struct meters *meters);

// -- what happened --------------------------------------------------------------------------------

enum meter {
    METER_QUEUE,       // from a request's arrival until its first rows were sent
    METER_FIRST_TOKEN, // from arrival to the first token
    METER_INTER_TOKEN, // from one token of a sequence to the next
    METER_REQUEST,     // from arrival to the last token
    METER_COUNT,
};
void meters_observe(struct meters *meters, enum meter meter, uint64_t ns);
// A token was drawn for a client.
void meters_count_token(struct meters *meters, uint64_t now_ns);
// The first rows of a sequence were sent; so much of its prompt came from the prefix cache.
void meters_count_prompt(struct meters *meters, uint32_t prompt_count, uint32_t cached_count);

// -- what is so -----------------------------------------------------------------------------------

// Fills what is measured into `pipeline` and its stages. What it points to is valid until the next
// call.
void meters_describe(struct meters *meters, uint64_t now_ns, Stagecoach__V1__Pipeline *pipeline);

// At most METERS_ANSWER_STEP_COUNT_MAX steps after the cursor (0: from now on), and the cursor
// after them. Valid until the next call.
const Stagecoach__V1__Steps *meters_steps(struct meters *meters, uint64_t now_ns, uint64_t cursor);
