// grpc.health.v1 and server reflection, over loopback.
#include "rpc_world.h"

#include "base/limits.h"
#include "grpc/health/v1/health.pb-c.h"
#include "grpc/reflection/v1/reflection.pb-c.h"
#include "grpc/reflection/v1alpha/reflection.pb-c.h"
#include "transport/rpc_health.h"
#include "transport/rpc_reflection.h"

#define HEALTH (&grpc__health__v1__health__descriptor)
#define REFLECTION (&grpc__reflection__v1__server_reflection__descriptor)
#define REFLECTION_ALPHA (&grpc__reflection__v1alpha__server_reflection__descriptor)
#define STATUS(name) GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__##name

typedef Grpc__Health__V1__HealthCheckRequest CheckRequest;
typedef Grpc__Health__V1__HealthCheckResponse CheckResponse;
typedef Grpc__Reflection__V1__ServerReflectionRequest Question;
typedef Grpc__Reflection__V1__ServerReflectionResponse Answer;

enum { STATUS_COUNT_MAX = 1000 };

// What a stream got: statuses of a Watch, or answers of a reflection stream.
struct stream {
    struct seen seen;
    atomic_int statuses[STATUS_COUNT_MAX];
    ProtobufCMessage *answer; // the last, of v1; guarded by seen.mutex
};

struct health_world {
    struct rpc_health *health;
    struct rpc *server, *client;
    struct rpc_channel *channel;
};

static void open_world(struct health_world *w, uint32_t send_count_max) {
    const struct rpc_config server = {.send_count_max = send_count_max}, client = {0};
    struct error error = {0};
    uint16_t port;
    *w = (struct health_world){0};
    assert_int_equal(rpc_open(&server, &w->server), STATUS_OK);
    assert_int_equal(rpc_health_open(&w->health), STATUS_OK);
    assert_int_equal(rpc_health_add(w->health, w->server, &error), STATUS_OK);
    assert_int_equal(rpc_reflection_add(w->server, &error), STATUS_OK);
    assert_int_equal(rpc_serve(w->server, "127.0.0.1:0", &port, &error), STATUS_OK);
    assert_int_equal(rpc_open(&client, &w->client), STATUS_OK);
    char target[64];
    snprintf(target, sizeof(target), "127.0.0.1:%u", port);
    assert_int_equal(rpc_channel_open(w->client, target, &w->channel), STATUS_OK);
}

static void close_world(struct health_world *w) {
    rpc_channel_close(w->channel);
    rpc_close(w->client, 0);
    rpc_health_end_watches(w->health);
    rpc_close(w->server, 0);
    rpc_health_close(w->health);
}

static enum rpc_code check(struct health_world *w, const char *service, int *status_out,
                           struct error *error) {
    CheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    request.service = (char *)(uintptr_t)service;
    ProtobufCMessage *response = NULL;
    enum rpc_code code =
        rpc_call_wait(w->channel, HEALTH, "Check", &request.base,
                      &(struct rpc_call_options){.deadline_ms = WAIT_MS}, &response, error);
    if (code != RPC_OK) return code;
    *status_out = (int)((CheckResponse *)response)->status;
    protobuf_c_message_free_unpacked(response, NULL);
    return code;
}

// -- Check and List -------------------------------------------------------------------------------

static void check_tells_what_was_set_last(void **state) {
    (void)state;
    struct health_world w;
    open_world(&w, 0);
    struct error error = {0};
    int status = -1;
    rpc_health_set(w.health, "", RPC_HEALTH_SERVING);
    rpc_health_set(w.health, "a.Service", RPC_HEALTH_NOT_SERVING);
    assert_int_equal(check(&w, "", &status, &error), RPC_OK);
    assert_int_equal(status, STATUS(SERVING));
    assert_int_equal(check(&w, "a.Service", &status, &error), RPC_OK);
    assert_int_equal(status, STATUS(NOT_SERVING));
    rpc_health_set(w.health, "a.Service", RPC_HEALTH_SERVING);
    assert_int_equal(check(&w, "a.Service", &status, &error), RPC_OK);
    assert_int_equal(status, STATUS(SERVING));
    close_world(&w);
}

static void check_of_an_unknown_service_is_not_found(void **state) {
    (void)state;
    struct health_world w;
    open_world(&w, 0);
    struct error error = {0};
    int status;
    rpc_health_set(w.health, "a.Service", RPC_HEALTH_SERVING);
    assert_int_equal(check(&w, "a.Servic", &status, &error), RPC_NOT_FOUND);
    assert_string_equal(error.text, "service 'a.Servic' is not known here");
    assert_int_equal(check(&w, "", &status, &error), RPC_NOT_FOUND);
    char name[RPC_HEALTH_NAME_BYTES_MAX + 2] = {0};
    memset(name, 'x', RPC_HEALTH_NAME_BYTES_MAX + 1);
    assert_int_equal(check(&w, name, &status, &error), RPC_INVALID_ARGUMENT);
    assert_string_equal(error.text, "service has 257 bytes, the limit is 256");
    name[RPC_HEALTH_NAME_BYTES_MAX] = '\0';
    assert_int_equal(check(&w, name, &status, &error), RPC_NOT_FOUND);
    close_world(&w);
}

static void list_has_every_service(void **state) {
    (void)state;
    struct health_world w;
    open_world(&w, 0);
    rpc_health_set(w.health, "", RPC_HEALTH_SERVING);
    rpc_health_set(w.health, "a.Service", RPC_HEALTH_NOT_SERVING);
    Grpc__Health__V1__HealthListRequest request = GRPC__HEALTH__V1__HEALTH_LIST_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    assert_int_equal(rpc_call_wait(w.channel, HEALTH, "List", &request.base,
                                   &(struct rpc_call_options){.deadline_ms = WAIT_MS}, &response,
                                   NULL),
                     RPC_OK);
    const Grpc__Health__V1__HealthListResponse *list =
        (const Grpc__Health__V1__HealthListResponse *)response;
    assert_int_equal(list->n_statuses, 2);
    for (size_t i = 0; i < list->n_statuses; i++) {
        bool is_live = list->statuses[i]->key[0] == '\0';
        assert_string_equal(list->statuses[i]->key, is_live ? "" : "a.Service");
        assert_int_equal(list->statuses[i]->value->status,
                         is_live ? STATUS(SERVING) : STATUS(NOT_SERVING));
    }
    protobuf_c_message_free_unpacked(response, NULL);
    close_world(&w);
}

// -- Watch ----------------------------------------------------------------------------------------

static void watch_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)call;
    struct stream *stream = ctx;
    unsigned at = atomic_load(&stream->seen.message_count);
    must(at < STATUS_COUNT_MAX);
    atomic_store(&stream->statuses[at], (int)((const CheckResponse *)message)->status);
    seen_add(&stream->seen, &stream->seen.message_count);
}

static void stream_closed(struct rpc_call *call, void *ctx, enum rpc_code code,
                          const char *message) {
    (void)call;
    struct stream *stream = ctx;
    seen_close(&stream->seen, code, message);
}

static struct rpc_call *start_watch(struct health_world *w, struct stream *stream,
                                    const char *service) {
    const struct rpc_handler handler = {.message = watch_message, .closed = stream_closed};
    *stream = (struct stream){0};
    seen_init(&stream->seen);
    struct rpc_call *call;
    assert_int_equal(rpc_call_begin(w->channel, HEALTH, "Watch", &handler, stream,
                                    &(struct rpc_call_options){0}, &call),
                     STATUS_OK);
    CheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    request.service = (char *)(uintptr_t)service;
    assert_true(rpc_call_send(call, &request.base));
    return call;
}

static void end_stream(struct stream *stream, struct rpc_call *call) {
    rpc_call_cancel(call);
    assert_true(seen_wait(&stream->seen, &stream->seen.closed_count, 1, WAIT_MS));
    rpc_call_release(call);
    seen_fini(&stream->seen);
}

static void assert_told(struct stream *stream, unsigned index, int status) {
    assert_true(seen_wait(&stream->seen, &stream->seen.message_count, index + 1, WAIT_MS));
    assert_int_equal(atomic_load(&stream->statuses[index]), status);
}

static void watch_tells_at_once_and_then_every_change(void **state) {
    (void)state;
    struct health_world w;
    open_world(&w, 0);
    rpc_health_set(w.health, "a.Service", RPC_HEALTH_NOT_SERVING);
    rpc_health_set(w.health, "", RPC_HEALTH_SERVING);
    struct stream stream;
    struct rpc_call *call = start_watch(&w, &stream, "a.Service");
    assert_told(&stream, 0, STATUS(NOT_SERVING));
    for (unsigned i = 0; i < 50; i++) {
        rpc_health_set(w.health, "a.Service", RPC_HEALTH_SERVING);
        rpc_health_set(w.health, "a.Service", RPC_HEALTH_SERVING); // no change
        rpc_health_set(w.health, "", i % 2 ? RPC_HEALTH_SERVING : RPC_HEALTH_NOT_SERVING);
        rpc_health_set(w.health, "a.Service", RPC_HEALTH_NOT_SERVING);
    }
    assert_true(seen_wait(&stream.seen, &stream.seen.message_count, 101, WAIT_MS));
    for (unsigned i = 0; i < 101; i++)
        assert_told(&stream, i, i % 2 ? STATUS(SERVING) : STATUS(NOT_SERVING));
    usleep(50000);
    assert_int_equal(stream.seen.message_count, 101);
    end_stream(&stream, call);
    close_world(&w);
}

static void watch_of_an_unknown_service_waits_until_it_is_known(void **state) {
    (void)state;
    struct health_world w;
    open_world(&w, 0);
    struct stream stream;
    struct rpc_call *call = start_watch(&w, &stream, "later.Service");
    assert_told(&stream, 0, STATUS(SERVICE_UNKNOWN));
    rpc_health_set(w.health, "", RPC_HEALTH_SERVING);
    rpc_health_set(w.health, "later.Service", RPC_HEALTH_SERVING);
    assert_told(&stream, 1, STATUS(SERVING));
    assert_int_equal(stream.seen.closed_count, 0);
    end_stream(&stream, call);
    close_world(&w);
}

struct slow_stream {
    struct stream stream;
    atomic_bool *may_read;
};

static void slow_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    struct slow_stream *slow = ctx;
    for (int i = 0; i < WAIT_MS && !atomic_load(slow->may_read); i++)
        usleep(1000);
    watch_message(call, &slow->stream, message);
}

// With a queue of one message, what changes while nobody reads comes as what is so in the end.
static void watch_by_a_slow_reader_ends_with_what_is_so(void **state) {
    (void)state;
    struct health_world w;
    open_world(&w, 1);
    rpc_health_set(w.health, "", RPC_HEALTH_NOT_SERVING);
    atomic_bool may_read = false;
    static struct slow_stream slow;
    slow = (struct slow_stream){.may_read = &may_read};
    seen_init(&slow.stream.seen);
    const struct rpc_handler handler = {.message = slow_message, .closed = stream_closed};
    struct rpc_call *call;
    assert_int_equal(rpc_call_begin(w.channel, HEALTH, "Watch", &handler, &slow,
                                    &(struct rpc_call_options){0}, &call),
                     STATUS_OK);
    CheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    assert_true(rpc_call_send(call, &request.base));
    // The queue of one is full again and again while the server's thread sends.
    for (int i = 0; i < STATUS_COUNT_MAX / 4; i++) {
        rpc_health_set(w.health, "", RPC_HEALTH_SERVING);
        rpc_health_set(w.health, "", RPC_HEALTH_NOT_SERVING);
    }
    rpc_health_set(w.health, "", RPC_HEALTH_SERVING);
    atomic_store(&may_read, true);
    struct seen *seen = &slow.stream.seen;
    int last = -1;
    for (int i = 0; i < 200 && last != STATUS(SERVING); i++) {
        usleep(50000);
        unsigned count = atomic_load(&seen->message_count);
        last = count > 0 ? atomic_load(&slow.stream.statuses[count - 1]) : -1;
    }
    usleep(50000);
    unsigned count = atomic_load(&seen->message_count);
    assert_int_equal(atomic_load(&slow.stream.statuses[count - 1]), STATUS(SERVING));
    for (unsigned i = 1; i < count; i++) // told of changes only
        assert_int_not_equal(slow.stream.statuses[i], slow.stream.statuses[i - 1]);
    end_stream(&slow.stream, call);
    close_world(&w);
}

static void ended_watches_are_told_that_the_server_stops(void **state) {
    (void)state;
    struct health_world w;
    open_world(&w, 0);
    rpc_health_set(w.health, "", RPC_HEALTH_SERVING);
    struct stream stream, late;
    struct rpc_call *call = start_watch(&w, &stream, "");
    assert_told(&stream, 0, STATUS(SERVING));
    rpc_health_set(w.health, "", RPC_HEALTH_NOT_SERVING);
    rpc_health_end_watches(w.health);
    assert_true(seen_wait(&stream.seen, &stream.seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&stream.seen), RPC_UNAVAILABLE);
    assert_told(&stream, 1, STATUS(NOT_SERVING)); // before the end
    struct rpc_call *late_call = start_watch(&w, &late, "");
    assert_true(seen_wait(&late.seen, &late.seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&late.seen), RPC_UNAVAILABLE);
    int status;
    assert_int_equal(check(&w, "", &status, NULL), RPC_OK); // as ever
    end_stream(&late, late_call);
    end_stream(&stream, call);
    close_world(&w);
}

static void watches_have_a_limit(void **state) {
    (void)state;
    struct health_world w;
    open_world(&w, 0);
    rpc_health_set(w.health, "", RPC_HEALTH_SERVING);
    struct stream *streams = calloc(RPC_HEALTH_WATCH_COUNT_MAX + 1, sizeof(*streams));
    struct rpc_call **calls = calloc(RPC_HEALTH_WATCH_COUNT_MAX + 1, sizeof(struct rpc_call *));
    assert_true(streams != NULL && calls != NULL);
    for (int i = 0; i < RPC_HEALTH_WATCH_COUNT_MAX; i++)
        calls[i] = start_watch(&w, &streams[i], "");
    for (int i = 0; i < RPC_HEALTH_WATCH_COUNT_MAX; i++)
        assert_told(&streams[i], 0, STATUS(SERVING));
    struct stream *extra = &streams[RPC_HEALTH_WATCH_COUNT_MAX];
    calls[RPC_HEALTH_WATCH_COUNT_MAX] = start_watch(&w, extra, "");
    assert_true(seen_wait(&extra->seen, &extra->seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&extra->seen), RPC_RESOURCE_EXHAUSTED);
    rpc_health_set(w.health, "", RPC_HEALTH_NOT_SERVING);
    for (int i = 0; i < RPC_HEALTH_WATCH_COUNT_MAX; i++)
        assert_told(&streams[i], 1, STATUS(NOT_SERVING));
    for (int i = 0; i <= RPC_HEALTH_WATCH_COUNT_MAX; i++)
        end_stream(&streams[i], calls[i]);
    // Those that are gone leave room; the server may learn of it a little later.
    enum rpc_code code = RPC_RESOURCE_EXHAUSTED;
    for (int i = 0; i < 100 && code != RPC_OK; i++) {
        struct stream again;
        struct rpc_call *call = start_watch(&w, &again, "");
        while (again.seen.message_count == 0 && again.seen.closed_count == 0)
            usleep(1000);
        code = again.seen.message_count > 0 ? RPC_OK : seen_code(&again.seen);
        end_stream(&again, call);
    }
    assert_int_equal(code, RPC_OK);
    free(calls);
    free(streams);
    close_world(&w);
}

// -- reflection -----------------------------------------------------------------------------------

static void reflection_message(struct rpc_call *call, void *ctx, const ProtobufCMessage *message) {
    (void)call;
    struct stream *stream = ctx;
    uint8_t bytes[1 << 16];
    size_t size_bytes = protobuf_c_message_get_packed_size(message);
    must(size_bytes <= sizeof(bytes));
    protobuf_c_message_pack(message, bytes);
    // Both versions are the same bytes.
    ProtobufCMessage *answer = protobuf_c_message_unpack(
        &grpc__reflection__v1__server_reflection_response__descriptor, NULL, size_bytes, bytes);
    must(answer != NULL);
    pthread_mutex_lock(&stream->seen.mutex);
    protobuf_c_message_free_unpacked(stream->answer, NULL);
    stream->answer = answer;
    pthread_mutex_unlock(&stream->seen.mutex);
    seen_add(&stream->seen, &stream->seen.message_count);
}

static struct rpc_call *start_reflection(struct health_world *w, struct stream *stream,
                                         const ProtobufCServiceDescriptor *service) {
    const struct rpc_handler handler = {.message = reflection_message, .closed = stream_closed};
    *stream = (struct stream){0};
    seen_init(&stream->seen);
    struct rpc_call *call;
    assert_int_equal(rpc_call_begin(w->channel, service, "ServerReflectionInfo", &handler, stream,
                                    &(struct rpc_call_options){0}, &call),
                     STATUS_OK);
    return call;
}

static void send_question(struct rpc_call *call, const Question *question, bool is_alpha) {
    if (!is_alpha) {
        assert_true(rpc_call_send(call, &question->base));
        return;
    }
    uint8_t bytes[4096];
    size_t size_bytes = protobuf_c_message_pack(&question->base, bytes);
    ProtobufCMessage *alpha = protobuf_c_message_unpack(
        &grpc__reflection__v1alpha__server_reflection_request__descriptor, NULL, size_bytes, bytes);
    assert_true(rpc_call_send(call, alpha));
    protobuf_c_message_free_unpacked(alpha, NULL);
}

static const Answer *ask(struct stream *stream, struct rpc_call *call, const Question *question,
                         bool is_alpha) {
    unsigned before = atomic_load(&stream->seen.message_count);
    send_question(call, question, is_alpha);
    assert_true(seen_wait(&stream->seen, &stream->seen.message_count, before + 1, WAIT_MS));
    pthread_mutex_lock(&stream->seen.mutex);
    const Answer *answer = (const Answer *)stream->answer;
    pthread_mutex_unlock(&stream->seen.mutex);
    assert_non_null(answer->original_request);
    assert_int_equal(answer->original_request->message_request_case,
                     question->message_request_case);
    assert_string_equal(answer->valid_host, question->host);
    return answer;
}

static void end_reflection(struct stream *stream, struct rpc_call *call) {
    rpc_call_send_end(call);
    assert_true(seen_wait(&stream->seen, &stream->seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&stream->seen), RPC_OK);
    protobuf_c_message_free_unpacked(stream->answer, NULL);
    rpc_call_release(call);
    seen_fini(&stream->seen);
}

#define ASKS(name) GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##name
#define ANSWERS(name) GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##name

static void assert_refused(const Answer *answer, enum rpc_code code, const char *text) {
    assert_int_equal(answer->message_response_case, ANSWERS(ERROR_RESPONSE));
    assert_int_equal(answer->error_response->error_code, code);
    assert_string_equal(answer->error_response->error_message, text);
}

static void question_the_server(struct health_world *w, bool is_alpha) {
    struct stream stream;
    struct rpc_call *call = start_reflection(w, &stream, is_alpha ? REFLECTION_ALPHA : REFLECTION);
    Question q = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
    q.host = (char *)(uintptr_t) "here";
    q.message_request_case = ASKS(LIST_SERVICES);
    q.list_services = (char *)(uintptr_t) "*";
    const Answer *answer = ask(&stream, call, &q, is_alpha);
    assert_int_equal(answer->message_response_case, ANSWERS(LIST_SERVICES_RESPONSE));
    assert_int_equal(answer->list_services_response->n_service, 3);
    assert_string_equal(answer->list_services_response->service[0]->name, HEALTH->name);
    assert_string_equal(answer->list_services_response->service[1]->name, REFLECTION->name);
    assert_string_equal(answer->list_services_response->service[2]->name, REFLECTION_ALPHA->name);

    q.message_request_case = ASKS(FILE_CONTAINING_SYMBOL);
    q.file_containing_symbol = (char *)(uintptr_t) "grpc.health.v1.Health.Check";
    answer = ask(&stream, call, &q, is_alpha);
    assert_int_equal(answer->message_response_case, ANSWERS(FILE_DESCRIPTOR_RESPONSE));
    assert_int_equal(answer->file_descriptor_response->n_file_descriptor_proto, 1);
    assert_true(answer->file_descriptor_response->file_descriptor_proto[0].len > 100);
    q.file_containing_symbol = (char *)(uintptr_t) "grpc.health.v1.Wealth";
    assert_refused(ask(&stream, call, &q, is_alpha), RPC_NOT_FOUND,
                   "nothing here is called 'grpc.health.v1.Wealth'");

    q.message_request_case = ASKS(FILE_BY_FILENAME);
    q.file_by_filename = (char *)(uintptr_t) "grpc/health/v1/health.proto";
    answer = ask(&stream, call, &q, is_alpha);
    assert_int_equal(answer->message_response_case, ANSWERS(FILE_DESCRIPTOR_RESPONSE));
    q.file_by_filename = (char *)(uintptr_t) "health.proto";
    assert_refused(ask(&stream, call, &q, is_alpha), RPC_NOT_FOUND,
                   "there is no file 'health.proto'");

    Grpc__Reflection__V1__ExtensionRequest extension =
        GRPC__REFLECTION__V1__EXTENSION_REQUEST__INIT;
    extension.containing_type = (char *)(uintptr_t) "grpc.health.v1.HealthListRequest";
    extension.extension_number = 7;
    q.message_request_case = ASKS(FILE_CONTAINING_EXTENSION);
    q.file_containing_extension = &extension;
    assert_refused(ask(&stream, call, &q, is_alpha), RPC_NOT_FOUND,
                   "there is no extension 7 of 'grpc.health.v1.HealthListRequest'");
    extension.containing_type = (char *)(uintptr_t) "grpc.health.v1.Health"; // not a message
    assert_refused(ask(&stream, call, &q, is_alpha), RPC_NOT_FOUND,
                   "there is no message 'grpc.health.v1.Health'");

    q.message_request_case = ASKS(ALL_EXTENSION_NUMBERS_OF_TYPE);
    q.all_extension_numbers_of_type = (char *)(uintptr_t) "grpc.health.v1.HealthListRequest";
    answer = ask(&stream, call, &q, is_alpha);
    assert_int_equal(answer->message_response_case, ANSWERS(ALL_EXTENSION_NUMBERS_RESPONSE));
    assert_int_equal(answer->all_extension_numbers_response->n_extension_number, 0);
    assert_string_equal(answer->all_extension_numbers_response->base_type_name,
                        "grpc.health.v1.HealthListRequest");
    q.all_extension_numbers_of_type = (char *)(uintptr_t) "none.Such";
    assert_refused(ask(&stream, call, &q, is_alpha), RPC_NOT_FOUND,
                   "there is no message 'none.Such'");

    q.message_request_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST__NOT_SET;
    assert_refused(ask(&stream, call, &q, is_alpha), RPC_INVALID_ARGUMENT,
                   "nothing is asked in 'message_request'");
    end_reflection(&stream, call);
}

static void reflection_answers_every_question_in_both_versions(void **state) {
    (void)state;
    struct health_world w;
    open_world(&w, 0);
    question_the_server(&w, false);
    question_the_server(&w, true);
    close_world(&w);
}

static void reflection_refuses_long_names_and_sends_back_nothing_unknown(void **state) {
    (void)state;
    struct health_world w;
    open_world(&w, 0);
    struct stream stream;
    struct rpc_call *call = start_reflection(&w, &stream, REFLECTION);
    Question q = GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__INIT;
    q.message_request_case = ASKS(LIST_SERVICES);
    q.list_services = (char *)(uintptr_t) "";
    ProtobufCMessageUnknownField unknown = {
        .tag = 900, .wire_type = PROTOBUF_C_WIRE_TYPE_VARINT, .len = 1, .data = (uint8_t[]){1}};
    q.base.n_unknown_fields = 1;
    q.base.unknown_fields = &unknown;
    const Answer *answer = ask(&stream, call, &q, false);
    assert_int_equal(answer->original_request->base.n_unknown_fields, 0);
    q.base.n_unknown_fields = 0;
    char name[RPC_REFLECTION_NAME_BYTES_MAX + 2] = {0};
    memset(name, 'x', RPC_REFLECTION_NAME_BYTES_MAX);
    q.host = name;
    (void)ask(&stream, call, &q, false);
    name[RPC_REFLECTION_NAME_BYTES_MAX] = 'x';
    assert_true(rpc_call_send(call, &q.base));
    assert_true(seen_wait(&stream.seen, &stream.seen.closed_count, 1, WAIT_MS));
    assert_int_equal(seen_code(&stream.seen), RPC_INVALID_ARGUMENT);
    seen_text_is(&stream.seen, "host has 1025 bytes, the limit is 1024");
    protobuf_c_message_free_unpacked(stream.answer, NULL);
    rpc_call_release(call);
    seen_fini(&stream.seen);
    close_world(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_tells_what_was_set_last),
        cmocka_unit_test(check_of_an_unknown_service_is_not_found),
        cmocka_unit_test(list_has_every_service),
        cmocka_unit_test(watch_tells_at_once_and_then_every_change),
        cmocka_unit_test(watch_of_an_unknown_service_waits_until_it_is_known),
        cmocka_unit_test(watch_by_a_slow_reader_ends_with_what_is_so),
        cmocka_unit_test(ended_watches_are_told_that_the_server_stops),
        cmocka_unit_test(watches_have_a_limit),
        cmocka_unit_test(reflection_answers_every_question_in_both_versions),
        cmocka_unit_test(reflection_refuses_long_names_and_sends_back_nothing_unknown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
