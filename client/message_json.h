// message_json: any protobuf message as JSON, by its descriptor.
#pragma once

#include <jansson.h>
#include <protobuf-c/protobuf-c.h>
#include <stdint.h>

#include "base/status.h"

// Field names as in the .proto; enum values by name; every field without presence is there, also
// when zero; a oneof has only the member that is set. Bytes are left out: no message that is shown
// has them. A new reference, or NULL when there is no memory or a text is not UTF-8.
MUST_USE json_t *message_json(const ProtobufCMessage *message);

// A number; beyond 2^63-1, which jansson's signed integers cannot hold, a decimal string.
MUST_USE json_t *json_of_u64(uint64_t value);

// Writes one line to standard output and drops the reference. `value` NULL: reports that the answer
// could not be written as JSON. The exit status.
MUST_USE int json_print_line(json_t *value);
