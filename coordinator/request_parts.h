// request_parts: what the files that read a request's message share.
#pragma once

#include "coordinator/request.h"

// STATUS_INVALID, with a sentence that says what `field` is and what the limit is.
MUST_USE enum status request_check_count(const char *field, size_t value, size_t limit,
                                         struct error *error);
// The same for a repeated field and how many entries it has.
MUST_USE enum status request_check_length(const char *field, size_t count, size_t limit,
                                          struct error *error);
// The same for element `index` of `field` and the model's vocabulary.
MUST_USE enum status request_check_token_id(const struct request_rules *rules, const char *field,
                                            size_t index, uint32_t token_id, struct error *error);

// Brings the answers, which are as at the beginning of a new call, to where the client has them by
// message->resume; nothing changes when that is empty. STATUS_INVALID, STATUS_EXHAUSTED,
// STATUS_NO_MEMORY.
MUST_USE enum status request_resume(const struct request_rules *rules,
                                    const Stagecoach__V1__GenerateRequest *message,
                                    struct request *request, struct error *error);
