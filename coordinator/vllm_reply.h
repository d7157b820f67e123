// vllm_reply: the answers of VllmEngine/Generate, as messages on its call.
#pragma once

#include "coordinator/request.h"

// A request_send_fn. With wants_deltas: a chunk with new tokens or, when they all were sent and the
// answer is complete, its last message; else that one alone.
bool vllm_reply_send(struct answer *answer, uint64_t now_ns);
