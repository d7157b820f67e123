#include "transport/rpc_wire.h"

#include <string.h>

// A varint has at most ten bytes, seven bits each, lowest first.
static bool take_varint(struct rpc_wire *wire, uint64_t *value_out) {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 70 && wire->at < wire->end; shift += 7) {
        uint8_t byte = *wire->at++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if ((byte & 0x80) == 0) {
            *value_out = value;
            return true;
        }
    }
    return false;
}

static bool take_bytes(struct rpc_wire *wire, uint64_t size_bytes, struct rpc_wire_field *field) {
    if (size_bytes > (uint64_t)(wire->end - wire->at)) return false;
    field->data = wire->at;
    field->size_bytes = (size_t)size_bytes;
    wire->at += size_bytes;
    return true;
}

static bool take_field(struct rpc_wire *wire, struct rpc_wire_field *field) {
    uint64_t tag, size_bytes;
    if (!take_varint(wire, &tag)) return false;
    if (tag > UINT32_MAX || tag >> 3 == 0) return false;
    field->id = (uint32_t)(tag >> 3);
    field->type = (enum rpc_wire_type)(tag & 7);
    switch (field->type) {
    case RPC_WIRE_VARINT:
        return take_varint(wire, &field->number);
    case RPC_WIRE_64BIT:
        return take_bytes(wire, 8, field);
    case RPC_WIRE_32BIT:
        return take_bytes(wire, 4, field);
    case RPC_WIRE_BYTES:
        return take_varint(wire, &size_bytes) && take_bytes(wire, size_bytes, field);
    }
    return false;
}

bool rpc_wire_next(struct rpc_wire *wire, struct rpc_wire_field *field_out) {
    if (wire->malformed || wire->at == wire->end) return false;
    struct rpc_wire_field field = {0};
    if (!take_field(wire, &field)) {
        wire->malformed = true;
        return false;
    }
    *field_out = field;
    return true;
}

bool rpc_wire_text_is(const struct rpc_wire_field *field, const char *text) {
    size_t size_bytes = strlen(text);
    return field->type == RPC_WIRE_BYTES && field->size_bytes == size_bytes &&
           memcmp(field->data, text, size_bytes) == 0;
}

struct rpc_wire_field rpc_wire_first(struct rpc_wire wire, uint32_t id) {
    struct rpc_wire_field field;
    while (rpc_wire_next(&wire, &field)) {
        if (field.id == id && field.type == RPC_WIRE_BYTES) return field;
    }
    return (struct rpc_wire_field){.id = id, .type = RPC_WIRE_BYTES};
}
