// reply: what is new of a request's answers, as messages on its call.
#pragma once

#include "coordinator/request.h"

// Sends everything unsent of this answer, and after the last message of the last answer ends the
// call with OK. What the call has no room for now stays in the completion.
void reply_send(struct answer *answer, uint64_t now_ns);
// The same for all answers: when the call is writable again.
void reply_send_all(struct request *request, uint64_t now_ns);

// A request_send_fn: the answers of Inference/Generate.
bool reply_send_one(struct answer *answer, uint64_t now_ns);

// Ends a call because as many wait as may; it should be made again after retry_ms.
void reply_refuse(struct rpc_call *call, uint32_t retry_ms);
