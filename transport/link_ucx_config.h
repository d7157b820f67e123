// link_ucx_config: the UCX settings that the data plane depends on, and why each is as it is.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <ucp/api/ucp.h>

#include "base/status.h"

// Settings for a port that listens on `listening`. The caller releases them with
// ucp_config_release. STATUS_IO: UCX refuses a setting; the error names it.
MUST_USE enum status ucx_config_make(const struct sockaddr *listening, ucp_config_t **config_out,
                                     struct error *error);

// The network devices for a listening address, in the form of UCX's NET_DEVICES; false: all of
// them.
//
//   127.0.0.1, ::1   "lo". Processes of one machine use shared memory and CMA, and no network.
//   10.0.0.7         the interface that has the address, and the RDMA devices behind it:
//                    "eth1,mlx5_0:1". Frames stay on the network that the operator chose, rather
//                    than on whichever interface UCX thinks fastest (a container bridge, say, which
//                    has the same address on every machine).
//   0.0.0.0, ::      all: UCX chooses. Only right where every interface reaches every peer.
bool ucx_devices_of(const struct sockaddr *listening, char *devices_out,
                    size_t devices_capacity_bytes);
