// The microbatches in flight, with frames that are answered by hand.
#include "coordinator/pipeline.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SEQUENCE_COUNT = 4, IN_FLIGHT_MAX = 3, SENT_MAX = 64, PROMPT_COUNT = 3, EPOCH = 5 };
static const uint64_t MS = 1000000;

struct world {
    uint64_t now_ns;
    struct pipeline *pipeline;
    struct sequence sequences[SEQUENCE_COUNT];
    struct frame *sent[SENT_MAX]; // in order, and not yet given back
    uint32_t sent_count;
    struct frame *result;
    struct pipeline_measured measured;
    uint32_t sample_count, released_count;
};

static struct frame_limits limits_of(enum frame_kind kind) {
    return (struct frame_limits){.epoch = EPOCH,
                                 .row_count_max = 16,
                                 .sequence_count_max = SEQUENCE_COUNT,
                                 .position_count_max = 64,
                                 .kv_block_count = 8,
                                 .vocabulary_size = 1000,
                                 .token_lag_max = IN_FLIGHT_MAX - 1,
                                 .hidden_size = 8,
                                 .dtype = DTYPE_F32,
                                 .kind = kind};
}

static uint64_t world_now(void *ctx) {
    return ((struct world *)ctx)->now_ns;
}

static bool world_send(void *ctx, struct frame *frame) {
    struct world *world = ctx;
    assert_true(world->sent_count < SENT_MAX);
    world->sent[world->sent_count++] = frame;
    return true;
}

// As the loop does: the token counts if the sequence still runs.
static void world_sample(void *ctx, const struct scheduler_pick *pick,
                         const struct frame_sample *sample, const struct frame_top *tops) {
    (void)tops;
    struct world *world = ctx;
    world->sample_count++;
    if (pick->run_id != pick->sequence->run_id) return;
    assert_int_equal(sequence_append(pick->sequence, sample->token_id), STATUS_OK);
}

static void world_released(void *ctx, struct sequence *sequence) {
    (void)sequence;
    ((struct world *)ctx)->released_count++;
}

static void open_world(struct world *world) {
    memset(world, 0, sizeof(*world));
    world->now_ns = 1000 * MS;
    struct pipeline_config config = {.clock = {.now_ns = world_now, .ctx = world},
                                     .stage_count = 2,
                                     .in_flight_max = IN_FLIGHT_MAX,
                                     .limits = limits_of(FRAME_RESULT)};
    struct pipeline_outside outside = {
        .send = world_send, .sample = world_sample, .released = world_released, .ctx = world};
    assert_int_equal(pipeline_open(&config, &outside, &world->pipeline), STATUS_OK);
    pipeline_reset(world->pipeline, EPOCH);
    for (uint32_t i = 0; i < SEQUENCE_COUNT; i++) {
        struct sequence *sequence = &world->sequences[i];
        const uint32_t prompt[PROMPT_COUNT] = {i, i + 10, i + 20};
        assert_int_equal(sequence_init(sequence, prompt, PROMPT_COUNT), STATUS_OK);
        sequence->sampling = (struct frame_sequence){
            .top_p = 1, .repetition_penalty = 1, .presence_penalty = i == 0 ? 0.5f : 0};
        assert_int_equal(sequence_begin_history(sequence), STATUS_OK);
        sequence->run_id = 100 + i;
        sequence->blocks = calloc(2, sizeof(uint32_t));
        sequence->block_count = sequence->block_capacity_count = 2;
    }
    assert_int_equal(frame_open(4096, &world->result), STATUS_OK);
}

static void close_world(struct world *world) {
    pipeline_reset(world->pipeline, 0);
    pipeline_close(world->pipeline);
    for (uint32_t i = 0; i < SEQUENCE_COUNT; i++) {
        world->sequences[i].block_count = 0;
        sequence_fini(&world->sequences[i]);
    }
    frame_close(world->result);
}

static struct scheduler_pick prompt_of(struct world *world, uint32_t index) {
    struct sequence *sequence = &world->sequences[index];
    return (struct scheduler_pick){.sequence = sequence,
                                   .run_id = sequence->run_id,
                                   .row_count = sequence->token_count,
                                   .is_sample = true};
}

// The row of the token that `ahead` steps in flight have not drawn yet.
static struct scheduler_pick row_of(struct world *world, uint32_t index, bool is_ahead) {
    struct sequence *sequence = &world->sequences[index];
    return (struct scheduler_pick){.sequence = sequence,
                                   .run_id = sequence->run_id,
                                   .position_first = sequence->token_count - (is_ahead ? 0 : 1),
                                   .row_count = 1,
                                   .is_sample = true,
                                   .is_ahead = is_ahead};
}

static struct frame_view parse_sent(struct world *world, uint32_t index) {
    struct frame_limits limits = limits_of(FRAME_STEP);
    struct frame_view view;
    struct error error = {0};
    enum status status = frame_parse(world->sent[index], &limits, &view, &error);
    assert_string_equal(error.text, "");
    assert_int_equal(status, STATUS_OK);
    return view;
}

static uint32_t token_of(uint64_t step, uint64_t sequence_id) {
    return (uint32_t)(step * 100 + sequence_id % 100);
}

// Answers the oldest frame that was sent; it took this long.
static enum status answer(struct world *world, uint64_t took_ns, uint64_t slowest_ns,
                          struct error *error) {
    struct frame_view step = parse_sent(world, 0);
    struct frame_header wanted = {.kind = FRAME_RESULT,
                                  .epoch = EPOCH,
                                  .step = step.header->step,
                                  .row_count = step.header->row_count,
                                  .sequence_count = step.header->sequence_count};
    for (uint32_t i = 0; i < step.header->sequence_count; i++)
        wanted.sample_count += step.sequences[i].flags & FRAME_SAMPLE ? 1 : 0;
    struct frame_view view;
    assert_int_equal(frame_format(world->result, &wanted, &view), STATUS_OK);
    struct frame_sample *sample = view.samples;
    for (uint32_t i = 0; i < step.header->sequence_count; i++) {
        uint64_t id = step.sequences[i].sequence_id;
        if (!(step.sequences[i].flags & FRAME_SAMPLE)) continue;
        *sample++ = (struct frame_sample){.sequence_id = id, .token_id = token_of(wanted.step, id)};
    }
    view.header->compute_ns = took_ns;
    view.header->slowest_ns = slowest_ns;
    pipeline_frame_sent(world->pipeline, world->sent[0]);
    memmove(world->sent, world->sent + 1, --world->sent_count * sizeof(world->sent[0]));
    return pipeline_receive(world->pipeline, world->result, &world->measured, error);
}

static void a_row_ahead_names_the_sample_that_draws_its_token(void **state) {
    (void)state;
    struct world world;
    open_world(&world);
    struct scheduler_pick chunk = prompt_of(&world, 0);
    chunk.is_sample = false; // takes no sample's place
    chunk.row_count = 2;
    struct scheduler_pick first[] = {chunk, prompt_of(&world, 1), prompt_of(&world, 2)};
    pipeline_send(world.pipeline, first, 3);
    struct scheduler_pick second[] = {prompt_of(&world, 3)};
    pipeline_send(world.pipeline, second, 1);
    struct scheduler_pick third[] = {row_of(&world, 2, true), row_of(&world, 3, true)};
    pipeline_send(world.pipeline, third, 2);
    assert_false(pipeline_has_room(world.pipeline));
    struct frame_view view = parse_sent(&world, 2);
    assert_int_equal(view.sequences[0].token_lag, 2);
    assert_int_equal(view.sequences[0].token_sample, 1);
    assert_int_equal(view.sequences[0].position_first, PROMPT_COUNT);
    assert_int_equal(view.sequences[1].token_lag, 1);
    assert_int_equal(view.sequences[1].token_sample, 0);

    // Its own draw is the next one that a row may be ahead of.
    assert_int_equal(answer(&world, 0, 0, NULL), STATUS_OK);
    struct scheduler_pick fourth[] = {row_of(&world, 1, false), row_of(&world, 2, true)};
    pipeline_send(world.pipeline, fourth, 2);
    view = parse_sent(&world, 2);
    assert_int_equal(view.sequences[0].token_lag, 0);
    assert_int_equal(view.tokens[0], token_of(1, 101));
    assert_int_equal(view.sequences[1].token_lag, 1); // drawn by the third
    assert_int_equal(view.sequences[1].position_first, PROMPT_COUNT + 1);
    for (int i = 0; i < 3; i++)
        assert_int_equal(answer(&world, 0, 0, NULL), STATUS_OK);
    assert_int_equal(world.sequences[2].token_count, PROMPT_COUNT + 3);
    assert_int_equal(world.sequences[2].tokens[PROMPT_COUNT + 1], token_of(3, 102));
    assert_int_equal(world.released_count, 3 + 1 + 2 + 2);
    close_world(&world);
}

static void the_history_of_a_row_ahead_leaves_its_token_out(void **state) {
    (void)state;
    struct world world;
    open_world(&world);
    struct scheduler_pick first[] = {prompt_of(&world, 0)};
    pipeline_send(world.pipeline, first, 1);
    struct scheduler_pick second[] = {row_of(&world, 0, true)};
    pipeline_send(world.pipeline, second, 1);
    assert_int_equal(parse_sent(&world, 1).header->history_count, PROMPT_COUNT);
    assert_int_equal(answer(&world, 0, 0, NULL), STATUS_OK);
    struct scheduler_pick third[] = {row_of(&world, 0, true)};
    pipeline_send(world.pipeline, third, 1);
    struct frame_view view = parse_sent(&world, 1);
    assert_int_equal(view.header->history_count, PROMPT_COUNT + 1);
    assert_int_equal(view.history[PROMPT_COUNT].token_id, token_of(1, 100));
    assert_int_equal(view.history[PROMPT_COUNT].output_count, 1);
    close_world(&world);
}

static void a_row_ahead_of_a_sequence_that_has_ended_draws_for_nobody(void **state) {
    (void)state;
    struct world world;
    open_world(&world);
    struct scheduler_pick first[] = {prompt_of(&world, 0), prompt_of(&world, 1)};
    pipeline_send(world.pipeline, first, 2);
    struct scheduler_pick second[] = {row_of(&world, 0, true), row_of(&world, 1, true)};
    pipeline_send(world.pipeline, second, 2);
    assert_int_equal(answer(&world, 0, 0, NULL), STATUS_OK);
    world.sequences[0].run_id = 0; // that was its last token
    assert_int_equal(answer(&world, 0, 0, NULL), STATUS_OK);
    assert_int_equal(world.sample_count, 4);
    assert_int_equal(world.sequences[0].token_count, PROMPT_COUNT + 1);
    assert_int_equal(world.sequences[1].token_count, PROMPT_COUNT + 2);
    assert_int_equal(world.sequences[0].in_flight_count, 0);
    close_world(&world);
}

static void a_finished_step_tells_what_it_cost(void **state) {
    (void)state;
    struct world world;
    open_world(&world);
    // Alone: 9 ms from the coordinator over two stages and back, 3 of them on three hops.
    struct scheduler_pick picks[] = {prompt_of(&world, 0), prompt_of(&world, 1)};
    picks[1].position_first = 1;
    picks[1].row_count = 2;
    pipeline_send(world.pipeline, picks, 2);
    world.now_ns += 9 * MS;
    assert_int_equal(answer(&world, 6 * MS, 4 * MS, NULL), STATUS_OK);
    assert_int_equal(world.measured.cost.row_count, PROMPT_COUNT + 2);
    assert_int_equal(world.measured.cost.attended_count, 1 + 2 + 3 + 2 + 3);
    assert_int_equal(world.measured.cost.sum_ns, 6 * MS);
    assert_int_equal(world.measured.cost.slowest_ns, 4 * MS);
    assert_int_equal(world.measured.hop_ns, MS);
    // Two at once wait for one another: nothing is known of hops.
    for (uint32_t i = 2; i < 4; i++) {
        struct scheduler_pick pick = prompt_of(&world, i);
        pipeline_send(world.pipeline, &pick, 1);
    }
    for (uint32_t i = 2; i < 4; i++) {
        world.now_ns += 9 * MS;
        assert_int_equal(answer(&world, 6 * MS, 4 * MS, NULL), STATUS_OK);
        assert_int_equal(world.measured.cost.row_count, PROMPT_COUNT);
        assert_int_equal(world.measured.hop_ns, 0);
    }
    close_world(&world);
}

static void results_that_were_not_asked_for_are_refused(void **state) {
    (void)state;
    struct world world;
    open_world(&world);
    struct error error;
    struct scheduler_pick pick = prompt_of(&world, 0);
    pipeline_send(world.pipeline, &pick, 1);
    assert_int_equal(answer(&world, 0, 0, &error), STATUS_OK);
    // Once more, when nothing is in flight, then in the place of the next one.
    assert_int_equal(pipeline_receive(world.pipeline, world.result, &world.measured, &error),
                     STATUS_INVALID);
    pick = prompt_of(&world, 1);
    pipeline_send(world.pipeline, &pick, 1);
    assert_int_equal(pipeline_receive(world.pipeline, world.result, &world.measured, &error),
                     STATUS_INVALID);
    assert_string_equal(error.text, "result is of step 1, step 2 is next");
    struct frame_header *header = (struct frame_header *)world.result->data;
    header->step = 2; // with a sample of another sequence
    assert_int_equal(pipeline_receive(world.pipeline, world.result, &world.measured, &error),
                     STATUS_INVALID);
    assert_string_equal(error.text, "result of step 2: no sample for sequence 101");
    header->epoch = EPOCH - 1;
    assert_int_equal(pipeline_receive(world.pipeline, world.result, &world.measured, &error),
                     STATUS_UNAVAILABLE);
    assert_int_equal(world.sample_count, 1);
    close_world(&world);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_row_ahead_names_the_sample_that_draws_its_token),
        cmocka_unit_test(the_history_of_a_row_ahead_leaves_its_token_out),
        cmocka_unit_test(a_row_ahead_of_a_sequence_that_has_ended_draws_for_nobody),
        cmocka_unit_test(a_finished_step_tells_what_it_cost),
        cmocka_unit_test(results_that_were_not_asked_for_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
