#include "coordinator/clock_offset.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

// An exchange with a stage whose clock is `ahead_ns` of ours.
static void exchange(struct clock_offset *offset, int64_t ahead_ns, uint64_t sent_ns,
                     uint64_t there_ns, uint64_t stay_ns, uint64_t back_ns) {
    uint64_t heard_ns = sent_ns + there_ns + (uint64_t)ahead_ns;
    clock_offset_observe(offset, sent_ns, heard_ns, heard_ns + stay_ns,
                         sent_ns + there_ns + stay_ns + back_ns);
}

static void equal_delays_give_the_offset_exactly(void **state) {
    (void)state;
    static const int64_t offsets[] = {0, 1000000000, -900000, 123456789012345};
    for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
        struct clock_offset offset = {0};
        assert_false(clock_offset_is_known(&offset));
        exchange(&offset, offsets[i], 5000000, 300, 500000000, 300);
        assert_true(clock_offset_is_known(&offset));
        assert_int_equal(clock_offset_to_ours(&offset, 7000000 + (uint64_t)offsets[i]), 7000000);
    }
}

static void the_shortest_round_trip_counts(void **state) {
    (void)state;
    struct clock_offset offset = {0};
    exchange(&offset, 1000, 10000000, 4000, 10, 90);
    exchange(&offset, 1000, 20000000, 50, 10, 50);
    exchange(&offset, 1000, 30000000, 100, 10, 9000);
    assert_int_equal(offset.best.offset_ns, 1000);
    assert_int_equal(offset.best.round_trip_ns, 100);
}

static void old_exchanges_are_forgotten_as_clocks_drift(void **state) {
    (void)state;
    struct clock_offset offset = {0};
    exchange(&offset, 1000, 10000000, 1, 10, 1);
    for (uint32_t i = 0; i < CLOCK_OFFSET_SAMPLE_COUNT; i++)
        exchange(&offset, 2000, 20000000, 50, 10, 50);
    assert_int_equal(offset.best.offset_ns, 2000);
}

static void impossible_times_are_ignored(void **state) {
    (void)state;
    struct clock_offset offset = {0};
    clock_offset_observe(&offset, 100, 50, 60, 90);                  // heard before it was sent
    clock_offset_observe(&offset, 100, 60, 50, 200);                 // answered before it heard
    clock_offset_observe(&offset, 100, 50, 500, 200);                // a stay longer than the trip
    clock_offset_observe(&offset, 100, UINT64_MAX, UINT64_MAX, 200); // beyond any clock
    assert_false(clock_offset_is_known(&offset));
    exchange(&offset, 5000, 1000, 10, 10, 10);
    assert_int_equal(clock_offset_to_ours(&offset, 1), 0); // before our start
}

static void a_shared_clock_needs_no_exchange(void **state) {
    (void)state;
    struct clock_offset offset = {.is_same_clock = true};
    assert_true(clock_offset_is_known(&offset));
    exchange(&offset, 77, 1000, 10, 10, 10);
    assert_int_equal(clock_offset_to_ours(&offset, 1234), 1234);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_delays_give_the_offset_exactly),
        cmocka_unit_test(the_shortest_round_trip_counts),
        cmocka_unit_test(old_exchanges_are_forgotten_as_clocks_drift),
        cmocka_unit_test(impossible_times_are_ignored),
        cmocka_unit_test(a_shared_clock_needs_no_exchange),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
