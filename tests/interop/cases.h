// cases: what interop_client can do with a server, by the names that the gRPC interoperability
// tests give their cases (grpc/grpc: doc/interop-test-descriptions.md and
// doc/negative-http2-interop-test-descriptions.md).
#pragma once

#include "transport/rpc.h"

struct case_context {
    struct rpc_channel *channel;
    bool has_failed; // an expectation was not met; it has been printed
};

struct interop_case {
    const char *name;
    void (*run)(struct case_context *context);
};

// For a server as it should be.
extern const struct interop_case interop_cases[];
extern const size_t interop_case_count;
// For servers that break off at the HTTP/2 level, each in its own way.
extern const struct interop_case negative_cases[];
extern const size_t negative_case_count;

// Prints the sentence unless `is_met`. Returns is_met.
bool case_expect(struct case_context *context, bool is_met, const char *format, ...)
    PRINTF_LIKE(3, 4);

enum {
    CASE_REQUEST_BYTES = 271828,
    CASE_ANSWER_BYTES = 314159,
    CASE_NEGATIVE_ANSWER_BYTES = 1024, // what servers of the negative cases always answer
    CASE_TEXT_BYTES_MAX = 511,
};

// Makes the large unary call of the cases: CASE_REQUEST_BYTES there, CASE_ANSWER_BYTES back.
// Returns the code, in *size_bytes_out what came (0 without an answer), and in text_out, unless
// that is NULL, the sentence of at most CASE_TEXT_BYTES_MAX bytes.
enum rpc_code case_large_unary(struct case_context *context, uint32_t *size_bytes_out,
                               char *text_out);
