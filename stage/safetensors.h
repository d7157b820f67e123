// safetensors: which tensors a file holds and where, read from its header. The file's bytes are not
// trusted: everything is checked here, once.
//
//     u64 header size (little-endian) | header: JSON, padded with spaces | tensor bytes
//     {"__metadata__": {text: text}, NAME: {"dtype": D, "shape": [..], "data_offsets": [begin,
//     end]}}
//
// Format: https://github.com/huggingface/safetensors. As in its reference implementation, tensors
// neither overlap nor leave holes, and the last one ends with the file.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/limits.h"
#include "base/status.h"

struct safetensors_tensor {
    const char *name;       // of the header, without control characters
    const char *dtype_name; // as the format writes it, such as "BF16"
    enum dtype dtype;       // DTYPE_NONE for the formats that we do not compute with
    uint32_t dimension_count;
    uint64_t dimensions[SAFETENSORS_DIMENSION_COUNT_MAX];
    uint64_t file_offset; // of its first byte, from the start of the file
    uint64_t size_bytes;
};

struct safetensors {
    struct safetensors_tensor *tensors; // ordered by name
    uint32_t tensor_count;
    char *names;
};

enum { SAFETENSORS_PREFIX_BYTES = 8 };

// The size of the header, from the first bytes of the file. STATUS_INVALID: it is larger than the
// limit or than the file.
MUST_USE enum status safetensors_header_bytes(const uint8_t prefix[SAFETENSORS_PREFIX_BYTES],
                                              uint64_t file_bytes, uint64_t *header_bytes_out,
                                              struct error *error);

// `header` is the JSON, (header_bytes) long, of a file of file_bytes bytes.
// STATUS_INVALID, STATUS_UNSUPPORTED (an unknown dtype), STATUS_NO_MEMORY; the sentence names the
// tensor. Nothing of `header` is kept. safetensors_close() frees the result.
MUST_USE enum status safetensors_parse(const char *header, uint64_t header_bytes,
                                       uint64_t file_bytes, struct safetensors **safetensors_out,
                                       struct error *error);

// The same from a file, which stays open for reading: close(*fd_out) after use.
// Also STATUS_NOT_FOUND and STATUS_IO. The sentence starts with the path.
MUST_USE enum status safetensors_open(const char *path, struct safetensors **safetensors_out,
                                      int *fd_out, struct error *error);
void safetensors_close(struct safetensors *safetensors); // NULL allowed

// NULL when there is none of this name.
const struct safetensors_tensor *safetensors_find(const struct safetensors *safetensors,
                                                  const char *name);

// Writes a shape such as "(2, 3)", cut at the end of the buffer.
void safetensors_shape_write(uint32_t dimension_count, const uint64_t *dimensions, char *out,
                             size_t out_bytes);
