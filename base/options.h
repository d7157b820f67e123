// options: command lines from a table, with --help, --version and errors that name the option.
// The same table prints the help text, so that the two cannot differ.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/status.h"

enum option_kind {
    OPTION_FLAG,      // target: bool *
    OPTION_TEXT,      // target: const char **
    OPTION_TEXT_LIST, // target: struct option_texts *; may be given several times
    OPTION_COUNT,     // target: uint64_t *, within [minimum, maximum]
    OPTION_NUMBER,    // target: double *, finite, within [minimum, maximum]
};

// The values of an option that may be given several times, in the order given.
struct option_texts {
    const char *values[OPTION_TEXT_COUNT_MAX];
    size_t count;
};

struct option_spec {
    const char *name; // without the dashes, such as "max-tokens"
    enum option_kind kind;
    void *target;         // holds the default before parsing
    const char *argument; // what the help calls the value, such as "N"; NULL for flags
    const char *help;     // one sentence, with the default in it
    double minimum, maximum;
};

struct options {
    const char *program; // such as "stagecoach-stage"
    const char *purpose; // what it is, one or two sentences
    const char *usage;   // after the program's name, such as "--coordinator HOST:PORT [options]"
    const struct option_spec *specs;
    size_t spec_count;
    size_t positional_max; // arguments without dashes; more are an error
};

enum options_result { OPTIONS_RUN, OPTIONS_EXIT_OK, OPTIONS_EXIT_USAGE };

// Parses "--name value", "--name=value" and "--flag". --help and --version print to standard output
// and give OPTIONS_EXIT_OK. A mistake prints one sentence to standard error that names option,
// value and limit, and gives OPTIONS_EXIT_USAGE (exit status 2).
// An argument is positional when it has no dash in front, is "-", or comes after "--".
// Positional arguments are moved to the front: argv[1..*positional_count_out].
MUST_USE enum options_result options_parse(const struct options *options, int argc, char **argv,
                                           size_t *positional_count_out);
