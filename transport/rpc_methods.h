// rpc_methods: which methods stream, from the embedded FileDescriptorSet (proto/descriptors).
// protobuf-c's service descriptors lack these flags.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct rpc_streaming {
    bool client; // the client sends any number of messages, else exactly one
    bool server;
};

// `service` is the full name, such as "stagecoach.v1.Inference". `set` is an encoded
// google.protobuf.FileDescriptorSet. False when the set does not have the method.
MUST_USE bool rpc_methods_find(const uint8_t *set, size_t set_bytes, const char *service,
                               const char *method, struct rpc_streaming *streaming_out);
