// rpc_address: "host:port" and "unix:/path" in words for people, and the host of a peer.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

// "10.0.0.7:50051", "[::1]:50051", "name:0", ":50051" or "unix:/path". STATUS_INVALID with a
// sentence that names the address.
MUST_USE enum status rpc_address_check(const char *address, struct error *error);

bool rpc_address_is_unix(const char *address);
// "/path"; NULL when it is no unix socket's.
const char *rpc_address_unix_path(const char *address);

// Whether a valid address is reached from this machine only: a unix socket, or a host all of whose
// addresses are loopback ones. If not, *reason_out says why not, as in "10.0.0.7 is not loopback".
bool rpc_address_is_loopback(const char *address, struct error *reason_out);

// Why listening on a valid address fails: tries it once more and gives the system's words, such as
// "Address already in use". Never NULL; not to be freed.
const char *rpc_address_refusal(const char *address);

// The host out of a peer as gRPC writes it: "ipv4:10.0.0.7:4711" gives "10.0.0.7",
// "ipv6:%5B::1%5D:4711" gives "::1", anything else "". Cut at the capacity.
void rpc_address_peer_host(const char *peer, char *host_out, size_t host_capacity_bytes);
// The port, of the first 4711; 0 of anything else.
uint16_t rpc_address_peer_port(const char *peer);
