// rpc_descriptors: looks names up in an encoded google.protobuf.FileDescriptorSet, for reflection.
//
// Everything that is given back is borrowed from the set. A full name is such as
// "package.Message.Nested"; the values of an enum are named beside it, as in C++.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct rpc_descriptors {
    const uint8_t *set;
    size_t set_bytes;
};

// An encoded google.protobuf.FileDescriptorProto.
struct rpc_descriptors_file {
    const uint8_t *data;
    size_t size_bytes;
};

size_t rpc_descriptors_file_count(const struct rpc_descriptors *descriptors);

// The file of this name, as imports spell it. False when there is none.
MUST_USE bool rpc_descriptors_find_file(const struct rpc_descriptors *descriptors, const char *name,
                                        struct rpc_descriptors_file *file_out);
// The file that declares a message, field, oneof, enum, value, service, method or extension.
MUST_USE bool rpc_descriptors_find_symbol(const struct rpc_descriptors *descriptors,
                                          const char *name, struct rpc_descriptors_file *file_out);
MUST_USE bool rpc_descriptors_has_message(const struct rpc_descriptors *descriptors,
                                          const char *name);
// The file that declares extension `number` of a message.
MUST_USE bool rpc_descriptors_find_extension(const struct rpc_descriptors *descriptors,
                                             const char *message, int32_t number,
                                             struct rpc_descriptors_file *file_out);
// The numbers of all extensions of a message, in the order of the set: writes at most capacity of
// them, gives back how many there are.
size_t rpc_descriptors_extensions(const struct rpc_descriptors *descriptors, const char *message,
                                  int32_t *numbers_out, size_t capacity);
// `file`, then all that it imports, directly or not, each once: as many as it gives back.
// files_out: of rpc_descriptors_file_count().
size_t rpc_descriptors_with_imports(const struct rpc_descriptors *descriptors,
                                    const struct rpc_descriptors_file *file,
                                    struct rpc_descriptors_file *files_out);
