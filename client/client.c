#include "client/client.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/limits.h"

void client_block_interrupts(sigset_t *interrupts_out) {
    sigemptyset(interrupts_out);
    sigaddset(interrupts_out, SIGINT);
    sigaddset(interrupts_out, SIGTERM);
    pthread_sigmask(SIG_BLOCK, interrupts_out, NULL);
}

bool client_open(const struct client_options *options, const sigset_t *interrupts,
                 struct client *client_out) {
    const char *coordinator = options->coordinator;
    struct client client = {.coordinator = coordinator,
                            .interrupts = interrupts,
                            .retry_ms = (uint32_t)(options->retry_seconds * 1000)};
    struct error error;
    enum status status = rpc_access_open(&options->access, &client.access, &error);
    if (status == STATUS_OK) status = rpc_access_check_dial(client.access, coordinator, &error);
    if (status != STATUS_OK) {
        client_report("%s", error.text);
        goto close_access;
    }
    const struct rpc_config config = {.access = client.access};
    status = rpc_open(&config, &client.rpc);
    if (status != STATUS_OK) goto report;
    status = rpc_channel_open(client.rpc, coordinator, &client.channel);
    if (status != STATUS_OK) goto close_rpc;
    *client_out = client;
    return true;
close_rpc:
    rpc_close(client.rpc, 0);
report:
    client_report("cannot prepare a connection to %s (%s)", coordinator, status_name(status));
close_access:
    rpc_access_close(client.access);
    return false;
}

void client_close(struct client *client) {
    rpc_channel_close(client->channel);
    rpc_close(client->rpc, 0);
    rpc_access_close(client->access);
}

ProtobufCMessage *client_try(struct client *client, const ProtobufCServiceDescriptor *service,
                             const char *method, const ProtobufCMessage *request,
                             enum rpc_code *code_out, struct error *error) {
    struct retry retry;
    retry_init(&retry, client->retry_ms, retry_draw());
    for (;;) {
        struct retry_failure failure;
        const struct rpc_call_options options = {.deadline_ms = CLIENT_CALL_MS,
                                                 .retry_ms_out = &failure.said_ms};
        ProtobufCMessage *response;
        *error = (struct error){0};
        failure.code =
            rpc_call_wait(client->channel, service, method, request, &options, &response, error);
        if (failure.code == RPC_OK) return response;
        if (client_wait_to_retry(client, &retry, &failure, error->text)) continue;
        *code_out = failure.code;
        return NULL;
    }
}

ProtobufCMessage *client_call(struct client *client, const ProtobufCServiceDescriptor *service,
                              const char *method, const ProtobufCMessage *request) {
    enum rpc_code code = RPC_UNKNOWN;
    struct error error;
    ProtobufCMessage *response = client_try(client, service, method, request, &code, &error);
    if (response == NULL) client_report_failure(client, code, error.text);
    return response;
}

void client_report_failure(const struct client *client, enum rpc_code code, const char *sentence) {
    if (client->is_interrupted)
        client_report("interrupted");
    else
        client_report_code(client, code, sentence);
}

static bool pause_ms(const struct client *client, uint32_t wait_ms) {
    const struct timespec pause = {.tv_sec = wait_ms / 1000,
                                   .tv_nsec = (long)(wait_ms % 1000) * 1000000};
    if (client->interrupts != NULL) return sigtimedwait(client->interrupts, NULL, &pause) < 0;
    nanosleep(&pause, NULL);
    return true;
}

bool client_wait_to_retry(struct client *client, struct retry *retry,
                          const struct retry_failure *failure, const char *sentence) {
    struct clock clock = clock_system();
    struct retry_plan plan;
    if (!retry_plan(retry, failure, clock_now_ms(&clock), &plan)) return false;
    if (plan.is_notable)
        client_report("%s: %s (%s), trying for %.1f s more", client->coordinator, sentence,
                      rpc_code_name(failure->code), plan.left_ms / 1e3);
    client->is_interrupted = !pause_ms(client, plan.wait_ms);
    return !client->is_interrupted;
}

int client_exit_status(const struct client *client) {
    return client->is_interrupted ? CLIENT_EXIT_INTERRUPTED : EXIT_FAILURE;
}

void client_report_code(const struct client *client, enum rpc_code code, const char *sentence) {
    if (code == RPC_UNAVAILABLE || code == RPC_DEADLINE_EXCEEDED)
        client_report("%s: %s (%s)", client->coordinator, sentence, rpc_code_name(code));
    else
        client_report("%s (%s)", sentence, rpc_code_name(code));
}

void client_report(const char *format, ...) {
    char sentence[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof(sentence), format, arguments);
    va_end(arguments);
    fprintf(stderr, "stagecoach: %s\n", sentence);
}

int client_finish_output(void) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return EXIT_SUCCESS;
    if (errno == EPIPE) return EXIT_SUCCESS;
    client_report("cannot write to standard output: %s", strerror(errno));
    return EXIT_FAILURE;
}
