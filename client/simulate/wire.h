// wire: simulated links between the coordinator and the stages. Frames arrive in order and at most
// once, at most credit_count of them on their way or held by the receiver; a wire that loses one is
// broken for good, as the links of the data plane are.
#pragma once

#include "client/simulate/agenda.h"
#include "proto/frame.h"
#include "proto/link_wire.h"

struct world;

// A frame on its way.
struct parcel {
    struct parcel *next;
    struct parcel *older; // in world->parcels
    struct frame *frame;  // owned
    struct frame *lent; // what the coordinator's pipeline gets back when it is on the wire, or NULL
    bool is_damaged;    // made wrong by a fault: it may be refused
    bool is_extra;      // came twice or late by a fault: holds no credit
};

// Oldest first.
struct parcels {
    struct parcel *first;
    struct parcel *last;
    uint32_t count;
};
void parcels_put(struct parcels *parcels, struct parcel *parcel);
struct parcel *parcels_take(struct parcels *parcels); // NULL when empty

// One with room for so many bytes.
struct parcel *parcel_take(struct world *world, size_t capacity_bytes);
void parcel_give(struct world *world, struct parcel *parcel); // NULL allowed

enum wire_end { WIRE_SENDER, WIRE_RECEIVER };

struct wire {
    struct wire *next; // older ones
    uint64_t epoch;
    uint32_t id; // link i goes to stage i; link stage_count to the coordinator, one more to stage 0
    struct dock *ends[2]; // NULL: not there yet, or gone
    uint32_t generations[2];
    char address[32]; // that the sender dialled
    uint8_t key[LINK_KEY_BYTES];
    bool is_up;
    bool is_broken;
    uint32_t credit_used_count;
    struct parcels waiting; // for a credit
    struct parcels flying;
    uint64_t arrival_ns; // of the last one that flies
    uint64_t held_until_ns;
};

enum { DOCK_WIRE_COUNT_MAX = 4 };

// What a dock tells its owner; `ctx` is the dock's.
struct dock_handler {
    void (*up)(void *ctx);
    // All its wires are closed already.
    void (*lost)(void *ctx, const char *reason);
    // The receiver takes the parcel; wire_return_credit when it has been used.
    void (*received)(void *ctx, struct wire *wire, struct parcel *parcel);
    // A parcel is on its way: room for another one.
    void (*sent)(void *ctx, struct wire *wire);
};

// One process's ends of wires.
struct dock {
    struct actor *actor;
    const struct dock_handler *handler;
    void *ctx;
    char address[32];
    uint64_t epoch;
    uint32_t generation; // rises when it is opened or closed
    bool is_open;
    bool is_up;
    const char *reason; // why it will be lost
    uint32_t wire_count;
    struct wire *wires[DOCK_WIRE_COUNT_MAX];
};

struct dock_wish {
    uint32_t id;
    enum wire_end end;
    const char *address; // for WIRE_SENDER: whom to dial
    const uint8_t *key;  // LINK_KEY_BYTES
};

// Closes what is open and begins to make these wires; handler->up or ->lost follows.
void dock_open(struct world *world, struct dock *dock, uint64_t epoch,
               const struct dock_wish *wishes, uint32_t wish_count);
// The owner wants no more; peers notice after notice_ns. Nothing is told to this end.
void dock_close(struct world *world, struct dock *dock, uint64_t notice_ns);
// The dock's wire that this end sends on, or NULL.
struct wire *dock_wire(struct dock *dock, uint32_t id);

// Takes the parcel.
void wire_send(struct world *world, struct wire *wire, struct parcel *parcel);
// A parcel that came over `wire` was used.
void wire_return_credit(struct world *world, struct wire *wire);
// What is on it is lost, and it never works again; both ends notice after so long.
void wire_break(struct world *world, struct wire *wire, const char *reason,
                uint64_t sender_notice_ns, uint64_t receiver_notice_ns);
// Nothing arrives before. Ends that hear nothing for LINK_LOST_MS give it up.
void wire_hold(struct world *world, struct wire *wire, uint64_t until_ns);

void wires_close(struct world *world); // frees all of them, and all parcels wherever they are
