// json: a pull parser (RFC 8259) over text in memory, for files too large for a tree, such as
// tokenizer.json. Small files are read with jansson instead.
//
// The caller asks for what it expects, in document order:
//
//     struct json json;
//     json_init(&json, text, size_bytes);
//     json_object_begin(&json);
//     while (json_object_next(&json, &key)) {
//         if (json_text_equals(key, "vocab")) read_vocab(&json); else json_skip(&json);
//     }
//     if (json.failed) return error_set(error, STATUS_INVALID, "%s: %s", path, json.error.text);
//
// After the first mistake every call does nothing and returns an empty value, so checking once at
// the end of a loop is enough. The text is never written to; nothing is read outside it.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

// Decoded UTF-8 text. Not terminated; may hold '\0'. Borrowed: valid until the next json_ call on
// the same parser (escapes are decoded into the parser's scratch buffer).
struct json_text {
    const char *data;
    size_t size_bytes;
};

enum json_kind {
    JSON_KIND_OBJECT,
    JSON_KIND_ARRAY,
    JSON_KIND_STRING,
    JSON_KIND_NUMBER,
    JSON_KIND_BOOL,
    JSON_KIND_NULL,
    JSON_KIND_END // end of the text, or failed
};

enum { JSON_DEPTH_MAX = 64 };

struct json {
    const char *text;
    size_t size_bytes;
    size_t offset;
    char *scratch;
    size_t scratch_capacity_bytes;
    uint32_t depth;
    bool after_value[JSON_DEPTH_MAX + 1]; // whether a comma must come before the next value there
    bool failed;
    struct error error; // names the line, the column and what was expected
};

void json_init(struct json *json, const char *text, size_t size_bytes);
void json_fini(struct json *json);

// What comes next, without taking it. Anything that starts no value is a mistake.
enum json_kind json_peek(struct json *json);

void json_object_begin(struct json *json);
// False at the closing brace, which it takes, or on a mistake.
bool json_object_next(struct json *json, struct json_text *key_out);
void json_array_begin(struct json *json);
// False at the closing bracket, which it takes, or on a mistake.
bool json_array_next(struct json *json);

struct json_text json_take_string(struct json *json);
// A whole number in [minimum, maximum]; else the parser fails.
int64_t json_take_integer(struct json *json, int64_t minimum, int64_t maximum);
bool json_take_bool(struct json *json);
// Takes null; false (nothing taken) when something else comes next.
bool json_take_null(struct json *json);
// Skips one whole value; it is checked like one that is read.
void json_skip(struct json *json);

// For fields that must be read in another order than the text has them: json_mark() is where the
// next value starts; after the outermost value has been skipped or read, json_return() makes that
// value the next one, as if it were the whole text.
size_t json_mark(struct json *json);
void json_return(struct json *json, size_t mark);
// Fails unless only white space is left.
void json_end(struct json *json);

// Makes the parser fail with a sentence of the caller (position is added).
void json_fail(struct json *json, const char *format, ...) PRINTF_LIKE(2, 3);

bool json_text_equals(struct json_text text, const char *literal);
