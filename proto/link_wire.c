#include "proto/link_wire.h"

#include <stdbool.h>
#include <string.h>

#include "base/limits.h"

static struct link_message_head head_make(enum link_message_kind kind) {
    return (struct link_message_head){
        .magic = LINK_WIRE_MAGIC, .version = LINK_WIRE_VERSION, .kind = (uint16_t)kind};
}

union link_message link_message_make(enum link_message_kind kind) {
    union link_message message;
    memset(&message, 0, sizeof(message));
    message.head = head_make(kind);
    return message;
}

size_t link_message_bytes(uint16_t kind) {
    switch (kind) {
    case LINK_HELLO:
        return sizeof(struct link_hello);
    case LINK_ACCEPT:
        return sizeof(struct link_accept);
    case LINK_REFUSE:
        return sizeof(struct link_refuse);
    case LINK_CREDIT:
        return sizeof(struct link_credit);
    case LINK_PING:
    case LINK_BYE:
        return sizeof(struct link_sign);
    case LINK_CHALLENGE:
        return sizeof(struct link_challenge);
    default:
        return 0;
    }
}

static bool credit_count_is_valid(uint32_t credit_count) {
    return credit_count >= 1 && credit_count <= LINK_CREDIT_COUNT_MAX;
}

static bool hello_is_valid(const struct link_hello *hello) {
    return credit_count_is_valid(hello->credit_count) && hello->frame_bytes_max > 0 &&
           hello->frame_bytes_max <= FRAME_BYTES_MAX && (hello->flags & ~LINK_ENCRYPTS) == 0 &&
           hello->reserved == 0;
}

static bool fields_are_valid(const union link_message *message) {
    switch (message->head.kind) {
    case LINK_HELLO:
        return hello_is_valid(&message->hello);
    case LINK_ACCEPT:
        return credit_count_is_valid(message->accept.credit_count) && message->accept.reserved == 0;
    case LINK_REFUSE:
        return message->refuse.reserved == 0;
    case LINK_CHALLENGE:
    case LINK_CREDIT:
    case LINK_PING:
    case LINK_BYE:
        return true; // counts are held against the link's own
    default:
        return false;
    }
}

static enum status parse_other_version(const void *data, size_t size_bytes,
                                       union link_message *message_out) {
    union link_message message = {0};
    memcpy(&message.head, data, sizeof(message.head));
    switch (message.head.kind) {
    case LINK_REFUSE:
        if (size_bytes < LINK_REFUSE_BYTES_ALWAYS) return STATUS_INVALID;
        memcpy(&message.refuse, data, LINK_REFUSE_BYTES_ALWAYS);
        break;
    case LINK_HELLO:
    case LINK_CHALLENGE:
        break;
    default:
        return STATUS_INVALID;
    }
    *message_out = message;
    return STATUS_UNSUPPORTED;
}

enum status link_message_parse(const void *data, size_t size_bytes,
                               union link_message *message_out) {
    union link_message message = {0};
    if (size_bytes < sizeof(message.head)) return STATUS_INVALID;
    memcpy(&message.head, data, sizeof(message.head));
    if (message.head.magic != LINK_WIRE_MAGIC) return STATUS_INVALID;
    if (message.head.version != LINK_WIRE_VERSION)
        return parse_other_version(data, size_bytes, message_out);
    if (size_bytes != link_message_bytes(message.head.kind)) return STATUS_INVALID;
    memcpy(&message, data, size_bytes);
    if (!fields_are_valid(&message)) return STATUS_INVALID;
    *message_out = message;
    return STATUS_OK;
}

struct link_worker link_worker_make(uint16_t ucx_major, uint16_t ucx_minor,
                                    uint32_t address_bytes) {
    return (struct link_worker){.head = head_make(LINK_WORKER),
                                .address_bytes = address_bytes,
                                .ucx_major = ucx_major,
                                .ucx_minor = ucx_minor};
}

static size_t stream_worker_bytes(const void *data, size_t available_bytes) {
    struct link_worker worker;
    if (available_bytes < sizeof(worker)) return 0;
    memcpy(&worker, data, sizeof(worker));
    if (worker.address_bytes > LINK_WORKER_BYTES_MAX) return SIZE_MAX;
    return sizeof(worker) + worker.address_bytes;
}

size_t link_stream_message_bytes(const void *data, size_t available_bytes) {
    struct link_message_head head;
    if (available_bytes < sizeof(head)) return 0;
    memcpy(&head, data, sizeof(head));
    if (head.magic != LINK_WIRE_MAGIC) return SIZE_MAX;
    if (head.version != LINK_WIRE_VERSION) {
        if (head.kind == LINK_REFUSE) return LINK_REFUSE_BYTES_ALWAYS;
        bool is_greeting = head.kind == LINK_HELLO || head.kind == LINK_CHALLENGE;
        return is_greeting ? sizeof(head) : SIZE_MAX;
    }
    if (head.kind == LINK_WORKER) return stream_worker_bytes(data, available_bytes);
    size_t bytes = link_message_bytes(head.kind);
    return bytes == 0 ? SIZE_MAX : bytes;
}

const char *link_refusal_text(uint32_t reason) {
    switch (reason) {
    case LINK_REFUSED_LINK:
        return "the peer does not expect this link, of this epoch and with this key";
    case LINK_REFUSED_TAKEN:
        return "the peer has a sender for this link already";
    case LINK_REFUSED_FRAME_BYTES:
        return "the peer takes only smaller frames";
    case LINK_REFUSED_VERSION:
        return "the peer speaks another version of the link protocol";
    case LINK_REFUSED_FLAGS:
        return "one end encrypts and the other does not";
    default:
        return "the peer refuses for an unknown reason";
    }
}
