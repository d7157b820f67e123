#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/options.h"
#include "capture.h"

enum { ARGUMENT_COUNT_MAX = 2 * OPTION_TEXT_COUNT_MAX + 8 };

// A program with one option of each kind, and what came out of it.
struct run {
    bool flag;
    const char *text;
    struct option_texts list;
    uint64_t count;
    double number;
    size_t positional_max, positional_count;
    char *argv[ARGUMENT_COUNT_MAX];
    char out[4096], err[1024];
};

static struct run run_with_defaults(void) {
    return (struct run){.text = "before", .count = 3, .number = 0.5, .positional_max = 1};
}

static enum options_result run_parse(struct run *run, int argc) {
    const struct option_spec specs[] = {
        {"flag", OPTION_FLAG, &run->flag, NULL, "help of flag", 0, 0},
        {"text", OPTION_TEXT, &run->text, "TEXT", "help of text", 0, 0},
        {"list", OPTION_TEXT_LIST, &run->list, "ITEM", "help of list", 0, 0},
        {"count", OPTION_COUNT, &run->count, "N", "help of count", 2, 1 << 30},
        {"count-any", OPTION_COUNT, &run->count, "N", "help of count-any", 0, UINT32_MAX},
        {"number", OPTION_NUMBER, &run->number, "X", "help of number", -2, 2.5},
    };
    const struct options options = {
        .program = "program",
        .purpose = "what it is for",
        .usage = "[options] [WORD]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(*specs),
        .positional_max = run->positional_max,
    };
    run->positional_count = 99;
    struct capture err = capture_begin(STDERR_FILENO);
    struct capture out = capture_begin(STDOUT_FILENO);
    enum options_result result = options_parse(&options, argc, run->argv, &run->positional_count);
    capture_end(&out, run->out, sizeof(run->out));
    capture_end(&err, run->err, sizeof(run->err));
    return result;
}

// `arguments` ends with NULL.
static enum options_result run_words(struct run *run, const char *const *arguments) {
    run->argv[0] = (char *)"program";
    int argc = 1;
    for (; arguments[argc - 1] != NULL; argc++)
        run->argv[argc] = (char *)arguments[argc - 1];
    run->argv[argc] = NULL;
    return run_parse(run, argc);
}

#define RUN(run, ...) run_words(run, (const char *const[]){__VA_ARGS__, NULL})

static void options_take_values_behind_a_blank_or_an_equals_sign(void **state) {
    (void)state;
    struct run run = run_with_defaults();
    assert_int_equal(RUN(&run, "--flag", "--text", "a b", "--count=7", "--number", "-1.5", "word"),
                     OPTIONS_RUN);
    assert_true(run.flag);
    assert_string_equal(run.text, "a b");
    assert_int_equal(run.count, 7);
    assert_true(run.number == -1.5);
    assert_int_equal(run.positional_count, 1);
    assert_string_equal(run.argv[1], "word");
    assert_string_equal(run.err, "");
    assert_string_equal(run.out, "");

    assert_int_equal(RUN(&run, "--text=x=y", "--number=2.5", "--count", "1073741824"), OPTIONS_RUN);
    assert_string_equal(run.text, "x=y");
    assert_true(run.number == 2.5);
    assert_int_equal(run.count, 1 << 30);
    assert_int_equal(RUN(&run, "--text=", "--count", "2", "--count=5"), OPTIONS_RUN);
    assert_string_equal(run.text, "");
    assert_int_equal(run.count, 5); // the last one
    assert_int_equal(RUN(&run, "--text", "--flag", "--number=-2"), OPTIONS_RUN);
    assert_string_equal(run.text, "--flag"); // a value may look like an option
}

static void options_keep_their_defaults(void **state) {
    (void)state;
    struct run run = run_with_defaults();
    run.argv[0] = (char *)"program";
    assert_int_equal(run_parse(&run, 1), OPTIONS_RUN);
    assert_false(run.flag);
    assert_string_equal(run.text, "before");
    assert_int_equal(run.count, 3);
    assert_true(run.number == 0.5);
    assert_int_equal(run.list.count, 0);
    assert_int_equal(run.positional_count, 0);
}

static void wrong_values_are_refused_with_option_value_and_limits(void **state) {
    (void)state;
    static const char *const counts[] = {"",
                                         "x",
                                         "1",
                                         "-1",
                                         "-3",
                                         "+3",
                                         " 3",
                                         "3 ",
                                         "3.0",
                                         "0x10",
                                         "1e3",
                                         "3,5",
                                         "--",
                                         "18446744073709551616",
                                         "18446744073709551619",
                                         "1073741825",
                                         "99999999999999999999999999"};
    static const char *const numbers[] = {"",     "x",  "nan", "inf",  "-inf", "1e400", "2.6",
                                          "-2.1", " 1", "1 ",  "1.5x", "1,5",  "--1",   "1e"};
    for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++) {
        struct run run = run_with_defaults();
        assert_int_equal(RUN(&run, "--count", counts[i]), OPTIONS_EXIT_USAGE);
        char expected[200];
        (void)snprintf(expected, sizeof(expected),
                       "program: --count is '%s', it must be a whole number from 2 to 1073741824\n",
                       counts[i]);
        assert_string_equal(run.err, expected);
        assert_int_equal(run.count, 3);
        assert_int_equal(run.positional_count, 99);
    }
    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
        struct run run = run_with_defaults();
        assert_int_equal(RUN(&run, "--number", numbers[i]), OPTIONS_EXIT_USAGE);
        char expected[200];
        (void)snprintf(expected, sizeof(expected),
                       "program: --number is '%s', it must be a number from -2 to 2.5\n",
                       numbers[i]);
        assert_string_equal(run.err, expected);
        assert_true(run.number == 0.5);
    }
}

static void expect_refusal(const char *const *arguments, const char *sentence) {
    struct run run = run_with_defaults();
    assert_int_equal(run_words(&run, arguments), OPTIONS_EXIT_USAGE);
    assert_string_equal(run.err, sentence);
    assert_string_equal(run.out, "");
}

static void mistakes_are_named_in_one_sentence(void **state) {
    (void)state;
    static const struct {
        const char *arguments[4];
        const char *sentence;
    } cases[] = {
        {{"--nothing"}, "program: unknown option '--nothing', see --help\n"},
        {{"--nothing=3"}, "program: unknown option '--nothing', see --help\n"},
        {{"--coun", "3"}, "program: unknown option '--coun', see --help\n"},
        {{"--countx", "3"}, "program: unknown option '--countx', see --help\n"},
        {{"--=3"}, "program: unknown option '--', see --help\n"},
        {{"-n", "3"}, "program: unknown option '-n', see --help\n"},
        {{"-3"}, "program: unknown option '-3', see --help\n"},
        {{"--flag=yes"}, "program: --flag takes no value, but is 'yes'\n"},
        {{"--text"}, "program: --text needs a value (TEXT)\n"},
        {{"word", "--count"}, "program: --count needs a value (N)\n"},
        {{"one", "two"}, "program: unexpected argument 'two', the limit is 1, see --help\n"},
        {{"--", "one", "--flag"},
         "program: unexpected argument '--flag', the limit is 1, see --help\n"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        expect_refusal(cases[i].arguments, cases[i].sentence);
}

static void positional_arguments_move_to_the_front(void **state) {
    (void)state;
    struct run run = run_with_defaults();
    run.positional_max = 3;
    assert_int_equal(RUN(&run, "--flag", "one", "--count", "4", "", "-"), OPTIONS_RUN);
    assert_int_equal(run.positional_count, 3);
    assert_string_equal(run.argv[1], "one");
    assert_string_equal(run.argv[2], "");
    assert_string_equal(run.argv[3], "-");

    run = run_with_defaults();
    run.positional_max = 3;
    assert_int_equal(RUN(&run, "one", "--", "--flag", "--help"), OPTIONS_RUN);
    assert_int_equal(run.positional_count, 3);
    assert_string_equal(run.argv[2], "--flag");
    assert_string_equal(run.argv[3], "--help");
    assert_false(run.flag);

    run = run_with_defaults();
    run.positional_max = 0;
    assert_int_equal(RUN(&run, "one"), OPTIONS_EXIT_USAGE);
    assert_string_equal(run.err,
                        "program: unexpected argument 'one', the limit is 0, see --help\n");
}

static void list_option_keeps_the_order_and_has_a_limit(void **state) {
    (void)state;
    struct run run = run_with_defaults();
    int argc = 1;
    run.argv[0] = (char *)"program";
    static char items[OPTION_TEXT_COUNT_MAX + 1][16];
    for (int i = 0; i <= OPTION_TEXT_COUNT_MAX; i++) {
        (void)snprintf(items[i], sizeof(items[i]), "item-%d", i);
        run.argv[argc++] = (char *)"--list";
        run.argv[argc++] = items[i];
    }
    assert_int_equal(run_parse(&run, argc - 2), OPTIONS_RUN);
    assert_int_equal(run.list.count, OPTION_TEXT_COUNT_MAX);
    for (int i = 0; i < OPTION_TEXT_COUNT_MAX; i++)
        assert_string_equal(run.list.values[i], items[i]);

    run.list.count = 0;
    assert_int_equal(run_parse(&run, argc), OPTIONS_EXIT_USAGE);
    char expected[200];
    (void)snprintf(expected, sizeof(expected),
                   "program: --list is 'item-%d', but it was given %d times already, the limit\n",
                   OPTION_TEXT_COUNT_MAX, OPTION_TEXT_COUNT_MAX);
    assert_string_equal(run.err, expected);
    assert_int_equal(run.list.count, OPTION_TEXT_COUNT_MAX);
}

static void help_shows_every_option(void **state) {
    (void)state;
    static const char *const words[] = {"--help", "-h"};
    for (int i = 0; i < 2; i++) {
        struct run run = run_with_defaults();
        assert_int_equal(RUN(&run, "--flag", words[i], "--nothing"), OPTIONS_EXIT_OK);
        static const char *const parts[] = {"program: what it is for",
                                            "usage: program [options] [WORD]",
                                            "--flag ",
                                            "--text TEXT ",
                                            "--list ITEM ",
                                            "--count N ",
                                            "--number X ",
                                            "help of flag",
                                            "help of number",
                                            "--help ",
                                            "--version "};
        for (size_t j = 0; j < sizeof(parts) / sizeof(*parts); j++)
            assert_non_null(strstr(run.out, parts[j]));
        assert_string_equal(run.err, "");
    }
}

static void version_is_one_line(void **state) {
    (void)state;
    struct run run = run_with_defaults();
    assert_int_equal(RUN(&run, "--version"), OPTIONS_EXIT_OK);
    assert_string_equal(run.out, "program " STAGECOACH_VERSION "\n");
    // Where a value is due it is a value.
    assert_int_equal(RUN(&run, "--text", "--version"), OPTIONS_RUN);
    assert_string_equal(run.text, "--version");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_take_values_behind_a_blank_or_an_equals_sign),
        cmocka_unit_test(options_keep_their_defaults),
        cmocka_unit_test(wrong_values_are_refused_with_option_value_and_limits),
        cmocka_unit_test(mistakes_are_named_in_one_sentence),
        cmocka_unit_test(positional_arguments_move_to_the_front),
        cmocka_unit_test(list_option_keeps_the_order_and_has_a_limit),
        cmocka_unit_test(help_shows_every_option),
        cmocka_unit_test(version_is_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
