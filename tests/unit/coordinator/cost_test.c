#include "coordinator/cost.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/rng.h"
#include "coordinator/scheduler_sizes.h"

// What the simulated stages take, in ns.
static const struct cost_terms TRUE_TERMS = {.fixed = 2e6, .row = 1e4, .attended = 0.5};
enum { STAGE_COUNT = 4 };

static double true_ns(uint32_t first, uint32_t row_count) {
    return TRUE_TERMS.fixed + cost_of_rows(&TRUE_TERMS, first, row_count);
}

static uint64_t attended_of(uint32_t first, uint32_t row_count) {
    return (uint64_t)row_count * first + (uint64_t)row_count * (row_count + 1) / 2;
}

static void observe(struct cost *cost, uint32_t first, uint32_t row_count, double factor) {
    double ns = true_ns(first, row_count) * factor;
    struct step_cost step = {.row_count = row_count,
                             .attended_count = attended_of(first, row_count),
                             .slowest_ns = (uint64_t)ns,
                             .sum_ns = (uint64_t)(ns * STAGE_COUNT)};
    cost_observe(cost, &step);
}

// Steps of a few sizes that take up to a fifth more or less.
static void observe_many(struct cost *cost, uint64_t seed) {
    static const uint32_t firsts[] = {0, 500, 4000, 30000}, row_counts[] = {4, 30, 200, 900};
    for (uint64_t i = 0; i < 400; i++)
        observe(cost, firsts[i % 4], row_counts[i / 4 % 4], 0.8 + 0.4 * rng_uniform(seed, i));
}

static void assert_near(double value, double expected, double share) {
    if (fabs(value - expected) > fabs(expected) * share)
        fail_msg("%g is not within %g %% of %g", value, share * 100, expected);
}

static void costs_are_learned_from_noisy_steps(void **state) {
    (void)state;
    struct cost cost;
    cost_init(&cost, &(struct cost_prior){0});
    assert_false(cost_is_measured(&cost));
    observe_many(&cost, 1);
    assert_true(cost_is_measured(&cost));
    assert_near(cost.slowest.fixed, TRUE_TERMS.fixed, 0.15);
    assert_near(cost.slowest.row, TRUE_TERMS.row, 0.15);
    assert_near(cost.slowest.attended, TRUE_TERMS.attended, 0.15);
    assert_near(cost.sum.fixed, TRUE_TERMS.fixed * STAGE_COUNT, 0.15);
}

static void one_size_of_step_keeps_the_prior_in_proportion(void **state) {
    (void)state;
    struct cost cost;
    cost_init(&cost, &(struct cost_prior){.fixed = 100, .attended = 1e-4});
    for (int i = 0; i < 100; i++)
        observe(&cost, 100, 8, 1);
    double step = cost.slowest.fixed + cost_of_rows(&cost.slowest, 100, 8);
    assert_near(step, true_ns(100, 8), 0.02);
    assert_near(cost.slowest.fixed, cost.slowest.row * 100, 0.2);
}

static void a_step_that_hangs_changes_little(void **state) {
    (void)state;
    struct cost cost;
    cost_init(&cost, &(struct cost_prior){0});
    observe_many(&cost, 2);
    observe(&cost, 0, 30, 10000);
    for (int i = 0; i < 20; i++)
        observe(&cost, 500, 200, 1);
    assert_near(cost.slowest.fixed, TRUE_TERMS.fixed, 0.3);
}

static void sizes_not_seen_for_long_still_count(void **state) {
    (void)state;
    struct cost cost;
    cost_init(&cost, &(struct cost_prior){0});
    observe_many(&cost, 3);
    for (int i = 0; i < 10000; i++)
        observe(&cost, 500, 8, 1);
    assert_near(cost.slowest.row, TRUE_TERMS.row, 0.2);
}

static void slower_stages_are_learned_after_aging(void **state) {
    (void)state;
    struct cost cost;
    cost_init(&cost, &(struct cost_prior){0});
    observe_many(&cost, 4);
    cost_age(&cost);
    for (int i = 0; i < 3; i++) {
        observe(&cost, 500, 8, 3);
        observe(&cost, 500, 900, 3);
    }
    for (int i = 0; i < 16; i++)
        observe(&cost, 500, 200, 3);
    double step = cost.slowest.fixed + cost_of_rows(&cost.slowest, 500, 200);
    assert_near(step, true_ns(500, 200) * 3, 0.2);
}

static void rows_within_a_budget_cost_no_more_and_one_more_would(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 1000; i++) {
        uint32_t first = (uint32_t)(rng_uniform(5, 2 * i) * 100000);
        double budget = rng_uniform(5, 2 * i + 1) * 3e7;
        uint32_t count = cost_rows_within(&TRUE_TERMS, first, budget);
        assert_true(cost_of_rows(&TRUE_TERMS, first, count) <= budget * (1 + 1e-6));
        assert_true(cost_of_rows(&TRUE_TERMS, first, count + 1) > budget);
    }
    assert_int_equal(cost_rows_within(&TRUE_TERMS, 0, 0), 0);
    assert_int_equal(cost_rows_within(&TRUE_TERMS, 0, -1), 0);
}

// -- sizes ----------------------------------------------------------------------------------------

static struct cost learned(double hop_ns) {
    struct cost cost;
    cost_init(&cost, &(struct cost_prior){0});
    for (int i = 0; i < 8; i++) {
        observe(&cost, 100, 4, 1);
        observe(&cost, 100, 400, 1);
    }
    if (hop_ns > 0) cost_observe_hop(&cost, (uint64_t)hop_ns);
    return cost;
}

static void groups_are_as_many_as_stages_when_hops_are_short(void **state) {
    (void)state;
    struct cost cost = learned(1000);
    struct scheduler_decode_load load = {.row_count = 64, .attended_count = 64 * 100};
    assert_int_equal(scheduler_sizes_groups(&cost, &load, STAGE_COUNT, STAGE_COUNT + 1, 0),
                     STAGE_COUNT);
    load.row_count = 3;
    assert_int_equal(scheduler_sizes_groups(&cost, &load, STAGE_COUNT, STAGE_COUNT + 1, 0), 3);
    cost_init(&cost, &(struct cost_prior){0});
    load.row_count = 64;
    assert_int_equal(scheduler_sizes_groups(&cost, &load, STAGE_COUNT, STAGE_COUNT + 1, 0),
                     STAGE_COUNT);
}

static void one_more_group_hides_long_hops(void **state) {
    (void)state;
    struct cost cost = learned(3e6);
    struct scheduler_decode_load load = {.row_count = 6400, .attended_count = 6400 * 100};
    assert_true(scheduler_sizes_groups(&cost, &load, STAGE_COUNT, STAGE_COUNT + 2, 0) >
                STAGE_COUNT);
}

static void groups_are_as_many_as_stages_again_when_hops_are_short_again(void **state) {
    (void)state;
    struct cost cost = learned(3e6);
    struct scheduler_decode_load load = {.row_count = 6400, .attended_count = 6400 * 100};
    uint32_t count = scheduler_sizes_groups(&cost, &load, STAGE_COUNT, STAGE_COUNT + 2, 0);
    assert_int_equal(scheduler_sizes_groups(&cost, &load, STAGE_COUNT, STAGE_COUNT + 2, count),
                     count);
    for (int i = 0; i < 200; i++)
        cost_observe_hop(&cost, 1000);
    assert_int_equal(scheduler_sizes_groups(&cost, &load, STAGE_COUNT, STAGE_COUNT + 2, count),
                     STAGE_COUNT);
}

static struct scheduler_prompt_load prompt_of(uint64_t row_count) {
    return (struct scheduler_prompt_load){row_count, row_count * (row_count + 1) / 2};
}

static void the_fixed_part_of_a_chunk_is_a_tenth_at_most_for_long_prompts(void **state) {
    (void)state;
    struct cost cost = learned(0);
    struct scheduler_prompt_load load = prompt_of(200000);
    double budget = scheduler_sizes_chunk(&cost, &load, STAGE_COUNT, 4096);
    assert_near(cost.slowest.fixed / (budget + cost.slowest.fixed), 0.1, 1e-6);
    assert_true(scheduler_sizes_chunk(&cost, &load, STAGE_COUNT, 100) < budget / 10);
}

static void a_short_prompt_is_cut_smaller_to_fill_the_stages(void **state) {
    (void)state;
    struct cost cost = learned(0);
    struct scheduler_prompt_load load = prompt_of(2000);
    double budget = scheduler_sizes_chunk(&cost, &load, 8, 4096);
    assert_true(budget < scheduler_sizes_chunk(&cost, &load, 1, 4096) / 2);
    uint32_t row_count = scheduler_sizes_rows(&cost, 0, 2000, budget, true);
    assert_true(row_count > 100 && row_count < 500);
}

static void chunks_of_a_lone_prompt_cost_the_same(void **state) {
    (void)state;
    struct cost cost = learned(0);
    cost.slowest = TRUE_TERMS;
    double budget = 2e7, least = 1e18, most = 0;
    uint32_t issued_count = 0, count = 100000;
    while (issued_count < count) {
        uint32_t row_count =
            scheduler_sizes_rows(&cost, issued_count, count - issued_count, budget, true);
        assert_true(row_count > 0 && row_count <= count - issued_count);
        double chunk = cost_of_rows(&TRUE_TERMS, issued_count, row_count);
        least = fmin(least, chunk);
        most = fmax(most, chunk);
        issued_count += row_count;
    }
    assert_true(most < budget * 1.2);
    assert_true(least > budget * 0.85);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(costs_are_learned_from_noisy_steps),
        cmocka_unit_test(one_size_of_step_keeps_the_prior_in_proportion),
        cmocka_unit_test(a_step_that_hangs_changes_little),
        cmocka_unit_test(sizes_not_seen_for_long_still_count),
        cmocka_unit_test(slower_stages_are_learned_after_aging),
        cmocka_unit_test(rows_within_a_budget_cost_no_more_and_one_more_would),
        cmocka_unit_test(groups_are_as_many_as_stages_when_hops_are_short),
        cmocka_unit_test(one_more_group_hides_long_hops),
        cmocka_unit_test(groups_are_as_many_as_stages_again_when_hops_are_short_again),
        cmocka_unit_test(the_fixed_part_of_a_chunk_is_a_tenth_at_most_for_long_prompts),
        cmocka_unit_test(a_short_prompt_is_cut_smaller_to_fill_the_stages),
        cmocka_unit_test(chunks_of_a_lone_prompt_cost_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
