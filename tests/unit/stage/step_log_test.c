#include "stage/step_log.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static struct step_record record_of(uint64_t step) {
    return (struct step_record){.epoch = 3,
                                .step = step,
                                .received_ns = step * 10,
                                .begin_ns = step * 10 + 1,
                                .end_ns = step * 10 + 2};
}

static void assert_is(const struct step_record *record, uint64_t step) {
    assert_int_equal(record->epoch, 3);
    assert_int_equal(record->step, step);
    assert_int_equal(record->received_ns, step * 10);
    assert_int_equal(record->begin_ns, step * 10 + 1);
    assert_int_equal(record->end_ns, step * 10 + 2);
}

static void records_come_out_in_order_and_in_pieces(void **state) {
    (void)state;
    struct step_log *log = calloc(1, sizeof(*log));
    struct step_record records[8];
    assert_int_equal(step_log_take(log, records, 8), 0);
    for (uint64_t step = 1; step <= 5; step++) {
        struct step_record record = record_of(step);
        step_log_write(log, &record);
    }
    assert_int_equal(step_log_count(log), 5);
    assert_int_equal(step_log_take(log, records, 3), 3);
    for (uint32_t i = 0; i < 3; i++)
        assert_is(&records[i], i + 1);
    assert_int_equal(step_log_take(log, records, 8), 2);
    assert_is(&records[1], 5);
    assert_int_equal(step_log_count(log), 0);
    free(log);
}

static void a_full_log_keeps_the_oldest(void **state) {
    (void)state;
    struct step_log *log = calloc(1, sizeof(*log));
    for (uint64_t step = 1; step <= STEP_LOG_COUNT_MAX + 10; step++) {
        struct step_record record = record_of(step);
        step_log_write(log, &record);
    }
    assert_int_equal(step_log_count(log), STEP_LOG_COUNT_MAX);
    struct step_record record;
    assert_int_equal(step_log_take(log, &record, 1), 1);
    assert_is(&record, 1);
    record = record_of(9999);
    step_log_write(log, &record); // there is room for one again
    for (uint64_t step = 2; step <= STEP_LOG_COUNT_MAX; step++) {
        assert_int_equal(step_log_take(log, &record, 1), 1);
        assert_is(&record, step);
    }
    assert_int_equal(step_log_take(log, &record, 1), 1);
    assert_is(&record, 9999);
    assert_int_equal(step_log_take(log, &record, 1), 0);
    free(log);
}

enum { WRITTEN_COUNT = 200000 };

static void *write_many(void *ctx) {
    for (uint64_t step = 1; step <= WRITTEN_COUNT; step++) {
        struct step_record record = record_of(step);
        step_log_write(ctx, &record);
    }
    return NULL;
}

static void two_threads_never_see_half_a_record(void **state) {
    (void)state;
    struct step_log *log = calloc(1, sizeof(*log));
    pthread_t writer;
    assert_int_equal(pthread_create(&writer, NULL, write_many, log), 0);
    uint64_t last = 0;
    bool is_over = false;
    while (!is_over) {
        is_over = pthread_tryjoin_np(writer, NULL) == 0; // then once more, for the last ones
        struct step_record records[100];
        uint32_t count;
        while ((count = step_log_take(log, records, 100)) > 0)
            for (uint32_t i = 0; i < count; i++) {
                assert_true(records[i].step > last);
                last = records[i].step;
                assert_is(&records[i], last);
            }
    }
    assert_true(last > 0);
    free(log);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_come_out_in_order_and_in_pieces),
        cmocka_unit_test(a_full_log_keeps_the_oldest),
        cmocka_unit_test(two_threads_never_see_half_a_record),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
