// access_log: one line of the log for each client request that is over: who asked what, how it
// ended, what it took. At level info; --access-log off leaves them out.
#pragma once

#include "transport/rpc.h"

struct request;

// An id of W3C Trace Context as text, with its '\0'.
enum { TRACE_ID_BYTES = 33 };

// The trace id of a traceparent header (https://www.w3.org/TR/trace-context/#traceparent-header):
// "" when it has none, as a header that is not to the letter is to be treated.
void trace_id_parse(const char *traceparent, char trace_id_out[TRACE_ID_BYTES]);
// The trace id that the metadata of a server's call has, "" when there is none. Before `closed`
// has returned.
void access_trace_id(const struct rpc_call *call, char trace_id_out[TRACE_ID_BYTES]);

// Once, before calls come.
void access_log_enable(bool is_enabled);

// Writes the line of a call whose `closed` has run or runs. `request`: what was computed for it,
// NULL when there is nothing to say.
void access_log_write(const struct rpc_call *call, const char *trace_id,
                      const struct request *request);
// The same of a call without a request, before its `closed` has returned.
void access_log_write_call(const struct rpc_call *call);
