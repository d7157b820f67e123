// inbox: what the rpc thread (or another) tells the thread that decides. A bounded ring of events,
// each with a subject and perhaps a copy of a protobuf message.
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>

#include "base/ring.h"
#include "base/status.h"
#include "base/wake.h"

struct event {
    int kind; // the owner's enum
    void *subject;
    ProtobufCMessage *message; // owned; NULL for most kinds
};

struct inbox {
    struct ring *ring;
    struct wake *wake; // borrowed; signalled for each event
};

// capacity_count: a power of two.
MUST_USE enum status inbox_init(struct inbox *inbox, size_t capacity_count, struct wake *wake);
// Frees the events left inside, not their subjects.
void inbox_fini(struct inbox *inbox);

// False when it is full, or there is no memory: nothing was kept. Any thread.
MUST_USE bool inbox_offer(struct inbox *inbox, int kind, void *subject);
// Waits for room; for events that must not be lost. `message` is copied; NULL allowed. Any thread
// but the owner.
void inbox_put(struct inbox *inbox, int kind, void *subject, const ProtobufCMessage *message);
// NULL when empty. Free it with event_close().
struct event *inbox_take(struct inbox *inbox);
void event_close(struct event *event);
