// rpc_retry: how a server tells a client when to call again, twice: for gRPC's own retries, the
// trailing metadata grpc-retry-pushback-ms (gRFC A6); for programs, grpc-status-details-bin with a
// google.rpc.RetryInfo.
#pragma once

#include <stdint.h>

#include <grpc/grpc.h>

// The values of these two; the caller unrefs them.
grpc_slice rpc_retry_text(uint32_t retry_ms);
grpc_slice rpc_retry_details(grpc_status_code code, const char *message, uint32_t retry_ms);

// What a received grpc-retry-pushback-ms says: RPC_RETRY_UNSAID for NULL, RPC_RETRY_NEVER for a
// negative number or no number.
uint32_t rpc_retry_read(const char *value);
