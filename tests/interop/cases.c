#include "cases.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "talk.h"
#include "testing.pb-c.h"

#define TEST_SERVICE (&grpc__testing__test_service__descriptor)
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

typedef Grpc__Testing__SimpleRequest SimpleRequest;
typedef Grpc__Testing__StreamingInputCallRequest InputRequest;
typedef Grpc__Testing__StreamingOutputCallRequest OutputRequest;

static uint8_t zeros[CASE_REQUEST_BYTES];

bool case_expect(struct case_context *context, bool is_met, const char *format, ...) {
    if (is_met) return true;
    context->has_failed = true;
    va_list arguments;
    va_start(arguments, format);
    (void)vfprintf(stderr, format, arguments);
    va_end(arguments);
    (void)fputc('\n', stderr);
    return false;
}

static void expect_code(struct case_context *context, const struct talk *talk,
                        enum rpc_code wanted) {
    (void)case_expect(context, talk->code == wanted, "the call ended with %s (%s), not with %s",
                      rpc_code_name(talk->code), talk->text, rpc_code_name(wanted));
}

// -- requests ------------------------------------------------------------------------------------

static Grpc__Testing__Payload payload_of(size_t size_bytes) {
    CHECK(size_bytes <= sizeof(zeros));
    Grpc__Testing__Payload payload = GRPC__TESTING__PAYLOAD__INIT;
    payload.body = (ProtobufCBinaryData){.len = size_bytes, .data = zeros};
    return payload;
}

static bool send_output_request(struct talk *talk, size_t payload_bytes, const int32_t *sizes,
                                size_t size_count) {
    enum { SIZE_COUNT_MAX = 4 };
    Grpc__Testing__ResponseParameters parameters[SIZE_COUNT_MAX];
    Grpc__Testing__ResponseParameters *pointers[SIZE_COUNT_MAX];
    CHECK(size_count <= SIZE_COUNT_MAX);
    for (size_t i = 0; i < size_count; i++) {
        parameters[i] = (Grpc__Testing__ResponseParameters)GRPC__TESTING__RESPONSE_PARAMETERS__INIT;
        parameters[i].size = sizes[i];
        pointers[i] = &parameters[i];
    }
    OutputRequest request = GRPC__TESTING__STREAMING_OUTPUT_CALL_REQUEST__INIT;
    Grpc__Testing__Payload payload = payload_of(payload_bytes);
    request.payload = payload_bytes == 0 ? NULL : &payload;
    request.response_parameters = pointers;
    request.n_response_parameters = size_count;
    return talk_send(talk, &request.base);
}

static void begin_large_unary(struct case_context *context, struct talk *talk,
                              const struct rpc_call_options *options) {
    talk_begin(talk, context->channel, TEST_SERVICE, "UnaryCall", options);
    SimpleRequest request = GRPC__TESTING__SIMPLE_REQUEST__INIT;
    Grpc__Testing__Payload payload = payload_of(CASE_REQUEST_BYTES);
    request.payload = &payload;
    request.response_size = CASE_ANSWER_BYTES;
    (void)case_expect(context, talk_send(talk, &request.base), "the request could not be sent");
}

enum rpc_code case_large_unary(struct case_context *context, uint32_t *size_bytes_out,
                               char *text_out) {
    struct talk talk;
    begin_large_unary(context, &talk, NULL);
    enum rpc_code code = talk_end(&talk);
    *size_bytes_out = talk.count > 0 ? talk.sizes[0] : 0;
    if (text_out != NULL) (void)snprintf(text_out, CASE_TEXT_BYTES_MAX + 1, "%s", talk.text);
    talk_fini(&talk);
    return code;
}

// Waits for the end, which must be RPC_OK after answers of these sizes.
static void expect_answers(struct case_context *context, struct talk *talk, const int32_t *sizes,
                           size_t count) {
    (void)talk_end(talk);
    expect_code(context, talk, RPC_OK);
    (void)case_expect(context, talk->count == count, "%zu answers in place of %zu", talk->count,
                      count);
    for (size_t i = 0; i < count && i < talk->count; i++) {
        (void)case_expect(context, talk->sizes[i] == (uint32_t)sizes[i],
                          "answer %zu is %u in place of %d", i, talk->sizes[i], sizes[i]);
    }
}

// -- cases ---------------------------------------------------------------------------------------

static void empty_unary(struct case_context *context) {
    struct talk talk;
    talk_begin(&talk, context->channel, TEST_SERVICE, "EmptyCall", NULL);
    Grpc__Testing__Empty empty = GRPC__TESTING__EMPTY__INIT;
    (void)case_expect(context, talk_send(&talk, &empty.base), "the request could not be sent");
    expect_answers(context, &talk, (const int32_t[]){0}, 1);
    talk_fini(&talk);
}

static void large_unary(struct case_context *context) {
    uint32_t size_bytes;
    enum rpc_code code = case_large_unary(context, &size_bytes, NULL);
    (void)case_expect(context, code == RPC_OK, "the call ended with %s", rpc_code_name(code));
    (void)case_expect(context, size_bytes == CASE_ANSWER_BYTES, "the answer has %u bytes",
                      size_bytes);
}

static void client_streaming(struct case_context *context) {
    static const size_t sizes[] = {27182, 8, 1828, 45904};
    struct talk talk;
    talk_begin(&talk, context->channel, TEST_SERVICE, "StreamingInputCall", NULL);
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        InputRequest request = GRPC__TESTING__STREAMING_INPUT_CALL_REQUEST__INIT;
        Grpc__Testing__Payload payload = payload_of(sizes[i]);
        request.payload = &payload;
        (void)case_expect(context, talk_send(&talk, &request.base), "request %zu is refused", i);
    }
    rpc_call_send_end(talk.call);
    expect_answers(context, &talk, (const int32_t[]){74922}, 1);
    talk_fini(&talk);
}

static const int32_t answer_sizes[] = {31415, 9, 2653, 58979};

static void server_streaming(struct case_context *context) {
    struct talk talk;
    talk_begin(&talk, context->channel, TEST_SERVICE, "StreamingOutputCall", NULL);
    (void)case_expect(context, send_output_request(&talk, 0, answer_sizes, COUNT_OF(answer_sizes)),
                      "the request could not be sent");
    expect_answers(context, &talk, answer_sizes, COUNT_OF(answer_sizes));
    talk_fini(&talk);
}

static void ping_pong(struct case_context *context) {
    static const size_t request_sizes[] = {27182, 8, 1828, 45904};
    struct talk talk;
    talk_begin(&talk, context->channel, TEST_SERVICE, "FullDuplexCall", NULL);
    for (size_t i = 0; i < COUNT_OF(request_sizes); i++) {
        if (!case_expect(context,
                         send_output_request(&talk, request_sizes[i], &answer_sizes[i], 1) &&
                             talk_wait_answers(&talk, i + 1),
                         "answer %zu did not come", i)) {
            break;
        }
    }
    rpc_call_send_end(talk.call);
    expect_answers(context, &talk, answer_sizes, COUNT_OF(answer_sizes));
    talk_fini(&talk);
}

static void half_duplex(struct case_context *context) {
    struct talk talk;
    talk_begin(&talk, context->channel, TEST_SERVICE, "HalfDuplexCall", NULL);
    for (size_t i = 0; i < COUNT_OF(answer_sizes); i++) {
        (void)case_expect(context, send_output_request(&talk, 1, &answer_sizes[i], 1),
                          "request %zu is refused", i);
    }
    rpc_call_send_end(talk.call);
    expect_answers(context, &talk, answer_sizes, COUNT_OF(answer_sizes));
    talk_fini(&talk);
}

static void empty_stream(struct case_context *context) {
    struct talk talk;
    talk_begin(&talk, context->channel, TEST_SERVICE, "FullDuplexCall", NULL);
    rpc_call_send_end(talk.call);
    expect_answers(context, &talk, NULL, 0);
    talk_fini(&talk);
}

static void expect_echo(struct case_context *context, const struct talk *talk) {
    (void)case_expect(context, strcmp(talk->echo.text, "test_initial_metadata_value") == 0,
                      "the initial metadata is '%s'", talk->echo.text);
    (void)case_expect(
        context, talk->echo.byte_count == 3 && memcmp(talk->echo.bytes, "\xab\xab\xab", 3) == 0,
        "the trailing metadata has %zu bytes, or others", talk->echo.byte_count);
}

static void custom_metadata(struct case_context *context) {
    const struct rpc_metadata metadata[] = {
        {.key = "x-grpc-test-echo-initial", .value = "test_initial_metadata_value"},
        {.key = "x-grpc-test-echo-trailing-bin", .value = "\xab\xab\xab", .value_bytes = 3},
    };
    const struct rpc_call_options options = {.metadata = metadata,
                                             .metadata_count = COUNT_OF(metadata)};
    static const int32_t size = CASE_ANSWER_BYTES;
    struct talk talk;
    begin_large_unary(context, &talk, &options);
    expect_answers(context, &talk, &size, 1);
    expect_echo(context, &talk);
    talk_fini(&talk);

    talk_begin(&talk, context->channel, TEST_SERVICE, "FullDuplexCall", &options);
    (void)case_expect(context, send_output_request(&talk, CASE_REQUEST_BYTES, &size, 1),
                      "the request could not be sent");
    rpc_call_send_end(talk.call);
    expect_answers(context, &talk, &size, 1);
    expect_echo(context, &talk);
    talk_fini(&talk);
}

// The server is asked to end the call with UNKNOWN and `message`.
static void expect_status(struct case_context *context, const char *method, const char *message) {
    Grpc__Testing__EchoStatus status = GRPC__TESTING__ECHO_STATUS__INIT;
    status.code = RPC_UNKNOWN;
    status.message = (char *)message;
    SimpleRequest unary = GRPC__TESTING__SIMPLE_REQUEST__INIT;
    OutputRequest stream = GRPC__TESTING__STREAMING_OUTPUT_CALL_REQUEST__INIT;
    unary.response_status = stream.response_status = &status;
    struct talk talk;
    talk_begin(&talk, context->channel, TEST_SERVICE, method, NULL);
    bool is_unary = strcmp(method, "UnaryCall") == 0;
    (void)case_expect(context, talk_send(&talk, is_unary ? &unary.base : &stream.base),
                      "the request could not be sent");
    if (!is_unary) rpc_call_send_end(talk.call);
    (void)talk_end(&talk);
    expect_code(context, &talk, RPC_UNKNOWN);
    (void)case_expect(context, strcmp(talk.text, message) == 0, "the message is '%s'", talk.text);
    talk_fini(&talk);
}

static void status_code_and_message(struct case_context *context) {
    expect_status(context, "UnaryCall", "test status message");
    expect_status(context, "FullDuplexCall", "test status message");
}

static void special_status_message(struct case_context *context) {
    expect_status(context, "UnaryCall",
                  "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n");
}

static void expect_unimplemented(struct case_context *context,
                                 const ProtobufCServiceDescriptor *service) {
    struct talk talk;
    talk_begin(&talk, context->channel, service, "UnimplementedCall", NULL);
    Grpc__Testing__Empty empty = GRPC__TESTING__EMPTY__INIT;
    (void)talk_send(&talk, &empty.base);
    (void)talk_end(&talk);
    expect_code(context, &talk, RPC_UNIMPLEMENTED);
    talk_fini(&talk);
}

static void unimplemented_method(struct case_context *context) {
    expect_unimplemented(context, TEST_SERVICE);
}

static void unimplemented_service(struct case_context *context) {
    expect_unimplemented(context, &grpc__testing__unimplemented_service__descriptor);
}

static void cancel_after_begin(struct case_context *context) {
    struct talk talk;
    talk_begin(&talk, context->channel, TEST_SERVICE, "StreamingInputCall", NULL);
    rpc_call_cancel(talk.call);
    (void)talk_end(&talk);
    expect_code(context, &talk, RPC_CANCELLED);
    talk_fini(&talk);
}

static void cancel_after_first_response(struct case_context *context) {
    struct talk talk;
    talk_begin(&talk, context->channel, TEST_SERVICE, "FullDuplexCall", NULL);
    (void)case_expect(
        context, send_output_request(&talk, 27182, answer_sizes, 1) && talk_wait_answers(&talk, 1),
        "no answer came");
    rpc_call_cancel(talk.call);
    (void)talk_end(&talk);
    expect_code(context, &talk, RPC_CANCELLED);
    talk_fini(&talk);
}

static void timeout_on_sleeping_server(struct case_context *context) {
    const struct rpc_call_options options = {.deadline_ms = 1};
    struct talk talk;
    talk_begin(&talk, context->channel, TEST_SERVICE, "FullDuplexCall", &options);
    // The call may be over before: that is what the case is about.
    bool is_sent = send_output_request(&talk, 27182, NULL, 0);
    (void)is_sent;
    (void)talk_end(&talk);
    expect_code(context, &talk, RPC_DEADLINE_EXCEEDED);
    talk_fini(&talk);
}

static void concurrent_large_unary(struct case_context *context) {
    enum { TALK_COUNT = 1000 };
    static const int32_t size = CASE_ANSWER_BYTES;
    struct talk *talks = calloc(TALK_COUNT, sizeof(*talks));
    CHECK(talks != NULL);
    for (size_t i = 0; i < TALK_COUNT; i++) {
        begin_large_unary(context, &talks[i], NULL);
    }
    for (size_t i = 0; i < TALK_COUNT; i++) {
        expect_answers(context, &talks[i], &size, 1);
        talk_fini(&talks[i]);
    }
    free(talks);
}

// Streams that are all open at once, and then all answered.
static void concurrent_streams(struct case_context *context) {
    enum { TALK_COUNT = 1000 };
    struct talk *talks = calloc(TALK_COUNT, sizeof(*talks));
    CHECK(talks != NULL);
    for (int32_t round = 0; round < 2; round++) {
        for (int32_t i = 0; i < TALK_COUNT; i++) {
            if (round == 0)
                talk_begin(&talks[i], context->channel, TEST_SERVICE, "FullDuplexCall", NULL);
            const int32_t size = i + round;
            (void)case_expect(context, send_output_request(&talks[i], 8, &size, 1),
                              "stream %d does not take a request", i);
        }
        for (int32_t i = 0; i < TALK_COUNT; i++) {
            (void)case_expect(context, talk_wait_answers(&talks[i], (size_t)round + 1),
                              "stream %d was not answered", i);
        }
    }
    for (int32_t i = 0; i < TALK_COUNT; i++) {
        rpc_call_send_end(talks[i].call);
        expect_answers(context, &talks[i], (const int32_t[]){i, i + 1}, 2);
        talk_fini(&talks[i]);
    }
    free(talks);
}

const struct interop_case interop_cases[] = {
    {"empty_unary", empty_unary},
    {"large_unary", large_unary},
    {"client_streaming", client_streaming},
    {"server_streaming", server_streaming},
    {"ping_pong", ping_pong},
    {"half_duplex", half_duplex},
    {"empty_stream", empty_stream},
    {"custom_metadata", custom_metadata},
    {"status_code_and_message", status_code_and_message},
    {"special_status_message", special_status_message},
    {"unimplemented_method", unimplemented_method},
    {"unimplemented_service", unimplemented_service},
    {"cancel_after_begin", cancel_after_begin},
    {"cancel_after_first_response", cancel_after_first_response},
    {"timeout_on_sleeping_server", timeout_on_sleeping_server},
    {"concurrent_large_unary", concurrent_large_unary},
    {"concurrent_streams", concurrent_streams},
};
const size_t interop_case_count = COUNT_OF(interop_cases);
