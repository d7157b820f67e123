#include "stage/engine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// The demo model over one or more stages, fed with frames as the coordinator would write them.

enum { STAGE_COUNT_MAX = 4, SEQUENCE_COUNT = 4, ROW_COUNT_MAX = 128, TOP_COUNT = 3 };

static const char MODEL[] = STAGECOACH_SOURCE_DIR "/deploy/demo-model/checkpoint";

struct fixture {
    struct backend *backend;
    struct model_config config;
    struct engine *engines[STAGE_COUNT_MAX];
    uint32_t stage_count;
    enum load_format load_format;
    struct frame *frames[STAGE_COUNT_MAX + 1];
    uint64_t step;
};

static struct assignment assignment_of(const struct fixture *f, uint32_t index, uint32_t count) {
    struct assignment a = {
        .epoch = 7,
        .stage_index = index,
        .stage_count = count,
        .layer_first = index * f->config.layer_count / count,
        .layer_count = f->config.layer_count / count,
        .model_digest = f->config.digest,
        .activation_dtype = DTYPE_F32,
        .kv_dtype = DTYPE_BF16,
        .kv_block_count = 16,
        .kv_block_positions = KV_BLOCK_POSITION_COUNT,
        .row_count_max = ROW_COUNT_MAX,
        .sequence_count_max = SEQUENCE_COUNT,
        .credit_count = 2,
        .position_count_max = 128,
        .load_format = f->load_format,
    };
    snprintf(a.model_path, sizeof(a.model_path), "%s", MODEL);
    return a;
}

static void open_fixture_with(struct fixture *f, uint32_t stage_count,
                              enum load_format load_format) {
    memset(f, 0, sizeof(*f));
    f->stage_count = stage_count;
    f->load_format = load_format;
    struct error error = {0};
    struct backend_config backend = {.thread_count = 1, .variant = "auto"};
    assert_int_equal(backend_cpu_open(&backend, &f->backend, &error), STATUS_OK);
    assert_int_equal(model_config_read(MODEL, &f->config, &error), STATUS_OK);
    for (uint32_t i = 0; i < stage_count; i++) {
        assert_int_equal(engine_open(f->backend, clock_system(), &f->engines[i]), STATUS_OK);
        struct assignment a = assignment_of(f, i, stage_count);
        struct engine_sizes sizes;
        enum status status = engine_load(f->engines[i], &a, NULL, NULL, &sizes, &error);
        assert_string_equal(error.text, "");
        assert_int_equal(status, STATUS_OK);
    }
    for (uint32_t i = 0; i <= stage_count; i++)
        assert_int_equal(frame_open(engine_frame_bytes(f->engines[0]), &f->frames[i]), STATUS_OK);
}

static void open_fixture(struct fixture *f, uint32_t stage_count) {
    open_fixture_with(f, stage_count, LOAD_FORMAT_SAFETENSORS);
}

static void close_fixture(struct fixture *f) {
    for (uint32_t i = 0; i <= f->stage_count; i++)
        frame_close(f->frames[i]);
    for (uint32_t i = 0; i < f->stage_count; i++)
        engine_close(f->engines[i]);
    backend_close(f->backend);
}

// Sequence i: other tokens, sampling, biases, history and log-probabilities than its neighbours.
static uint32_t prompt_count_of(uint32_t i) {
    return 3 + 11 * i;
}

static void write_sequence(const struct frame_view *view, struct frame_sequence *s, uint32_t i,
                           uint32_t slot_row, uint32_t slot_block, uint32_t slot_entry) {
    *s = (struct frame_sequence){
        .sequence_id = 100 + i,
        .seed = 5000 + i,
        .row_first = slot_row,
        .row_count = prompt_count_of(i),
        .block_first = slot_block,
        .block_count = 2,
        .flags = FRAME_SAMPLE | (i % 2 == 1 ? FRAME_LOGPROBS : 0),
        .bias_first = slot_entry,
        .bias_count = 2,
        .history_first = slot_entry,
        .history_count = 2,
        .top_logprob_count = TOP_COUNT,
        .temperature = i == 0 ? 0 : 1.5f,
        .top_p = 1,
        .repetition_penalty = 1 + 0.5f * (float)i,
        .presence_penalty = 0.5f,
    };
    s->block_count = (s->row_count + KV_BLOCK_POSITION_COUNT - 1) / KV_BLOCK_POSITION_COUNT;
    for (uint32_t r = 0; r < s->row_count; r++)
        view->tokens[slot_row + r] = (17 * i + 5 * r) % 500;
    for (uint32_t b = 0; b < s->block_count; b++)
        view->blocks[slot_block + b] = 2 * i + b;
    for (uint32_t e = 0; e < 2; e++) {
        view->biases[slot_entry + e] = (struct frame_bias){40 + 10 * i + e, 3.0f};
        view->history[slot_entry + e] = (struct frame_history){60 + 10 * i + e, e};
    }
}

// One microbatch of the sequences whose bit is in `mask`, through all stages.
static struct frame_view run(struct fixture *f, uint32_t mask) {
    struct frame_header wanted = {.kind = FRAME_STEP, .epoch = 7, .step = ++f->step};
    for (uint32_t i = 0; i < SEQUENCE_COUNT; i++) {
        if (!(mask & 1u << i)) continue;
        uint32_t rows = prompt_count_of(i);
        wanted.sequence_count++;
        wanted.row_count += rows;
        wanted.block_count += (rows + KV_BLOCK_POSITION_COUNT - 1) / KV_BLOCK_POSITION_COUNT;
        wanted.bias_count += 2;
        wanted.history_count += 2;
    }
    struct frame_view view;
    assert_int_equal(frame_format(f->frames[0], &wanted, &view), STATUS_OK);
    uint32_t row = 0, block = 0, slot = 0;
    for (uint32_t i = 0; i < SEQUENCE_COUNT; i++) {
        if (!(mask & 1u << i)) continue;
        struct frame_sequence *s = &view.sequences[slot];
        write_sequence(&view, s, i, row, block, 2 * slot);
        row += s->row_count;
        block += s->block_count;
        slot++;
    }
    for (uint32_t stage = 0; stage < f->stage_count; stage++) {
        struct error error = {0};
        struct frame_view in, out;
        enum status status = engine_check(f->engines[stage], f->frames[stage], &in, &error);
        assert_string_equal(error.text, "");
        assert_int_equal(status, STATUS_OK);
        engine_step(f->engines[stage], &in, f->frames[stage + 1], &out);
    }
    struct frame_limits limits = {.epoch = 7,
                                  .row_count_max = ROW_COUNT_MAX,
                                  .sequence_count_max = SEQUENCE_COUNT,
                                  .position_count_max = 128,
                                  .kv_block_count = 16,
                                  .vocabulary_size = f->config.vocabulary_size,
                                  .kind = FRAME_RESULT};
    struct frame_view result;
    assert_int_equal(frame_parse(f->frames[f->stage_count], &limits, &result, NULL), STATUS_OK);
    return result;
}

struct drawn {
    struct frame_sample sample;
    struct frame_top tops[TOP_COUNT];
};

static void keep(const struct frame_view *result, uint32_t index, struct drawn *out) {
    memset(out, 0, sizeof(*out));
    out->sample = result->samples[index];
    memcpy(out->tops, &result->tops[out->sample.top_first],
           out->sample.top_count * sizeof(out->tops[0]));
    out->sample.top_first = 0;
}

static void check_draws(enum load_format load_format) {
    struct drawn expected[SEQUENCE_COUNT];
    for (uint32_t stage_count = 1; stage_count <= STAGE_COUNT_MAX; stage_count *= 2) {
        struct fixture f;
        open_fixture_with(&f, stage_count, load_format);
        for (uint32_t i = 0; i < SEQUENCE_COUNT; i++) {
            struct frame_view result = run(&f, 1u << i);
            assert_int_equal(result.header->sample_count, 1);
            assert_int_equal(result.samples[0].sequence_id, 100 + i);
            assert_int_equal(result.samples[0].top_count, i % 2 == 1 ? TOP_COUNT : 0);
            struct drawn drawn;
            keep(&result, 0, &drawn);
            if (stage_count == 1) expected[i] = drawn;
            assert_memory_equal(&drawn, &expected[i], sizeof(drawn));
        }
        struct frame_view result = run(&f, (1u << SEQUENCE_COUNT) - 1);
        assert_int_equal(result.header->sample_count, SEQUENCE_COUNT);
        for (uint32_t i = 0; i < SEQUENCE_COUNT; i++) {
            struct drawn drawn;
            keep(&result, i, &drawn);
            assert_memory_equal(&drawn, &expected[i], sizeof(drawn));
        }
        close_fixture(&f);
    }
}

static void engine_draws_the_same_for_sequences_alone_and_together_over_any_stages(void **state) {
    (void)state;
    check_draws(LOAD_FORMAT_SAFETENSORS);
}

static void engine_draws_the_same_over_any_stages_with_dummy_weights(void **state) {
    (void)state;
    check_draws(LOAD_FORMAT_DUMMY);
}

static void engine_drops_frames_of_another_epoch_and_refuses_wrong_ones(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, 1);
    struct frame_view result = run(&f, 1);
    struct drawn before, after;
    keep(&result, 0, &before);
    struct frame_header *header = (struct frame_header *)f.frames[0]->data;
    struct error error = {0};
    header->epoch = 8;
    struct frame_view view;
    assert_int_equal(engine_check(f.engines[0], f.frames[0], &view, &error), STATUS_UNAVAILABLE);
    header->epoch = 7;
    header->row_count++;
    assert_int_equal(engine_check(f.engines[0], f.frames[0], &view, &error), STATUS_INVALID);
    result = run(&f, 1);
    keep(&result, 0, &after);
    assert_memory_equal(&before, &after, sizeof(before));
    close_fixture(&f);
}

static bool give_up(void *ctx, uint64_t bytes_done, uint64_t bytes_total) {
    (void)ctx, (void)bytes_done, (void)bytes_total;
    return false;
}

static void engine_keeps_layers_that_are_loaded_for_the_next_epoch(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, 2);
    struct assignment a = assignment_of(&f, 0, 2);
    a.epoch = 8;
    struct engine_sizes sizes;
    // A progress function that gives up: only a load calls it.
    assert_int_equal(engine_load(f.engines[0], &a, give_up, NULL, &sizes, NULL), STATUS_OK);
    assert_true(sizes.weight_bytes > 0 && sizes.mapped_bytes >= sizes.weight_bytes);
    a.layer_first++;
    assert_int_equal(engine_load(f.engines[0], &a, give_up, NULL, &sizes, NULL), STATUS_CANCELLED);
    close_fixture(&f);
}

static void engine_loads_again_when_weights_come_from_elsewhere(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, 1);
    struct frame_view result = run(&f, 1);
    struct drawn from_files, made_up;
    keep(&result, 0, &from_files);
    struct assignment a = assignment_of(&f, 0, 1);
    a.load_format = LOAD_FORMAT_DUMMY;
    struct engine_sizes sizes;
    assert_int_equal(engine_load(f.engines[0], &a, NULL, NULL, &sizes, NULL), STATUS_OK);
    result = run(&f, 1);
    keep(&result, 0, &made_up);
    assert_memory_not_equal(&from_files, &made_up, sizeof(made_up));
    a.weight_format = WEIGHT_FORMAT_INT8;
    assert_int_equal(engine_load(f.engines[0], &a, give_up, NULL, &sizes, NULL), STATUS_CANCELLED);
    close_fixture(&f);
}

static bool give_up_at_last(void *ctx, uint64_t bytes_done, uint64_t bytes_total) {
    int *calls_with_all = ctx;
    return bytes_done < bytes_total || ++*calls_with_all < 2;
}

// int8: a byte a weight and its scales, other tokens' probabilities, and for each format its own.
static void engine_computes_with_int8_weights(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, 1);
    struct frame_view result = run(&f, 2);
    struct drawn drawn[WEIGHT_FORMAT_COUNT];
    keep(&result, 0, &drawn[WEIGHT_FORMAT_CHECKPOINT]);
    struct assignment a = assignment_of(&f, 0, 1);
    struct engine_sizes as_stored, sizes;
    assert_int_equal(engine_load(f.engines[0], &a, NULL, NULL, &as_stored, NULL), STATUS_OK);
    for (int format = WEIGHT_FORMAT_INT8; format < WEIGHT_FORMAT_COUNT; format++) {
        a.weight_format = (enum weight_format)format;
        assert_int_equal(engine_load(f.engines[0], &a, NULL, NULL, &sizes, NULL), STATUS_OK);
        assert_true(sizes.weight_bytes != as_stored.weight_bytes);
        result = run(&f, 2);
        keep(&result, 0, &drawn[format]);
    }
    assert_memory_not_equal(&drawn[0], &drawn[1], sizeof(drawn[0]));
    assert_memory_not_equal(&drawn[0], &drawn[2], sizeof(drawn[0]));
    assert_memory_not_equal(&drawn[1], &drawn[2], sizeof(drawn[0]));
    a = assignment_of(&f, 0, 1);
    a.weight_format = WEIGHT_FORMAT_INT8;
    int calls_with_all = 0;
    struct error error;
    assert_int_equal(
        engine_load(f.engines[0], &a, give_up_at_last, &calls_with_all, &sizes, &error),
        STATUS_CANCELLED);
    assert_non_null(strstr(error.text, "quantizing"));
    assert_int_equal(engine_load(f.engines[0], &a, NULL, NULL, &sizes, NULL), STATUS_OK);
    result = run(&f, 2);
    struct drawn again;
    keep(&result, 0, &again);
    assert_memory_equal(&again, &drawn[WEIGHT_FORMAT_INT8], sizeof(again));
    close_fixture(&f);
}

static void engine_refuses_an_assignment_by_the_name_of_its_field(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f, 1);
    for (int i = 0; i < 14; i++) {
        struct assignment a = assignment_of(&f, 0, 1);
        const char *field = NULL;
        switch (i) {
        case 0:
            a.stage_count = 0, field = "stage_count";
            break;
        case 1:
            a.stage_index = 1, field = "stage_index";
            break;
        case 2:
            a.layer_count = 9, field = "layer_count";
            break;
        case 3:
            a.layer_first = 1, field = "layer_first";
            break;
        case 4:
            a.activation_dtype = DTYPE_F16, field = "activation_dtype";
            break;
        case 5:
            a.kv_dtype = (enum dtype)9, field = "kv_dtype";
            break;
        case 6:
            a.kv_block_count = 0, field = "kv_block_count";
            break;
        case 7:
            a.kv_block_positions = 16, field = "kv_block_positions";
            break;
        case 8:
            a.row_count_max = 1 << 20, field = "row_count_max";
            break;
        case 9:
            a.credit_count = 65, field = "credit_count";
            break;
        case 10:
            a.position_count_max = 513, field = "position_count_max";
            break;
        case 11:
            a.model_digest++, field = "config.json";
            break;
        case 12:
            a.load_format = (enum load_format)LOAD_FORMAT_COUNT, field = "load_format";
            break;
        case 13:
            a.weight_format = (enum weight_format)WEIGHT_FORMAT_COUNT, field = "weight_format";
            break;
        }
        struct engine_sizes sizes;
        struct error error = {0};
        enum status status = engine_load(f.engines[0], &a, NULL, NULL, &sizes, &error);
        assert_int_equal(status, STATUS_INVALID);
        if (strstr(error.text, field) == NULL) fail_msg("%s: %s", field, error.text);
    }
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(engine_draws_the_same_for_sequences_alone_and_together_over_any_stages),
        cmocka_unit_test(engine_draws_the_same_over_any_stages_with_dummy_weights),
        cmocka_unit_test(engine_loads_again_when_weights_come_from_elsewhere),
        cmocka_unit_test(engine_drops_frames_of_another_epoch_and_refuses_wrong_ones),
        cmocka_unit_test(engine_keeps_layers_that_are_loaded_for_the_next_epoch),
        cmocka_unit_test(engine_computes_with_int8_weights),
        cmocka_unit_test(engine_refuses_an_assignment_by_the_name_of_its_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
