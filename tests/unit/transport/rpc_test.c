// Calls between a server and a client over loopback.
#include "rpc_world.h"

static void unary_call_gets_its_answer(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    uint32_t length = 0;
    assert_int_equal(tokenize(&world, "hello", 0, &length, NULL), RPC_OK);
    assert_int_equal(length, 5);
    assert_int_equal(tokenize(&world, "", 0, &length, NULL), RPC_OK);
    assert_int_equal(length, 0);
    assert_true(seen_wait(&world.server, &world.server.closed_count, 2, WAIT_MS));
    assert_int_equal(seen_code(&world.server), RPC_OK);
    world_close(&world);
}

static void refusal_reaches_the_client_with_code_and_sentence(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct error error = {0};
    assert_int_equal(tokenize(&world, "refuse", 0, NULL, &error), RPC_FAILED_PRECONDITION);
    assert_string_equal(error.text, "not today: 100 % r\xc3\xa9serv\xc3\xa9");
    world_close(&world);
}

static void peer_host_is_the_clients_address(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    Stagecoach__V1__DetokenizeRequest request = STAGECOACH__V1__DETOKENIZE_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    assert_int_equal(
        rpc_call_wait(world.channel, INFERENCE, "Detokenize", &request.base, NULL, &response, NULL),
        RPC_OK);
    assert_string_equal(((Stagecoach__V1__DetokenizeResponse *)response)->text, "127.0.0.1");
    protobuf_c_message_free_unpacked(response, NULL);
    world_close(&world);
}

struct slow_reader {
    struct seen seen;
    struct world *world;
};

// Holds the client's thread on the first message until the server has been told to wait.
static void slow_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    struct slow_reader *reader = ctx;
    struct seen *server = &reader->world->server;
    if (reader->seen.message_count == 0) {
        must(seen_wait(server, &server->refused_send_count, 1, WAIT_MS));
    }
    client_generate_message(call, &reader->seen, message);
}

static void slow_closed(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message) {
    struct slow_reader *reader = ctx;
    client_closed(call, &reader->seen, code, message);
}

static void long_stream_to_a_slow_reader_arrives_whole_and_in_order(void **state) {
    (void)state;
    const struct rpc_config server_config = {.send_count_max = 8}, client_config = {0};
    struct world world;
    world_open_with(&world, &server_config, &client_config);
    struct slow_reader reader = {.world = &world};
    seen_init(&reader.seen);
    const struct rpc_handler handler = {.message = slow_message, .closed = slow_closed};
    struct rpc_call *call;
    assert_int_equal(
        rpc_call_begin(world.channel, INFERENCE, "Generate", &handler, &reader, NULL, &call),
        STATUS_OK);
    Stagecoach__V1__Stop stop = STAGECOACH__V1__STOP__INIT;
    stop.max_tokens = 10000;
    GenerateRequest request = STAGECOACH__V1__GENERATE_REQUEST__INIT;
    request.stop = &stop;
    assert_true(rpc_call_send(call, &request.base));
    assert_true(seen_wait(&reader.seen, &reader.seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&reader.seen), RPC_OK);
    assert_int_equal(reader.seen.message_count, 10000);
    assert_true(seen_in_order(&reader.seen));
    rpc_call_release(call);
    world_close(&world);
    assert_true(world.server.writable_count > 0);
    assert_int_equal(world.server.writable_count, world.server.refused_send_count);
    seen_fini(&reader.seen);
}

static void both_directions_of_a_bidi_call_flow(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct seen seen;
    seen_init(&seen);
    struct rpc_call *call = start_join(&world, &seen);
    for (uint32_t number = 1; number <= 3; number++) { // ping-pong
        assert_true(send_heartbeat(call, number));
        assert_true(seen_wait(&seen, &seen.message_count, number, WAIT_MS));
    }
    for (uint32_t number = 4; number <= 100; number++) { // in a burst
        assert_true(send_heartbeat(call, number));
    }
    assert_true(seen_wait(&seen, &seen.message_count, 100, WAIT_MS));
    assert_int_equal(seen.closed_count, 0);
    rpc_call_send_end(call);
    assert_false(send_heartbeat(call, 101));
    assert_true(seen_wait(&seen, &seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&seen), RPC_OK);
    assert_int_equal(seen.half_close_count, 1);
    assert_true(seen_in_order(&seen));
    rpc_call_release(call);
    world_close(&world);
    seen_fini(&seen);
}

static void bidi_call_begins_without_a_message(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct seen seen;
    seen_init(&seen);
    struct rpc_call *call = start_join(&world, &seen);
    assert_true(seen_wait(&world.server, &world.server.begun_count, 1, WAIT_MS));
    rpc_call_send_end(call);
    assert_true(seen_wait(&seen, &seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&seen), RPC_OK);
    rpc_call_release(call);
    world_close(&world);
    seen_fini(&seen);
}

struct sender {
    struct rpc_call *call;
    struct seen *seen;
    uint32_t *sent_count;
};

static void *send_many(void *context) {
    struct sender *sender = context;
    for (uint32_t i = 0; i < 500;) {
        pthread_mutex_lock(&sender->seen->mutex); // so that the numbers are in order
        bool sent = send_heartbeat(sender->call, *sender->sent_count + 1);
        if (sent) *sender->sent_count += 1;
        pthread_mutex_unlock(&sender->seen->mutex);
        if (sent)
            i++;
        else
            usleep(100);
    }
    return NULL;
}

static void many_threads_send_on_one_call(void **state) {
    (void)state;
    struct world world;
    const struct rpc_config server_config = {.send_count_max = 4096}, client_config = {0};
    world_open_with(&world, &server_config, &client_config);
    struct seen seen, order;
    seen_init(&seen);
    seen_init(&order);
    uint32_t sent_count = 0;
    struct sender sender = {start_join(&world, &seen), &order, &sent_count};
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, send_many, &sender), 0);
    }
    for (size_t i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_true(seen_wait(&seen, &seen.message_count, 2000, WAIT_MS));
    assert_true(seen_in_order(&seen));
    rpc_call_cancel(sender.call);
    assert_true(seen_wait(&seen, &seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&seen), RPC_CANCELLED);
    rpc_call_release(sender.call);
    world_close(&world);
    seen_fini(&order);
    seen_fini(&seen);
}

static void two_hundred_calls_run_at_once(void **state) {
    (void)state;
    enum { CALL_COUNT = 200 };
    struct world world;
    world_open(&world);
    static struct seen seen[CALL_COUNT];
    static struct rpc_call *calls[CALL_COUNT];
    for (size_t i = 0; i < CALL_COUNT; i++) {
        seen_init(&seen[i]);
        calls[i] = start_generate(&world, &seen[i], "", 20, 0);
    }
    for (size_t i = 0; i < CALL_COUNT; i++) {
        assert_true(seen_wait(&seen[i], &seen[i].closed_count, 1, WAIT_MS));
        assert_int_equal(seen_code(&seen[i]), RPC_OK);
        assert_int_equal(seen[i].message_count, 20);
        assert_true(seen_in_order(&seen[i]));
        rpc_call_release(calls[i]);
    }
    world_close(&world);
    for (size_t i = 0; i < CALL_COUNT; i++) {
        seen_fini(&seen[i]);
    }
}

static void unix_socket_carries_calls(void **state) {
    (void)state;
    const struct rpc_config config = {0};
    char folder[] = "/tmp/rpc_test.XXXXXX", address[64];
    assert_non_null(mkdtemp(folder));
    (void)snprintf(address, sizeof(address), "unix:%s/socket", folder);
    struct world world = {0};
    world_serve(&world, &config, address);
    assert_int_equal(world.port, 0);
    world_dial(&world, &config, address);
    uint32_t length = 0;
    assert_int_equal(tokenize(&world, "four", 0, &length, NULL), RPC_OK);
    assert_int_equal(length, 4);
    world_close(&world);
    (void)unlink(address + 5);
    assert_int_equal(rmdir(folder), 0);
}

static void taken_port_is_an_error_that_names_the_address(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    const struct rpc_config config = {0};
    struct rpc *second;
    struct error error = {0};
    uint16_t port = 7;
    assert_int_equal(rpc_open(&config, &second), STATUS_OK);
    assert_int_equal(rpc_serve(second, world.address, &port, &error), STATUS_IO);
    assert_non_null(strstr(error.text, world.address));
    assert_non_null(strstr(error.text, "already in use"));
    assert_int_equal(port, 7);
    assert_int_equal(rpc_serve(second, "nonsense", &port, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "nonsense"));
    rpc_close(second, 0);
    world_close(&world);
}

static void unknown_service_method_cannot_be_served_or_called(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    const struct rpc_handler handler = {
        .begin = server_begin, .message = client_join_message, .closed = client_closed};
    const struct rpc_method method = {"Nonsense", handler};
    const struct rpc_config config = {0};
    struct rpc *second;
    struct rpc_call *call;
    struct error error = {0};
    assert_int_equal(rpc_open(&config, &second), STATUS_OK);
    assert_int_equal(rpc_add_service(second, CONTROL, &method, 1, NULL, RPC_ROLES_ANY, &error),
                     STATUS_NOT_FOUND);
    assert_non_null(strstr(error.text, "Nonsense"));
    rpc_close(second, 0);
    assert_int_equal(
        rpc_call_begin(world.channel, CONTROL, "Nonsense", &handler, NULL, NULL, &call),
        STATUS_NOT_FOUND);
    world_close(&world);
}

// A server may know fewer methods than a client; what the client sends first differs.
static void unknown_methods_are_answered_unimplemented(void **state) {
    (void)state;
    const struct rpc_config config = {0};
    struct world world = {0};
    seen_init(&world.server);
    assert_int_equal(rpc_open(&config, &world.server_rpc), STATUS_OK);
    assert_int_equal(rpc_serve(world.server_rpc, "127.0.0.1:0", &world.port, NULL), STATUS_OK);
    char target[64];
    (void)snprintf(target, sizeof(target), "127.0.0.1:%u", world.port);
    world_dial(&world, &config, target);
    Stagecoach__V1__GetPipelineRequest request = STAGECOACH__V1__GET_PIPELINE_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    for (uint32_t i = 0; i < 300; i++) {
        struct error error = {0};
        assert_int_equal(rpc_call_wait(world.channel, ADMIN, "GetPipeline", &request.base, NULL,
                                       &response, &error),
                         RPC_UNIMPLEMENTED);
        assert_string_equal(error.text, "there is no method /stagecoach.v1.Admin/GetPipeline");
    }
    struct seen seen;
    seen_init(&seen);
    struct rpc_call *call = start_join(&world, &seen);
    (void)!send_heartbeat(call, 1);
    assert_true(seen_wait(&seen, &seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&seen), RPC_UNIMPLEMENTED);
    assert_false(send_heartbeat(call, 2));
    rpc_call_release(call);
    world_close(&world);
    seen_fini(&seen);
}

static void a_server_that_stops_lets_calls_go_on_and_takes_no_more(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct seen seen;
    seen_init(&seen);
    struct rpc_call *call = start_join(&world, &seen);
    assert_true(send_heartbeat(call, 1));
    assert_true(seen_wait(&seen, &seen.message_count, 1, WAIT_MS));
    rpc_stop_serving(world.server_rpc);
    rpc_stop_serving(world.server_rpc); // again does nothing
    // Over the connection that the call keeps open, and over a new one.
    struct error error = {0};
    assert_int_equal(tokenize(&world, "hello", 0, NULL, &error), RPC_UNAVAILABLE);
    assert_non_null(strstr(error.text, "shutting down"));
    struct world other = {0};
    char target[64];
    (void)snprintf(target, sizeof(target), "127.0.0.1:%u", world.port);
    world_dial(&other, &(struct rpc_config){0}, target);
    assert_int_equal(tokenize(&other, "hello", 0, NULL, &error), RPC_UNAVAILABLE);
    rpc_channel_close(other.channel);
    rpc_close(other.client_rpc, 0);
    for (uint32_t number = 2; number <= 10; number++) {
        assert_true(send_heartbeat(call, number));
        assert_true(seen_wait(&seen, &seen.message_count, number, WAIT_MS));
    }
    rpc_call_send_end(call);
    assert_true(seen_wait(&seen, &seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&seen), RPC_OK);
    rpc_call_release(call);
    world_close(&world);
    seen_fini(&seen);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unary_call_gets_its_answer),
        cmocka_unit_test(refusal_reaches_the_client_with_code_and_sentence),
        cmocka_unit_test(peer_host_is_the_clients_address),
        cmocka_unit_test(long_stream_to_a_slow_reader_arrives_whole_and_in_order),
        cmocka_unit_test(both_directions_of_a_bidi_call_flow),
        cmocka_unit_test(a_server_that_stops_lets_calls_go_on_and_takes_no_more),
        cmocka_unit_test(bidi_call_begins_without_a_message),
        cmocka_unit_test(many_threads_send_on_one_call),
        cmocka_unit_test(two_hundred_calls_run_at_once),
        cmocka_unit_test(unix_socket_carries_calls),
        cmocka_unit_test(taken_port_is_an_error_that_names_the_address),
        cmocka_unit_test(unknown_service_method_cannot_be_served_or_called),
        cmocka_unit_test(unknown_methods_are_answered_unimplemented),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
