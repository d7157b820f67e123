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
        return sizeof(struct link_ping);
    case LINK_BYE:
        return sizeof(struct link_bye);
    default:
        return 0;
    }
}

static bool is_zero(const uint8_t *bytes, size_t size_bytes) {
    uint8_t any = 0;
    for (size_t i = 0; i < size_bytes; i++)
        any |= bytes[i];
    return any == 0;
}

static bool credit_count_is_valid(uint32_t credit_count) {
    return credit_count >= 1 && credit_count <= LINK_CREDIT_COUNT_MAX;
}

static bool hello_is_valid(const struct link_hello *hello) {
    return credit_count_is_valid(hello->credit_count) && hello->frame_bytes_max > 0 &&
           hello->frame_bytes_max <= FRAME_BYTES_MAX &&
           is_zero(hello->nonce, sizeof(hello->nonce)) && is_zero(hello->mac, sizeof(hello->mac));
}

static bool accept_is_valid(const struct link_accept *accept) {
    return credit_count_is_valid(accept->credit_count) && accept->reserved == 0 &&
           is_zero(accept->nonce, sizeof(accept->nonce)) &&
           is_zero(accept->mac, sizeof(accept->mac));
}

static bool fields_are_valid(const union link_message *message) {
    switch (message->head.kind) {
    case LINK_HELLO:
        return hello_is_valid(&message->hello);
    case LINK_ACCEPT:
        return accept_is_valid(&message->accept);
    case LINK_REFUSE:
        return message->refuse.reserved == 0;
    case LINK_CREDIT:
        return true; // the count is held against the link's own
    case LINK_PING:
        return message->ping.reserved == 0;
    case LINK_BYE:
        return message->bye.reserved == 0;
    default:
        return false;
    }
}

enum status link_message_parse(const void *data, size_t size_bytes,
                               union link_message *message_out) {
    union link_message message = {0};
    if (size_bytes < sizeof(message.head)) return STATUS_INVALID;
    memcpy(&message.head, data, sizeof(message.head));
    if (message.head.magic != LINK_WIRE_MAGIC) return STATUS_INVALID;
    bool is_refuse = message.head.kind == LINK_REFUSE;
    if (message.head.version != LINK_WIRE_VERSION) {
        if (!is_refuse && message.head.kind != LINK_HELLO) return STATUS_INVALID;
        if (is_refuse && size_bytes < sizeof(message.refuse)) return STATUS_INVALID;
        if (is_refuse) memcpy(&message.refuse, data, sizeof(message.refuse));
        *message_out = message;
        return STATUS_UNSUPPORTED;
    }
    if (size_bytes != link_message_bytes(message.head.kind)) return STATUS_INVALID;
    memcpy(&message, data, size_bytes);
    if (!fields_are_valid(&message)) return STATUS_INVALID;
    *message_out = message;
    return STATUS_OK;
}

struct link_frame_notice link_frame_notice_make(uint64_t sequence) {
    return (struct link_frame_notice){.head = head_make(LINK_FRAME), .sequence = sequence};
}

enum status link_frame_notice_parse(const void *data, size_t size_bytes,
                                    struct link_frame_notice *notice_out) {
    struct link_frame_notice notice;
    if (size_bytes != sizeof(notice)) return STATUS_INVALID;
    memcpy(&notice, data, sizeof(notice));
    if (notice.head.magic != LINK_WIRE_MAGIC || notice.head.version != LINK_WIRE_VERSION ||
        notice.head.kind != LINK_FRAME || notice.sequence == 0)
        return STATUS_INVALID;
    *notice_out = notice;
    return STATUS_OK;
}

uint64_t link_checksum(const void *data, size_t size_bytes) {
    const uint8_t *bytes = data;
    uint64_t sum = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < size_bytes; i++)
        sum = (sum ^ bytes[i]) * UINT64_C(0x100000001b3);
    return sum;
}

struct link_worker link_worker_make(uint16_t ucx_major, uint16_t ucx_minor, const void *address,
                                    uint32_t address_bytes) {
    return (struct link_worker){.head = head_make(LINK_WORKER),
                                .address_bytes = address_bytes,
                                .ucx_major = ucx_major,
                                .ucx_minor = ucx_minor,
                                .checksum = link_checksum(address, address_bytes)};
}

static size_t stream_worker_bytes(const void *data, size_t available_bytes) {
    struct link_worker worker;
    if (available_bytes < sizeof(worker)) return 0;
    memcpy(&worker, data, sizeof(worker));
    if (worker.address_bytes == 0 || worker.address_bytes > LINK_WORKER_BYTES_MAX) return SIZE_MAX;
    return sizeof(worker) + worker.address_bytes;
}

size_t link_stream_message_bytes(const void *data, size_t available_bytes) {
    struct link_message_head head;
    if (available_bytes < sizeof(head)) return 0;
    memcpy(&head, data, sizeof(head));
    if (head.magic != LINK_WIRE_MAGIC) return SIZE_MAX;
    if (head.version != LINK_WIRE_VERSION) {
        if (head.kind == LINK_REFUSE) return sizeof(struct link_refuse);
        return head.kind == LINK_HELLO ? sizeof(head) : SIZE_MAX;
    }
    if (head.kind == LINK_WORKER) return stream_worker_bytes(data, available_bytes);
    size_t bytes = link_message_bytes(head.kind);
    return bytes == 0 ? SIZE_MAX : bytes;
}

const char *link_refusal_text(uint32_t reason) {
    switch (reason) {
    case LINK_REFUSED_LINK:
        return "the peer does not expect this link";
    case LINK_REFUSED_EPOCH:
        return "the peer expects another epoch";
    case LINK_REFUSED_TAKEN:
        return "the peer has a sender for this link already";
    case LINK_REFUSED_FRAME_BYTES:
        return "the peer takes only smaller frames";
    case LINK_REFUSED_VERSION:
        return "the peer speaks another version of the link protocol";
    default:
        return "the peer refuses for an unknown reason";
    }
}
