// The tokens that come back to stage 0, and the frames that wait for them.
#include "stage/feedback.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"

enum { SEQUENCE_COUNT = 3 };

struct fixture {
    struct feedback *feedback;
    struct frame *result, *step;
    struct frame_view view; // of `step`
};

static void open_fixture(struct fixture *f) {
    assert_int_equal(feedback_open(SEQUENCE_COUNT, &f->feedback), STATUS_OK);
    assert_int_equal(frame_open(4096, &f->result), STATUS_OK);
    assert_int_equal(frame_open(4096, &f->step), STATUS_OK);
}

static void close_fixture(struct fixture *f) {
    feedback_close(f->feedback);
    frame_close(f->result);
    frame_close(f->step);
}

static uint32_t token_of(uint64_t step, uint32_t sample) {
    return (uint32_t)(step * 10 + sample);
}

// Sequences 100, 101, ... draw a token each.
static enum status keep(struct fixture *f, uint64_t step, uint32_t sample_count,
                        struct error *error) {
    struct frame_header wanted = {
        .kind = FRAME_RESULT, .epoch = 1, .step = step, .sample_count = sample_count};
    struct frame_view view;
    assert_int_equal(frame_format(f->result, &wanted, &view), STATUS_OK);
    for (uint32_t i = 0; i < sample_count; i++)
        view.samples[i] =
            (struct frame_sample){.sequence_id = 100 + i, .token_id = token_of(step, i)};
    return feedback_keep(f->feedback, &view, error);
}

static void keep_all(struct fixture *f, uint64_t step_first, uint64_t step_last) {
    for (uint64_t step = step_first; step <= step_last; step++)
        assert_int_equal(keep(f, step, SEQUENCE_COUNT, NULL), STATUS_OK);
}

// One row of each sequence; lags[i] 0: its token is known, and is 7.
static void write_step(struct fixture *f, uint64_t step, const uint32_t *lags) {
    struct frame_header wanted = {.kind = FRAME_STEP,
                                  .epoch = 1,
                                  .step = step,
                                  .row_count = SEQUENCE_COUNT,
                                  .sequence_count = SEQUENCE_COUNT};
    assert_int_equal(frame_format(f->step, &wanted, &f->view), STATUS_OK);
    for (uint32_t i = 0; i < SEQUENCE_COUNT; i++) {
        f->view.tokens[i] = 7;
        f->view.sequences[i] = (struct frame_sequence){.sequence_id = 100 + i,
                                                       .row_first = i,
                                                       .row_count = 1,
                                                       .token_lag = lags[i],
                                                       .token_sample = lags[i] > 0 ? i : 0};
    }
}

static void a_frame_waits_until_all_its_tokens_have_come(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f);
    write_step(&f, 5, (const uint32_t[]){0, 0, 0});
    assert_true(feedback_has(f.feedback, &f.view));
    write_step(&f, 5, (const uint32_t[]){0, 1, 3});
    for (uint64_t step = 1; step < 5; step++) {
        assert_false(feedback_has(f.feedback, &f.view));
        keep_all(&f, step, step);
    }
    assert_true(feedback_has(f.feedback, &f.view));
    assert_int_equal(feedback_write(f.feedback, &f.view, NULL), STATUS_OK);
    assert_int_equal(f.view.tokens[0], 7);
    assert_int_equal(f.view.tokens[1], token_of(4, 1));
    assert_int_equal(f.view.tokens[2], token_of(2, 2));
    close_fixture(&f);
}

static void tokens_are_kept_as_long_as_a_frame_may_name_them(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f);
    uint32_t lag = LINK_CREDIT_COUNT_MAX - 1;
    for (uint64_t step = 1; step < 300; step++) {
        if (step > lag) {
            write_step(&f, step, (const uint32_t[]){lag, 1, 2});
            assert_true(feedback_has(f.feedback, &f.view));
            assert_int_equal(feedback_write(f.feedback, &f.view, NULL), STATUS_OK);
            assert_int_equal(f.view.tokens[0], token_of(step - lag, 0));
            assert_int_equal(f.view.tokens[1], token_of(step - 1, 1));
            assert_int_equal(f.view.tokens[2], token_of(step - 2, 2));
        }
        keep_all(&f, step, step);
    }
    close_fixture(&f);
}

static void a_frame_that_names_no_sample_of_its_sequence_is_refused(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f);
    struct error error;
    keep_all(&f, 1, 2);
    assert_int_equal(keep(&f, 3, 1, NULL), STATUS_OK);
    write_step(&f, 4, (const uint32_t[]){1, 2, 2});
    f.view.sequences[1].token_sample = 2; // of sequence 102
    assert_int_equal(feedback_write(f.feedback, &f.view, &error), STATUS_INVALID);
    assert_string_equal(error.text, "feedback: sample 2 of step 2 is not of sequence 101");
    write_step(&f, 4, (const uint32_t[]){1, 1, 2}); // step 3 drew for sequence 100 only
    assert_int_equal(feedback_write(f.feedback, &f.view, &error), STATUS_INVALID);
    assert_string_equal(error.text, "feedback: sample 1 of step 3 is not of sequence 101");
    close_fixture(&f);
}

static void a_token_of_too_long_ago_is_refused(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f);
    struct error error;
    keep_all(&f, 1, 100);
    write_step(&f, 101, (const uint32_t[]){65, 0, 0});
    assert_true(feedback_has(f.feedback, &f.view));
    assert_int_equal(feedback_write(f.feedback, &f.view, &error), STATUS_INVALID);
    assert_string_equal(error.text, "feedback: the samples of step 36 are no longer kept");
    close_fixture(&f);
}

static void results_out_of_order_are_refused(void **state) {
    (void)state;
    struct fixture f;
    open_fixture(&f);
    struct error error;
    assert_int_equal(keep(&f, 2, 1, &error), STATUS_INVALID);
    keep_all(&f, 1, 3);
    assert_int_equal(keep(&f, 3, 1, &error), STATUS_INVALID);
    assert_string_equal(error.text, "feedback: result is of step 3, step 4 is next");
    keep_all(&f, 4, 4);
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_frame_waits_until_all_its_tokens_have_come),
        cmocka_unit_test(tokens_are_kept_as_long_as_a_frame_may_name_them),
        cmocka_unit_test(a_frame_that_names_no_sample_of_its_sequence_is_refused),
        cmocka_unit_test(a_token_of_too_long_ago_is_refused),
        cmocka_unit_test(results_out_of_order_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
