#include "client/simulate/wire.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "client/simulate/faults.h"
#include "client/simulate/world.h"

static const uint64_t MS = 1000000;

// -- parcels --------------------------------------------------------------------------------------

void parcels_put(struct parcels *parcels, struct parcel *parcel) {
    parcel->next = NULL;
    if (parcels->count++ == 0)
        parcels->first = parcel;
    else
        parcels->last->next = parcel;
    parcels->last = parcel;
}

struct parcel *parcels_take(struct parcels *parcels) {
    struct parcel *parcel = parcels->first;
    if (parcel == NULL) return NULL;
    parcels->first = parcel->next;
    parcels->count--;
    return parcel;
}

struct parcel *parcel_take(struct world *world, size_t capacity_bytes) {
    struct parcel *parcel = world->parcels_free;
    if (parcel != NULL) {
        world->parcels_free = parcel->next;
    } else {
        parcel = calloc(1, sizeof(*parcel));
        CHECK(parcel != NULL);
        parcel->older = world->parcels;
        world->parcels = parcel;
    }
    struct frame *frame = parcel->frame;
    if (frame == NULL || frame->capacity_bytes < capacity_bytes) {
        frame_close(frame);
        size_t rounded = 1024;
        while (rounded < capacity_bytes)
            rounded *= 2;
        enum status status = frame_open(rounded, &frame);
        CHECK(status == STATUS_OK);
    }
    *parcel = (struct parcel){.frame = frame, .older = parcel->older};
    return parcel;
}

static void give_back(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct world *world = ctx;
    world_enter(world);
    flow_frame_sent(world->flow, subject);
    world_leave(world);
}

// The pipeline gets its frame back, soon.
static void return_lent(struct world *world, struct parcel *parcel, uint64_t after_ns) {
    if (parcel->lent != NULL)
        world_put(world, after_ns, &world->coordinator, give_back, parcel->lent, 0);
    parcel->lent = NULL;
}

void parcel_give(struct world *world, struct parcel *parcel) {
    if (parcel == NULL) return;
    return_lent(world, parcel, 0);
    parcel->next = world->parcels_free;
    world->parcels_free = parcel;
}

static void give_all(struct world *world, struct parcels *parcels) {
    struct parcel *parcel;
    while ((parcel = parcels_take(parcels)) != NULL)
        parcel_give(world, parcel);
}

// -- frames ---------------------------------------------------------------------------------------

static void arrive(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct world *world = ctx;
    struct wire *wire = subject;
    if (wire->is_broken) return;
    if (wire->held_until_ns > world->now_ns) {
        world_put(world, wire->held_until_ns - world->now_ns, wire->ends[WIRE_RECEIVER]->actor,
                  arrive, wire, 0);
        return;
    }
    struct dock *dock = wire->ends[WIRE_RECEIVER];
    struct parcel *parcel = parcels_take(&wire->flying);
    CHECK(dock != NULL && parcel != NULL);
    dock->handler->received(dock->ctx, wire, parcel);
}

static void tell_sent(void *ctx, void *subject, uint64_t tag) {
    (void)ctx;
    struct wire *wire = subject;
    struct dock *dock = wire->ends[WIRE_SENDER];
    if (dock != NULL && dock->generation == tag) dock->handler->sent(dock->ctx, wire);
}

static void pump(struct world *world, struct wire *wire) {
    while (wire->is_up && !wire->is_broken && wire->waiting.count > 0 &&
           wire->credit_used_count < world->credit_count) {
        struct parcel *parcel = parcels_take(&wire->waiting);
        struct dock *sender = wire->ends[WIRE_SENDER];
        wire->credit_used_count++;
        uint64_t at_ns = world->now_ns + world_hop_ns(world);
        if (at_ns < wire->arrival_ns) at_ns = wire->arrival_ns;
        wire->arrival_ns = at_ns;
        return_lent(world, parcel, at_ns - world->now_ns);
        parcels_put(&wire->flying, parcel);
        world_put(world, at_ns - world->now_ns, sender->actor, tell_sent, wire, sender->generation);
        world_put(world, at_ns - world->now_ns, wire->ends[WIRE_RECEIVER]->actor, arrive, wire, 0);
    }
}

void wire_send(struct world *world, struct wire *wire, struct parcel *parcel) {
    if (wire == NULL || wire->is_broken) {
        parcel_give(world, parcel);
        return;
    }
    faults_on_frame(world, parcel);
    parcels_put(&wire->waiting, parcel);
    pump(world, wire);
}

static void credit_comes(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct wire *wire = subject;
    CHECK(wire->credit_used_count > 0);
    wire->credit_used_count--;
    pump(ctx, wire);
}

void wire_return_credit(struct world *world, struct wire *wire) {
    if (wire == NULL || wire->is_broken || wire->ends[WIRE_SENDER] == NULL) return;
    world_put(world, world_hop_ns(world), wire->ends[WIRE_SENDER]->actor, credit_comes, wire, 0);
}

// -- breaking -------------------------------------------------------------------------------------

static void lose(void *ctx, void *subject, uint64_t tag) {
    struct dock *dock = subject;
    if (!dock->is_open || dock->generation != tag) return;
    dock_close(ctx, dock, world_hop_ns(ctx));
    dock->handler->lost(dock->ctx, dock->reason);
}

void wire_break(struct world *world, struct wire *wire, const char *reason,
                uint64_t sender_notice_ns, uint64_t receiver_notice_ns) {
    if (wire->is_broken) return;
    wire->is_broken = true;
    give_all(world, &wire->waiting);
    give_all(world, &wire->flying);
    const uint64_t notices_ns[] = {sender_notice_ns, receiver_notice_ns};
    for (int end = 0; end < 2; end++) {
        struct dock *dock = wire->ends[end];
        if (dock == NULL) continue;
        dock->reason = reason;
        world_put(world, notices_ns[end], dock->actor, lose, dock, dock->generation);
    }
}

static void end_hold(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct world *world = ctx;
    struct wire *wire = subject;
    if (wire->held_until_ns > world->now_ns) wire_break(ctx, wire, "nothing heard on a link", 0, 0);
}

void wire_hold(struct world *world, struct wire *wire, uint64_t until_ns) {
    if (wire->held_until_ns < until_ns) wire->held_until_ns = until_ns;
    world_put(world, LINK_LOST_MS * MS, NULL, end_hold, wire, 0);
}

// -- docks ----------------------------------------------------------------------------------------

struct wire *dock_wire(struct dock *dock, uint32_t id) {
    for (uint32_t i = 0; i < dock->wire_count; i++)
        if (dock->wires[i]->id == id) return dock->wires[i];
    return NULL;
}

static struct wire *find_wire(struct world *world, uint64_t epoch, uint32_t id) {
    struct wire *wire = world->wires;
    for (; wire != NULL; wire = wire->next)
        if (wire->epoch == epoch && wire->id == id && !wire->is_broken) return wire;
    wire = calloc(1, sizeof(*wire));
    CHECK(wire != NULL);
    *wire = (struct wire){.next = world->wires, .epoch = epoch, .id = id};
    world->wires = wire;
    return wire;
}

static void tell_up(void *ctx, void *subject, uint64_t tag) {
    (void)ctx;
    struct dock *dock = subject;
    if (!dock->is_open || dock->is_up || dock->generation != tag) return;
    for (uint32_t i = 0; i < dock->wire_count; i++)
        if (!dock->wires[i]->is_up || dock->wires[i]->is_broken) return;
    dock->is_up = true;
    dock->handler->up(dock->ctx);
}

static void come_up(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct world *world = ctx;
    struct wire *wire = subject;
    if (wire->is_broken || wire->ends[WIRE_SENDER] == NULL || wire->ends[WIRE_RECEIVER] == NULL)
        return;
    wire->is_up = true;
    for (int end = 0; end < 2; end++)
        world_put(world, 0, wire->ends[end]->actor, tell_up, wire->ends[end],
                  wire->ends[end]->generation);
    pump(world, wire);
}

static void give_up(void *ctx, void *subject, uint64_t tag) {
    struct dock *dock = subject;
    if (!dock->is_open || dock->is_up || dock->generation != tag) return;
    dock->reason = "a link did not come up";
    lose(ctx, dock, tag);
}

// Both ends of a link have one key, and no other link or epoch has it.
static void check_key(struct world *world, struct wire *wire, const uint8_t *key) {
    static const uint8_t none[LINK_KEY_BYTES];
    bool is_first = memcmp(wire->key, none, sizeof(none)) == 0;
    for (const struct wire *other = world->wires; other != NULL && is_first; other = other->next)
        if (memcmp(other->key, key, LINK_KEY_BYTES) == 0 &&
            (other->epoch != wire->epoch || other->id != wire->id))
            world_fail(world, "link %" PRIu32 " of epoch %" PRIu64 " has the key of link %" PRIu32,
                       wire->id, wire->epoch, other->id);
    if (is_first)
        memcpy(wire->key, key, LINK_KEY_BYTES);
    else if (memcmp(wire->key, key, LINK_KEY_BYTES) != 0)
        world_fail(world, "the ends of link %" PRIu32 " of epoch %" PRIu64 " have different keys",
                   wire->id, wire->epoch);
}

static void attach(struct world *world, struct dock *dock, const struct dock_wish *wish) {
    struct wire *wire = find_wire(world, dock->epoch, wish->id);
    check_key(world, wire, wish->key);
    CHECK(wire->ends[wish->end] == NULL && dock->wire_count < DOCK_WIRE_COUNT_MAX);
    wire->ends[wish->end] = dock;
    dock->wires[dock->wire_count++] = wire;
    if (wish->end == WIRE_SENDER)
        snprintf(wire->address, sizeof(wire->address), "%s", wish->address);
    const struct dock *receiver = wire->ends[WIRE_RECEIVER];
    if (wire->ends[WIRE_SENDER] == NULL || receiver == NULL) return;
    // Whoever dials the address of a process that has died reaches nobody.
    if (strcmp(wire->address, receiver->address) != 0) return;
    world_put(world, 3 * world_hop_ns(world), NULL, come_up, wire, 0);
}

void dock_open(struct world *world, struct dock *dock, uint64_t epoch,
               const struct dock_wish *wishes, uint32_t wish_count) {
    dock_close(world, dock, world_hop_ns(world));
    dock->epoch = epoch;
    dock->is_open = true;
    for (uint32_t i = 0; i < wish_count; i++)
        attach(world, dock, &wishes[i]);
    world_put(world, LINK_CONNECT_MS * MS, dock->actor, give_up, dock, dock->generation);
}

void dock_close(struct world *world, struct dock *dock, uint64_t notice_ns) {
    dock->generation++;
    if (!dock->is_open) return;
    dock->is_open = dock->is_up = false;
    for (uint32_t i = 0; i < dock->wire_count; i++) {
        struct wire *wire = dock->wires[i];
        for (int end = 0; end < 2; end++)
            if (wire->ends[end] == dock) wire->ends[end] = NULL;
        wire_break(world, wire, "the peer closed a link", notice_ns, notice_ns);
    }
    dock->wire_count = 0;
}

void wires_close(struct world *world) {
    while (world->wires != NULL) {
        struct wire *wire = world->wires;
        world->wires = wire->next;
        free(wire);
    }
    while (world->parcels != NULL) {
        struct parcel *parcel = world->parcels;
        world->parcels = parcel->older;
        frame_close(parcel->frame);
        free(parcel);
    }
}
