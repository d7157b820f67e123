// io: the thread that carries a process's frames, so that transfers progress while layers compute.
//
// It owns a port with the incoming and the outgoing links of a process: one each, to its two
// neighbours in the ring, and one more where tokens go straight back from the last stage to the
// first. The owner (the coordinator's loop, a stage's compute thread) meets it only in bounded
// rings: commands and frames go in, events come out, and `owner_wake` is signalled for each event.
#pragma once

#include "base/wake.h"
#include "transport/link.h"

struct io;

enum io_event_kind {
    IO_UP,       // all links of `epoch` are up
    IO_RECEIVED, // `frame` arrived: read it, then io_release
    IO_SENT,     // `frame` is the owner's again
    IO_LOST, // a link of `epoch` is lost; all are closed; frames in flight came back before this
};

struct io_event {
    enum io_event_kind kind;
    uint64_t epoch;
    uint32_t link_index; // IO_RECEIVED: of ins; IO_SENT: of outs
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
enum { IO_LINK_COUNT_MAX = 2 }; // each way
struct io_in {
    uint32_t link_id;
    uint8_t key[LINK_KEY_BYTES];
};
struct io_out {
    uint32_t link_id;
    uint8_t key[LINK_KEY_BYTES];
    char address[256];
};
struct io_ring_position {
    uint64_t epoch;
    uint32_t in_count, out_count;
    bool encrypts; // every link, what follows the header of a frame
    struct io_in ins[IO_LINK_COUNT_MAX];
    struct io_out outs[IO_LINK_COUNT_MAX];
    uint32_t credit_count;  // of each link
    size_t frame_bytes_max; // of each link
};
// Inside, the position is wiped once the links are made; `position` is the caller's to wipe.
MUST_USE bool io_connect(struct io *io, const struct io_ring_position *position);
MUST_USE bool io_disconnect(struct io *io);

// Gives a frame to send over outs[link_index]; it comes back by IO_SENT. Frames wait inside for
// credits, at most LINK_CREDIT_COUNT_MAX a link; false beyond that.
MUST_USE bool io_send(struct io *io, uint32_t link_index, struct frame *frame);
// Gives back a frame of IO_RECEIVED.
void io_release(struct io *io, struct frame *frame);

// What the port has refused since it was opened: see struct link_stats. Any thread.
uint64_t io_refused_count(const struct io *io);

// The next event, oldest first. False when there is none.
MUST_USE bool io_take(struct io *io, struct io_event *event_out);
