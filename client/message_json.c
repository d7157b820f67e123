#include "client/message_json.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "client/client.h"

json_t *json_of_u64(uint64_t value) {
    if (value <= INT64_MAX) return json_integer((json_int_t)value);
    char digits[24];
    snprintf(digits, sizeof(digits), "%" PRIu64, value);
    return json_string(digits);
}

static json_t *enum_json(const ProtobufCFieldDescriptor *field, int number) {
    const ProtobufCEnumValue *value =
        protobuf_c_enum_descriptor_get_value(field->descriptor, number);
    return value != NULL ? json_string(value->name) : json_integer(number);
}

// One value of a field, at the address where protobuf-c keeps it. NULL as message_json().
static json_t *value_json(const ProtobufCFieldDescriptor *field, const void *value) {
    switch (field->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        return json_integer(*(const int32_t *)value);
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        return json_integer(*(const uint32_t *)value);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        return json_integer(*(const int64_t *)value);
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return json_of_u64(*(const uint64_t *)value);
    case PROTOBUF_C_TYPE_FLOAT:
        return json_real((double)*(const float *)value);
    case PROTOBUF_C_TYPE_DOUBLE:
        return json_real(*(const double *)value);
    case PROTOBUF_C_TYPE_BOOL:
        return json_boolean(*(const protobuf_c_boolean *)value);
    case PROTOBUF_C_TYPE_ENUM:
        return enum_json(field, *(const int *)value);
    case PROTOBUF_C_TYPE_STRING:
        return json_string(*(char *const *)value);
    case PROTOBUF_C_TYPE_MESSAGE:
        return message_json(*(const ProtobufCMessage *const *)value);
    default:
        return NULL;
    }
}

static size_t value_size_bytes(const ProtobufCFieldDescriptor *field) {
    switch (field->type) {
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return 8;
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    default:
        return 4;
    }
}

static json_t *list_json(const ProtobufCFieldDescriptor *field, const char *values, size_t count) {
    json_t *list = json_array();
    for (size_t i = 0; list != NULL && i < count; i++) {
        if (json_array_append_new(list, value_json(field, values + i * value_size_bytes(field)))) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

// Whether a field that is not repeated has a value to show.
static bool field_is_set(const ProtobufCFieldDescriptor *field, const char *message) {
    if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
        return *(const uint32_t *)(message + field->quantifier_offset) == field->id;
    if (field->type == PROTOBUF_C_TYPE_MESSAGE || field->type == PROTOBUF_C_TYPE_STRING)
        return *(void *const *)(message + field->offset) != NULL;
    return true;
}

json_t *message_json(const ProtobufCMessage *message) {
    json_t *object = json_object();
    const char *bytes = (const char *)message;
    for (unsigned i = 0; object != NULL && i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
        const char *place = bytes + field->offset;
        if (field->type == PROTOBUF_C_TYPE_BYTES) continue;
        json_t *value;
        if (field->label == PROTOBUF_C_LABEL_REPEATED)
            value = list_json(field, *(const char *const *)place,
                              *(const size_t *)(bytes + field->quantifier_offset));
        else if (field_is_set(field, bytes))
            value = value_json(field, place);
        else
            continue;
        if (json_object_set_new(object, field->name, value) != 0) {
            json_decref(object);
            object = NULL;
        }
    }
    return object;
}

int json_print_line(json_t *value) {
    // Nine digits are enough to give back every float, ten keep milliseconds readable.
    char *line = value != NULL ? json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(10)) : NULL;
    json_decref(value);
    if (line == NULL) {
        client_report("the answer cannot be written as JSON: a text in it is not UTF-8");
        return EXIT_FAILURE;
    }
    puts(line);
    free(line);
    return client_finish_output();
}
