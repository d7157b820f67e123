// link_wire: the messages that the two ends of a link exchange beside frames. One fixed layout
// each, little-endian; this header is their definition. docs/protocol.md says what it is for.
//
//   sender                      receiver
//          <-------------------  CHALLENGE  a number drawn for this connection
//   HELLO  ------------------->             epoch, link id, wanted credits, largest frame; a proof
//          <-------------------  ACCEPT     granted credits; a proof    (or REFUSE with a reason)
//          <-------------------  WORKER     where UCX finds the receiver, or not    (ucx only)
//   WORKER ------------------->             where UCX finds the sender, or not      (ucx only)
//   frame  ------------------->             see proto/frame.h
//          <-------------------  CREDIT     frames released so far, of all since ACCEPT
//   PING   <------------------>  PING       every LINK_PING_MS
//   BYE    <------------------>  BYE        this end closes the link
//
// link_ucx sends messages one after the other over a TCP connection of its own, but credits and
// frames as UCX active messages where UCX has a way. If not, credits are messages like others, and
// a frame is its bytes between two messages.
//
// A link between processes has a key of 32 bytes that the coordinator drew for this link and this
// epoch and told its two ends. HELLO, ACCEPT and REFUSE each carry a proof that its author has the
// key: HMAC-SHA-512-256 over everything that was said on this connection before, and the message up
// to the proof. The nonces in CHALLENGE and HELLO make each proof good for one connection.
//
//   proof of HELLO    key 1   challenge nonce | hello
//   proof of ACCEPT   key 2   challenge nonce | hello with its proof | accept
//   proof of REFUSE   key 3   challenge nonce | hello with its proof | refuse
//   session           key 4   challenge nonce | hello with its proof | accept with its proof
//
// Key i is number i that crypto_kdf of libsodium (BLAKE2b) makes of the link's key in the context
// "linkauth". From the session key it makes in the context "linkdata" the keys of what follows:
//
//   1  frame headers, to the receiver        2  what follows the header, when it is encrypted
//   3  messages to the receiver              4  messages to the sender
//
// The mac of a message or a frame header is BLAKE2b, keyed, of 16 bytes, over all bytes of it
// before the mac (and the address after it, of a WORKER). Each has a number that rises, so that
// none counts twice: `sequence`, released_count, link_sequence. What follows a frame's header is
// encrypted with ChaCha20-Poly1305 (RFC 8439), nonce: four zero bytes and link_sequence; the tag is
// in the header.
//
// A link without a key (link_local only) has zeros in place of proofs and macs.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "messages are used in place");

enum {
    LINK_WIRE_MAGIC = 0x4c475453, // "STGL"
    LINK_WIRE_VERSION = 2,
    LINK_KEY_BYTES = 32,
    LINK_NONCE_BYTES = 32,
    LINK_PROOF_BYTES = 32,
    LINK_MAC_BYTES = 16,
};

enum link_message_kind {
    LINK_HELLO = 1,
    LINK_ACCEPT = 2,
    LINK_REFUSE = 3,
    LINK_CREDIT = 4,
    LINK_PING = 5,
    LINK_BYE = 6,
    LINK_WORKER = 8, // only between carriers: struct link_worker
    LINK_CHALLENGE = 9,
};

// Opens every message. It, and REFUSE up to its proof, keep their layout in every version.
struct link_message_head {
    uint32_t magic;
    uint16_t version;
    uint16_t kind;
};
_Static_assert(sizeof(struct link_message_head) == 8, "message head is 8 bytes on the wire");

struct link_challenge {
    struct link_message_head head;
    uint8_t nonce[LINK_NONCE_BYTES];
};
_Static_assert(sizeof(struct link_challenge) == 40, "challenge is 40 bytes on the wire");

enum link_hello_flags {
    LINK_ENCRYPTS = 1, // what follows the header of a frame is encrypted
};

struct link_hello {
    struct link_message_head head;
    uint64_t epoch;
    uint32_t link_id;
    uint32_t credit_count;    // wanted, 1..LINK_CREDIT_COUNT_MAX
    uint64_t frame_bytes_max; // of any frame the sender will send
    uint32_t flags;           // enum link_hello_flags; must be what the receiver expects
    uint32_t reserved;        // zero
    uint8_t nonce[LINK_NONCE_BYTES];
    uint8_t proof[LINK_PROOF_BYTES];
};
_Static_assert(sizeof(struct link_hello) == 104, "hello is 104 bytes on the wire");

struct link_accept {
    struct link_message_head head;
    uint32_t credit_count; // granted, 1..wanted
    uint32_t reserved;     // zero
    uint8_t proof[LINK_PROOF_BYTES];
};
_Static_assert(sizeof(struct link_accept) == 48, "accept is 48 bytes on the wire");

enum link_refusal {
    // No link of this id, epoch and key is expected. It is not said which of these differs, nor
    // proved: try again.
    LINK_REFUSED_LINK = 1,
    LINK_REFUSED_TAKEN = 3,       // the link has its sender already; try again
    LINK_REFUSED_FRAME_BYTES = 4, // the receiver's frame_bytes_max is smaller
    LINK_REFUSED_VERSION = 5,     // head.version is the one the receiver speaks; not proved
    LINK_REFUSED_FLAGS = 6,       // one end encrypts, the other does not
};

// Without a proof it changes nothing for a sender with a key: it tries again.
struct link_refuse {
    struct link_message_head head;
    uint32_t reason;                 // enum link_refusal; unknown ones are final
    uint32_t reserved;               // zero
    uint64_t frame_bytes_max;        // the receiver's, for LINK_REFUSED_FRAME_BYTES
    uint8_t proof[LINK_PROOF_BYTES]; // zero: not proved
};
_Static_assert(sizeof(struct link_refuse) == 56, "refuse is 56 bytes on the wire");
enum { LINK_REFUSE_BYTES_ALWAYS = offsetof(struct link_refuse, proof) };

struct link_credit {
    struct link_message_head head;
    uint64_t released_count; // rises, never beyond the frames sent
    uint8_t mac[LINK_MAC_BYTES];
};
_Static_assert(sizeof(struct link_credit) == 32, "credit is 32 bytes on the wire");

// PING and BYE.
struct link_sign {
    struct link_message_head head;
    uint64_t sequence; // rises; counts with WORKER the messages of one direction from 1
    uint8_t mac[LINK_MAC_BYTES];
};
_Static_assert(sizeof(struct link_sign) == 32, "ping and bye are 32 bytes on the wire");

// The address of the UCX worker that a connection's frames go to or come from; its bytes follow.
// Without an address frames go over this connection: the sender says so when the receiver has none,
// or UCX finds no way to it, and then the receiver does not need its own. UCX trusts an address
// that it is given, so one that is damaged, of another UCX or of a stranger must not reach it.
struct link_worker {
    struct link_message_head head;
    uint64_t sequence;      // as in link_sign
    uint32_t address_bytes; // 0..LINK_WORKER_BYTES_MAX
    uint16_t ucx_major, ucx_minor;
    uint8_t mac[LINK_MAC_BYTES]; // of the above, and the address
};
_Static_assert(sizeof(struct link_worker) == 40, "worker is 40 bytes on the wire");

union link_message {
    struct link_message_head head;
    struct link_challenge challenge;
    struct link_hello hello;
    struct link_accept accept;
    struct link_refuse refuse;
    struct link_credit credit;
    struct link_sign sign;
};

// A zeroed message of this kind with its head.
union link_message link_message_make(enum link_message_kind kind);

// The size on the wire; 0 for kinds that are no message of this union.
size_t link_message_bytes(uint16_t kind);

// Checks a received message and copies it out; proofs and macs are not looked at here.
// STATUS_UNSUPPORTED: the HELLO, CHALLENGE or REFUSE of another version (only the head, and reason
// of a REFUSE, are meaningful). STATUS_INVALID: anything else that is not to the letter.
MUST_USE enum status link_message_parse(const void *data, size_t size_bytes,
                                        union link_message *message_out);

struct link_worker link_worker_make(uint16_t ucx_major, uint16_t ucx_minor, uint32_t address_bytes);

// How many bytes the message has that a stream goes on with, of which `available_bytes` are here.
// 0: too few are here to tell. SIZE_MAX: no message begins like this.
size_t link_stream_message_bytes(const void *data, size_t available_bytes);

// A clause such as "the peer expects another epoch".
const char *link_refusal_text(uint32_t reason);
