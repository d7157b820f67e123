// What peers may send that they should not: over TCP to a port of link_ucx, and to the parsers.
#include "link_world.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/link_wire.h"
#include "transport/link_address.h"

static int raw_connect(const char *address) {
    char host[64];
    uint16_t port_number;
    assert_int_equal(link_address_split(address, host, sizeof(host), &port_number, NULL),
                     STATUS_OK);
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port_number)};
    assert_int_equal(inet_pton(AF_INET, host, &in.sin_addr), 1);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&in, sizeof(in)), 0);
    return fd;
}

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

// What a test sends after the hello is accepted goes to a receiver that believes in it.
static union link_message hello_of(const struct link_config *config) {
    union link_message message = link_message_make(LINK_HELLO);
    message.hello.epoch = config->epoch;
    message.hello.link_id = config->link_id;
    message.hello.credit_count = config->credit_count;
    message.hello.frame_bytes_max = config->frame_bytes_max;
    return message;
}

static void raw_send(int fd, const void *data, size_t bytes) {
    assert_int_equal(send(fd, data, bytes, MSG_NOSIGNAL), bytes);
}

// Whether the port has closed the connection; whatever it said before is dropped.
static bool raw_is_closed(struct world *world, int fd, uint64_t limit_ms) {
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

static void ucx_port_ends_a_connection_that_speaks_out_of_turn(void **state) {
    (void)state;
    static const enum link_message_kind kinds[] = {LINK_ACCEPT, LINK_REFUSE, LINK_CREDIT,
                                                   LINK_PING,   LINK_BYE,    LINK_WORKER};
    struct world world;
    struct end receiver, sender;
    world_open(&world, true);
    struct link_config config = world_config(4, 4096);
    world_link(&world, &config, &receiver, &sender);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
        union link_message message = link_message_make(kinds[i]);
        uint8_t worker[sizeof(struct link_worker) + 64] = {0};
        size_t bytes = link_message_bytes((uint16_t)kinds[i]);
        if (kinds[i] == LINK_ACCEPT) message.accept.credit_count = 1;
        memcpy(worker, &message, bytes);
        if (kinds[i] == LINK_WORKER) {
            struct link_worker head = link_worker_make(1, 13, worker, 64);
            memcpy(worker, &head, sizeof(head));
            bytes = sizeof(worker);
        }
        int fd = raw_connect(port_address(world.ports[0]));
        raw_send(fd, worker, bytes);
        if (!raw_is_closed(&world, fd, 1000)) fail_msg("kind %d", kinds[i]);
        close(fd);
    }
    assert_int_equal(link_stats(receiver.link).refused_count, 6);
    assert_int_equal(receiver.lost_count + sender.lost_count, 0);
    world_close(&world);
}

static void ucx_link_ends_on_a_message_out_of_turn_and_no_other_does(void **state) {
    (void)state;
    // After its hello was accepted: again a hello, an accept, a credit, a worker with a damaged
    // address, one of another UCX, one without an address, and bytes that are no message.
    for (int what = 0; what < 7; what++) {
        struct world world;
        struct end receiver, sender, victim;
        world_open(&world, true);
        struct link_config config = world_config(4, 4096), other = config;
        other.link_id = 9;
        world_link(&world, &config, &receiver, &sender);
        world_expect(world.ports[0], &other, &victim);
        int fd = raw_connect(port_address(world.ports[0]));
        union link_message message = hello_of(&other);
        raw_send(fd, &message, sizeof(message.hello));
        assert_true(world_until(&world, &victim.up_count, 1, 1000));
        size_t bytes = sizeof(message.hello);
        if (what == 1) message = link_message_make(LINK_ACCEPT);
        if (what == 1) message.accept.credit_count = 1;
        if (what == 1) bytes = sizeof(message.accept);
        if (what == 2) message = link_message_make(LINK_CREDIT);
        if (what == 2) bytes = sizeof(message.credit);
        if (what >= 3 && what <= 5) {
            const uint8_t *address = (const uint8_t *)&message + sizeof(struct link_worker);
            struct link_worker worker = link_worker_make(what == 4 ? 9 : 1, 13, address, 72);
            if (what == 3) worker.checksum++;
            if (what == 5) worker.address_bytes = 0;
            memcpy(&message, &worker, sizeof(worker));
        }
        if (what == 6) memset(&message, 'x', sizeof(message));
        raw_send(fd, &message, bytes);
        assert_true(world_until(&world, &victim.lost_count, 1, 1000));
        assert_true(raw_is_closed(&world, fd, 1000));
        if (what != 4)
            assert_true(link_stats(victim.link).refused_count > 0);
        else
            assert_non_null(strstr(victim.error.text, "the peer has UCX 9.13"));
        assert_int_equal(receiver.lost_count + sender.lost_count, 0);
        close(fd);
        world_close(&world);
    }
}

static void ucx_port_tells_another_version_that_it_is_refused(void **state) {
    (void)state;
    struct world world;
    struct end receiver;
    world_open(&world, true);
    struct link_config config = world_config(4, 4096);
    world_expect(world_add_port(&world), &config, &receiver);
    int fd = raw_connect(port_address(world.ports[0]));
    union link_message message = hello_of(&config), answer = {0};
    message.head.version = LINK_WIRE_VERSION + 1;
    raw_send(fd, &message, sizeof(message.hello) - 8); // even of another size
    world_run(&world, 100);
    assert_int_equal(recv(fd, &answer, sizeof(answer), MSG_DONTWAIT), sizeof(answer.refuse));
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
    union link_message message = hello_of(&config);
    for (size_t i = 0; i < sizeof(message.hello); i++) {
        assert_int_equal(receiver.up_count, 0);
        raw_send(fd, (const uint8_t *)&message + i, 1);
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
    int open_count = 0;
    for (int i = 0; i < IDLE_COUNT; i++)
        open_count += !raw_is_closed(&world, fds[i], 3);
    assert_in_range(open_count, 1, LINK_PENDING_COUNT_MAX);
    for (int i = 0; i < IDLE_COUNT; i++)
        close(fds[i]);
    world_run(&world, 20);
    assert_int_equal(receiver.lost_count + sender.lost_count, 0);
    world_close(&world);
}

static void link_messages_are_refused_unless_to_the_letter(void **state) {
    (void)state;
    static const enum link_message_kind kinds[] = {LINK_HELLO,  LINK_ACCEPT, LINK_REFUSE,
                                                   LINK_CREDIT, LINK_PING,   LINK_BYE};
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
        message.head.kind = LINK_FRAME;
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
    hello.hello.mac[31] = 1;
    assert_int_equal(link_message_parse(&hello, sizeof(hello.hello), &out), STATUS_INVALID);
    hello.hello.mac[31] = 0;
    hello.head.version = 2;
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
    cmocka_unit_test(ucx_port_ends_a_connection_that_speaks_out_of_turn),
    cmocka_unit_test(ucx_link_ends_on_a_message_out_of_turn_and_no_other_does),
    cmocka_unit_test(ucx_port_tells_another_version_that_it_is_refused),
    cmocka_unit_test(ucx_port_takes_a_hello_byte_by_byte),
    cmocka_unit_test(ucx_port_closes_connections_that_say_nothing),
    cmocka_unit_test(ucx_link_comes_up_among_idle_peers),
    cmocka_unit_test(link_messages_are_refused_unless_to_the_letter),
    cmocka_unit_test(link_addresses_are_split_and_joined),
};

int main(int argc, char **argv) {
    if (argc == 2) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
