#include "coordinator/meters.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/limits.h"

static const uint64_t MS = 1000000, S = 1000000000;

static struct meters *open_meters(uint32_t stage_count) {
    struct meters *meters;
    assert_int_equal(meters_open(stage_count, 100 * S, &meters), STATUS_OK);
    return meters;
}

static void assert_near(double value, double expected) {
    if (fabs(value - expected) > 1e-9 * fabs(expected) + 1e-12)
        fail_msg("%.12g is not %.12g", value, expected);
}

// A step that is computed 10 ms a stage, without hops.
static void run_step(struct meters *meters, uint32_t stage_count, uint64_t step, uint64_t sent_ns) {
    struct timeline *timeline = meters_timeline(meters);
    timeline_sent(timeline,
                  &(struct timeline_send){.sent_ns = sent_ns, .row_count = 4, .sequence_count = 2});
    timeline_result(timeline, sent_ns + stage_count * 10 * MS);
    for (uint32_t s = 0; s < stage_count; s++)
        timeline_record(timeline, s,
                        &(struct timeline_record){.step = step,
                                                  .received_ns = sent_ns + s * 10 * MS,
                                                  .begin_ns = sent_ns + s * 10 * MS,
                                                  .end_ns = sent_ns + (s + 1) * 10 * MS});
}

static void times_fall_into_buckets_and_sums(void **state) {
    (void)state;
    struct meters *meters = open_meters(1);
    meters_observe(meters, METER_FIRST_TOKEN, 1 * MS); // exactly a bound: at most it
    meters_observe(meters, METER_FIRST_TOKEN, 1 * MS + 1);
    meters_observe(meters, METER_FIRST_TOKEN, 1000 * S);
    meters_observe(meters, METER_REQUEST, 0);
    Stagecoach__V1__Pipeline pipeline = STAGECOACH__V1__PIPELINE__INIT;
    meters_describe(meters, 101 * S, &pipeline);
    const Stagecoach__V1__Histogram *h = pipeline.first_token;
    assert_int_equal(h->n_counts, h->n_bounds_seconds + 1);
    for (size_t i = 0; i < h->n_counts; i++) {
        bool is_last = i == h->n_bounds_seconds;
        double bound = is_last ? 1e9 : h->bounds_seconds[i];
        bool is_one = is_last || bound == 0.001 || bound == 0.002;
        assert_int_equal(h->counts[i], is_one ? 1 : 0);
        if (i > 0) assert_true(bound > h->bounds_seconds[i - 1]);
    }
    assert_near(h->sum_seconds, 1000.002000001);
    assert_int_equal(pipeline.request->counts[0], 1);
    assert_int_equal(pipeline.inter_token->counts[0], 0);
    meters_close(meters);
}

static void rates_are_over_the_window(void **state) {
    (void)state;
    struct meters *meters = open_meters(2);
    timeline_begin_epoch(meters_timeline(meters), 1);
    timeline_set_quiet(meters_timeline(meters), false, 100 * S);
    // Ten tokens a second for 60 s; a step of four rows every second.
    for (uint64_t i = 0; i < 600; i++)
        meters_count_token(meters, 100 * S + i * 100 * MS);
    for (uint64_t i = 0; i < 60; i++)
        run_step(meters, 2, i + 1, (100 + i) * S);
    Stagecoach__V1__Pipeline pipeline = STAGECOACH__V1__PIPELINE__INIT;
    meters_describe(meters, 159 * S + 999 * MS, &pipeline);
    assert_near(pipeline.window_seconds, TIMELINE_WINDOW_S + 0.999);
    assert_true(fabs(pipeline.completion_tokens_per_second - 10) < 0.1);
    assert_true(fabs(pipeline.rows_per_second - 4) < 0.1);
    assert_true(fabs(pipeline.microbatches_per_second - 1) < 0.1);
    assert_near(pipeline.microbatch_seconds, 0.02);
    assert_int_equal(pipeline.microbatch_count, 60);
    assert_int_equal(pipeline.microbatch_row_count, 240);
    assert_int_equal(pipeline.microbatch_ns, 1200 * MS);
    // Each stage computes 10 ms a second.
    assert_near(pipeline.bubble_ratio, 0.99);
    // All is over: nothing is left in the window.
    meters_describe(meters, 200 * S, &pipeline);
    assert_near(pipeline.completion_tokens_per_second, 0);
    assert_near(pipeline.rows_per_second, 0);
    meters_close(meters);
}

static void a_young_coordinator_does_not_divide_by_the_whole_window(void **state) {
    (void)state;
    struct meters *meters = open_meters(1);
    Stagecoach__V1__Pipeline pipeline = STAGECOACH__V1__PIPELINE__INIT;
    meters_describe(meters, 100 * S, &pipeline);
    assert_near(pipeline.completion_tokens_per_second, 0); // and not NaN
    for (uint32_t i = 0; i < 100; i++)
        meters_count_token(meters, 101 * S);
    meters_describe(meters, 102 * S, &pipeline);
    assert_near(pipeline.window_seconds, 2);
    assert_near(pipeline.completion_tokens_per_second, 50);
    meters_close(meters);
}

static void stages_get_the_times_of_their_layers(void **state) {
    (void)state;
    struct meters *meters = open_meters(2);
    timeline_begin_epoch(meters_timeline(meters), 1);
    timeline_set_quiet(meters_timeline(meters), false, 100 * S);
    run_step(meters, 2, 1, 100 * S);
    run_step(meters, 2, 2, 101 * S);
    Stagecoach__V1__Stage first = STAGECOACH__V1__STAGE__INIT, second = first, spare = first;
    first.layer_count = second.layer_count = 4;
    second.stage_index = 1;
    Stagecoach__V1__Stage *stages[] = {&first, &second, &spare};
    Stagecoach__V1__Pipeline pipeline = STAGECOACH__V1__PIPELINE__INIT;
    pipeline.stages = stages;
    pipeline.n_stages = 3;
    meters_count_prompt(meters, 100, 64);
    meters_count_prompt(meters, 10, 0);
    meters_describe(meters, 102 * S, &pipeline);
    assert_null(spare.times);
    assert_int_equal(first.times->step_count, 2);
    assert_int_equal(second.times->busy_ns, 20 * MS);
    assert_int_equal(second.times_window->busy_ns, 20 * MS);
    assert_int_equal(first.times->starved_ns, 990 * MS);
    assert_int_equal(pipeline.prefix_token_count, 110);
    assert_int_equal(pipeline.prefix_hit_token_count, 64);
    meters_close(meters);
}

static void steps_are_told_once_in_pieces(void **state) {
    (void)state;
    struct meters *meters = open_meters(2);
    timeline_begin_epoch(meters_timeline(meters), 5);
    run_step(meters, 2, 1, 100 * S);
    const Stagecoach__V1__Steps *steps = meters_steps(meters, 101 * S, 0);
    assert_int_equal(steps->n_steps, 0); // what was before the first question is not told
    assert_int_equal(steps->now_ns, 101 * S);
    const uint64_t count = METERS_ANSWER_STEP_COUNT_MAX + 3;
    for (uint64_t i = 0; i < count; i++)
        run_step(meters, 2, i + 2, 101 * S + i * MS);
    steps = meters_steps(meters, 102 * S, steps->cursor);
    assert_int_equal(steps->n_steps, METERS_ANSWER_STEP_COUNT_MAX);
    assert_int_equal(steps->steps[0]->step, 2);
    assert_int_equal(steps->steps[0]->epoch, 5);
    assert_int_equal(steps->steps[0]->row_count, 4);
    assert_int_equal(steps->steps[0]->n_stages, 2);
    assert_int_equal(steps->steps[0]->stages[1]->end_ns, 101 * S + 20 * MS);
    steps = meters_steps(meters, 102 * S, steps->cursor);
    assert_int_equal(steps->n_steps, 3);
    assert_int_equal(steps->steps[2]->step, count + 1);
    assert_int_equal(meters_steps(meters, 102 * S, steps->cursor)->n_steps, 0);
    // A cursor that we never gave begins now.
    assert_int_equal(meters_steps(meters, 102 * S, UINT64_MAX)->n_steps, 0);
    meters_close(meters);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(times_fall_into_buckets_and_sums),
        cmocka_unit_test(rates_are_over_the_window),
        cmocka_unit_test(a_young_coordinator_does_not_divide_by_the_whole_window),
        cmocka_unit_test(stages_get_the_times_of_their_layers),
        cmocka_unit_test(steps_are_told_once_in_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
