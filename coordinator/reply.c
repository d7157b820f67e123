#include "coordinator/reply.h"

#include <stdio.h>

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

static void write_usage(const struct request *request, uint64_t now_ns,
                        Stagecoach__V1__Usage *usage) {
    const struct sequence *leader = &request->leader->sequence;
    stagecoach__v1__usage__init(usage);
    usage->prompt_tokens = leader->prompt_count;
    usage->cached_tokens = leader->cached_count;
    for (uint32_t i = 0; i < request->answer_count; i++)
        usage->completion_tokens += request->answers[i].completion.token_count;
    usage->queue_ms = ms_between(request->arrived_ns, request->issued_ns);
    usage->first_token_ms = ms_between(request->arrived_ns, request->first_token_ns);
    usage->total_ms = ms_between(request->arrived_ns, now_ns);
}

static void write_end(const struct completion *c, Stagecoach__V1__GenerateResponse *out) {
    static const Stagecoach__V1__FinishReason reasons[] = {
        [FINISH_NONE] = STAGECOACH__V1__FINISH_REASON__FINISH_REASON_NONE,
        [FINISH_STOP] = STAGECOACH__V1__FINISH_REASON__FINISH_REASON_STOP,
        [FINISH_LENGTH] = STAGECOACH__V1__FINISH_REASON__FINISH_REASON_LENGTH,
        [FINISH_CANCELLED] = STAGECOACH__V1__FINISH_REASON__FINISH_REASON_CANCELLED,
    };
    out->finish_reason = reasons[c->finish_reason];
    if (c->finish_reason == FINISH_STOP && c->stopped_by_string) {
        out->stop_cause_case = STAGECOACH__V1__GENERATE_RESPONSE__STOP_CAUSE_STOP_STRING;
        out->stop_string = c->stop->strings[c->stop_string_index];
    } else if (c->finish_reason == FINISH_STOP) {
        out->stop_cause_case = STAGECOACH__V1__GENERATE_RESPONSE__STOP_CAUSE_STOP_TOKEN_ID;
        out->stop_token_id = c->stop_token_id;
    }
}

// Sends the message with the text of the first token_count unsent tokens, which is ended by '\0' in
// its place for as long as it is packed.
static bool send_with_text(struct request *request, Stagecoach__V1__GenerateResponse *out,
                           const struct completion *c, uint32_t token_count) {
    if (c->text.size_bytes == 0) return rpc_call_send(request->call, &out->base);
    char *end = c->text.data + completion_text_bytes(c, token_count);
    char after = *end;
    *end = '\0';
    out->text = c->text.data;
    bool is_sent = rpc_call_send(request->call, &out->base);
    *end = after;
    return is_sent;
}

// One message: at most REPLY_TOKEN_COUNT tokens, and their text.
bool reply_send_one(struct answer *answer, uint64_t now_ns) {
    struct request *request = answer->request;
    struct completion *c = &answer->completion;
    struct parts parts;
    uint32_t count = c->unsent_count < REPLY_TOKEN_COUNT ? c->unsent_count : REPLY_TOKEN_COUNT;
    bool is_last = count == c->unsent_count && c->finish_reason != FINISH_NONE;
    Stagecoach__V1__GenerateResponse out = STAGECOACH__V1__GENERATE_RESPONSE__INIT;
    for (uint32_t i = 0; i < count; i++)
        parts.token_ids[i] = c->tokens[i].token_id;
    out.token_ids = parts.token_ids;
    out.n_token_ids = count;
    if (request->wants_logprobs) {
        write_logprobs(c, count, &parts);
        out.logprobs = parts.logprob_pointers;
        out.n_logprobs = count;
    }
    out.index = answer->index;
    out.token_first = c->token_count - c->unsent_count;
    out.seed = answer->sequence.sampling.seed;
    if (!request->is_first_sent) out.request_id = request->id;
    if (is_last) write_end(c, &out);
    if (is_last && request->unsent_count == 1) {
        write_usage(request, now_ns, &parts.usage);
        out.usage = &parts.usage;
    }
    if (!send_with_text(request, &out, c, count)) return false;
    request->is_first_sent = true;
    request->sent_ns = now_ns;
    completion_sent(c, count);
    answer->is_last_sent = is_last;
    return true;
}

void reply_send(struct answer *answer, uint64_t now_ns) {
    struct request *request = answer->request;
    if (answer->is_last_sent) return;
    while (!answer->is_last_sent && completion_has_news(&answer->completion)) {
        if (!request->send(answer, now_ns)) return;
    }
    if (answer->is_last_sent && --request->unsent_count == 0)
        rpc_call_end(request->call, RPC_OK, "");
}

void reply_send_all(struct request *request, uint64_t now_ns) {
    for (uint32_t i = 0; i < request->answer_count; i++)
        reply_send(&request->answers[i], now_ns);
}

void reply_refuse(struct rpc_call *call, uint32_t retry_ms) {
    char reason[96];
    snprintf(reason, sizeof(reason), "too many requests wait already, try again in %.1f s",
             retry_ms / 1e3);
    rpc_call_refuse(call, RPC_RESOURCE_EXHAUSTED, reason, retry_ms);
}
