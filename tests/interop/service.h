// service: grpc.testing.TestService on transport/rpc, as the gRPC interoperability tests describe
// it (grpc/grpc: doc/interop-test-descriptions.md), and a meter of what it holds.
//
// Compression is not supported: answers asked to be compressed are refused with UNIMPLEMENTED.
#pragma once

#include "transport/rpc.h"

struct service;

// STATUS_NO_MEMORY, STATUS_IO.
MUST_USE enum status service_open(struct service **service_out);
// After the rpc that serves it was closed.
void service_close(struct service *service);

// Adds the services to `rpc`, before rpc_serve. `service` is borrowed until rpc_close.
MUST_USE enum status service_add(struct service *service, struct rpc *rpc, struct error *error);
