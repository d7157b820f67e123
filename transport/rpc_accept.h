// rpc_accept: how many connections the servers of this process hold.
//
// gRPC core (1.51) accepts whatever comes, and when accept4() fails, for want of descriptors above
// all, it gives up its listening socket for good. So this module stands between the two: it defines
// the accept4() that the library calls, which passes on what is not a socket of a server here. A
// connection beyond the limit, or one that the system has no descriptor for, is closed at once, and
// its client sees UNAVAILABLE; gRPC is only ever told of connections, or of none for now.
#pragma once

#include <stdint.h>

#include "base/status.h"

// A set of ports of peers; 0 is all unix sockets.
struct rpc_ports {
    uint64_t words[65536 / 64];
};

struct rpc_accept;

// From now on the listening sockets of `port` or, when it is 0, of the unix socket at `path`, hold
// at most this many connections, and at most as many as leave RPC_DESCRIPTOR_COUNT_SPARE of the
// process's descriptors free. STATUS_EXHAUSTED beyond RPC_ACCEPT_SERVER_COUNT_MAX,
// STATUS_NO_MEMORY, STATUS_IO.
MUST_USE enum status rpc_accept_open(uint16_t port, const char *path, uint32_t connection_count_max,
                                     struct rpc_accept **accept_out);
void rpc_accept_close(struct rpc_accept *accept); // NULL allowed

// Every further connection is closed at once.
void rpc_accept_stop(struct rpc_accept *accept);
// Closes the connections whose peers have none of these ports, as the peers see it; gRPC notices
// and lets go of them. What has been written to them still arrives.
void rpc_accept_shut_others(struct rpc_accept *accept, const struct rpc_ports *busy);
