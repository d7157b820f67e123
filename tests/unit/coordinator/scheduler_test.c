#include "tests/unit/coordinator/scheduler_fixture.h"

#include "base/rng.h"
#include "coordinator/microbatch.h"

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
    // Its first block is cached still.
    assert_int_equal(f.picks[0].position_first, 32);
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
        .token_lag_max = UINT32_MAX,
    };
    struct frame_view view;
    struct error error = {0};
    enum status status = frame_parse(frame, &limits, &view, &error);
    assert_string_equal(error.text, "");
    assert_int_equal(status, STATUS_OK);
    for (uint32_t i = 0; i < pick_count; i++) {
        const struct scheduler_pick *pick = &f->picks[i];
        const struct frame_sequence *s = &view.sequences[i];
        assert_int_equal(s->sequence_id, pick->run_id);
        if (!pick->is_ahead)
            assert_memory_equal(&view.tokens[s->row_first],
                                &pick->sequence->tokens[pick->position_first],
                                pick->row_count * sizeof(uint32_t));
        for (uint32_t other = 0; other < i; other++)
            assert_ptr_not_equal(f->picks[other].sequence, pick->sequence);
    }
}

// A load that is drawn from a seed, with steps whose results come later.
struct load {
    struct fixture f;
    uint64_t seed, draw_count;
    struct frame *frame;
    uint32_t wanted[SEQUENCE_COUNT]; // tokens at the end
    uint32_t left_count;
    // Steps in flight, oldest first.
    struct scheduler_pick steps[6][64];
    uint32_t pick_counts[6];
    uint32_t step_count;
    uint32_t ahead_count;
};

static uint32_t draw(struct load *load, uint32_t limit) {
    return (uint32_t)(rng_uniform(load->seed, load->draw_count++) * limit);
}

static void open_load(struct load *load, uint64_t seed) {
    *load = (struct load){.seed = seed};
    struct scheduler_config config = CONFIG;
    config.running_count_max = 1 + draw(load, 20);
    config.in_flight_max = 1 + draw(load, 5);
    config.chunk_row_count = draw(load, 65);
    config.stage_count = draw(load, 4);
    config.runs_ahead = draw(load, 2) == 0;
    config.is_naive = draw(load, 8) == 0;
    open_fixture(&load->f, config, 8 + draw(load, 20));
    assert_int_equal(frame_open(1 << 20, &load->frame), STATUS_OK);
    for (uint32_t i = 0; i < SEQUENCE_COUNT; i++) {
        uint32_t prompt_count = 1 + draw(load, 120);
        struct sequence *sequence = make(&load->f, prompt_count);
        load->wanted[i] = prompt_count + 1 + draw(load, 100);
        sequence->token_count_max = load->wanted[i] + draw(load, 2) * 10;
        sequence->priority = (int32_t)draw(load, 3) - 1;
        // Some prompts begin alike.
        for (uint32_t p = 0; i > 0 && draw(load, 2) == 0 && p < prompt_count; p++)
            sequence->tokens[p] = p;
        if (i > 0 && draw(load, 4) == 0) sequence->leader = &load->f.sequences[draw(load, i)];
        assert_int_equal(scheduler_add(load->f.scheduler, sequence), STATUS_OK);
    }
    load->left_count = SEQUENCE_COUNT;
}

static void finish_step(struct load *load) {
    for (uint32_t i = 0; i < load->pick_counts[0]; i++) {
        const struct scheduler_pick *pick = &load->steps[0][i];
        struct sequence *sequence = pick->sequence;
        if (!pick->is_sample || sequence->run_id != pick->run_id) continue;
        assert_int_equal(sequence->token_count, pick->position_first + pick->row_count);
        assert_int_equal(sequence_append(sequence, 3), STATUS_OK);
        if (sequence->token_count < load->wanted[sequence - load->f.sequences]) continue;
        scheduler_remove(load->f.scheduler, sequence);
        load->left_count--;
    }
    memmove(load->steps[0], load->steps[1], sizeof(load->steps) - sizeof(load->steps[0]));
    memmove(&load->pick_counts[0], &load->pick_counts[1], 5 * sizeof(uint32_t));
    load->step_count--;
}

static bool send_step(struct load *load, uint64_t number) {
    struct fixture *f = &load->f;
    uint32_t pick_count = scheduler_pick(f->scheduler, f->picks);
    if (pick_count == 0) return false;
    check_microbatch(f, load->frame, pick_count, number);
    for (uint32_t i = 0; i < pick_count; i++) {
        struct sequence *sequence = f->picks[i].sequence;
        assert_true(sequence->issued_count <= sequence->token_count + 1);
        assert_true(sequence->issued_count < sequence->token_count_max);
        if (f->picks[i].is_sample) sequence->sampled_step = number;
        load->ahead_count += f->picks[i].is_ahead ? 1 : 0;
    }
    memcpy(load->steps[load->step_count], f->picks, sizeof(load->steps[0]));
    load->pick_counts[load->step_count++] = pick_count;
    return true;
}

static void scheduler_finishes_random_loads_in_few_blocks(void **state) {
    (void)state;
    uint32_t ahead_count = 0;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        struct load load;
        open_load(&load, seed);
        uint32_t reset_count = draw(&load, 8);
        uint64_t number = 1;
        while (load.left_count > 0) {
            if (number > 100000) fail_msg("seed %lu does not finish", (unsigned long)seed);
            if (load.step_count < load.f.config.in_flight_max && send_step(&load, number))
                number++;
            else if (load.step_count == 0)
                fail_msg("seed %lu: nothing to do", (unsigned long)seed);
            else
                finish_step(&load);
            if (reset_count == 0 || draw(&load, 100) != 0) continue;
            scheduler_reset(load.f.scheduler);
            load.step_count = 0;
            reset_count--;
        }
        ahead_count += load.ahead_count;
        frame_close(load.frame);
        close_fixture(&load.f);
    }
    assert_true(ahead_count > 10000);
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
