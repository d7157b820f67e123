// link: one-way channels for frames between neighbours, whatever carries them.
//
// A `struct port` is a process's end of the data plane: it listens, makes links, and progresses all
// of them on one thread. link_local joins ports of one process (tests, one-process pipelines);
// link_ucx joins processes and machines. Everything here is for the owner thread of the port,
// except where said. No call blocks except port_wait, and, for at most LINK_CLOSE_MS, port_close
// and the link_close of a sender whose peer does not take the frames still lent.
//
// A link has a sender end and a receiver end. The sender connects; the receiver must expect it: the
// same epoch, link id and key, else the connection is refused. With a key each end proves to the
// other that it has it, and every frame header and message after that has a mac; what follows the
// header only when the link encrypts (docs/protocol.md). The receiver grants `credit_count` frames
// in flight; a credit comes back when the receiver's owner releases the frame. Both ends ping every
// LINK_PING_MS and report a peer that is silent for LINK_LOST_MS. Frames arrive in order, at most
// once, and only of the link's epoch.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/status.h"
#include "proto/frame.h"
#include "proto/link_wire.h"

struct port;
struct link;

struct link_config {
    uint64_t epoch;
    uint32_t link_id;      // ring position of the sender: 0 is coordinator -> stage 0
    uint32_t credit_count; // receiver: granted; sender: wanted, the smaller one holds
    size_t frame_bytes_max;
    // The same at both ends, and of no other link or epoch. link_ucx takes no link without a key.
    bool has_key;
    bool encrypts; // with a key only
    uint8_t key[LINK_KEY_BYTES];
};

// What a port tells its owner, from inside port_poll, on the owner thread. Do not close links or
// the port from inside: note it and act after port_poll. ctx is the one given to connect or expect.
struct link_handler {
    // Both ends agreed; frames may flow.
    void (*up)(struct link *link, void *ctx);
    // Receiver: a frame arrived. The owner has it until link_release(); not yet parsed.
    void (*received)(struct link *link, void *ctx, struct frame *frame);
    // Sender: a frame given to link_send is no longer needed by the link, which has written to its
    // header and, when it encrypts, to all of it.
    void (*sent)(struct link *link, void *ctx, struct frame *frame);
    // The link is lost or could not be made; nothing follows but link_close by the owner. The error
    // names the peer and the reason. Frames lent to the link come back through `sent` before this.
    void (*lost)(struct link *link, void *ctx, const struct error *error);
};

// -- ports ---------------------------------------------------------------------------------------

struct port_config {
    struct clock clock;
    const struct link_handler *handler; // borrowed until port_close
};

// A hub joins local ports: an address book in memory. Owned by the caller; outlives its ports.
// Ports of one hub may be on different threads.
struct local_hub;
MUST_USE enum status local_hub_open(struct local_hub **hub_out);
void local_hub_close(struct local_hub *hub);
MUST_USE enum status port_open_local(struct local_hub *hub, const struct port_config *config,
                                     struct port **port_out);

// Listens on host:port_number (0: any free one; host "0.0.0.0" or "::" for all interfaces). Frames
// go by the interface of that host too: name the address of the network that should carry them (see
// ucx_devices_of). Between processes of one machine they go by shared memory, for which both must
// run as one user.
// STATUS_IO with a sentence that names the address, STATUS_NO_MEMORY.
MUST_USE enum status port_open_ucx(const char *host, uint16_t port_number,
                                   const struct port_config *config, struct port **port_out,
                                   struct error *error);

// Closes every link, bounded by LINK_CLOSE_MS. NULL allowed.
void port_close(struct port *port);

// What a peer connects to: "host:port" for ucx (the listening host as given), "local:N" for local.
const char *port_address(const struct port *port);

// Progresses everything once; handler functions run inside. Returns whether anything happened.
bool port_poll(struct port *port);

// Sleeps until something may have happened, `wake_fd` is readable, or timeout_ms passed. Spins for
// a short time first, so that a frame that comes soon costs no system call.
void port_wait(struct port *port, int wake_fd, int timeout_ms);

// -- links ---------------------------------------------------------------------------------------

// Receiver end: waits for the sender of config's epoch and link id. `lost` after LINK_CONNECT_MS
// without one. Neither end keeps `config`: wipe the key when no link needs it any more.
// STATUS_NO_MEMORY.
MUST_USE enum status link_expect(struct port *port, const struct link_config *config, void *ctx,
                                 struct link **link_out);

// Sender end. Tries again while the peer refuses (it may not expect us yet), until LINK_CONNECT_MS.
// A name is looked up here, which may block. STATUS_INVALID: the address is not "host:port";
// STATUS_UNAVAILABLE: the name has no address; STATUS_NO_MEMORY.
MUST_USE enum status link_connect(struct port *port, const char *address,
                                  const struct link_config *config, void *ctx,
                                  struct link **link_out, struct error *error);

// Starts sending `frame`, whose header must say its size. Returns false when the link is not up or
// no credit is left: poll, then try again. If true, the link borrows `frame` until `sent` runs. If
// false, the link kept nothing.
MUST_USE bool link_send(struct link *link, struct frame *frame);

// Receiver: gives a received frame back; its credit returns to the sender. Allowed after
// link_close.
void link_release(struct link *link, struct frame *frame);

// Frames lent to the link are no longer touched when this returns (`sent` does not run for them);
// received frames not yet released stay valid until they are, or until port_close. The link is not
// to be used any more, but for link_release. NULL allowed.
void link_close(struct link *link);

// Counters for status.
struct link_stats {
    uint64_t frame_count, byte_count;
    // Connections that did not prove to be the link's, also such that came too early; messages and
    // frames that are malformed or whose mac does not hold.
    uint64_t refused_count;
};
struct link_stats link_stats(const struct link *link);

// What all links of the port have refused since it was opened.
uint64_t port_refused_count(const struct port *port);
