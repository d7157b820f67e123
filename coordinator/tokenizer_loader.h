// tokenizer_loader: what the two files that read tokenizer.json share. Fields may come in any
// order, so an object's fields are first only marked; they are then read in the order in which they
// build on each other.
#pragma once

#include "base/json.h"
#include "coordinator/tokenizer_parts.h"

#define MARK_NONE SIZE_MAX

struct loader {
    struct tokenizer *tokenizer;
    struct json json;
    enum status status; // of the first failure that is not a mistake in the JSON text
    bool byte_level_decoder;
    // TemplateProcessing, while it is read.
    bool template_seen, sequence_seen;
    size_t special_tokens_mark;
};

// Where the fields of an object are; MARK_NONE for those that are absent.
struct loader_field {
    const char *name;
    size_t *mark_out;
};

// A copy of a text that outlives the next call of the parser; "" when it is longer than any name
// that is looked for.
enum { LOADER_NAME_BYTES_MAX = 256 };

struct loader_name {
    char text[LOADER_NAME_BYTES_MAX];
};

typedef void loader_step_fn(struct loader *loader, size_t mark);

// Ends the reading; the first failure counts.
void loader_fail(struct loader *loader, enum status status, const char *format, ...)
    PRINTF_LIKE(3, 4);
// Takes an object and marks its fields; others are skipped. `where` is for errors.
void loader_fields(struct loader *loader, const char *where, const struct loader_field *fields,
                   size_t field_count);
// Makes the value at the mark the next one; false when the field is absent or null.
MUST_USE bool loader_go_to(struct loader *loader, size_t mark);
bool loader_bool(struct loader *loader, size_t mark, bool otherwise);
struct loader_name loader_name(struct json_text text);
bool loader_name_equals(const struct loader_name *name, const char *literal);

// The parts of the file, by their marks.
void loader_read_normalizer(struct loader *loader, size_t mark);
void loader_read_pre_tokenizer(struct loader *loader, size_t mark);
void loader_read_post_processor(struct loader *loader, size_t mark);
void loader_read_decoder(struct loader *loader, size_t mark);
