#include "transport/inbox.h"

#include <sched.h>
#include <stdlib.h>

#include "base/check.h"

enum status inbox_init(struct inbox *inbox, size_t capacity_count, struct wake *wake) {
    inbox->wake = wake;
    return ring_open(capacity_count, &inbox->ring);
}

void inbox_fini(struct inbox *inbox) {
    struct event *event;
    while (inbox->ring != NULL && (event = inbox_take(inbox)) != NULL)
        event_close(event);
    ring_close(inbox->ring);
    inbox->ring = NULL;
}

bool inbox_offer(struct inbox *inbox, int kind, void *subject) {
    struct event *event = calloc(1, sizeof(*event));
    if (event == NULL) return false;
    *event = (struct event){.kind = kind, .subject = subject};
    if (!ring_give(inbox->ring, event)) {
        free(event);
        return false;
    }
    wake_signal(inbox->wake);
    return true;
}

static ProtobufCMessage *copy_message(const ProtobufCMessage *message) {
    size_t size_bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = malloc(size_bytes + 1);
    CHECK(bytes != NULL);
    protobuf_c_message_pack(message, bytes);
    ProtobufCMessage *copy =
        protobuf_c_message_unpack(message->descriptor, NULL, size_bytes, bytes);
    free(bytes);
    CHECK(copy != NULL);
    return copy;
}

void inbox_put(struct inbox *inbox, int kind, void *subject, const ProtobufCMessage *message) {
    struct event *event = calloc(1, sizeof(*event));
    // Without this event the loop's picture would be wrong for ever; nothing smaller can be given
    // up.
    CHECK(event != NULL);
    *event = (struct event){.kind = kind, .subject = subject};
    if (message != NULL) event->message = copy_message(message);
    // The owner never waits for the threads that put, so room comes.
    while (!ring_give(inbox->ring, event))
        sched_yield();
    wake_signal(inbox->wake);
}

struct event *inbox_take(struct inbox *inbox) {
    return ring_take(inbox->ring);
}

void event_close(struct event *event) {
    if (event->message != NULL) protobuf_c_message_free_unpacked(event->message, NULL);
    free(event);
}
