// descriptors: the FileDescriptorSet of the test services, as protoc wrote it.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern const uint8_t interop_descriptors_begin[];
extern const uint8_t interop_descriptors_end[];

static inline size_t interop_descriptors_size_bytes(void) {
    return (size_t)(interop_descriptors_end - interop_descriptors_begin);
}
