// The API of ports and links, their memory, and the order of work in port_poll.
#include "transport/link.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "transport/link_internal.h"

// -- ports ---------------------------------------------------------------------------------------

void port_init(struct port *port, const struct carrier_ops *ops, const struct port_config *config) {
    port->ops = ops;
    port->clock = config->clock;
    port->handler = config->handler;
    port->now_ms = clock_now_ms(&port->clock);
}

const char *port_address(const struct port *port) {
    return port->address;
}

// Nothing touches the frames of a connection that is gone, reported or not.
static void link_take_all_back(struct link *link) {
    link->conn = NULL;
    for (uint32_t i = 0; i < link->credit_count; i++) {
        if (link->is_sender && link->sends[i].frame != NULL && !link->sends[i].done)
            send_slot_done(&link->sends[i]);
        if (!link->is_sender && link->receives[i].state == RECEIVE_FILLING)
            receive_slot_done(&link->receives[i], false);
    }
}

static void conn_free(struct conn *conn) {
    struct port *port = conn->port;
    if (conn->pending) port->pending_count--;
    if (conn->link != NULL && conn->link->conn == conn) link_take_all_back(conn->link);
    port->ops->free_conn(conn);
}

static void conn_advance(struct conn *conn) {
    struct port *port = conn->port;
    conn_check_failed(conn);
    if (conn->phase == CONN_OPEN && conn_is_live(conn) && conn->pending &&
        port->now_ms >= conn->deadline_ms)
        conn_refuse_message(conn, "no hello");
    if (conn->phase == CONN_OPEN && conn->wanted == CONN_FLUSHING) {
        conn->phase = CONN_FLUSHING;
        conn->deadline_ms = port->now_ms + LINK_CLOSE_MS;
        port->ops->flush(conn);
    }
    if (conn->phase == CONN_FLUSHING && (conn->flushed || port->now_ms >= conn->deadline_ms))
        conn->wanted = CONN_FORCED;
    if (conn->phase != CONN_FORCED && conn->wanted == CONN_FORCED) {
        conn->phase = CONN_FORCED;
        port->ops->force(conn);
    }
}

void port_sweep_conns(struct port *port) {
    for (struct conn **at = &port->conns; *at != NULL;) {
        struct conn *conn = *at;
        conn_advance(conn);
        if (!conn->gone) {
            at = &conn->next;
            continue;
        }
        *at = conn->next;
        conn_free(conn);
        port->happened = true;
    }
}

static void link_free(struct link *link) {
    memory_wipe(link->config.key, sizeof(link->config.key));
    memory_wipe(&link->session, sizeof(link->session));
    if (link->memory != NULL) munmap(link->memory, link->memory_bytes);
    free(link->sends);
    free(link->receives);
    free(link->frames);
    free(link->free_frames);
    free(link);
}

// Frees the links that their owner closed, once nothing of them is out.
static void port_reap_links(struct port *port) {
    for (struct link **at = &port->links; *at != NULL;) {
        struct link *link = *at;
        if (link->closed && link->conn == NULL && link->held_count == 0) {
            *at = link->next;
            link_free(link);
        } else {
            at = &link->next;
        }
    }
}

// A port that was itself stopped for long cannot blame its peers for the silence.
static void port_excuse_peers(struct port *port, uint64_t now_ms) {
    if (now_ms - port->now_ms < LINK_LOST_MS / 2) return;
    for (struct link *link = port->links; link != NULL; link = link->next)
        link->heard_ms = now_ms;
}

bool port_poll(struct port *port) {
    CHECK(!port->in_handler);
    uint64_t now_ms = clock_now_ms(&port->clock);
    port_excuse_peers(port, now_ms);
    port->now_ms = now_ms;
    bool happened = port->ops->progress(port);
    bool ticked = now_ms != port->timed_ms;
    for (struct link *link = port->links; ticked && link != NULL; link = link->next)
        link_run_timers(link);
    port->timed_ms = now_ms;
    happened |= port->happened; // also what a wait has seen
    if (!happened && !ticked) return false;
    do {
        port->happened = false;
        port_sweep_conns(port);
        for (struct link *link = port->links; link != NULL; link = link->next)
            link_deliver(link);
        happened |= port->happened;
    } while (port->happened);
    port_reap_links(port);
    return happened;
}

static uint64_t earlier(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

// When the next timer of the port is due, in ms from now.
static int port_timer_ms(struct port *port) {
    uint64_t now_ms = clock_now_ms(&port->clock);
    uint64_t due_ms = now_ms + 60000;
    for (const struct conn *conn = port->conns; conn != NULL; conn = conn->next) {
        bool timed = conn->phase == CONN_FLUSHING || conn->pending;
        if (timed && conn->phase != CONN_FORCED) due_ms = earlier(due_ms, conn->deadline_ms);
    }
    for (const struct link *link = port->links; link != NULL; link = link->next) {
        if (link->closed) continue;
        if (link->state == LINK_UP) {
            due_ms = earlier(due_ms, link->pinged_ms + LINK_PING_MS);
            due_ms = earlier(due_ms, link->heard_ms + LINK_LOST_MS);
        } else if (link->state == LINK_WAITING || link->state == LINK_GREETING) {
            due_ms = earlier(due_ms, link->deadline_ms);
            if (link->is_sender && link->state == LINK_WAITING)
                due_ms = earlier(due_ms, link->retry_ms);
        }
    }
    return due_ms <= now_ms ? 0 : (int)(due_ms - now_ms);
}

void port_wait(struct port *port, int wake_fd, int timeout_ms) {
    CHECK(!port->in_handler);
    if (port->happened) return;
    int timer_ms = port_timer_ms(port);
    if (timeout_ms < 0 || timer_ms < timeout_ms) timeout_ms = timer_ms;
    if (timeout_ms > 0) port->ops->wait(port, wake_fd, timeout_ms);
}

// Progresses without the handler until nothing of `link` is lent (NULL: until the port has no
// connection), for limit_ms of real time.
static bool port_drain(struct port *port, const struct link *link, uint64_t limit_ms) {
    struct clock real = clock_system();
    uint64_t end_ms = clock_now_ms(&real) + limit_ms;
    bool drained;
    for (;;) {
        bool moved = port->ops->progress(port);
        port->now_ms = clock_now_ms(&port->clock);
        port_sweep_conns(port);
        drained = link == NULL ? port->conns == NULL : link->lent_count == link->done_count;
        if (drained || clock_now_ms(&real) >= end_ms) break;
        port->happened = false;
        if (!moved) port->ops->wait(port, -1, 1);
    }
    port->happened = true; // the next poll delivers what came meanwhile
    return drained;
}

static void conn_say_bye(struct conn *conn) {
    if (conn->wanted != CONN_OPEN || conn->failed) return;
    (void)conn_send_sign(conn, LINK_BYE);
    conn_end(conn, CONN_FLUSHING);
}

void port_close(struct port *port) {
    if (port == NULL) return;
    CHECK(!port->in_handler);
    for (struct link *link = port->links; link != NULL; link = link->next)
        link->closed = true;
    for (struct conn *conn = port->conns; conn != NULL; conn = conn->next)
        conn_say_bye(conn);
    if (!port_drain(port, NULL, LINK_CLOSE_MS)) {
        for (struct conn *conn = port->conns; conn != NULL; conn = conn->next)
            conn_end(conn, CONN_FORCED);
        if (!port_drain(port, NULL, LINK_FORCE_MS))
            log_error("%s: connections are still busy at the end of the port", port->address);
    }
    while (port->links != NULL) {
        struct link *link = port->links;
        port->links = link->next;
        link_free(link);
    }
    port->ops->close(port);
}

// -- links ---------------------------------------------------------------------------------------

static struct link *link_make(struct port *port, const struct link_config *config, void *ctx,
                              bool is_sender) {
    CHECK(config->credit_count >= 1 && config->credit_count <= LINK_CREDIT_COUNT_MAX);
    CHECK(config->frame_bytes_max >= sizeof(struct frame_header) &&
          config->frame_bytes_max <= FRAME_BYTES_MAX);
    CHECK(config->has_key || (!config->encrypts && !port->ops->needs_keys));
    struct link *link = memory_array(1, sizeof(*link));
    if (link == NULL) return NULL;
    link->port = port;
    link->config = *config;
    link->ctx = ctx;
    link->is_sender = is_sender;
    link->state = LINK_WAITING;
    link->deadline_ms = clock_now_ms(&port->clock) + LINK_CONNECT_MS;
    link->port_refused_count_before = port->refused_count - port->refused_by_links_count;
    return link;
}

static void port_add_link(struct port *port, struct link *link) {
    link->next = port->links;
    port->links = link;
}

// Address space for the frames; the kernel backs a page when it is first written.
static enum status link_map_frames(struct link *link) {
    uint32_t count = link->config.credit_count;
    size_t stride_bytes =
        (link->config.frame_bytes_max + FRAME_ALIGNMENT - 1) / FRAME_ALIGNMENT * FRAME_ALIGNMENT;
    void *memory = mmap(NULL, stride_bytes * count, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return STATUS_NO_MEMORY;
    link->memory = memory;
    link->memory_bytes = stride_bytes * count;
    for (uint32_t i = 0; i < count; i++) {
        link->receives[i].link = link;
        link->frames[i] = (struct frame){
            .data = link->memory + i * stride_bytes, .capacity_bytes = stride_bytes, .owner = link};
        // Taken from the end: the first frames are used again and again, the others stay untouched.
        link->free_frames[count - 1 - i] = &link->frames[i];
    }
    link->free_count = count;
    return STATUS_OK;
}

enum status link_expect(struct port *port, const struct link_config *config, void *ctx,
                        struct link **link_out) {
    struct link *link = link_make(port, config, ctx, false);
    if (link == NULL) return STATUS_NO_MEMORY;
    link->receives = memory_array(config->credit_count, sizeof(*link->receives));
    link->frames = memory_array(config->credit_count, sizeof(*link->frames));
    link->free_frames = memory_array(config->credit_count, sizeof(*link->free_frames));
    if (link->receives == NULL || link->frames == NULL || link->free_frames == NULL ||
        link_map_frames(link) != STATUS_OK) {
        link_free(link);
        return STATUS_NO_MEMORY;
    }
    snprintf(link->peer, sizeof(link->peer), "its sender");
    port_add_link(port, link);
    *link_out = link;
    return STATUS_OK;
}

enum status link_connect(struct port *port, const char *address, const struct link_config *config,
                         void *ctx, struct link **link_out, struct error *error) {
    struct link *link = link_make(port, config, ctx, true);
    if (link == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory for a link");
    link->sends = memory_array(config->credit_count, sizeof(*link->sends));
    if (link->sends == NULL) {
        link_free(link);
        return error_set(error, STATUS_NO_MEMORY, "no memory for a link");
    }
    enum status status = port->ops->resolve(port, address, &link->address, error);
    if (status != STATUS_OK) {
        link_free(link);
        return status;
    }
    for (uint32_t i = 0; i < config->credit_count; i++)
        link->sends[i].link = link;
    snprintf(link->peer, sizeof(link->peer), "%s", address);
    port_add_link(port, link);
    link_greet(link);
    port->happened = true;
    *link_out = link;
    return STATUS_OK;
}

static void link_seal_frame(struct link *link, struct frame *frame, uint64_t sequence) {
    struct frame_header *header = (struct frame_header *)frame->data;
    header->link_sequence = sequence;
    memset(header->payload_tag, 0, sizeof(header->payload_tag));
    memset(header->mac, 0, sizeof(header->mac));
    if (link->config.encrypts)
        link_encrypt(&link->session, sequence, frame->data + sizeof(*header),
                     frame->size_bytes - sizeof(*header), header->payload_tag);
    if (link->config.has_key) link_seal_header(&link->session, header);
}

bool link_send(struct link *link, struct frame *frame) {
    CHECK(link->is_sender && !link->closed);
    if (link->state != LINK_UP || link->conn->failed || link->conn->wanted != CONN_OPEN)
        return false;
    if (link->sent_count - link->credited_count >= link->credit_count) return false;
    struct send_slot *slot = &link->sends[(link->sent_count + 1) % link->credit_count];
    // The receiver may have released a frame whose end of sending we have not heard of yet.
    if (slot->frame != NULL) return false;
    CHECK(frame->size_bytes >= sizeof(struct frame_header));
    CHECK(frame->size_bytes <= link->config.frame_bytes_max);
    link_seal_frame(link, frame, ++link->sent_count);
    slot->frame = frame;
    slot->done = false;
    link->lent_count++;
    link->stats.frame_count++;
    link->stats.byte_count += frame->size_bytes;
    link->port->ops->send_frame(link->conn, slot);
    return true;
}

void link_release(struct link *link, struct frame *frame) {
    CHECK(frame->owner == link && link->held_count > 0);
    CHECK(link->free_count < link->config.credit_count);
    link->held_count--;
    link->released_count++;
    link->free_frames[link->free_count++] = frame;
    link_return_credit(link);
    if (link->closed && link->held_count == 0) link->port->happened = true;
}

void link_close(struct link *link) {
    if (link == NULL) return;
    struct port *port = link->port;
    CHECK(!port->in_handler && !link->closed);
    port->now_ms = clock_now_ms(&port->clock);
    if (link->conn != NULL && link->lent_count != link->done_count &&
        !port_drain(port, link, LINK_CLOSE_MS) && link->conn != NULL) {
        conn_end(link->conn, CONN_FORCED);
        if (!port_drain(port, link, LINK_FORCE_MS))
            log_error("link %" PRIu32 " of epoch %" PRIu64 ": frames are still busy",
                      link->config.link_id, link->config.epoch);
    }
    link->closed = true;
    link->state = LINK_LOST;
    if (link->conn != NULL) conn_say_bye(link->conn);
    port_sweep_conns(port);
    port->happened = true; // to reap it in the next poll
}

uint64_t port_refused_count(const struct port *port) {
    return port->refused_count;
}

struct link_stats link_stats(const struct link *link) {
    struct link_stats stats = link->stats;
    if (!link->is_sender)
        stats.refused_count += link->port->refused_count - link->port->refused_by_links_count -
                               link->port_refused_count_before;
    return stats;
}
