// talk: one call of a client, for tests that wait for each of its steps.
#pragma once

#include <pthread.h>

#include "transport/rpc.h"

enum { TALK_TEXT_BYTES_MAX = 511 };

// Of the metadata that a call may echo: see service.h.
struct talk_echo {
    char text[64];
    uint8_t bytes[64];
    size_t byte_count;
};

struct talk {
    struct rpc_call *call;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    // What follows is guarded by the mutex while the call goes on.
    uint32_t *sizes; // bytes of payload of each answer, in their order
    size_t count, capacity;
    bool is_over;
    enum rpc_code code;
    char text[TALK_TEXT_BYTES_MAX + 1];
    struct talk_echo echo;
};

// Begins a call of grpc.testing.TestService or UnimplementedService. `options` may be NULL. The
// talk must stay where it is until talk_end.
void talk_begin(struct talk *talk, struct rpc_channel *channel,
                const ProtobufCServiceDescriptor *service, const char *method,
                const struct rpc_call_options *options);
// Waits while too much waits to be sent. False: the call is over.
bool talk_send(struct talk *talk, const ProtobufCMessage *message);
// Waits until `count` answers have come. False: the call ended before.
bool talk_wait_answers(struct talk *talk, size_t count);
// Waits for the end; what the call gave can be read until talk_fini.
enum rpc_code talk_end(struct talk *talk);
void talk_fini(struct talk *talk);
