#include "client/simulate/checks.h"

#include <string.h>

#include "base/limits.h"

// How many running sequences hold each block; false when one that does not run holds any.
static uint32_t count_holders(struct world *world) {
    memset(world->holder_counts, 0, world->limits.kv_block_count * sizeof(uint32_t));
    uint32_t held_count = 0;
    for (uint32_t i = 0; i < world->client_count; i++) {
        const struct sequence *sequence = &world->clients[i].sequence;
        if (sequence->state != SEQUENCE_RUNNING && sequence->block_count > 0)
            world_fail(world, "request %u does not run and holds %u blocks", i,
                       sequence->block_count);
        for (uint32_t b = 0; b < sequence->block_count; b++)
            held_count += world->holder_counts[sequence->blocks[b]]++ == 0 ? 1 : 0;
    }
    return held_count;
}

static void check_blocks(struct world *world) {
    const struct kv_blocks *blocks = flow_blocks(world->flow);
    uint32_t held_count = count_holders(world);
    uint32_t total_count = kv_blocks_total_count(blocks), free_count = kv_blocks_free_count(blocks);
    for (uint32_t b = 0; b < total_count; b++)
        if (kv_blocks_reference_count(blocks, b) != world->holder_counts[b])
            world_fail(world, "block %u has %u references, %u sequences hold it", b,
                       kv_blocks_reference_count(blocks, b), world->holder_counts[b]);
    if (held_count + free_count != total_count)
        world_fail(world, "%u blocks are held and %u free, of %u", held_count, free_count,
                   total_count);
}

static void check_sequences(struct world *world) {
    uint32_t running_count = 0, waiting_count = 0;
    for (uint32_t i = 0; i < world->client_count; i++) {
        const struct client *client = &world->clients[i];
        enum sequence_state state = client->sequence.state;
        running_count += state == SEQUENCE_RUNNING ? 1 : 0;
        waiting_count += state == SEQUENCE_WAITING ? 1 : 0;
        if ((state == SEQUENCE_IDLE) != (client->state != CLIENT_WAITING))
            world_fail(world, "request %u is %s, but the scheduler %s it", i,
                       client->state == CLIENT_WAITING ? "accepted" : "not there",
                       state == SEQUENCE_IDLE ? "has forgotten" : "still has");
    }
    if (running_count != flow_running_count(world->flow) ||
        waiting_count != flow_waiting_count(world->flow))
        world_fail(world, "%u sequences run and %u wait, the scheduler counts %u and %u",
                   running_count, waiting_count, flow_running_count(world->flow),
                   flow_waiting_count(world->flow));
}

void checks_now(struct world *world) {
    check_blocks(world);
    check_sequences(world);
    if (world->in_flight_count > world->credit_count)
        world_fail(world, "%u steps are in flight, %u credits exist", world->in_flight_count,
                   world->credit_count);
}

// -- a frame goes out -----------------------------------------------------------------------------

static struct client *client_of(struct world *world, uint64_t run_id) {
    for (uint32_t i = 0; i < world->client_count; i++)
        if (world->clients[i].sequence.run_id == run_id) return &world->clients[i];
    return NULL;
}

static void check_rows(struct world *world, const struct frame_view *view,
                       const struct frame_sequence *s) {
    struct client *client = client_of(world, s->sequence_id);
    if (client == NULL) {
        world_fail(world, "rows of run %lu, which nobody asked for", (unsigned long)s->sequence_id);
        return;
    }
    // Positions follow one another; whole blocks that are cached are left out.
    uint32_t next = client->issued_run_id == s->sequence_id ? client->issued_end : 0;
    if (s->position_first != next && (s->position_first < next || world->settings.no_prefix_cache ||
                                      s->position_first % KV_BLOCK_POSITION_COUNT != 0))
        world_fail(world, "request %u: rows from position %u, %u was next", client->index,
                   s->position_first, next);
    client->issued_run_id = s->sequence_id;
    client->issued_end = s->position_first + s->row_count;
    for (uint32_t p = s->position_first / KV_BLOCK_POSITION_COUNT; p < s->block_count; p++) {
        uint32_t block_id = view->blocks[s->block_first + p];
        if (world->holder_counts[block_id] != 1)
            world_fail(world, "request %u writes to block %u, which %u sequences hold",
                       client->index, block_id, world->holder_counts[block_id]);
    }
}

void checks_sent(struct world *world, struct frame *frame) {
    struct frame_limits limits = world->limits;
    limits.epoch = world->dock.epoch;
    struct frame_view view;
    struct error error;
    if (frame_parse(frame, &limits, &view, &error) != STATUS_OK) {
        world_fail(world, "the coordinator sends a wrong frame: %s", error.text);
        return;
    }
    world->report->row_count += view.header->row_count;
    if (world->settings.is_long) return;
    count_holders(world);
    for (uint32_t i = 0; i < view.header->sequence_count; i++)
        check_rows(world, &view, &view.sequences[i]);
}

void checks_end(struct world *world) {
    checks_now(world);
    for (uint32_t i = 0; i < world->client_count; i++) {
        const struct sequence *sequence = &world->clients[i].sequence;
        if (sequence->in_flight_count > 0 || sequence->block_count > 0)
            world_fail(world, "request %u has ended, %u steps and %u blocks are left", i,
                       sequence->in_flight_count, sequence->block_count);
    }
}
