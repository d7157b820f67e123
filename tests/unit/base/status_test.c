// The sentences of errors, and the lines of the log.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/status.h"
#include "capture.h"

static void status_names_are_distinct_and_lower_case(void **state) {
    (void)state;
    for (int i = STATUS_OK; i <= STATUS_CANCELLED; i++) {
        const char *name = status_name((enum status)i);
        assert_true(strlen(name) > 0);
        assert_int_equal(strspn(name, "abcdefghijklmnopqrstuvwxyz/ "), strlen(name));
        assert_string_not_equal(name, "unknown status");
        for (int j = STATUS_OK; j < i; j++)
            assert_string_not_equal(name, status_name((enum status)j));
    }
    assert_string_equal(status_name((enum status)(STATUS_CANCELLED + 1)), "unknown status");
}

static void error_keeps_the_sentence_and_gives_the_status_back(void **state) {
    (void)state;
    struct error error;
    assert_int_equal(error_set(&error, STATUS_IO, "%s: %d", "field", 7), STATUS_IO);
    assert_string_equal(error.text, "field: 7");
    assert_int_equal(error_set(NULL, STATUS_TIMEOUT, "%s", "nobody reads this"), STATUS_TIMEOUT);
    error_prefix(&error, "file %s", "a");
    assert_string_equal(error.text, "file a: field: 7");
    error_prefix(NULL, "file");
}

static void error_names_the_field_at_fault_when_told_to(void **state) {
    (void)state;
    struct error error;
    assert_int_equal(error_set_field(&error, STATUS_INVALID, "stop.strings[%d] is empty", 3),
                     STATUS_INVALID);
    assert_string_equal(error.text, "stop.strings[3] is empty");
    assert_string_equal(error.field, "stop.strings[3]");
    error_prefix(&error, "request");
    assert_string_equal(error.field, "stop.strings[3]");
    (void)error_set(&error, STATUS_INVALID, "text is empty");
    assert_string_equal(error.field, "");
    error_prefix_field(&error, "prompt");
    assert_string_equal(error.text, "prompt: text is empty");
    assert_string_equal(error.field, "prompt");

    char path[sizeof(error.field) + 1];
    memset(path, 'x', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0';
    (void)error_set_field(&error, STATUS_INVALID, "%s: no", path);
    assert_string_equal(error.field, ""); // none rather than a part of it
    (void)error_set_field(&error, STATUS_INVALID, "%s: no", path + 1);
    assert_string_equal(error.field, path + 1);
    assert_int_equal(error_set_field(NULL, STATUS_INVALID, "text"), STATUS_INVALID);
    error_prefix_field(NULL, "text");
}

static void error_cuts_what_does_not_fit(void **state) {
    (void)state;
    char text[2 * sizeof(struct error)];
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    struct error error;
    size_t text_bytes_max = sizeof(error.text) - 1;
    assert_int_equal(error_set(&error, STATUS_INVALID, "%s", text), STATUS_INVALID);
    assert_int_equal(strlen(error.text), text_bytes_max);

    error_prefix(&error, "prefix");
    assert_int_equal(strlen(error.text), text_bytes_max);
    assert_memory_equal(error.text, "prefix: xxx", 11);

    error_prefix(&error, "%.*s", (int)text_bytes_max - 1, text);
    assert_int_equal(strlen(error.text), text_bytes_max);
    assert_int_equal(error.text[text_bytes_max - 1], ':');
    error_prefix(&error, "%s", text);
    assert_int_equal(strlen(error.text), text_bytes_max);
    assert_int_equal(error.text[text_bytes_max - 1], 'x');
}

static void log_line_has_time_level_name_and_text(void **state) {
    (void)state;
    char text[256];
    log_init("tester", LOG_INFO);
    struct capture capture = capture_begin(STDERR_FILENO);
    log_warn("seen %d of %s", 3, "four");
    capture_end(&capture, text, sizeof(text));
    static const char shape[] = "dddd-dd-ddTdd:dd:dd.dddZ warn  tester: seen 3 of four\n";
    assert_int_equal(strlen(text), strlen(shape));
    for (size_t i = 0; i < strlen("dddd-dd-ddTdd:dd:dd.dddZ"); i++) {
        if (shape[i] == 'd') {
            assert_in_range(text[i], '0', '9');
        } else {
            assert_int_equal(text[i], shape[i]);
        }
    }
    assert_string_equal(text + 24, shape + 24);
}

static void log_writes_up_to_its_level_and_no_more(void **state) {
    (void)state;
    static const char *const words[] = {"error", "warn", "info", "debug"};
    for (int limit = LOG_ERROR; limit <= LOG_DEBUG; limit++) {
        char text[1024];
        log_init("tester", (enum log_level)limit);
        struct capture capture = capture_begin(STDERR_FILENO);
        for (int level = LOG_ERROR; level <= LOG_DEBUG; level++)
            log_write((enum log_level)level, "text of level %s.", words[level]);
        log_debug("by macro");
        capture_end(&capture, text, sizeof(text));
        for (int level = LOG_ERROR; level <= LOG_DEBUG; level++) {
            char sentence[64];
            (void)snprintf(sentence, sizeof(sentence), "text of level %s.", words[level]);
            assert_int_equal(strstr(text, sentence) != NULL, level <= limit);
            assert_int_equal(log_enabled((enum log_level)level), level <= limit);
        }
        assert_int_equal(strstr(text, "by macro") != NULL, limit == LOG_DEBUG);
    }
}

static void log_cuts_a_long_text_and_ends_the_line(void **state) {
    (void)state;
    char name[200], text[4096], line[4096];
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    memset(text, 't', sizeof(text) - 1);
    // Every length around the end of the line.
    for (size_t length = 800; length < 1100; length++) {
        text[length] = '\0';
        log_init(name, LOG_INFO);
        struct capture capture = capture_begin(STDERR_FILENO);
        log_error("%s", text);
        capture_end(&capture, line, sizeof(line));
        text[length] = 't';
        size_t size = strlen(line);
        assert_true(size <= 1024);
        assert_ptr_equal(strchr(line, '\n'), line + size - 1);
        assert_int_equal(line[size - 2], 't');
        if (size < 1020) assert_int_equal(strspn(strchr(line, 't'), "t"), length);
    }
    log_init("tester", LOG_INFO);
}

static void log_keeps_an_event_on_one_line(void **state) {
    (void)state;
    char text[256];
    log_init("tester", LOG_INFO);
    struct capture capture = capture_begin(STDERR_FILENO);
    log_error("id 'a\nb\r\x1b[2J\x7f\tc \xc3\xa9'");
    capture_end(&capture, text, sizeof(text));
    assert_non_null(strstr(text, "id 'a b  [2J  c \xc3\xa9'\n"));
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
}

static void log_levels_are_parsed_by_name(void **state) {
    (void)state;
    static const char *const names[] = {"error", "warn", "info", "debug"};
    for (int i = 0; i < 4; i++) {
        enum log_level level = LOG_ERROR;
        assert_true(log_level_parse(names[i], &level));
        assert_int_equal(level, i);
    }
    static const char *const wrong[] = {"", "Error", "warning", "debug ", "1"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        enum log_level level = LOG_INFO;
        assert_false(log_level_parse(wrong[i], &level));
        assert_int_equal(level, LOG_INFO);
    }
}

static void log_formats_are_parsed_by_name(void **state) {
    (void)state;
    enum log_format format = LOG_FORMAT_TEXT;
    assert_true(log_format_parse("json", &format));
    assert_int_equal(format, LOG_FORMAT_JSON);
    assert_false(log_format_parse("JSON", &format));
    assert_false(log_format_parse("", &format));
    assert_int_equal(format, LOG_FORMAT_JSON);
    assert_true(log_format_parse("text", &format));
    assert_int_equal(format, LOG_FORMAT_TEXT);
}

// What an event with odd values looks like, after the time.
static void write_fields(enum log_format format, const char *message, char *text, size_t capacity) {
    const struct log_field fields[] = {
        {.key = "plain", .kind = LOG_FIELD_TEXT, .text = "r-1"},
        {.key = "empty", .kind = LOG_FIELD_TEXT, .text = ""},
        {.key = "odd", .kind = LOG_FIELD_TEXT, .text = "a\"b\\c=\n\xc3\xa9\xff"},
        {.key = "tokens", .kind = LOG_FIELD_COUNT, .count = UINT64_MAX},
        {.key = "ms", .kind = LOG_FIELD_MS, .ms = 1.5},
    };
    log_init("tester", LOG_INFO);
    log_set_format(format);
    struct capture capture = capture_begin(STDERR_FILENO);
    log_fields(LOG_INFO, message, fields, sizeof(fields) / sizeof(fields[0]));
    capture_end(&capture, text, capacity);
    log_set_format(LOG_FORMAT_TEXT);
}

static void log_fields_are_pairs_in_text(void **state) {
    (void)state;
    char text[512];
    write_fields(LOG_FORMAT_TEXT, "seen", text, sizeof(text));
    assert_string_equal(text + 24, " info  tester: seen plain=r-1 empty=\"\" "
                                   "odd=\"a\\\"b\\\\c= \xc3\xa9\xef\xbf\xbd\" "
                                   "tokens=18446744073709551615 ms=1.500\n");
}

static void log_line_is_an_object_in_json(void **state) {
    (void)state;
    char text[512];
    write_fields(LOG_FORMAT_JSON, "se\"en\t", text, sizeof(text));
    assert_memory_equal(text, "{\"time\": \"", 10);
    assert_string_equal(text + 34,
                        "\", \"level\": \"info\", \"process\": \"tester\", "
                        "\"message\": \"se\\\"en \", \"plain\": \"r-1\", \"empty\": \"\", "
                        "\"odd\": \"a\\\"b\\\\c= \xc3\xa9\xef\xbf\xbd\", "
                        "\"tokens\": 18446744073709551615, \"ms\": 1.500}\n");
}

static void log_cuts_long_fields_and_messages_of_worst_bytes(void **state) {
    (void)state;
    char worst[4096];
    memset(worst, 0xff, sizeof(worst) - 1);
    worst[sizeof(worst) - 1] = '\0';
    struct log_field fields[LOG_FIELD_COUNT_MAX];
    for (int i = 0; i < LOG_FIELD_COUNT_MAX; i++)
        fields[i] = (struct log_field){.key = "abcdefghijklmnopqrstuvwxyzabcdef", .text = worst};
    static char text[64 << 10];
    for (int format = LOG_FORMAT_TEXT; format <= LOG_FORMAT_JSON; format++) {
        log_init(worst, LOG_INFO);
        log_set_format((enum log_format)format);
        struct capture capture = capture_begin(STDERR_FILENO);
        log_fields(LOG_ERROR, worst, fields, LOG_FIELD_COUNT_MAX);
        capture_end(&capture, text, sizeof(text));
        size_t size = strlen(text);
        assert_true(size > LOG_FIELD_COUNT_MAX * 3 * LOG_FIELD_BYTES_MAX);
        assert_ptr_equal(strchr(text, '\n'), text + size - 1);
        assert_string_equal(text + size - (format == LOG_FORMAT_JSON ? 6 : 5),
                            format == LOG_FORMAT_JSON ? "\xef\xbf\xbd\"}\n" : "\xef\xbf\xbd\"\n");
    }
    log_set_format(LOG_FORMAT_TEXT);
    log_init("tester", LOG_INFO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(status_names_are_distinct_and_lower_case),
        cmocka_unit_test(error_keeps_the_sentence_and_gives_the_status_back),
        cmocka_unit_test(error_names_the_field_at_fault_when_told_to),
        cmocka_unit_test(error_cuts_what_does_not_fit),
        cmocka_unit_test(log_line_has_time_level_name_and_text),
        cmocka_unit_test(log_writes_up_to_its_level_and_no_more),
        cmocka_unit_test(log_cuts_a_long_text_and_ends_the_line),
        cmocka_unit_test(log_keeps_an_event_on_one_line),
        cmocka_unit_test(log_levels_are_parsed_by_name),
        cmocka_unit_test(log_formats_are_parsed_by_name),
        cmocka_unit_test(log_fields_are_pairs_in_text),
        cmocka_unit_test(log_line_is_an_object_in_json),
        cmocka_unit_test(log_cuts_long_fields_and_messages_of_worst_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
