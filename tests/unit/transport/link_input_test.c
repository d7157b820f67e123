// What peers may send that they should not: over TCP to a port of link_ucx, and to the parsers.
#include "link_raw.h"

static void ucx_port_survives_garbage_bytes(void **state) {
    (void)state;
    struct world world;
    struct end receiver, sender;
    int fds[64];
    world_open(&world, true);
    struct link_config config = world_config(4, 4096);
    world_link(&world, &config, &receiver, &sender);
    for (int i = 0; i < 64; i++) {
        fds[i] = raw_connect(port_address(world.ports[0]));
        size_t bytes = i == 0 ? 0 : (size_t)1 << (i % 16);
        uint8_t *text = malloc(bytes + 1);
        memcpy(text, world_text() + i * 100, bytes);
        // A length of UCX's own greeting that never comes, or comes with nonsense.
        if (i % 4 == 1) memset(text, 0xff, bytes);
        if (i % 4 == 2) memset(text, 0, bytes);
        (void)!send(fds[i], text, bytes, MSG_NOSIGNAL);
        free(text);
        if (i % 2) close(fds[i]);
        (void)world_poll(&world);
    }
    world_run(&world, 100);
    assert_int_equal(receiver.lost_count + sender.lost_count, 0);
    struct frame *frame = world_frame(100);
    world_fill(frame, 0, 100);
    assert_true(link_send(sender.link, frame));
    assert_true(world_until(&world, &receiver.received_count, 1, 1000));
    for (int i = 0; i < 64; i += 2)
        close(fds[i]);
    world_run(&world, 50);
    world_close(&world);
    frame_close(frame);
}

// Eight bytes of it are enough: nothing more of a stranger is waited for.
static void ucx_port_ends_a_connection_that_does_not_begin_with_hello(void **state) {
    (void)state;
    static const enum link_message_kind kinds[] = {
        LINK_ACCEPT, LINK_REFUSE, LINK_CREDIT, LINK_PING, LINK_BYE, LINK_WORKER, LINK_CHALLENGE};
    enum { KIND_COUNT = sizeof(kinds) / sizeof(*kinds) };
    struct world world;
    struct end receiver, sender;
    world_open(&world, true);
    struct link_config config = world_config(4, 4096);
    world_link(&world, &config, &receiver, &sender);
    for (size_t i = 0; i < 2 * KIND_COUNT; i++) {
        enum link_message_kind kind = kinds[i / 2];
        union link_message message = link_message_make(kind);
        uint8_t bytes[sizeof(struct link_worker) + 64] = {0};
        size_t size_bytes = link_message_bytes((uint16_t)kind);
        if (kind == LINK_ACCEPT) message.accept.credit_count = 1;
        memcpy(bytes, &message, sizeof(message.head));
        if (kind == LINK_WORKER) {
            struct link_worker worker = link_worker_make(1, 13, 64);
            memcpy(bytes, &worker, sizeof(worker));
            size_bytes = sizeof(bytes);
        }
        int fd = raw_connect(port_address(world.ports[0]));
        raw_send(fd, bytes, i % 2 == 0 ? sizeof(message.head) : size_bytes);
        if (!raw_is_closed(&world, fd, 1000)) fail_msg("kind %d", kind);
        close(fd);
    }
    assert_int_equal(link_stats(receiver.link).refused_count, 2 * KIND_COUNT);
    assert_int_equal(receiver.lost_count + sender.lost_count, 0);
    world_close(&world);
}

enum { ADDRESS_BYTES = 72 };

struct worker_message {
    struct link_worker worker;
    uint8_t address[ADDRESS_BYTES];
};

static struct worker_message worker_of(struct raw_peer *peer, uint16_t major) {
    struct worker_message message = {.worker = link_worker_make(major, 13, ADDRESS_BYTES)};
    memset(message.address, 0x77, sizeof(message.address));
    message.worker.sequence = ++peer->sequence;
    link_mac_make(peer->session.to_receiver_key, &message, offsetof(struct link_worker, mac),
                  message.address, sizeof(message.address), message.worker.mac);
    return message;
}

enum out_of_turn {
    HELLO_AGAIN,
    ACCEPT_BACK,
    CHALLENGE_BACK,
    CREDIT_FORGED,
    PING_WITHOUT_MAC,
    PING_OF_THE_OTHER_WAY,
    BYE_WITH_A_PINGS_MAC,
    PING_AGAIN,
    WORKER_WITHOUT_MAC,
    WORKER_CHANGED,
    WORKER_OF_ANOTHER_UCX,
    WORKER_AGAIN,
    NO_MESSAGE,
    OUT_OF_TURN_COUNT
};

// Of the peer whose hello was accepted; how many bytes.
static size_t make_out_of_turn(enum out_of_turn what, struct raw_peer *peer,
                               const struct link_config *config, uint8_t *out) {
    struct link_challenge challenge = {0};
    struct link_hello hello = raw_hello(config, &challenge);
    union link_message message = link_message_make(LINK_ACCEPT);
    struct link_sign ping = raw_sign(peer, LINK_PING);
    struct worker_message worker = worker_of(peer, what == WORKER_OF_ANOTHER_UCX ? 9 : 1);
    switch (what) {
    case HELLO_AGAIN:
        memcpy(out, &hello, sizeof(hello));
        return sizeof(hello);
    case ACCEPT_BACK:
    case CHALLENGE_BACK:
    case CREDIT_FORGED:
        if (what == CHALLENGE_BACK) message = link_message_make(LINK_CHALLENGE);
        if (what == CREDIT_FORGED) message = link_message_make(LINK_CREDIT);
        if (what == ACCEPT_BACK) message.accept.credit_count = 1;
        memcpy(out, &message, sizeof(message));
        return link_message_bytes(message.head.kind);
    case PING_WITHOUT_MAC:
        memset(ping.mac, 0, sizeof(ping.mac));
        break;
    case PING_OF_THE_OTHER_WAY:
        link_mac_make(peer->session.to_sender_key, &ping, offsetof(struct link_sign, mac), NULL, 0,
                      ping.mac);
        break;
    case BYE_WITH_A_PINGS_MAC:
        ping.head.kind = LINK_BYE;
        break;
    case PING_AGAIN:
        memcpy(out, &ping, sizeof(ping));
        memcpy(out + sizeof(ping), &ping, sizeof(ping));
        return 2 * sizeof(ping);
    case WORKER_WITHOUT_MAC:
    case WORKER_CHANGED:
    case WORKER_OF_ANOTHER_UCX:
        if (what == WORKER_WITHOUT_MAC) memset(worker.worker.mac, 0, sizeof(worker.worker.mac));
        if (what == WORKER_CHANGED) worker.address[ADDRESS_BYTES - 1] ^= 1;
        memcpy(out, &worker, sizeof(worker));
        return sizeof(worker);
    case WORKER_AGAIN: // the first one says that frames come over this connection
        for (int i = 0; i < 2; i++) {
            worker = worker_of(peer, 1);
            worker.worker.address_bytes = 0;
            link_mac_make(peer->session.to_receiver_key, &worker, offsetof(struct link_worker, mac),
                          NULL, 0, worker.worker.mac);
            memcpy(out + i * sizeof(worker.worker), &worker, sizeof(worker.worker));
        }
        return 2 * sizeof(worker.worker);
    case NO_MESSAGE:
    case OUT_OF_TURN_COUNT:
        memset(out, 'x', 100);
        return 100;
    }
    memcpy(out, &ping, sizeof(ping));
    return sizeof(ping);
}

static void ucx_link_ends_on_a_message_out_of_turn_and_no_other_does(void **state) {
    (void)state;
    for (enum out_of_turn what = 0; what < OUT_OF_TURN_COUNT; what++) {
        struct world world;
        struct end receiver, sender, victim;
        uint8_t bytes[512];
        world_open(&world, true);
        struct link_config config = world_config(4, 4096), other = config;
        other.link_id = 9;
        other.key[0] = 9;
        world_link(&world, &config, &receiver, &sender);
        world_expect(world.ports[0], &other, &victim);
        struct raw_peer peer = raw_join(&world, port_address(world.ports[0]), &other);
        assert_int_equal(victim.up_count, 1);
        raw_send(peer.fd, bytes, make_out_of_turn(what, &peer, &other, bytes));
        if (!world_until(&world, &victim.lost_count, 1, 1000)) fail_msg("case %d", (int)what);
        assert_true(raw_is_closed(&world, peer.fd, 1000));
        if (what != WORKER_OF_ANOTHER_UCX)
            assert_true(link_stats(victim.link).refused_count > 0);
        else
            assert_non_null(strstr(victim.error.text, "UCX finds no way to the peer"));
        assert_int_equal(receiver.lost_count + sender.lost_count, 0);
        close(peer.fd);
        world_close(&world);
    }
}

static void ucx_port_tells_another_version_that_it_is_refused(void **state) {
    (void)state;
    struct world world;
    struct end receiver;
    union link_message answer = {0};
    world_open(&world, true);
    struct link_config config = world_config(4, 4096);
    world_expect(world_add_port(&world), &config, &receiver);
    int fd = raw_connect(port_address(world.ports[0]));
    struct link_challenge challenge = raw_challenge(&world, fd);
    struct link_hello hello = raw_hello(&config, &challenge);
    hello.head.version = LINK_WIRE_VERSION + 1;
    raw_send(fd, &hello, sizeof(hello) - 8); // even of another size
    raw_receive(&world, fd, &answer, sizeof(answer.refuse));
    assert_int_equal(answer.refuse.reason, LINK_REFUSED_VERSION);
    assert_int_equal(answer.head.version, LINK_WIRE_VERSION);
    assert_int_equal(receiver.up_count, 0);
    close(fd);
    world_close(&world);
}

static void ucx_port_takes_a_hello_byte_by_byte(void **state) {
    (void)state;
    struct world world;
    struct end receiver;
    world_open(&world, true);
    struct link_config config = world_config(4, 4096);
    world_expect(world_add_port(&world), &config, &receiver);
    int fd = raw_connect(port_address(world.ports[0]));
    struct link_challenge challenge = raw_challenge(&world, fd);
    struct link_hello hello = raw_hello(&config, &challenge);
    for (size_t i = 0; i < sizeof(hello); i++) {
        assert_int_equal(receiver.up_count, 0);
        raw_send(fd, (const uint8_t *)&hello + i, 1);
        world_run(&world, 2);
    }
    assert_true(world_until(&world, &receiver.up_count, 1, 1000));
    close(fd);
    assert_true(world_until(&world, &receiver.lost_count, 1, 1000));
    world_close(&world);
}

static void ucx_port_closes_connections_that_say_nothing(void **state) {
    (void)state;
    struct world world;
    world_open(&world, true);
    struct port *port = world_add_port(&world);
    int fd = raw_connect(port_address(port));
    world_run(&world, 20);
    world_push(&world, LINK_CONNECT_MS - 500);
    assert_false(raw_is_closed(&world, fd, 20));
    world_push(&world, 1000);
    assert_true(raw_is_closed(&world, fd, 1000));
    close(fd);
    world_close(&world);
}

static void ucx_link_comes_up_among_idle_peers(void **state) {
    (void)state;
    enum { IDLE_COUNT = 400 };
    struct world world;
    struct end receiver, sender;
    int fds[IDLE_COUNT];
    world_open(&world, true);
    struct port *port = world_add_port(&world);
    for (int i = 0; i < IDLE_COUNT; i++) {
        fds[i] = raw_connect(port_address(port));
        (void)world_poll(&world);
        (void)world_poll(&world);
    }
    struct link_config config = world_config(4, 4096);
    world_link(&world, &config, &receiver, &sender);
    // The last of them may be taken in later, for which others have to go.
    int open_count = IDLE_COUNT;
    for (int round = 0; round < 10 && open_count > LINK_PENDING_COUNT_MAX; round++) {
        open_count = 0;
        for (int i = 0; i < IDLE_COUNT; i++)
            open_count += !raw_is_closed(&world, fds[i], 3);
    }
    assert_in_range(open_count, 1, LINK_PENDING_COUNT_MAX);
    for (int i = 0; i < IDLE_COUNT; i++)
        close(fds[i]);
    world_run(&world, 20);
    assert_int_equal(receiver.lost_count + sender.lost_count, 0);
    world_close(&world);
}

// A stage that has joined over IPv6 is told to others by that address.
static void ucx_port_of_every_address_is_reached_by_both_kinds(void **state) {
    (void)state;
    struct world world;
    world_open(&world, true);
    const char *colon = strrchr(port_address(world_add_port_at(&world, "0.0.0.0")), ':');
    const char *hosts[] = {"127.0.0.1", "[::1]"};
    FILE *in6 = fopen("/proc/net/if_inet6", "r"); // empty or missing without IPv6
    size_t host_count = in6 != NULL && fgetc(in6) != EOF ? 2 : 1;
    if (in6 != NULL) fclose(in6);
    for (size_t i = 0; i < host_count; i++) {
        char address[64];
        snprintf(address, sizeof(address), "%s%s", hosts[i], colon);
        int fd = raw_connect(address);
        (void)raw_challenge(&world, fd);
        close(fd);
    }
    world_close(&world);
}

static void link_messages_are_refused_unless_to_the_letter(void **state) {
    (void)state;
    static const enum link_message_kind kinds[] = {
        LINK_HELLO, LINK_ACCEPT, LINK_REFUSE, LINK_CREDIT, LINK_PING, LINK_BYE, LINK_CHALLENGE};
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
        union link_message message = link_message_make(kinds[i]), out;
        if (kinds[i] == LINK_HELLO) message.hello.credit_count = 1;
        if (kinds[i] == LINK_HELLO) message.hello.frame_bytes_max = 1;
        if (kinds[i] == LINK_ACCEPT) message.accept.credit_count = LINK_CREDIT_COUNT_MAX;
        size_t bytes = link_message_bytes(message.head.kind);
        assert_int_equal(link_message_parse(&message, bytes, &out), STATUS_OK);
        for (size_t n = 0; n < bytes; n++)
            assert_int_equal(link_message_parse(&message, n, &out), STATUS_INVALID);
        assert_int_equal(link_message_parse(&message, bytes + 1, &out), STATUS_INVALID);
        message.head.magic++;
        assert_int_equal(link_message_parse(&message, bytes, &out), STATUS_INVALID);
        message.head.magic--;
        message.head.kind = LINK_WORKER;
        assert_int_equal(link_message_parse(&message, bytes, &out), STATUS_INVALID);
        message.head.kind = 0;
        assert_int_equal(link_message_parse(&message, bytes, &out), STATUS_INVALID);
    }
    union link_message hello = link_message_make(LINK_HELLO), out;
    hello.hello.credit_count = LINK_CREDIT_COUNT_MAX + 1;
    hello.hello.frame_bytes_max = 1;
    assert_int_equal(link_message_parse(&hello, sizeof(hello.hello), &out), STATUS_INVALID);
    hello.hello.credit_count = 0;
    assert_int_equal(link_message_parse(&hello, sizeof(hello.hello), &out), STATUS_INVALID);
    hello.hello.credit_count = 1;
    hello.hello.frame_bytes_max = (uint64_t)FRAME_BYTES_MAX + 1;
    assert_int_equal(link_message_parse(&hello, sizeof(hello.hello), &out), STATUS_INVALID);
    hello.hello.frame_bytes_max = 1;
    hello.hello.flags = 2;
    assert_int_equal(link_message_parse(&hello, sizeof(hello.hello), &out), STATUS_INVALID);
    hello.hello.flags = LINK_ENCRYPTS;
    assert_int_equal(link_message_parse(&hello, sizeof(hello.hello), &out), STATUS_OK);
    hello.hello.reserved = 1;
    assert_int_equal(link_message_parse(&hello, sizeof(hello.hello), &out), STATUS_INVALID);
    hello.hello.reserved = 0;
    hello.head.version = LINK_WIRE_VERSION + 1;
    assert_int_equal(link_message_parse(&hello, sizeof(hello.hello), &out), STATUS_UNSUPPORTED);
}

static void link_addresses_are_split_and_joined(void **state) {
    (void)state;
    static const char *const good[] = {"10.0.0.7:7000", "[::1]:1", "stage-0.pipe:65535"};
    static const char *const bad[] = {"",           "host",        ":1",     "host:", "host:0",
                                      "host:65536", "::1:80",      "[::1]",  "[]:1",  "host:1x",
                                      "host:-1",    "host:000001", "host: 1"};
    char host[64], text[80];
    uint16_t port_number;
    struct error error;
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        assert_int_equal(link_address_split(good[i], host, sizeof(host), &port_number, &error),
                         STATUS_OK);
        link_address_join(host, port_number, text, sizeof(text));
        assert_string_equal(text, good[i]);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        assert_int_equal(link_address_split(bad[i], host, sizeof(host), &port_number, &error),
                         STATUS_INVALID);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(ucx_port_survives_garbage_bytes),
    cmocka_unit_test(ucx_port_ends_a_connection_that_does_not_begin_with_hello),
    cmocka_unit_test(ucx_link_ends_on_a_message_out_of_turn_and_no_other_does),
    cmocka_unit_test(ucx_port_tells_another_version_that_it_is_refused),
    cmocka_unit_test(ucx_port_takes_a_hello_byte_by_byte),
    cmocka_unit_test(ucx_port_closes_connections_that_say_nothing),
    cmocka_unit_test(ucx_link_comes_up_among_idle_peers),
    cmocka_unit_test(ucx_port_of_every_address_is_reached_by_both_kinds),
    cmocka_unit_test(link_messages_are_refused_unless_to_the_letter),
    cmocka_unit_test(link_addresses_are_split_and_joined),
};

int main(int argc, char **argv) {
    if (argc == 2) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
