// One or two workers in a ring with a coordinator that sends frames as a test wants them.
#include "stage/worker.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "base/log.h"

enum {
    STAGE_COUNT_MAX = 2,
    WAIT_MS = 20000,
    PROMPT_COUNT = 5,
    TOKEN_COUNT = 12,
    CREDIT_COUNT = 8,
    EPOCH = 3,
};

static const char MODEL[] = STAGECOACH_SOURCE_DIR "/deploy/demo-model/checkpoint";

struct stage {
    struct backend *backend;
    struct wake wake;
    struct inbox reports;
    struct worker *worker;
};

struct world {
    struct clock clock;
    struct model_config config;
    uint32_t stage_count;
    struct stage stages[STAGE_COUNT_MAX];
    struct wake wake;
    struct io *io;
    char address[300];
    struct frame *frames[TOKEN_COUNT];
    uint32_t tokens[PROMPT_COUNT + TOKEN_COUNT];
    uint64_t epoch;
    uint64_t step; // of the last result
};

static struct assignment assignment_of(const struct world *w, uint32_t index, uint64_t epoch,
                                       uint32_t token_lag_max) {
    struct assignment a = {
        .epoch = epoch,
        .stage_index = index,
        .stage_count = w->stage_count,
        .layer_first = index * w->config.layer_count / w->stage_count,
        .layer_count = w->config.layer_count / w->stage_count,
        .model_digest = w->config.digest,
        .activation_dtype = DTYPE_F32,
        .kv_dtype = DTYPE_BF16,
        .kv_block_count = 2,
        .kv_block_positions = KV_BLOCK_POSITION_COUNT,
        .row_count_max = 16,
        .sequence_count_max = 2,
        .credit_count = CREDIT_COUNT,
        .position_count_max = 64,
        .token_lag_max = token_lag_max,
    };
    snprintf(a.model_path, sizeof(a.model_path), "%s", MODEL);
    return a;
}

static void order(struct stage *stage, enum worker_order kind, const void *subject, size_t size) {
    void *copy = malloc(size);
    assert_non_null(copy);
    memcpy(copy, subject, size);
    worker_order(stage->worker, kind, copy);
}

// The next report of a stage about this epoch: all begin with their epoch.
static struct event *take_report(struct world *w, struct stage *stage) {
    uint64_t end_ms = clock_now_ms(&w->clock) + WAIT_MS;
    for (;;) {
        struct event *event = inbox_take(&stage->reports);
        if (event != NULL && *(const uint64_t *)event->subject == w->epoch) return event;
        if (event != NULL) {
            free(event->subject);
            event_close(event);
            continue;
        }
        if (clock_now_ms(&w->clock) > end_ms) fail_msg("no report within %d ms", WAIT_MS);
        wake_wait(&stage->wake, 10);
    }
}

// It must be of this kind; fills `out`.
static void wait_for(struct world *w, struct stage *stage, enum worker_report kind, void *out,
                     size_t size) {
    struct event *event = take_report(w, stage);
    if (event->kind != (int)kind)
        fail_msg("report %d: %s", event->kind,
                 event->kind == WORKER_FAILED ? ((struct worker_failed *)event->subject)->error.text
                                              : "");
    memcpy(out, event->subject, size);
    free(event->subject);
    event_close(event);
}

static struct io_event take_event(struct world *w) {
    struct io_event event;
    uint64_t end_ms = clock_now_ms(&w->clock) + WAIT_MS;
    while (!io_take(w->io, &event)) {
        if (clock_now_ms(&w->clock) > end_ms) fail_msg("no event within %d ms", WAIT_MS);
        wake_wait(&w->wake, 10);
    }
    return event;
}

static struct frame_limits limits_of(const struct world *w, uint64_t epoch) {
    return (struct frame_limits){.epoch = epoch,
                                 .row_count_max = 16,
                                 .sequence_count_max = 2,
                                 .position_count_max = 64,
                                 .kv_block_count = 2,
                                 .vocabulary_size = w->config.vocabulary_size,
                                 .hidden_size = w->config.hidden_size,
                                 .dtype = DTYPE_F32,
                                 .kind = FRAME_RESULT};
}

static void open_stage(struct world *w, struct stage *stage) {
    struct error error = {0};
    struct backend_config backend = {.thread_count = 1, .variant = "auto"};
    assert_int_equal(backend_cpu_open(&backend, &stage->backend, &error), STATUS_OK);
    assert_int_equal(wake_init(&stage->wake), STATUS_OK);
    assert_int_equal(inbox_init(&stage->reports, 64, &stage->wake), STATUS_OK);
    struct worker_config config = {.backend = stage->backend,
                                   .clock = w->clock,
                                   .reports = &stage->reports,
                                   .data_host = "127.0.0.1"};
    if (worker_open(&config, &stage->worker, &error) != STATUS_OK) fail_msg("%s", error.text);
}

static void open_world(struct world *w, uint32_t stage_count) {
    memset(w, 0, sizeof(*w));
    log_init("test", LOG_NONE);
    w->clock = clock_system();
    w->stage_count = stage_count;
    struct error error = {0};
    assert_int_equal(model_config_read(MODEL, &w->config, &error), STATUS_OK);
    assert_int_equal(wake_init(&w->wake), STATUS_OK);
    assert_int_equal(io_open(&(struct io_config){.owner_wake = &w->wake}, &w->io), STATUS_OK);
    struct port_config config = io_port_config(w->io);
    struct port *port;
    assert_int_equal(port_open_ucx("127.0.0.1", 0, &config, &port, &error), STATUS_OK);
    snprintf(w->address, sizeof(w->address), "%s", port_address(port));
    assert_int_equal(io_start(w->io, port), STATUS_OK);
    for (uint32_t i = 0; i < stage_count; i++)
        open_stage(w, &w->stages[i]);
    struct frame_limits limits = limits_of(w, EPOCH);
    for (uint32_t i = 0; i < TOKEN_COUNT; i++)
        assert_int_equal(frame_open(frame_capacity_bytes(&limits), &w->frames[i]), STATUS_OK);
}

static void close_world(struct world *w) {
    for (uint32_t i = 0; i < w->stage_count; i++) {
        struct stage *stage = &w->stages[i];
        worker_close(stage->worker);
        backend_close(stage->backend);
        struct event *event;
        while ((event = inbox_take(&stage->reports)) != NULL) {
            free(event->subject);
            event_close(event);
        }
        inbox_fini(&stage->reports);
        wake_fini(&stage->wake);
    }
    io_close(w->io);
    wake_fini(&w->wake);
    for (uint32_t i = 0; i < TOKEN_COUNT; i++)
        frame_close(w->frames[i]);
}

static const char *address_of(const struct world *w, uint32_t index) {
    return index == w->stage_count ? w->address : worker_data_address(w->stages[index].worker);
}

// A key for each link and epoch, the same at both ends. Every other epoch encrypts.
static void set_keys(struct io_ring_position *position) {
    position->encrypts = position->epoch % 2 == 0;
    for (uint32_t i = 0; i < IO_LINK_COUNT_MAX; i++) {
        memset(position->ins[i].key, (int)(position->ins[i].link_id + position->epoch * 16),
               LINK_KEY_BYTES);
        memset(position->outs[i].key, (int)(position->outs[i].link_id + position->epoch * 16),
               LINK_KEY_BYTES);
    }
}

static void start_stage(struct world *w, uint32_t index, uint64_t epoch, uint32_t token_lag_max) {
    struct assignment a = assignment_of(w, index, epoch, token_lag_max);
    struct io_ring_position position = {
        .epoch = epoch,
        .in_count = 1,
        .ins = {{.link_id = index}, {.link_id = w->stage_count + 1}},
        .out_count = 1,
        .outs = {{.link_id = index + 1}, {.link_id = w->stage_count + 1}}};
    if (w->stage_count > 1 && assignment_takes_tokens(&a)) position.in_count = 2;
    if (assignment_sends_tokens(&a)) position.out_count = 2;
    snprintf(position.outs[0].address, sizeof(position.outs[0].address), "%.200s",
             address_of(w, index + 1));
    snprintf(position.outs[1].address, sizeof(position.outs[1].address), "%.200s",
             address_of(w, 0));
    set_keys(&position);
    order(&w->stages[index], WORKER_START, &position, sizeof(position));
}

static void begin_epoch(struct world *w, uint64_t epoch, uint32_t token_lag_max) {
    w->epoch = epoch;
    w->step = 0;
    for (uint32_t i = 0; i < w->stage_count; i++) {
        struct assignment a = assignment_of(w, i, epoch, token_lag_max);
        order(&w->stages[i], WORKER_LOAD, &a, sizeof(a));
    }
    struct worker_loaded loaded;
    for (uint32_t i = 0; i < w->stage_count; i++)
        wait_for(w, &w->stages[i], WORKER_LOADED, &loaded, sizeof(loaded));
    struct frame_limits limits = limits_of(w, epoch);
    struct io_ring_position position = {.epoch = epoch,
                                        .in_count = 1,
                                        .ins = {{.link_id = w->stage_count}},
                                        .out_count = 1,
                                        .credit_count = CREDIT_COUNT,
                                        .frame_bytes_max = frame_capacity_bytes(&limits)};
    snprintf(position.outs[0].address, sizeof(position.outs[0].address), "%.200s",
             address_of(w, 0));
    set_keys(&position);
    assert_true(io_connect(w->io, &position));
    for (uint32_t i = 0; i < w->stage_count; i++)
        start_stage(w, i, epoch, token_lag_max);
    struct worker_connected connected;
    for (uint32_t i = 0; i < w->stage_count; i++)
        wait_for(w, &w->stages[i], WORKER_CONNECTED, &connected, sizeof(connected));
    while (take_event(w).kind != IO_UP)
        ; // frames of the former epoch
}

// -- frames ---------------------------------------------------------------------------------------

// The distinct ones of the first token_count tokens.
static uint32_t fill_history(const struct world *w, uint32_t token_count,
                             struct frame_history *history) {
    uint32_t held = 0;
    for (uint32_t i = 0; i < token_count; i++) {
        uint32_t at = 0;
        while (at < held && history[at].token_id != w->tokens[i])
            at++;
        if (at == held) history[held++] = (struct frame_history){.token_id = w->tokens[i]};
        history[at].output_count += i < PROMPT_COUNT ? 0 : 1;
    }
    return held;
}

// Writes step s of one sequence: the prompt, then the token that step s - 1 draws.
static struct frame_view write_step(struct world *w, uint64_t epoch, uint64_t step, bool is_ahead) {
    uint32_t row_count = step == 1 ? PROMPT_COUNT : 1;
    uint32_t position = step == 1 ? 0 : PROMPT_COUNT + (uint32_t)step - 2;
    struct frame_history history[PROMPT_COUNT + TOKEN_COUNT];
    uint32_t history_count = fill_history(w, position + row_count - (is_ahead ? 1 : 0), history);
    struct frame_header wanted = {.kind = FRAME_STEP,
                                  .epoch = epoch,
                                  .step = step,
                                  .row_count = row_count,
                                  .sequence_count = 1,
                                  .block_count = 1,
                                  .history_count = history_count};
    struct frame_view view;
    assert_int_equal(frame_format(w->frames[step - 1], &wanted, &view), STATUS_OK);
    for (uint32_t r = 0; r < row_count; r++)
        view.tokens[r] = is_ahead ? 0 : w->tokens[position + r];
    memcpy(view.history, history, history_count * sizeof(history[0]));
    view.sequences[0] = (struct frame_sequence){.sequence_id = 100,
                                                .seed = 12345,
                                                .row_count = row_count,
                                                .position_first = position,
                                                .block_count = 1,
                                                .flags = FRAME_SAMPLE,
                                                .history_count = history_count,
                                                .temperature = 1.5f,
                                                .top_p = 1,
                                                .repetition_penalty = 1.3f,
                                                .presence_penalty = 0.7f,
                                                .frequency_penalty = 0.2f,
                                                .token_lag = is_ahead ? 1 : 0};
    view.blocks[0] = 1;
    return view;
}

static void send_step(struct world *w, uint64_t step) {
    assert_true(io_send(w->io, 0, w->frames[step - 1]));
}

// Waits for the next result and keeps its token.
static void take_result(struct world *w, uint64_t epoch) {
    struct io_event event;
    while ((event = take_event(w)).kind != IO_RECEIVED)
        if (event.kind != IO_SENT) fail_msg("event %d: %s", event.kind, event.error.text);
    struct frame_limits limits = limits_of(w, epoch);
    struct frame_view view;
    struct error error = {0};
    enum status status = frame_parse(event.frame, &limits, &view, &error);
    assert_string_equal(error.text, "");
    assert_int_equal(status, STATUS_OK);
    assert_int_equal(view.header->step, ++w->step);
    assert_true(view.header->slowest_ns > 0);
    assert_in_range(view.header->slowest_ns, view.header->compute_ns / w->stage_count,
                    view.header->compute_ns);
    w->tokens[PROMPT_COUNT + w->step - 1] = view.samples[0].token_id;
    io_release(w->io, event.frame);
}

static void begin_sequence(struct world *w) {
    for (uint32_t i = 0; i < PROMPT_COUNT; i++)
        w->tokens[i] = 11 + 7 * i;
}

// Every step is sent when the token before it is known.
static void generate_known(struct world *w, uint64_t epoch) {
    begin_sequence(w);
    for (uint64_t step = 1; step <= TOKEN_COUNT; step++) {
        write_step(w, epoch, step, false);
        send_step(w, step);
        take_result(w, epoch);
    }
}

// Every step is sent one before its token is known.
static void generate_ahead(struct world *w, uint64_t epoch) {
    begin_sequence(w);
    write_step(w, epoch, 1, false);
    send_step(w, 1);
    for (uint64_t step = 2; step <= TOKEN_COUNT; step++) {
        write_step(w, epoch, step, true);
        send_step(w, step);
        take_result(w, epoch);
    }
    take_result(w, epoch);
}

static void tokens_that_come_straight_back_are_the_same(void **state) {
    (void)state;
    uint32_t expected[PROMPT_COUNT + TOKEN_COUNT];
    for (uint32_t stage_count = 1; stage_count <= STAGE_COUNT_MAX; stage_count++) {
        struct world w;
        open_world(&w, stage_count);
        begin_epoch(&w, EPOCH, 0);
        generate_known(&w, EPOCH);
        if (stage_count == 1) memcpy(expected, w.tokens, sizeof(expected));
        assert_memory_equal(w.tokens, expected, sizeof(expected));
        // The other way in a later epoch, and once more: what came back before is forgotten.
        for (uint64_t epoch = EPOCH + 1; epoch < EPOCH + 3; epoch++) {
            memset(w.tokens, 0, sizeof(w.tokens));
            begin_epoch(&w, epoch, 1);
            generate_ahead(&w, epoch);
            assert_memory_equal(w.tokens, expected, sizeof(expected));
        }
        close_world(&w);
    }
}

static void expect_refusal(struct world *w, const char *text) {
    struct worker_failed failed;
    wait_for(w, &w->stages[0], WORKER_FAILED, &failed, sizeof(failed));
    assert_int_equal(failed.failure, WORKER_FAILED_FRAME);
    assert_string_equal(failed.error.text, text);
}

static void frames_that_name_a_token_that_never_comes_are_refused(void **state) {
    (void)state;
    struct world w;
    open_world(&w, 2);
    begin_sequence(&w);
    uint64_t epoch = EPOCH;
    // A step was left out.
    begin_epoch(&w, epoch, 1);
    write_step(&w, epoch, 1, false);
    send_step(&w, 1);
    write_step(&w, epoch, 3, true);
    send_step(&w, 3);
    expect_refusal(&w, "frame is of step 3, step 2 is next");
    // Of a step before the first.
    begin_epoch(&w, ++epoch, 1);
    write_step(&w, epoch, 1, false);
    send_step(&w, 1);
    write_step(&w, epoch, 2, true).sequences[0].token_lag = 2;
    send_step(&w, 2);
    expect_refusal(&w, "frame: token_lag is 2, the limit is 1");
    // A step that draws nothing.
    begin_epoch(&w, ++epoch, 1);
    write_step(&w, epoch, 1, false).sequences[0].flags = 0;
    send_step(&w, 1);
    write_step(&w, epoch, 2, true);
    send_step(&w, 2);
    expect_refusal(&w, "feedback: sample 0 of step 1 is not of sequence 100");
    // Where tokens do not come back.
    begin_epoch(&w, ++epoch, 0);
    write_step(&w, epoch, 1, false);
    send_step(&w, 1);
    write_step(&w, epoch, 2, true);
    send_step(&w, 2);
    expect_refusal(&w, "frame: token_lag is 1, the limit is 0");
    close_world(&w);
}

static void a_frame_that_waits_for_a_token_does_not_outlive_its_epoch(void **state) {
    (void)state;
    struct world w;
    open_world(&w, 2);
    begin_sequence(&w);
    begin_epoch(&w, EPOCH, 1);
    // The last stage is gone before it answers: no result comes any more.
    worker_order(w.stages[1].worker, WORKER_STOP, NULL);
    write_step(&w, EPOCH, 1, false);
    send_step(&w, 1);
    write_step(&w, EPOCH, 2, true);
    send_step(&w, 2);
    struct worker_failed failed;
    wait_for(&w, &w.stages[0], WORKER_FAILED, &failed, sizeof(failed));
    assert_int_equal(failed.failure, WORKER_FAILED_LINK);
    begin_epoch(&w, EPOCH + 1, 1);
    generate_ahead(&w, EPOCH + 1);
    close_world(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_that_come_straight_back_are_the_same),
        cmocka_unit_test(frames_that_name_a_token_that_never_comes_are_refused),
        cmocka_unit_test(a_frame_that_waits_for_a_token_does_not_outlive_its_epoch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
