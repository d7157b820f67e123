#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"

// A copy that ends exactly where the text ends, so that a sanitizer sees what is read beyond.
static char *exact_copy(const char *text, size_t size_bytes) {
    char *copy = malloc(size_bytes == 0 ? 1 : size_bytes);
    assert_non_null(copy);
    memcpy(copy, text, size_bytes);
    return copy;
}

static bool skips_bytes(const char *text, size_t size_bytes, struct error *error) {
    char *copy = exact_copy(text, size_bytes);
    struct json json;
    json_init(&json, copy, size_bytes);
    json_skip(&json);
    json_end(&json);
    *error = json.error;
    bool failed = json.failed;
    json_fini(&json);
    free(copy);
    return !failed;
}

static bool skips(const char *text, struct error *error) {
    return skips_bytes(text, strlen(text), error);
}

static void json_takes_every_kind_of_value(void **state) {
    (void)state;
    static const char text[] = " {\"a\": [1, -2, true, false, null, \"x\"], \"b\":{ } ,\"c\":[]}\n";
    char *copy = exact_copy(text, strlen(text));
    struct json json;
    struct json_text key;
    json_init(&json, copy, strlen(text));
    assert_int_equal(json_peek(&json), JSON_KIND_OBJECT);
    json_object_begin(&json);
    assert_true(json_object_next(&json, &key));
    assert_true(json_text_equals(key, "a"));
    json_array_begin(&json);
    assert_true(json_array_next(&json));
    assert_int_equal(json_peek(&json), JSON_KIND_NUMBER);
    assert_false(json_take_null(&json));
    assert_int_equal(json_take_integer(&json, 0, 10), 1);
    assert_true(json_array_next(&json));
    assert_int_equal(json_take_integer(&json, -10, 10), -2);
    assert_true(json_array_next(&json));
    assert_int_equal(json_peek(&json), JSON_KIND_BOOL);
    assert_true(json_take_bool(&json));
    assert_true(json_array_next(&json));
    assert_false(json_take_bool(&json));
    assert_true(json_array_next(&json));
    assert_int_equal(json_peek(&json), JSON_KIND_NULL);
    assert_true(json_take_null(&json));
    assert_true(json_array_next(&json));
    assert_int_equal(json_peek(&json), JSON_KIND_STRING);
    assert_true(json_text_equals(json_take_string(&json), "x"));
    assert_false(json_array_next(&json));
    assert_true(json_object_next(&json, &key));
    assert_true(json_text_equals(key, "b"));
    json_skip(&json);
    assert_true(json_object_next(&json, &key));
    assert_int_equal(json_peek(&json), JSON_KIND_ARRAY);
    json_skip(&json);
    assert_false(json_object_next(&json, &key));
    json_end(&json);
    assert_false(json.failed);
    json_fini(&json);
    free(copy);
}

static void json_decodes_escapes_to_utf8(void **state) {
    (void)state;
    static const char text[] =
        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t \\u0041\\u00e9\\u20AC\\ud83d\\ude42\\u0000"
        "\xc3\xa9z\"";
    static const char expected[] =
        "\"\\/\b\f\n\r\t A\xc3\xa9\xe2\x82\xac\xf0\x9f\x99\x82\0\xc3\xa9z";
    struct json json;
    json_init(&json, text, strlen(text));
    struct json_text got = json_take_string(&json);
    assert_false(json.failed);
    assert_int_equal(got.size_bytes, sizeof(expected) - 1);
    assert_memory_equal(got.data, expected, sizeof(expected) - 1);
    json_fini(&json);
}

static void json_accepts_what_rfc_8259_allows(void **state) {
    (void)state;
    static const char *const good[] = {"0",
                                       "-0",
                                       "10",
                                       "1.5",
                                       "-1.25e+10",
                                       "1E9",
                                       "0e-1",
                                       "\"\"",
                                       "[]",
                                       "{}",
                                       "[[[]]]",
                                       "[1,2]",
                                       "\t\r\n 1 \n",
                                       "{\"\":1}",
                                       "[null]",
                                       "\"\x7f\"",
                                       "\"\\uD834\\uDD1E\"",
                                       "\"\xf4\x8f\xbf\xbf\"",
                                       "{\"a\":{\"b\":[{},[],{\"c\":[]}]},\"d\":1}"};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        struct error error;
        if (!skips(good[i], &error)) fail_msg("%s: %s", good[i], error.text);
    }
}

static void json_refuses_what_rfc_8259_does_not_allow(void **state) {
    (void)state;
    static const char *const bad[] = {
        "", " ", "01", "-", "+1", "1.", ".5", "1e", "1e+", "0x10", "NaN", "Infinity", "-a", "tru",
        "truex", "nul", "[1,]", "[,1]", "[1 2]", "[1", "]", "{\"a\"}", "{\"a\":}", "{\"a\" 1}",
        "{a:1}", "{\"a\":1,}", "{\"a\":1 \"b\":2}", "{1:2}", "{", "}", "[}", "{]", "'a'", "\"a",
        "\"\\\"", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\n\"", "\"\x01\"", "\"\\", "1 2",
        "[] []", "// c\n1", "[1]x", "\"\\ud800\"", "\"\\udc00\"", "\"\\ud800\\u0041\"",
        "\"\\ud800\\ud800\"", "\"\\ud800x\"", "\"\\u\"",
        // UTF-8: a lone continuation, cut short, overlong, a surrogate, beyond U+10FFFF.
        "\"\x80\"", "\"\xc3\"", "\"\xc0\xaf\"", "\"\xe0\x80\xaf\"", "\"\xed\xa0\x80\"",
        "\"\xf4\x90\x80\x80\"", "\"\xf5\x80\x80\x80\"", "\"\xe2\x82\"", "\xff"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct error error;
        if (skips(bad[i], &error)) fail_msg("accepted: %s", bad[i]);
        assert_memory_equal(error.text, "line ", 5);
    }
    struct error error;
    assert_false(skips_bytes("[1]\0", 4, &error));
    assert_false(skips_bytes("\"a\0b\"", 5, &error));
}

static void json_refuses_deep_nesting(void **state) {
    (void)state;
    char text[2 * (JSON_DEPTH_MAX + 1) + 1];
    struct error error;
    for (int depth = JSON_DEPTH_MAX; depth <= JSON_DEPTH_MAX + 1; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        text[2 * depth] = '\0';
        assert_int_equal(skips(text, &error), depth <= JSON_DEPTH_MAX);
    }
    assert_non_null(strstr(error.text, "deeper than 64"));
}

static void json_names_line_and_column(void **state) {
    (void)state;
    struct error error;
    assert_false(skips("{\n  \"a\": 1,\n  \"b\": x\n}", &error));
    assert_string_equal(error.text, "line 3, column 8: expected a value, found 'x'");
    assert_false(skips("[1", &error));
    assert_string_equal(error.text,
                        "line 1, column 3: expected a comma or ']', found the end of the text");
}

static int64_t integer(const char *text, int64_t minimum, int64_t maximum, bool *failed_out) {
    struct json json;
    json_init(&json, text, strlen(text));
    int64_t value = json_take_integer(&json, minimum, maximum);
    *failed_out = json.failed;
    json_fini(&json);
    return value;
}

static void json_integer_keeps_its_bounds(void **state) {
    (void)state;
    bool failed;
    assert_int_equal(integer("9223372036854775807", INT64_MIN, INT64_MAX, &failed), INT64_MAX);
    assert_false(failed);
    assert_true(integer("-9223372036854775808", INT64_MIN, INT64_MAX, &failed) == INT64_MIN);
    assert_false(failed);
    static const char *const bad[] = {
        "9223372036854775808",    "-9223372036854775809", "11", "-1", "1.0", "1e0", "\"1\"", "true",
        "99999999999999999999999"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        bool wide = strlen(bad[i]) > 10;
        assert_int_equal(integer(bad[i], wide ? INT64_MIN : 0, wide ? INT64_MAX : 10, &failed), 0);
        if (!failed) fail_msg("accepted: %s", bad[i]);
    }
}

static void json_does_nothing_after_a_mistake(void **state) {
    (void)state;
    static const char text[] = "[1, x, \"later\"]";
    struct json json;
    struct json_text key;
    json_init(&json, text, strlen(text));
    json_array_begin(&json);
    assert_true(json_array_next(&json));
    json_skip(&json);
    json_fail(&json, "number %d is wrong", 7);
    assert_true(json.failed);
    assert_string_equal(json.error.text, "line 1, column 3: number 7 is wrong");
    size_t offset = json.offset;
    json_fail(&json, "another");
    assert_false(json_array_next(&json));
    assert_false(json_object_next(&json, &key));
    assert_int_equal(json_take_string(&json).size_bytes, 0);
    assert_int_equal(json_take_integer(&json, 5, 6), 0);
    assert_false(json_take_bool(&json));
    assert_false(json_take_null(&json));
    assert_int_equal(json_peek(&json), JSON_KIND_END);
    json_skip(&json);
    json_object_begin(&json);
    json_array_begin(&json);
    json_end(&json);
    assert_int_equal(json.offset, offset);
    assert_string_equal(json.error.text, "line 1, column 3: number 7 is wrong");
    json_fini(&json);
}

static void json_returns_to_marked_values(void **state) {
    (void)state;
    static const char text[] = "{\"late\": [1, 2], \"early\": 3}";
    struct json json;
    struct json_text key;
    size_t late = 0, early = 0;
    json_init(&json, text, strlen(text));
    json_object_begin(&json);
    while (json_object_next(&json, &key)) {
        *(json_text_equals(key, "late") ? &late : &early) = json_mark(&json);
        json_skip(&json);
    }
    json_return(&json, early);
    assert_int_equal(json_take_integer(&json, 0, 9), 3);
    json_return(&json, late);
    json_array_begin(&json);
    assert_true(json_array_next(&json));
    assert_int_equal(json_take_integer(&json, 0, 9), 1);
    assert_true(json_array_next(&json));
    assert_int_equal(json_take_integer(&json, 0, 9), 2);
    assert_false(json_array_next(&json));
    assert_false(json.failed);
    json_fini(&json);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_takes_every_kind_of_value),
        cmocka_unit_test(json_decodes_escapes_to_utf8),
        cmocka_unit_test(json_accepts_what_rfc_8259_allows),
        cmocka_unit_test(json_refuses_what_rfc_8259_does_not_allow),
        cmocka_unit_test(json_refuses_deep_nesting),
        cmocka_unit_test(json_names_line_and_column),
        cmocka_unit_test(json_integer_keeps_its_bounds),
        cmocka_unit_test(json_does_nothing_after_a_mistake),
        cmocka_unit_test(json_returns_to_marked_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
