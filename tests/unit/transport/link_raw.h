// link_raw: a peer that speaks to a port of link_ucx byte by byte, over TCP, and may say anything.
#pragma once

#include "link_world.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/link_wire.h"
#include "transport/link_address.h"
#include "transport/link_crypto.h"

static inline int raw_connect(const char *address) {
    char host[64];
    uint16_t port_number;
    struct sockaddr_storage to;
    socklen_t to_bytes;
    size_t count;
    struct error error;
    assert_int_equal(link_address_split(address, host, sizeof(host), &port_number, &error),
                     STATUS_OK);
    assert_int_equal(link_address_resolve(host, port_number, &to, &to_bytes, 1, &count, &error),
                     STATUS_OK);
    int fd = socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, to_bytes), 0);
    return fd;
}

static inline void raw_send(int fd, const void *data, size_t bytes) {
    assert_int_equal(send(fd, data, bytes, MSG_NOSIGNAL), bytes);
}

// The next bytes that the port says; fails when they do not come.
static inline void raw_receive(struct world *world, int fd, void *out, size_t bytes) {
    struct clock real = clock_system();
    uint64_t end_ms = clock_now_ms(&real) + 3000;
    for (size_t have = 0; have < bytes;) {
        world_run(world, 1);
        ssize_t got = recv(fd, (uint8_t *)out + have, bytes - have, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN)) fail_msg("closed after %zu bytes", have);
        have += got > 0 ? (size_t)got : 0;
        if (clock_now_ms(&real) >= end_ms) fail_msg("%zu of %zu bytes", have, bytes);
    }
}

// Whether the port has closed the connection; whatever it said before is dropped.
static inline bool raw_is_closed(struct world *world, int fd, uint64_t limit_ms) {
    uint8_t text[8192];
    struct clock real = clock_system();
    uint64_t end_ms = clock_now_ms(&real) + limit_ms;
    while (clock_now_ms(&real) < end_ms) {
        world_run(world, 1);
        ssize_t got = recv(fd, text, sizeof(text), MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN)) return true;
    }
    return false;
}

// The receiver's number for this connection.
static inline struct link_challenge raw_challenge(struct world *world, int fd) {
    struct link_challenge challenge;
    raw_receive(world, fd, &challenge, sizeof(challenge));
    assert_int_equal(challenge.head.kind, LINK_CHALLENGE);
    assert_int_equal(challenge.head.version, LINK_WIRE_VERSION);
    return challenge;
}

// What the sender of this link says to it.
static inline struct link_hello raw_hello(const struct link_config *config,
                                          const struct link_challenge *challenge) {
    union link_message message = link_message_make(LINK_HELLO);
    message.hello.epoch = config->epoch;
    message.hello.link_id = config->link_id;
    message.hello.credit_count = config->credit_count;
    message.hello.frame_bytes_max = config->frame_bytes_max;
    message.hello.flags = config->encrypts ? LINK_ENCRYPTS : 0;
    link_crypto_draw(message.hello.nonce, sizeof(message.hello.nonce));
    link_prove_hello(config->key, challenge->nonce, &message.hello);
    return message.hello;
}

// A peer that has the key: greets, is accepted, and knows the session. Its frames have no way.
struct raw_peer {
    int fd;
    struct link_session session;
    uint64_t sequence;
};

static inline struct raw_peer raw_join(struct world *world, const char *address,
                                       const struct link_config *config) {
    struct raw_peer peer = {.fd = raw_connect(address)};
    struct link_challenge challenge = raw_challenge(world, peer.fd);
    struct link_hello hello = raw_hello(config, &challenge);
    struct link_accept accept;
    raw_send(peer.fd, &hello, sizeof(hello));
    raw_receive(world, peer.fd, &accept, sizeof(accept));
    assert_int_equal(accept.head.kind, LINK_ACCEPT);
    assert_true(link_accept_is_proved(config->key, challenge.nonce, &hello, &accept));
    link_session_make(config->key, challenge.nonce, &hello, &accept, &peer.session);
    return peer;
}

// PING or BYE, with the next number and a mac.
static inline struct link_sign raw_sign(struct raw_peer *peer, enum link_message_kind kind) {
    union link_message message = link_message_make(kind);
    message.sign.sequence = ++peer->sequence;
    link_mac_make(peer->session.to_receiver_key, &message, offsetof(struct link_sign, mac), NULL, 0,
                  message.sign.mac);
    return message.sign;
}
