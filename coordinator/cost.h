// cost: what a microbatch costs the stages, from measured steps.
#pragma once

#include <stdint.h>

// A finished step.
struct step_cost {
    uint32_t row_count;
    uint64_t attended_count; // positions attended to, summed over the rows
    uint64_t slowest_ns;     // time of the slowest stage
    uint64_t sum_ns;         // of all stages
};
