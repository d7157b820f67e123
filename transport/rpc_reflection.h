// rpc_reflection: the services grpc.reflection.v1.ServerReflection and its v1alpha, answered from
// the descriptor set of the rpc, so that clients without .proto files can call what it serves.
#pragma once

#include "transport/rpc.h"

// Adds both services; before rpc_serve. Listed are all services that are added until then.
// Errors as rpc_add_service.
MUST_USE enum status rpc_reflection_add(struct rpc *rpc, struct error *error);
