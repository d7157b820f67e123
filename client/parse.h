// parse: values of options and standard input that are more than one number or word.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

// A whole number of 64 bits. The error names `option`.
MUST_USE enum status parse_u64(const char *option, const char *text, uint64_t *value_out,
                               struct error *error);

// Token ids separated by commas or spaces, such as "1,2,3". The caller frees *ids_out. An empty
// text gives none.
MUST_USE enum status parse_token_ids(const char *option, const char *text, uint32_t **ids_out,
                                     size_t *count_out, struct error *error);

struct token_bias {
    uint32_t token_id;
    float bias;
};

// "ID=VALUE,ID=VALUE,...". The caller frees *biases_out.
MUST_USE enum status parse_token_biases(const char *option, const char *text,
                                        struct token_bias **biases_out, size_t *count_out,
                                        struct error *error);

// Everything on standard input as text; the caller frees it. One newline at its end is dropped.
// STATUS_INVALID: a NUL byte. STATUS_EXHAUSTED: more than REQUEST_TEXT_BYTES_MAX. STATUS_IO.
MUST_USE enum status parse_standard_input(char **text_out, struct error *error);
