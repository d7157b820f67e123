// link_world: two or more ports in one thread, a clock that a test can push, and a record of what
// their handlers were told.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "base/rng.h"
#include "transport/link.h"

enum { WORLD_HELD_MAX = 128 };

// One end of a link and what its handler heard.
struct end {
    struct link *link;
    uint32_t up_count, lost_count, received_count, sent_count;
    struct error error;
    struct frame *held[WORLD_HELD_MAX];
    uint32_t held_count;
    struct frame *returned[WORLD_HELD_MAX];
    uint32_t returned_count;
};

static uint64_t world_pushed_ns;

static uint64_t world_now_ns(void *ctx) {
    (void)ctx;
    struct clock real = clock_system();
    return clock_now_ns(&real) + world_pushed_ns;
}

static inline struct clock world_clock(void) {
    return (struct clock){.now_ns = world_now_ns};
}

static uint32_t world_told_count; // calls of handlers

static void end_up(struct link *link, void *ctx) {
    (void)link;
    world_told_count++;
    ((struct end *)ctx)->up_count++;
}

static void end_received(struct link *link, void *ctx, struct frame *frame) {
    struct end *end = ctx;
    (void)link;
    world_told_count++;
    assert_true(end->held_count < WORLD_HELD_MAX);
    assert_int_equal(end->lost_count, 0);
    end->held[end->held_count++] = frame;
    end->received_count++;
}

static void end_sent(struct link *link, void *ctx, struct frame *frame) {
    struct end *end = ctx;
    (void)link;
    world_told_count++;
    assert_true(end->returned_count < WORLD_HELD_MAX);
    assert_int_equal(end->lost_count, 0);
    end->returned[end->returned_count++] = frame;
    end->sent_count++;
}

static void end_lost(struct link *link, void *ctx, const struct error *error) {
    struct end *end = ctx;
    (void)link;
    world_told_count++;
    end->lost_count++;
    end->error = *error;
}

static const struct link_handler world_handler = {
    .up = end_up, .received = end_received, .sent = end_sent, .lost = end_lost};

struct world {
    struct local_hub *hub; // NULL: ucx
    struct port *ports[4];
    size_t port_count;
};

static inline struct port *world_add_port_at(struct world *world, const char *host) {
    struct port_config config = {.clock = world_clock(), .handler = &world_handler};
    struct error error = {0};
    struct port **port = &world->ports[world->port_count];
    enum status status = world->hub != NULL ? port_open_local(world->hub, &config, port)
                                            : port_open_ucx(host, 0, &config, port, &error);
    if (status != STATUS_OK) fail_msg("%s: %s", status_name(status), error.text);
    world->port_count++;
    return *port;
}

static inline struct port *world_add_port(struct world *world) {
    return world_add_port_at(world, "127.0.0.1");
}

static inline void world_open(struct world *world, bool is_ucx) {
    memset(world, 0, sizeof(*world));
    if (!is_ucx) assert_int_equal(local_hub_open(&world->hub), STATUS_OK);
}

static inline void world_close(struct world *world) {
    for (size_t i = 0; i < world->port_count; i++)
        port_close(world->ports[i]);
    local_hub_close(world->hub);
}

static inline bool world_poll(struct world *world) {
    bool any = false;
    for (size_t i = 0; i < world->port_count; i++) {
        uint32_t told_count = world_told_count;
        bool happened = port_poll(world->ports[i]);
        // An owner that is told nothing happened goes to sleep.
        assert_true(happened || world_told_count == told_count);
        any |= happened;
    }
    return any;
}

// Polls until *count reaches `wanted`, for at most limit_ms of real time.
static inline bool world_until(struct world *world, const uint32_t *count, uint32_t wanted,
                               uint64_t limit_ms) {
    struct clock real = clock_system();
    uint64_t end_ms = clock_now_ms(&real) + limit_ms;
    while (*count < wanted) {
        if (!world_poll(world)) port_wait(world->ports[0], -1, 1);
        if (clock_now_ms(&real) >= end_ms) return *count >= wanted;
    }
    return true;
}

// Polls for some real time, whatever happens.
static inline void world_run(struct world *world, uint64_t run_ms) {
    uint32_t never = 0;
    (void)world_until(world, &never, 1, run_ms);
}

// Pushes the clock by total_ms in steps that no port takes for a pause of its own.
static inline void world_push(struct world *world, uint64_t total_ms) {
    for (uint64_t pushed_ms = 0; pushed_ms < total_ms; pushed_ms += 100) {
        world_pushed_ns += 100 * UINT64_C(1000000);
        for (int i = 0; i < 4; i++)
            (void)world_poll(world);
    }
}

static inline struct link_config world_config(uint32_t credit_count, size_t frame_bytes_max) {
    struct link_config config = {.epoch = 7,
                                 .link_id = 2,
                                 .credit_count = credit_count,
                                 .frame_bytes_max = frame_bytes_max,
                                 .has_key = true};
    memset(config.key, 0x5a, sizeof(config.key));
    return config;
}

static inline void world_expect(struct port *port, const struct link_config *config,
                                struct end *end) {
    memset(end, 0, sizeof(*end));
    assert_int_equal(link_expect(port, config, end, &end->link), STATUS_OK);
}

static inline void world_connect(struct port *port, const char *address,
                                 const struct link_config *config, struct end *end) {
    struct error error = {0};
    memset(end, 0, sizeof(*end));
    enum status status = link_connect(port, address, config, end, &end->link, &error);
    if (status != STATUS_OK) fail_msg("%s", error.text);
}

// A link that is up, from port 1 to port 0.
static inline void world_link(struct world *world, const struct link_config *config,
                              struct end *receiver, struct end *sender) {
    while (world->port_count < 2)
        (void)world_add_port(world);
    world_expect(world->ports[0], config, receiver);
    world_connect(world->ports[1], port_address(world->ports[0]), config, sender);
    assert_true(world_until(world, &receiver->up_count, 1, 5000));
    assert_true(world_until(world, &sender->up_count, 1, 5000));
}

// -- frames: their payload is a piece of one random text, so that it can be compared -------------

enum { TEXT_BYTES = 8 << 20 };

static const uint8_t *world_text(void) {
    static uint8_t *text;
    if (text != NULL) return text;
    text = malloc(TEXT_BYTES);
    assert_non_null(text);
    for (uint32_t i = 0; i < TEXT_BYTES / 16; i++) {
        uint32_t counter[4] = {i}, words[4];
        rng_philox(1, counter, words);
        memcpy(text + i * 16, words, 16);
    }
    return text;
}

static inline void world_fill(struct frame *frame, uint64_t step, size_t payload_bytes) {
    struct frame_header *header = (struct frame_header *)frame->data;
    memset(header, 0, sizeof(*header));
    header->magic = FRAME_MAGIC;
    header->version = FRAME_VERSION;
    header->kind = FRAME_STEP;
    header->epoch = 7;
    header->step = step;
    header->payload_offset = sizeof(*header);
    header->payload_bytes = payload_bytes;
    frame->size_bytes = sizeof(*header) + payload_bytes;
    assert_true(frame->size_bytes <= frame->capacity_bytes);
    memcpy(frame->data + sizeof(*header), world_text() + step * 64 % (TEXT_BYTES / 2),
           payload_bytes);
}

static inline void world_verify(const struct frame *frame, uint64_t step, size_t payload_bytes) {
    const struct frame_header *header = (const struct frame_header *)frame->data;
    assert_int_equal(header->step, step);
    assert_int_equal(frame->size_bytes, sizeof(*header) + payload_bytes);
    assert_memory_equal(frame->data + sizeof(*header), world_text() + step * 64 % (TEXT_BYTES / 2),
                        payload_bytes);
}

static inline struct frame *world_frame(size_t payload_bytes) {
    struct frame *frame;
    assert_int_equal(frame_open(sizeof(struct frame_header) + payload_bytes, &frame), STATUS_OK);
    return frame;
}
