// link_channel: messages over a TCP connection, without blocking. It finds where a message ends and
// knows nothing of what it says.
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/limits.h"
#include "base/status.h"
#include "proto/link_wire.h"

enum { CHANNEL_BUFFER_BYTES = sizeof(struct link_worker) + LINK_WORKER_BYTES_MAX + 1024 };

struct channel {
    int fd;
    size_t in_bytes, out_bytes; // in the buffers
    uint8_t in[CHANNEL_BUFFER_BYTES];
    uint8_t out[CHANNEL_BUFFER_BYTES];
};

// A listening socket; for 0.0.0.0 one that is reached by IPv6 too, where there is any.
// *port_number_out: the one that was bound. STATUS_IO.
MUST_USE enum status channel_listen(const struct sockaddr *address, socklen_t address_bytes,
                                    int *fd_out, uint16_t *port_number_out, struct error *error);

// A connection that is on its way; whether it succeeds shows in channel_push or channel_pull.
// STATUS_IO: there are no descriptors left, or no route.
MUST_USE enum status channel_dial(struct channel *channel, const struct sockaddr *address,
                                  socklen_t address_bytes);

// The next connection that a peer made. False: there is none (or no descriptor for it).
// peer_out: its host as text.
MUST_USE bool channel_accept(struct channel *channel, int listening_fd, char *peer_out,
                             size_t peer_capacity_bytes);
void channel_close(struct channel *channel);

// Queues bytes; false, and nothing is queued, when the peer has left too many unread.
MUST_USE bool channel_put(struct channel *channel, const void *data, size_t size_bytes);

// Sends what is queued, receives what has come: as much as goes without waiting.
// STATUS_UNAVAILABLE: the connection is over, for `reason`.
MUST_USE enum status channel_push(struct channel *channel, const char **reason_out);
MUST_USE enum status channel_pull(struct channel *channel, const char **reason_out);

// The same for bytes that are not queued: *bytes_out of them went, 0: none do without waiting.
MUST_USE enum status channel_write(struct channel *channel, const void *data, size_t size_bytes,
                                   size_t *bytes_out, const char **reason_out);
MUST_USE enum status channel_read(struct channel *channel, void *out, size_t size_bytes,
                                  size_t *bytes_out, const char **reason_out);

// The first message received and not yet dropped. STATUS_UNAVAILABLE: not here yet.
// STATUS_INVALID: what came is no message.
MUST_USE enum status channel_first(const struct channel *channel, size_t *size_bytes_out);
void channel_drop(struct channel *channel, size_t size_bytes);
