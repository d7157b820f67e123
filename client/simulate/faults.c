#include "client/simulate/faults.h"

#include "base/limits.h"

static const uint64_t MS = 1000000;

// How long until an end notices: at once, or by silence.
static uint64_t draw_notice_ns(struct world *world) {
    return world_chance(world, 700) ? world_draw(world, 6 * MS) : world_draw(world, 3000) * MS;
}

// From a microsecond to seconds, each order of magnitude as likely.
static uint64_t draw_stall_ns(struct world *world) {
    uint64_t ns = 1000 + world_draw(world, 9000);
    for (uint64_t power = world_draw(world, 7); power > 0; power--)
        ns *= 10;
    return ns < 6000 * MS ? ns : 6000 * MS;
}

static struct service *any_service(struct world *world) {
    struct service *service = &world->services[world_draw(world, world->service_count)];
    return service->is_alive ? service : NULL;
}

static struct wire *any_wire(struct world *world) {
    uint32_t count = 0;
    struct wire *found = NULL;
    for (struct wire *wire = world->wires; wire != NULL; wire = wire->next) {
        if (wire->is_broken || !wire->is_up) continue;
        if (world_draw(world, ++count) == 0) found = wire;
    }
    return found;
}

// -- each of them ---------------------------------------------------------------------------------

static void lose_frames(struct world *world) {
    struct wire *wire = any_wire(world);
    if (wire != NULL)
        wire_break(world, wire, "frames were lost", draw_notice_ns(world), draw_notice_ns(world));
}

// Its links have been silent for too long.
static void cut_off(void *ctx, void *subject, uint64_t tag) {
    struct world *world = ctx;
    struct dock *dock = subject;
    if (dock->actor->stopped_until_ns <= world->now_ns || dock->generation != tag) return;
    for (uint32_t i = 0; i < dock->wire_count; i++)
        wire_break(world, dock->wires[i], "the peer is silent", 0, 0);
}

static void stop(struct world *world, struct actor *actor, struct dock *dock) {
    uint64_t until_ns = world->now_ns + draw_stall_ns(world);
    if (actor->stopped_until_ns < until_ns) actor->stopped_until_ns = until_ns;
    world_put(world, LINK_LOST_MS * MS, NULL, cut_off, dock, dock->generation);
}

static void stall(struct world *world) {
    if (world_chance(world, 300)) {
        struct wire *wire = any_wire(world);
        if (wire != NULL) wire_hold(world, wire, world->now_ns + draw_stall_ns(world));
    } else if (world_chance(world, 200)) {
        stop(world, &world->coordinator, &world->dock);
    } else {
        struct service *service = any_service(world);
        if (service != NULL) stop(world, &service->actor, &service->dock);
    }
}

static void start_again(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    service_start(ctx, subject);
}

static void crash(struct world *world) {
    struct service *service = any_service(world);
    if (service == NULL) return;
    service_kill(world, service, draw_notice_ns(world));
    world_put(world, world_draw(world, 2000) * MS, NULL, start_again, service, 0);
}

static void disturb_control(struct world *world) {
    struct service *service = any_service(world);
    if (service == NULL || service->stream == NULL) return;
    if (world_chance(world, 500))
        stream_break(world, service->stream, draw_notice_ns(world), draw_notice_ns(world));
    else
        stream_hold(world, service->stream, world->now_ns + draw_stall_ns(world));
}

static void spoil_load(struct world *world) {
    struct service *service = any_service(world);
    if (service != NULL) service->fails_load = true;
}

static const struct {
    enum simulation_fault fault;
    void (*act)(struct world *world);
} KINDS[] = {
    {SIMULATION_LOSS, lose_frames},        {SIMULATION_STALL, stall},     {SIMULATION_CRASH, crash},
    {SIMULATION_CONTROL, disturb_control}, {SIMULATION_LOAD, spoil_load},
};
enum { KIND_COUNT = sizeof(KINDS) / sizeof(KINDS[0]) };

static void happen(void *ctx, void *subject, uint64_t tag) {
    (void)subject;
    struct world *world = ctx;
    world->report->fault_count++;
    KINDS[tag].act(world);
}

void faults_open(struct world *world) {
    static const uint64_t horizons_ms[] = {200, 1000, 3000};
    if (world->settings.faults == 0) return;
    world->fault_end_ns = horizons_ms[world_draw(world, 3)] * MS;
    for (uint32_t i = 0; i < KIND_COUNT; i++) {
        if (!world_has(world, KINDS[i].fault)) continue;
        for (uint64_t left = world_draw(world, 4); left > 0; left--)
            world_put(world, world_draw(world, world->fault_end_ns), NULL, happen, NULL, i);
    }
}

void faults_on_frame(struct world *world, struct parcel *parcel) {
    if (!world_has(world, SIMULATION_DAMAGE) || world->now_ns > world->fault_end_ns) return;
    if (!world_chance(world, 3)) return;
    world->report->fault_count++;
    parcel->is_damaged = true;
    parcel->frame->size_bytes -= 1 + world_draw(world, parcel->frame->size_bytes - 1);
}
