// client: one connection to a coordinator, and what every verb shares.
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/options.h"
#include "base/status.h"
#include "client/retry.h"
#include "transport/rpc.h"
#include "transport/rpc_access.h"

enum {
    CLIENT_EXIT_USAGE = 2,
    CLIENT_EXIT_NO_ANSWER = 3,     // of a probe: nothing is known
    CLIENT_EXIT_INTERRUPTED = 130, // as a shell reports SIGINT
};

#define CLIENT_COORDINATOR_DEFAULT "127.0.0.1:7070"

// What every verb lets its user say about the connection.
struct client_options {
    const char *coordinator;
    double retry_seconds; // calls that fail are made again for so long; 0: once
    struct rpc_access_config access;
};
#define CLIENT_OPTIONS_DEFAULT                                                                     \
    { .coordinator = CLIENT_COORDINATOR_DEFAULT, .retry_seconds = 10 }
// Entries of a table of options; they write to the struct client_options that is pointed to.
// Where the coordinator is and who calls it:
#define CLIENT_CONNECTION_SPECS(options_pointer)                                                   \
    {.name = "coordinator",                                                                        \
     .kind = OPTION_TEXT,                                                                          \
     .target = &(options_pointer)->coordinator,                                                    \
     .argument = "HOST:PORT",                                                                      \
     .help = "where the coordinator listens (default " CLIENT_COORDINATOR_DEFAULT ")"},            \
        RPC_ACCESS_OPTIONS_TLS(&(options_pointer)->access),                                        \
        RPC_ACCESS_OPTIONS_DIAL(&(options_pointer)->access), {                                     \
        .name = "insecure", .kind = OPTION_FLAG, .target = &(options_pointer)->access.insecure,    \
        .help = "send the token of --token-file in plaintext also beyond loopback"                 \
    }
// All:
#define CLIENT_OPTION_SPECS(options_pointer)                                                       \
    CLIENT_CONNECTION_SPECS(options_pointer), {                                                    \
        .name = "retry-seconds", .kind = OPTION_NUMBER,                                            \
        .target = &(options_pointer)->retry_seconds, .argument = "S",                              \
        .help = "make calls again for so long while nobody answers (default 10, 0: do not)",       \
        .maximum = 1e6                                                                             \
    }

struct client {
    struct rpc_access *access;
    struct rpc *rpc;
    struct rpc_channel *channel;
    const char *coordinator;    // borrowed
    const sigset_t *interrupts; // blocked, and borrowed; NULL: they end the process
    uint32_t retry_ms;          // the limit of struct retry of all its calls
    bool is_interrupted;        // one of the interrupts came while it waited
};

// Blocks SIGINT and SIGTERM for good, so that the caller can wait for them. Before client_open():
// the threads that gRPC starts, now or later, inherit the mask. A verb that does not call this is
// ended by these signals, and the coordinator sees its call cancelled with the connection.
void client_block_interrupts(sigset_t *interrupts_out);

// `interrupts`: what client_block_interrupts() gave, NULL without it. False when it failed; that
// has been reported. An unreachable coordinator shows in the calls.
MUST_USE bool client_open(const struct client_options *options, const sigset_t *interrupts,
                          struct client *client_out);
void client_close(struct client *client);

// A unary call, made again while that is worth it. The response, to be freed with
// protobuf_c_message_free_unpacked(response, NULL), or NULL when it failed or was interrupted
// between attempts; that has been reported.
MUST_USE ProtobufCMessage *client_call(struct client *client,
                                       const ProtobufCServiceDescriptor *service,
                                       const char *method, const ProtobufCMessage *request);

// The same, but reports nothing when it failed: *code_out and `error` say why.
MUST_USE ProtobufCMessage *client_try(struct client *client,
                                      const ProtobufCServiceDescriptor *service, const char *method,
                                      const ProtobufCMessage *request, enum rpc_code *code_out,
                                      struct error *error);

// What client_call says of a call that failed.
void client_report_failure(const struct client *client, enum rpc_code code, const char *sentence);

// After a failed attempt of a call: waits until it is to be made again, and says so on standard
// error when it takes long. False: it is not to be made again, or one of the interrupts came:
// client->is_interrupted is set.
MUST_USE bool client_wait_to_retry(struct client *client, struct retry *retry,
                                   const struct retry_failure *failure, const char *sentence);

// The exit status of a verb whose call failed.
int client_exit_status(const struct client *client);

// One sentence on standard error, with the name of the code.
void client_report_code(const struct client *client, enum rpc_code code, const char *sentence);
// One sentence on standard error.
void client_report(const char *format, ...) PRINTF_LIKE(1, 2);

// Flushes standard output. The exit status of a verb that succeeded in all else: also success when
// the reader closed its end, a failure that is reported when it could not be written otherwise.
MUST_USE int client_finish_output(void);
