#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "proto/weight_format.h"

static void weight_format_names_are_read_back(void **state) {
    (void)state;
    for (int i = 0; i < LOAD_FORMAT_COUNT; i++) {
        enum load_format format;
        assert_true(load_format_parse(load_format_name((enum load_format)i), &format));
        assert_int_equal(format, i);
    }
    for (int i = 0; i < WEIGHT_FORMAT_COUNT; i++) {
        enum weight_format format;
        assert_true(weight_format_parse(weight_format_name((enum weight_format)i), &format));
        assert_int_equal(format, i);
    }
}

static void weight_format_refuses_other_words(void **state) {
    (void)state;
    enum load_format load = LOAD_FORMAT_DUMMY;
    enum weight_format weight = WEIGHT_FORMAT_INT8;
    static const char *const words[] = {"", "none", "INT8", "int8 ", "dumm", "safetensors2"};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        assert_false(load_format_parse(words[i], &load));
        assert_false(weight_format_parse(words[i], &weight));
    }
    assert_int_equal(load, LOAD_FORMAT_DUMMY);
    assert_int_equal(weight, WEIGHT_FORMAT_INT8);
    assert_string_equal(load_format_name((enum load_format)7), "none");
    assert_string_equal(weight_format_name((enum weight_format) - 1), "none");
}

// They cross the wire: a peer of another version reads them by number.
static void weight_format_numbers_stay(void **state) {
    (void)state;
    assert_string_equal(load_format_name((enum load_format)0), "safetensors");
    assert_string_equal(load_format_name((enum load_format)1), "dummy");
    assert_string_equal(weight_format_name((enum weight_format)0), "checkpoint");
    assert_string_equal(weight_format_name((enum weight_format)1), "int8");
    assert_string_equal(weight_format_name((enum weight_format)2), "int8-weight-only");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weight_format_names_are_read_back),
        cmocka_unit_test(weight_format_refuses_other_words),
        cmocka_unit_test(weight_format_numbers_stay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
