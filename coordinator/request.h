// request: a client's ask, from the message that was validated to the last token.
#pragma once

#include "coordinator/access_log.h"
#include "coordinator/completion.h"
#include "coordinator/sequence.h"
#include "proto/model_config.h"
#include "stagecoach/v1/inference.pb-c.h"
#include "transport/rpc.h"

struct request;

// One of the continuations that a request asks for.
struct answer {
    struct sequence sequence; // its owner is this answer
    struct completion completion;
    struct request *request;
    uint32_t index;
    uint64_t last_token_ns; // when the last one was known; 0: none yet
    bool is_ended;          // no more rows are computed for it
    bool is_last_sent;      // the client has its finish reason: of this call or of an earlier one
};

// Sends one message of what is new of an answer, and says in is_last_sent whether it was the last.
// False: nothing was sent, for the call has no room or the message must wait for more.
typedef bool request_send_fn(struct answer *answer, uint64_t now_ns);

struct request {
    char id[REQUEST_ID_BYTES_MAX + 1];
    char trace_id[TRACE_ID_BYTES]; // "": none
    struct answer *answers;
    uint32_t answer_count;
    struct answer *leader;  // the first that is computed: its prompt's blocks are the others' too
    uint32_t running_count; // answers not ended
    uint32_t unsent_count;  // answers whose last message was not sent
    struct stop_conditions stop; // of all answers
    char *cache_salt;            // NULL: none
    bool wants_logprobs;
    bool is_abortable;     // by its id: it came through VllmEngine
    bool wants_deltas;     // false: all of an answer comes in its last message
    request_send_fn *send; // as its service answers; set before the loop has the request
    struct rpc_call *call; // one reference; NULL until request_begin
    uint64_t arrived_ns, issued_ns, first_token_ns; // 0: not yet
    uint64_t sent_ns; // when the call last took something, 0: never; begins with is_ended
    bool is_first_sent;
    bool is_ended;       // all answers have ended, or it was refused
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
    bool clamps_max_tokens;            // what there is no room for is cut off, not refused
    // For seeds and names that the client leaves to us: 64 random bits. Any thread.
    uint64_t (*draw)(void *ctx);
    void *draw_ctx;
};

// STATUS_INVALID when there is no tokenizer, with a sentence that begins with the field's name.
MUST_USE enum status request_needs_tokenizer(const struct request_rules *rules, const char *field,
                                             struct error *error);

// Validates every field of the message, tokenizes the prompt, and makes the request with all its
// answers. Of a call that goes on with one that broke, each answer is as far as the client has it:
// it may be ended, or its completion may have its finish_reason already. STATUS_INVALID and
// STATUS_EXHAUSTED name the field, the value and the limit.
MUST_USE enum status request_open(const struct request_rules *rules,
                                  const Stagecoach__V1__GenerateRequest *message,
                                  uint64_t arrived_ns, struct request **request_out,
                                  struct error *error);
// Where its answers go; takes a reference to `call`.
void request_begin(struct request *request, struct rpc_call *call);
void request_close(struct request *request); // NULL allowed

// The seed that answer `index` draws with: that of the request for the first, and steps of
// REQUEST_SEED_STEP for the others.
uint64_t request_seed(uint64_t seed, uint32_t index);
