// link_tap: two ports and a wire between them that a test taps: it keeps every message and frame
// until the test lets it pass, changed, twice, out of order or to another connection.
#pragma once

#include "link_world.h"

#include "transport/link_internal.h"

enum { TAP_ITEM_MAX = 256, TAP_CONN_MAX = 64, TAP_BYTES_MAX = 8192 };

struct tap_conn {
    struct conn conn;
    struct tap_conn *peer;
    bool is_dead; // the port has freed it
};

// Something on its way to `to`.
struct tap_item {
    struct tap_conn *to;
    bool is_frame;
    size_t size_bytes;
    uint8_t bytes[TAP_BYTES_MAX];
};

// One at a time: carriers are told no context.
static struct tap {
    struct port ports[2]; // 0 has the receivers, 1 the senders
    struct tap_conn conns[TAP_CONN_MAX];
    uint32_t conn_count;
    struct tap_item items[TAP_ITEM_MAX];
    uint32_t first, count; // of those that are still on their way
} tap;

static struct tap_conn *tap_of(struct conn *conn) {
    return (struct tap_conn *)conn;
}

static struct tap_conn *tap_add_conn(struct port *port, bool accepted) {
    assert_true(tap.conn_count < TAP_CONN_MAX);
    struct tap_conn *conn = &tap.conns[tap.conn_count++];
    conn_init(&conn->conn, port, accepted);
    conn->conn.has_way = true;
    snprintf(conn->conn.peer, sizeof(conn->conn.peer), "the tap");
    return conn;
}

// A connection of a stranger, or of whoever the test plays.
static inline struct tap_conn *tap_dial(void) {
    struct tap_conn *conn = tap_add_conn(&tap.ports[0], true);
    conn_challenge(&conn->conn);
    return conn;
}

static void tap_put(struct tap_conn *to, bool is_frame, const void *bytes, size_t size_bytes) {
    assert_true(tap.count < TAP_ITEM_MAX && size_bytes <= TAP_BYTES_MAX);
    struct tap_item *item = &tap.items[(tap.first + tap.count++) % TAP_ITEM_MAX];
    *item = (struct tap_item){.to = to, .is_frame = is_frame, .size_bytes = size_bytes};
    memcpy(item->bytes, bytes, size_bytes);
}

static bool tap_progress(struct port *port) {
    (void)port;
    return false;
}

static void tap_wait(struct port *port, int wake_fd, int timeout_ms) {
    (void)port;
    (void)wake_fd;
    (void)timeout_ms;
}

static enum status tap_resolve(struct port *port, const char *text,
                               struct conn_address *address_out, struct error *error) {
    (void)port;
    (void)text;
    (void)error;
    *address_out = (struct conn_address){.count = 1};
    return STATUS_OK;
}

static enum status tap_dial_port(struct port *port, const struct conn_address *address,
                                 size_t address_index, struct conn **conn_out) {
    (void)address;
    (void)address_index;
    struct tap_conn *dialed = tap_add_conn(port, false);
    struct tap_conn *accepted = tap_add_conn(&tap.ports[0], true);
    dialed->peer = accepted;
    accepted->peer = dialed;
    conn_challenge(&accepted->conn);
    *conn_out = &dialed->conn;
    return STATUS_OK;
}

static bool tap_send_message(struct conn *conn, const union link_message *message) {
    tap_put(tap_of(conn)->peer, false, message, link_message_bytes(message->head.kind));
    return true;
}

static void tap_send_frame(struct conn *conn, struct send_slot *slot) {
    tap_put(tap_of(conn)->peer, true, slot->frame->data, slot->frame->size_bytes);
    send_slot_done(slot);
}

static void tap_flush(struct conn *conn) {
    conn->flushed = true;
}

static void tap_force(struct conn *conn) {
    conn->gone = true;
}

static void tap_free_conn(struct conn *conn) {
    tap_of(conn)->is_dead = true;
}

static void tap_close_port(struct port *port) {
    (void)port;
}

static const struct carrier_ops tap_ops = {
    .progress = tap_progress,
    .wait = tap_wait,
    .resolve = tap_resolve,
    .dial = tap_dial_port,
    .send_message = tap_send_message,
    .send_frame = tap_send_frame,
    .flush = tap_flush,
    .force = tap_force,
    .free_conn = tap_free_conn,
    .close = tap_close_port,
    .needs_keys = false,
};

static inline void tap_open(void) {
    struct port_config config = {.clock = world_clock(), .handler = &world_handler};
    memset(&tap, 0, sizeof(tap));
    assert_int_equal(link_crypto_start(), STATUS_OK);
    port_init(&tap.ports[0], &tap_ops, &config);
    port_init(&tap.ports[1], &tap_ops, &config);
}

static inline void tap_close(void) {
    port_close(&tap.ports[1]);
    port_close(&tap.ports[0]);
}

static inline void tap_poll(void) {
    for (int i = 0; i < 4; i++)
        (void)port_poll(&tap.ports[i % 2]);
}

// Lets something arrive at `to`, which may be another connection than it was sent to.
static inline void tap_deliver(const struct tap_item *item, struct tap_conn *to) {
    size_t header_bytes = sizeof(struct frame_header);
    if (to == NULL || to->is_dead || !conn_is_live(&to->conn)) return;
    if (!item->is_frame) {
        conn_receive_message(&to->conn, item->bytes, item->size_bytes);
        return;
    }
    struct receive_slot *slot =
        conn_receive_frame(&to->conn, item->bytes, header_bytes, item->size_bytes - header_bytes);
    if (slot == NULL) return;
    memcpy(slot->frame->data + header_bytes, item->bytes + header_bytes,
           item->size_bytes - header_bytes);
    receive_slot_done(slot, true);
}

// Takes the oldest one off the wire; it is the test's until the next is put there.
static inline struct tap_item *tap_take(void) {
    if (tap.count == 0) fail_msg("nothing is on the wire");
    tap.count--;
    struct tap_item *item = &tap.items[tap.first];
    tap.first = (tap.first + 1) % TAP_ITEM_MAX;
    return item;
}

// Everything arrives as it was sent, and what that leads to.
static inline void tap_pass_all(void) {
    do {
        while (tap.count > 0) {
            struct tap_item item = *tap_take();
            tap_deliver(&item, item.to);
        }
        tap_poll();
    } while (tap.count > 0);
}

static inline void tap_expect(const struct link_config *config, struct end *end) {
    world_expect(&tap.ports[0], config, end);
}

static inline void tap_connect(const struct link_config *config, struct end *end) {
    world_connect(&tap.ports[1], "", config, end);
}

static inline void tap_link(const struct link_config *config, struct end *receiver,
                            struct end *sender) {
    tap_expect(config, receiver);
    tap_connect(config, sender);
    tap_pass_all();
    assert_int_equal(receiver->up_count, 1);
    assert_int_equal(sender->up_count, 1);
}

// A frame on the wire; what it said before it was sealed is in world_text().
static inline struct tap_item tap_send(struct end *sender, struct frame *frame, uint64_t step,
                                       size_t payload_bytes) {
    world_fill(frame, step, payload_bytes);
    assert_true(link_send(sender->link, frame));
    assert_int_equal(tap.count, 1);
    return *tap_take();
}
