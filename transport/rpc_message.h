// rpc_message: from bytes of a peer to a protobuf-c message that can be used without further care.
//
// protobuf-c checks neither UTF-8 nor embedded NULs (which would silently cut a C string), and does
// not limit what a message costs in memory. So the bytes are walked along the descriptor before
// they are unpacked. Afterwards: every string is terminated valid UTF-8 of its full length; no
// submessage was given twice (which protobuf-c would merge, at a cost that grows with the square);
// entries of repeated submessages are not NULL, other submessages are NULL when absent; an empty
// `bytes` may have data == NULL. Unknown fields are allowed. Numbers and enum values are not
// checked.
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

// Free *message_out with protobuf_c_message_free_unpacked(message, NULL).
// STATUS_INVALID with a sentence that names the field, such as "stop.strings: not valid UTF-8";
// STATUS_NO_MEMORY.
MUST_USE enum status rpc_message_unpack(const ProtobufCMessageDescriptor *type, const uint8_t *data,
                                        size_t size_bytes, ProtobufCMessage **message_out,
                                        struct error *error);
