// rpc_wire: walks the fields of an encoded protobuf message without unpacking it
// (https://protobuf.dev/programming-guides/encoding/).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum rpc_wire_type {
    RPC_WIRE_VARINT = 0,
    RPC_WIRE_64BIT = 1,
    RPC_WIRE_BYTES = 2, // strings, bytes, messages, packed arrays
    RPC_WIRE_32BIT = 5,
};

struct rpc_wire {
    const uint8_t *at;
    const uint8_t *end;
    bool malformed; // set by rpc_wire_next; nothing is read outside [at, end)
};

struct rpc_wire_field {
    uint32_t id;
    enum rpc_wire_type type;
    uint64_t number;     // of a varint; 0 otherwise
    const uint8_t *data; // RPC_WIRE_BYTES: borrowed from the message
    size_t size_bytes;
};

static inline struct rpc_wire rpc_wire_of(const uint8_t *data, size_t size_bytes) {
    return (struct rpc_wire){.at = data, .end = size_bytes == 0 ? data : data + size_bytes};
}

// False at the end and on malformed input (groups count as malformed: proto3 has none).
MUST_USE bool rpc_wire_next(struct rpc_wire *wire, struct rpc_wire_field *field_out);

// Whether a field of type RPC_WIRE_BYTES holds exactly this text.
bool rpc_wire_text_is(const struct rpc_wire_field *field, const char *text);

// The fields inside a field of type RPC_WIRE_BYTES that is a message.
static inline struct rpc_wire rpc_wire_inside(const struct rpc_wire_field *field) {
    return rpc_wire_of(field->data, field->size_bytes);
}

// The first field with this number and of type RPC_WIRE_BYTES; an empty one when there is none.
struct rpc_wire_field rpc_wire_first(struct rpc_wire wire, uint32_t id);
