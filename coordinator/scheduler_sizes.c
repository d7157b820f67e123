#include "coordinator/scheduler_sizes.h"

#include <math.h>

#include "base/limits.h"

// Another number of groups must be better by this to be taken, and this to be taken in place of as
// many groups as stages.
static const double GROUPS_GAIN_MIN = 0.03, GROUPS_BASE_GAIN_MIN = 0.01;
// The last chunk of a prompt may cost so much more than others.
static const double CHUNK_SLACK = 0.1;
// Rows' cost for each unit of the fixed part.
static const double CHUNK_PER_FIXED = 9;
enum {
    // A chunk of fewer rows is not worth its frames.
    CHUNK_ROW_COUNT_MIN = 32,
    // Chunks of more rows end where a block ends, so that all of them can be shared at once.
    CHUNK_ALIGNED_COUNT_MIN = 256,
};

static double rows_cost(const struct cost_terms *terms, double row_count, double attended_count) {
    return terms->row * row_count + terms->attended * attended_count;
}

// Time of a round in which every sequence gets a row.
static double round_cost(const struct cost *cost, const struct scheduler_decode_load *load,
                         uint32_t stage_count, uint32_t group_count) {
    double rows = load->row_count, attended = (double)load->attended_count;
    double slowest = group_count * cost->slowest.fixed + rows_cost(&cost->slowest, rows, attended);
    // Rows are not split: the largest group is what the others wait for.
    double group_rows = ceil(rows / group_count), group_attended = attended * group_rows / rows;
    const struct cost_terms *terms = cost_is_measured(cost) ? &cost->sum : &cost->slowest;
    double sum = terms->fixed + rows_cost(terms, group_rows, group_attended);
    if (!cost_is_measured(cost)) sum *= stage_count;
    return fmax(slowest, sum + stage_count * cost->hop_ns);
}

uint32_t scheduler_sizes_groups(const struct cost *cost, const struct scheduler_decode_load *load,
                                uint32_t stage_count, uint32_t group_count_max,
                                uint32_t group_count_now) {
    if (load->row_count < group_count_max) group_count_max = load->row_count;
    if (group_count_max <= 1) return 1;
    uint32_t best = 1;
    double best_cost = round_cost(cost, load, stage_count, 1);
    for (uint32_t count = 2; count <= group_count_max; count++) {
        double round = round_cost(cost, load, stage_count, count);
        if (round >= best_cost * (1 - 1e-9)) continue;
        best = count;
        best_cost = round;
    }
    uint32_t base = stage_count < group_count_max ? stage_count : group_count_max;
    double base_cost = round_cost(cost, load, stage_count, base);
    if (best_cost >= base_cost * (1 - GROUPS_BASE_GAIN_MIN)) return base;
    if (group_count_now == 0 || group_count_now > group_count_max) return best;
    double now_cost = round_cost(cost, load, stage_count, group_count_now);
    return best_cost < now_cost * (1 - GROUPS_GAIN_MIN) ? best : group_count_now;
}

double scheduler_sizes_chunk(const struct cost *cost, const struct scheduler_prompt_load *load,
                             uint32_t stage_count, uint32_t row_count_max) {
    const struct cost_terms *terms = &cost->slowest;
    double budget = CHUNK_PER_FIXED * terms->fixed;
    if (stage_count > 1) {
        double rows = rows_cost(terms, (double)load->row_count, (double)load->attended_count);
        budget = fmin(budget, sqrt(rows * terms->fixed / (stage_count - 1)));
    }
    budget = fmax(budget, cost_of_rows(terms, 0, CHUNK_ROW_COUNT_MIN));
    return fmin(budget, cost_of_rows(terms, 0, row_count_max));
}

uint32_t scheduler_sizes_rows(const struct cost *cost, uint32_t issued_count,
                              uint32_t remaining_count, double budget, bool is_alone) {
    const struct cost_terms *terms = &cost->slowest;
    uint32_t row_count;
    if (is_alone && budget > 0) {
        double whole = cost_of_rows(terms, issued_count, remaining_count);
        budget = whole / fmax(1, ceil(whole / budget - CHUNK_SLACK));
        row_count = cost_rows_within(terms, issued_count, budget) + 1;
    } else {
        row_count = cost_rows_within(terms, issued_count, budget);
        if (row_count == 0) row_count = 1;
    }
    if (row_count >= remaining_count) return remaining_count;
    if (row_count < CHUNK_ALIGNED_COUNT_MIN) return row_count;
    uint32_t end = issued_count + row_count + KV_BLOCK_POSITION_COUNT / 2;
    row_count = end - end % KV_BLOCK_POSITION_COUNT - issued_count;
    return row_count < remaining_count ? row_count : remaining_count;
}
