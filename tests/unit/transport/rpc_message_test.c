// What a peer's bytes must be before a handler sees them, and the small tables around calls.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "proto/descriptors.h"
#include "stagecoach/v1/inference.pb-c.h"
#include "transport/rpc_address.h"
#include "transport/rpc_message.h"
#include "transport/rpc_methods.h"

static enum status unpack(const ProtobufCMessageDescriptor *type, const void *bytes, size_t size,
                          ProtobufCMessage **message_out, struct error *error) {
    // A copy of the exact size, so that a sanitizer sees each read outside it.
    uint8_t *copy = malloc(size == 0 ? 1 : size);
    assert_non_null(copy);
    memcpy(copy, bytes, size);
    enum status status = rpc_message_unpack(type, copy, size, message_out, error);
    free(copy);
    return status;
}

#define TEXT_OF_REQUEST(literal)                                                                   \
    &stagecoach__v1__tokenize_request__descriptor, literal, sizeof(literal) - 1
#define GENERATE_REQUEST(literal)                                                                  \
    &stagecoach__v1__generate_request__descriptor, literal, sizeof(literal) - 1

static void refused(const ProtobufCMessageDescriptor *type, const void *bytes, size_t size,
                    const char *sentence) {
    struct error error = {0};
    ProtobufCMessage *message = NULL;
    assert_int_equal(unpack(type, bytes, size, &message, &error), STATUS_INVALID);
    assert_string_equal(error.text, sentence);
    assert_null(message);
}

static void accepted(const char *text) {
    uint8_t bytes[64] = {0x0a, (uint8_t)strlen(text)};
    memcpy(bytes + 2, text, strlen(text));
    ProtobufCMessage *message = NULL;
    assert_int_equal(unpack(&stagecoach__v1__tokenize_request__descriptor, bytes, 2 + strlen(text),
                            &message, NULL),
                     STATUS_OK);
    assert_string_equal(((Stagecoach__V1__TokenizeRequest *)message)->text, text);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void message_with_valid_text_is_unpacked(void **state) {
    (void)state;
    accepted("");
    accepted("plain");
    accepted("\xc2\x80 \xdf\xbf \xe0\xa0\x80 \xed\x9f\xbf \xee\x80\x80");
    accepted("\xf0\x90\x80\x80 \xf4\x8f\xbf\xbf");
}

static void message_without_bytes_has_defaults(void **state) {
    (void)state;
    ProtobufCMessage *message = NULL;
    assert_int_equal(
        rpc_message_unpack(&stagecoach__v1__generate_request__descriptor, NULL, 0, &message, NULL),
        STATUS_OK);
    const Stagecoach__V1__GenerateRequest *request = (Stagecoach__V1__GenerateRequest *)message;
    assert_string_equal(request->request_id, "");
    assert_null(request->sampling);
    assert_int_equal(request->prompt_case, STAGECOACH__V1__GENERATE_REQUEST__PROMPT__NOT_SET);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void message_with_embedded_nul_is_refused(void **state) {
    (void)state;
    refused(TEXT_OF_REQUEST("\x0a\x03"
                            "a\0b"),
            "text: holds a NUL character");
    refused(TEXT_OF_REQUEST("\x0a\x01\0"), "text: holds a NUL character");
}

static void message_with_invalid_utf8_is_refused(void **state) {
    (void)state;
    static const char *const bad[] = {
        "\x80",         "\xc0\xaf",     "\xc1\xbf",         "\xc3",
        "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80",
        "\xf5\x80",     "\xe2\x82",     "\xe2\x28\xa1",     "\xff",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        uint8_t bytes[16] = {0x0a, (uint8_t)strlen(bad[i])};
        memcpy(bytes + 2, bad[i], strlen(bad[i]));
        refused(&stagecoach__v1__tokenize_request__descriptor, bytes, 2 + strlen(bad[i]),
                "text: not valid UTF-8");
    }
}

static void refusal_names_the_nested_field(void **state) {
    (void)state;
    // stop { strings: "ok" strings: "\xff" }
    refused(GENERATE_REQUEST("\x22\x07\x12\x02ok\x12\x01\xff"), "stop.strings: not valid UTF-8");
    // token_ids { ids: <a fixed32> }
    refused(GENERATE_REQUEST("\x12\x05\x0d\0\0\0\0"), "token_ids.ids: of a wrong type");
    // sampling { logit_bias { <cut> } }
    refused(GENERATE_REQUEST("\x1a\x03\x4a\x01\x08"),
            "sampling.logit_bias: not a protobuf message");
}

static void malformed_message_is_refused(void **state) {
    (void)state;
    refused(TEXT_OF_REQUEST("\x0a"), "message: not a protobuf message");
    refused(TEXT_OF_REQUEST("\x0a\x05"
                            "abc"),
            "message: not a protobuf message");
    refused(TEXT_OF_REQUEST("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
            "message: not a protobuf message");
    refused(TEXT_OF_REQUEST("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
            "message: not a protobuf message");
    refused(TEXT_OF_REQUEST("\x02\x00"), "message: not a protobuf message"); // field 0
    refused(TEXT_OF_REQUEST("\x0b\x0c"), "message: not a protobuf message"); // a group
    refused(TEXT_OF_REQUEST("\x08\x01"), "text: of a wrong type");
}

static void packed_and_unpacked_numbers_are_both_read(void **state) {
    (void)state;
    static const char *const forms[] = {"\x12\x04\x0a\x02\x05\x06", "\x12\x04\x08\x05\x08\x06"};
    for (size_t i = 0; i < 2; i++) {
        ProtobufCMessage *message = NULL;
        assert_int_equal(
            unpack(&stagecoach__v1__generate_request__descriptor, forms[i], 6, &message, NULL),
            STATUS_OK);
        const Stagecoach__V1__GenerateRequest *request = (Stagecoach__V1__GenerateRequest *)message;
        assert_int_equal(request->token_ids->n_ids, 2);
        assert_int_equal(request->token_ids->ids[1], 6);
        protobuf_c_message_free_unpacked(message, NULL);
    }
}

static void submessage_given_twice_is_refused(void **state) {
    (void)state;
    refused(GENERATE_REQUEST("\x22\x00\x22\x00"), "stop: given twice");
}

static void unknown_fields_are_allowed_up_to_the_limit(void **state) {
    (void)state;
    size_t size = 2 * (size_t)RPC_MESSAGE_FIELD_COUNT_MAX;
    uint8_t *bytes = malloc(size + 2);
    assert_non_null(bytes);
    for (size_t i = 0; i < size + 2; i += 2) {
        bytes[i] = 0x78; // field 15, varint
        bytes[i + 1] = 1;
    }
    const ProtobufCMessageDescriptor *type = &stagecoach__v1__tokenize_request__descriptor;
    ProtobufCMessage *message = NULL;
    assert_int_equal(rpc_message_unpack(type, bytes, size, &message, NULL), STATUS_OK);
    protobuf_c_message_free_unpacked(message, NULL);
    refused(type, bytes, size + 2, "message: too many fields");
    free(bytes);
}

// message Chain { Chain inner = 1; }
static const ProtobufCMessageDescriptor chain_descriptor;
static const ProtobufCFieldDescriptor chain_fields[] = {{
    .name = "inner",
    .id = 1,
    .label = PROTOBUF_C_LABEL_NONE,
    .type = PROTOBUF_C_TYPE_MESSAGE,
    .offset = sizeof(ProtobufCMessage),
    .descriptor = &chain_descriptor,
}};
static const ProtobufCIntRange chain_ranges[] = {{1, 0}, {0, 1}};
static const ProtobufCMessageDescriptor chain_descriptor = {
    .magic = PROTOBUF_C__MESSAGE_DESCRIPTOR_MAGIC,
    .name = "Chain",
    .sizeof_message = sizeof(ProtobufCMessage) + sizeof(void *),
    .n_fields = 1,
    .fields = chain_fields,
    .n_field_ranges = 1,
    .field_ranges = chain_ranges,
};

// `depth` messages inside one another, without the outermost; below 64, so that lengths are one
// byte.
static size_t encode_chain(uint8_t *bytes, size_t depth) {
    for (size_t i = 0; i < depth; i++) {
        bytes[2 * i] = 0x0a;
        bytes[2 * i + 1] = (uint8_t)(2 * (depth - i - 1));
    }
    return 2 * depth;
}

static void deeply_nested_message_is_refused(void **state) {
    (void)state;
    uint8_t bytes[2 * RPC_MESSAGE_DEPTH_MAX];
    ProtobufCMessage *message = NULL;
    size_t size = encode_chain(bytes, RPC_MESSAGE_DEPTH_MAX - 1);
    assert_int_equal(unpack(&chain_descriptor, bytes, size, &message, NULL), STATUS_OK);
    protobuf_c_message_free_unpacked(message, NULL);
    size = encode_chain(bytes, RPC_MESSAGE_DEPTH_MAX);
    struct error error = {0};
    assert_int_equal(unpack(&chain_descriptor, bytes, size, &message, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "inner.inner: nested too deeply"));
}

static struct rpc_streaming streaming_of(const char *service, const char *method) {
    struct rpc_streaming streaming = {false, false};
    assert_true(
        rpc_methods_find(descriptors_begin, descriptors_size_bytes(), service, method, &streaming));
    return streaming;
}

static void streaming_of_methods_is_found(void **state) {
    (void)state;
    struct rpc_streaming streaming = streaming_of("stagecoach.v1.Inference", "Tokenize");
    assert_false(streaming.client || streaming.server);
    streaming = streaming_of("stagecoach.v1.Inference", "Generate");
    assert_true(!streaming.client && streaming.server);
    streaming = streaming_of("stagecoach.v1.Control", "Join");
    assert_true(streaming.client && streaming.server);
}

static void unknown_methods_are_not_found(void **state) {
    (void)state;
    static const char *const names[][2] = {
        {"stagecoach.v1.Inference", "Join"},
        {"stagecoach.v1.Inference", "Generat"},
        {"stagecoach.v1.Inferenc", "Generate"},
        {"stagecoach.v1", "Generate"},
        {"stagecoach.v1Inference", "Generate"},
        {"Inference", "Generate"},
        {"", ""},
    };
    struct rpc_streaming streaming;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        assert_false(rpc_methods_find(descriptors_begin, descriptors_size_bytes(), names[i][0],
                                      names[i][1], &streaming));
    }
}

static void peer_host_is_without_scheme_and_port(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"ipv4:10.0.0.7:4711", "10.0.0.7"},
        {"ipv6:[::1]:4711", "::1"},
        {"ipv6:%5B::1%5D:4711", "::1"},
        {"ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::1%eth0"},
        {"unix:/tmp/socket", ""},
        {"unix:", ""},
        {"", ""},
        {"ipv4:%", "%"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char host[64] = "x";
        rpc_address_peer_host(cases[i][0], host, sizeof(host));
        assert_string_equal(host, cases[i][1]);
    }
    char small[4];
    rpc_address_peer_host("ipv4:10.0.0.7:4711", small, sizeof(small));
    assert_string_equal(small, "10.");
}

static void wrong_addresses_are_refused_by_name(void **state) {
    (void)state;
    static const char *const wrong[] = {"",      "host",  "host:",   "host:65536", "host:x",
                                        "::1:5", "unix:", "host:-1", "1.2.3.4",    "[::1]"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct error error = {0};
        assert_int_equal(rpc_address_check(wrong[i], &error), STATUS_INVALID);
        assert_non_null(strstr(error.text, wrong[i]));
    }
    static const char *const right[] = {"host:1", "[::1]:0", ":50051", "unix:/x", "0.0.0.0:65535"};
    for (size_t i = 0; i < sizeof(right) / sizeof(right[0]); i++) {
        assert_int_equal(rpc_address_check(right[i], NULL), STATUS_OK);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(message_with_valid_text_is_unpacked),
        cmocka_unit_test(message_without_bytes_has_defaults),
        cmocka_unit_test(message_with_embedded_nul_is_refused),
        cmocka_unit_test(message_with_invalid_utf8_is_refused),
        cmocka_unit_test(refusal_names_the_nested_field),
        cmocka_unit_test(malformed_message_is_refused),
        cmocka_unit_test(packed_and_unpacked_numbers_are_both_read),
        cmocka_unit_test(submessage_given_twice_is_refused),
        cmocka_unit_test(unknown_fields_are_allowed_up_to_the_limit),
        cmocka_unit_test(deeply_nested_message_is_refused),
        cmocka_unit_test(streaming_of_methods_is_found),
        cmocka_unit_test(unknown_methods_are_not_found),
        cmocka_unit_test(peer_host_is_without_scheme_and_port),
        cmocka_unit_test(wrong_addresses_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
