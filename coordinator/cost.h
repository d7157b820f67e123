// cost: what a microbatch costs the stages, fitted to measured steps.
//
//   time = fixed + row * rows + attended * (positions attended to, summed over the rows)
//
// for the slowest stage (what bounds the rate) and for all stages together (what bounds the
// latency). Means of what was measured are kept by size of the microbatch, so that a size that has
// not been seen for long still counts; the fit weighs relative errors, and leans on a prior where
// nothing was measured.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/model_config.h"

// A finished step.
struct step_cost {
    uint32_t row_count;
    uint64_t attended_count; // positions attended to, summed over the rows
    uint64_t slowest_ns;     // time of the slowest stage
    uint64_t sum_ns;         // of all stages
};

// What is believed before anything is measured, in units of one row's cost. A zero field: a default
// for a model of some billion parameters.
struct cost_prior {
    double fixed;
    double attended;
};

// From the operations that the model's shape asks for.
struct cost_prior cost_prior_of(const struct model_config *model);

// ns, or in units of a row's cost before anything is measured.
struct cost_terms {
    double fixed, row, attended;
};

enum { COST_ROW_BIN_COUNT = 13, COST_ATTENDED_BIN_COUNT = 13 };

// Means of the steps of about one size.
struct cost_bin {
    double weight; // 0: none yet
    double rows, attended, slowest, sum;
};

struct cost {
    struct cost_terms prior;
    struct cost_bin bins[COST_ROW_BIN_COUNT][COST_ATTENDED_BIN_COUNT];
    uint32_t observation_count; // stops at its largest value
    uint32_t unfitted_count;    // observations since the last fit
    struct cost_terms slowest, sum;
    double hop_ns; // of a frame from one stage to the next; 0: not measured
};

void cost_init(struct cost *cost, const struct cost_prior *prior);
void cost_observe(struct cost *cost, const struct step_cost *step);
void cost_observe_hop(struct cost *cost, uint64_t hop_ns);
// The stages are no longer the same: what comes next outweighs what was measured so far.
void cost_age(struct cost *cost);
// Whether enough was measured to speak of ns.
bool cost_is_measured(const struct cost *cost);

// Rows that attend to 1 + first, 2 + first, ... positions, without the fixed part.
double cost_of_rows(const struct cost_terms *terms, uint32_t first, uint32_t row_count);
// The most such rows that cost at most `budget`.
uint32_t cost_rows_within(const struct cost_terms *terms, uint32_t first, double budget);
