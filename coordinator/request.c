#include "coordinator/request.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "coordinator/request_parts.h"

typedef Stagecoach__V1__GenerateRequest generate_message;

struct range {
    const char *field;
    float value, minimum, maximum;
};

static enum status check_range(const struct range *range, struct error *error) {
    // Written so that a NaN is refused.
    if (range->value >= range->minimum && range->value <= range->maximum) return STATUS_OK;
    return error_set_field(error, STATUS_INVALID, "%s is %g, it must be from %g to %g",
                           range->field, (double)range->value, (double)range->minimum,
                           (double)range->maximum);
}

enum status request_check_count(const char *field, size_t value, size_t limit,
                                struct error *error) {
    if (value <= limit) return STATUS_OK;
    return error_set_field(error, STATUS_INVALID, "%s is %zu, the limit is %zu", field, value,
                           limit);
}

enum status request_check_length(const char *field, size_t count, size_t limit,
                                 struct error *error) {
    if (count <= limit) return STATUS_OK;
    return error_set_field(error, STATUS_INVALID, "%s has %zu entries, the limit is %zu", field,
                           count, limit);
}

enum status request_check_token_id(const struct request_rules *rules, const char *field,
                                   size_t index, uint32_t token_id, struct error *error) {
    if (token_id < rules->model->vocabulary_size) return STATUS_OK;
    return error_set_field(error, STATUS_INVALID,
                           "%s[%zu] is token %" PRIu32
                           ", the vocabulary of the model ends at %" PRIu32,
                           field, index, token_id, rules->model->vocabulary_size - 1);
}

enum status request_needs_tokenizer(const struct request_rules *rules, const char *field,
                                    struct error *error) {
    if (rules->tokenizer != NULL) return STATUS_OK;
    return error_set_field(
        error, STATUS_INVALID,
        "%s: this model has no tokenizer.json: send token_ids, and read token_ids", field);
}

// -- sampling -------------------------------------------------------------------------------------

static enum status check_sampling(const Stagecoach__V1__Sampling *s, struct error *error) {
    const struct range ranges[] = {
        {"sampling.temperature", s->temperature, 0, 100},
        {"sampling.top_p", s->top_p, 0, 1},
        {"sampling.min_p", s->min_p, 0, 1},
        {"sampling.repetition_penalty", s->repetition_penalty == 0 ? 1 : s->repetition_penalty,
         0.01f, 100},
        {"sampling.presence_penalty", s->presence_penalty, -2, 2},
        {"sampling.frequency_penalty", s->frequency_penalty, -2, 2},
    };
    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        enum status status = check_range(&ranges[i], error);
        if (status != STATUS_OK) return status;
    }
    return request_check_length("sampling.logit_bias", s->n_logit_bias,
                                REQUEST_LOGIT_BIAS_COUNT_MAX, error);
}

static enum status read_biases(const struct request_rules *rules, const Stagecoach__V1__Sampling *s,
                               struct sequence *sequence, struct error *error) {
    if (s->n_logit_bias == 0) return STATUS_OK;
    sequence->biases = memory_array(s->n_logit_bias, sizeof(*sequence->biases));
    if (sequence->biases == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
    for (size_t i = 0; i < s->n_logit_bias; i++) {
        const Stagecoach__V1__LogitBias *bias = s->logit_bias[i];
        enum status status =
            request_check_token_id(rules, "sampling.logit_bias", i, bias->token_id, error);
        if (status != STATUS_OK) return status;
        status = check_range(&(struct range){"sampling.logit_bias", bias->bias, -100, 100}, error);
        if (status != STATUS_OK) return status;
        sequence->biases[i] = (struct frame_bias){bias->token_id, bias->bias};
    }
    sequence->bias_count = (uint32_t)s->n_logit_bias;
    return STATUS_OK;
}

static enum status read_sampling(const struct request_rules *rules, const generate_message *m,
                                 struct sequence *sequence, struct error *error) {
    static const Stagecoach__V1__Sampling defaults = STAGECOACH__V1__SAMPLING__INIT;
    const Stagecoach__V1__Sampling *s = m->sampling != NULL ? m->sampling : &defaults;
    enum status status = check_sampling(s, error);
    if (status != STATUS_OK) return status;
    bool has_seed = s->seed_presence_case == STAGECOACH__V1__SAMPLING__SEED_PRESENCE_SEED;
    bool has_logprobs =
        m->logprobs_presence_case == STAGECOACH__V1__GENERATE_REQUEST__LOGPROBS_PRESENCE_LOGPROBS;
    if (has_logprobs) {
        status = request_check_count("logprobs", m->logprobs, REQUEST_TOP_LOGPROB_COUNT_MAX, error);
        if (status != STATUS_OK) return status;
    }
    sequence->sampling = (struct frame_sequence){
        .seed = has_seed ? s->seed : rules->draw(rules->draw_ctx),
        .flags = has_logprobs ? FRAME_LOGPROBS : 0,
        .top_k = s->top_k,
        .top_logprob_count = has_logprobs ? m->logprobs : 0,
        .temperature = s->temperature,
        .top_p = s->top_p == 0 ? 1 : s->top_p,
        .min_p = s->min_p,
        .repetition_penalty = s->repetition_penalty == 0 ? 1 : s->repetition_penalty,
        .presence_penalty = s->presence_penalty,
        .frequency_penalty = s->frequency_penalty,
    };
    return read_biases(rules, s, sequence, error);
}

// -- stop conditions ------------------------------------------------------------------------------

static enum status read_stop_strings(const struct request_rules *rules,
                                     const Stagecoach__V1__Stop *m, struct stop_conditions *stop,
                                     struct error *error) {
    enum status status =
        request_check_length("stop.strings", m->n_strings, REQUEST_STOP_STRING_COUNT_MAX, error);
    if (status == STATUS_OK && m->n_strings > 0)
        status = request_needs_tokenizer(rules, "stop.strings", error);
    if (status != STATUS_OK) return status;
    stop->strings = memory_array(m->n_strings, sizeof(*stop->strings));
    if (stop->strings == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
    for (size_t i = 0; i < m->n_strings; i++) {
        size_t size_bytes = strlen(m->strings[i]);
        if (size_bytes == 0)
            return error_set_field(error, STATUS_INVALID, "stop.strings[%zu] is empty", i);
        if (size_bytes > REQUEST_STOP_STRING_BYTES_MAX)
            return error_set_field(error, STATUS_INVALID,
                                   "stop.strings[%zu] has %zu bytes, the limit is %d", i,
                                   size_bytes, REQUEST_STOP_STRING_BYTES_MAX);
        stop->strings[i] = strdup(m->strings[i]);
        if (stop->strings[i] == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
        stop->string_count++;
    }
    return STATUS_OK;
}

static enum status read_stop_token_ids(const struct request_rules *rules,
                                       const Stagecoach__V1__Stop *m, struct stop_conditions *stop,
                                       struct error *error) {
    enum status status =
        request_check_length("stop.token_ids", m->n_token_ids, REQUEST_STOP_TOKEN_COUNT_MAX, error);
    if (status != STATUS_OK) return status;
    stop->token_ids = memory_array(m->n_token_ids, sizeof(*stop->token_ids));
    if (stop->token_ids == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
    for (size_t i = 0; i < m->n_token_ids; i++) {
        status = request_check_token_id(rules, "stop.token_ids", i, m->token_ids[i], error);
        if (status != STATUS_OK) return status;
        stop->token_ids[stop->token_id_count++] = m->token_ids[i];
    }
    return STATUS_OK;
}

// How many tokens may be made after a prompt of this length.
static enum status read_max_tokens(const struct request_rules *rules, uint32_t asked,
                                   uint32_t prompt_count, uint32_t *max_out, struct error *error) {
    uint32_t context = rules->position_count_max;
    if (prompt_count >= context)
        return error_set_field(error, STATUS_INVALID,
                               "prompt has %" PRIu32 " tokens, the limit is %" PRIu32
                               " (the context of %" PRIu32 " less one token to make)",
                               prompt_count, context - 1, context);
    uint32_t kv_positions = rules->kv_position_count;
    bool has_room = asked <= context - prompt_count && prompt_count < kv_positions &&
                    asked <= kv_positions - prompt_count;
    if (rules->clamps_max_tokens && !has_room) asked = 0;
    if (asked > context - prompt_count)
        return error_set_field(error, STATUS_INVALID,
                               "stop.max_tokens is %" PRIu32
                               ", the limit after a prompt of %" PRIu32 " tokens is %" PRIu32,
                               asked, prompt_count, context - prompt_count);
    uint32_t max_count = asked != 0 ? asked : context - prompt_count;
    if (prompt_count >= kv_positions || (asked != 0 && asked > kv_positions - prompt_count))
        return error_set(error, STATUS_EXHAUSTED,
                         "prompt of %" PRIu32 " tokens and stop.max_tokens of %" PRIu32
                         " do not fit the KV memory of %" PRIu32 " positions",
                         prompt_count, asked, kv_positions);
    if (max_count > kv_positions - prompt_count) max_count = kv_positions - prompt_count;
    *max_out = max_count;
    return STATUS_OK;
}

static enum status read_stop(const struct request_rules *rules, const generate_message *m,
                             struct stop_conditions *stop, uint32_t prompt_count,
                             struct error *error) {
    static const Stagecoach__V1__Stop defaults = STAGECOACH__V1__STOP__INIT;
    const Stagecoach__V1__Stop *s = m->stop != NULL ? m->stop : &defaults;
    stop->ignore_eos = s->ignore_eos;
    stop->eos_ids = rules->model->eos_ids;
    stop->eos_count = rules->model->eos_count;
    enum status status =
        read_max_tokens(rules, s->max_tokens, prompt_count, &stop->max_token_count, error);
    if (status == STATUS_OK) status = read_stop_strings(rules, s, stop, error);
    if (status == STATUS_OK) status = read_stop_token_ids(rules, s, stop, error);
    return status;
}

// -- prompt ---------------------------------------------------------------------------------------

static enum status tokenize_prompt(const struct request_rules *rules, const char *text,
                                   struct sequence *sequence, struct error *error) {
    enum status status = request_needs_tokenizer(rules, "text", error);
    if (status != STATUS_OK) return status;
    size_t size_bytes = strlen(text);
    if (size_bytes > REQUEST_TEXT_BYTES_MAX)
        return error_set_field(error, STATUS_INVALID, "text has %zu bytes, the limit is %d",
                               size_bytes, REQUEST_TEXT_BYTES_MAX);
    // A token has at least one byte, and the post-processor adds a few.
    size_t capacity_count = size_bytes + 64;
    uint32_t *ids = memory_array(capacity_count, sizeof(*ids));
    if (ids == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
    size_t count = 0;
    status = tokenizer_encode(rules->tokenizer, text, size_bytes,
                              TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL, ids, capacity_count,
                              &count, error);
    if (status != STATUS_OK) {
        error_prefix_field(error, "text");
        goto free_ids;
    }
    if (count == 0) {
        status =
            error_set_field(error, STATUS_INVALID, "text has no tokens, it needs at least one");
        goto free_ids;
    }
    for (size_t i = 0; i < count && status == STATUS_OK; i++)
        status = request_check_token_id(rules, "text: tokens", i, ids[i], error);
    if (status != STATUS_OK) goto free_ids;
    status = sequence_init(sequence, ids, (uint32_t)count);
    if (status != STATUS_OK) status = error_set(error, status, "no memory");
free_ids:
    free(ids);
    return status;
}

static enum status read_prompt(const struct request_rules *rules, const generate_message *m,
                               struct sequence *sequence, struct error *error) {
    switch (m->prompt_case) {
    case STAGECOACH__V1__GENERATE_REQUEST__PROMPT_TEXT:
        return tokenize_prompt(rules, m->text, sequence, error);
    case STAGECOACH__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS: {
        const Stagecoach__V1__TokenIds *ids = m->token_ids;
        if (ids->n_ids == 0)
            return error_set_field(error, STATUS_INVALID,
                                   "token_ids is empty, it needs at least one");
        enum status status =
            request_check_length("token_ids", ids->n_ids, rules->position_count_max - 1, error);
        for (size_t i = 0; i < ids->n_ids && status == STATUS_OK; i++)
            status = request_check_token_id(rules, "token_ids", i, ids->ids[i], error);
        if (status != STATUS_OK) return status;
        status = sequence_init(sequence, ids->ids, (uint32_t)ids->n_ids);
        return status == STATUS_OK ? status : error_set(error, status, "no memory");
    }
    default:
        return error_set_field(error, STATUS_INVALID, "prompt is missing: set text or token_ids");
    }
}

// -- request --------------------------------------------------------------------------------------

static enum status read_id(const struct request_rules *rules, const char *text, char *id_out,
                           struct error *error) {
    size_t size_bytes = strlen(text);
    if (size_bytes > REQUEST_ID_BYTES_MAX)
        return error_set_field(error, STATUS_INVALID, "request_id has %zu bytes, the limit is %d",
                               size_bytes, REQUEST_ID_BYTES_MAX);
    for (size_t i = 0; i < size_bytes; i++) {
        if (text[i] <= ' ' || text[i] > '~')
            return error_set_field(error, STATUS_INVALID,
                                   "request_id has byte 0x%02x at %zu, it must be printable ASCII",
                                   (unsigned)(unsigned char)text[i], i);
    }
    if (size_bytes > 0)
        memcpy(id_out, text, size_bytes + 1);
    else
        snprintf(id_out, 24, "r-%016" PRIx64, rules->draw(rules->draw_ctx));
    return STATUS_OK;
}

static enum status read_cache_salt(const char *text, struct request *request, struct error *error) {
    size_t size_bytes = strlen(text);
    if (size_bytes > REQUEST_CACHE_SALT_BYTES_MAX)
        return error_set_field(error, STATUS_INVALID, "cache_salt has %zu bytes, the limit is %d",
                               size_bytes, REQUEST_CACHE_SALT_BYTES_MAX);
    if (size_bytes == 0) return STATUS_OK;
    request->cache_salt = strdup(text);
    return request->cache_salt != NULL ? STATUS_OK
                                       : error_set(error, STATUS_NO_MEMORY, "no memory");
}

static enum status make_answers(struct request *request, uint32_t n, struct error *error) {
    enum status status = request_check_count("n", n, REQUEST_ANSWER_COUNT_MAX, error);
    if (status != STATUS_OK) return status;
    uint32_t count = n == 0 ? 1 : n;
    request->answers = memory_array(count, sizeof(*request->answers));
    if (request->answers == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
    request->answer_count = request->running_count = request->unsent_count = count;
    for (uint32_t i = 0; i < count; i++)
        request->answers[i] = (struct answer){.request = request, .index = i};
    return STATUS_OK;
}

// Makes the sequence of a further answer like that of the first.
static enum status copy_sequence(const struct sequence *first, struct sequence *sequence) {
    enum status status = sequence_init(sequence, first->tokens, first->prompt_count);
    if (status != STATUS_OK) return status;
    sequence->sampling = first->sampling;
    if (first->bias_count == 0) return STATUS_OK;
    sequence->biases = memory_array(first->bias_count, sizeof(*sequence->biases));
    if (sequence->biases == NULL) return STATUS_NO_MEMORY;
    memcpy(sequence->biases, first->biases, first->bias_count * sizeof(*sequence->biases));
    sequence->bias_count = first->bias_count;
    return STATUS_OK;
}

static enum status finish_answer(const struct request_rules *rules, const generate_message *m,
                                 struct answer *answer) {
    struct request *request = answer->request;
    struct sequence *first = &request->answers[0].sequence, *sequence = &answer->sequence;
    if (answer->index > 0) {
        enum status status = copy_sequence(first, sequence);
        if (status != STATUS_OK) return status;
        sequence->sampling.seed = request_seed(first->sampling.seed, answer->index);
    }
    sequence->owner = answer;
    sequence->priority = m->priority;
    sequence->cache_salt = request->cache_salt;
    sequence->token_count_max = sequence->prompt_count + request->stop.max_token_count;
    // No token has more text than this; what a client does not read is bounded by it.
    size_t text_limit_bytes = ((size_t)request->stop.max_token_count + 1) * 1024;
    completion_init(&answer->completion, rules->tokenizer, &request->stop, m->keep_special_tokens,
                    text_limit_bytes);
    return sequence_begin_history(sequence);
}

// Answers that are complete from the beginning lead nobody.
static void choose_leader(struct request *request) {
    request->leader = &request->answers[0];
    for (uint32_t i = request->answer_count; i-- > 0;) {
        const struct answer *answer = &request->answers[i];
        if (!answer->is_ended && answer->completion.finish_reason == FINISH_NONE)
            request->leader = &request->answers[i];
    }
    for (uint32_t i = 0; i < request->answer_count; i++)
        if (&request->answers[i] != request->leader)
            request->answers[i].sequence.leader = &request->leader->sequence;
}

static enum status finish_answers(const struct request_rules *rules, const generate_message *m,
                                  struct request *request, struct error *error) {
    enum status status = STATUS_OK;
    for (uint32_t i = 0; i < request->answer_count && status == STATUS_OK; i++)
        status = finish_answer(rules, m, &request->answers[i]);
    if (status != STATUS_OK) return error_set(error, status, "no memory");
    status = request_resume(rules, m, request, error);
    if (status == STATUS_OK) choose_leader(request);
    return status;
}

enum status request_open(const struct request_rules *rules, const generate_message *message,
                         uint64_t arrived_ns, struct request **request_out, struct error *error) {
    struct request *request = calloc(1, sizeof(*request));
    if (request == NULL) return error_set(error, STATUS_NO_MEMORY, "no memory");
    request->arrived_ns = arrived_ns;
    enum status status = read_id(rules, message->request_id, request->id, error);
    if (status == STATUS_OK) status = read_cache_salt(message->cache_salt, request, error);
    if (status == STATUS_OK) status = make_answers(request, message->n, error);
    if (status != STATUS_OK) goto close_request;
    struct sequence *first = &request->answers[0].sequence;
    status = read_prompt(rules, message, first, error);
    if (status == STATUS_OK) status = read_sampling(rules, message, first, error);
    if (status == STATUS_OK)
        status = read_stop(rules, message, &request->stop, first->prompt_count, error);
    if (status == STATUS_OK) status = finish_answers(rules, message, request, error);
    if (status != STATUS_OK) goto close_request;
    request->wants_logprobs = (first->sampling.flags & FRAME_LOGPROBS) != 0;
    *request_out = request;
    return STATUS_OK;
close_request:
    request_close(request);
    return status;
}

void request_begin(struct request *request, struct rpc_call *call) {
    rpc_call_hold(call);
    request->call = call;
    access_trace_id(call, request->trace_id);
}

void request_close(struct request *request) {
    if (request == NULL) return;
    for (uint32_t i = 0; i < request->answer_count; i++) {
        completion_fini(&request->answers[i].completion);
        sequence_fini(&request->answers[i].sequence);
    }
    free(request->answers);
    stop_conditions_fini(&request->stop);
    free(request->cache_salt);
    if (request->call != NULL) rpc_call_release(request->call);
    free(request);
}

uint64_t request_seed(uint64_t seed, uint32_t index) {
    return seed + index * REQUEST_SEED_STEP;
}
