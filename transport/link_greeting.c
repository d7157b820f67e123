// Who may speak: the handshake of a link, from the first byte until both ends know each other.
// Carrier-independent; docs/protocol.md has the reasons.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "transport/link_internal.h"

// -- sender ---------------------------------------------------------------------------------------

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
}

// Whether a dialed connection is where a challenge (is_greeted: an answer to our hello) belongs.
static bool conn_is_greeting(const struct conn *conn, bool is_greeted) {
    return !conn->accepted && conn->link != NULL && conn->link->state == LINK_GREETING &&
           !conn->trusted && (conn->hello.head.kind == LINK_HELLO) == is_greeted;
}

static void conn_receive_challenge(struct conn *conn, const struct link_challenge *challenge) {
    if (!conn_is_greeting(conn, false)) {
        conn_refuse_message(conn, "a challenge out of place");
        return;
    }
    const struct link_config *config = &conn->link->config;
    union link_message message = link_message_make(LINK_HELLO);
    struct link_hello *hello = &message.hello;
    hello->epoch = config->epoch;
    hello->link_id = config->link_id;
    hello->credit_count = config->credit_count;
    hello->frame_bytes_max = config->frame_bytes_max;
    hello->flags = config->encrypts ? LINK_ENCRYPTS : 0;
    memcpy(conn->nonce, challenge->nonce, sizeof(conn->nonce));
    if (config->has_key) {
        link_crypto_draw(hello->nonce, sizeof(hello->nonce));
        link_prove_hello(config->key, conn->nonce, hello);
    }
    conn->hello = *hello;
    if (!conn->port->ops->send_message(conn, &message))
        conn_broke(conn, "the hello cannot be sent");
}

static void link_check_way(struct link *link) {
    if (link->state == LINK_GREETING && link->conn->trusted && link->conn->has_way)
        link_come_up(link);
}

void conn_opened_way(struct conn *conn) {
    conn->has_way = true;
    if (!conn->accepted && conn->link != NULL && conn->link->conn == conn)
        link_check_way(conn->link);
}

static bool accept_is_good(const struct conn *conn, const struct link_accept *accept) {
    const struct link_config *config = &conn->link->config;
    if (!config->has_key) return link_crypto_is_zero(accept->proof, sizeof(accept->proof));
    return link_accept_is_proved(config->key, conn->nonce, &conn->hello, accept);
}

static void conn_receive_accept(struct conn *conn, const struct link_accept *accept) {
    struct link *link = conn->link;
    if (!conn_is_greeting(conn, true)) {
        conn_refuse_message(conn, "an accept out of place");
        return;
    }
    if (!accept_is_good(conn, accept)) {
        conn_refuse_message(conn, "the peer does not prove that it has the link's key");
        return;
    }
    if (accept->credit_count > link->config.credit_count) {
        conn_refuse_message(conn, "an accept of more credits than were asked for");
        return;
    }
    if (link->config.has_key)
        link_session_make(link->config.key, conn->nonce, &conn->hello, accept, &link->session);
    conn->trusted = true;
    link->credit_count = accept->credit_count;
    link_check_way(link);
}

static void link_try_again(struct link *link) {
    struct conn *conn = link->conn;
    link->state = LINK_WAITING;
    link->retry_ms = link->port->now_ms + LINK_RETRY_MS;
    link->conn = NULL;
    conn->link = NULL;
    conn->trusted = false;
    conn_end(conn, CONN_FORCED);
}

static bool refusal_is_final(uint32_t reason) {
    return reason != LINK_REFUSED_LINK && reason != LINK_REFUSED_TAKEN;
}

// Anybody who can be at the peer's address, or on the way to it, can say that it refuses.
static bool refuse_is_good(const struct conn *conn, const struct link_refuse *refuse) {
    const struct link_config *config = &conn->link->config;
    if (!config->has_key) return true;
    return conn->hello.head.kind == LINK_HELLO &&
           link_refuse_is_proved(config->key, conn->nonce, &conn->hello, refuse);
}

static void conn_receive_refuse(struct conn *conn, const struct link_refuse *refuse) {
    if (!conn_is_greeting(conn, false) && !conn_is_greeting(conn, true)) {
        conn_refuse_message(conn, "a refusal out of place");
        return;
    }
    struct link *link = conn->link;
    link->refusal = link_refusal_text(refuse->reason);
    if (!refusal_is_final(refuse->reason) || !refuse_is_good(conn, refuse)) {
        link_try_again(link);
    } else if (refuse->reason == LINK_REFUSED_FRAME_BYTES) {
        link_lose(link, "%s: %" PRIu64 " bytes at most, this link's are %zu", link->refusal,
                  refuse->frame_bytes_max, link->config.frame_bytes_max);
    } else if (refuse->reason == LINK_REFUSED_VERSION) {
        link_lose(link, "%s (ours %d, the peer's %d)", link->refusal, LINK_WIRE_VERSION,
                  refuse->head.version);
    } else {
        link_lose(link, "%s", link->refusal);
    }
}

// -- receiver -------------------------------------------------------------------------------------

void conn_challenge(struct conn *conn) {
    union link_message message = link_message_make(LINK_CHALLENGE);
    link_crypto_draw(conn->nonce, sizeof(conn->nonce));
    memcpy(message.challenge.nonce, conn->nonce, sizeof(conn->nonce));
    if (!conn->port->ops->send_message(conn, &message))
        conn_broke(conn, "the challenge cannot be sent");
}

// `link` is the one that the hello proved to be of; NULL: none, and the refusal proves nothing.
static void conn_send_refusal(struct conn *conn, const struct link *link,
                              const struct link_hello *hello, enum link_refusal reason) {
    union link_message message = link_message_make(LINK_REFUSE);
    message.refuse.reason = reason;
    if (reason == LINK_REFUSED_FRAME_BYTES)
        message.refuse.frame_bytes_max = link->config.frame_bytes_max;
    if (link != NULL && link->config.has_key)
        link_prove_refuse(link->config.key, conn->nonce, hello, &message.refuse);
    conn_count_refusal(conn);
    bool sent = conn->port->ops->send_message(conn, &message);
    conn_end(conn, sent ? CONN_FLUSHING : CONN_FORCED);
}

static struct link *port_find_expected(struct port *port, const struct link_hello *hello) {
    for (struct link *link = port->links; link != NULL; link = link->next)
        if (!link->is_sender && !link->closed && link->config.link_id == hello->link_id &&
            link->config.epoch == hello->epoch)
            return link;
    return NULL;
}

static bool hello_is_good(const struct conn *conn, const struct link *link,
                          const struct link_hello *hello) {
    if (!link->config.has_key)
        return link_crypto_is_zero(hello->nonce, sizeof(hello->nonce)) &&
               link_crypto_is_zero(hello->proof, sizeof(hello->proof));
    return link_hello_is_proved(link->config.key, conn->nonce, hello);
}

static void conn_accept_hello(struct conn *conn, struct link *link,
                              const struct link_hello *hello) {
    union link_message message = link_message_make(LINK_ACCEPT);
    struct link_accept *accept = &message.accept;
    accept->credit_count = hello->credit_count < link->config.credit_count
                               ? hello->credit_count
                               : link->config.credit_count;
    if (link->config.has_key) {
        link_prove_accept(link->config.key, conn->nonce, hello, accept);
        link_session_make(link->config.key, conn->nonce, hello, accept, &link->session);
    }
    conn->link = link;
    conn->trusted = true;
    if (!conn->port->ops->send_message(conn, &message)) {
        conn->link = NULL; // it goes on waiting
        conn->trusted = false;
        conn_broke(conn, "the hello cannot be answered");
        return;
    }
    conn->pending = false;
    conn->port->pending_count--;
    link->conn = conn;
    link->credit_count = accept->credit_count;
    snprintf(link->peer, sizeof(link->peer), "%s", conn->peer);
    link_come_up(link);
}

static void conn_receive_hello(struct conn *conn, const struct link_hello *hello) {
    if (!conn->accepted || !conn->pending) {
        conn_refuse_message(conn, "a hello out of place");
        return;
    }
    struct link *link = port_find_expected(conn->port, hello);
    bool is_good = link != NULL && hello_is_good(conn, link, hello);
    uint32_t flags = is_good && link->config.encrypts ? LINK_ENCRYPTS : 0;
    // Whoever has no key is not told what is expected.
    if (link != NULL && !is_good) conn_log_stranger(conn, "its hello does not prove the key");
    if (!is_good)
        conn_send_refusal(conn, NULL, hello, LINK_REFUSED_LINK);
    else if (link->state != LINK_WAITING)
        conn_send_refusal(conn, link, hello, LINK_REFUSED_TAKEN);
    else if (hello->frame_bytes_max > link->config.frame_bytes_max)
        conn_send_refusal(conn, link, hello, LINK_REFUSED_FRAME_BYTES);
    else if (hello->flags != flags)
        conn_send_refusal(conn, link, hello, LINK_REFUSED_FLAGS);
    else
        conn_accept_hello(conn, link, hello);
}

// -- either ---------------------------------------------------------------------------------------

void conn_receive_greeting(struct conn *conn, const union link_message *message) {
    switch (message->head.kind) {
    case LINK_CHALLENGE:
        conn_receive_challenge(conn, &message->challenge);
        break;
    case LINK_HELLO:
        conn_receive_hello(conn, &message->hello);
        break;
    case LINK_ACCEPT:
        conn_receive_accept(conn, &message->accept);
        break;
    default:
        CHECK(message->head.kind == LINK_REFUSE);
        conn_receive_refuse(conn, &message->refuse);
    }
}

void conn_receive_other_version(struct conn *conn, const union link_message *message) {
    if (message->head.kind == LINK_HELLO) {
        if (conn->accepted && conn->pending)
            conn_send_refusal(conn, NULL, NULL, LINK_REFUSED_VERSION);
        else
            conn_refuse_message(conn, "a hello out of place");
        return;
    }
    struct link_refuse refuse = {.head = message->head, .reason = LINK_REFUSED_VERSION};
    conn_receive_refuse(conn, &refuse);
}
