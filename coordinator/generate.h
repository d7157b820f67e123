// generate: calls that ask for tokens, on the rpc thread: from the first message until the loop
// owns the request. Shared by the services that have such a method.
#pragma once

#include "coordinator/frontend.h"

// Makes a request of a method's own message and says how its answers are sent; statuses and
// sentences are those of request_open().
typedef enum status generate_open_fn(const struct frontend *frontend,
                                     const ProtobufCMessage *message, struct request **request_out,
                                     struct error *error);

// Parts of the method's struct rpc_handler; the context is that of generate_begin().
void *generate_begin(struct rpc_call *call, struct frontend *frontend);
// Gives the message's request to the loop, or ends the call.
void generate_take(struct rpc_call *call, void *ctx, const ProtobufCMessage *message,
                   generate_open_fn *open);
void generate_writable(struct rpc_call *call, void *ctx);
void generate_closed(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message);
