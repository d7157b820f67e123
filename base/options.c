#include "base/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_help(const struct options *options) {
    printf("%s: %s\n\nusage: %s %s\n\noptions:\n", options->program, options->purpose,
           options->program, options->usage);
    for (size_t i = 0; i < options->spec_count; i++) {
        const struct option_spec *spec = &options->specs[i];
        char left[64];
        snprintf(left, sizeof(left), "--%s%s%s", spec->name, spec->argument ? " " : "",
                 spec->argument ? spec->argument : "");
        printf("  %-28s %s\n", left, spec->help);
    }
    printf("  %-28s %s\n", "--help", "print this and exit");
    printf("  %-28s %s\n", "--version", "print the version and exit");
}

static const struct option_spec *find_spec(const struct options *options, const char *name,
                                           size_t length) {
    for (size_t i = 0; i < options->spec_count; i++) {
        const struct option_spec *spec = &options->specs[i];
        if (strlen(spec->name) == length && memcmp(spec->name, name, length) == 0) return spec;
    }
    return NULL;
}

static bool parse_count(const struct option_spec *spec, const char *value) {
    errno = 0;
    char *end;
    unsigned long long count = strtoull(value, &end, 10);
    // strtoull accepts a sign and wraps it around: only digits are a count.
    if (value[0] < '0' || value[0] > '9' || *end != '\0' || errno != 0) return false;
    if ((double)count < spec->minimum || (double)count > spec->maximum) return false;
    *(uint64_t *)spec->target = count;
    return true;
}

static bool parse_number(const struct option_spec *spec, const char *value) {
    // strtod skips blanks.
    if (isspace((unsigned char)value[0])) return false;
    char *end;
    double number = strtod(value, &end);
    if (end == value || *end != '\0' || !isfinite(number)) return false;
    if (number < spec->minimum || number > spec->maximum) return false;
    *(double *)spec->target = number;
    return true;
}

static bool add_text(const struct options *options, const struct option_spec *spec,
                     const char *value) {
    struct option_texts *texts = spec->target;
    if (texts->count == OPTION_TEXT_COUNT_MAX) {
        fprintf(stderr, "%s: --%s is '%s', but it was given %d times already, the limit\n",
                options->program, spec->name, value, OPTION_TEXT_COUNT_MAX);
        return false;
    }
    texts->values[texts->count++] = value;
    return true;
}

static bool set_value(const struct options *options, const struct option_spec *spec,
                      const char *value) {
    if (spec->kind == OPTION_TEXT) {
        *(const char **)spec->target = value;
        return true;
    }
    if (spec->kind == OPTION_TEXT_LIST) return add_text(options, spec, value);
    bool is_count = spec->kind == OPTION_COUNT;
    if (is_count ? parse_count(spec, value) : parse_number(spec, value)) return true;
    fprintf(stderr, "%s: --%s is '%s', it must be a %s from %.15g to %.15g\n", options->program,
            spec->name, value, is_count ? "whole number" : "number", spec->minimum, spec->maximum);
    return false;
}

static bool is_option(const char *argument) {
    return argument[0] == '-' && argument[1] != '\0';
}

// One "--name", "--name=value" or "--name value" at argv[*index]; *index moves to the last
// argument used.
static bool parse_option(const struct options *options, int argc, char **argv, int *index) {
    // "-name" is shown and refused as an option that does not exist.
    if (argv[*index][1] != '-') {
        fprintf(stderr, "%s: unknown option '%s', see --help\n", options->program, argv[*index]);
        return false;
    }
    const char *name = argv[*index] + 2;
    const char *equals = strchr(name, '=');
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    const struct option_spec *spec = find_spec(options, name, length);
    if (spec == NULL) {
        fprintf(stderr, "%s: unknown option '--%.*s', see --help\n", options->program, (int)length,
                name);
        return false;
    }
    if (spec->kind == OPTION_FLAG) {
        if (equals != NULL) {
            fprintf(stderr, "%s: --%s takes no value, but is '%s'\n", options->program, spec->name,
                    equals + 1);
            return false;
        }
        *(bool *)spec->target = true;
        return true;
    }
    if (equals != NULL) return set_value(options, spec, equals + 1);
    if (*index + 1 >= argc) {
        fprintf(stderr, "%s: --%s needs a value (%s)\n", options->program, spec->name,
                spec->argument);
        return false;
    }
    return set_value(options, spec, argv[++*index]);
}

static bool print_asked(const struct options *options, const char *argument) {
    if (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0) {
        print_help(options);
        return true;
    }
    if (strcmp(argument, "--version") == 0) {
        printf("%s %s\n", options->program, STAGECOACH_VERSION);
        return true;
    }
    return false;
}

enum options_result options_parse(const struct options *options, int argc, char **argv,
                                  size_t *positional_count_out) {
    size_t positional_count = 0;
    bool is_ended = false; // by "--"
    for (int i = 1; i < argc; i++) {
        if (!is_ended && print_asked(options, argv[i])) return OPTIONS_EXIT_OK;
        if (!is_ended && strcmp(argv[i], "--") == 0) {
            is_ended = true;
            continue;
        }
        if (!is_ended && is_option(argv[i])) {
            if (!parse_option(options, argc, argv, &i)) return OPTIONS_EXIT_USAGE;
            continue;
        }
        if (positional_count == options->positional_max) {
            fprintf(stderr, "%s: unexpected argument '%s', the limit is %zu, see --help\n",
                    options->program, argv[i], options->positional_max);
            return OPTIONS_EXIT_USAGE;
        }
        argv[1 + positional_count++] = argv[i];
    }
    *positional_count_out = positional_count;
    return OPTIONS_RUN;
}
