// Who goes first, who goes ahead, and who shares.
#include "base/limits.h"
#include "tests/unit/coordinator/scheduler_fixture.h"

static const struct scheduler_config CONFIG = {
    .running_count_max = 32,
    .waiting_count_max = 100,
    .sequence_count_max = 32,
    .row_count_max = 96,
    .chunk_row_count = 64,
    .in_flight_max = 4,
    .stage_count = 2,
};

static struct scheduler_config ahead_config(void) {
    struct scheduler_config config = CONFIG;
    config.runs_ahead = true;
    return config;
}

// -- rows ahead -----------------------------------------------------------------------------------

static void one_row_is_issued_ahead_of_its_token(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, ahead_config(), 100);
    struct sequence *sequence = make(&f, 10);
    sequence->token_count_max = 20;
    assert_int_equal(scheduler_add(f.scheduler, sequence), STATUS_OK);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    assert_true(f.picks[0].is_sample && !f.picks[0].is_ahead);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    assert_true(f.picks[0].is_sample && f.picks[0].is_ahead);
    assert_int_equal(f.picks[0].position_first, 10);
    assert_int_equal(f.picks[0].row_count, 1);
    // No second one.
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 0);
    assert_int_equal(sequence_append(sequence, 1), STATUS_OK);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    assert_true(f.picks[0].is_ahead);
    assert_int_equal(f.picks[0].position_first, 11);
    close_fixture(&f);
}

static void no_row_is_issued_for_a_token_beyond_the_last(void **state) {
    (void)state;
    // The prompt draws one token, the row ahead another one. 0: it is not known how many may come.
    static const uint32_t count_max[] = {0, 11, 12, 13}, issued_counts[] = {10, 10, 11, 11};
    for (uint32_t i = 0; i < 4; i++) {
        struct fixture f;
        open_fixture(&f, ahead_config(), 100);
        struct sequence *sequence = make(&f, 10);
        sequence->token_count_max = count_max[i];
        assert_int_equal(scheduler_add(f.scheduler, sequence), STATUS_OK);
        while (scheduler_pick(f.scheduler, f.picks) > 0)
            ;
        assert_int_equal(sequence->issued_count, issued_counts[i]);
        close_fixture(&f);
    }
}

static void a_row_ahead_preempts_nobody(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, ahead_config(), 2);
    for (uint32_t i = 0; i < 2; i++)
        make(&f, 32)->token_count_max = 64;
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(scheduler_add(f.scheduler, &f.sequences[i]), STATUS_OK);
    struct sequence *first = &f.sequences[0];
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    assert_ptr_equal(f.picks[0].sequence, first);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1); // ahead, into the other block
    assert_int_equal(first->block_count, 2);
    assert_int_equal(scheduler_preempted_count(f.scheduler), 0);
    close_fixture(&f);
}

// Rows ahead go round by round: every microbatch has half of the sequences, each of them every
// other time.
static void groups_take_turns(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, ahead_config(), 100);
    for (uint32_t i = 0; i < 16; i++) {
        struct sequence *sequence = make(&f, 1);
        sequence->token_count_max = 1000;
        assert_int_equal(scheduler_add(f.scheduler, sequence), STATUS_OK);
    }
    for (uint32_t step = 0; step < 100; step++) {
        assert_int_equal(scheduler_pick(f.scheduler, f.picks), 8);
        for (uint32_t i = 0; i < 8; i++) {
            struct sequence *sequence = f.picks[i].sequence;
            assert_int_equal((sequence - f.sequences) / 8, step % 2);
            // Its token comes two microbatches later.
            if (step >= 2) assert_int_equal(sequence_append(sequence, 1), STATUS_OK);
        }
    }
    close_fixture(&f);
}

static void groups_are_even_again_when_sequences_end(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, ahead_config(), 100);
    for (uint32_t i = 0; i < 24; i++) {
        struct sequence *sequence = make(&f, 1);
        sequence->token_count_max = 1000;
        assert_int_equal(scheduler_add(f.scheduler, sequence), STATUS_OK);
    }
    uint32_t pick_count = 0;
    for (uint32_t step = 0; step < 20; step++) {
        pick_count = scheduler_pick(f.scheduler, f.picks);
        draw_all(&f, 1);
        // Eight of the first group's twelve.
        for (uint32_t i = 0; step == 3 && i < 8; i++)
            scheduler_remove(f.scheduler, &f.sequences[i]);
        if (step > 8) assert_int_equal(pick_count, 8);
    }
    close_fixture(&f);
}

// Without rows ahead: three microbatches are in flight and two are enough, so they become two.
static void small_groups_join(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, CONFIG, 100);
    uint32_t first[3] = {6, 5, 5}, in_flight_count = 0;
    struct scheduler_pick steps[3][32];
    uint32_t counts[3] = {0};
    for (; in_flight_count < 3; in_flight_count++) {
        for (uint32_t i = 0; i < first[in_flight_count]; i++)
            add(&f, 3);
        counts[in_flight_count] = scheduler_pick(f.scheduler, f.picks);
        assert_int_equal(counts[in_flight_count], first[in_flight_count]);
        memcpy(steps[in_flight_count], f.picks, sizeof(steps[0]));
    }
    for (uint32_t round = 0; round < 20; round++) {
        assert_true(in_flight_count > 0);
        for (uint32_t i = 0; i < counts[0]; i++)
            assert_int_equal(sequence_append(steps[0][i].sequence, 1), STATUS_OK);
        memmove(steps[0], steps[1], 2 * sizeof(steps[0]));
        memmove(&counts[0], &counts[1], 2 * sizeof(counts[0]));
        in_flight_count--;
        while (in_flight_count < 3) {
            uint32_t count = scheduler_pick(f.scheduler, f.picks);
            if (count == 0) break;
            counts[in_flight_count] = count;
            memcpy(steps[in_flight_count++], f.picks, sizeof(steps[0]));
            if (round > 3) assert_int_equal(count, 8);
        }
    }
    assert_int_equal(in_flight_count, 2);
    close_fixture(&f);
}

static void a_costly_sequence_has_a_microbatch_for_itself(void **state) {
    (void)state;
    struct fixture f;
    struct scheduler_config config = CONFIG;
    config.row_count_max = 4096;
    config.chunk_row_count = 4096;
    config.in_flight_max = 2;
    config.cost_prior = (struct cost_prior){.fixed = 1, .attended = 0.01};
    open_fixture(&f, config, 1000);
    // 1100 positions cost as much as about ten rows.
    for (uint32_t i = 0; i < 13; i++)
        add(&f, i == 6 ? 1100 : 1);
    for (uint32_t step = 0; step < 10; step++) {
        (void)scheduler_pick(f.scheduler, f.picks);
        draw_all(&f, 1);
    }
    for (uint32_t step = 0; step < 10; step++) {
        uint32_t pick_count = scheduler_pick(f.scheduler, f.picks);
        bool has_costly = pick_of(&f, pick_count, &f.sequences[6]) != NULL;
        if (has_costly ? pick_count > 3 : pick_count < 10)
            fail_msg("%u picks, the costly one %s them", pick_count,
                     has_costly ? "among" : "not among");
        draw_all(&f, 1);
    }
    close_fixture(&f);
}

// -- turns ----------------------------------------------------------------------------------------

static void higher_priorities_start_first(void **state) {
    (void)state;
    struct fixture f;
    struct scheduler_config config = CONFIG;
    config.running_count_max = 1;
    open_fixture(&f, config, 100);
    static const int32_t priorities[] = {0, -1, 2, 0, 1, 2};
    static const uint32_t order[] = {2, 5, 4, 0, 3, 1};
    for (uint32_t i = 0; i < 6; i++) {
        make(&f, 5)->priority = priorities[i];
        assert_int_equal(scheduler_add(f.scheduler, &f.sequences[i]), STATUS_OK);
    }
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
        assert_ptr_equal(f.picks[0].sequence, &f.sequences[order[i]]);
        scheduler_remove(f.scheduler, f.picks[0].sequence);
    }
    close_fixture(&f);
}

static void the_lowest_priority_starts_in_the_end(void **state) {
    (void)state;
    struct fixture f;
    struct scheduler_config config = CONFIG;
    config.running_count_max = 1;
    open_fixture(&f, config, 100);
    struct sequence *low = add(&f, 5);
    struct sequence *high = make(&f, 5);
    high->priority = 1;
    uint32_t count = 0;
    for (; low->state == SEQUENCE_WAITING && count < 2 * SCHEDULER_PRIORITY_LEAD; count++) {
        assert_int_equal(scheduler_add(f.scheduler, high), STATUS_OK);
        assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
        scheduler_remove(f.scheduler, high);
    }
    assert_int_equal(low->state, SEQUENCE_RUNNING);
    assert_true(count >= SCHEDULER_PRIORITY_LEAD);
    close_fixture(&f);
}

static void the_highest_priority_keeps_its_blocks(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, CONFIG, 5);
    struct sequence *low = add(&f, 40);
    struct sequence *high = make(&f, 40);
    high->priority = 1;
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    assert_int_equal(scheduler_add(f.scheduler, high), STATUS_OK);
    for (uint32_t i = 0; i < 100 && scheduler_preempted_count(f.scheduler) == 0; i++) {
        (void)scheduler_pick(f.scheduler, f.picks);
        draw_all(&f, 1);
    }
    assert_int_equal(high->state, SEQUENCE_RUNNING);
    assert_int_equal(low->state, SEQUENCE_WAITING);
    close_fixture(&f);
}

static void short_prompts_pass_a_long_one_which_goes_on(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, CONFIG, 1000);
    struct sequence *long_one = add(&f, 20 * 64);
    uint32_t short_count = 0, step_count = 0;
    struct sequence *short_one = NULL;
    // There is always a short one that waits.
    while (sequence_remaining_count(long_one) > 1 || long_one->state == SEQUENCE_WAITING) {
        if (short_one == NULL || short_one->state == SEQUENCE_IDLE) short_one = add(&f, 60);
        (void)scheduler_pick(f.scheduler, f.picks);
        step_count++;
        if (short_one->issued_count < 60) continue;
        scheduler_remove(f.scheduler, short_one);
        short_count++;
        assert_true(step_count < 60);
    }
    // Each has about half of the microbatches, and what the other leaves of its own.
    assert_true(step_count <= 42);
    assert_true(short_count >= 18);
    close_fixture(&f);
}

static void decode_leaves_a_part_to_prompts(void **state) {
    (void)state;
    struct fixture f;
    struct scheduler_config config = CONFIG;
    config.in_flight_max = config.stage_count = 1;
    config.row_count_max = 16;
    config.chunk_row_count = 16;
    config.sequence_count_max = 16;
    open_fixture(&f, config, 1000);
    for (uint32_t i = 0; i < 16; i++)
        add(&f, 1);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 16);
    struct sequence *prompt = add(&f, 100);
    for (uint32_t i = 0; i < 40 && sequence_remaining_count(prompt) > 0; i++) {
        draw_all(&f, 1);
        (void)scheduler_pick(f.scheduler, f.picks);
    }
    assert_int_equal(sequence_remaining_count(prompt), 0);
    close_fixture(&f);
}

static void the_naive_schedule_takes_everything_at_once(void **state) {
    (void)state;
    struct fixture f;
    struct scheduler_config config = ahead_config();
    config.is_naive = true;
    config.chunk_row_count = 0;
    config.row_count_max = 512;
    open_fixture(&f, config, 100);
    for (uint32_t i = 0; i < 20; i++)
        add(&f, i < 10 ? 1 : 40)->token_count_max = 100;
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 20);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 0);
    draw_all(&f, 1);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 20);
    close_fixture(&f);
}

// -- sharing --------------------------------------------------------------------------------------

static struct sequence *make_like(struct fixture *f, const struct sequence *other) {
    struct sequence *sequence = make(f, other->prompt_count);
    memcpy(sequence->tokens, other->tokens, other->prompt_count * sizeof(uint32_t));
    return sequence;
}

static void an_equal_prompt_begins_after_the_cached_blocks(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, CONFIG, 100);
    struct sequence *first = add(&f, 64);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    assert_int_equal(first->cached_count, 0);
    struct sequence *second = make_like(&f, first);
    assert_int_equal(scheduler_add(f.scheduler, second), STATUS_OK);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    // The last token is computed in any case, so its block is not shared.
    assert_int_equal(f.picks[0].position_first, 32);
    assert_int_equal(f.picks[0].row_count, 32);
    assert_int_equal(second->cached_count, 32);
    assert_int_equal(second->blocks[0], first->blocks[0]);
    assert_int_not_equal(second->blocks[1], first->blocks[1]);
    // Later, when the second block is known to be the same, one is kept.
    draw_all(&f, 1);
    (void)scheduler_pick(f.scheduler, f.picks);
    assert_int_equal(second->blocks[1], first->blocks[1]);
    scheduler_remove(f.scheduler, first);
    scheduler_remove(f.scheduler, second);
    // A third one finds them though nobody uses them.
    struct sequence *third = make_like(&f, first);
    assert_int_equal(sequence_append(third, 1), STATUS_OK);
    assert_int_equal(scheduler_add(f.scheduler, third), STATUS_OK);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    assert_int_equal(f.picks[0].position_first, 64);
    close_fixture(&f);
}

static void salts_keep_prompts_apart(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, CONFIG, 100);
    struct sequence *first = make(&f, 64);
    first->cache_salt = "one";
    assert_int_equal(scheduler_add(f.scheduler, first), STATUS_OK);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    struct sequence *second = make_like(&f, first);
    second->cache_salt = "other";
    assert_int_equal(scheduler_add(f.scheduler, second), STATUS_OK);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    assert_int_equal(f.picks[0].position_first, 0);
    assert_int_equal(second->cached_count, 0);
    close_fixture(&f);
}

static void nothing_is_cached_after_the_pipeline_was_lost(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, CONFIG, 100);
    struct sequence *first = add(&f, 64);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 0);
    assert_int_equal(scheduler_reset(f.scheduler), 1);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    assert_int_equal(f.picks[0].position_first, 0);
    assert_int_equal(first->replay_count, 1);
    close_fixture(&f);
}

static void followers_wait_for_their_leaders_prompt_and_share_it(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, CONFIG, 100);
    struct sequence *leader = add(&f, 130);
    for (uint32_t i = 0; i < 3; i++) {
        struct sequence *follower = make_like(&f, leader);
        follower->leader = leader;
        assert_int_equal(scheduler_add(f.scheduler, follower), STATUS_OK);
    }
    assert_int_equal(scheduler_waiting_count(f.scheduler), 4);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
        assert_ptr_equal(f.picks[0].sequence, leader);
    }
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 3);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(f.picks[i].position_first, 128);
        assert_int_equal(f.picks[i].row_count, 2);
        assert_null(f.picks[i].sequence->leader);
    }
    // Four blocks are shared, and each has its last one.
    assert_int_equal(kv_blocks_free_count(f.blocks), 100 - 4 - 4);
    close_fixture(&f);
}

static void followers_do_not_wait_for_a_leader_that_has_ended(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, CONFIG, 100);
    struct sequence *leader = add(&f, 130);
    struct sequence *follower = make_like(&f, leader), *late = make_like(&f, leader);
    follower->leader = late->leader = leader;
    assert_int_equal(scheduler_add(f.scheduler, follower), STATUS_OK);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    scheduler_remove(f.scheduler, leader);
    assert_int_equal(scheduler_add(f.scheduler, late), STATUS_OK);
    uint32_t pick_count = scheduler_pick(f.scheduler, f.picks);
    assert_non_null(pick_of(&f, pick_count, follower));
    assert_int_equal(scheduler_waiting_count(f.scheduler), 0);
    // One that is removed while it waits is forgotten by its leader.
    struct sequence *other = add(&f, 130);
    struct sequence *removed = make_like(&f, other);
    removed->leader = other;
    assert_int_equal(scheduler_add(f.scheduler, removed), STATUS_OK);
    scheduler_remove(f.scheduler, removed);
    assert_true(LIST_EMPTY(&other->followers));
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_row_is_issued_ahead_of_its_token),
        cmocka_unit_test(no_row_is_issued_for_a_token_beyond_the_last),
        cmocka_unit_test(a_row_ahead_preempts_nobody),
        cmocka_unit_test(groups_take_turns),
        cmocka_unit_test(groups_are_even_again_when_sequences_end),
        cmocka_unit_test(small_groups_join),
        cmocka_unit_test(a_costly_sequence_has_a_microbatch_for_itself),
        cmocka_unit_test(higher_priorities_start_first),
        cmocka_unit_test(the_lowest_priority_starts_in_the_end),
        cmocka_unit_test(the_highest_priority_keeps_its_blocks),
        cmocka_unit_test(short_prompts_pass_a_long_one_which_goes_on),
        cmocka_unit_test(decode_leaves_a_part_to_prompts),
        cmocka_unit_test(the_naive_schedule_takes_everything_at_once),
        cmocka_unit_test(an_equal_prompt_begins_after_the_cached_blocks),
        cmocka_unit_test(salts_keep_prompts_apart),
        cmocka_unit_test(nothing_is_cached_after_the_pipeline_was_lost),
        cmocka_unit_test(followers_wait_for_their_leaders_prompt_and_share_it),
        cmocka_unit_test(followers_do_not_wait_for_a_leader_that_has_ended),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
