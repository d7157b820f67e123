// What a server refuses: sizes, calls, connections, and time without work.
#include "rpc_world.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "base/limits.h"

static void too_much_metadata_is_refused(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    static char value[RPC_METADATA_BYTES_MAX + 1];
    memset(value, 'x', sizeof(value) - 1);
    const struct rpc_metadata metadata = {.key = "x-echo", .value = value};
    const struct rpc_call_options options = {.metadata = &metadata, .metadata_count = 1};
    TokenizeRequest request = STAGECOACH__V1__TOKENIZE_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    assert_int_equal(rpc_call_wait(world.channel, INFERENCE, "Tokenize", &request.base, &options,
                                   &response, NULL),
                     RPC_RESOURCE_EXHAUSTED);
    assert_int_equal(world.server.begun_count, 0);

    // gRPC also closes the connection, which a call that follows at once can still meet.
    value[RPC_METADATA_BYTES_MAX / 2] = '\0';
    enum rpc_code code = RPC_UNAVAILABLE;
    for (int i = 0; i < 10 && code == RPC_UNAVAILABLE; i++) {
        code = rpc_call_wait(world.channel, INFERENCE, "Tokenize", &request.base, &options,
                             &response, NULL);
    }
    assert_int_equal(code, RPC_OK);
    protobuf_c_message_free_unpacked(response, NULL);
    world_close(&world);
}

static void method_refuses_messages_above_its_own_limit(void **state) {
    (void)state;
    struct world world = {0};
    const struct rpc_config config = {0};
    struct error error = {0};
    seen_init(&world.server);
    assert_int_equal(rpc_open(&config, &world.server_rpc), STATUS_OK);
    assert_int_equal(rpc_add_service(world.server_rpc, INFERENCE, world_inference(), 3, &world,
                                     RPC_ROLE_CLIENT, &error),
                     STATUS_OK);
    rpc_limit_messages(world.server_rpc, INFERENCE, "Tokenize", 1000);
    assert_int_equal(rpc_serve(world.server_rpc, "127.0.0.1:0", &world.port, &error), STATUS_OK);
    char target[64], text[1002];
    (void)snprintf(target, sizeof(target), "127.0.0.1:%u", world.port);
    world_dial(&world, &config, target);
    memset(text, 'x', sizeof(text));
    text[1000 - 3] = '\0'; // with tag and length of two bytes
    assert_int_equal(tokenize(&world, text, 0, NULL, &error), RPC_OK);
    text[1000 - 3] = 'x';
    text[1000 - 2] = '\0';
    assert_int_equal(tokenize(&world, text, 0, NULL, &error), RPC_RESOURCE_EXHAUSTED);
    assert_string_equal(error.text, "message: 1001 bytes, the limit of Tokenize is 1000");
    assert_true(seen_wait(&world.server, &world.server.closed_count, 2, WAIT_MS));
    assert_int_equal(seen_code(&world.server), RPC_RESOURCE_EXHAUSTED);
    world_close(&world);
}

// -- connections ---------------------------------------------------------------------------------

static int connect_to(const struct world *world) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(world->port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

// Whether the server closes the connection within the time, whatever it says before.
static bool is_closed(int fd, int wait_ms) {
    char bytes[256];
    uint64_t until_ms = now_ms() + (uint64_t)wait_ms;
    for (uint64_t now = now_ms(); now < until_ms; now = now_ms()) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        if (poll(&ready, 1, (int)(until_ms - now)) == 1 && read(fd, bytes, sizeof(bytes)) <= 0)
            return true;
    }
    return false;
}

static void one_connection_too_many_is_closed_and_there_is_room_when_one_goes(void **state) {
    (void)state;
    enum { LIMIT = 8 };
    const struct rpc_config server_config = {.connection_count_max = LIMIT}, client_config = {0};
    struct world world;
    world_open_with(&world, &server_config, &client_config);
    assert_int_equal(tokenize(&world, "first", 0, NULL, NULL), RPC_OK); // holds one
    int fds[LIMIT - 1];
    for (size_t i = 0; i < LIMIT - 1; i++) {
        fds[i] = connect_to(&world);
    }
    for (size_t i = 0; i < LIMIT - 1; i++) { // each is greeted by SETTINGS
        char byte;
        assert_int_equal(read(fds[i], &byte, 1), 1);
    }
    for (int i = 0; i < 20; i++) {
        int fd = connect_to(&world);
        assert_true(is_closed(fd, WAIT_MS));
        close(fd);
    }
    assert_int_equal(tokenize(&world, "still", 0, NULL, NULL), RPC_OK);
    close(fds[0]);
    bool has_room = false;
    for (uint64_t until_ms = now_ms() + WAIT_MS; !has_room && now_ms() < until_ms;) {
        int fd = connect_to(&world);
        char byte;
        has_room = read(fd, &byte, 1) == 1;
        close(fd);
        if (!has_room) (void)poll(NULL, 0, 10);
    }
    assert_true(has_room);
    for (size_t i = 1; i < LIMIT - 1; i++) {
        close(fds[i]);
    }
    world_close(&world);
}

// The highest descriptor that is open.
static int last_descriptor(void) {
    int fd = dup(0);
    close(fd);
    return fd;
}

static void server_without_descriptors_accepts_again_when_there_are_some(void **state) {
    (void)state;
    enum { COUNT = 40 };
    struct world world;
    world_open(&world);
    assert_int_equal(tokenize(&world, "before", 0, NULL, NULL), RPC_OK);
    int fds[COUNT];
    for (int i = 0; i < COUNT; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_true(fds[i] >= 0);
    }
    struct rlimit limit, tight;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    tight = limit;
    tight.rlim_cur = (rlim_t)last_descriptor();
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &tight), 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(world.port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < COUNT; i++) { // the server has no descriptor for any of them
        assert_int_equal(connect(fds[i], (struct sockaddr *)&address, sizeof(address)), 0);
        assert_true(is_closed(fds[i], WAIT_MS));
    }
    assert_int_equal(tokenize(&world, "meanwhile", 0, NULL, NULL), RPC_OK);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    for (int i = 0; i < COUNT; i++) {
        close(fds[i]);
    }
    int fd = connect_to(&world);
    char byte;
    assert_int_equal(read(fd, &byte, 1), 1);
    close(fd);
    world_close(&world);
}

static void connection_without_calls_is_closed_after_the_idle_time(void **state) {
    (void)state;
    const struct rpc_config server_config = {.idle_ms = 200}, client_config = {0};
    struct world world;
    world_open_with(&world, &server_config, &client_config);
    int fd = connect_to(&world);
    static const char hello[] =
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"; // and SETTINGS
    assert_int_equal(write(fd, hello, sizeof(hello) - 1), sizeof(hello) - 1);
    uint64_t begun_ms = now_ms();
    assert_true(is_closed(fd, 5000));
    assert_true(now_ms() - begun_ms >= 150);
    close(fd);
    assert_int_equal(tokenize(&world, "after", 0, NULL, NULL), RPC_OK);
    world_close(&world);
}

// -- slow readers --------------------------------------------------------------------------------

struct slow {
    struct seen seen;
    atomic_bool may_go_on;
};

static void slow_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)call;
    (void)message;
    struct slow *slow = ctx;
    seen_add(&slow->seen, &slow->seen.message_count);
    while (!slow->may_go_on)
        usleep(1000);
}

static void slow_closed(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message) {
    (void)call;
    seen_close(&((struct slow *)ctx)->seen, code, message);
}

static void reader_that_stops_holds_up_neither_other_calls_nor_memory(void **state) {
    (void)state;
    const struct rpc_config server_config = {.send_count_max = 1 << 20, .send_bytes_max = 100000};
    const struct rpc_config client_config = {0};
    struct world world;
    world_open_with(&world, &server_config, &client_config);
    struct slow slow = {0};
    seen_init(&slow.seen);
    const struct rpc_handler handler = {.message = slow_message, .closed = slow_closed};
    struct rpc_call *call;
    assert_int_equal(
        rpc_call_begin(world.channel, INFERENCE, "Generate", &handler, &slow, NULL, &call),
        STATUS_OK);
    Stagecoach__V1__Stop stop = STAGECOACH__V1__STOP__INIT;
    stop.max_tokens = 1000000;
    GenerateRequest request = STAGECOACH__V1__GENERATE_REQUEST__INIT;
    request.stop = &stop;
    assert_true(rpc_call_send(call, &request.base));
    // The bytes stop it long before the count would.
    assert_true(seen_wait(&world.server, &world.server.refused_send_count, 1, WAIT_MS));

    // The client's one thread is stuck, so the other calls come from another client.
    struct rpc *other_rpc;
    struct rpc_channel *other = NULL, *own = world.channel;
    assert_int_equal(rpc_open(&client_config, &other_rpc), STATUS_OK);
    assert_int_equal(rpc_channel_open(other_rpc, world.address, &other), STATUS_OK);
    world.channel = other;
    for (int i = 0; i < 10; i++) {
        assert_int_equal(tokenize(&world, "quick", WAIT_MS, NULL, NULL), RPC_OK);
    }
    world.channel = own;
    rpc_channel_close(other);
    rpc_close(other_rpc, 0);
    rpc_call_cancel(call);
    slow.may_go_on = true;
    assert_true(seen_wait(&slow.seen, &slow.seen.closed_count, 1, WAIT_MS));
    rpc_call_release(call);
    world_close(&world);
    seen_fini(&slow.seen);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(too_much_metadata_is_refused),
        cmocka_unit_test(method_refuses_messages_above_its_own_limit),
        cmocka_unit_test(one_connection_too_many_is_closed_and_there_is_room_when_one_goes),
        cmocka_unit_test(server_without_descriptors_accepts_again_when_there_are_some),
        cmocka_unit_test(connection_without_calls_is_closed_after_the_idle_time),
        cmocka_unit_test(reader_that_stops_holds_up_neither_other_calls_nor_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
