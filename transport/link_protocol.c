// The state machine of a link: greeting, credits, pings, order of frames, loss.
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

void port_evict_pending(struct port *port) {
    struct conn *oldest = NULL;
    for (struct conn *conn = port->conns; conn != NULL; conn = conn->next)
        if (conn->pending && conn->wanted != CONN_FORCED) oldest = conn;
    if (oldest == NULL) return;
    port->refused_count++;
    conn_end(oldest, CONN_FORCED);
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

// A message that is not to the letter ends its connection and no other.
void conn_refuse_message(struct conn *conn, const char *reason) {
    if (conn->link != NULL)
        conn->link->stats.refused_count++;
    else
        conn->port->refused_count++;
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
    } else {
        link_lose(link, "%s", conn->reason);
    }
}

// -- loss ----------------------------------------------------------------------------------------

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

// -- greeting ------------------------------------------------------------------------------------

void link_greet(struct link *link) {
    struct port *port = link->port;
    struct conn *conn;
    size_t address_index = link->attempt_count++ % link->address.count;
    link->retry_ms = port->now_ms + LINK_RETRY_MS;
    if (port->ops->dial(port, &link->address, address_index, &conn) != STATUS_OK) {
        snprintf(link->error.text, sizeof(link->error.text), "no connection can be made");
        return;
    }
    link->conn = conn;
    conn->link = link;
    link->state = LINK_GREETING;
    union link_message message = link_message_make(LINK_HELLO);
    message.hello.epoch = link->config.epoch;
    message.hello.link_id = link->config.link_id;
    message.hello.credit_count = link->config.credit_count;
    message.hello.frame_bytes_max = link->config.frame_bytes_max;
    if (!port->ops->send_message(conn, &message)) conn_broke(conn, "the hello cannot be sent");
}

static void conn_send_refusal(struct conn *conn, enum link_refusal reason,
                              uint64_t frame_bytes_max) {
    union link_message message = link_message_make(LINK_REFUSE);
    message.refuse.reason = reason;
    message.refuse.frame_bytes_max = frame_bytes_max;
    conn->port->refused_count++;
    bool sent = conn->port->ops->send_message(conn, &message);
    conn_end(conn, sent ? CONN_FLUSHING : CONN_FORCED);
}

static void link_come_up(struct link *link, uint32_t credit_count) {
    link->credit_count = credit_count;
    link->state = LINK_UP;
    link->heard_ms = link->pinged_ms = link->port->now_ms;
    link->up_untold = true;
    link->port->happened = true;
}

// The link that a hello asks for. NULL with the reason of the refusal.
static struct link *port_find_expected(struct port *port, const struct link_hello *hello,
                                       enum link_refusal *reason_out) {
    *reason_out = LINK_REFUSED_LINK;
    for (struct link *link = port->links; link != NULL; link = link->next) {
        if (link->is_sender || link->closed || link->config.link_id != hello->link_id) continue;
        if (link->config.epoch != hello->epoch) {
            *reason_out = LINK_REFUSED_EPOCH;
            continue;
        }
        if (link->state == LINK_WAITING) return link;
        *reason_out = LINK_REFUSED_TAKEN;
        return NULL;
    }
    return NULL;
}

static void conn_receive_hello(struct conn *conn, const struct link_hello *hello) {
    if (!conn->accepted || conn->link != NULL) {
        conn_refuse_message(conn, "a hello out of place");
        return;
    }
    enum link_refusal reason;
    struct link *link = port_find_expected(conn->port, hello, &reason);
    if (link == NULL) {
        conn_send_refusal(conn, reason, 0);
        return;
    }
    if (hello->frame_bytes_max > link->config.frame_bytes_max) {
        conn_send_refusal(conn, LINK_REFUSED_FRAME_BYTES, link->config.frame_bytes_max);
        return;
    }
    uint32_t credit_count = hello->credit_count < link->config.credit_count
                                ? hello->credit_count
                                : link->config.credit_count;
    union link_message message = link_message_make(LINK_ACCEPT);
    message.accept.credit_count = credit_count;
    if (!conn->port->ops->send_message(conn, &message)) {
        conn_broke(conn, "the hello cannot be answered");
        return;
    }
    link->conn = conn;
    conn->link = link;
    conn->pending = false;
    conn->port->pending_count--;
    snprintf(link->peer, sizeof(link->peer), "%s", conn->peer);
    link_come_up(link, credit_count);
}

static void conn_receive_accept(struct conn *conn, const struct link_accept *accept) {
    struct link *link = conn->link;
    if (link == NULL || link->state != LINK_GREETING ||
        accept->credit_count > link->config.credit_count) {
        conn_refuse_message(conn, "an accept out of place");
        return;
    }
    link_come_up(link, accept->credit_count);
}

static void conn_receive_refuse(struct conn *conn, const struct link_refuse *refuse) {
    struct link *link = conn->link;
    if (link == NULL || link->state != LINK_GREETING) {
        conn_refuse_message(conn, "a refusal out of place");
        return;
    }
    link->refusal = link_refusal_text(refuse->reason);
    if (refuse->reason == LINK_REFUSED_FRAME_BYTES) {
        link_lose(link, "%s: %" PRIu64 " bytes at most, this link's are %zu", link->refusal,
                  refuse->frame_bytes_max, link->config.frame_bytes_max);
        return;
    }
    bool again = refuse->reason >= LINK_REFUSED_LINK && refuse->reason <= LINK_REFUSED_TAKEN;
    if (!again) {
        link_lose(link, "%s (ours %d, the peer's %d)", link->refusal, LINK_WIRE_VERSION,
                  refuse->head.version);
        return;
    }
    link->state = LINK_WAITING;
    link->retry_ms = link->port->now_ms + LINK_RETRY_MS;
    link->conn = NULL;
    conn->link = NULL;
    conn_end(conn, CONN_FORCED);
}

// -- messages ------------------------------------------------------------------------------------

static void conn_receive_credit(struct conn *conn, const struct link_credit *credit) {
    struct link *link = conn->link;
    if (link == NULL || !link->is_sender || link->state != LINK_UP ||
        credit->released_count < link->credited_count ||
        credit->released_count > link->sent_count) {
        conn_refuse_message(conn, "a credit that was not earned");
        return;
    }
    link->credited_count = credit->released_count;
    link->port->happened = true;
}

void conn_receive_message(struct conn *conn, const void *data, size_t size_bytes) {
    if (!conn_is_live(conn)) return;
    union link_message message;
    enum status status = link_message_parse(data, size_bytes, &message);
    if (status == STATUS_UNSUPPORTED && message.head.kind == LINK_HELLO) {
        if (conn->accepted && conn->link == NULL)
            conn_send_refusal(conn, LINK_REFUSED_VERSION, 0);
        else
            conn_refuse_message(conn, "a hello out of place");
        return;
    }
    if (status == STATUS_UNSUPPORTED) message.refuse.reason = LINK_REFUSED_VERSION;
    if (status == STATUS_INVALID) {
        conn_refuse_message(conn, "a malformed message");
        return;
    }
    if (conn->link != NULL) conn->link->heard_ms = conn->port->now_ms;
    switch (message.head.kind) {
    case LINK_HELLO:
        conn_receive_hello(conn, &message.hello);
        break;
    case LINK_ACCEPT:
        conn_receive_accept(conn, &message.accept);
        break;
    case LINK_REFUSE:
        conn_receive_refuse(conn, &message.refuse);
        break;
    case LINK_CREDIT:
        conn_receive_credit(conn, &message.credit);
        break;
    case LINK_PING:
        if (conn->link == NULL) conn_refuse_message(conn, "a ping before the hello");
        break;
    case LINK_BYE:
        if (conn->link == NULL)
            conn_refuse_message(conn, "a bye before the hello");
        else
            conn_broke(conn, "the peer closed the link");
        break;
    default:
        CHECK(false);
    }
}

// -- frames --------------------------------------------------------------------------------------

struct receive_slot *conn_receive_frame(struct conn *conn, const void *notice_data,
                                        size_t notice_bytes, size_t frame_bytes) {
    if (!conn_is_live(conn)) return NULL;
    struct link *link = conn->link;
    struct link_frame_notice notice;
    if (link == NULL || link->is_sender || link->state != LINK_UP) {
        conn_refuse_message(conn, "a frame out of place");
        return NULL;
    }
    if (link_frame_notice_parse(notice_data, notice_bytes, &notice) != STATUS_OK) {
        conn_refuse_message(conn, "a malformed frame notice");
        return NULL;
    }
    if (frame_bytes < sizeof(struct frame_header) || frame_bytes > link->config.frame_bytes_max) {
        conn_refuse_message(conn, "a frame of a size that was not agreed");
        return NULL;
    }
    struct receive_slot *slot = &link->receives[notice.sequence % link->credit_count];
    if (notice.sequence <= link->delivered_count ||
        notice.sequence > link->released_told_count + link->credit_count ||
        slot->state != RECEIVE_EMPTY) {
        conn_refuse_message(conn, "a frame out of sequence or beyond the credits");
        return NULL;
    }
    link->heard_ms = conn->port->now_ms;
    CHECK(link->free_count > 0);
    slot->frame = link->free_frames[--link->free_count];
    slot->frame->size_bytes = frame_bytes;
    slot->sequence = notice.sequence;
    slot->state = RECEIVE_FILLING;
    link->filling_count++;
    return slot;
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
    if (link->port->ops->send_message(link->conn, &message))
        link->released_told_count = link->released_count;
}

// -- delivery ------------------------------------------------------------------------------------

enum frame_verdict { FRAME_GOOD, FRAME_STALE, FRAME_BAD };

static enum frame_verdict frame_judge(const struct link *link, const struct receive_slot *slot) {
    const struct frame_header *header = (const struct frame_header *)slot->frame->data;
    if (header->magic != FRAME_MAGIC || header->version != FRAME_VERSION) return FRAME_BAD;
    if (header->link_sequence != slot->sequence) return FRAME_BAD;
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
            link->stats.refused_count++;
            link->released_count++;
            link_take_back(link, frame);
            if (verdict == FRAME_BAD) {
                link_lose(link, "a frame whose header has the wrong magic, version or sequence");
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
    union link_message message = link_message_make(LINK_PING);
    (void)link->port->ops->send_message(link->conn, &message);
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
