// The trace id of a traceparent header, by the grammar of W3C Trace Context.
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/access_log.h"

#define TRACE "4bf92f3577b34da6a3ce929d0e0e4736"
#define PARENT "00f067aa0ba902b7"
#define ZEROS "00000000000000000000000000000000"

static void trace_id_is_taken_from_a_good_header(void **state) {
    (void)state;
    static const char *const good[] = {
        "00-" TRACE "-" PARENT "-01",
        "00-" TRACE "-" PARENT "-00",
        "cc-" TRACE "-" PARENT "-01",
        "cc-" TRACE "-" PARENT "-01-what-the-future-has",
    };
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        char trace_id[TRACE_ID_BYTES] = "before";
        trace_id_parse(good[i], trace_id);
        assert_string_equal(trace_id, TRACE);
    }
}

static void trace_id_of_a_header_that_is_not_to_the_letter_is_none(void **state) {
    (void)state;
    static const char *const bad[] = {
        "",
        "00",
        "00-",
        "00-" TRACE,
        "00-" TRACE "-" PARENT,
        "00-" TRACE "-" PARENT "-",
        "00-" TRACE "-" PARENT "-1",
        "00-" TRACE "-" PARENT "-0g",
        "00-" TRACE "-" PARENT "-01-more",
        "00-" TRACE "-" PARENT "-01 ",
        "ff-" TRACE "-" PARENT "-01",
        "0-" TRACE "-" PARENT "-001",
        "0x-" TRACE "-" PARENT "-01",
        "cc-" TRACE "-" PARENT "-01x",
        "00-" ZEROS "-" PARENT "-01",
        "00-" TRACE "-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-" PARENT "-01",
        "00-" TRACE "0-" PARENT "-01",
        "00-" TRACE "-" PARENT "0-01",
        "00_" TRACE "_" PARENT "_01",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        char trace_id[TRACE_ID_BYTES] = "before";
        trace_id_parse(bad[i], trace_id);
        if (trace_id[0] != '\0') fail_msg("'%s' gives '%s'", bad[i], trace_id);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trace_id_is_taken_from_a_good_header),
        cmocka_unit_test(trace_id_of_a_header_that_is_not_to_the_letter_is_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
