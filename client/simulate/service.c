#include "client/simulate/service.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/memory.h"
#include "client/simulate/world.h"

static const uint64_t MS = 1000000;

// -- what it says ---------------------------------------------------------------------------------

static void say_hello(struct world *world, struct service *service) {
    Stagecoach__V1__Hello hello = STAGECOACH__V1__HELLO__INIT;
    hello.protocol_version = CONTROL_PROTOCOL_VERSION;
    hello.name = service->name;
    hello.version = (char *)STAGECOACH_VERSION;
    hello.data_address = service->dock.address;
    hello.thread_count = 1;
    hello.kernel_variant = (char *)"toy";
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_HELLO;
    message.hello = &hello;
    stream_send_up(world, service->stream, &message);
}

static void say_loaded(struct world *world, struct service *service) {
    Stagecoach__V1__Loaded loaded = STAGECOACH__V1__LOADED__INIT;
    loaded.epoch = service->epoch;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_LOADED;
    message.loaded = &loaded;
    stream_send_up(world, service->stream, &message);
}

static void say_connected(struct world *world, struct service *service) {
    Stagecoach__V1__Connected connected = STAGECOACH__V1__CONNECTED__INIT;
    connected.epoch = service->epoch;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_CONNECTED;
    message.connected = &connected;
    stream_send_up(world, service->stream, &message);
}

static void say_heartbeat(struct world *world, struct service *service) {
    Stagecoach__V1__Heartbeat heartbeat = STAGECOACH__V1__HEARTBEAT__INIT;
    heartbeat.epoch = service->control_epoch;
    heartbeat.step_count = service->step_count;
    heartbeat.busy_ns = service_busy_ns(world, service);
    heartbeat.row_count = service->row_count;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_HEARTBEAT;
    message.heartbeat = &heartbeat;
    stream_send_up(world, service->stream, &message);
}

void service_fail(struct world *world, struct service *service, Stagecoach__V1__FailureKind kind,
                  const char *reason) {
    Stagecoach__V1__Failed failed = STAGECOACH__V1__FAILED__INIT;
    failed.epoch = service->epoch;
    failed.kind = kind;
    failed.message = (char *)reason;
    Stagecoach__V1__StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    message.kind_case = STAGECOACH__V1__STAGE_MESSAGE__KIND_FAILED;
    message.failed = &failed;
    stream_send_up(world, service->stream, &message);
}

// -- the compute thread ---------------------------------------------------------------------------

static void give_order(struct world *world, struct service *service, struct order order) {
    CHECK(service->order_count < SERVICE_ORDER_COUNT_MAX);
    uint32_t at = (service->order_first + service->order_count++) % SERVICE_ORDER_COUNT_MAX;
    service->orders[at] = order;
    service_work(world, service);
}

static void forget_frames(struct world *world, struct service *service) {
    struct parcel *parcel;
    while ((parcel = parcels_take(&service->in)) != NULL)
        parcel_give(world, parcel);
    service->in_wire = NULL;
}

static void close_links(struct world *world, struct service *service) {
    forget_frames(world, service);
    dock_close(world, &service->dock, world_hop_ns(world));
    service->out_count = service->copy_count = 0;
}

static bool takes_tokens(const struct service *service) {
    return service->assignment.stage_index == 0 && service->assignment.token_lag_max > 0;
}

static bool sends_tokens(const struct service *service) {
    const struct order *a = &service->assignment;
    return a->stage_count > 1 && a->stage_index + 1 == a->stage_count && a->token_lag_max > 0;
}

static bool keeps_layers(const struct service *service, const struct order *order) {
    return service->cells != NULL && service->kept_first == order->layer_first &&
           service->kept_count == order->layer_count;
}

static void restart(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    service_start(ctx, subject);
}

// The program ends with an error; whoever watches over it starts it again.
static void end_program(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct world *world = ctx;
    service_kill(world, subject, world_hop_ns(world));
    world_put(world, 1000 * MS, NULL, restart, subject, 0);
}

static void loaded(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct world *world = ctx;
    struct service *service = subject;
    service->is_busy = false;
    if (service->fails_load) {
        service->fails_load = false;
        service->kept_count = 0;
        service_fail(world, service, STAGECOACH__V1__FAILURE_KIND__FAILURE_KIND_LOAD,
                     "a tensor is missing");
        world_put(world, (1 + world_draw(world, 3000)) * MS, &service->actor, end_program, service,
                  0);
    } else {
        service->is_loaded = true;
        say_loaded(world, service);
    }
    service_work(world, service);
}

// KV memory is void in a new epoch: whoever reads what an earlier one wrote draws wrong tokens.
static void void_cells(struct world *world, struct service *service) {
    size_t count =
        (size_t)service->kept_count * world->limits.kv_block_count * KV_BLOCK_POSITION_COUNT;
    memset(service->cells, 0xee, count * sizeof(*service->cells));
}

static void renew_feedback(struct world *world, struct service *service) {
    feedback_close(service->feedback);
    service->feedback = NULL;
    if (!takes_tokens(service)) return;
    enum status status = feedback_open(world->limits.sequence_count_max, &service->feedback);
    CHECK(status == STATUS_OK);
}

static void load(struct world *world, struct service *service, const struct order *order) {
    close_links(world, service);
    service->is_loaded = false;
    service->epoch = order->epoch;
    service->assignment = *order;
    service->step_last = 0;
    renew_feedback(world, service);
    service->step_count = service->row_count = 0;
    uint64_t load_ns = 1000;
    if (!keeps_layers(service, order)) {
        free(service->cells);
        size_t layer_cell_count = (size_t)world->limits.kv_block_count * KV_BLOCK_POSITION_COUNT;
        service->cells = memory_array(order->layer_count * layer_cell_count, sizeof(uint64_t));
        CHECK(service->cells != NULL);
        service->kept_first = order->layer_first;
        service->kept_count = order->layer_count;
        load_ns = (1 + world_draw(world, world_chance(world, 750) ? 10 : 500)) * MS;
    }
    void_cells(world, service);
    service->is_busy = true;
    world_put(world, load_ns, &service->actor, loaded, service, 0);
}

static void start(struct world *world, struct service *service, const struct order *order) {
    if (!service->is_loaded || order->epoch != service->epoch) return; // overtaken
    uint32_t index = service->assignment.stage_index, count = service->assignment.stage_count;
    struct dock_wish wishes[DOCK_WIRE_COUNT_MAX] = {
        {.id = index, .end = WIRE_RECEIVER, .key = order->in_key},
        {.id = index + 1, .end = WIRE_SENDER, .address = order->address, .key = order->next_key},
    };
    uint32_t wish_count = 2;
    if (takes_tokens(service) && count > 1)
        wishes[wish_count++] =
            (struct dock_wish){.id = count + 1, .end = WIRE_RECEIVER, .key = order->feedback_key};
    if (sends_tokens(service))
        wishes[wish_count++] = (struct dock_wish){.id = count + 1,
                                                  .end = WIRE_SENDER,
                                                  .address = order->feedback_address,
                                                  .key = order->feedback_key};
    dock_open(world, &service->dock, order->epoch, wishes, wish_count);
}

static void take_order(struct world *world, struct service *service) {
    struct order order = service->orders[service->order_first];
    service->order_first = (service->order_first + 1) % SERVICE_ORDER_COUNT_MAX;
    service->order_count--;
    switch (order.kind) {
    case ORDER_LOAD:
        load(world, service, &order);
        break;
    case ORDER_START:
        start(world, service, &order);
        break;
    case ORDER_STOP:
        close_links(world, service);
        break;
    }
}

// Refuses a frame: the epoch cannot go on.
static void refuse(struct world *world, struct service *service, bool is_damaged,
                   const char *reason) {
    if (!is_damaged) world_fail(world, "stage '%s' refuses a frame: %s", service->name, reason);
    close_links(world, service);
    service_fail(world, service, STAGECOACH__V1__FAILURE_KIND__FAILURE_KIND_FRAME, reason);
}

static void keep_result(struct world *world, struct service *service, struct parcel *parcel) {
    struct error error;
    bool is_damaged = parcel->is_damaged;
    if (service_keep_result(world, service, parcel, &error) != STATUS_OK)
        refuse(world, service, is_damaged, error.text);
}

// A RESULT goes to the coordinator, and to stage 0 for the steps that wait for its tokens.
static void feed_back(struct world *world, struct service *service, const struct parcel *out) {
    if (!takes_tokens(service) && !sends_tokens(service)) return;
    const struct frame *frame = out->frame;
    const struct frame_header *header = (const struct frame_header *)frame->data;
    if (header->kind != FRAME_RESULT) return;
    struct parcel *copy = parcel_take(world, frame->size_bytes);
    memcpy(copy->frame->data, frame->data, frame->size_bytes);
    copy->frame->size_bytes = frame->size_bytes;
    if (takes_tokens(service)) { // the only stage
        keep_result(world, service, copy);
        return;
    }
    service->copy_count++;
    wire_send(world, dock_wire(&service->dock, service->assignment.stage_count + 1), copy);
}

static void computed(void *ctx, void *subject, uint64_t tag) {
    struct world *world = ctx;
    struct service *service = subject;
    service->is_busy = false;
    service->busy_ns += world->now_ns - service->busy_since_ns;
    service->step_count++;
    struct parcel *out = service->out;
    service->out = NULL;
    struct dock *dock = &service->dock;
    // Links that were lost meanwhile, or replaced, give the frame back unsent.
    bool is_current = dock->is_open && dock->generation == tag;
    if (is_current) {
        service->out_count++;
        if (service->owes_credit) wire_return_credit(world, service->in_wire);
        feed_back(world, service, out);
        wire_send(world, dock_wire(dock, service->assignment.stage_index + 1), out);
    } else {
        parcel_give(world, out);
    }
    service_work(world, service);
}

// Computes the oldest frame, if there is one and a free frame for the result.
static bool begin_step(struct world *world, struct service *service) {
    if (service->in.count == 0 || service->out_count > world->credit_count ||
        service->copy_count > world->credit_count)
        return false;
    if (!service_has_tokens(service, service->in.first)) return false;
    struct parcel *in = parcels_take(&service->in);
    bool is_damaged = in->is_damaged;
    service->owes_credit = !in->is_extra;
    struct service_cost cost;
    struct error error;
    enum status status = service_step(world, service, in, &service->out, &cost, &error);
    parcel_give(world, in);
    if (status == STATUS_OK) {
        service->is_busy = true;
        service->busy_since_ns = world->now_ns;
        service->row_count += cost.row_count;
        world_put(world, cost.compute_ns, &service->actor, computed, service,
                  service->dock.generation);
        return true;
    }
    if (service->owes_credit) wire_return_credit(world, service->in_wire);
    if (status == STATUS_UNAVAILABLE) return true;
    refuse(world, service, is_damaged, error.text);
    return true;
}

void service_work(struct world *world, struct service *service) {
    while (!service->is_busy) {
        if (service->order_count > 0)
            take_order(world, service);
        else if (!begin_step(world, service))
            return;
    }
}

uint64_t service_busy_ns(const struct world *world, const struct service *service) {
    bool is_computing = service->out != NULL;
    return service->busy_ns + (is_computing ? world->now_ns - service->busy_since_ns : 0);
}

// -- its dock -------------------------------------------------------------------------------------

static void on_up(void *ctx) {
    struct service *service = ctx;
    say_connected(service->world, service);
}

static void on_lost(void *ctx, const char *reason) {
    struct service *service = ctx;
    forget_frames(service->world, service);
    service->out_count = service->copy_count = 0;
    service_fail(service->world, service, STAGECOACH__V1__FAILURE_KIND__FAILURE_KIND_LINK, reason);
}

static void on_received(void *ctx, struct wire *wire, struct parcel *parcel) {
    struct service *service = ctx;
    if (wire->id > service->assignment.stage_count) {
        wire_return_credit(service->world, wire);
        keep_result(service->world, service, parcel);
    } else {
        service->in_wire = wire;
        parcels_put(&service->in, parcel);
        if (service->in.count > service->world->credit_count)
            world_fail(service->world, "stage '%s' holds more frames than there are credits",
                       service->name);
    }
    service_work(service->world, service);
}

static void on_sent(void *ctx, struct wire *wire) {
    struct service *service = ctx;
    uint32_t *count =
        wire->id > service->assignment.stage_count ? &service->copy_count : &service->out_count;
    if (*count > 0) --*count;
    service_work(service->world, service);
}

static const struct dock_handler DOCK_HANDLER = {
    .up = on_up, .lost = on_lost, .received = on_received, .sent = on_sent};

// -- its main thread ------------------------------------------------------------------------------

// A link that is not of this stage has none.
static void copy_key(uint8_t *out, const ProtobufCBinaryData *key) {
    if (key->len == LINK_KEY_BYTES) memcpy(out, key->data, LINK_KEY_BYTES);
}

void service_on_message(struct world *world, struct service *service,
                        const Stagecoach__V1__CoordinatorMessage *message) {
    service->heard_ns = world->now_ns;
    service->dial_wait_ms = STAGE_DIAL_MS_MIN;
    if (message->kind_case == STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_ASSIGNMENT) {
        const Stagecoach__V1__Assignment *a = message->assignment;
        service->control_epoch = a->epoch;
        give_order(world, service,
                   (struct order){.kind = ORDER_LOAD,
                                  .epoch = a->epoch,
                                  .stage_index = a->stage_index,
                                  .stage_count = a->stage_count,
                                  .layer_first = a->layer_first,
                                  .layer_count = a->layer_count,
                                  .credit_count = a->credit_count,
                                  .token_lag_max = a->token_lag_max});
    } else if (message->kind_case == STAGECOACH__V1__COORDINATOR_MESSAGE__KIND_START) {
        if (message->start->epoch != service->control_epoch) return;
        struct order order = {.kind = ORDER_START, .epoch = message->start->epoch};
        snprintf(order.address, sizeof(order.address), "%s", message->start->next_address);
        snprintf(order.feedback_address, sizeof(order.feedback_address), "%s",
                 message->start->feedback_address);
        copy_key(order.in_key, &message->start->in_key);
        copy_key(order.next_key, &message->start->next_key);
        copy_key(order.feedback_key, &message->start->feedback_key);
        give_order(world, service, order);
    }
}

static void dial(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct world *world = ctx;
    struct service *service = subject;
    if (service->stream != NULL) return;
    service->heard_ns = service->heartbeat_ns = world->now_ns;
    service->stream = stream_open(world, service);
    say_hello(world, service);
}

void service_on_end(struct world *world, struct service *service, bool is_refusal) {
    service->stream = NULL;
    if (is_refusal) {
        end_program(world, service, 0);
        return;
    }
    give_order(world, service, (struct order){.kind = ORDER_STOP});
    world_put(world, service->dial_wait_ms * MS, &service->actor, dial, service, 0);
    service->dial_wait_ms *= 2;
    if (service->dial_wait_ms > STAGE_DIAL_MS_MAX) service->dial_wait_ms = STAGE_DIAL_MS_MAX;
}

static void keep_time(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    struct world *world = ctx;
    struct service *service = subject;
    world_put(world, 100 * MS, &service->actor, keep_time, service, 0);
    if (service->stream == NULL) return;
    if (world->now_ns - service->heartbeat_ns >= HEARTBEAT_MS * MS) {
        service->heartbeat_ns = world->now_ns;
        say_heartbeat(world, service);
    }
    if (world->now_ns - service->heard_ns > HEARTBEAT_LOST_MS * MS) {
        service->heard_ns = world->now_ns;
        stream_break(world, service->stream, 0, world_hop_ns(world));
    }
}

// -- life -----------------------------------------------------------------------------------------

void service_open(struct world *world, struct service *service, uint32_t index) {
    *service = (struct service){.world = world, .index = index};
    snprintf(service->name, sizeof(service->name), "stage-%u", index);
    service->dock = (struct dock){
        .actor = &service->actor, .handler = &DOCK_HANDLER, .ctx = service, .reason = ""};
}

void service_start(struct world *world, struct service *service) {
    if (service->is_alive) return;
    service->is_alive = true;
    service->dial_wait_ms = STAGE_DIAL_MS_MIN;
    // Another port each time.
    snprintf(service->dock.address, sizeof(service->dock.address), "10.0.0.%u:%u",
             service->index + 2, 1000 + service->actor.life % 60000);
    world_put(world, 0, &service->actor, dial, service, 0);
    world_put(world, 100 * MS, &service->actor, keep_time, service, 0);
}

static void forget_all(struct world *world, struct service *service) {
    forget_frames(world, service);
    parcel_give(world, service->out);
    service->out = NULL;
    service->out_count = 0;
    service->order_count = 0;
    service->is_busy = service->is_loaded = false;
    feedback_close(service->feedback);
    service->feedback = NULL;
    free(service->cells);
    service->cells = NULL;
    service->kept_count = 0;
    service->epoch = service->control_epoch = 0;
    service->stream = NULL;
}

void service_kill(struct world *world, struct service *service, uint64_t notice_ns) {
    if (!service->is_alive) return;
    service->is_alive = false;
    service->busy_ns = service_busy_ns(world, service);
    service->actor.life++;
    service->actor.stopped_until_ns = 0;
    stream_break(world, service->stream, 0, notice_ns);
    dock_close(world, &service->dock, notice_ns);
    forget_all(world, service);
}

void service_close(struct world *world, struct service *service) {
    dock_close(world, &service->dock, 0);
    forget_all(world, service);
}
