// rpc_health: the service grpc.health.v1.Health. Says of each service what its owner has set; knows
// nothing of how that comes about.
#pragma once

#include "transport/rpc.h"

// As on the wire (proto/grpc/health/v1/health.proto).
enum rpc_health_status {
    RPC_HEALTH_SERVING = 1,
    RPC_HEALTH_NOT_SERVING = 2,
};
const char *rpc_health_status_name(enum rpc_health_status status); // such as "NOT_SERVING"

struct rpc_health;

MUST_USE enum status rpc_health_open(struct rpc_health **health_out);
// After rpc_close of what it was added to. NULL allowed.
void rpc_health_close(struct rpc_health *health);

// Adds the service; before rpc_serve. Errors as rpc_add_service.
MUST_USE enum status rpc_health_add(struct rpc_health *health, struct rpc *rpc,
                                    struct error *error);

// Any thread. A service, "" for the server as a whole, is known from the first time. Those who
// watch it are told when the status is another one; a reader that is too slow for every change gets
// the last. `service` is borrowed until rpc_health_close. At most RPC_HEALTH_SERVICE_COUNT_MAX
// services.
void rpc_health_set(struct rpc_health *health, const char *service, enum rpc_health_status status);

// Ends the streams of those who watch, with UNAVAILABLE; new ones are refused with it. Before
// rpc_close, which would wait for them. Any thread.
void rpc_health_end_watches(struct rpc_health *health);
