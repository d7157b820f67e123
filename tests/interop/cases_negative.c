#include "cases.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "talk.h"
#include "testing.pb-c.h"

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static void expect_answer(struct case_context *context) {
    uint32_t size_bytes;
    enum rpc_code code = case_large_unary(context, &size_bytes, NULL);
    (void)case_expect(context, code == RPC_OK, "the call ended with %s", rpc_code_name(code));
    (void)case_expect(context, size_bytes == CASE_NEGATIVE_ANSWER_BYTES,
                      "the answer has %u bytes in place of %d", size_bytes,
                      CASE_NEGATIVE_ANSWER_BYTES);
}

static void expect_failure(struct case_context *context) {
    uint32_t size_bytes;
    enum rpc_code code = case_large_unary(context, &size_bytes, NULL);
    (void)case_expect(context, code != RPC_OK, "the call ended well");
}

// The server sends GOAWAY after the first call: the second goes on another connection.
static void goaway(struct case_context *context) {
    expect_answer(context);
    expect_answer(context);
}

// The first call lets the client learn of the limit; then ten at once, one at a time.
static void max_streams(struct case_context *context) {
    enum { TALK_COUNT = 10 };
    expect_answer(context);
    struct talk talks[TALK_COUNT];
    Grpc__Testing__SimpleRequest request = GRPC__TESTING__SIMPLE_REQUEST__INIT;
    request.response_size = CASE_ANSWER_BYTES;
    for (size_t i = 0; i < TALK_COUNT; i++) {
        talk_begin(&talks[i], context->channel, &grpc__testing__test_service__descriptor,
                   "UnaryCall", NULL);
        (void)case_expect(context, talk_send(&talks[i], &request.base), "request %zu is refused",
                          i);
    }
    for (size_t i = 0; i < TALK_COUNT; i++) {
        enum rpc_code code = talk_end(&talks[i]);
        (void)case_expect(context, code == RPC_OK, "call %zu ended with %s", i,
                          rpc_code_name(code));
        (void)case_expect(context,
                          talks[i].count == 1 && talks[i].sizes[0] == CASE_NEGATIVE_ANSWER_BYTES,
                          "call %zu has a wrong answer", i);
        talk_fini(&talks[i]);
    }
}

// Prints how a large unary call ends, whatever that is.
static void outcome(struct case_context *context) {
    uint32_t size_bytes;
    char text[CASE_TEXT_BYTES_MAX + 1];
    enum rpc_code code = case_large_unary(context, &size_bytes, text);
    (void)printf("%s: %s\n", rpc_code_name(code), text);
}

const struct interop_case negative_cases[] = {
    {"outcome", outcome},
    {"goaway", goaway},
    {"rst_after_header", expect_failure},
    {"rst_during_data", expect_failure},
    {"rst_after_data", expect_failure},
    {"ping", expect_answer},
    {"max_streams", max_streams},
};
const size_t negative_case_count = COUNT_OF(negative_cases);
