// The state machine of a link: credits, pings, order of frames, loss.
// Carrier-independent.
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "transport/link_internal.h"

// -- connections ---------------------------------------------------------------------------------

void conn_init(struct conn *conn, struct port *port, bool accepted) {
    conn->port = port;
    conn->accepted = accepted;
    conn->phase = conn->wanted = CONN_OPEN;
    conn->deadline_ms = port->now_ms + LINK_CONNECT_MS;
    conn->next = port->conns;
    port->conns = conn;
    conn->pending = accepted;
    if (accepted) port->pending_count++;
}

bool port_has_room_for_pending(const struct port *port) {
    return port->pending_count < LINK_PENDING_COUNT_MAX;
}

bool conn_is_live(const struct conn *conn) {
    return conn->wanted == CONN_OPEN && !conn->failed;
}

static bool can_be_evicted(const struct conn *conn) {
    return conn->pending && conn->wanted != CONN_FORCED;
}

// How many pending connections come from where `conn` does, itself included.
static uint32_t count_crowd(const struct port *port, const struct conn *conn) {
    uint32_t count = 0;
    for (const struct conn *other = port->conns; other != NULL; other = other->next)
        count += can_be_evicted(other) && strcmp(other->peer, conn->peer) == 0 ? 1 : 0;
    return count;
}

// The host with the most of them pays. Which of its connections does is left to chance: were it the
// oldest, whoever dials fast enough would keep out a sender that needs a round trip for its hello.
void port_evict_pending(struct port *port) {
    struct conn *chosen = NULL;
    uint32_t most = 0, candidate_count = 0, draw;
    for (struct conn *conn = port->conns; conn != NULL; conn = conn->next) {
        conn->crowd_count = can_be_evicted(conn) ? count_crowd(port, conn) : 0;
        candidate_count = conn->crowd_count == most ? candidate_count + 1 : candidate_count;
        if (conn->crowd_count > most) candidate_count = 1;
        most = conn->crowd_count > most ? conn->crowd_count : most;
    }
    if (most == 0) return;
    link_crypto_draw(&draw, sizeof(draw));
    draw %= candidate_count;
    for (struct conn *conn = port->conns; conn != NULL && chosen == NULL; conn = conn->next)
        if (conn->crowd_count == most && draw-- == 0) chosen = conn;
    conn_refuse_message(chosen, "too many connections have not said hello");
    conn_end(chosen, CONN_FORCED);
}

void conn_end(struct conn *conn, enum conn_phase wanted) {
    if (wanted > conn->wanted) conn->wanted = wanted;
    conn->port->happened = true;
}

void conn_broke(struct conn *conn, const char *reason) {
    conn->port->happened = true;
    if (conn->failed) return;
    conn->failed = true;
    snprintf(conn->reason, sizeof(conn->reason), "%s", reason);
}

static void link_count_refusal(struct link *link) {
    link->stats.refused_count++;
    link->port->refused_count++;
    link->port->refused_by_links_count++;
}

void conn_count_refusal(struct conn *conn) {
    if (conn->link != NULL)
        link_count_refusal(conn->link);
    else
        conn->port->refused_count++;
}

// Seldom enough that nobody fills the log from outside; the count says how often.
void conn_log_stranger(struct conn *conn, const char *reason) {
    struct port *port = conn->port;
    port->stranger_count++;
    if (port->now_ms < port->stranger_log_ms) return;
    port->stranger_log_ms = port->now_ms + LINK_STRANGER_LOG_MS;
    log_warn("%s: %" PRIu64 " connection%s refused, the last from %s: %s", port->address,
             port->stranger_count, port->stranger_count == 1 ? "" : "s", conn->peer, reason);
    port->stranger_count = 0;
}

// A message that is not to the letter, or not the peer's, ends its connection and no other.
void conn_refuse_message(struct conn *conn, const char *reason) {
    conn_count_refusal(conn);
    if (conn->pending) conn_log_stranger(conn, reason);
    conn_broke(conn, reason);
}

// A sender whose attempt fails tries again; a link that was up is lost.
void conn_check_failed(struct conn *conn) {
    if (!conn->failed || conn->wanted == CONN_FORCED) return;
    conn_end(conn, CONN_FORCED);
    struct link *link = conn->link;
    if (link == NULL || link->conn != conn) return;
    if (link->state == LINK_GREETING) {
        link->refusal = NULL;
        snprintf(link->error.text, sizeof(link->error.text), "%s", conn->reason);
        link->state = LINK_WAITING;
        link->retry_ms = conn->port->now_ms + LINK_RETRY_MS;
        link->conn = NULL;
        conn->link = NULL;
        conn->trusted = false;
    } else {
        link_lose(link, "%s", conn->reason);
    }
}

// -- up and lost ---------------------------------------------------------------------------------

void link_come_up(struct link *link) {
    link->state = LINK_UP;
    link->heard_ms = link->pinged_ms = link->port->now_ms;
    link->up_untold = true;
    link->port->happened = true;
}

void link_lose(struct link *link, const char *format, ...) {
    if (link->state == LINK_LOSING || link->state == LINK_LOST) return;
    char reason[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof(reason), format, arguments);
    va_end(arguments);
    (void)error_set(&link->error, STATUS_UNAVAILABLE,
                    "link %" PRIu32 " of epoch %" PRIu64 " %s %s: %s", link->config.link_id,
                    link->config.epoch, link->is_sender ? "to" : "from", link->peer, reason);
    link->state = LINK_LOSING;
    link->port->happened = true;
    if (link->conn != NULL) conn_end(link->conn, CONN_FORCED);
}

// -- messages ------------------------------------------------------------------------------------

// Of what the peer of this connection seals, and of what this end does.
static const uint8_t *message_key(const struct conn *conn, bool is_received) {
    bool to_receiver = conn->accepted == is_received;
    const struct link_session *session = &conn->link->session;
    return to_receiver ? session->to_receiver_key : session->to_sender_key;
}

static void conn_make_mac(const struct conn *conn, const void *message, size_t size_bytes,
                          const void *more, size_t more_bytes, uint8_t *mac_out) {
    if (conn->link->config.has_key)
        link_mac_make(message_key(conn, false), message, size_bytes, more, more_bytes, mac_out);
}

static bool conn_mac_holds(const struct conn *conn, const void *message, size_t size_bytes,
                           const void *more, size_t more_bytes, const uint8_t *mac) {
    if (!conn->trusted) return false;
    if (!conn->link->config.has_key) return link_crypto_is_zero(mac, LINK_MAC_BYTES);
    return link_mac_holds(message_key(conn, true), message, size_bytes, more, more_bytes, mac);
}

// Whether a message with a sequence is of the peer and none that was there before.
static bool conn_sequence_is_new(struct conn *conn, uint64_t sequence) {
    if (sequence <= conn->heard_sequence) return false;
    conn->heard_sequence = sequence;
    return true;
}

bool conn_send_sign(struct conn *conn, enum link_message_kind kind) {
    union link_message message = link_message_make(kind);
    struct link_sign *sign = &message.sign;
    if (!conn->trusted) return false;
    sign->sequence = conn->sent_sequence + 1;
    conn_make_mac(conn, sign, offsetof(struct link_sign, mac), NULL, 0, sign->mac);
    if (!conn->port->ops->send_message(conn, &message)) return false;
    conn->sent_sequence++;
    return true;
}

void conn_seal_worker(struct conn *conn, struct link_worker *worker, const void *address) {
    CHECK(conn->trusted);
    worker->sequence = ++conn->sent_sequence;
    conn_make_mac(conn, worker, offsetof(struct link_worker, mac), address, worker->address_bytes,
                  worker->mac);
}

bool conn_worker_is_sealed(struct conn *conn, const struct link_worker *worker,
                           const void *address) {
    return conn_mac_holds(conn, worker, offsetof(struct link_worker, mac), address,
                          worker->address_bytes, worker->mac) &&
           conn_sequence_is_new(conn, worker->sequence);
}

static void conn_receive_sign(struct conn *conn, const struct link_sign *sign) {
    if (!conn_mac_holds(conn, sign, offsetof(struct link_sign, mac), NULL, 0, sign->mac) ||
        !conn_sequence_is_new(conn, sign->sequence)) {
        conn_refuse_message(conn, "a message that is not the peer's, or not new");
        return;
    }
    conn->link->heard_ms = conn->port->now_ms;
    if (sign->head.kind == LINK_BYE) conn_broke(conn, "the peer closed the link");
}

static void conn_receive_credit(struct conn *conn, const struct link_credit *credit) {
    struct link *link = conn->link;
    if (!conn_mac_holds(conn, credit, offsetof(struct link_credit, mac), NULL, 0, credit->mac)) {
        conn_refuse_message(conn, "a credit that is not the peer's");
        return;
    }
    if (!link->is_sender || link->state != LINK_UP ||
        credit->released_count <= link->credited_count ||
        credit->released_count > link->sent_count) {
        conn_refuse_message(conn, "a credit that was not earned");
        return;
    }
    link->heard_ms = conn->port->now_ms;
    link->credited_count = credit->released_count;
    link->port->happened = true;
}

void conn_receive_message(struct conn *conn, const void *data, size_t size_bytes) {
    if (!conn_is_live(conn)) return;
    union link_message message;
    enum status status = link_message_parse(data, size_bytes, &message);
    if (status == STATUS_UNSUPPORTED) {
        conn_receive_other_version(conn, &message);
        return;
    }
    if (status == STATUS_INVALID) {
        conn_refuse_message(conn, "a malformed message");
        return;
    }
    switch (message.head.kind) {
    case LINK_CREDIT:
        conn_receive_credit(conn, &message.credit);
        break;
    case LINK_PING:
    case LINK_BYE:
        conn_receive_sign(conn, &message.sign);
        break;
    default:
        conn_receive_greeting(conn, &message);
    }
}

// -- frames --------------------------------------------------------------------------------------

static bool header_is_sealed(const struct conn *conn, const struct frame_header *header) {
    const struct link_config *config = &conn->link->config;
    if (!config->encrypts && !link_crypto_is_zero(header->payload_tag, sizeof(header->payload_tag)))
        return false;
    if (!config->has_key) return link_crypto_is_zero(header->mac, sizeof(header->mac));
    return link_header_is_sealed(&conn->link->session, header);
}

static bool sequence_is_next(const struct link *link, const struct receive_slot *slot,
                             uint64_t sequence) {
    return sequence > link->delivered_count &&
           sequence <= link->released_told_count + link->credit_count &&
           slot->state == RECEIVE_EMPTY;
}

// Nothing of a header is used before its mac holds. NULL: good; otherwise what is wrong.
static const char *frame_fault(const struct conn *conn, const struct frame_header *header,
                               size_t frame_bytes) {
    const struct link *link = conn->link;
    if (!header_is_sealed(conn, header)) return "a frame whose header is not the peer's";
    if (header->magic != FRAME_MAGIC || header->version != FRAME_VERSION)
        return "a frame of another format";
    if (frame_bytes > link->config.frame_bytes_max || header->payload_bytes > FRAME_BYTES_MAX ||
        header->payload_offset + header->payload_bytes != frame_bytes)
        return "a frame of a size that was not agreed";
    const struct receive_slot *slot = &link->receives[header->link_sequence % link->credit_count];
    if (!sequence_is_next(link, slot, header->link_sequence))
        return "a frame out of sequence or beyond the credits";
    return NULL;
}

static struct receive_slot *link_take_slot(struct link *link, const struct frame_header *header,
                                           size_t frame_bytes) {
    struct receive_slot *slot = &link->receives[header->link_sequence % link->credit_count];
    CHECK(link->free_count > 0);
    slot->frame = link->free_frames[--link->free_count];
    slot->frame->size_bytes = frame_bytes;
    slot->sequence = header->link_sequence;
    slot->state = RECEIVE_FILLING;
    struct frame_header *written = (struct frame_header *)slot->frame->data;
    *written = *header;
    memcpy(slot->payload_tag, header->payload_tag, sizeof(slot->payload_tag));
    memset(written->payload_tag, 0, sizeof(written->payload_tag));
    memset(written->mac, 0, sizeof(written->mac));
    link->filling_count++;
    return slot;
}

struct receive_slot *conn_receive_frame(struct conn *conn, const void *header_data,
                                        size_t header_bytes, size_t rest_bytes) {
    if (!conn_is_live(conn)) return NULL;
    struct link *link = conn->link;
    struct frame_header header;
    if (link == NULL || link->is_sender || link->state != LINK_UP) {
        conn_refuse_message(conn, "a frame out of place");
        return NULL;
    }
    if (header_bytes != sizeof(header) || rest_bytes > FRAME_BYTES_MAX) {
        conn_refuse_message(conn, "a frame of a size that was not agreed");
        return NULL;
    }
    memcpy(&header, header_data, sizeof(header));
    size_t frame_bytes = sizeof(header) + rest_bytes;
    const char *fault = frame_fault(conn, &header, frame_bytes);
    if (fault != NULL) {
        conn_refuse_message(conn, fault);
        return NULL;
    }
    link->heard_ms = conn->port->now_ms;
    return link_take_slot(link, &header, frame_bytes);
}

void conn_heard(struct conn *conn) {
    if (conn->link != NULL) conn->link->heard_ms = conn->port->now_ms;
}

static void link_take_back(struct link *link, struct frame *frame) {
    CHECK(link->free_count < link->config.credit_count);
    link->free_frames[link->free_count++] = frame;
}

void receive_slot_done(struct receive_slot *slot, bool complete) {
    struct link *link = slot->link;
    CHECK(slot->state == RECEIVE_FILLING);
    link->filling_count--;
    link->port->happened = true;
    if (complete && !link->closed) {
        link->heard_ms = link->port->now_ms;
        slot->state = RECEIVE_READY;
        return;
    }
    link_take_back(link, slot->frame);
    slot->frame = NULL;
    slot->state = RECEIVE_EMPTY;
    if (!complete && link->conn != NULL) conn_broke(link->conn, "a frame did not arrive whole");
}

void send_slot_done(struct send_slot *slot) {
    CHECK(slot->frame != NULL && !slot->done);
    slot->done = true;
    slot->link->done_count++;
    slot->link->port->happened = true;
}

// A sender with more than half of its credits left is told of more only later, which spares it (and
// us) a message, perhaps a wake-up, for each frame. At half and below it is told of each.
void link_return_credit(struct link *link) {
    if (link->state != LINK_UP || link->released_told_count == link->released_count ||
        !conn_is_live(link->conn))
        return;
    uint64_t granted_count = link->released_told_count + link->credit_count;
    if (granted_count - link->delivered_count > link->credit_count / 2) return;
    union link_message message = link_message_make(LINK_CREDIT);
    message.credit.released_count = link->released_count;
    conn_make_mac(link->conn, &message.credit, offsetof(struct link_credit, mac), NULL, 0,
                  message.credit.mac);
    if (link->port->ops->send_message(link->conn, &message))
        link->released_told_count = link->released_count;
}

// -- delivery ------------------------------------------------------------------------------------

enum frame_verdict { FRAME_GOOD, FRAME_STALE, FRAME_BAD };

static enum frame_verdict frame_judge(const struct link *link, const struct receive_slot *slot) {
    struct frame *frame = slot->frame;
    const struct frame_header *header = (const struct frame_header *)frame->data;
    if (link->config.encrypts &&
        !link_decrypt(&link->session, slot->sequence, frame->data + sizeof(*header),
                      frame->size_bytes - sizeof(*header), slot->payload_tag))
        return FRAME_BAD;
    return header->epoch == link->config.epoch ? FRAME_GOOD : FRAME_STALE;
}

static void link_deliver_received(struct link *link) {
    const struct link_handler *handler = link->port->handler;
    while (link->credit_count > 0) {
        struct receive_slot *slot =
            &link->receives[(link->delivered_count + 1) % link->credit_count];
        if (slot->state != RECEIVE_READY) return;
        struct frame *frame = slot->frame;
        enum frame_verdict verdict = frame_judge(link, slot);
        slot->state = RECEIVE_EMPTY;
        slot->frame = NULL;
        link->delivered_count++;
        if (verdict != FRAME_GOOD) {
            link_count_refusal(link);
            link->released_count++;
            link_take_back(link, frame);
            if (verdict == FRAME_BAD) {
                link_lose(link, "a frame that is not what the peer encrypted");
                return;
            }
            continue;
        }
        link->stats.frame_count++;
        link->stats.byte_count += frame->size_bytes;
        link->held_count++;
        if (handler->received != NULL) handler->received(link, link->ctx, frame);
    }
}

static void link_deliver_sent(struct link *link) {
    // Slots from the oldest frame on.
    for (uint32_t i = 0; link->done_count > 0 && i < link->credit_count; i++) {
        struct send_slot *slot = &link->sends[(link->sent_count + 1 + i) % link->credit_count];
        if (slot->frame == NULL || !slot->done) continue;
        struct frame *frame = slot->frame;
        slot->frame = NULL;
        link->done_count--;
        link->lent_count--;
        if (link->port->handler->sent != NULL) link->port->handler->sent(link, link->ctx, frame);
    }
}

void link_deliver(struct link *link) {
    const struct link_handler *handler = link->port->handler;
    if (link->closed || link->state == LINK_LOST) return;
    link->port->in_handler = true;
    if (link->up_untold) {
        link->up_untold = false;
        if (handler->up != NULL) handler->up(link, link->ctx);
    }
    if (link->is_sender)
        link_deliver_sent(link);
    else
        link_deliver_received(link);
    if (!link->is_sender) link_return_credit(link);
    if (link->state == LINK_LOSING && link->lent_count == 0) {
        link->state = LINK_LOST;
        if (handler->lost != NULL) handler->lost(link, link->ctx, &link->error);
    }
    link->port->in_handler = false;
}

// -- time ----------------------------------------------------------------------------------------

static void link_give_up(struct link *link) {
    char last[256];
    if (!link->is_sender)
        snprintf(last, sizeof(last), "no sender came");
    else if (link->refusal != NULL)
        snprintf(last, sizeof(last), "%s", link->refusal);
    else if (link->state == LINK_WAITING)
        snprintf(last, sizeof(last), "%.200s", link->error.text);
    else
        snprintf(last, sizeof(last), "the peer does not answer");
    link_lose(link, "not made within %d ms: %s", LINK_CONNECT_MS, last);
}

static void link_ping(struct link *link) {
    uint64_t now_ms = link->port->now_ms;
    if (now_ms - link->heard_ms >= LINK_LOST_MS) {
        link_lose(link, "the peer is silent for %" PRIu64 " ms", now_ms - link->heard_ms);
        return;
    }
    if (now_ms - link->pinged_ms < LINK_PING_MS || !conn_is_live(link->conn)) return;
    // A ping that has not left yet stands for this one too.
    (void)conn_send_sign(link->conn, LINK_PING);
    link->pinged_ms = now_ms;
}

void link_run_timers(struct link *link) {
    uint64_t now_ms = link->port->now_ms;
    if (link->closed) return;
    switch (link->state) {
    case LINK_WAITING:
        if (now_ms >= link->deadline_ms)
            link_give_up(link);
        else if (link->is_sender && now_ms >= link->retry_ms)
            link_greet(link);
        break;
    case LINK_GREETING:
        if (now_ms >= link->deadline_ms) link_give_up(link);
        break;
    case LINK_UP:
        link_ping(link);
        break;
    case LINK_LOSING:
    case LINK_LOST:
        break;
    }
}
