// client: one connection to a coordinator, and what every verb shares.
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/options.h"
#include "base/status.h"
#include "transport/rpc.h"

enum {
    CLIENT_EXIT_USAGE = 2,
    CLIENT_EXIT_INTERRUPTED = 130, // as a shell reports SIGINT
};

#define CLIENT_COORDINATOR_DEFAULT "127.0.0.1:7070"

// The option that every verb has. `target`: const char *, holds the default.
#define CLIENT_OPTION_COORDINATOR(target_pointer)                                                  \
    {                                                                                              \
        .name = "coordinator", .kind = OPTION_TEXT, .target = (target_pointer),                    \
        .argument = "HOST:PORT",                                                                   \
        .help = "where the coordinator listens (default " CLIENT_COORDINATOR_DEFAULT ")"           \
    }

struct client {
    struct rpc *rpc;
    struct rpc_channel *channel;
    const char *coordinator; // borrowed
};

// Blocks SIGINT and SIGTERM for good, so that the caller can wait for them. Before client_open():
// the threads that gRPC starts, now or later, inherit the mask. A verb that does not call this is
// ended by these signals, and the coordinator sees its call cancelled with the connection.
void client_block_interrupts(sigset_t *interrupts_out);

// False when it failed; that has been reported. An unreachable coordinator shows in the calls.
MUST_USE bool client_open(const char *coordinator, struct client *client_out);
void client_close(struct client *client);

// A unary call. The response, to be freed with protobuf_c_message_free_unpacked(response, NULL), or
// NULL when it failed; that has been reported.
MUST_USE ProtobufCMessage *client_call(struct client *client,
                                       const ProtobufCServiceDescriptor *service,
                                       const char *method, const ProtobufCMessage *request);

// One sentence on standard error, with the name of the code.
void client_report_code(const struct client *client, enum rpc_code code, const char *sentence);
// One sentence on standard error.
void client_report(const char *format, ...) PRINTF_LIKE(1, 2);

// Flushes standard output. The exit status of a verb that succeeded in all else: also success when
// the reader closed its end, a failure that is reported when it could not be written otherwise.
MUST_USE int client_finish_output(void);
