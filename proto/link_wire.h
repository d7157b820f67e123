// link_wire: the messages that the two ends of a link exchange beside frames. One fixed layout
// each, little-endian; this header is their definition.
//
//   sender                      receiver
//   HELLO  ------------------->           epoch, link id, wanted credits, largest frame
//          <-------------------  WORKER   where UCX finds the receiver            (ucx only)
//          <-------------------  ACCEPT   granted credits        (or REFUSE with a reason)
//   WORKER ------------------->           where UCX finds the sender              (ucx only)
//   FRAME  ------------------->           notice with the sequence, and the frame itself
//          <-------------------  CREDIT   frames released so far, of all since ACCEPT
//   PING   <------------------>  PING     every LINK_PING_MS
//   BYE    <------------------>  BYE      this end closes the link
//
// link_ucx sends messages one after the other over a TCP connection of its own, but credits, and
// frames with their notices, as UCX active messages.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "messages are used in place");

enum {
    LINK_WIRE_MAGIC = 0x4c475453, // "STGL"
    LINK_WIRE_VERSION = 1,
};

enum link_message_kind {
    LINK_HELLO = 1,
    LINK_ACCEPT = 2,
    LINK_REFUSE = 3,
    LINK_CREDIT = 4,
    LINK_PING = 5,
    LINK_BYE = 6,
    LINK_FRAME = 7,  // only in a link_frame_notice
    LINK_WORKER = 8, // only between carriers: struct link_worker
};

// Opens every message. It and REFUSE keep their layout in every version.
struct link_message_head {
    uint32_t magic;
    uint16_t version;
    uint16_t kind;
};
_Static_assert(sizeof(struct link_message_head) == 8, "message head is 8 bytes on the wire");

struct link_hello {
    struct link_message_head head;
    uint64_t epoch;
    uint32_t link_id;
    uint32_t credit_count;    // wanted, 1..LINK_CREDIT_COUNT_MAX
    uint64_t frame_bytes_max; // of any frame the sender will send
    uint8_t nonce[32];        // zero while links are not authenticated
    uint8_t mac[32];          // zero while links are not authenticated
};
_Static_assert(sizeof(struct link_hello) == 96, "hello is 96 bytes on the wire");

struct link_accept {
    struct link_message_head head;
    uint32_t credit_count; // granted, 1..wanted
    uint32_t reserved;     // zero
    uint8_t nonce[32];     // zero while links are not authenticated
    uint8_t mac[32];       // zero while links are not authenticated
};
_Static_assert(sizeof(struct link_accept) == 80, "accept is 80 bytes on the wire");

enum link_refusal {
    LINK_REFUSED_LINK = 1,        // no link of this id is expected; try again
    LINK_REFUSED_EPOCH = 2,       // the link is expected, of another epoch; try again
    LINK_REFUSED_TAKEN = 3,       // the link has its sender already; try again
    LINK_REFUSED_FRAME_BYTES = 4, // the receiver's frame_bytes_max is smaller
    LINK_REFUSED_VERSION = 5,     // head.version is the one the receiver speaks
};

struct link_refuse {
    struct link_message_head head;
    uint32_t reason;          // enum link_refusal; unknown ones are final
    uint32_t reserved;        // zero
    uint64_t frame_bytes_max; // the receiver's, for LINK_REFUSED_FRAME_BYTES
};
_Static_assert(sizeof(struct link_refuse) == 24, "refuse is 24 bytes on the wire");

struct link_credit {
    struct link_message_head head;
    uint64_t released_count; // never falls, never beyond the frames sent
};
_Static_assert(sizeof(struct link_credit) == 16, "credit is 16 bytes on the wire");

struct link_ping {
    struct link_message_head head;
    uint64_t reserved; // zero
};
_Static_assert(sizeof(struct link_ping) == 16, "ping is 16 bytes on the wire");

struct link_bye {
    struct link_message_head head;
    uint64_t reserved; // zero
};
_Static_assert(sizeof(struct link_bye) == 16, "bye is 16 bytes on the wire");

// The address of the UCX worker that a connection's frames go to or come from; its bytes follow.
// UCX trusts an address that it is given, so one that is damaged or of another UCX must not reach
// it.
struct link_worker {
    struct link_message_head head;
    uint32_t address_bytes; // 1..LINK_WORKER_BYTES_MAX
    uint16_t ucx_major, ucx_minor;
    uint64_t checksum; // link_checksum() of the address
};
_Static_assert(sizeof(struct link_worker) == 24, "worker is 24 bytes on the wire");

union link_message {
    struct link_message_head head;
    struct link_hello hello;
    struct link_accept accept;
    struct link_refuse refuse;
    struct link_credit credit;
    struct link_ping ping;
    struct link_bye bye;
};

// Goes ahead of a frame's bytes, whose count the carrier gives.
struct link_frame_notice {
    struct link_message_head head;
    uint64_t sequence; // from 1; equals link_sequence in the frame's header
};
_Static_assert(sizeof(struct link_frame_notice) == 16, "frame notice is 16 bytes on the wire");

// A zeroed message of this kind with its head.
union link_message link_message_make(enum link_message_kind kind);

// The size on the wire; 0 for kinds that are no message.
size_t link_message_bytes(uint16_t kind);

// Checks a received message and copies it out. STATUS_UNSUPPORTED: the HELLO or REFUSE of another
// version (only the head, and reason of a REFUSE, are meaningful). STATUS_INVALID: anything else
// that is not to the letter.
MUST_USE enum status link_message_parse(const void *data, size_t size_bytes,
                                        union link_message *message_out);

struct link_frame_notice link_frame_notice_make(uint64_t sequence);
MUST_USE enum status link_frame_notice_parse(const void *data, size_t size_bytes,
                                             struct link_frame_notice *notice_out);

struct link_worker link_worker_make(uint16_t ucx_major, uint16_t ucx_minor, const void *address,
                                    uint32_t address_bytes);

// FNV-1a, 64 bits (Fowler, Noll, Vo; https://www.isthe.com/chongo/tech/comp/fnv/).
uint64_t link_checksum(const void *data, size_t size_bytes);

// How many bytes the message has that a stream goes on with, of which `available_bytes` are here.
// 0: too few are here to tell. SIZE_MAX: no message begins like this.
size_t link_stream_message_bytes(const void *data, size_t available_bytes);

// A clause such as "the peer expects another epoch".
const char *link_refusal_text(uint32_t reason);
