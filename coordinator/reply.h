// reply: what is new of a request's completion, as messages on its call.
#pragma once

#include "coordinator/request.h"

// Sends everything unsent, and after the last message ends the call with OK. What the call has no
// room for now stays in the completion: call again when it is writable. Returns whether the last
// message was sent (or the call is over), so that nothing more is to come.
bool reply_send(struct request *request, uint64_t now_ns);
