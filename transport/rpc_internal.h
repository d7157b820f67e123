// rpc_internal: what the rpc_*.c files share. Together with them the only place of gRPC core
// headers.
//
//   rpc.c         life, completion queue thread     rpc_server.c  new calls, routes, listening
//   rpc_call.c    one call, either side             rpc_client.c  channels, beginning a call
//   rpc_send.c    its sending half                  rpc_receive.c its receiving half
//
// Locks: rpc->mutex, then call->mutex; never the other way round, none during a callback.
#pragma once

#include <grpc/grpc.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/limits.h"
#include "transport/rpc.h"
#include "transport/rpc_access.h"
#include "transport/rpc_metadata.h"

// ThreadSanitizer does not see that gRPC's queue orders "batch started" before "tag came back": the
// library is not instrumented. These two calls tell it.
#if defined(__SANITIZE_THREAD__)
#define RPC_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RPC_THREAD_SANITIZER 1
#endif
#endif
#ifdef RPC_THREAD_SANITIZER
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#define RPC_TAG_GIVEN(tag) __tsan_release(tag)
#define RPC_TAG_TAKEN(tag) __tsan_acquire(tag)
#else
#define RPC_TAG_GIVEN(tag) ((void)(tag))
#define RPC_TAG_TAKEN(tag) ((void)(tag))
#endif

// What the completion queue gives back. Part of the struct that it is about.
struct rpc_tag {
    void (*done)(void *owner, bool success); // on the rpc thread
    void *owner;
};

// A method that this server answers.
struct rpc_route {
    char path[256]; // "/package.Service/Method"
    const ProtobufCServiceDescriptor *service;
    const ProtobufCMethodDescriptor *method;
    bool client_streams, server_streams;
    struct rpc_handler handler;
    void *service_ctx;
    size_t receive_bytes_max; // 0: the server's
    uint32_t roles;           // a caller must have one of them; RPC_ROLES_ANY
};

// One posted request for a new call.
struct rpc_slot {
    struct rpc_tag tag;
    struct rpc *rpc;
    grpc_call *grpc;
    grpc_call_details details;
    grpc_metadata_array metadata;
};

struct rpc {
    struct rpc_config config; // without zeros
    grpc_completion_queue *queue;
    pthread_t thread;

    grpc_server *server;        // NULL before rpc_serve
    atomic_uint tls_generation; // of the certificates that the server uses
    struct rpc_accept *accept;
    struct rpc_tag stopped_tag;
    struct rpc_slot slots[RPC_ACCEPT_COUNT];
    struct rpc_route routes[RPC_METHOD_COUNT_MAX]; // fixed once serving
    size_t route_count;

    pthread_mutex_t mutex;
    pthread_cond_t changed; // call_count or server_stopped
    struct rpc_call *calls; // in progress, linked by next and previous
    uint32_t call_count;
    bool closing;
    bool server_stopping; // no new calls
    bool server_shut;     // gRPC has been told
    bool server_stopped;
};

struct rpc_channel {
    struct rpc *rpc;
    char target[512];      // as gRPC wants it
    pthread_mutex_t mutex; // guards what follows
    grpc_channel *grpc;
    grpc_channel *previous;  // with the certificates before: calls may wait for its connection
    uint32_t tls_generation; // of the certificates of `grpc`
};

struct rpc_message_node {
    struct rpc_message_node *next;
    size_t size_bytes;
    grpc_byte_buffer *bytes;
};

// A call has three kinds of batches, each with its own tag and at most one in flight: send, receive
// and close. The gRPC call is freed when `closed_seen` and no tag is out; after that this struct is
// only memory for those who still hold a reference.
struct rpc_call {
    atomic_uint reference_count;
    bool is_server;
    bool sends_many, receives_many;
    bool has_owner;  // false for a server's call that is refused: there are no callbacks
    struct rpc *rpc; // not to be used once over: it may be gone
    struct rpc_handler handler;
    void *ctx;
    const ProtobufCMessageDescriptor *send_type, *receive_type; // NULL without owner
    const ProtobufCServiceDescriptor *service;                  // of a server's call with owner
    const ProtobufCMethodDescriptor *method;                    // likewise
    gpr_timespec lasted;                                        // once it is over
    gpr_timespec begun, deadline;                               // monotonic
    char peer_host[64];                                         // of a server's call
    uint16_t peer_port;                                         // likewise; 0: unix
    struct rpc_caller caller;                                   // likewise
    ProtobufCMessage **keep_out; // rpc_call_wait: gets the message instead of handler.message
    struct rpc_tag send_tag, receive_tag, close_tag;

    struct rpc_call *next, *previous; // guarded by rpc->mutex

    // Owned by the rpc thread.
    grpc_byte_buffer *received;
    ProtobufCMessage *request; // of a call with one request: kept until its end has been read
    grpc_slice status_details; // client: out of the close batch, like status
    grpc_metadata_array initial, trailing; // client; gRPC owns what the entries say
    struct rpc_texts *metadata, *trailers; // what the peer sent, fixed from when owners can ask
    grpc_status_code status;
    int cancelled;              // server: out of the close batch
    enum rpc_code outcome_code; // server: how it ended, once it has
    const char *outcome_text;
    uint32_t received_count;
    size_t receive_bytes_max;   // 0: the limit that gRPC holds
    enum rpc_code refusal_code; // RPC_OK: this module refused nothing
    char *refusal_text;         // NULL: none
    bool initial_metadata_asked, metadata_seen;

    // What follows, and every start of a batch, is guarded by the mutex.
    bool send_busy;
    bool send_broken; // a send failed: no other will succeed
    bool initial_due; // initial metadata goes out also without a message
    bool initial_sent;
    bool end_due; // status (server) or half-close (client) after the queue
    bool end_sent;
    bool read_done;   // no request is on its way: the status may be sent
    bool ended;       // by the owner or by this module: no more sends, no more messages
    bool closed_seen; // the close tag came back
    bool writable_due;
    uint32_t tag_count; // batches in flight
    uint32_t queued_count;
    size_t queued_bytes;
    enum rpc_code end_code;
    char *end_text;                                  // NULL: ""
    grpc_metadata_array send_initial, send_trailing; // to go out
    grpc_call *grpc;                                 // NULL when the call has been freed
    struct rpc_message_node *first, *last;
    grpc_byte_buffer *sending;
    pthread_mutex_t mutex;
};

// -- rpc.c ---------------------------------------------------------------------------------------

// Counts the call and puts it on the list. STATUS_UNAVAILABLE when closing or, for a server's call,
// stopping; STATUS_EXHAUSTED. `always`: counts it also beyond the limit and then.
MUST_USE enum status rpc_track(struct rpc *rpc, struct rpc_call *call, bool always);
void rpc_untrack(struct rpc *rpc, struct rpc_call *call);
bool rpc_is_own_thread(struct rpc *rpc);
// A number argument for a channel or server.
grpc_arg rpc_argument(const char *key, int value);

// -- rpc_server.c --------------------------------------------------------------------------------

void rpc_slot_post(struct rpc_slot *slot);

// -- rpc_tls.c -----------------------------------------------------------------------------------

grpc_server_credentials *rpc_tls_server_credentials(struct rpc *rpc);
grpc_channel_credentials *rpc_tls_channel_credentials(struct rpc_access *access,
                                                      uint32_t *generation_out);
// What the connection of a server's call says of the peer.
void rpc_tls_read_caller(grpc_call *call, struct rpc_caller *caller_out);

// -- rpc_call.c ----------------------------------------------------------------------------------

// With two references: the first is dropped when the call is over. NULL: no memory.
struct rpc_call *rpc_call_new(struct rpc *rpc);
// Starts the close batch, and sends what may be sent.
void rpc_call_start(struct rpc_call *call);
// Starts one batch. The mutex is held.
void rpc_call_start_batch(struct rpc_call *call, struct rpc_tag *tag, const grpc_op *ops,
                          size_t op_count);
// The last thing that is done for every tag: ends the call when it was the last one.
void rpc_call_settle(struct rpc_call *call);

// -- rpc_send.c ----------------------------------------------------------------------------------

// Starts the next send batch when there is something to send and none is in flight. The mutex is
// held.
void rpc_call_pump(struct rpc_call *call);
// Frees what waits to be sent. The mutex is held.
void rpc_call_drop_queue(struct rpc_call *call);
void rpc_call_on_send(void *call, bool success);

// -- rpc_receive.c -------------------------------------------------------------------------------

void rpc_call_start_receive(struct rpc_call *call);
void rpc_call_on_receive(void *call, bool success);
