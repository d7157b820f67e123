// io: the thread that carries a process's frames, so that transfers progress while layers compute.
//
// It owns a port with one incoming and one outgoing link (the process's two neighbours in the
// ring). The owner (the coordinator's loop, a stage's compute thread) meets it only in bounded
// rings: commands and frames go in, events come out, and `owner_wake` is signalled for each event.
#pragma once

#include "base/wake.h"
#include "transport/link.h"

struct io;

enum io_event_kind {
    IO_UP,       // both links of `epoch` are up
    IO_RECEIVED, // `frame` arrived: read it, then io_release
    IO_SENT,     // `frame` is the owner's again
    IO_LOST, // a link of `epoch` is lost; both are closed; frames in flight came back before this
};

struct io_event {
    enum io_event_kind kind;
    uint64_t epoch;
    struct frame *frame;
    struct error error; // IO_LOST
};

struct io_config {
    struct wake *owner_wake; // borrowed until io_close
};

// Takes the port, whose handler and clock io sets up itself: open it with io_port_config().
// Starts the thread. STATUS_NO_MEMORY, STATUS_IO.
struct port_config io_port_config(struct io *io);
MUST_USE enum status io_open(const struct io_config *config, struct io **io_out);
MUST_USE enum status io_start(struct io *io, struct port *port);
// Stops the thread, closes links and port, frees everything. Frames the owner still holds from
// IO_RECEIVED become invalid. NULL allowed.
void io_close(struct io *io);

// -- from the owner thread -----------------------------------------------------------------------

// Closes the links of the former epoch and makes those of this one; IO_UP or IO_LOST follows.
// Frames of the former epoch that were given to io_send and not sent come back as IO_SENT; received
// ones not yet taken are dropped. False when the command ring is full (never with one in flight).
struct io_ring_position {
    uint64_t epoch;
    uint32_t link_in_id;
    uint32_t link_out_id;
    uint32_t credit_count;
    size_t frame_bytes_max; // of both links
    char out_address[256];
};
MUST_USE bool io_connect(struct io *io, const struct io_ring_position *position);
MUST_USE bool io_disconnect(struct io *io);

// Gives a frame to send; it comes back by IO_SENT. Frames wait inside for credits, at most
// LINK_CREDIT_COUNT_MAX; false beyond that.
MUST_USE bool io_send(struct io *io, struct frame *frame);
// Gives back a frame of IO_RECEIVED.
void io_release(struct io *io, struct frame *frame);

// The next event, oldest first. False when there is none.
MUST_USE bool io_take(struct io *io, struct io_event *event_out);
