// descriptors: the FileDescriptorSet of every .proto of the project, as protoc wrote it.
// protobuf-c's own descriptors lack the streaming flags of methods; these have them.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern const uint8_t descriptors_begin[];
extern const uint8_t descriptors_end[];

static inline size_t descriptors_size_bytes(void) {
    return (size_t)(descriptors_end - descriptors_begin);
}
