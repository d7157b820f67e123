// rpc_refusal: what a server says beside code and message: when to call again, twice (for gRPC's
// own retries, the trailing metadata grpc-retry-pushback-ms, gRFC A6; for programs, a
// google.rpc.RetryInfo), and which field of the request is at fault (a google.rpc.BadRequest). The
// latter two are in a google.rpc.Status, the trailing metadata grpc-status-details-bin.
#pragma once

#include <stdint.h>

#include <grpc/grpc.h>

#include "transport/rpc.h"

// The values of the two; the caller unrefs them. retry_ms 0, field NULL: says nothing.
grpc_slice rpc_refusal_retry_text(uint32_t retry_ms);
grpc_slice rpc_refusal_details(enum rpc_code code, const char *message, uint32_t retry_ms,
                               const char *field);

// What a received grpc-retry-pushback-ms says: RPC_RETRY_UNSAID for NULL, RPC_RETRY_NEVER for a
// negative number or no number.
uint32_t rpc_refusal_read_retry(const char *value);
