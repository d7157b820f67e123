// Metadata both ways, for every kind of call.
#include "base/limits.h"
#include "rpc_world.h"

// What a client's callbacks read.
struct reader {
    struct seen seen;
    char first[64], initial[64], trailer[64]; // at the first message, and in closed
    uint32_t retry_ms;
};

static void keep(char *out, const char *value) {
    (void)snprintf(out, 64, "%s", value == NULL ? "(none)" : value);
}

static void read_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)message;
    struct reader *reader = ctx;
    if (reader->seen.message_count == 0) keep(reader->first, rpc_call_metadata(call, "x-initial"));
    seen_add(&reader->seen, &reader->seen.message_count);
}

static void read_closed(struct rpc_call *call, void *ctx, enum rpc_code code, const char *message) {
    struct reader *reader = ctx;
    keep(reader->initial, rpc_call_metadata(call, "x-initial"));
    keep(reader->trailer, rpc_call_trailer(call, "x-trailer"));
    reader->retry_ms = rpc_call_retry_ms(call);
    seen_close(&reader->seen, code, message);
}

static const struct rpc_handler reading = {.message = read_message, .closed = read_closed};

static struct rpc_call *begin(struct world *world, struct reader *reader,
                              const ProtobufCServiceDescriptor *service, const char *method,
                              const char *value) {
    *reader = (struct reader){0};
    seen_init(&reader->seen);
    const struct rpc_metadata metadata[] = {{.key = "x-other", .value = "another"},
                                            {.key = "x-echo", .value = value}};
    const struct rpc_call_options options = {.metadata = metadata, .metadata_count = 2};
    struct rpc_call *call;
    assert_int_equal(
        rpc_call_begin(world->channel, service, method, &reading, reader, &options, &call),
        STATUS_OK);
    return call;
}

static void finish(struct reader *reader, struct rpc_call *call, const char *value) {
    assert_true(seen_wait(&reader->seen, &reader->seen.closed_count, 1, WAIT_MS));
    rpc_call_release(call);
    assert_int_equal(seen_code(&reader->seen), RPC_OK);
    assert_string_equal(reader->first, value);
    assert_string_equal(reader->initial, value);
    assert_string_equal(reader->trailer, value);
    assert_int_equal(reader->retry_ms, RPC_RETRY_UNSAID);
    seen_fini(&reader->seen);
}

static void unary_call_carries_metadata_both_ways(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct reader reader;
    struct rpc_call *call = begin(&world, &reader, INFERENCE, "Tokenize", "one");
    TokenizeRequest request = STAGECOACH__V1__TOKENIZE_REQUEST__INIT;
    assert_true(rpc_call_send(call, &request.base));
    finish(&reader, call, "one");
    world_close(&world);
}

static void server_stream_carries_metadata_both_ways(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct reader reader;
    struct rpc_call *call = begin(&world, &reader, INFERENCE, "Generate", "many: = ~ values");
    Stagecoach__V1__Stop stop = STAGECOACH__V1__STOP__INIT;
    stop.max_tokens = 10;
    GenerateRequest request = STAGECOACH__V1__GENERATE_REQUEST__INIT;
    request.stop = &stop;
    assert_true(rpc_call_send(call, &request.base));
    finish(&reader, call, "many: = ~ values");
    assert_int_equal(reader.seen.message_count, 10);
    world_close(&world);
}

static void bidi_call_carries_metadata_both_ways(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct reader reader;
    struct rpc_call *call = begin(&world, &reader, CONTROL, "Join", "both");
    assert_true(send_heartbeat(call, 1));
    assert_true(send_heartbeat(call, 2));
    assert_true(seen_wait(&reader.seen, &reader.seen.message_count, 2, WAIT_MS));
    rpc_call_send_end(call);
    finish(&reader, call, "both");
    world_close(&world);
}

static void metadata_reaches_the_client_without_a_message(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct reader reader;
    struct rpc_call *call = begin(&world, &reader, CONTROL, "Join", "empty");
    rpc_call_send_end(call);
    assert_true(seen_wait(&reader.seen, &reader.seen.closed_count, 1, WAIT_MS));
    rpc_call_release(call);
    assert_string_equal(reader.first, "");
    assert_string_equal(reader.trailer, "empty");
    seen_fini(&reader.seen);
    world_close(&world);
}

// -- what a server sees and may send -------------------------------------------------------------

struct probe {
    char missing[64], binary[64], first[64], agent[64];
    uint8_t bytes[4];
    size_t bytes_size;
    bool text_is_no_binary;
    enum status bad_key, bad_value, too_many, late;
};

static void *probe_begin(struct rpc_call *call, void *service_ctx) {
    struct probe *probe = service_ctx;
    keep(probe->missing, rpc_call_metadata(call, "x-missing"));
    keep(probe->binary, rpc_call_metadata(call, "x-data-bin"));
    keep(probe->first, rpc_call_metadata(call, "x-twice"));
    keep(probe->agent, rpc_call_metadata(call, "user-agent"));
    const void *bytes = rpc_call_metadata_bytes(call, "x-data-bin", &probe->bytes_size);
    if (bytes != NULL && probe->bytes_size == sizeof(probe->bytes))
        memcpy(probe->bytes, bytes, sizeof(probe->bytes));
    size_t size_bytes;
    probe->text_is_no_binary = rpc_call_metadata_bytes(call, "x-twice", &size_bytes) == NULL;
    const struct rpc_metadata bad_key = {.key = "X-Upper", .value = "value"},
                              bad_value = {.key = "x-value", .value = "a\nb"};
    probe->bad_key = rpc_call_add_metadata(call, &bad_key, 1);
    probe->bad_value = rpc_call_add_trailers(call, &bad_value, 1);
    struct rpc_metadata many[RPC_METADATA_COUNT_MAX + 1];
    for (size_t i = 0; i < RPC_METADATA_COUNT_MAX + 1; i++) {
        many[i] = (struct rpc_metadata){.key = "x-many", .value = "value"};
    }
    probe->too_many = rpc_call_add_trailers(call, many, RPC_METADATA_COUNT_MAX + 1);
    return probe;
}

static void probe_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)message;
    struct probe *probe = ctx;
    rpc_call_refuse(call, RPC_UNAVAILABLE, "later", 1234);
    const struct rpc_metadata entry = {.key = "x-late", .value = "value"};
    probe->late = rpc_call_add_trailers(call, &entry, 1);
}

static void probe_closed(struct rpc_call *call, void *ctx, enum rpc_code code,
                         const char *message) {
    (void)call;
    (void)ctx;
    (void)code;
    (void)message;
}

// A world whose server is only the probe.
static void open_probe(struct world *world, struct probe *probe) {
    static const struct rpc_method methods[] = {
        {"Tokenize", {.begin = probe_begin, .message = probe_message, .closed = probe_closed}}};
    *world = (struct world){0};
    *probe = (struct probe){0};
    seen_init(&world->server);
    const struct rpc_config config = {0};
    struct error error = {0};
    assert_int_equal(rpc_open(&config, &world->server_rpc), STATUS_OK);
    assert_int_equal(
        rpc_add_service(world->server_rpc, INFERENCE, methods, 1, probe, RPC_ROLES_ANY, &error),
        STATUS_OK);
    assert_int_equal(rpc_serve(world->server_rpc, "127.0.0.1:0", &world->port, &error), STATUS_OK);
    char target[64];
    (void)snprintf(target, sizeof(target), "127.0.0.1:%u", world->port);
    world_dial(world, &config, target);
}

static void server_sees_the_first_value_of_a_key_and_refuses_bad_entries(void **state) {
    (void)state;
    struct world world;
    struct probe probe;
    open_probe(&world, &probe);
    const struct rpc_metadata metadata[] = {
        {.key = "x-twice", .value = "first"},
        {.key = "x-twice", .value = "second"},
        {.key = "x-data-bin", .value = "\0\n\xff", .value_bytes = 4}};
    uint32_t retry_ms = 0;
    const struct rpc_call_options options = {
        .metadata = metadata, .metadata_count = 3, .retry_ms_out = &retry_ms};
    TokenizeRequest request = STAGECOACH__V1__TOKENIZE_REQUEST__INIT;
    ProtobufCMessage *response;
    struct error error = {0};
    assert_int_equal(rpc_call_wait(world.channel, INFERENCE, "Tokenize", &request.base, &options,
                                   &response, &error),
                     RPC_UNAVAILABLE);
    assert_string_equal(error.text, "later");
    assert_int_equal(retry_ms, 1234);
    world_close(&world); // after this the probe has said all
    assert_string_equal(probe.missing, "(none)");
    assert_string_equal(probe.binary, "(none)");
    assert_int_equal(probe.bytes_size, 4);
    assert_memory_equal(probe.bytes, "\0\n\xff", 4);
    assert_true(probe.text_is_no_binary);
    assert_string_equal(probe.first, "first");
    assert_non_null(strstr(probe.agent, "grpc-c/"));
    assert_int_equal(probe.bad_key, STATUS_INVALID);
    assert_int_equal(probe.bad_value, STATUS_INVALID);
    assert_int_equal(probe.too_many, STATUS_EXHAUSTED);
    assert_int_equal(probe.late, STATUS_UNAVAILABLE);
}

static void client_refuses_to_send_bad_metadata(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct seen seen;
    seen_init(&seen);
    const struct rpc_metadata bad[] = {{.key = ":path", .value = "/x"},
                                       {.key = "", .value = "value"},
                                       {.key = "x-value", .value = "\xc3\xa9"}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        const struct rpc_call_options options = {.metadata = &bad[i], .metadata_count = 1};
        struct rpc_call *call;
        assert_int_equal(
            rpc_call_begin(world.channel, INFERENCE, "Tokenize", &reading, &seen, &options, &call),
            STATUS_INVALID);
    }
    assert_int_equal(tokenize(&world, "after", 0, NULL, NULL), RPC_OK);
    world_close(&world);
    seen_fini(&seen);
}

static void retry_is_unsaid_when_no_server_spoke(void **state) {
    (void)state;
    struct world world;
    world_open(&world);
    struct rpc_channel *nowhere;
    assert_int_equal(rpc_channel_open(world.client_rpc, "127.0.0.1:1", &nowhere), STATUS_OK);
    uint32_t retry_ms = 0;
    const struct rpc_call_options options = {.retry_ms_out = &retry_ms};
    TokenizeRequest request = STAGECOACH__V1__TOKENIZE_REQUEST__INIT;
    ProtobufCMessage *response;
    assert_int_equal(
        rpc_call_wait(nowhere, INFERENCE, "Tokenize", &request.base, &options, &response, NULL),
        RPC_UNAVAILABLE);
    assert_int_equal(retry_ms, RPC_RETRY_UNSAID);
    rpc_channel_close(nowhere);
    world_close(&world);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unary_call_carries_metadata_both_ways),
        cmocka_unit_test(server_stream_carries_metadata_both_ways),
        cmocka_unit_test(bidi_call_carries_metadata_both_ways),
        cmocka_unit_test(metadata_reaches_the_client_without_a_message),
        cmocka_unit_test(server_sees_the_first_value_of_a_key_and_refuses_bad_entries),
        cmocka_unit_test(client_refuses_to_send_bad_metadata),
        cmocka_unit_test(retry_is_unsaid_when_no_server_spoke),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
