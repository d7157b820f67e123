#include "transport/rpc_message.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/utf8.h"
#include "transport/rpc_wire.h"

// Where the walk is: the names of the fields from the outermost message inwards.
struct place {
    const struct place *outer; // NULL for the outermost field
    const char *name;
    uint32_t depth; // 1 for the outermost field
};

static enum status refuse(const struct place *place, struct error *error, const char *reason) {
    if (place == NULL) return error_set(error, STATUS_INVALID, "message: %s", reason);
    (void)error_set_field(error, STATUS_INVALID, "%s: %s", place->name, reason);
    for (const struct place *outer = place->outer; outer != NULL; outer = outer->outer) {
        struct error inner = {0};
        if (error != NULL) inner = *error;
        (void)error_set_field(error, STATUS_INVALID, "%s.%.400s", outer->name, inner.text);
    }
    return STATUS_INVALID;
}

static enum status check_text(const struct rpc_wire_field *text, const struct place *place,
                              struct error *error) {
    if (text->size_bytes == 0) return STATUS_OK;
    if (memchr(text->data, '\0', text->size_bytes) != NULL)
        return refuse(place, error, "holds a NUL character");
    if (utf8_valid_bytes((const char *)text->data, text->size_bytes) < text->size_bytes)
        return refuse(place, error, "not valid UTF-8");
    return STATUS_OK;
}

// Whether a field of this type may come with this wire type; repeated numbers may be packed.
static bool wire_type_fits(const ProtobufCFieldDescriptor *field, enum rpc_wire_type type) {
    enum rpc_wire_type own = RPC_WIRE_VARINT;
    switch (field->type) {
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_MESSAGE:
        return type == RPC_WIRE_BYTES;
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
        own = RPC_WIRE_32BIT;
        break;
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        own = RPC_WIRE_64BIT;
        break;
    default:
        break;
    }
    return type == own || (type == RPC_WIRE_BYTES && field->label == PROTOBUF_C_LABEL_REPEATED);
}

// *seen has a bit for each field of the message that has been met.
static enum status check_known(const ProtobufCMessageDescriptor *type,
                               const ProtobufCFieldDescriptor *field,
                               const struct rpc_wire_field *wire_field, const struct place *place,
                               uint64_t *seen, struct error *error) {
    if (!wire_type_fits(field, wire_field->type)) return refuse(place, error, "of a wrong type");
    if (field->type == PROTOBUF_C_TYPE_STRING) return check_text(wire_field, place, error);
    if (field->type != PROTOBUF_C_TYPE_MESSAGE || field->label == PROTOBUF_C_LABEL_REPEATED) {
        return STATUS_OK;
    }
    uint64_t bit = UINT64_C(1) << (field - type->fields);
    if (*seen & bit) return refuse(place, error, "given twice");
    *seen |= bit;
    return STATUS_OK;
}

static enum status check_message(const ProtobufCMessageDescriptor *type, struct rpc_wire wire,
                                 const struct place *outer, uint32_t *field_count,
                                 struct error *error) {
    CHECK(type->n_fields <= 64); // bits of `seen`
    uint32_t depth = outer == NULL ? 1 : outer->depth + 1;
    if (depth > RPC_MESSAGE_DEPTH_MAX) return refuse(outer, error, "nested too deeply");
    uint64_t seen = 0;
    struct rpc_wire_field wire_field;
    while (rpc_wire_next(&wire, &wire_field)) {
        if (++*field_count > RPC_MESSAGE_FIELD_COUNT_MAX) {
            return refuse(outer, error, "too many fields");
        }
        const ProtobufCFieldDescriptor *field =
            protobuf_c_message_descriptor_get_field(type, wire_field.id);
        if (field == NULL) continue;
        struct place place = {.outer = outer, .name = field->name, .depth = depth};
        enum status status = check_known(type, field, &wire_field, &place, &seen, error);
        if (status == STATUS_OK && field->type == PROTOBUF_C_TYPE_MESSAGE) {
            struct rpc_wire inner = rpc_wire_of(wire_field.data, wire_field.size_bytes);
            status = check_message(field->descriptor, inner, &place, field_count, error);
        }
        if (status != STATUS_OK) return status;
    }
    if (wire.malformed) return refuse(outer, error, "not a protobuf message");
    return STATUS_OK;
}

// malloc that remembers a failure: protobuf-c itself only says that it could not unpack.
static void *remembering_malloc(void *failed, size_t size) {
    void *memory = malloc(size == 0 ? 1 : size);
    if (memory == NULL) *(bool *)failed = true;
    return memory;
}

static void plain_free(void *failed, void *memory) {
    (void)failed;
    free(memory);
}

enum status rpc_message_unpack(const ProtobufCMessageDescriptor *type, const uint8_t *data,
                               size_t size_bytes, ProtobufCMessage **message_out,
                               struct error *error) {
    uint32_t field_count = 0;
    enum status status =
        check_message(type, rpc_wire_of(data, size_bytes), NULL, &field_count, error);
    if (status != STATUS_OK) return status;

    bool no_memory = false;
    ProtobufCAllocator allocator = {
        .alloc = remembering_malloc, .free = plain_free, .allocator_data = &no_memory};
    static const uint8_t nothing = 0;
    if (data == NULL) data = &nothing;
    ProtobufCMessage *message = protobuf_c_message_unpack(type, &allocator, size_bytes, data);
    if (message == NULL && no_memory) {
        return error_set(error, STATUS_NO_MEMORY, "no memory for a message of %zu bytes",
                         size_bytes);
    }
    if (message == NULL) return refuse(NULL, error, "not a protobuf message");
    *message_out = message;
    return STATUS_OK;
}
