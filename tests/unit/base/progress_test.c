// Standing still, told from being idle and from not having been looked at.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/port_file.h"
#include "base/progress.h"

enum { PAUSE_MS_MAX = 500 };

static uint64_t look(struct progress *progress, uint64_t count, bool is_owed, uint64_t now_ms) {
    return progress_still_ms(progress, count, is_owed, now_ms, PAUSE_MS_MAX);
}

static void a_count_that_stays_the_same_is_still(void **state) {
    (void)state;
    struct progress progress = {0};
    assert_int_equal(look(&progress, 7, true, 1000000), 0);
    assert_int_equal(look(&progress, 7, true, 1000250), 250);
    assert_int_equal(look(&progress, 7, true, 1000500), 500);
    assert_int_equal(look(&progress, 8, true, 1000750), 0);
    assert_int_equal(look(&progress, 8, true, 1001000), 250);
    assert_int_equal(look(&progress, 7, true, 1001250), 0); // any other count is progress
}

static void nothing_to_do_is_not_still(void **state) {
    (void)state;
    struct progress progress = {0};
    for (uint64_t ms = 0; ms < 10000; ms += 250)
        assert_int_equal(look(&progress, 7, false, ms), 0);
    // What comes now has not waited yet, though the count is the old one.
    assert_int_equal(look(&progress, 7, true, 10000), 0);
    assert_int_equal(look(&progress, 7, true, 10250), 250);
    assert_int_equal(look(&progress, 7, false, 10500), 0);
    assert_int_equal(look(&progress, 7, true, 10750), 0);
}

static void a_looker_that_stood_still_blames_nobody(void **state) {
    (void)state;
    struct progress progress = {0};
    assert_int_equal(look(&progress, 1, true, 1000), 0);
    assert_int_equal(look(&progress, 1, true, 3600000), PAUSE_MS_MAX);
    assert_int_equal(look(&progress, 2, true, 3600250), 0);
}

static void port_file_has_the_port_on_a_line(void **state) {
    (void)state;
    char path[64];
    snprintf(path, sizeof(path), "/tmp/port-file-%d", (int)getpid());
    struct error error = {0};
    assert_int_equal(port_file_write(path, 65535, &error), STATUS_OK);
    char text[16] = "";
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    assert_non_null(fgets(text, sizeof(text), file));
    fclose(file);
    unlink(path);
    assert_string_equal(text, "65535\n");
    assert_int_equal(port_file_write("/nowhere/at/all", 1, &error), STATUS_IO);
    assert_string_equal(error.text, "--port-file /nowhere/at/all: No such file or directory");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_count_that_stays_the_same_is_still),
        cmocka_unit_test(nothing_to_do_is_not_still),
        cmocka_unit_test(a_looker_that_stood_still_blames_nobody),
        cmocka_unit_test(port_file_has_the_port_on_a_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
