// health: whether a coordinator or a stage can be used; for people, and as a probe.
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/limits.h"
#include "client/client.h"
#include "client/message_json.h"
#include "client/verbs.h"
#include "grpc/health/v1/health.pb-c.h"

typedef Grpc__Health__V1__HealthCheckRequest CheckRequest;
typedef Grpc__Health__V1__HealthCheckResponse CheckResponse;
typedef Grpc__Health__V1__HealthListResponse ListResponse;
typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus ServingStatus;
#define SERVING GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING

struct arguments {
    struct client_options connection; // a probe asks once
    const char *service;
    double timeout_seconds;
    bool is_list, is_watch, as_json;
};

static bool parse_arguments(int argc, char **argv, struct arguments *arguments, int *exit_status) {
    const struct option_spec specs[] = {
        CLIENT_CONNECTION_SPECS(&arguments->connection),
        {"list", OPTION_FLAG, &arguments->is_list, NULL, "show every service that is known", 0, 0},
        {"watch", OPTION_FLAG, &arguments->is_watch, NULL,
         "show it again whenever it changes, until Ctrl-C", 0, 0},
        {"timeout", OPTION_NUMBER, &arguments->timeout_seconds, "S",
         "how long an answer may take (default 5)", 0.001, 3600},
        {"json", OPTION_FLAG, &arguments->as_json, NULL, "lines of JSON", 0, 0},
    };
    const struct options options = {
        .program = "stagecoach health",
        .purpose =
            "shows whether a service can be used: 'stagecoach.v1.Inference' of a coordinator,\n"
            "'stagecoach.v1.Stage' of a stage (give its --listen address to --coordinator), or\n"
            "without SERVICE whether the process is alive. Exit status: 0 it is SERVING, 1 it is\n"
            "not, 2 the command line is wrong, 3 there was no answer.",
        .usage = "[SERVICE] [options]",
        .positional_max = 1,
        .specs = specs,
        .spec_count = sizeof(specs) / sizeof(specs[0]),
    };
    size_t positional_count;
    enum options_result result = options_parse(&options, argc, argv, &positional_count);
    *exit_status = result == OPTIONS_EXIT_OK ? EXIT_SUCCESS : CLIENT_EXIT_USAGE;
    if (result != OPTIONS_RUN) return false;
    if (arguments->is_list && (positional_count > 0 || arguments->is_watch)) {
        client_report("--list shows every service once: give neither a service nor --watch");
        *exit_status = CLIENT_EXIT_USAGE;
        return false;
    }
    if (positional_count == 1) arguments->service = argv[1];
    return true;
}

// -- output ---------------------------------------------------------------------------------------

static const char *name_of(ServingStatus status) {
    const ProtobufCEnumValue *value = protobuf_c_enum_descriptor_get_value(
        &grpc__health__v1__health_check_response__serving_status__descriptor, (int)status);
    return value != NULL ? value->name : "UNKNOWN";
}

// The exit status of the output alone.
static int print_status(const struct arguments *arguments, ServingStatus status) {
    if (arguments->as_json)
        return json_print_line(
            json_pack("{s:s, s:s}", "service", arguments->service, "status", name_of(status)));
    printf("%s\n", name_of(status));
    return client_finish_output();
}

static int print_list(const struct arguments *arguments, const ListResponse *list) {
    json_t *object = json_object();
    for (size_t i = 0; i < list->n_statuses; i++) {
        const char *name = list->statuses[i]->key;
        const CheckResponse *value = list->statuses[i]->value;
        const char *status = name_of(value != NULL ? value->status : 0);
        if (!arguments->as_json)
            printf("%-12s %s\n", status, name[0] != '\0' ? name : "(the process as a whole)");
        else if (json_object_set_new(object, name, json_string(status)) != 0)
            break;
    }
    if (arguments->as_json) return json_print_line(json_pack("{s:o}", "statuses", object));
    json_decref(object);
    return client_finish_output();
}

// -- once -----------------------------------------------------------------------------------------

// NULL when it failed; that has been reported.
static ProtobufCMessage *call(struct client *client, const struct arguments *arguments,
                              const char *method, const ProtobufCMessage *request,
                              enum rpc_code *code_out) {
    ProtobufCMessage *response = NULL;
    struct error error = {0};
    const struct rpc_call_options options = {
        .deadline_ms = (uint32_t)(arguments->timeout_seconds * 1000),
    };
    *code_out = rpc_call_wait(client->channel, &grpc__health__v1__health__descriptor, method,
                              request, &options, &response, &error);
    if (*code_out == RPC_OK) return response;
    client_report_code(client, *code_out, error.text);
    return NULL;
}

static int check(struct client *client, const struct arguments *arguments) {
    CheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    request.service = (char *)(uintptr_t)arguments->service;
    enum rpc_code code;
    ProtobufCMessage *response = call(client, arguments, "Check", &request.base, &code);
    if (response == NULL) // a service that is not known is not being served
        return code == RPC_NOT_FOUND ? EXIT_FAILURE : CLIENT_EXIT_NO_ANSWER;
    ServingStatus status = ((const CheckResponse *)response)->status;
    protobuf_c_message_free_unpacked(response, NULL);
    int exit_status = print_status(arguments, status);
    return status == SERVING ? exit_status : EXIT_FAILURE;
}

static int list(struct client *client, const struct arguments *arguments) {
    Grpc__Health__V1__HealthListRequest request = GRPC__HEALTH__V1__HEALTH_LIST_REQUEST__INIT;
    enum rpc_code code;
    ProtobufCMessage *response = call(client, arguments, "List", &request.base, &code);
    if (response == NULL) return CLIENT_EXIT_NO_ANSWER;
    const ListResponse *statuses = (const ListResponse *)response;
    int exit_status = print_list(arguments, statuses);
    for (size_t i = 0; i < statuses->n_statuses; i++)
        if (statuses->statuses[i]->value == NULL || statuses->statuses[i]->value->status != SERVING)
            exit_status = EXIT_FAILURE;
    protobuf_c_message_free_unpacked(response, NULL);
    return exit_status;
}

// -- again and again ------------------------------------------------------------------------------

// The rpc thread writes it until is_over.
struct watch {
    const struct arguments *arguments;
    bool is_output_lost;
    enum rpc_code code;
    char sentence[512];
    atomic_bool is_over;
};

static void on_message(struct rpc_call *rpc_call, void *ctx, const ProtobufCMessage *message) {
    struct watch *watch = ctx;
    if (watch->is_output_lost) return;
    (void)print_status(watch->arguments, ((const CheckResponse *)message)->status);
    watch->is_output_lost = ferror(stdout) != 0;
    if (watch->is_output_lost) rpc_call_cancel(rpc_call);
}

static void on_closed(struct rpc_call *rpc_call, void *ctx, enum rpc_code code,
                      const char *message) {
    (void)rpc_call;
    struct watch *watch = ctx;
    watch->code = code;
    snprintf(watch->sentence, sizeof(watch->sentence), "%s", message);
    atomic_store(&watch->is_over, true);
}

static int watch(struct client *client, const sigset_t *interrupts,
                 const struct arguments *arguments) {
    static const struct rpc_handler handler = {.message = on_message, .closed = on_closed};
    struct watch state = {.arguments = arguments};
    struct rpc_call *rpc_call;
    enum status status = rpc_call_begin(client->channel, &grpc__health__v1__health__descriptor,
                                        "Watch", &handler, &state, NULL, &rpc_call);
    if (status != STATUS_OK) {
        client_report("cannot begin a call to %s (%s)", client->coordinator, status_name(status));
        return CLIENT_EXIT_NO_ANSWER;
    }
    CheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    request.service = (char *)(uintptr_t)arguments->service;
    (void)!rpc_call_send(rpc_call, &request.base); // on_closed() says why not
    const struct timespec pause = {.tv_nsec = CLIENT_WATCH_POLL_MS * 1000000L};
    bool is_interrupted = false;
    while (!atomic_load(&state.is_over)) {
        if (sigtimedwait(interrupts, NULL, &pause) < 0 || is_interrupted) continue;
        is_interrupted = true; // Ctrl-C is how it ends
        rpc_call_cancel(rpc_call);
    }
    rpc_call_release(rpc_call);
    if (is_interrupted || state.is_output_lost) return EXIT_SUCCESS;
    client_report_code(client, state.code, state.sentence);
    return CLIENT_EXIT_NO_ANSWER;
}

int verb_health(int argc, char **argv) {
    struct arguments arguments = {.connection = {.coordinator = CLIENT_COORDINATOR_DEFAULT},
                                  .service = "",
                                  .timeout_seconds = 5};
    int exit_status;
    if (!parse_arguments(argc, argv, &arguments, &exit_status)) return exit_status;
    sigset_t interrupts;
    if (arguments.is_watch) client_block_interrupts(&interrupts);
    struct client client;
    if (!client_open(&arguments.connection, arguments.is_watch ? &interrupts : NULL, &client))
        return CLIENT_EXIT_NO_ANSWER;
    if (arguments.is_watch)
        exit_status = watch(&client, &interrupts, &arguments);
    else
        exit_status = arguments.is_list ? list(&client, &arguments) : check(&client, &arguments);
    client_close(&client);
    return exit_status;
}
