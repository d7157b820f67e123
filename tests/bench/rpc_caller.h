// rpc_caller: one client for both servers of rpc_bench, on gRPC core alone: one thread, one
// connection. Everything that fails aborts.
#pragma once

#include <stdint.h>

struct caller;

struct caller *caller_open(uint16_t port);
void caller_close(struct caller *caller);

// Microseconds from the beginning of a unary call of 16 bytes to its status.
double caller_unary_us(struct caller *caller);
// Messages a second of one server stream of `count` of them, at least 2.
double caller_stream_rate(struct caller *caller, uint32_t count);
// Puts the microseconds of each of `count` round trips on one bidirectional stream into us_out.
void caller_ping_pongs(struct caller *caller, uint32_t count, double *us_out);
// Opens `count` bidirectional streams, each after one round trip; they stay until caller_close.
void caller_open_streams(struct caller *caller, uint32_t count);
