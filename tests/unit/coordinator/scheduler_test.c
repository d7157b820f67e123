#include "coordinator/scheduler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "coordinator/microbatch.h"

enum { SEQUENCE_COUNT = 40 };

struct fixture {
    struct kv_blocks *blocks;
    struct scheduler *scheduler;
    struct scheduler_config config;
    struct scheduler_pick picks[64];
    struct sequence sequences[SEQUENCE_COUNT];
    uint32_t sequence_count;
};

static void open_fixture(struct fixture *f, struct scheduler_config config, uint32_t block_count) {
    memset(f, 0, sizeof(*f));
    f->config = config;
    assert_int_equal(kv_blocks_open(block_count, &f->blocks), STATUS_OK);
    assert_int_equal(scheduler_open(&config, f->blocks, &f->scheduler), STATUS_OK);
}

static void close_fixture(struct fixture *f) {
    for (uint32_t i = 0; i < f->sequence_count; i++) {
        scheduler_remove(f->scheduler, &f->sequences[i]);
        f->sequences[i].in_flight_count = 0;
        sequence_fini(&f->sequences[i]);
    }
    assert_int_equal(kv_blocks_free_count(f->blocks), kv_blocks_total_count(f->blocks));
    scheduler_close(f->scheduler);
    kv_blocks_close(f->blocks);
}

static struct sequence *add(struct fixture *f, uint32_t prompt_count) {
    uint32_t *prompt = calloc(prompt_count, sizeof(*prompt));
    for (uint32_t i = 0; i < prompt_count; i++)
        prompt[i] = f->sequence_count * 1000 + i;
    struct sequence *sequence = &f->sequences[f->sequence_count++];
    assert_int_equal(sequence_init(sequence, prompt, prompt_count), STATUS_OK);
    sequence->sampling.repetition_penalty = 1;
    free(prompt);
    assert_int_equal(scheduler_add(f->scheduler, sequence), STATUS_OK);
    return sequence;
}

static const struct scheduler_config CONFIG = {
    .running_count_max = 32,
    .waiting_count_max = 100,
    .sequence_count_max = 32,
    .row_count_max = 96,
    .chunk_row_count = 64,
    .in_flight_max = 3,
};

static void scheduler_cuts_a_prompt_into_chunks_without_waiting(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, CONFIG, 100);
    struct sequence *sequence = add(&f, 150);
    static const uint32_t firsts[] = {0, 64, 128}, counts[] = {64, 64, 22};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
        assert_ptr_equal(f.picks[0].sequence, sequence);
        assert_int_equal(f.picks[0].position_first, firsts[i]);
        assert_int_equal(f.picks[0].row_count, counts[i]);
        assert_int_equal(f.picks[0].is_sample, i == 2);
    }
    // The last row is on its way: nothing more until its token is known.
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 0);
    assert_int_equal(sequence_append(sequence, 7), STATUS_OK);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    assert_int_equal(f.picks[0].position_first, 150);
    assert_int_equal(f.picks[0].row_count, 1);
    assert_true(f.picks[0].is_sample);
    close_fixture(&f);
}

static void scheduler_puts_decode_before_prefill(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, CONFIG, 100);
    struct sequence *decoding = add(&f, 1);
    struct sequence *prompt = add(&f, 200);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 2);
    assert_ptr_equal(f.picks[0].sequence, decoding);
    assert_ptr_equal(f.picks[1].sequence, prompt);
    assert_int_equal(f.picks[1].row_count, 64);
    close_fixture(&f);
}

static void scheduler_spreads_decode_rows_over_the_microbatches_in_flight(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, CONFIG, 100);
    for (int i = 0; i < 12; i++)
        add(&f, 1);
    for (int i = 0; i < 3; i++)
        assert_int_equal(scheduler_pick(f.scheduler, f.picks), 4);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 0);
    close_fixture(&f);
}

static void scheduler_refuses_more_than_may_wait(void **state) {
    (void)state;
    struct fixture f;
    struct scheduler_config config = CONFIG;
    config.waiting_count_max = 2;
    open_fixture(&f, config, 100);
    add(&f, 1);
    add(&f, 1);
    struct sequence extra;
    assert_int_equal(sequence_init(&extra, (uint32_t[]){1}, 1), STATUS_OK);
    assert_int_equal(scheduler_add(f.scheduler, &extra), STATUS_EXHAUSTED);
    sequence_fini(&extra);
    assert_int_equal(scheduler_waiting_count(f.scheduler), 2);
    close_fixture(&f);
}

static void scheduler_preempts_the_youngest_and_keeps_the_oldest(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, CONFIG, 4); // 128 positions
    struct sequence *oldest = add(&f, 31);
    struct sequence *youngest = add(&f, 31);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 2);
    uint64_t first_run_id = youngest->run_id;
    // Both grow until one must give way.
    for (int i = 0; i < 200 && youngest->state == SEQUENCE_RUNNING; i++) {
        for (int s = 0; s < 2; s++)
            if (sequence_remaining_count(&f.sequences[s]) == 0)
                assert_int_equal(sequence_append(&f.sequences[s], 5), STATUS_OK);
        assert_true(scheduler_pick(f.scheduler, f.picks) > 0);
    }
    assert_int_equal(youngest->state, SEQUENCE_WAITING);
    assert_int_equal(youngest->block_count, 0);
    assert_int_equal(youngest->issued_count, 0);
    assert_int_equal(oldest->state, SEQUENCE_RUNNING);
    assert_true(scheduler_preempted_count(f.scheduler) > 0);
    // When the oldest ends, the youngest starts again from its tokens, as a new run.
    scheduler_remove(f.scheduler, oldest);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 1);
    assert_ptr_equal(f.picks[0].sequence, youngest);
    assert_int_equal(f.picks[0].position_first, 0);
    assert_true(youngest->run_id != first_run_id && youngest->run_id != 0);
    close_fixture(&f);
}

static void scheduler_reset_sends_everything_back_in_order_of_arrival(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, CONFIG, 100);
    for (int i = 0; i < 5; i++)
        add(&f, 3);
    assert_true(scheduler_pick(f.scheduler, f.picks) > 0);
    assert_int_equal(scheduler_reset(f.scheduler), 5);
    assert_int_equal(kv_blocks_free_count(f.blocks), 100);
    assert_int_equal(scheduler_pick(f.scheduler, f.picks), 5);
    for (uint32_t i = 0; i < 5; i++) {
        assert_ptr_equal(f.picks[i].sequence, &f.sequences[i]);
        assert_int_equal(f.picks[i].position_first, 0);
    }
    close_fixture(&f);
}

// Every microbatch is within its limits and parses; every sequence gets all its tokens.
static void check_microbatch(struct fixture *f, struct frame *frame, uint32_t pick_count,
                             uint64_t step) {
    assert_int_equal(microbatch_write(frame, 1, step, f->picks, pick_count), STATUS_OK);
    struct frame_limits limits = {
        .epoch = 1,
        .row_count_max = f->config.row_count_max,
        .sequence_count_max = f->config.sequence_count_max,
        .position_count_max = 1024,
        .kv_block_count = kv_blocks_total_count(f->blocks),
        .vocabulary_size = 1 << 20,
        .kind = FRAME_STEP,
    };
    struct frame_view view;
    struct error error = {{0}};
    enum status status = frame_parse(frame, &limits, &view, &error);
    assert_string_equal(error.text, "");
    assert_int_equal(status, STATUS_OK);
    for (uint32_t i = 0; i < pick_count; i++) {
        const struct scheduler_pick *pick = &f->picks[i];
        const struct frame_sequence *s = &view.sequences[i];
        assert_int_equal(s->sequence_id, pick->run_id);
        assert_memory_equal(&view.tokens[s->row_first],
                            &pick->sequence->tokens[pick->position_first],
                            pick->row_count * sizeof(uint32_t));
        for (uint32_t other = 0; other < i; other++)
            assert_ptr_not_equal(f->picks[other].sequence, pick->sequence);
    }
}

static void scheduler_finishes_random_loads_in_few_blocks(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct fixture f;
        struct scheduler_config config = CONFIG;
        uint64_t draw = 0;
#define DRAW(limit) ((uint32_t)(rng_uniform(seed, draw++) * (limit)))
        config.running_count_max = 1 + DRAW(20);
        config.in_flight_max = 1 + DRAW(5);
        config.chunk_row_count = 1 + DRAW(64);
        uint32_t block_count = 8 + DRAW(20);
        open_fixture(&f, config, block_count);
        struct frame *frame;
        assert_int_equal(frame_open(1 << 20, &frame), STATUS_OK);
        uint32_t wanted[SEQUENCE_COUNT];
        for (uint32_t i = 0; i < SEQUENCE_COUNT; i++) {
            uint32_t prompt_count = 1 + DRAW(120);
            wanted[i] = prompt_count + 1 + DRAW(100);
            add(&f, prompt_count);
        }
        uint32_t left_count = SEQUENCE_COUNT, reset_count = DRAW(8);
        for (uint64_t step = 1; left_count > 0; step++) {
            if (step > 100000) fail_msg("seed %lu does not finish", (unsigned long)seed);
            uint32_t pick_count = scheduler_pick(f.scheduler, f.picks);
            if (pick_count == 0) fail_msg("seed %lu: nothing to do", (unsigned long)seed);
            check_microbatch(&f, frame, pick_count, step);
            for (uint32_t i = 0; i < pick_count; i++) {
                struct sequence *sequence = f.picks[i].sequence;
                if (!f.picks[i].is_sample || sequence->run_id != f.picks[i].run_id) continue;
                assert_int_equal(sequence_append(sequence, 3), STATUS_OK);
                if (sequence->token_count < wanted[sequence - f.sequences]) continue;
                scheduler_remove(f.scheduler, sequence);
                left_count--;
            }
            if (reset_count == 0 || DRAW(100) != 0) continue;
            scheduler_reset(f.scheduler);
            reset_count--;
        }
#undef DRAW
        frame_close(frame);
        close_fixture(&f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scheduler_cuts_a_prompt_into_chunks_without_waiting),
        cmocka_unit_test(scheduler_puts_decode_before_prefill),
        cmocka_unit_test(scheduler_spreads_decode_rows_over_the_microbatches_in_flight),
        cmocka_unit_test(scheduler_refuses_more_than_may_wait),
        cmocka_unit_test(scheduler_preempts_the_youngest_and_keeps_the_oldest),
        cmocka_unit_test(scheduler_reset_sends_everything_back_in_order_of_arrival),
        cmocka_unit_test(scheduler_finishes_random_loads_in_few_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
