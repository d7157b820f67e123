// link_stream: frames over the connection that carries the messages, where UCX has no way of its
// own (between machines without RDMA). Nobody but the peer that has proved itself can speak on it.
//
// A frame is its bytes as they are, the header first, between two messages; the first four bytes
// tell one from the other. Owner thread only.
#pragma once

#include "transport/link_channel.h"
#include "transport/link_internal.h"

struct stream {
    bool is_open;                                   // frames go this way
    struct send_slot *sends[LINK_CREDIT_COUNT_MAX]; // a queue
    uint32_t send_first, send_count;
    size_t sent_bytes;            // of the oldest
    struct receive_slot *filling; // NULL: none
    size_t received_bytes;        // of it, header included
};

// Queues a frame; stream_push sends it.
void stream_send_frame(struct stream *stream, struct send_slot *slot);
// Whether something waits for the peer to take it.
bool stream_is_full(const struct stream *stream, const struct channel *channel);

// channel_push and channel_pull, with frames.
MUST_USE enum status stream_push(struct stream *stream, struct channel *channel,
                                 const char **reason_out);
MUST_USE enum status stream_pull(struct stream *stream, struct channel *channel, struct conn *conn,
                                 const char **reason_out);

// Takes what the channel has of frames out of it. Whether a message may be next; if not, more has
// to come first, or the connection is broken.
MUST_USE bool stream_take_frames(struct stream *stream, struct channel *channel, struct conn *conn);
