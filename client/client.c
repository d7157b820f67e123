#include "client/client.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"

void client_block_interrupts(sigset_t *interrupts_out) {
    sigemptyset(interrupts_out);
    sigaddset(interrupts_out, SIGINT);
    sigaddset(interrupts_out, SIGTERM);
    pthread_sigmask(SIG_BLOCK, interrupts_out, NULL);
}

bool client_open(const char *coordinator, struct client *client_out) {
    struct client client = {.coordinator = coordinator};
    struct rpc_config config = {0};
    enum status status = rpc_open(&config, &client.rpc);
    if (status != STATUS_OK) goto report;
    status = rpc_channel_open(client.rpc, coordinator, &client.channel);
    if (status != STATUS_OK) goto close_rpc;
    *client_out = client;
    return true;
close_rpc:
    rpc_close(client.rpc, 0);
report:
    client_report("cannot prepare a connection to %s (%s)", coordinator, status_name(status));
    return false;
}

void client_close(struct client *client) {
    rpc_channel_close(client->channel);
    rpc_close(client->rpc, 0);
}

ProtobufCMessage *client_call(struct client *client, const ProtobufCServiceDescriptor *service,
                              const char *method, const ProtobufCMessage *request) {
    const struct rpc_call_options options = {.deadline_ms = CLIENT_CALL_MS};
    ProtobufCMessage *response;
    struct error error = {0};
    enum rpc_code code =
        rpc_call_wait(client->channel, service, method, request, &options, &response, &error);
    if (code == RPC_OK) return response;
    client_report_code(client, code, error.text);
    return NULL;
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
