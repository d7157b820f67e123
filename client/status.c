// status: the pipeline, its stages and their layers, and what they do.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/limits.h"
#include "client/client.h"
#include "client/message_json.h"
#include "client/status_view.h"
#include "client/verbs.h"

struct arguments {
    struct client_options connection;
    bool as_json, is_watch;
    double interval_seconds;
};

static bool parse_arguments(int argc, char **argv, struct arguments *arguments, int *exit_status) {
    const struct option_spec specs[] = {
        CLIENT_OPTION_SPECS(&arguments->connection),
        {"watch", OPTION_FLAG, &arguments->is_watch, NULL, "show it again and again until Ctrl-C",
         0, 0},
        {"interval", OPTION_NUMBER, &arguments->interval_seconds, "S",
         "time between, with --watch (default 1)", 0.05, 3600},
        {"json", OPTION_FLAG, &arguments->as_json, NULL, "one line of JSON", 0, 0},
    };
    const struct options options = {
        .program = "stagecoach status",
        .purpose = "shows the pipeline, its stages and their layers, and what they do.",
        .usage = "[options]",
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
    };
    size_t positional_count;
    enum options_result result = options_parse(&options, argc, argv, &positional_count);
    *exit_status = result == OPTIONS_EXIT_OK ? EXIT_SUCCESS : CLIENT_EXIT_USAGE;
    return result == OPTIONS_RUN;
}

static int show_once(struct client *client, const struct arguments *arguments) {
    Stagecoach__V1__GetPipelineRequest request = STAGECOACH__V1__GET_PIPELINE_REQUEST__INIT;
    ProtobufCMessage *response =
        client_call(client, &stagecoach__v1__admin__descriptor, "GetPipeline", &request.base);
    if (response == NULL) return client_exit_status(client);
    int exit_status;
    if (arguments->as_json) {
        exit_status = json_print_line(message_json(response));
    } else {
        status_view_write(stdout, (const Stagecoach__V1__Pipeline *)response, "\n");
        exit_status = client_finish_output();
    }
    protobuf_c_message_free_unpacked(response, NULL);
    return exit_status;
}

// -- again and again ------------------------------------------------------------------------------

// ECMA-48: on a terminal each picture is written over the one before, so that nothing flickers.
#define SCREEN_ENTER "\033[?1049h\033[?25l" // the alternate screen, no cursor
#define SCREEN_LEAVE "\033[?25h\033[?1049l"
#define SCREEN_HOME "\033[H"
#define SCREEN_LINE_END "\033[K\n" // clears what was there
#define SCREEN_CLEAR_BELOW "\033[J"

// Asks once: the next picture comes soon, and until then it is seen that nobody answers.
static ProtobufCMessage *ask(struct client *client, enum rpc_code *code_out, struct error *error) {
    Stagecoach__V1__GetPipelineRequest request = STAGECOACH__V1__GET_PIPELINE_REQUEST__INIT;
    const struct rpc_call_options options = {.deadline_ms = CLIENT_CALL_MS};
    ProtobufCMessage *response = NULL;
    *code_out = rpc_call_wait(client->channel, &stagecoach__v1__admin__descriptor, "GetPipeline",
                              &request.base, &options, &response, error);
    return *code_out == RPC_OK ? response : NULL;
}

static void show_picture(struct client *client, bool is_terminal) {
    const char *line_end = is_terminal ? SCREEN_LINE_END : "\n";
    enum rpc_code code;
    struct error error = {0};
    ProtobufCMessage *response = ask(client, &code, &error);
    if (is_terminal) fputs(SCREEN_HOME, stdout);
    if (response != NULL)
        status_view_write(stdout, (const Stagecoach__V1__Pipeline *)response, line_end);
    else
        printf("%s: %s (%s)%s", client->coordinator, error.text, rpc_code_name(code), line_end);
    fputs(is_terminal ? SCREEN_CLEAR_BELOW : "\n", stdout);
    protobuf_c_message_free_unpacked(response, NULL);
}

// Ctrl-C is how it ends; so does a reader that goes away.
static int watch(struct client *client, const sigset_t *interrupts,
                 const struct arguments *arguments) {
    const bool is_terminal = isatty(STDOUT_FILENO) && !arguments->as_json;
    const double seconds = arguments->interval_seconds;
    const struct timespec pause = {.tv_sec = (time_t)seconds,
                                   .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};
    int exit_status = EXIT_SUCCESS;
    if (is_terminal) fputs(SCREEN_ENTER, stdout);
    do {
        if (arguments->as_json)
            exit_status = show_once(client, arguments);
        else
            show_picture(client, is_terminal);
    } while (exit_status == EXIT_SUCCESS && fflush(stdout) == 0 && !ferror(stdout) &&
             sigtimedwait(interrupts, NULL, &pause) < 0);
    if (is_terminal) fputs(SCREEN_LEAVE, stdout);
    if (client->is_interrupted) exit_status = EXIT_SUCCESS;
    return exit_status == EXIT_SUCCESS ? client_finish_output() : exit_status;
}

int verb_status(int argc, char **argv) {
    struct arguments arguments = {.connection = CLIENT_OPTIONS_DEFAULT, .interval_seconds = 1};
    int exit_status;
    if (!parse_arguments(argc, argv, &arguments, &exit_status)) return exit_status;
    sigset_t interrupts;
    if (arguments.is_watch) client_block_interrupts(&interrupts);
    struct client client;
    if (!client_open(&arguments.connection, arguments.is_watch ? &interrupts : NULL, &client))
        return EXIT_FAILURE;
    exit_status = arguments.is_watch ? watch(&client, &interrupts, &arguments)
                                     : show_once(&client, &arguments);
    client_close(&client);
    return exit_status;
}
