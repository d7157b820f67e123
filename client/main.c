// stagecoach: the command that talks to a coordinator.
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/client.h"
#include "client/verbs.h"

static const struct {
    const char *name;
    const char *purpose;
    int (*run)(int argc, char **argv);
} VERBS[] = {
    {"generate", "continue a prompt and stream the text", verb_generate},
    {"status", "show the pipeline, its stages and their layers", verb_status},
    {"health", "say whether a coordinator or a stage can be used", verb_health},
    {"trace", "record what every stage does as a timeline for Perfetto", verb_trace},
    {"model", "show what model is served", verb_model},
    {"tokenize", "turn text into token ids", verb_tokenize},
    {"detokenize", "turn token ids into text", verb_detokenize},
    {"simulate", "run the scheduler and its recovery against simulated stages", verb_simulate},
};
enum { VERB_COUNT = sizeof(VERBS) / sizeof(VERBS[0]) };

static void print_help(FILE *stream) {
    fprintf(stream, "stagecoach: talks to a Stagecoach coordinator.\n\n"
                    "usage: stagecoach VERB [options]\n\nverbs:\n");
    for (size_t i = 0; i < VERB_COUNT; i++)
        fprintf(stream, "  %-12s %s\n", VERBS[i].name, VERBS[i].purpose);
    fprintf(stream, "\noptions:\n"
                    "  --help       print this and exit; after a verb: its options\n"
                    "  --version    print the version and exit\n");
}

int main(int argc, char **argv) {
    // A reader that went away is noticed where we write.
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        print_help(stderr);
        return CLIENT_EXIT_USAGE;
    }
    const char *word = argv[1];
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) {
        print_help(stdout);
        return EXIT_SUCCESS;
    }
    if (strcmp(word, "--version") == 0) {
        printf("stagecoach %s\n", STAGECOACH_VERSION);
        return EXIT_SUCCESS;
    }
    for (size_t i = 0; i < VERB_COUNT; i++)
        if (strcmp(word, VERBS[i].name) == 0) return VERBS[i].run(argc - 1, argv + 1);
    fprintf(stderr, "stagecoach: unknown verb '%s', see stagecoach --help\n", word);
    return CLIENT_EXIT_USAGE;
}
