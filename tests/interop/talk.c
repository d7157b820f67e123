#include "talk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/check.h"
#include "testing.pb-c.h"

enum { WAIT_SECONDS = 120 }; // no step takes so long

// -- callbacks; on the rpc thread ----------------------------------------------------------------

static uint32_t payload_bytes(const Grpc__Testing__Payload *payload) {
    return payload == NULL ? 0 : (uint32_t)payload->body.len;
}

// What an answer says in one number; answers without one are 0.
static uint32_t size_of(const ProtobufCMessage *message) {
    if (message->descriptor == &grpc__testing__simple_response__descriptor)
        return payload_bytes(((const Grpc__Testing__SimpleResponse *)message)->payload);
    if (message->descriptor == &grpc__testing__streaming_output_call_response__descriptor)
        return payload_bytes(
            ((const Grpc__Testing__StreamingOutputCallResponse *)message)->payload);
    if (message->descriptor == &grpc__testing__streaming_input_call_response__descriptor)
        return (uint32_t)((const Grpc__Testing__StreamingInputCallResponse *)message)
            ->aggregated_payload_size;
    return 0;
}

static void take_answer(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)call;
    struct talk *talk = ctx;
    pthread_mutex_lock(&talk->mutex);
    if (talk->count == talk->capacity) {
        talk->capacity = talk->capacity == 0 ? 4 : talk->capacity * 2;
        talk->sizes = realloc(talk->sizes, talk->capacity * sizeof(*talk->sizes));
        CHECK(talk->sizes != NULL);
    }
    talk->sizes[talk->count++] = size_of(message);
    pthread_cond_broadcast(&talk->changed);
    pthread_mutex_unlock(&talk->mutex);
}

static void read_echo(const struct rpc_call *call, struct talk_echo *echo) {
    const char *text = rpc_call_metadata(call, "x-grpc-test-echo-initial");
    if (text != NULL) (void)snprintf(echo->text, sizeof(echo->text), "%s", text);
    size_t size_bytes;
    const void *bytes = rpc_call_trailer_bytes(call, "x-grpc-test-echo-trailing-bin", &size_bytes);
    if (bytes == NULL || size_bytes > sizeof(echo->bytes)) return;
    memcpy(echo->bytes, bytes, size_bytes);
    echo->byte_count = size_bytes;
}

static void close_talk(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message) {
    struct talk *talk = ctx;
    pthread_mutex_lock(&talk->mutex);
    talk->is_over = true;
    talk->code = code;
    (void)snprintf(talk->text, sizeof(talk->text), "%s", message);
    read_echo(call, &talk->echo);
    pthread_cond_broadcast(&talk->changed);
    pthread_mutex_unlock(&talk->mutex);
}

static void note_room(struct rpc_call *call, void *ctx) {
    (void)call;
    struct talk *talk = ctx;
    pthread_mutex_lock(&talk->mutex);
    pthread_cond_broadcast(&talk->changed);
    pthread_mutex_unlock(&talk->mutex);
}

// -- steps ---------------------------------------------------------------------------------------

void talk_begin(struct talk *talk, struct rpc_channel *channel,
                const ProtobufCServiceDescriptor *service, const char *method,
                const struct rpc_call_options *options) {
    static const struct rpc_handler handler = {
        .message = take_answer, .closed = close_talk, .writable = note_room};
    *talk = (struct talk){0};
    CHECK(pthread_mutex_init(&talk->mutex, NULL) == 0);
    CHECK(pthread_cond_init(&talk->changed, NULL) == 0);
    CHECK(rpc_call_begin(channel, service, method, &handler, talk, options, &talk->call) ==
          STATUS_OK);
}

// The mutex is held. A step that never comes ends the test with a message.
static void wait_for_change(struct talk *talk) {
    struct timespec until;
    CHECK(clock_gettime(CLOCK_REALTIME, &until) == 0);
    until.tv_sec += WAIT_SECONDS;
    if (pthread_cond_timedwait(&talk->changed, &talk->mutex, &until) != ETIMEDOUT) return;
    (void)fprintf(stderr, "a call did not go on within %d s\n", WAIT_SECONDS);
    abort();
}

bool talk_send(struct talk *talk, const ProtobufCMessage *message) {
    pthread_mutex_lock(&talk->mutex);
    // `writable` takes the mutex, so it cannot be missed.
    bool is_sent = rpc_call_send(talk->call, message);
    while (!is_sent && !talk->is_over) {
        wait_for_change(talk);
        is_sent = rpc_call_send(talk->call, message);
    }
    pthread_mutex_unlock(&talk->mutex);
    return is_sent;
}

bool talk_wait_answers(struct talk *talk, size_t count) {
    pthread_mutex_lock(&talk->mutex);
    while (talk->count < count && !talk->is_over) {
        wait_for_change(talk);
    }
    bool have_come = talk->count >= count;
    pthread_mutex_unlock(&talk->mutex);
    return have_come;
}

enum rpc_code talk_end(struct talk *talk) {
    pthread_mutex_lock(&talk->mutex);
    while (!talk->is_over) {
        wait_for_change(talk);
    }
    pthread_mutex_unlock(&talk->mutex);
    return talk->code;
}

void talk_fini(struct talk *talk) {
    CHECK(talk->is_over);
    rpc_call_release(talk->call);
    pthread_cond_destroy(&talk->changed);
    pthread_mutex_destroy(&talk->mutex);
    free(talk->sizes);
}
