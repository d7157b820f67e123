// rpc_retry: the trailing metadata that tells a client when to call again, twice: for gRPC's own
// retries, grpc-retry-pushback-ms (gRFC A6); for programs, grpc-status-details-bin with a
// google.rpc.RetryInfo.
#pragma once

#include <stdint.h>

#include <grpc/grpc.h>

enum { RPC_RETRY_ENTRY_COUNT = 2 };

// The entries are to be given to rpc_retry_release once the batch has started.
void rpc_retry_write(grpc_status_code code, const char *message, uint32_t retry_ms,
                     grpc_metadata entries_out[RPC_RETRY_ENTRY_COUNT]);
void rpc_retry_release(grpc_metadata entries[RPC_RETRY_ENTRY_COUNT]);
