#include "coordinator/vllm_reply.h"

#include <stdlib.h>

#include "base/memory.h"
#include "vllm/vllm_engine.pb-c.h"

// Tokens of one chunk: bounds the arrays on the stack. More tokens make more chunks.
enum { CHUNK_TOKEN_COUNT = 16 };

// What the log-probabilities of some tokens need as a message. The arrays are the caller's.
struct logprobs {
    Vllm__Grpc__Engine__OutputLogProbs message;
    float *values; // one a token, as the next three
    uint32_t *token_ids;
    Vllm__Grpc__Engine__TopLogProbs *tops;
    Vllm__Grpc__Engine__TopLogProbs **top_pointers;
    float *top_values; // one an alternative, as the next
    uint32_t *top_token_ids;
};

static void write_logprobs(const struct answer *answer, uint32_t count, struct logprobs *out) {
    const struct completion *c = &answer->completion;
    uint32_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct completion_token *token = &c->tokens[i];
        out->values[i] = token->logprob;
        out->token_ids[i] = token->token_id;
        Vllm__Grpc__Engine__TopLogProbs *top = &out->tops[i];
        vllm__grpc__engine__top_log_probs__init(top);
        top->values = &out->top_values[used];
        top->token_ids = &out->top_token_ids[used];
        top->n_values = top->n_token_ids = token->top_count;
        for (uint32_t t = 0; t < token->top_count; t++, used++) {
            out->top_values[used] = c->tops[token->top_first + t].logprob;
            out->top_token_ids[used] = c->tops[token->top_first + t].token_id;
        }
        out->top_pointers[i] = top;
    }
    vllm__grpc__engine__output_log_probs__init(&out->message);
    out->message.token_logprobs = out->values;
    out->message.token_ids = out->token_ids;
    out->message.top_logprobs = out->top_pointers;
    out->message.n_token_logprobs = out->message.n_token_ids = count;
    if (answer->sequence.sampling.top_logprob_count > 0) out->message.n_top_logprobs = count;
}

static bool send(struct answer *answer, const Vllm__Grpc__Engine__GenerateResponse *message,
                 uint32_t token_count, uint64_t now_ns) {
    struct request *request = answer->request;
    if (!rpc_call_send(request->call, &message->base)) return false;
    request->is_first_sent = true;
    request->sent_ns = now_ns;
    completion_sent(&answer->completion, token_count);
    return true;
}

// -- chunks ---------------------------------------------------------------------------------------

struct chunk_arrays {
    uint32_t token_ids[CHUNK_TOKEN_COUNT];
    float values[CHUNK_TOKEN_COUNT];
    Vllm__Grpc__Engine__TopLogProbs tops[CHUNK_TOKEN_COUNT];
    Vllm__Grpc__Engine__TopLogProbs *top_pointers[CHUNK_TOKEN_COUNT];
    float top_values[CHUNK_TOKEN_COUNT * REQUEST_TOP_LOGPROB_COUNT_MAX];
    uint32_t top_token_ids[CHUNK_TOKEN_COUNT * REQUEST_TOP_LOGPROB_COUNT_MAX];
};

static bool send_chunk(struct answer *answer, uint64_t now_ns) {
    const struct completion *c = &answer->completion;
    const struct sequence *leader = &answer->request->leader->sequence;
    struct chunk_arrays arrays;
    struct logprobs logprobs = {
        .values = arrays.values,
        .token_ids = arrays.token_ids,
        .tops = arrays.tops,
        .top_pointers = arrays.top_pointers,
        .top_values = arrays.top_values,
        .top_token_ids = arrays.top_token_ids,
    };
    uint32_t count = c->unsent_count < CHUNK_TOKEN_COUNT ? c->unsent_count : CHUNK_TOKEN_COUNT;
    write_logprobs(answer, count, &logprobs);
    Vllm__Grpc__Engine__GenerateStreamChunk chunk = VLLM__GRPC__ENGINE__GENERATE_STREAM_CHUNK__INIT;
    chunk.n_token_ids = count;
    chunk.token_ids = arrays.token_ids;
    chunk.prompt_tokens = leader->prompt_count;
    chunk.completion_tokens = count;
    chunk.cached_tokens = leader->cached_count;
    chunk.index = answer->index;
    if (answer->request->wants_logprobs) chunk.output_logprobs = &logprobs.message;
    Vllm__Grpc__Engine__GenerateResponse out = VLLM__GRPC__ENGINE__GENERATE_RESPONSE__INIT;
    out.response_case = VLLM__GRPC__ENGINE__GENERATE_RESPONSE__RESPONSE_CHUNK;
    out.chunk = &chunk;
    return send(answer, &out, count, now_ns);
}

// -- the last message -----------------------------------------------------------------------------

static bool is_eos(const struct stop_conditions *stop, uint32_t token_id) {
    for (uint32_t i = 0; !stop->ignore_eos && i < stop->eos_count; i++)
        if (stop->eos_ids[i] == token_id) return true;
    return false;
}

static void write_end(const struct completion *c, Vllm__Grpc__Engine__GenerateComplete *out) {
    static const char *const reasons[] = {
        [FINISH_STOP] = "stop",
        [FINISH_LENGTH] = "length",
        [FINISH_CANCELLED] = "abort",
    };
    out->finish_reason = (char *)reasons[c->finish_reason];
    if (c->finish_reason != FINISH_STOP) return;
    if (c->stopped_by_string) {
        out->matched_stop_case =
            VLLM__GRPC__ENGINE__GENERATE_COMPLETE__MATCHED_STOP_MATCHED_STOP_STR;
        out->matched_stop_str = c->stop->strings[c->stop_string_index];
    } else if (!is_eos(c->stop, c->stop_token_id)) {
        out->matched_stop_case =
            VLLM__GRPC__ENGINE__GENERATE_COMPLETE__MATCHED_STOP_MATCHED_TOKEN_ID;
        out->matched_token_id = c->stop_token_id;
    }
}

static void free_arrays(struct logprobs *logprobs) {
    free(logprobs->values);
    free(logprobs->token_ids);
    free(logprobs->tops);
    free(logprobs->top_pointers);
    free(logprobs->top_values);
    free(logprobs->top_token_ids);
}

static bool make_arrays(const struct completion *c, struct logprobs *out) {
    size_t count = c->unsent_count, top_count = c->top_count;
    *out = (struct logprobs){
        .values = memory_array(count, sizeof(*out->values)),
        .token_ids = memory_array(count, sizeof(*out->token_ids)),
        .tops = memory_array(count, sizeof(*out->tops)),
        .top_pointers = memory_array(count, sizeof(*out->top_pointers)),
        .top_values = memory_array(top_count, sizeof(*out->top_values)),
        .top_token_ids = memory_array(top_count, sizeof(*out->top_token_ids)),
    };
    return out->values != NULL && out->token_ids != NULL && out->tops != NULL &&
           out->top_pointers != NULL && out->top_values != NULL && out->top_token_ids != NULL;
}

static bool send_complete(struct answer *answer, uint64_t now_ns) {
    struct request *request = answer->request;
    const struct completion *c = &answer->completion;
    const struct sequence *sequence = &answer->sequence, *leader = &request->leader->sequence;
    Vllm__Grpc__Engine__GenerateComplete complete = VLLM__GRPC__ENGINE__GENERATE_COMPLETE__INIT;
    complete.n_output_ids = complete.completion_tokens = c->token_count;
    complete.output_ids = &sequence->tokens[sequence->prompt_count];
    complete.prompt_tokens = leader->prompt_count;
    complete.cached_tokens = leader->cached_count;
    complete.index = answer->index;
    write_end(c, &complete);
    struct logprobs logprobs = {0};
    if (request->wants_logprobs && !request->wants_deltas) {
        if (!make_arrays(c, &logprobs)) {
            free_arrays(&logprobs);
            rpc_call_end(request->call, RPC_RESOURCE_EXHAUSTED, "no memory for log-probabilities");
            return false;
        }
        write_logprobs(answer, c->unsent_count, &logprobs);
        complete.output_logprobs = &logprobs.message;
    }
    Vllm__Grpc__Engine__GenerateResponse out = VLLM__GRPC__ENGINE__GENERATE_RESPONSE__INIT;
    out.response_case = VLLM__GRPC__ENGINE__GENERATE_RESPONSE__RESPONSE_COMPLETE;
    out.complete = &complete;
    answer->is_last_sent = send(answer, &out, c->unsent_count, now_ns);
    free_arrays(&logprobs);
    return answer->is_last_sent;
}

bool vllm_reply_send(struct answer *answer, uint64_t now_ns) {
    const struct completion *c = &answer->completion;
    if (answer->request->wants_deltas && c->unsent_count > 0) return send_chunk(answer, now_ns);
    return c->finish_reason != FINISH_NONE && send_complete(answer, now_ns);
}
