// request: a client's ask, from the message that was validated to the last token.
#pragma once

#include "coordinator/completion.h"
#include "coordinator/sequence.h"
#include "proto/model_config.h"
#include "stagecoach/v1/inference.pb-c.h"
#include "transport/rpc.h"

struct request {
    char id[REQUEST_ID_BYTES_MAX + 1];
    struct sequence sequence;
    struct completion completion;
    bool wants_logprobs;
    struct rpc_call *call;                          // one reference
    uint64_t arrived_ns, issued_ns, first_token_ns; // 0: not yet
    uint64_t last_token_ns;
    bool is_first_sent;
    bool is_ended;       // the last message was given to the call, or it was refused
    bool is_call_closed; // the call is over: nothing refers to the request from outside
    TAILQ_ENTRY(request) link;
};
TAILQ_HEAD(request_list, request);

// What requests are held against.
struct request_rules {
    const struct model_config *model;
    const struct tokenizer *tokenizer; // NULL: token ids alone
    uint32_t position_count_max;       // prompt and completion, also bounded by the KV memory
    uint32_t kv_position_count;        // positions that the KV memory has in all
    // For seeds and names that the client leaves to us: 64 random bits. Any thread.
    uint64_t (*draw)(void *ctx);
    void *draw_ctx;
};

// STATUS_INVALID when there is no tokenizer, with a sentence that begins with the field's name.
MUST_USE enum status request_needs_tokenizer(const struct request_rules *rules, const char *field,
                                             struct error *error);

// Validates every field of the message, tokenizes the prompt, and makes the request; takes a
// reference to `call`. STATUS_INVALID and STATUS_EXHAUSTED name the field, the value and the limit.
MUST_USE enum status request_open(const struct request_rules *rules, struct rpc_call *call,
                                  const Stagecoach__V1__GenerateRequest *message,
                                  uint64_t arrived_ns, struct request **request_out,
                                  struct error *error);
void request_close(struct request *request); // NULL allowed

static inline struct request *request_of(struct sequence *sequence) {
    return (struct request *)((char *)sequence - offsetof(struct request, sequence));
}
