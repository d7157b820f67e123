#include "transport/link_stream.h"

#include <errno.h>
#include <string.h>

#include "base/check.h"

enum { HEADER_BYTES = sizeof(struct frame_header) };

// -- sending --------------------------------------------------------------------------------------

void stream_send_frame(struct stream *stream, struct send_slot *slot) {
    CHECK(stream->is_open && stream->send_count < LINK_CREDIT_COUNT_MAX);
    uint32_t at = (stream->send_first + stream->send_count++) % LINK_CREDIT_COUNT_MAX;
    stream->sends[at] = slot;
}

bool stream_is_full(const struct stream *stream, const struct channel *channel) {
    return channel->out_bytes > 0 || stream->send_count > 0;
}

// False: not now, or the connection is over (*status_out).
static bool push_frame(struct stream *stream, struct channel *channel, enum status *status_out,
                       const char **reason_out) {
    struct send_slot *slot = stream->sends[stream->send_first];
    const struct frame *frame = slot->frame;
    size_t sent_bytes;
    *status_out = channel_write(channel, frame->data + stream->sent_bytes,
                                frame->size_bytes - stream->sent_bytes, &sent_bytes, reason_out);
    if (*status_out != STATUS_OK || sent_bytes == 0) return false;
    stream->sent_bytes += sent_bytes;
    if (stream->sent_bytes < frame->size_bytes) return true;
    stream->sent_bytes = 0;
    stream->send_first = (stream->send_first + 1) % LINK_CREDIT_COUNT_MAX;
    stream->send_count--;
    send_slot_done(slot);
    return true;
}

// Messages go before frames, but not into one.
enum status stream_push(struct stream *stream, struct channel *channel, const char **reason_out) {
    enum status status = STATUS_OK;
    do {
        if (stream->sent_bytes == 0) status = channel_push(channel, reason_out);
        if (status != STATUS_OK || stream->send_count == 0) return status;
        if (stream->sent_bytes == 0 && channel->out_bytes > 0) return status;
    } while (push_frame(stream, channel, &status, reason_out));
    return status;
}

// -- receiving ------------------------------------------------------------------------------------

static void check_whole(struct stream *stream) {
    struct receive_slot *slot = stream->filling;
    if (stream->received_bytes < slot->frame->size_bytes) return;
    stream->filling = NULL;
    receive_slot_done(slot, true);
}

static size_t missing_bytes(const struct stream *stream) {
    return stream->filling->frame->size_bytes - stream->received_bytes;
}

enum status stream_pull(struct stream *stream, struct channel *channel, struct conn *conn,
                        const char **reason_out) {
    if (stream->filling == NULL || channel->in_bytes > 0) return channel_pull(channel, reason_out);
    for (size_t got_bytes = 1; stream->filling != NULL && got_bytes > 0;) {
        enum status status =
            channel_read(channel, stream->filling->frame->data + stream->received_bytes,
                         missing_bytes(stream), &got_bytes, reason_out);
        if (status != STATUS_OK) return status;
        stream->received_bytes += got_bytes;
        if (got_bytes > 0) conn_heard(conn);
        check_whole(stream);
    }
    return STATUS_OK;
}

static void fill_from_channel(struct stream *stream, struct channel *channel) {
    size_t bytes = missing_bytes(stream);
    if (bytes > channel->in_bytes) bytes = channel->in_bytes;
    memcpy(stream->filling->frame->data + stream->received_bytes, channel->in, bytes);
    stream->received_bytes += bytes;
    channel_drop(channel, bytes);
    check_whole(stream);
}

static bool frame_is_next(const struct channel *channel) {
    uint32_t magic;
    if (channel->in_bytes < sizeof(magic)) return false;
    memcpy(&magic, channel->in, sizeof(magic));
    return magic == FRAME_MAGIC;
}

// The header says how long the frame is. What it says is believed only if its mac holds, which
// conn_receive_frame looks at first; a sum that is no size cannot be agreed to.
static bool begin_frame(struct stream *stream, struct channel *channel, struct conn *conn) {
    struct frame_header header;
    memcpy(&header, channel->in, sizeof(header));
    uint64_t size_bytes = header.payload_offset + header.payload_bytes;
    bool is_size = header.payload_bytes <= FRAME_BYTES_MAX && size_bytes >= HEADER_BYTES;
    size_t rest_bytes = is_size ? (size_t)size_bytes - HEADER_BYTES : SIZE_MAX;
    stream->filling = conn_receive_frame(conn, channel->in, HEADER_BYTES, rest_bytes);
    if (stream->filling == NULL) return false;
    stream->received_bytes = HEADER_BYTES;
    channel_drop(channel, HEADER_BYTES);
    check_whole(stream);
    return true;
}

bool stream_take_frames(struct stream *stream, struct channel *channel, struct conn *conn) {
    while (stream->is_open && conn_is_live(conn)) {
        if (stream->filling != NULL) fill_from_channel(stream, channel);
        if (stream->filling != NULL) return false;
        if (!frame_is_next(channel)) return true;
        if (channel->in_bytes < HEADER_BYTES || !begin_frame(stream, channel, conn)) return false;
    }
    return conn_is_live(conn);
}
