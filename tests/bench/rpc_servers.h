// rpc_servers: the two servers that rpc_bench compares, each the whole of a process.
#pragma once

// Every method of stagecoach.bench.Echo with as little code over gRPC core as it takes: no
// protobuf, no limits, no locks, nothing checked but what it aborts for. Prints its port and serves
// until it is killed.
void serve_minimal(void);
// The same over transport/rpc.
void serve_rpc(void);
