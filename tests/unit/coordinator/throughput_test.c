#include "coordinator/throughput.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/limits.h"

// Counts one every `every_ms` from `begin_ms` for `span_ms`.
static void run(struct throughput *t, uint64_t begin_ms, uint64_t span_ms, uint64_t every_ms) {
    for (uint64_t ms = every_ms; ms <= span_ms; ms += every_ms)
        throughput_count(t, begin_ms + ms);
}

static void throughput_says_how_long_so_many_take(void **state) {
    (void)state;
    struct throughput t;
    throughput_init(&t, 5000);
    run(&t, 5000, 4000, 10);
    assert_in_range(throughput_wait_ms(&t, 9000, 100), 950, 1050);
    assert_in_range(throughput_wait_ms(&t, 9000, 1000), 9500, 10500);
}

static void throughput_follows_what_changes(void **state) {
    (void)state;
    struct throughput t;
    throughput_init(&t, 0);
    run(&t, 0, 4000, 100);
    run(&t, 4000, 10000, 10);
    assert_in_range(throughput_wait_ms(&t, 14000, 100), 950, 1100);
    // Nothing ends any more: each look is later and tells a longer time.
    uint32_t soon = throughput_wait_ms(&t, 16000, 100);
    assert_true(soon > 1100);
    assert_true(throughput_wait_ms(&t, 60000, 100) > soon);
}

static void throughput_stays_within_its_range(void **state) {
    (void)state;
    struct throughput t;
    throughput_init(&t, 0);
    // Nothing is known: a guess within the range.
    assert_in_range(throughput_wait_ms(&t, 10, 4), RETRY_MS_MIN, RETRY_MS_MAX);
    run(&t, 0, 5000, 1);
    assert_int_equal(throughput_wait_ms(&t, 5000, 0), RETRY_MS_MIN);
    assert_int_equal(throughput_wait_ms(&t, 5000, 1), RETRY_MS_MIN);
    assert_int_equal(throughput_wait_ms(&t, 5000, UINT32_MAX), RETRY_MS_MAX);
    // Nothing has ended for a long time from the start on.
    throughput_init(&t, 0);
    assert_int_equal(throughput_wait_ms(&t, 100000, 1), RETRY_MS_MAX);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(throughput_says_how_long_so_many_take),
        cmocka_unit_test(throughput_follows_what_changes),
        cmocka_unit_test(throughput_stays_within_its_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
