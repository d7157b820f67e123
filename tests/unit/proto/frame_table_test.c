// The tables of frames: every entry is in range and every part follows the one before.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "frame_fixture.h"

// -- sequences ------------------------------------------------------------------------------------

static const struct field sequence_counts[] = {
    FIELD(frame_sequence, row_first),     FIELD(frame_sequence, row_count),
    FIELD(frame_sequence, block_first),   FIELD(frame_sequence, block_count),
    FIELD(frame_sequence, bias_first),    FIELD(frame_sequence, bias_count),
    FIELD(frame_sequence, history_first), FIELD(frame_sequence, history_count),
};

static size_t sequence_offset(uint32_t index, size_t offset) {
    return sizeof(struct frame_header) + index * sizeof(struct frame_sequence) + offset;
}

static void every_part_of_a_sequence_follows_the_one_before(void **state) {
    (void)state;
    random_state = 9;
    struct frame *frame = random_step(&step_limits, 4);
    for (uint32_t index = 0; index < 4; index++) {
        for (size_t i = 0; i < sizeof(sequence_counts) / sizeof(*sequence_counts); i++) {
            size_t offset = sequence_offset(index, sequence_counts[i].offset);
            uint32_t own = (uint32_t)value_at(frame, offset, 4);
            const uint32_t values[] = {
                0,          1,          own - 1,    own + 1,          own + 32,  0x10000000,
                0x20000000, 0x40000000, 0x80000000, UINT32_MAX - own, UINT32_MAX};
            for (size_t j = 0; j < sizeof(values) / sizeof(*values); j++) {
                if (values[j] == own) continue;
                if (parse_with(frame, &step_limits, offset, &values[j], 4) != STATUS_INVALID)
                    fail_msg("sequence %u: %s %u", index, sequence_counts[i].name, values[j]);
            }
        }
    }
    frame_close(frame);
}

// Rows moved from one sequence to another keep all sums: they must not pass by that.
static void parts_that_overlap_are_refused(void **state) {
    (void)state;
    random_state = 10;
    struct frame *frame = random_step(&step_limits, 2);
    struct frame_sequence *s = (struct frame_sequence *)(frame->data + sizeof(struct frame_header));
    struct frame_sequence saved[2] = {s[0], s[1]};
    s[0].row_count += UINT32_MAX; // less by one, in 32 bits, but the rows of the second stay
    s[1].row_count++;
    assert_int_equal(parse(frame, &step_limits), STATUS_INVALID);
    memcpy(s, saved, sizeof(saved));
    s[1].bias_first = 0; // shares the first one's, with a total that is right
    s[1].history_first = 0;
    assert_true(saved[0].bias_count + saved[0].history_count > 0);
    assert_int_equal(parse(frame, &step_limits), STATUS_INVALID);
    s[0] = saved[1];
    s[1] = saved[0];
    assert_int_equal(parse(frame, &step_limits), STATUS_INVALID);
    frame_close(frame);
}

static void positions_stay_below_their_limit_and_fit_their_blocks(void **state) {
    (void)state;
    random_state = 11;
    struct frame *frame = random_step(&step_limits, 3);
    for (uint32_t index = 0; index < 3; index++) {
        size_t offset = sequence_offset(index, offsetof(struct frame_sequence, position_first));
        uint32_t rows = (uint32_t)value_at(
            frame, sequence_offset(index, offsetof(struct frame_sequence, row_count)), 4);
        uint32_t blocks = (uint32_t)value_at(
            frame, sequence_offset(index, offsetof(struct frame_sequence, block_count)), 4);
        bool has_lag =
            value_at(frame, sequence_offset(index, offsetof(struct frame_sequence, token_lag)), 4) >
            0;
        for (uint32_t i = 0; i < 2 * step_limits.position_count_max; i++) {
            uint32_t end = i + rows;
            bool is_valid = end <= step_limits.position_count_max && (end + 31) / 32 == blocks &&
                            (i > 0 || !has_lag);
            assert_int_equal(parse_with(frame, &step_limits, offset, &i, 4),
                             is_valid ? STATUS_OK : STATUS_INVALID);
        }
        const uint32_t wrapping[] = {UINT32_MAX, 0u - rows, 1u - rows, 0x80000000};
        for (size_t i = 0; i < sizeof(wrapping) / sizeof(*wrapping); i++)
            assert_int_equal(parse_with(frame, &step_limits, offset, &wrapping[i], 4),
                             STATUS_INVALID);
    }
    frame_close(frame);
}

static void sampling_parameters_are_in_range(void **state) {
    (void)state;
    static const struct {
        size_t offset;
        float minimum, maximum;
    } floats[] = {
        {offsetof(struct frame_sequence, temperature), 0, 100},
        {offsetof(struct frame_sequence, top_p), 0, 1},
        {offsetof(struct frame_sequence, min_p), 0, 1},
        {offsetof(struct frame_sequence, repetition_penalty), 0.01f, 100},
        {offsetof(struct frame_sequence, presence_penalty), -2, 2},
        {offsetof(struct frame_sequence, frequency_penalty), -2, 2},
    };
    random_state = 12;
    struct frame *frame = random_step(&step_limits, 2);
    for (size_t i = 0; i < sizeof(floats) / sizeof(*floats); i++) {
        size_t offset = sequence_offset(1, floats[i].offset);
        float minimum = floats[i].minimum, maximum = floats[i].maximum;
        const float good[] = {minimum, maximum, (minimum + maximum) / 2};
        const float bad[] = {nextafterf(minimum, -INFINITY),
                             nextafterf(maximum, INFINITY),
                             NAN,
                             -NAN,
                             INFINITY,
                             -INFINITY,
                             3e38f,
                             -3e38f};
        for (size_t j = 0; j < sizeof(good) / sizeof(*good); j++)
            assert_int_equal(parse_with(frame, &step_limits, offset, &good[j], 4), STATUS_OK);
        for (size_t j = 0; j < sizeof(bad) / sizeof(*bad); j++)
            assert_int_equal(parse_with(frame, &step_limits, offset, &bad[j], 4), STATUS_INVALID);
    }
    frame_close(frame);
}

static void sequence_flags_and_counts_are_in_range(void **state) {
    (void)state;
    random_state = 13;
    struct frame *frame = random_step(&step_limits, 2);
    const uint32_t values[] = {0, 1, 2, 3, 4, 5, 19, 20, 21, 0x80000000, UINT32_MAX};
    for (size_t i = 0; i < sizeof(values) / sizeof(*values); i++) {
        uint32_t value = values[i];
        size_t flags = sequence_offset(0, offsetof(struct frame_sequence, flags));
        size_t top = sequence_offset(0, offsetof(struct frame_sequence, top_logprob_count));
        size_t top_k = sequence_offset(0, offsetof(struct frame_sequence, top_k));
        assert_int_equal(parse_with(frame, &step_limits, flags, &value, 4),
                         value <= 3 ? STATUS_OK : STATUS_INVALID);
        assert_int_equal(parse_with(frame, &step_limits, top, &value, 4),
                         value <= REQUEST_TOP_LOGPROB_COUNT_MAX ? STATUS_OK : STATUS_INVALID);
        assert_int_equal(parse_with(frame, &step_limits, top_k, &value, 4), STATUS_OK);
    }
    frame_close(frame);
}

// A STEP of one sequence with one row at `position`.
static struct frame *one_row(uint64_t step, uint32_t position) {
    struct frame_header wanted = {.kind = FRAME_STEP,
                                  .epoch = step_limits.epoch,
                                  .step = step,
                                  .row_count = 1,
                                  .sequence_count = 1,
                                  .block_count = position / 32 + 1,
                                  .hidden_size = step_limits.hidden_size,
                                  .dtype = (uint16_t)step_limits.dtype};
    struct frame *frame;
    struct frame_view view;
    assert_int_equal(frame_open(frame_capacity_bytes(&step_limits), &frame), STATUS_OK);
    assert_int_equal(frame_format(frame, &wanted, &view), STATUS_OK);
    memset(view.payload, 0, view.header->payload_bytes);
    view.sequences[0] = (struct frame_sequence){.row_count = 1,
                                                .position_first = position,
                                                .block_count = wanted.block_count,
                                                .repetition_penalty = 1};
    return frame;
}

static enum status parse_lag(struct frame *frame, const struct frame_limits *limits, uint32_t lag,
                             uint32_t sample) {
    struct frame_sequence *s = (struct frame_sequence *)(frame->data + sizeof(struct frame_header));
    s->token_lag = lag;
    s->token_sample = sample;
    return parse(frame, limits);
}

static void token_of_an_earlier_step_is_of_one_that_is_kept(void **state) {
    (void)state;
    struct frame_limits limits = step_limits;
    uint32_t sample_max = limits.sequence_count_max - 1;
    for (uint64_t step = 1; step <= 20; step++) {
        struct frame *frame = one_row(step, 40);
        for (uint32_t lag = 1; lag <= 25; lag++) {
            bool is_valid = lag < step && lag <= limits.token_lag_max;
            assert_int_equal(parse_lag(frame, &limits, lag, lag % (sample_max + 1)),
                             is_valid ? STATUS_OK : STATUS_INVALID);
        }
        assert_int_equal(parse_lag(frame, &limits, UINT32_MAX, 0), STATUS_INVALID);
        assert_int_equal(parse_lag(frame, &limits, 0, 0), STATUS_OK);
        assert_int_equal(parse_lag(frame, &limits, 0, 1), STATUS_INVALID);
        frame_close(frame);
    }
    struct frame *frame = one_row(20, 40);
    assert_int_equal(parse_lag(frame, &limits, 2, sample_max), STATUS_OK);
    assert_int_equal(parse_lag(frame, &limits, 2, sample_max + 1), STATUS_INVALID);
    limits.token_lag_max = 0; // the configuration has no such tokens
    assert_int_equal(parse_lag(frame, &limits, 1, 0), STATUS_INVALID);
    assert_int_equal(parse_lag(frame, &limits, 0, 0), STATUS_OK);
    frame_close(frame);
    frame = one_row(20, 0); // a sequence begins with a token that is given
    assert_int_equal(parse_lag(frame, &step_limits, 1, 0), STATUS_INVALID);
    frame_close(frame);
}

static void only_a_sequence_of_one_row_awaits_its_token(void **state) {
    (void)state;
    random_state = 17;
    uint32_t refused_count = 0;
    for (int i = 0; i < 50; i++) {
        struct frame *frame = random_step(&step_limits, 6);
        struct frame_header *header = (struct frame_header *)frame->data;
        struct frame_sequence *s = (struct frame_sequence *)(header + 1);
        header->step = 100;
        for (uint32_t index = 0; index < 6; index++) {
            struct frame_sequence saved = s[index];
            s[index].token_lag = 1;
            bool is_valid = saved.row_count == 1 && saved.position_first > 0;
            assert_int_equal(parse(frame, &step_limits), is_valid ? STATUS_OK : STATUS_INVALID);
            refused_count += is_valid ? 0 : 1;
            s[index] = saved;
        }
        frame_close(frame);
    }
    assert_in_range(refused_count, 50, 250);
}

// -- entries --------------------------------------------------------------------------------------

// The u32 at `field` must be below `limit`.
static void expect_below(const struct frame *frame, const struct frame_limits *limits,
                         const void *field, uint32_t limit) {
    size_t offset = (size_t)((const uint8_t *)field - frame->data);
    const uint32_t values[] = {0, limit - 1, limit, limit + 1, 0x80000000, UINT32_MAX};
    for (size_t i = 0; i < sizeof(values) / sizeof(*values); i++)
        assert_int_equal(parse_with(frame, limits, offset, &values[i], 4),
                         values[i] < limit ? STATUS_OK : STATUS_INVALID);
}

static void expect_float(const struct frame *frame, const struct frame_limits *limits,
                         const void *field, float value, enum status expected) {
    size_t offset = (size_t)((const uint8_t *)field - frame->data);
    assert_int_equal(parse_with(frame, limits, offset, &value, 4), expected);
}

static void every_entry_of_a_step_is_in_range(void **state) {
    (void)state;
    random_state = 14;
    const struct frame_limits *limits = &step_limits;
    struct frame *frame = random_step(limits, 6);
    struct frame_view view;
    assert_int_equal(frame_parse(frame, limits, &view, NULL), STATUS_OK);
    const struct frame_header *h = view.header;
    assert_true(h->bias_count > 1 && h->history_count > 1);
    for (uint32_t i = 0; i < h->row_count; i++)
        expect_below(frame, limits, &view.tokens[i], limits->vocabulary_size);
    for (uint32_t i = 0; i < h->block_count; i++)
        expect_below(frame, limits, &view.blocks[i], limits->kv_block_count);
    for (uint32_t i = 0; i < h->history_count; i++)
        expect_below(frame, limits, &view.history[i].token_id, limits->vocabulary_size);
    for (uint32_t i = 0; i < h->bias_count; i++) {
        expect_below(frame, limits, &view.biases[i].token_id, limits->vocabulary_size);
        expect_float(frame, limits, &view.biases[i].bias, NAN, STATUS_INVALID);
        expect_float(frame, limits, &view.biases[i].bias, INFINITY, STATUS_INVALID);
        expect_float(frame, limits, &view.biases[i].bias, -INFINITY, STATUS_INVALID);
        expect_float(frame, limits, &view.biases[i].bias, -3e38f, STATUS_OK);
    }
    frame_close(frame);
}

static void expect_sample_checked(const struct frame *frame, const struct frame_limits *limits,
                                  const struct frame_sample *sample) {
    size_t offset = (size_t)((const uint8_t *)sample - frame->data);
    bool is_drawn = sample->outcome == FRAME_SAMPLE_DRAWN;
    expect_below(frame, limits, &sample->token_id, is_drawn ? limits->vocabulary_size : 1);
    expect_below(frame, limits, &sample->outcome, sample->token_id == 0 ? 2 : 1);
    expect_float(frame, limits, &sample->logprob, NAN, STATUS_INVALID);
    expect_float(frame, limits, &sample->logprob, INFINITY, STATUS_INVALID);
    expect_float(frame, limits, &sample->logprob, -INFINITY, STATUS_OK);
    static const struct field counts[] = {
        FIELD(frame_sample, top_first),
        FIELD(frame_sample, top_count),
        FIELD(frame_sample, reserved),
    };
    for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++) {
        uint32_t own = (uint32_t)value_at(frame, offset + counts[i].offset, 4);
        const uint32_t values[] = {0, 1, own + 1, own - 1, 20, 21, 0x80000000, UINT32_MAX};
        for (size_t j = 0; j < sizeof(values) / sizeof(*values); j++)
            assert_int_equal(parse_with(frame, limits, offset + counts[i].offset, &values[j], 4),
                             values[j] == own ? STATUS_OK : STATUS_INVALID);
    }
}

static void every_entry_of_a_result_is_in_range(void **state) {
    (void)state;
    random_state = 15;
    struct frame_limits limits = limits_of(FRAME_RESULT, false);
    struct frame *frame = random_result(&limits, 6);
    struct frame_view view;
    assert_int_equal(frame_parse(frame, &limits, &view, NULL), STATUS_OK);
    assert_true(view.header->top_count > 1);
    for (uint32_t i = 0; i < view.header->sample_count; i++)
        expect_sample_checked(frame, &limits, &view.samples[i]);
    for (uint32_t i = 0; i < view.header->top_count; i++) {
        expect_below(frame, &limits, &view.tops[i].token_id, limits.vocabulary_size);
        expect_float(frame, &limits, &view.tops[i].logprob, NAN, STATUS_INVALID);
        expect_float(frame, &limits, &view.tops[i].logprob, INFINITY, STATUS_INVALID);
        expect_float(frame, &limits, &view.tops[i].logprob, -0.5f, STATUS_OK);
    }
    frame_close(frame);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_part_of_a_sequence_follows_the_one_before),
        cmocka_unit_test(parts_that_overlap_are_refused),
        cmocka_unit_test(positions_stay_below_their_limit_and_fit_their_blocks),
        cmocka_unit_test(sampling_parameters_are_in_range),
        cmocka_unit_test(sequence_flags_and_counts_are_in_range),
        cmocka_unit_test(token_of_an_earlier_step_is_of_one_that_is_kept),
        cmocka_unit_test(only_a_sequence_of_one_row_awaits_its_token),
        cmocka_unit_test(every_entry_of_a_step_is_in_range),
        cmocka_unit_test(every_entry_of_a_result_is_in_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
