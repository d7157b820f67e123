#include "client/simulate/simulation.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/rng.h"
#include "client/simulate/checks.h"
#include "client/simulate/clients.h"
#include "client/simulate/faults.h"

static const uint64_t MS = 1000000;

// How much longer than its work everything accepted may take once faults have stopped, and events
// that a simulation has at most.
static const uint64_t FINISH_MS_MAX = 120000;
static const uint64_t EVENT_COUNT_MAX = 50000000;
enum { LONG_CHECK_INTERVAL = 4096 };

// -- the world ------------------------------------------------------------------------------------

void world_fail(struct world *world, const char *format, ...) {
    if (world_has_failed(world)) return;
    char *text = world->report->failure;
    size_t capacity_bytes = sizeof(world->report->failure);
    int used = snprintf(text, capacity_bytes, "at %.6f s: ", (double)world->now_ns / 1e9);
    va_list args;
    va_start(args, format);
    vsnprintf(text + used, capacity_bytes - (size_t)used, format, args);
    va_end(args);
}

uint64_t world_draw(struct world *world, uint64_t limit) {
    uint64_t count = world->draw_count++;
    const uint32_t counter[4] = {(uint32_t)count, (uint32_t)(count >> 32), 0, 0};
    uint32_t words[4];
    rng_philox(world->settings.seed, counter, words);
    uint64_t bits = (uint64_t)words[0] << 32 | words[1];
    return limit == 0 ? 0 : bits % limit;
}

// Keys have draws of their own: they change nothing else.
static void draw_key(void *ctx, void *out, size_t size_bytes) {
    struct world *world = ctx;
    for (size_t at = 0; at < size_bytes; at += 16) {
        uint64_t count = world->key_draw_count++;
        const uint32_t counter[4] = {(uint32_t)count, (uint32_t)(count >> 32), 1, 0};
        uint32_t words[4];
        rng_philox(world->settings.seed, counter, words);
        memcpy((uint8_t *)out + at, words, size_bytes - at < 16 ? size_bytes - at : 16);
    }
}

bool world_chance(struct world *world, uint32_t permille) {
    return world_draw(world, 1000) < permille;
}

uint64_t world_hop_ns(struct world *world) {
    uint64_t hop_ns = world_number(world, SIMULATION_HOP_NS);
    if (!world_has(world, SIMULATION_DELAY) || world->now_ns > world->fault_end_ns) return hop_ns;
    return hop_ns + world_draw(world, hop_ns * (world_chance(world, 50) ? 50 : 1) + 1);
}

void world_put(struct world *world, uint64_t after_ns, struct actor *actor, happening_fn *run,
               void *subject, uint64_t tag) {
    agenda_put(&world->agenda, world->now_ns + after_ns, actor, run, subject, tag);
}

static uint64_t now_ns(void *ctx) {
    const struct world *world = ctx;
    return world->now_ns + 1000 * MS; // a clock that begins at 0 would hide mistakes
}

// -- the coordinator ------------------------------------------------------------------------------

void world_enter(struct world *world) {
    if (world->settings.enter != NULL) world->settings.enter(world->settings.ctx);
}

void world_leave(struct world *world) {
    flow_tick(world->flow);
    if (world->settings.leave != NULL) world->settings.leave(world->settings.ctx);
}

static void tick(void *ctx, void *subject, uint64_t tag) {
    (void)subject, (void)tag;
    struct world *world = ctx;
    world_enter(world);
    world_leave(world);
    world_put(world, 100 * MS, &world->coordinator, tick, NULL, 0);
}

static bool connect_dock(void *ctx, const struct io_ring_position *position) {
    struct world *world = ctx;
    if (world_has(world, SIMULATION_CONTROL) && world_chance(world, 20)) return false;
    const struct dock_wish wishes[] = {
        {.id = position->ins[0].link_id, .end = WIRE_RECEIVER, .key = position->ins[0].key},
        {.id = position->outs[0].link_id,
         .end = WIRE_SENDER,
         .address = position->outs[0].address,
         .key = position->outs[0].key},
    };
    dock_open(world, &world->dock, position->epoch, wishes, 2);
    world->report->epoch_count++;
    return true;
}

static bool send_frame(void *ctx, struct frame *frame) {
    struct world *world = ctx;
    if (world->settings.leave != NULL) world->settings.leave(world->settings.ctx);
    checks_sent(world, frame);
    if (world->report->first_sent_ns == 0) world->report->first_sent_ns = world->now_ns;
    world->in_flight_count++;
    world->sending_epoch = world->dock.epoch;
    struct parcel *parcel = parcel_take(world, frame->size_bytes);
    memcpy(parcel->frame->data, frame->data, frame->size_bytes);
    parcel->frame->size_bytes = frame->size_bytes;
    parcel->lent = frame;
    wire_send(world, dock_wire(&world->dock, 0), parcel);
    world_enter(world);
    return true;
}

static void on_up(void *ctx) {
    struct world *world = ctx;
    world_enter(world);
    flow_links_up(world->flow, world->dock.epoch);
    world_leave(world);
}

static void on_lost(void *ctx, const char *reason) {
    struct world *world = ctx;
    world_enter(world);
    flow_links_lost(world->flow, world->dock.epoch, reason);
    world_leave(world);
}

static void receive(struct world *world, struct parcel *parcel) {
    const struct frame_header *header = (const struct frame_header *)parcel->frame->data;
    if (!parcel->is_extra && !parcel->is_damaged && header->epoch == world->sending_epoch)
        world->in_flight_count--;
    world_enter(world);
    flow_receive(world->flow, parcel->frame);
    world_leave(world);
    parcel_give(world, parcel);
}

static void receive_again(void *ctx, void *subject, uint64_t tag) {
    (void)tag;
    receive(ctx, subject);
}

// A result that comes a second time, perhaps in a later epoch.
static void repeat(struct world *world, const struct parcel *parcel) {
    world->report->fault_count++;
    const struct frame *frame = parcel->frame;
    struct parcel *copy = parcel_take(world, frame->size_bytes);
    memcpy(copy->frame->data, frame->data, frame->size_bytes);
    copy->frame->size_bytes = frame->size_bytes;
    copy->is_extra = true;
    world_put(world, world_draw(world, 1000) * MS, &world->coordinator, receive_again, copy, 0);
}

static void on_received(void *ctx, struct wire *wire, struct parcel *parcel) {
    struct world *world = ctx;
    wire_return_credit(world, wire);
    if (world_has(world, SIMULATION_DAMAGE) && world->now_ns < world->fault_end_ns &&
        world_chance(world, 10))
        repeat(world, parcel);
    receive(world, parcel);
}

static void on_sent(void *ctx, struct wire *wire) {
    (void)ctx, (void)wire; // the frame itself comes back to the pipeline
}

static const struct dock_handler DOCK_HANDLER = {
    .up = on_up, .lost = on_lost, .received = on_received, .sent = on_sent};

// -- steady decode --------------------------------------------------------------------------------

void world_begin_steady(struct world *world) {
    struct simulation_report *report = world->report;
    report->first_token_ns = world->now_ns;
    if (world->ended_count > 0) return;
    report->steady_token_count = report->token_count;
    report->steady_step_count = world->services[0].step_count;
    for (uint32_t i = 0; i < world->plan.stage_count; i++)
        report->steady_busy_ns[i] = service_busy_ns(world, &world->services[i]);
}

void world_end_steady(struct world *world) {
    struct simulation_report *report = world->report;
    if (report->first_token_ns == 0) return;
    report->steady_ns = world->now_ns - report->first_token_ns;
    report->steady_token_count = report->token_count - report->steady_token_count;
    report->steady_step_count = world->services[0].step_count - report->steady_step_count;
    for (uint32_t i = 0; i < world->plan.stage_count; i++)
        report->steady_busy_ns[i] =
            service_busy_ns(world, &world->services[i]) - report->steady_busy_ns[i];
}

// -- life -----------------------------------------------------------------------------------------

static enum status check_numbers(const struct simulation_settings *settings, struct error *error) {
    const uint64_t *n = settings->numbers;
    if (n[SIMULATION_STAGES] > n[SIMULATION_LAYERS])
        return error_set(error, STATUS_INVALID,
                         "stages is %" PRIu64 ", there are %" PRIu64 " layers",
                         n[SIMULATION_STAGES], n[SIMULATION_LAYERS]);
    if (n[SIMULATION_KV_TOKENS] < n[SIMULATION_PROMPT] + n[SIMULATION_TOKENS])
        return error_set(error, STATUS_INVALID,
                         "kv-tokens is %" PRIu64 ", one request may need %" PRIu64,
                         n[SIMULATION_KV_TOKENS], n[SIMULATION_PROMPT] + n[SIMULATION_TOKENS]);
    return STATUS_OK;
}

static bool runs_ahead(const struct world *world) {
    return !world->settings.feedback_coordinator && world->credit_count > 1;
}

static void set_limits(struct world *world) {
    world->limits = (struct frame_limits){
        .row_count_max = (uint32_t)world_number(world, SIMULATION_ROWS),
        .sequence_count_max = (uint32_t)world_number(world, SIMULATION_RUNNING),
        .position_count_max = (uint32_t)(world_number(world, SIMULATION_PROMPT) +
                                         world_number(world, SIMULATION_TOKENS)),
        .kv_block_count = kv_blocks_for((uint32_t)world_number(world, SIMULATION_KV_TOKENS)),
        .vocabulary_size = 97,
        .token_lag_max = runs_ahead(world) ? world->credit_count - 1 : 0,
        .hidden_size = 2, // of 32 bits: a value of the toy
        .dtype = DTYPE_F32,
        .kind = FRAME_STEP,
    };
}

static struct scheduler_config scheduler_config(const struct world *world) {
    uint32_t row_count_max = world->limits.row_count_max;
    uint64_t chunk = world_number(world, SIMULATION_CHUNK);
    return (struct scheduler_config){
        .running_count_max = (uint32_t)world_number(world, SIMULATION_RUNNING),
        .waiting_count_max = 4096,
        .sequence_count_max = (uint32_t)world_number(world, SIMULATION_RUNNING),
        .row_count_max = row_count_max,
        .chunk_row_count = chunk > row_count_max ? row_count_max : (uint32_t)chunk,
        .in_flight_max = world->credit_count,
        .stage_count = world->plan.stage_count,
        .runs_ahead = runs_ahead(world),
        .is_naive = world->settings.is_naive,
    };
}

static enum status open_flow(struct world *world) {
    struct frame_limits results = world->limits;
    results.kind = FRAME_RESULT;
    struct flow_config config = {
        .clock = {.now_ns = now_ns, .ctx = world},
        .cluster = {.clock = {.now_ns = now_ns, .ctx = world},
                    .plan = world->plan,
                    .data_address = world->dock.address},
        .scheduler = scheduler_config(world),
        .limits = results,
        .kv_block_count = world->limits.kv_block_count,
        .has_prefix_cache = !world->settings.no_prefix_cache,
        .cache_seed = world->settings.seed,
        .credit_count = world->credit_count,
        .frame_bytes_max = frame_capacity_bytes(&results),
    };
    stagecoach__v1__assignment__init(&config.cluster.assignment);
    config.cluster.assignment.model_digest.data = world->digest;
    config.cluster.assignment.model_digest.len = sizeof(world->digest);
    config.cluster.assignment.credit_count = world->credit_count;
    config.cluster.assignment.token_lag_max = world->limits.token_lag_max;
    struct flow_outside outside = {
        .cluster = {.send = stream_send_down, .drop = stream_drop, .draw = draw_key, .ctx = world},
        .connect = connect_dock,
        .send = send_frame,
        .issued = clients_issued,
        .sample = clients_sample,
        .released = clients_released,
        .lost = clients_lost,
        .ctx = world,
    };
    return flow_open(&config, &outside, &world->flow);
}

static enum status open_world(struct world *world, struct error *error) {
    world->credit_count =
        world->settings.is_naive ? 1 : (uint32_t)world_number(world, SIMULATION_MICROBATCHES);
    set_limits(world);
    enum status status =
        plan_even((uint32_t)world_number(world, SIMULATION_LAYERS),
                  (uint32_t)world_number(world, SIMULATION_STAGES), &world->plan, error);
    if (status != STATUS_OK) return status;
    world->dock = (struct dock){.actor = &world->coordinator,
                                .handler = &DOCK_HANDLER,
                                .ctx = world,
                                .address = "10.0.0.1:1",
                                .reason = ""};
    world->service_count =
        world->plan.stage_count + (uint32_t)world_number(world, SIMULATION_SPARES);
    world->services = memory_array(world->service_count, sizeof(*world->services));
    world->holder_counts = memory_array(world->limits.kv_block_count, sizeof(uint32_t));
    world->row_values = memory_array(world->limits.row_count_max, sizeof(uint64_t));
    if (world->services == NULL || world->holder_counts == NULL || world->row_values == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory");
    status = open_flow(world);
    if (status != STATUS_OK) return error_set(error, status, "no memory");
    for (uint32_t i = 0; i < world->service_count; i++) {
        service_open(world, &world->services[i], i);
        service_start(world, &world->services[i]);
    }
    faults_open(world);
    world->stop_modulus = world->is_token_count_drawn ? (uint32_t)world_draw(world, 4) * 20 : 0;
    status = clients_open(world);
    return status == STATUS_OK ? status : error_set(error, status, "no memory");
}

static void close_world(struct world *world) {
    for (uint32_t i = 0; i < world->client_count && world->flow != NULL; i++)
        flow_remove(world->flow, &world->clients[i].sequence);
    if (world->flow != NULL) flow_stop(world->flow);
    for (uint32_t i = 0; i < world->service_count && world->services != NULL; i++)
        service_close(world, &world->services[i]);
    dock_close(world, &world->dock, 0);
    wires_close(world);
    flow_close(world->flow);
    streams_close(world);
    clients_close(world);
    agenda_fini(&world->agenda);
    free(world->services);
    free(world->holder_counts);
    free(world->row_values);
    free(world);
}

// -- the story ------------------------------------------------------------------------------------

// All of it on one stage at a time, twice over: the order in which it is done makes it no longer.
static uint64_t work_ns(const struct world *world) {
    uint64_t rows =
        world_number(world, SIMULATION_REQUESTS) *
        (world_number(world, SIMULATION_PROMPT) + world_number(world, SIMULATION_TOKENS));
    uint64_t row_ns =
        world_number(world, SIMULATION_STAGE_NS) + world_number(world, SIMULATION_ROW_NS) +
        world->limits.position_count_max * world_number(world, SIMULATION_ATTENDED_PS) / 1000;
    return 2 * rows * world->plan.stage_count *
           (row_ns + 2 * world_number(world, SIMULATION_HOP_NS));
}

static void run(struct world *world) {
    struct happening happening;
    uint64_t deadline_ns = world->fault_end_ns + world_number(world, SIMULATION_SPREAD_US) * 1000 +
                           FINISH_MS_MAX * MS + work_ns(world);
    world_put(world, 0, &world->coordinator, tick, NULL, 0);
    while (!world_has_failed(world) &&
           (world->ended_count < world->client_count || world->in_flight_count > 0)) {
        bool is_left = agenda_take(&world->agenda, &happening);
        CHECK(is_left); // the coordinator's tick is always ahead
        world->now_ns = happening.at_ns;
        happening.run(world, happening.subject, happening.tag);
        uint64_t count = ++world->report->event_count;
        if (!world->settings.is_long || count % LONG_CHECK_INTERVAL == 0) checks_now(world);
        if (world->now_ns > deadline_ns || count > EVENT_COUNT_MAX)
            world_fail(world, "%u of %u requests have ended, and nothing goes wrong any more: %s",
                       world->ended_count, world->client_count,
                       cluster_explanation(flow_cluster(world->flow)));
    }
    if (!world_has_failed(world)) checks_end(world);
}

static void free_description(Stagecoach__V1__Pipeline *pipeline) {
    for (size_t i = 0; i < pipeline->n_stages; i++)
        free(pipeline->stages[i]);
    free(pipeline->stages);
}

static void fill_report(struct world *world) {
    struct simulation_report *report = world->report;
    for (uint32_t i = 0; i < world->plan.stage_count; i++)
        report->busy_ns[i] = service_busy_ns(world, &world->services[i]);
    for (uint32_t i = 0; i < world->client_count; i++)
        report->cached_token_count += world->clients[i].sequence.cached_count;
    Stagecoach__V1__Pipeline pipeline = STAGECOACH__V1__PIPELINE__INIT;
    if (flow_describe(world->flow, &pipeline) == STATUS_OK) {
        report->step_count = pipeline.step_count;
        report->replay_count = pipeline.replay_count;
        report->stale_frame_count = pipeline.stale_frame_count;
    }
    free_description(&pipeline);
}

enum status simulation_run(const struct simulation_settings *settings,
                           struct simulation_report *report, struct error *error) {
    *report = (struct simulation_report){0};
    struct world *world = calloc(1, sizeof(*world));
    if (world == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
    world->settings = *settings;
    world->is_prompt_drawn = settings->numbers[SIMULATION_PROMPT] == SIMULATION_DRAWN;
    world->is_token_count_drawn = settings->numbers[SIMULATION_TOKENS] == SIMULATION_DRAWN;
    simulation_settings_draw(&world->settings);
    world->report = report;
    enum status status = check_numbers(&world->settings, error);
    if (status == STATUS_OK) status = open_world(world, error);
    if (status == STATUS_OK) {
        run(world);
        fill_report(world);
    }
    close_world(world);
    return status;
}
