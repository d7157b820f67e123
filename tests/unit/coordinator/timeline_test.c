#include "coordinator/timeline.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"

enum { MS = 1000000, STAGE_COUNT_MAX = 4, STEP_COUNT = 400 };

// A pipeline whose timeline is known: every stage takes its time, every hop its time.
struct course {
    uint32_t stage_count;
    uint32_t in_flight_max; // the coordinator sends step k when the result of k - this has come
    uint32_t token_lag; // stage 0 starts k when the token of k - this has come; 0: known at once
    uint64_t stage_ns[STAGE_COUNT_MAX];
    uint64_t hop_ns;                   // every hop
    uint64_t link_ns[STAGE_COUNT_MAX]; // time that the link into the stage is taken by a frame
    uint64_t wake_ns;                  // from a frame's arrival until a stage can begin it
    uint64_t late_ns;                  // the coordinator sends so much after it could
    uint64_t first_ns;                 // when step 1 is sent
};
struct times {
    uint64_t sent_ns, result_ns;
    uint64_t received_ns[STAGE_COUNT_MAX], begin_ns[STAGE_COUNT_MAX], end_ns[STAGE_COUNT_MAX];
};

static uint64_t most(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

// times[k] of steps 1..STEP_COUNT.
static void run_course(const struct course *c, struct times *times) {
    uint64_t link_free_ns[STAGE_COUNT_MAX] = {0};
    times[0] = (struct times){0};
    for (uint32_t k = 1; k <= STEP_COUNT; k++) {
        struct times *t = &times[k];
        t->sent_ns = most(c->first_ns, times[k - 1].sent_ns);
        if (k > c->in_flight_max)
            t->sent_ns = most(t->sent_ns, times[k - c->in_flight_max].result_ns + c->late_ns);
        uint64_t source_ns = t->sent_ns;
        for (uint32_t s = 0; s < c->stage_count; s++) {
            uint64_t start_ns = most(source_ns, link_free_ns[s]);
            link_free_ns[s] = start_ns + c->link_ns[s];
            t->received_ns[s] = start_ns + c->link_ns[s] + c->hop_ns;
            t->begin_ns[s] = most(t->received_ns[s] + c->wake_ns, times[k - 1].end_ns[s]);
            if (s == 0 && c->token_lag != 0 && k > c->token_lag)
                t->begin_ns[0] = most(
                    t->begin_ns[0], times[k - c->token_lag].end_ns[c->stage_count - 1] + c->hop_ns);
            t->end_ns[s] = t->begin_ns[s] + c->stage_ns[s];
            source_ns = t->end_ns[s];
        }
        t->result_ns = source_ns + c->hop_ns;
    }
}

static void record(struct timeline *timeline, const struct course *c, const struct times *times,
                   uint32_t k) {
    for (uint32_t s = 0; s < c->stage_count; s++)
        timeline_record(timeline, s,
                        &(struct timeline_record){.step = k,
                                                  .received_ns = times[k].received_ns[s],
                                                  .begin_ns = times[k].begin_ns[s],
                                                  .end_ns = times[k].end_ns[s]});
}

// Tells the timeline what the coordinator knows, in the order in which it happens. The stages'
// records come `report_lag` steps late.
static void tell(struct timeline *timeline, const struct course *c, const struct times *times,
                 uint32_t report_lag) {
    uint32_t result = 1;
    for (uint32_t k = 1; k <= STEP_COUNT; k++) {
        for (; result < k && times[result].result_ns <= times[k].sent_ns; result++)
            timeline_result(timeline, times[result].result_ns);
        struct timeline_send send = {
            .sent_ns = times[k].sent_ns,
            .token_step = c->token_lag != 0 && k > c->token_lag ? k - c->token_lag : 0,
            .row_count = 8,
            .sequence_count = 2};
        timeline_sent(timeline, &send);
        if (k > report_lag) record(timeline, c, times, k - report_lag);
    }
    for (; result <= STEP_COUNT; result++)
        timeline_result(timeline, times[result].result_ns);
    for (uint32_t k = STEP_COUNT - report_lag + 1; k <= STEP_COUNT; k++)
        record(timeline, c, times, k);
}

struct outcome {
    struct timeline_times stages[STAGE_COUNT_MAX];
    struct timeline_summary summary;
};

static struct outcome observe(const struct course *c) {
    static struct times times[STEP_COUNT + 1];
    run_course(c, times);
    struct timeline *timeline;
    assert_int_equal(timeline_open(c->stage_count, c->first_ns, &timeline), STATUS_OK);
    timeline_set_quiet(timeline, false, c->first_ns);
    timeline_begin_epoch(timeline, 7);
    tell(timeline, c, times, 20);
    struct outcome outcome;
    for (uint32_t s = 0; s < c->stage_count; s++) {
        struct timeline_times *sums = &outcome.stages[s];
        timeline_total(timeline, s, sums);
        assert_int_equal(sums->step_count, STEP_COUNT);
        // Nothing of a stage's time is lost or counted twice.
        assert_int_equal(sums->busy_ns + sums->starved_ns + sums->wire_ns + sums->imbalance_ns,
                         times[STEP_COUNT].end_ns[s] - times[1].begin_ns[s]);
    }
    timeline_summarize(timeline, times[STEP_COUNT].result_ns, &outcome.summary);
    assert_int_equal(timeline_lost_count(timeline), 0);
    timeline_close(timeline);
    return outcome;
}

// Within what filling and draining the pipeline cost: a few steps.
static void assert_about(uint64_t ns, uint64_t expected_ns) {
    assert_in_range(ns, expected_ns > 100 * MS ? expected_ns - 100 * MS : 0,
                    expected_ns + 100 * MS);
}

static void a_full_pipeline_is_busy(void **state) {
    (void)state;
    struct outcome o = observe(&(struct course){.stage_count = 3,
                                                .in_flight_max = 5,
                                                .stage_ns = {10 * MS, 10 * MS, 10 * MS},
                                                .hop_ns = MS});
    for (uint32_t s = 0; s < 3; s++) {
        assert_int_equal(o.stages[s].busy_ns, STEP_COUNT * 10ull * MS);
        assert_about(o.stages[s].starved_ns + o.stages[s].wire_ns + o.stages[s].imbalance_ns, 0);
    }
    assert_true(o.summary.bubble_ratio < 0.02);
    assert_int_equal(o.summary.sums.step_count, STEP_COUNT);
    assert_int_equal(o.summary.sums.row_count, STEP_COUNT * 8);
}

static void one_slow_stage_makes_the_others_idle_from_imbalance(void **state) {
    (void)state;
    for (uint32_t slow = 0; slow < 3; slow++) {
        struct course course = {.stage_count = 3,
                                .in_flight_max = 5,
                                .stage_ns = {10 * MS, 10 * MS, 10 * MS},
                                .hop_ns = MS};
        course.stage_ns[slow] = 20 * MS;
        struct outcome o = observe(&course);
        for (uint32_t s = 0; s < 3; s++) {
            assert_about(o.stages[s].imbalance_ns, s == slow ? 0 : STEP_COUNT * 10ull * MS);
            assert_about(o.stages[s].starved_ns, 0);
            assert_about(o.stages[s].wire_ns, 0);
        }
        assert_true(o.summary.bubble_ratio > 0.3 && o.summary.bubble_ratio < 0.36);
    }
}

static void one_slow_stage_is_seen_with_direct_feedback_too(void **state) {
    (void)state;
    struct outcome o = observe(&(struct course){.stage_count = 2,
                                                .in_flight_max = 4,
                                                .token_lag = 3,
                                                .stage_ns = {10 * MS, 20 * MS},
                                                .hop_ns = MS});
    assert_about(o.stages[0].imbalance_ns, STEP_COUNT * 10ull * MS);
    assert_about(o.stages[0].starved_ns + o.stages[0].wire_ns, 0);
    assert_about(o.stages[1].starved_ns + o.stages[1].wire_ns + o.stages[1].imbalance_ns, 0);
}

static void a_single_sequence_starves_all_stages(void **state) {
    (void)state;
    // The frame is there before its token: stage 0 waits for the last stage.
    struct outcome o = observe(&(struct course){.stage_count = 2,
                                                .in_flight_max = 2,
                                                .token_lag = 1,
                                                .stage_ns = {10 * MS, 10 * MS},
                                                .hop_ns = 0});
    for (uint32_t s = 0; s < 2; s++) {
        assert_about(o.stages[s].starved_ns, STEP_COUNT * 10ull * MS);
        assert_about(o.stages[s].imbalance_ns + o.stages[s].wire_ns, 0);
    }
    assert_true(o.summary.bubble_ratio > 0.49 && o.summary.bubble_ratio < 0.51);
    // One run of 400 microbatches over two stages.
    assert_true(o.summary.bubble_ratio_ideal > 1.0 / 402 &&
                o.summary.bubble_ratio_ideal < 1.0 / 400);
}

static void a_single_sequence_waits_for_hops_and_for_tokens(void **state) {
    (void)state;
    for (uint32_t is_direct = 0; is_direct < 2; is_direct++) {
        struct outcome o = observe(&(struct course){.stage_count = 2,
                                                    .in_flight_max = is_direct ? 2 : 1,
                                                    .token_lag = is_direct ? 1 : 0,
                                                    .stage_ns = {10 * MS, 10 * MS},
                                                    .hop_ns = 2 * MS});
        // Direct: two hops a round, 0 to 1 and back. Else three: over the coordinator.
        uint64_t hop_count = is_direct ? 2 : 3;
        for (uint32_t s = 0; s < 2; s++) {
            assert_about(o.stages[s].starved_ns, STEP_COUNT * 10ull * MS);
            assert_about(o.stages[s].wire_ns, STEP_COUNT * hop_count * 2 * MS);
            assert_about(o.stages[s].imbalance_ns, 0);
        }
    }
}

static void a_single_sequence_on_unequal_stages_shows_both_reasons(void **state) {
    (void)state;
    struct outcome o = observe(&(struct course){
        .stage_count = 2, .in_flight_max = 2, .token_lag = 1, .stage_ns = {10 * MS, 20 * MS}});
    // Stage 0 idles 20 ms a step. Even with many sequences 10 of them would be left.
    assert_about(o.stages[0].starved_ns, STEP_COUNT * 10ull * MS);
    assert_about(o.stages[0].imbalance_ns, STEP_COUNT * 10ull * MS);
    assert_about(o.stages[1].starved_ns, STEP_COUNT * 10ull * MS);
    assert_about(o.stages[1].imbalance_ns, 0);
}

static void a_slow_wire_is_told_from_a_slow_stage(void **state) {
    (void)state;
    // A link that needs 15 ms for a frame that is computed in 10.
    for (uint32_t slow = 1; slow < 3; slow++) {
        struct course course = {.stage_count = 3,
                                .in_flight_max = 6,
                                .token_lag = 5,
                                .stage_ns = {10 * MS, 10 * MS, 10 * MS}};
        course.link_ns[slow] = 15 * MS;
        struct outcome o = observe(&course);
        for (uint32_t s = 0; s < 3; s++) {
            assert_about(o.stages[s].wire_ns, STEP_COUNT * 5ull * MS);
            assert_about(o.stages[s].starved_ns, 0);
            assert_about(o.stages[s].imbalance_ns, 0);
        }
    }
}

static void what_a_stage_needs_to_take_up_a_frame_is_wire(void **state) {
    (void)state;
    // One microbatch at a time: 2 * 10 ms of work, 2 * 3 ms until it is taken up.
    struct outcome o = observe(&(struct course){
        .stage_count = 2, .in_flight_max = 1, .stage_ns = {10 * MS, 10 * MS}, .wake_ns = 3 * MS});
    for (uint32_t s = 0; s < 2; s++) {
        assert_about(o.stages[s].wire_ns, STEP_COUNT * 6ull * MS);
        assert_about(o.stages[s].starved_ns, STEP_COUNT * 10ull * MS);
        assert_about(o.stages[s].imbalance_ns, 0);
    }
}

static void a_coordinator_that_sends_late_starves_the_stages(void **state) {
    (void)state;
    struct outcome o = observe(&(struct course){
        .stage_count = 2, .in_flight_max = 2, .stage_ns = {10 * MS, 10 * MS}, .late_ns = 6 * MS});
    // Two microbatches go round in 20 + 6 ms: 3 of 13 ms are idle.
    for (uint32_t s = 0; s < 2; s++) {
        assert_about(o.stages[s].starved_ns, STEP_COUNT * 3ull * MS);
        assert_about(o.stages[s].wire_ns + o.stages[s].imbalance_ns, 0);
    }
    assert_true(o.summary.sums.passage_ns > 0);
}

static void a_stage_alone_has_no_ring_to_wait_for(void **state) {
    (void)state;
    struct outcome o = observe(&(struct course){
        .stage_count = 1, .in_flight_max = 2, .token_lag = 1, .stage_ns = {10 * MS}, .hop_ns = 0});
    assert_int_equal(o.stages[0].busy_ns, STEP_COUNT * 10ull * MS);
    assert_int_equal(o.stages[0].starved_ns + o.stages[0].wire_ns + o.stages[0].imbalance_ns, 0);
    assert_true(o.summary.bubble_ratio_ideal == 0);
}

// Two stages, one step at a time, sent at the given times.
static void send_and_finish(struct timeline *timeline, uint64_t step, uint64_t sent_ns) {
    timeline_sent(timeline, &(struct timeline_send){.sent_ns = sent_ns});
    for (uint32_t s = 0; s < 2; s++)
        timeline_record(timeline, s,
                        &(struct timeline_record){.step = step,
                                                  .received_ns = sent_ns + s * 10ull * MS,
                                                  .begin_ns = sent_ns + s * 10ull * MS,
                                                  .end_ns = sent_ns + (s + 1) * 10ull * MS});
    timeline_result(timeline, sent_ns + 20ull * MS);
}

static void time_without_requests_is_no_bubble(void **state) {
    (void)state;
    struct timeline *timeline;
    assert_int_equal(timeline_open(2, 0, &timeline), STATUS_OK);
    timeline_begin_epoch(timeline, 1);
    timeline_set_quiet(timeline, false, 1000ull * MS);
    send_and_finish(timeline, 1, 1000ull * MS);
    timeline_set_quiet(timeline, true, 1020ull * MS);
    timeline_set_quiet(timeline, false, 5020ull * MS);
    send_and_finish(timeline, 2, 5025ull * MS);
    assert_int_equal(timeline_quiet_ns(timeline, 6000ull * MS), 5000ull * MS);
    for (uint32_t s = 0; s < 2; s++) {
        struct timeline_times times;
        timeline_total(timeline, s, &times);
        assert_int_equal(times.busy_ns, 20 * MS);
        // The request waited 5 ms at the coordinator; 10 ms are the fill, or the drain before.
        assert_int_equal(times.starved_ns, 15 * MS);
        assert_int_equal(times.wire_ns + times.imbalance_ns, 0);
    }
    // Two runs of one microbatch each: (P-1)/(P-1+1).
    struct timeline_summary summary;
    timeline_summarize(timeline, 5100ull * MS, &summary);
    assert_true(summary.bubble_ratio_ideal == 0.5);
    timeline_close(timeline);
}

static void the_window_forgets_what_is_older(void **state) {
    (void)state;
    struct timeline *timeline;
    assert_int_equal(timeline_open(2, 0, &timeline), STATUS_OK);
    timeline_begin_epoch(timeline, 1);
    for (uint32_t k = 1; k <= 100; k++)
        send_and_finish(timeline, k, k * 1000ull * MS);
    struct timeline_times window, total;
    timeline_window(timeline, 100500ull * MS, 1, &window);
    timeline_total(timeline, 1, &total);
    assert_int_equal(total.step_count, 100);
    assert_int_equal(window.step_count, TIMELINE_WINDOW_S + 1);
    assert_int_equal(window.busy_ns, (TIMELINE_WINDOW_S + 1) * 10ull * MS);
    timeline_window(timeline, 200000ull * MS, 1, &window);
    assert_int_equal(window.step_count, 0);
    struct timeline_summary summary;
    timeline_summarize(timeline, 200000ull * MS, &summary);
    assert_true(summary.bubble_ratio == 0 && summary.sums.step_count == 0);
    timeline_close(timeline);
}

static void a_step_that_a_stage_lost_is_in_no_sum(void **state) {
    (void)state;
    struct timeline *timeline;
    assert_int_equal(timeline_open(2, 0, &timeline), STATUS_OK);
    timeline_begin_epoch(timeline, 1);
    timeline_set_quiet(timeline, false, 0);
    uint64_t cursor = timeline_cursor(timeline);
    for (uint32_t k = 1; k <= 3; k++) {
        uint64_t sent_ns = k * 100ull * MS;
        timeline_sent(timeline, &(struct timeline_send){.sent_ns = sent_ns});
        struct timeline_record record = {k, sent_ns, sent_ns, sent_ns + 10ull * MS};
        timeline_record(timeline, 0, &record);
        if (k != 2) timeline_record(timeline, 1, &record);
        timeline_result(timeline, sent_ns + 20ull * MS);
    }
    struct timeline_times times;
    timeline_total(timeline, 0, &times);
    assert_int_equal(times.step_count, 2);
    assert_int_equal(times.starved_ns, 90 * MS); // before step 3: stage 0 reported step 2
    timeline_total(timeline, 1, &times);
    assert_int_equal(times.starved_ns, 0); // when stage 1 ended step 2 is not known
    assert_int_equal(timeline_lost_count(timeline), 1);
    const struct timeline_stage_step *stages;
    assert_true(timeline_next(timeline, &cursor, &stages)->is_whole);
    const struct timeline_step *lost = timeline_next(timeline, &cursor, &stages);
    assert_false(lost->is_whole);
    assert_int_equal(lost->step, 2);
    assert_int_equal(stages[0].end_ns, 210ull * MS);
    assert_int_equal(stages[1].end_ns, 0);
    timeline_close(timeline);
}

static void wrong_records_are_ignored(void **state) {
    (void)state;
    struct timeline *timeline;
    assert_int_equal(timeline_open(2, 0, &timeline), STATUS_OK);
    timeline_begin_epoch(timeline, 1);
    timeline_sent(timeline, &(struct timeline_send){.sent_ns = 10});
    timeline_record(timeline, 2, &(struct timeline_record){1, 1, 2, 3});    // no such stage
    timeline_record(timeline, 0, &(struct timeline_record){2, 1, 2, 3});    // not sent
    timeline_record(timeline, 0, &(struct timeline_record){1, 30, 20, 10}); // ends before it begins
    timeline_record(timeline, 0, &(struct timeline_record){1, 10, 20, 30}); // told already
    timeline_record(timeline, 1, &(struct timeline_record){1, 40, 30, 60}); // received late: clocks
    timeline_result(timeline, 70);
    assert_int_equal(timeline_lost_count(timeline), 1);
    timeline_close(timeline);
}

static void stages_that_report_nothing_do_not_stop_the_timeline(void **state) {
    (void)state;
    struct timeline *timeline;
    assert_int_equal(timeline_open(2, 0, &timeline), STATUS_OK);
    timeline_begin_epoch(timeline, 1);
    uint64_t cursor = timeline_cursor(timeline);
    const uint32_t count = TIMELINE_STEP_COUNT_MAX * 2;
    for (uint32_t k = 1; k <= count; k++) {
        timeline_sent(timeline, &(struct timeline_send){.sent_ns = k});
        timeline_result(timeline, k + 1);
    }
    assert_int_equal(timeline_lost_count(timeline), TIMELINE_STEP_COUNT_MAX);
    const struct timeline_stage_step *stages;
    assert_null(timeline_next(timeline, &cursor, &stages));
    timeline_begin_epoch(timeline, 2);
    assert_int_equal(timeline_lost_count(timeline), count);
    const struct timeline_step *step = timeline_next(timeline, &cursor, &stages);
    assert_int_equal(step->step, TIMELINE_STEP_COUNT_MAX + 1);
    timeline_close(timeline);
}

static void a_new_epoch_counts_steps_from_one(void **state) {
    (void)state;
    struct timeline *timeline;
    assert_int_equal(timeline_open(2, 0, &timeline), STATUS_OK);
    timeline_begin_epoch(timeline, 1);
    uint64_t cursor = timeline_cursor(timeline);
    send_and_finish(timeline, 1, 100ull * MS);
    timeline_sent(timeline, &(struct timeline_send){.sent_ns = 200ull * MS});
    assert_int_equal(timeline_oldest_age_ns(timeline, 250ull * MS), 50 * MS);
    timeline_begin_epoch(timeline, 2);
    assert_int_equal(timeline_oldest_age_ns(timeline, 250ull * MS), 0);
    send_and_finish(timeline, 1, 5000ull * MS);
    const struct timeline_stage_step *stages;
    static const struct {
        uint64_t epoch, step;
        bool is_whole;
    } expected[] = {{1, 1, true}, {1, 2, false}, {2, 1, true}};
    for (uint32_t i = 0; i < 3; i++) {
        const struct timeline_step *step = timeline_next(timeline, &cursor, &stages);
        assert_int_equal(step->epoch, expected[i].epoch);
        assert_int_equal(step->step, expected[i].step);
        assert_int_equal(step->is_whole, expected[i].is_whole);
    }
    assert_null(timeline_next(timeline, &cursor, &stages));
    // The time between the epochs is no stage's idle time.
    struct timeline_times times;
    timeline_total(timeline, 0, &times);
    assert_int_equal(times.busy_ns, 20 * MS);
    assert_int_equal(times.starved_ns + times.wire_ns + times.imbalance_ns, 0);
    timeline_close(timeline);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_pipeline_is_busy),
        cmocka_unit_test(one_slow_stage_makes_the_others_idle_from_imbalance),
        cmocka_unit_test(one_slow_stage_is_seen_with_direct_feedback_too),
        cmocka_unit_test(a_single_sequence_starves_all_stages),
        cmocka_unit_test(a_single_sequence_waits_for_hops_and_for_tokens),
        cmocka_unit_test(a_single_sequence_on_unequal_stages_shows_both_reasons),
        cmocka_unit_test(a_slow_wire_is_told_from_a_slow_stage),
        cmocka_unit_test(what_a_stage_needs_to_take_up_a_frame_is_wire),
        cmocka_unit_test(a_coordinator_that_sends_late_starves_the_stages),
        cmocka_unit_test(a_stage_alone_has_no_ring_to_wait_for),
        cmocka_unit_test(time_without_requests_is_no_bubble),
        cmocka_unit_test(the_window_forgets_what_is_older),
        cmocka_unit_test(a_step_that_a_stage_lost_is_in_no_sum),
        cmocka_unit_test(wrong_records_are_ignored),
        cmocka_unit_test(stages_that_report_nothing_do_not_stop_the_timeline),
        cmocka_unit_test(a_new_epoch_counts_steps_from_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
