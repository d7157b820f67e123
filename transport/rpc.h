// rpc: protobuf RPC over the gRPC core C API. This is the only module that includes its headers.
//
// One thread per `struct rpc` runs the completion queue and every callback; callbacks must not
// block. Sending is allowed from any thread. Messages are protobuf-c messages; which methods exist
// comes from protobuf-c service descriptors, and which of them stream from the descriptor set.
//
// A received message has been checked (transport/rpc_message.h): strings are valid UTF-8 of their
// whole length, no repeated submessage is NULL; absent submessages are NULL, empty `bytes` may have
// data == NULL, numbers and enum values are as the peer sent them. What fails the check is answered
// INVALID_ARGUMENT by a server, with a sentence that names the field, and ends a client's call with
// INTERNAL; the owner is told by `closed` only. Compressed messages are refused.
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

// The canonical gRPC codes (https://grpc.github.io/grpc/core/md_doc_statuscodes.html).
enum rpc_code {
    RPC_OK = 0,
    RPC_CANCELLED = 1,
    RPC_UNKNOWN = 2,
    RPC_INVALID_ARGUMENT = 3,
    RPC_DEADLINE_EXCEEDED = 4,
    RPC_NOT_FOUND = 5,
    RPC_ALREADY_EXISTS = 6,
    RPC_PERMISSION_DENIED = 7,
    RPC_RESOURCE_EXHAUSTED = 8,
    RPC_FAILED_PRECONDITION = 9,
    RPC_ABORTED = 10,
    RPC_OUT_OF_RANGE = 11,
    RPC_UNIMPLEMENTED = 12,
    RPC_INTERNAL = 13,
    RPC_UNAVAILABLE = 14,
    RPC_DATA_LOSS = 15,
    RPC_UNAUTHENTICATED = 16,
};

// "INVALID_ARGUMENT" and so on.
const char *rpc_code_name(enum rpc_code code);
// The code for a status of ours: STATUS_INVALID -> INVALID_ARGUMENT and so on.
enum rpc_code rpc_code_of(enum status status);

// One entry of a call's metadata. `key` is lower-case text. `value` is printable ASCII without a
// space at either end, or any value_bytes bytes when the key ends in "-bin".
struct rpc_metadata {
    const char *key;
    const char *value;
    size_t value_bytes; // of a key that ends in "-bin", else not used
};

// What rpc_call_retry_ms says when the server said nothing, or not to call again.
#define RPC_RETRY_UNSAID UINT32_MAX
#define RPC_RETRY_NEVER (UINT32_MAX - 1)

struct rpc_access;
struct rpc;      // the completion queue, its thread, a server and any number of channels
struct rpc_call; // one call, on either side; counted references

// -- life ----------------------------------------------------------------------------------------

struct rpc_config {
    size_t receive_bytes_max; // a larger message ends the call with RESOURCE_EXHAUSTED; 0: 4 MiB
    // Calls in progress, of a connection as of all; a client holds back what is more on its
    // connection, and what is more in all is answered RESOURCE_EXHAUSTED. 0: 4096
    uint32_t call_count_max;
    // Messages waiting to be sent on one call, and their bytes; at either limit rpc_call_send
    // returns false, unless no other message waits. 0: 256, 1 MiB
    uint32_t send_count_max;
    size_t send_bytes_max;
    // Of a server: connections at once, where one more is closed at once, and after how long
    // without a call one is closed. 0: 4096 (but never all of the process's descriptors), 5 minutes
    uint32_t connection_count_max;
    uint32_t idle_ms;
    // An encoded google.protobuf.FileDescriptorSet with every service that is served or called;
    // borrowed until rpc_close. NULL: proto/descriptors.
    const uint8_t *descriptor_set;
    size_t descriptor_set_bytes;
    // Who may call, and who we are (transport/rpc_access.h), for the server and all channels;
    // borrowed until rpc_close. NULL: plaintext on loopback, from and to anyone.
    struct rpc_access *access;
};

// Block signals in all threads before this. STATUS_NO_MEMORY, STATUS_IO.
MUST_USE enum status rpc_open(const struct rpc_config *config, struct rpc **rpc_out);
// Takes no further connections and calls: they see UNAVAILABLE. Connections without a call are
// closed, so that clients go elsewhere, others when their last call is over. Calls in progress go
// on, calls to others too. Any thread but the rpc thread; nothing when not serving.
void rpc_stop_serving(struct rpc *rpc);
// Stops serving if it still does, lets running calls end for grace_ms, cancels the rest, waits for
// every callback, joins the thread. NULL allowed. Never from a callback. Channels may be closed
// before or after; calls that are still held are over.
void rpc_close(struct rpc *rpc, uint32_t grace_ms);

// -- server --------------------------------------------------------------------------------------

// What the owner of a call is told. All run on the rpc thread, never two at once.
struct rpc_handler {
    // A call of this method has begun. Returns the handler's own context for it (may be NULL).
    // May already send or end the call (for example to refuse it). The call may be used until
    // `closed` returns, longer only with rpc_call_hold.
    void *(*begin)(struct rpc_call *call, void *service_ctx);
    // A message of the peer, of the method's input (server) or output (client) type; freed after
    // this returns. The next message is asked for when this returns.
    void (*message)(struct rpc_call *call, void *ctx, const ProtobufCMessage *message);
    // The peer sends no more. NULL allowed. On a server, a unary or server-streaming call gets
    // `message` once and then this. Neither runs after the owner ended or cancelled the call. On a
    // client it can also come before a `closed` that tells of a failure.
    void (*half_close)(struct rpc_call *call, void *ctx);
    // The call is over and nothing comes after: on a server because it was answered (RPC_OK,
    // whatever the answer), refused for a bad message (the code that the peer got), past its
    // deadline (RPC_DEADLINE_EXCEEDED), or cancelled or cut (RPC_CANCELLED: gRPC does not tell
    // which); on a client with the server's code and message, or RPC_INTERNAL when the only
    // response of a call is missing. Always runs exactly once.
    void (*closed)(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message);
    // There is room to send again after rpc_call_send returned false. NULL allowed.
    void (*writable)(struct rpc_call *call, void *ctx);
};

struct rpc_method {
    const char *name; // such as "Generate"
    struct rpc_handler handler;
};

// What a caller may be, as its certificate or token says; one may be several.
enum rpc_role {
    RPC_ROLE_CLIENT = 1 << 0,   // asks for tokens
    RPC_ROLE_OPERATOR = 1 << 1, // looks after the pipeline
    RPC_ROLE_STAGE = 1 << 2,    // joins the pipeline
};
// Whoever the server lets in, whatever its roles.
#define RPC_ROLES_ANY 0

// Adds a service before rpc_serve. `roles` (of enum rpc_role, or RPC_ROLES_ANY): a caller must have
// one of them, where callers are known (transport/rpc_access.h). Methods of the descriptor that are
// not in the list answer UNIMPLEMENTED. All pointers are borrowed until rpc_close. STATUS_NOT_FOUND
// when the descriptor or the descriptor set does not have a method, STATUS_EXHAUSTED beyond
// RPC_METHOD_COUNT_MAX.
MUST_USE enum status rpc_add_service(struct rpc *rpc, const ProtobufCServiceDescriptor *service,
                                     const struct rpc_method *methods, size_t method_count,
                                     void *service_ctx, uint32_t roles, struct error *error);

// Before rpc_serve: a larger message of a client to this method of an added service, or to each of
// its methods when `method` is NULL, ends the call with RESOURCE_EXHAUSTED before it is unpacked.
// The server's own limit holds too.
void rpc_limit_messages(struct rpc *rpc, const ProtobufCServiceDescriptor *service,
                        const char *method, size_t receive_bytes_max);

// Listens on "host:port" (port 0: any free one) or "unix:/path" and serves; may be called once.
// *port_out gets the port (0 for unix). An empty host (":port") is every address of the machine.
// STATUS_INVALID, STATUS_IO: with a sentence that names the address. Plaintext beyond loopback is
// invalid, see rpc_access_check_listen.
MUST_USE enum status rpc_serve(struct rpc *rpc, const char *address, uint16_t *port_out,
                               struct error *error);

// -- client --------------------------------------------------------------------------------------

struct rpc_channel;

// Never fails for an unreachable address: calls do. `target` is "host:port" or "unix:/path".
// STATUS_INVALID where rpc_access_check_dial says so.
MUST_USE enum status rpc_channel_open(struct rpc *rpc, const char *target,
                                      struct rpc_channel **channel_out);
void rpc_channel_close(struct rpc_channel *channel); // calls in progress go on

// How a call is made. NULL in place of it: no deadline, no metadata.
struct rpc_call_options {
    uint32_t deadline_ms;                // 0: none
    const struct rpc_metadata *metadata; // to send before the request; a loan until begun
    size_t metadata_count;
    uint32_t *retry_ms_out; // rpc_call_wait only: gets rpc_call_retry_ms in any case; NULL allowed
};

// Begins a call; `handler->begin` is not used. `handler` is copied.
// The caller gets one reference in *call_out (rpc_call_release it). Callbacks may run before this
// returns. Without a connection the call waits for the attempt in progress and fails with
// RPC_UNAVAILABLE when that fails. A call to a method with a single request ends its sending with
// the first rpc_call_send.
// STATUS_NOT_FOUND: no such method. STATUS_EXHAUSTED: call_count_max, or more than
// RPC_METADATA_COUNT_MAX entries. STATUS_UNAVAILABLE: closing. STATUS_INVALID: an entry of the
// metadata is not legal.
MUST_USE enum status rpc_call_begin(struct rpc_channel *channel,
                                    const ProtobufCServiceDescriptor *service, const char *method,
                                    const struct rpc_handler *handler, void *ctx,
                                    const struct rpc_call_options *options,
                                    struct rpc_call **call_out);

// A unary call that waits (never on the rpc thread). On RPC_OK *response_out is a message that the
// caller frees with protobuf_c_message_free_unpacked(message, NULL); otherwise `error` has the
// server's sentence.
MUST_USE enum rpc_code rpc_call_wait(struct rpc_channel *channel,
                                     const ProtobufCServiceDescriptor *service, const char *method,
                                     const ProtobufCMessage *request,
                                     const struct rpc_call_options *options,
                                     ProtobufCMessage **response_out, struct error *error);

// -- calls, any thread ---------------------------------------------------------------------------

void rpc_call_hold(struct rpc_call *call);
void rpc_call_release(struct rpc_call *call);

// Packs and queues a message; nothing is kept of it. False, and nothing queued, when send_count_max
// messages or send_bytes_max wait already (`writable` follows when half is gone), or when the call
// is over
// (`closed` ran or will). What a server answers to a call with a single response goes out at
// rpc_call_end.
MUST_USE bool rpc_call_send(struct rpc_call *call, const ProtobufCMessage *message);

// Client: says that no more messages come, after those queued.
void rpc_call_send_end(struct rpc_call *call);

// Server: ends the call after the messages queued. `message` is copied; "" for RPC_OK. A second end
// of the same call does nothing. RPC_OK without the single response becomes INTERNAL. The answer
// waits until the single request has been read to its end.
void rpc_call_end(struct rpc_call *call, enum rpc_code code, const char *message);

// The same for a call that may be made again after retry_ms: the client gets that as the trailing
// metadata grpc-retry-pushback-ms, as gRPC's retries understand it (gRFC A6), and as a
// google.rpc.RetryInfo in grpc-status-details-bin.
void rpc_call_refuse(struct rpc_call *call, enum rpc_code code, const char *message,
                     uint32_t retry_ms);

// The same for an `error` of ours, with the code of its status. If the status is STATUS_INVALID and
// error->field is not empty, the client also gets a google.rpc.BadRequest that names the field.
void rpc_call_fail(struct rpc_call *call, enum status status, const struct error *error);

// Ends the call at once, whatever is queued; `closed` follows with RPC_CANCELLED.
void rpc_call_cancel(struct rpc_call *call);

// Whether the call is over: the peer went away, the deadline passed or it was ended.
bool rpc_call_is_over(struct rpc_call *call);

// Server: whether the call's deadline has passed. gRPC ends such a call by itself, but may give its
// request first.
bool rpc_call_is_late(const struct rpc_call *call);

// The value of the first entry with this key among the metadata that the peer sent before its
// messages; NULL: there is none. Text only: nothing for keys that end in "-bin". On a server valid
// from `begin`, on a client from the first `message` on, until `closed` has returned.
const char *rpc_call_metadata(const struct rpc_call *call, const char *key);
// Client: the same of the metadata that came with the status. Valid in `closed`.
const char *rpc_call_trailer(const struct rpc_call *call, const char *key);
// The same two for keys that end in "-bin": the *size_bytes_out bytes of the first such entry.
const void *rpc_call_metadata_bytes(const struct rpc_call *call, const char *key,
                                    size_t *size_bytes_out);
const void *rpc_call_trailer_bytes(const struct rpc_call *call, const char *key,
                                   size_t *size_bytes_out);
// Client, in `closed`: after how long the server wants the call again (grpc-retry-pushback-ms, gRFC
// A6), RPC_RETRY_UNSAID or RPC_RETRY_NEVER.
uint32_t rpc_call_retry_ms(const struct rpc_call *call);

// Server: adds to the metadata that goes out before the first message or, if there is none, before
// the status; and to what goes out with the status. STATUS_INVALID: an entry is not legal.
// STATUS_EXHAUSTED: more than RPC_METADATA_COUNT_MAX. STATUS_UNAVAILABLE: too late.
MUST_USE enum status rpc_call_add_metadata(struct rpc_call *call,
                                           const struct rpc_metadata *entries, size_t entry_count);
MUST_USE enum status rpc_call_add_trailers(struct rpc_call *call,
                                           const struct rpc_metadata *entries, size_t entry_count);

// Server: who calls: the name of its token, or the common name of its certificate; "" when nobody
// knows. Valid as long as the call.
const char *rpc_call_caller(const struct rpc_call *call);

// The peer's address without its port, such as "10.0.0.7" or "::1"; "" for unix sockets and on a
// client.
void rpc_call_peer_host(const struct rpc_call *call, char *host_out, size_t host_capacity_bytes);

// -- what a server tells of a call in its logs ----------------------------------------------------

// Of a call that this server's services answer: "package.Service" and "Method". Static.
const char *rpc_call_service_name(const struct rpc_call *call);
const char *rpc_call_method_name(const struct rpc_call *call);
// In `closed` and after: what the call came to, which is the answer that it was given, or
// RPC_CANCELLED or RPC_DEADLINE_EXCEEDED when it was cut before. The sentence is the call's own.
enum rpc_code rpc_call_outcome(const struct rpc_call *call, const char **message_out);
// In `closed` and after: from begin to end.
uint64_t rpc_call_lasted_ns(const struct rpc_call *call);
