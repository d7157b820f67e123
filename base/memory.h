// memory: allocation whose sizes cannot overflow, and a growing byte buffer with a limit.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

// count * size bytes of zeroed memory, or NULL on overflow or when there is no memory. free() it.
MUST_USE void *memory_array(size_t count, size_t size);

// The same, resized; the old pointer stays valid when NULL is returned. New bytes are not zeroed.
MUST_USE void *memory_resize(void *old, size_t count, size_t size);

// Zeroes memory that held a secret; the compiler cannot leave it out.
void memory_wipe(void *memory, size_t size_bytes);

// False when the product or sum does not fit; *out is written only on success.
MUST_USE bool size_multiply(size_t a, size_t b, size_t *out);
MUST_USE bool size_add(size_t a, size_t b, size_t *out);

// A byte buffer that grows by doubling up to limit_bytes. data[size_bytes] is always '\0' once data
// is not NULL, so text can be used as a C string.
struct buffer {
    char *data;
    size_t size_bytes;
    size_t capacity_bytes;
    size_t limit_bytes;
};

void buffer_init(struct buffer *buffer, size_t limit_bytes);
void buffer_fini(struct buffer *buffer);
void buffer_clear(struct buffer *buffer);
// STATUS_EXHAUSTED beyond the limit, STATUS_NO_MEMORY; the buffer is unchanged then.
MUST_USE enum status buffer_append(struct buffer *buffer, const void *data, size_t size_bytes);

// Reads a whole file into a fresh '\0'-terminated buffer that the caller frees.
// STATUS_NOT_FOUND, STATUS_IO, STATUS_EXHAUSTED (larger than limit_bytes), STATUS_NO_MEMORY.
MUST_USE enum status file_read(const char *path, size_t limit_bytes, char **data_out,
                               size_t *size_bytes_out, struct error *error);
