// link_internal: what link.c (the API), link_greeting.c (who may speak), link_protocol.c (the state
// machine of a link) and the carriers (link_local.c, link_ucx.c) share. Nothing outside these files
// includes it.
//
// A carrier gives *connections*: two-way pipes that carry messages (link_wire.h) and frames. The
// protocol decides everything else: who may speak on a connection, credits, pings, when to try
// again and when to give up. Carriers report from inside progress() by the functions at the end;
// these only change state. The owner's handler runs afterwards, from link_deliver().
#pragma once

#include <sys/socket.h>

#include "base/limits.h"
#include "proto/link_wire.h"
#include "transport/link.h"
#include "transport/link_crypto.h"

struct carrier_ops;
struct ucx_data;

enum conn_phase {
    CONN_OPEN,
    CONN_FLUSHING, // what was sent leaves, then it is forced
    CONN_FORCED,   // the carrier gives everything back
};

// A carrier's own struct has this first.
struct conn {
    struct port *port;
    struct conn *next;
    struct link *link;     // NULL: not bound yet, or not any more
    struct ucx_data *data; // link_ucx: the way of the frames
    bool accepted;         // the peer made it
    bool pending;          // accepted, and no hello has bound it to a link yet
    bool trusted;          // the peer has proved the key of `link`, where it has one
    bool has_way;          // carrier: frames can flow; a sender's link is not up before
    enum conn_phase phase;
    enum conn_phase wanted; // set where acting at once is not allowed; done by the next sweep
    uint32_t crowd_count;   // pending: of its host, when one had to go
    uint64_t deadline_ms;   // pending: for the hello; FLUSHING: until forced
    bool failed;            // it broke; `reason` says how
    bool flushed;           // carrier: everything sent has left
    bool gone;              // carrier: nothing refers to it any more, it can be freed
    char reason[128];
    char peer[64];                          // accepted: where it comes from
    uint8_t nonce[LINK_NONCE_BYTES];        // of the challenge
    struct link_hello hello;                // dialed: ours
    uint64_t sent_sequence, heard_sequence; // of messages that have one
};

// Where a link's peer may be; a carrier fills it from the text of link_connect.
struct conn_address {
    struct sockaddr_storage sockaddrs[LINK_ADDRESS_COUNT_MAX];
    socklen_t sockaddr_bytes[LINK_ADDRESS_COUNT_MAX];
    size_t count;
    uint32_t local_id;
};

struct send_slot {
    struct link *link;
    struct frame *frame; // NULL: the slot is free
    bool done;           // the carrier needs the frame no more
};

enum receive_state { RECEIVE_EMPTY, RECEIVE_FILLING, RECEIVE_READY };

struct receive_slot {
    struct link *link;
    struct frame *frame;
    enum receive_state state;
    uint64_t sequence;
    uint8_t payload_tag[LINK_MAC_BYTES];
};

enum link_state {
    LINK_WAITING,  // receiver: for the sender's hello; sender: for the next attempt
    LINK_GREETING, // sender: hello is on its way
    LINK_UP,
    LINK_LOSING, // the connection is being torn down, lent frames are coming back
    LINK_LOST,   // the owner knows
};

struct link {
    struct port *port;
    struct link *next;
    struct link_config config;
    void *ctx;
    bool is_sender;
    bool closed; // the owner has let go; freed when no frame is out
    enum link_state state;
    struct conn *conn;
    char peer[256];
    struct error error;
    uint64_t deadline_ms; // WAITING, GREETING: gives up then
    uint64_t heard_ms, pinged_ms;
    bool up_untold;
    uint32_t credit_count;       // agreed
    struct link_session session; // with a key: agreed too, once the connection is trusted
    struct link_stats stats;
    uint64_t port_refused_count_before;

    // Sender. Counts are of all frames since the link was made.
    struct conn_address address;
    uint64_t retry_ms;
    uint32_t attempt_count;
    const char *refusal; // of the last attempt
    struct send_slot *sends;
    uint64_t sent_count;
    uint64_t credited_count; // released by the receiver, as it told us
    uint32_t lent_count;     // frames in `sends`
    uint32_t done_count;     // of these, not yet given back to the owner

    // Receiver.
    struct receive_slot *receives;
    struct frame *frames; // credit_count of them
    struct frame **free_frames;
    uint32_t free_count;
    uint8_t *memory;
    size_t memory_bytes;
    uint64_t delivered_count;
    uint64_t released_count;
    uint64_t released_told_count;
    uint32_t filling_count; // slots the carrier writes to
    uint32_t held_count;    // frames the owner has
};

struct port {
    const struct carrier_ops *ops;
    struct clock clock;
    const struct link_handler *handler;
    struct link *links;
    struct conn *conns;
    uint32_t pending_count;          // accepted connections that never had a link
    uint64_t now_ms;                 // when port_poll began
    uint64_t timed_ms;               // when timers last ran
    uint64_t refused_count;          // in all
    uint64_t refused_by_links_count; // of these, counted by links
    uint64_t stranger_count;         // refused connections that the log was not told of yet
    uint64_t stranger_log_ms;        // when it may be told again
    bool in_handler;
    bool happened; // something for the owner since port_poll began
    char address[320];
};

struct carrier_ops {
    // Takes in what has arrived and moves what leaves. Never calls the handler.
    bool (*progress)(struct port *port);
    void (*wait)(struct port *port, int wake_fd, int timeout_ms);
    // STATUS_INVALID: malformed. STATUS_UNAVAILABLE: a name without an address.
    enum status (*resolve)(struct port *port, const char *text, struct conn_address *address_out,
                           struct error *error);
    // A connection to candidate address_index; it may fail later, by conn_broke.
    enum status (*dial)(struct port *port, const struct conn_address *address, size_t address_index,
                        struct conn **conn_out);
    // Copies the message. False when there is no room: the peer has not taken earlier ones.
    bool (*send_message)(struct conn *conn, const union link_message *message);
    // Borrows the slot and its frame until send_slot_done. The header goes ahead of the rest.
    void (*send_frame)(struct conn *conn, struct send_slot *slot);
    // conn->flushed follows, unless it is forced before.
    void (*flush)(struct conn *conn);
    // conn->gone follows: then nothing touches slots and frames any more. Slots that were not
    // reported done until then need no report.
    void (*force)(struct conn *conn);
    void (*free_conn)(struct conn *conn);
    // Ends whatever connections are left.
    void (*close)(struct port *port);
    bool needs_keys; // strangers reach it
};

// -- link.c --------------------------------------------------------------------------------------

void port_init(struct port *port, const struct carrier_ops *ops, const struct port_config *config);
// Carries out what `wanted` says of each connection; frees those that are gone.
void port_sweep_conns(struct port *port);

// -- link_greeting.c -----------------------------------------------------------------------------

void link_greet(struct link *link); // sender: the next attempt
void conn_receive_greeting(struct conn *conn, const union link_message *message);
// The HELLO, CHALLENGE or REFUSE of another version.
void conn_receive_other_version(struct conn *conn, const union link_message *message);

// -- link_protocol.c -----------------------------------------------------------------------------

void link_lose(struct link *link, const char *format, ...) PRINTF_LIKE(2, 3);
void link_run_timers(struct link *link);
// Runs the handler for everything that has happened to the link.
void link_deliver(struct link *link);
void link_return_credit(struct link *link);
void link_come_up(struct link *link);
// Sends PING or BYE; whether it could be.
bool conn_send_sign(struct conn *conn, enum link_message_kind kind);
// Counts what a connection sent in vain, for the link it has or the port.
void conn_count_refusal(struct conn *conn);
// Tells the log of a peer that has no business here.
void conn_log_stranger(struct conn *conn, const char *reason);
void conn_end(struct conn *conn, enum conn_phase wanted);
void conn_check_failed(struct conn *conn);

// -- reports of carriers, from inside progress ---------------------------------------------------

// Puts a connection into the port's list; the carrier made it for dial, or a peer did.
void conn_init(struct conn *conn, struct port *port, bool accepted);
// A connection that a peer made can take messages: asks who it is.
void conn_challenge(struct conn *conn);
// Frames of a dialed connection can flow from now on.
void conn_opened_way(struct conn *conn);
bool port_has_room_for_pending(const struct port *port);
// Ends a connection that has not said hello; room follows.
void port_evict_pending(struct port *port);
bool conn_is_live(const struct conn *conn); // neither broken nor being ended
void conn_broke(struct conn *conn, const char *reason);
// The same for a peer that breaks the protocol; counted.
void conn_refuse_message(struct conn *conn, const char *reason);
void conn_receive_message(struct conn *conn, const void *data, size_t size_bytes);
// WORKER messages, which carriers send and take themselves.
void conn_seal_worker(struct conn *conn, struct link_worker *worker, const void *address);
MUST_USE bool conn_worker_is_sealed(struct conn *conn, const struct link_worker *worker,
                                    const void *address);
// Where to put a frame; NULL: it is refused, and the connection ends. Its header is written there;
// rest_bytes that follow are the carrier's to write behind it.
struct receive_slot *conn_receive_frame(struct conn *conn, const void *header, size_t header_bytes,
                                        size_t rest_bytes);
// Part of a frame came; its end may take long.
void conn_heard(struct conn *conn);
void receive_slot_done(struct receive_slot *slot, bool complete);
void send_slot_done(struct send_slot *slot);
