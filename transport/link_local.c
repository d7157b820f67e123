// link_local: connections between ports of one process. A frame is copied once, by the receiver.
//
// A *pipe* is what both ends of a connection share, under its own lock: for each direction one
// place for a message of each slot, a queue of borrowed frames, and the frames that come back. Each
// end counts one reference. Locks are taken in the order hub, pipe.
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/memory.h"
#include "base/wake.h"
#include "transport/link_internal.h"

struct local_port;

// A message waits for no other kind of message; at most one of each is on its way.
enum message_slot { SLOT_GREETING, SLOT_CREDIT, SLOT_PING, SLOT_BYE, SLOT_COUNT };

static enum message_slot message_slot(uint16_t kind) {
    switch (kind) {
    case LINK_CREDIT:
        return SLOT_CREDIT;
    case LINK_PING:
        return SLOT_PING;
    case LINK_BYE:
        return SLOT_BYE;
    default:
        return SLOT_GREETING;
    }
}

struct local_direction {
    bool has_message[SLOT_COUNT];
    union link_message messages[SLOT_COUNT];
    struct send_slot *frames[LINK_CREDIT_COUNT_MAX]; // a ring, by the two counts
    uint32_t frame_given_count, frame_taken_count;
    struct send_slot *returned[LINK_CREDIT_COUNT_MAX];
    uint32_t returned_count;
};

struct local_pipe {
    pthread_mutex_t lock;
    uint32_t reference_count;
    struct local_port *ports[2]; // NULL once that end is closed; end 0 dialed
    struct local_direction from[2];
};

struct local_conn {
    struct conn conn;
    struct local_pipe *pipe;
    int end;
};

struct local_port {
    struct port port;
    struct local_hub *hub;
    struct local_port *next;
    uint32_t id;
    struct wake wake;
    atomic_bool signalled;
    struct local_pipe *arrived[LINK_PENDING_COUNT_MAX]; // under the hub's lock
    uint32_t arrived_count;
};

struct local_hub {
    pthread_mutex_t lock;
    struct local_port *ports;
    uint32_t id_last;
};

static void local_signal(struct local_port *port) {
    if (!atomic_exchange(&port->signalled, true)) wake_signal(&port->wake);
}

// -- pipes ---------------------------------------------------------------------------------------

static void pipe_drop(struct local_pipe *pipe) {
    pthread_mutex_lock(&pipe->lock);
    bool last = --pipe->reference_count == 0;
    pthread_mutex_unlock(&pipe->lock);
    if (!last) return;
    pthread_mutex_destroy(&pipe->lock);
    free(pipe);
}

// Closes one end: frames of both directions are touched no more.
static void pipe_close_end(struct local_pipe *pipe, int end) {
    pthread_mutex_lock(&pipe->lock);
    pipe->ports[end] = NULL;
    pipe->from[end].frame_taken_count = pipe->from[end].frame_given_count;
    if (pipe->ports[!end] != NULL) local_signal(pipe->ports[!end]);
    pthread_mutex_unlock(&pipe->lock);
}

static struct local_pipe *pipe_make(struct local_port *dialer, struct local_port *target) {
    struct local_pipe *pipe = memory_array(1, sizeof(*pipe));
    if (pipe == NULL) return NULL;
    pthread_mutex_init(&pipe->lock, NULL);
    pipe->reference_count = 2;
    pipe->ports[0] = dialer;
    pipe->ports[1] = target;
    return pipe;
}

// -- the hub -------------------------------------------------------------------------------------

enum status local_hub_open(struct local_hub **hub_out) {
    struct local_hub *hub = memory_array(1, sizeof(*hub));
    if (hub == NULL) return STATUS_NO_MEMORY;
    pthread_mutex_init(&hub->lock, NULL);
    *hub_out = hub;
    return STATUS_OK;
}

void local_hub_close(struct local_hub *hub) {
    if (hub == NULL) return;
    CHECK(hub->ports == NULL);
    pthread_mutex_destroy(&hub->lock);
    free(hub);
}

// -- connections ---------------------------------------------------------------------------------

static struct local_conn *local_conn_make(struct local_port *port, struct local_pipe *pipe,
                                          int end) {
    struct local_conn *conn = memory_array(1, sizeof(*conn));
    if (conn == NULL) return NULL;
    conn->pipe = pipe;
    conn->end = end;
    conn_init(&conn->conn, &port->port, end == 1);
    conn->conn.has_way = true;
    snprintf(conn->conn.peer, sizeof(conn->conn.peer), "a port of this process");
    return conn;
}

static enum status local_dial(struct port *base, const struct conn_address *address,
                              size_t address_index, struct conn **conn_out) {
    (void)address_index;
    struct local_port *port = (struct local_port *)base;
    struct local_hub *hub = port->hub;
    struct local_pipe *pipe = NULL;
    pthread_mutex_lock(&hub->lock);
    struct local_port *target = hub->ports;
    while (target != NULL && target->id != address->local_id)
        target = target->next;
    if (target != NULL && target->arrived_count < LINK_PENDING_COUNT_MAX) {
        pipe = pipe_make(port, target);
        if (pipe != NULL) target->arrived[target->arrived_count++] = pipe;
        if (pipe != NULL) local_signal(target);
    }
    pthread_mutex_unlock(&hub->lock);
    if (pipe == NULL) return STATUS_UNAVAILABLE;
    struct local_conn *conn = local_conn_make(port, pipe, 0);
    if (conn == NULL) {
        pipe_close_end(pipe, 0);
        pipe_drop(pipe);
        return STATUS_NO_MEMORY;
    }
    *conn_out = &conn->conn;
    return STATUS_OK;
}

static bool local_accept(struct local_port *port) {
    struct local_pipe *arrived[LINK_PENDING_COUNT_MAX];
    pthread_mutex_lock(&port->hub->lock);
    uint32_t count = port->arrived_count;
    memcpy(arrived, port->arrived, count * sizeof(*arrived));
    port->arrived_count = 0;
    pthread_mutex_unlock(&port->hub->lock);
    for (uint32_t i = 0; i < count; i++) {
        struct local_conn *conn = NULL;
        if (port_has_room_for_pending(&port->port)) conn = local_conn_make(port, arrived[i], 1);
        if (conn != NULL) {
            conn_challenge(&conn->conn);
            continue;
        }
        port->port.refused_count++;
        pipe_close_end(arrived[i], 1);
        pipe_drop(arrived[i]);
    }
    return count > 0;
}

static bool local_send_message(struct conn *base, const union link_message *message) {
    struct local_conn *conn = (struct local_conn *)base;
    struct local_direction *out = &conn->pipe->from[conn->end];
    enum message_slot slot = message_slot(message->head.kind);
    pthread_mutex_lock(&conn->pipe->lock);
    bool room = !out->has_message[slot];
    if (room) {
        out->messages[slot] = *message;
        out->has_message[slot] = true;
        if (conn->pipe->ports[!conn->end] != NULL) local_signal(conn->pipe->ports[!conn->end]);
    }
    pthread_mutex_unlock(&conn->pipe->lock);
    return room;
}

static void local_send_frame(struct conn *base, struct send_slot *slot) {
    struct local_conn *conn = (struct local_conn *)base;
    struct local_direction *out = &conn->pipe->from[conn->end];
    pthread_mutex_lock(&conn->pipe->lock);
    struct local_port *peer = conn->pipe->ports[!conn->end];
    if (peer != NULL) {
        CHECK(out->frame_given_count - out->frame_taken_count < LINK_CREDIT_COUNT_MAX);
        out->frames[out->frame_given_count++ % LINK_CREDIT_COUNT_MAX] = slot;
        local_signal(peer);
    }
    pthread_mutex_unlock(&conn->pipe->lock);
    if (peer == NULL) {
        send_slot_done(slot);
        conn_broke(base, "the peer closed the connection");
    }
}

// Copies one frame under the pipe's lock, so that closing the other end waits for it.
static void local_copy_frame(struct local_conn *conn, struct send_slot *sent) {
    size_t rest_bytes = sent->frame->size_bytes - sizeof(struct frame_header);
    struct receive_slot *slot =
        conn_receive_frame(&conn->conn, sent->frame->data, sizeof(struct frame_header), rest_bytes);
    if (slot == NULL) return;
    memcpy(slot->frame->data + sizeof(struct frame_header),
           sent->frame->data + sizeof(struct frame_header), rest_bytes);
    receive_slot_done(slot, true);
}

static bool local_take_frames(struct local_conn *conn) {
    struct local_pipe *pipe = conn->pipe;
    struct local_direction *in = &pipe->from[!conn->end];
    bool any = false;
    while (in->frame_taken_count != in->frame_given_count) {
        struct send_slot *sent = in->frames[in->frame_taken_count++ % LINK_CREDIT_COUNT_MAX];
        local_copy_frame(conn, sent);
        in->returned[in->returned_count++] = sent;
        any = true;
    }
    if (any && pipe->ports[!conn->end] != NULL) local_signal(pipe->ports[!conn->end]);
    return any;
}

// Takes one message out, so that it is handled without the lock: answers need it.
static bool local_take_message(struct local_conn *conn, enum message_slot slot) {
    struct local_direction *in = &conn->pipe->from[!conn->end];
    union link_message message;
    pthread_mutex_lock(&conn->pipe->lock);
    bool any = in->has_message[slot];
    if (any) message = in->messages[slot];
    in->has_message[slot] = false;
    pthread_mutex_unlock(&conn->pipe->lock);
    if (any) conn_receive_message(&conn->conn, &message, link_message_bytes(message.head.kind));
    return any;
}

static bool local_conn_progress(struct local_conn *conn) {
    struct local_pipe *pipe = conn->pipe;
    struct local_direction *out = &pipe->from[conn->end];
    pthread_mutex_lock(&pipe->lock);
    // Read first: whatever a peer gave before it closed is still taken below.
    bool peer_closed = pipe->ports[!conn->end] == NULL;
    pthread_mutex_unlock(&pipe->lock);
    bool any = local_take_message(conn, SLOT_GREETING);
    pthread_mutex_lock(&pipe->lock);
    any |= out->returned_count > 0;
    for (uint32_t i = 0; i < out->returned_count; i++)
        send_slot_done(out->returned[i]);
    out->returned_count = 0;
    any |= local_take_frames(conn);
    pthread_mutex_unlock(&pipe->lock);
    any |= local_take_message(conn, SLOT_CREDIT);
    any |= local_take_message(conn, SLOT_PING);
    any |= local_take_message(conn, SLOT_BYE);
    if (peer_closed && !conn->conn.failed) {
        conn_broke(&conn->conn, "the peer closed the connection");
        any = true;
    }
    return any;
}

static bool local_progress(struct port *base) {
    struct local_port *port = (struct local_port *)base;
    bool any = false;
    if (!atomic_exchange(&port->signalled, false)) return false;
    any |= local_accept(port);
    for (struct conn *conn = base->conns; conn != NULL; conn = conn->next)
        if (conn->phase != CONN_FORCED) any |= local_conn_progress((struct local_conn *)conn);
    return any;
}

// What was sent is in the pipe, and the peer reads it from there.
static void local_flush(struct conn *base) {
    base->flushed = true;
}

static void local_force(struct conn *base) {
    struct local_conn *conn = (struct local_conn *)base;
    struct local_direction *out = &conn->pipe->from[conn->end];
    pthread_mutex_lock(&conn->pipe->lock);
    for (uint32_t i = 0; i < out->returned_count; i++)
        send_slot_done(out->returned[i]);
    for (; out->frame_taken_count != out->frame_given_count; out->frame_taken_count++)
        send_slot_done(out->frames[out->frame_taken_count % LINK_CREDIT_COUNT_MAX]);
    out->returned_count = 0;
    pthread_mutex_unlock(&conn->pipe->lock);
    pipe_close_end(conn->pipe, conn->end);
    base->gone = true;
}

static void local_free_conn(struct conn *base) {
    struct local_conn *conn = (struct local_conn *)base;
    pipe_drop(conn->pipe);
    free(conn);
}

// -- ports ---------------------------------------------------------------------------------------

static void local_wait(struct port *base, int wake_fd, int timeout_ms) {
    struct local_port *port = (struct local_port *)base;
    struct pollfd pollfds[2] = {{.fd = port->wake.fd, .events = POLLIN},
                                {.fd = wake_fd, .events = POLLIN}};
    struct clock real = clock_system();
    uint64_t end_ns = clock_now_ns(&real) + LINK_SPIN_US * UINT64_C(1000);
    do {
        if (atomic_load(&port->signalled) || poll(pollfds + 1, 1, 0) > 0) return;
        sched_yield();
    } while (clock_now_ns(&real) < end_ns);
    // Whether there is work is said by `signalled` alone; the descriptor only ends the sleep.
    if (poll(pollfds, 2, timeout_ms) > 0 && pollfds[0].revents != 0) wake_clear(&port->wake);
}

static enum status local_resolve(struct port *base, const char *text,
                                 struct conn_address *address_out, struct error *error) {
    (void)base;
    uint32_t id;
    int end = 0;
    if (sscanf(text, "local:%" SCNu32 "%n", &id, &end) != 1 || text[end] != '\0')
        return error_set(error, STATUS_INVALID, "address \"%.200s\" is not \"local:N\"", text);
    *address_out = (struct conn_address){.count = 1, .local_id = id};
    return STATUS_OK;
}

static void local_close(struct port *base) {
    struct local_port *port = (struct local_port *)base;
    struct local_hub *hub = port->hub;
    pthread_mutex_lock(&hub->lock);
    struct local_port **at = &hub->ports;
    while (*at != port)
        at = &(*at)->next;
    *at = port->next;
    pthread_mutex_unlock(&hub->lock);
    for (uint32_t i = 0; i < port->arrived_count; i++) {
        pipe_close_end(port->arrived[i], 1);
        pipe_drop(port->arrived[i]);
    }
    while (base->conns != NULL) {
        struct conn *conn = base->conns;
        base->conns = conn->next;
        local_free_conn(conn);
    }
    wake_fini(&port->wake);
    free(port);
}

static const struct carrier_ops local_ops = {
    .progress = local_progress,
    .wait = local_wait,
    .resolve = local_resolve,
    .dial = local_dial,
    .send_message = local_send_message,
    .send_frame = local_send_frame,
    .flush = local_flush,
    .force = local_force,
    .free_conn = local_free_conn,
    .close = local_close,
};

enum status port_open_local(struct local_hub *hub, const struct port_config *config,
                            struct port **port_out) {
    struct local_port *port = memory_array(1, sizeof(*port));
    if (port == NULL) return STATUS_NO_MEMORY;
    if (link_crypto_start() != STATUS_OK) {
        free(port);
        return STATUS_IO;
    }
    if (wake_init(&port->wake) != STATUS_OK) {
        free(port);
        return STATUS_NO_MEMORY;
    }
    port_init(&port->port, &local_ops, config);
    port->hub = hub;
    pthread_mutex_lock(&hub->lock);
    port->id = ++hub->id_last;
    port->next = hub->ports;
    hub->ports = port;
    pthread_mutex_unlock(&hub->lock);
    snprintf(port->port.address, sizeof(port->port.address), "local:%" PRIu32, port->id);
    *port_out = &port->port;
    return STATUS_OK;
}
