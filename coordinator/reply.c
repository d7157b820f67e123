#include "coordinator/reply.h"

// Tokens of one message: bounds the arrays on the stack. More tokens make more messages.
enum { REPLY_TOKEN_COUNT = 16 };

struct parts {
    uint32_t token_ids[REPLY_TOKEN_COUNT];
    Stagecoach__V1__TokenLogprobs logprobs[REPLY_TOKEN_COUNT];
    Stagecoach__V1__TokenLogprobs *logprob_pointers[REPLY_TOKEN_COUNT];
    Stagecoach__V1__TokenLogprob tops[REPLY_TOKEN_COUNT * REQUEST_TOP_LOGPROB_COUNT_MAX];
    Stagecoach__V1__TokenLogprob *top_pointers[REPLY_TOKEN_COUNT * REQUEST_TOP_LOGPROB_COUNT_MAX];
    Stagecoach__V1__Usage usage;
};

static void write_logprobs(const struct completion *c, uint32_t count, struct parts *parts) {
    uint32_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct completion_token *token = &c->tokens[i];
        Stagecoach__V1__TokenLogprobs *out = &parts->logprobs[i];
        stagecoach__v1__token_logprobs__init(out);
        out->logprob = token->logprob;
        out->n_top = token->top_count;
        out->top = &parts->top_pointers[used];
        for (uint32_t t = 0; t < token->top_count; t++, used++) {
            const struct frame_top *top = &c->tops[token->top_first + t];
            stagecoach__v1__token_logprob__init(&parts->tops[used]);
            parts->tops[used].token_id = top->token_id;
            parts->tops[used].logprob = top->logprob;
            parts->top_pointers[used] = &parts->tops[used];
        }
        parts->logprob_pointers[i] = out;
    }
}

static double ms_between(uint64_t from_ns, uint64_t to_ns) {
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0;
}

static void write_end(const struct request *request, uint64_t now_ns, struct parts *parts,
                      Stagecoach__V1__GenerateResponse *out) {
    static const Stagecoach__V1__FinishReason reasons[] = {
        [FINISH_NONE] = STAGECOACH__V1__FINISH_REASON__FINISH_REASON_NONE,
        [FINISH_STOP] = STAGECOACH__V1__FINISH_REASON__FINISH_REASON_STOP,
        [FINISH_LENGTH] = STAGECOACH__V1__FINISH_REASON__FINISH_REASON_LENGTH,
        [FINISH_CANCELLED] = STAGECOACH__V1__FINISH_REASON__FINISH_REASON_CANCELLED,
    };
    const struct completion *c = &request->completion;
    out->finish_reason = reasons[c->finish_reason];
    if (c->finish_reason == FINISH_STOP && c->stopped_by_string) {
        out->stop_cause_case = STAGECOACH__V1__GENERATE_RESPONSE__STOP_CAUSE_STOP_STRING;
        out->stop_string = c->stop.strings[c->stop_string_index];
    } else if (c->finish_reason == FINISH_STOP) {
        out->stop_cause_case = STAGECOACH__V1__GENERATE_RESPONSE__STOP_CAUSE_STOP_TOKEN_ID;
        out->stop_token_id = c->stop_token_id;
    }
    stagecoach__v1__usage__init(&parts->usage);
    parts->usage.prompt_tokens = request->sequence.prompt_count;
    parts->usage.completion_tokens = c->token_count;
    parts->usage.queue_ms = ms_between(request->arrived_ns, request->issued_ns);
    parts->usage.first_token_ms = ms_between(request->arrived_ns, request->first_token_ns);
    parts->usage.total_ms = ms_between(request->arrived_ns, now_ns);
    out->usage = &parts->usage;
}

// One message: at most REPLY_TOKEN_COUNT tokens, and all text with the first of them.
static bool send_one(struct request *request, uint64_t now_ns, bool *is_last_out) {
    struct completion *c = &request->completion;
    struct parts parts;
    uint32_t count = c->unsent_count < REPLY_TOKEN_COUNT ? c->unsent_count : REPLY_TOKEN_COUNT;
    bool is_last = count == c->unsent_count && c->finish_reason != FINISH_NONE;
    Stagecoach__V1__GenerateResponse out = STAGECOACH__V1__GENERATE_RESPONSE__INIT;
    if (c->text.size_bytes > 0) out.text = c->text.data;
    for (uint32_t i = 0; i < count; i++)
        parts.token_ids[i] = c->tokens[i].token_id;
    out.token_ids = parts.token_ids;
    out.n_token_ids = count;
    if (request->wants_logprobs) {
        write_logprobs(c, count, &parts);
        out.logprobs = parts.logprob_pointers;
        out.n_logprobs = count;
    }
    out.seed = request->sequence.sampling.seed;
    if (!request->is_first_sent) out.request_id = request->id;
    if (is_last) write_end(request, now_ns, &parts, &out);
    if (!rpc_call_send(request->call, &out.base)) return false;
    request->is_first_sent = true;
    completion_sent(c, count);
    *is_last_out = is_last;
    return true;
}

bool reply_send(struct request *request, uint64_t now_ns) {
    bool is_last = false;
    while (!is_last && completion_has_news(&request->completion)) {
        if (!send_one(request, now_ns, &is_last)) return rpc_call_is_over(request->call);
    }
    if (is_last) rpc_call_end(request->call, RPC_OK, "");
    return is_last;
}
