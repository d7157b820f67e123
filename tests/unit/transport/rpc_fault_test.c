// Calls that go wrong: bad bytes, limits, deadlines, cancelling, closing.
#include "rpc_world.h"

// -- bytes ---------------------------------------------------------------------------------------

static enum rpc_code tokenize_raw(struct world *world, const char *bytes, size_t size,
                                  struct error *error) {
    TokenizeRequest request = STAGECOACH__V1__TOKENIZE_REQUEST__INIT;
    ProtobufCMessageUnknownField raw = raw_field(1, bytes, size);
    request.base.n_unknown_fields = 1;
    request.base.unknown_fields = &raw;
    ProtobufCMessage *response = NULL;
    return rpc_call_wait(world->channel, INFERENCE, "Tokenize", &request.base, NULL, &response,
                         error);
}

static void bad_request_is_refused_before_its_handler(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct error error = {0};
    assert_int_equal(tokenize_raw(&world, "\x09short", 6, &error), RPC_INVALID_ARGUMENT);
    assert_string_equal(error.text, "message: not a protobuf message");
    assert_int_equal(tokenize_raw(&world,
                                  "\x03"
                                  "a\0b",
                                  4, &error),
                     RPC_INVALID_ARGUMENT);
    assert_string_equal(error.text, "text: holds a NUL character");
    assert_int_equal(tokenize_raw(&world, "\x02\xc3\x28", 3, &error), RPC_INVALID_ARGUMENT);
    assert_string_equal(error.text, "text: not valid UTF-8");
    assert_true(seen_wait(&world.server, &world.server.closed_count, 3, WAIT_MS));
    assert_int_equal(seen_code(&world.server), RPC_INVALID_ARGUMENT);
    seen_text_is(&world.server, "text: not valid UTF-8");
    assert_int_equal(world.server.message_count, 0);
    assert_int_equal(tokenize(&world, "good", 0, NULL, NULL), RPC_OK);
    world_close(&world);
}

static void bad_message_in_a_stream_ends_only_that_call(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct seen bad, good;
    seen_init(&bad);
    seen_init(&good);
    struct rpc_call *bad_call = start_join(&world, &bad), *good_call = start_join(&world, &good);
    assert_true(send_heartbeat(bad_call, 1));
    assert_true(seen_wait(&bad, &bad.message_count, 1, WAIT_MS));
    StageMessage message = STAGECOACH__V1__STAGE_MESSAGE__INIT;
    ProtobufCMessageUnknownField raw = raw_field(1, "\x03\x12\x01\xff", 4); // hello.name
    message.base.n_unknown_fields = 1;
    message.base.unknown_fields = &raw;
    assert_true(rpc_call_send(bad_call, &message.base));
    assert_true(seen_wait(&bad, &bad.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&bad), RPC_INVALID_ARGUMENT);
    seen_text_is(&bad, "hello.name: not valid UTF-8");
    assert_true(send_heartbeat(good_call, 1));
    assert_true(seen_wait(&good, &good.message_count, 1, WAIT_MS));
    rpc_call_cancel(good_call);
    assert_true(seen_wait(&good, &good.closed_count, 1, WAIT_MS));
    rpc_call_release(bad_call);
    rpc_call_release(good_call);
    world_close(&world);
    seen_fini(&bad);
    seen_fini(&good);
}

static void bad_response_is_internal(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct error error = {0};
    assert_int_equal(tokenize(&world, "bad", 0, NULL, &error), RPC_INTERNAL);
    assert_string_equal(error.text, "message: not a protobuf message");
    world_close(&world);
}

// -- limits --------------------------------------------------------------------------------------

static void message_over_the_limit_is_refused_on_both_sides(void **state) {
    (void)state;
    const struct rpc_config server_config = {.receive_bytes_max = 1000};
    const struct rpc_config client_config = {.receive_bytes_max = 100000};
    struct world world;
    world_open_with(&world, &server_config, &client_config);
    char text[999];
    memset(text, 'x', sizeof(text));
    text[997] = '\0'; // and three bytes of tag and length
    uint32_t length = 0;
    assert_int_equal(tokenize(&world, text, 0, &length, NULL), RPC_OK);
    assert_int_equal(length, 997);
    text[997] = 'x';
    text[998] = '\0';
    struct error error = {0};
    assert_int_equal(tokenize(&world, text, 0, NULL, &error), RPC_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(error.text, "1000"));
    world.big_bytes = 90000;
    assert_int_equal(tokenize(&world, "big", 0, NULL, NULL), RPC_OK);
    world.big_bytes = 100001;
    assert_int_equal(tokenize(&world, "big", 0, NULL, &error), RPC_RESOURCE_EXHAUSTED);
    world_close(&world);
}

static void call_beyond_the_servers_limit_is_answered_exhausted(void **state) {
    (void)state;
    // A client that does not heed the server's limit of streams of one connection has several.
    const struct rpc_config server_config = {.call_count_max = 2}, client_config = {0};
    struct world world;
    world_open_with(&world, &server_config, &client_config);
    struct rpc_channel *second;
    assert_int_equal(rpc_channel_open(world.client_rpc, world.address, &second), STATUS_OK);
    struct seen seen;
    seen_init(&seen);
    struct rpc_call *calls[2] = {start_generate(&world, &seen, "hang", 0, 0),
                                 start_generate(&world, &seen, "hang", 0, 0)};
    assert_true(seen_wait(&world.server, &world.server.message_count, 2, WAIT_MS));
    TokenizeRequest request = STAGECOACH__V1__TOKENIZE_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    struct error error = {0};
    assert_int_equal(
        rpc_call_wait(second, INFERENCE, "Tokenize", &request.base, NULL, &response, &error),
        RPC_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(error.text, "too many calls"));
    rpc_call_cancel(calls[0]);
    assert_true(seen_wait(&world.server, &world.server.closed_count, 1, WAIT_MS));
    // The call is forgotten just after its handler has been told.
    enum rpc_code code = RPC_RESOURCE_EXHAUSTED;
    for (uint32_t i = 0; i < 100 && code == RPC_RESOURCE_EXHAUSTED; i++) {
        code = rpc_call_wait(second, INFERENCE, "Tokenize", &request.base, NULL, &response, &error);
    }
    assert_int_equal(code, RPC_OK);
    protobuf_c_message_free_unpacked(response, NULL);
    rpc_call_cancel(calls[1]);
    assert_true(seen_wait(&seen, &seen.closed_count, 2, WAIT_MS));
    rpc_call_release(calls[0]);
    rpc_call_release(calls[1]);
    rpc_channel_close(second);
    world_close(&world);
    seen_fini(&seen);
}

static void call_beyond_the_clients_limit_does_not_begin(void **state) {
    (void)state;
    const struct rpc_config server_config = {0}, client_config = {.call_count_max = 1};
    struct world world;
    world_open_with(&world, &server_config, &client_config);
    struct seen seen;
    seen_init(&seen);
    struct rpc_call *call = start_generate(&world, &seen, "hang", 0, 0);
    struct error error = {0};
    assert_int_equal(tokenize(&world, "", 0, NULL, &error), RPC_RESOURCE_EXHAUSTED);
    rpc_call_cancel(call);
    assert_true(seen_wait(&seen, &seen.closed_count, 1, WAIT_MS));
    rpc_call_release(call);
    world_close(&world);
    seen_fini(&seen);
}

// -- ends ----------------------------------------------------------------------------------------

static void deadline_ends_the_call_on_both_sides(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct error error = {0};
    uint64_t start_ms = now_ms();
    assert_int_equal(tokenize(&world, "hang", 200, NULL, &error), RPC_DEADLINE_EXCEEDED);
    uint64_t spent_ms = now_ms() - start_ms;
    assert_in_range(spent_ms, 190, 5000);
    assert_true(seen_wait(&world.server, &world.server.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&world.server), RPC_DEADLINE_EXCEEDED);
    world_close(&world);
}

static void cancel_by_the_client_is_seen_by_the_server(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct seen seen;
    seen_init(&seen);
    struct rpc_call *call = start_generate(&world, &seen, "hang", 0, 60000);
    assert_true(seen_wait(&world.server, &world.server.message_count, 1, WAIT_MS));
    assert_int_equal(world.server.closed_count, 0);
    assert_false(rpc_call_is_over(call));
    rpc_call_cancel(call);
    assert_true(rpc_call_is_over(call));
    assert_true(seen_wait(&world.server, &world.server.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&world.server), RPC_CANCELLED);
    assert_true(seen_wait(&seen, &seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&seen), RPC_CANCELLED);
    rpc_call_release(call);
    world_close(&world);
    seen_fini(&seen);
}

static void cut_stream_is_not_taken_for_a_half_close(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    for (uint32_t i = 1; i <= 20; i++) {
        struct seen seen;
        seen_init(&seen);
        struct rpc_call *call = start_join(&world, &seen);
        assert_true(send_heartbeat(call, 1));
        assert_true(seen_wait(&seen, &seen.message_count, 1, WAIT_MS));
        rpc_call_cancel(call);
        assert_true(seen_wait(&world.server, &world.server.closed_count, i, WAIT_MS));
        assert_int_equal(seen_code(&world.server), RPC_CANCELLED);
        assert_true(seen_wait(&seen, &seen.closed_count, 1, WAIT_MS));
        rpc_call_release(call);
        seen_fini(&seen);
    }
    assert_int_equal(world.server.half_close_count, 0);
    world_close(&world);
}

static void call_cancelled_before_its_request_closes_once(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct seen seen;
    seen_init(&seen);
    const struct rpc_handler handler = {.message = client_generate_message,
                                        .closed = client_closed};
    struct rpc_call *call;
    assert_int_equal(
        rpc_call_begin(world.channel, INFERENCE, "Generate", &handler, &seen, NULL, &call),
        STATUS_OK);
    rpc_call_cancel(call);
    rpc_call_cancel(call);
    assert_true(seen_wait(&seen, &seen.closed_count, 1, WAIT_MS));
    rpc_call_cancel(call);
    rpc_call_send_end(call);
    GenerateRequest request = STAGECOACH__V1__GENERATE_REQUEST__INIT;
    assert_false(rpc_call_send(call, &request.base));
    rpc_call_release(call);
    world_close(&world);
    assert_int_equal(seen.closed_count, 1);
    seen_fini(&seen);
}

static void unreachable_server_is_unavailable_at_once(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    rpc_close(world.server_rpc, 0);
    struct error error = {0};
    uint64_t start_ms = now_ms();
    assert_int_equal(tokenize(&world, "", 10000, NULL, &error), RPC_UNAVAILABLE);
    assert_true(now_ms() - start_ms < 5000);
    assert_true(error.text[0] != '\0');
    world.server_rpc = NULL;
    world_close(&world);
}

static void closing_a_server_cancels_its_calls(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct seen seen, join;
    seen_init(&seen);
    seen_init(&join);
    struct rpc_call *call = start_generate(&world, &seen, "hang", 0, 0);
    struct rpc_call *bidi = start_join(&world, &join);
    assert_true(send_heartbeat(bidi, 1));
    assert_true(seen_wait(&join, &join.message_count, 1, WAIT_MS));
    assert_true(seen_wait(&world.server, &world.server.message_count, 1, WAIT_MS));
    uint64_t start_ms = now_ms();
    rpc_close(world.server_rpc, 50);
    assert_in_range(now_ms() - start_ms, 40, 5000);
    world.server_rpc = NULL;
    assert_int_equal(world.server.closed_count, 2);
    assert_int_equal(seen_code(&world.server), RPC_CANCELLED);
    assert_true(seen_wait(&seen, &seen.closed_count, 1, WAIT_MS));
    assert_true(seen_wait(&join, &join.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&seen), RPC_UNAVAILABLE);
    assert_int_equal(seen_code(&join), RPC_UNAVAILABLE);
    rpc_call_release(call);
    rpc_call_release(bidi);
    world_close(&world);
    seen_fini(&seen);
    seen_fini(&join);
}

static void *end_join(void *context) {
    usleep(100000);
    rpc_call_send_end(context);
    return NULL;
}

static void closing_with_grace_lets_calls_end(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct seen seen;
    seen_init(&seen);
    struct rpc_call *call = start_join(&world, &seen);
    assert_true(send_heartbeat(call, 1));
    assert_true(seen_wait(&seen, &seen.message_count, 1, WAIT_MS));
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, end_join, call), 0);
    uint64_t start_ms = now_ms();
    rpc_close(world.server_rpc, 15000);
    assert_true(now_ms() - start_ms < 10000);
    world.server_rpc = NULL;
    pthread_join(thread, NULL);
    assert_int_equal(seen_code(&world.server), RPC_OK);
    assert_true(seen_wait(&seen, &seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&seen), RPC_OK);
    rpc_call_release(call);
    world_close(&world);
    seen_fini(&seen);
}

static void closing_a_client_cancels_its_calls(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct seen seen;
    seen_init(&seen);
    struct rpc_call *call = start_generate(&world, &seen, "hang", 0, 0);
    assert_true(seen_wait(&world.server, &world.server.message_count, 1, WAIT_MS));
    rpc_close(world.client_rpc, 0);
    world.client_rpc = NULL;
    assert_int_equal(seen.closed_count, 1);
    assert_int_equal(seen_code(&seen), RPC_CANCELLED);
    // What is still held is over, and harmless.
    assert_true(rpc_call_is_over(call));
    rpc_call_cancel(call);
    rpc_call_release(call);
    assert_true(seen_wait(&world.server, &world.server.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&world.server), RPC_CANCELLED);
    world_close(&world);
    seen_fini(&seen);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_request_is_refused_before_its_handler),
        cmocka_unit_test(bad_message_in_a_stream_ends_only_that_call),
        cmocka_unit_test(bad_response_is_internal),
        cmocka_unit_test(message_over_the_limit_is_refused_on_both_sides),
        cmocka_unit_test(call_beyond_the_servers_limit_is_answered_exhausted),
        cmocka_unit_test(call_beyond_the_clients_limit_does_not_begin),
        cmocka_unit_test(deadline_ends_the_call_on_both_sides),
        cmocka_unit_test(cancel_by_the_client_is_seen_by_the_server),
        cmocka_unit_test(cut_stream_is_not_taken_for_a_half_close),
        cmocka_unit_test(call_cancelled_before_its_request_closes_once),
        cmocka_unit_test(unreachable_server_is_unavailable_at_once),
        cmocka_unit_test(closing_a_server_cancels_its_calls),
        cmocka_unit_test(closing_with_grace_lets_calls_end),
        cmocka_unit_test(closing_a_client_cancels_its_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
