// The sentences of errors, and the lines of the log.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(status_names_are_distinct_and_lower_case),
        cmocka_unit_test(error_keeps_the_sentence_and_gives_the_status_back),
        cmocka_unit_test(error_cuts_what_does_not_fit),
        cmocka_unit_test(log_line_has_time_level_name_and_text),
        cmocka_unit_test(log_writes_up_to_its_level_and_no_more),
        cmocka_unit_test(log_cuts_a_long_text_and_ends_the_line),
        cmocka_unit_test(log_keeps_an_event_on_one_line),
        cmocka_unit_test(log_levels_are_parsed_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
