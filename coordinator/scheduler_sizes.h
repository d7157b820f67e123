// scheduler_sizes: how large microbatches should be, from what they cost. Pure functions.
#pragma once

#include "coordinator/cost.h"

// Sequences that decode, to be split over microbatches that follow one another.
struct scheduler_decode_load {
    uint32_t row_count;
    uint64_t attended_count; // positions attended to, summed over the rows
};

// Prompts that are being computed, from their beginning.
struct scheduler_prompt_load {
    uint64_t row_count;
    uint64_t attended_count;
};

// Over how many microbatches the decode rows are split, from 1 to group_count_max, so that most
// rows are computed in a given time. A round takes
//
//   max(groups * slowest stage's time, all stages' times + stage_count * hop)
//
// because each stage computes every group once, and a group's next rows need its tokens. As many
// as stages when that is about as good; else keeps group_count_now (0: none yet) unless another one
// is better by more than the costs are off.
uint32_t scheduler_sizes_groups(const struct cost *cost, const struct scheduler_decode_load *load,
                                uint32_t stage_count, uint32_t group_count_max,
                                uint32_t group_count_now);

// What the rows of a microbatch with a prompt's chunk may cost the slowest stage, beside its fixed
// part. At most what makes the fixed part a tenth of the whole; less when the prompts are so short
// that filling and draining the stages takes longer than the fixed parts of more chunks: (chunks +
// stage_count - 1) * (fixed + budget) is least at budget = sqrt(rows' cost * fixed / (stage_count -
// 1)).
double scheduler_sizes_chunk(const struct cost *cost, const struct scheduler_prompt_load *load,
                             uint32_t stage_count, uint32_t row_count_max);

// Rows of a prompt's next chunk, at least 1: as many as cost at most `budget`. When the rest of the
// prompt is all there is to compute (is_alone), it is cut into chunks of equal cost.
uint32_t scheduler_sizes_rows(const struct cost *cost, uint32_t issued_count,
                              uint32_t remaining_count, double budget, bool is_alone);
