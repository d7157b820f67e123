#include "coordinator/vllm_request.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

typedef Vllm__Grpc__Engine__GenerateRequest generate_message;
typedef Vllm__Grpc__Engine__SamplingParams sampling_message;

// -- what is not done -----------------------------------------------------------------------------

static enum status refuse(const char *field, struct error *error) {
    return error_set_field(error, STATUS_INVALID, "%s is set, but it is not supported here", field);
}

static enum status refuse_constraint(const sampling_message *s, struct error *error) {
    switch (s->constraint_case) {
    case VLLM__GRPC__ENGINE__SAMPLING_PARAMS__CONSTRAINT_JSON_SCHEMA:
        return refuse("sampling_params.json_schema", error);
    case VLLM__GRPC__ENGINE__SAMPLING_PARAMS__CONSTRAINT_REGEX:
        return refuse("sampling_params.regex", error);
    case VLLM__GRPC__ENGINE__SAMPLING_PARAMS__CONSTRAINT_GRAMMAR:
        return refuse("sampling_params.grammar", error);
    case VLLM__GRPC__ENGINE__SAMPLING_PARAMS__CONSTRAINT_STRUCTURAL_TAG:
        return refuse("sampling_params.structural_tag", error);
    case VLLM__GRPC__ENGINE__SAMPLING_PARAMS__CONSTRAINT_CHOICE:
        return refuse("sampling_params.choice", error);
    case VLLM__GRPC__ENGINE__SAMPLING_PARAMS__CONSTRAINT_JSON_OBJECT:
        return s->json_object ? refuse("sampling_params.json_object", error) : STATUS_OK;
    default:
        return STATUS_OK;
    }
}

static enum status refuse_sampling(const sampling_message *s, struct error *error) {
    if (s->min_tokens > 0)
        return error_set_field(error, STATUS_INVALID,
                               "sampling_params.min_tokens is %" PRIu32
                               ", it is not supported above 0",
                               s->min_tokens);
    if (s->prompt_logprobs_presence_case != 0)
        return refuse("sampling_params.prompt_logprobs", error);
    if (s->truncate_prompt_tokens_presence_case != 0)
        return refuse("sampling_params.truncate_prompt_tokens", error);
    if (s->logprobs_presence_case != 0 && s->logprobs < 0)
        return error_set_field(error, STATUS_INVALID,
                               "sampling_params.logprobs is %" PRId32 ", it must be from 0 to %d",
                               s->logprobs, REQUEST_TOP_LOGPROB_COUNT_MAX);
    if (s->max_tokens_presence_case != 0 && s->max_tokens == 0)
        return error_set_field(error, STATUS_INVALID,
                               "sampling_params.max_tokens is 0, it must be at least 1");
    return refuse_constraint(s, error);
}

static enum status refuse_unsupported(const generate_message *m, struct error *error) {
    if (m->input_case == VLLM__GRPC__ENGINE__GENERATE_REQUEST__INPUT__NOT_SET)
        return error_set_field(error, STATUS_INVALID, "input is missing: set tokenized or text");
    if (m->mm_inputs != NULL) return refuse("mm_inputs", error);
    if (m->n_extra_mm_inputs > 0) return refuse("extra_mm_inputs", error);
    if (m->media_refs != NULL) return refuse("media_refs", error);
    if (m->kv_transfer_params != NULL) return refuse("kv_transfer_params", error);
    if (m->kv_transfer_params_json_presence_case != 0 && m->kv_transfer_params_json[0] != '\0')
        return refuse("kv_transfer_params_json", error);
    if (m->data_parallel_rank_presence_case != 0 && m->data_parallel_rank != 0)
        return error_set_field(error, STATUS_INVALID,
                               "data_parallel_rank is %" PRId32 ", there is rank 0 alone",
                               m->data_parallel_rank);
    return m->sampling_params != NULL ? refuse_sampling(m->sampling_params, error) : STATUS_OK;
}

// -- translation ----------------------------------------------------------------------------------

// The message of Inference/Generate with all that it points to. Borrows from the one translated.
struct translation {
    Stagecoach__V1__GenerateRequest request;
    Stagecoach__V1__TokenIds token_ids;
    Stagecoach__V1__Sampling sampling;
    Stagecoach__V1__Stop stop;
    Stagecoach__V1__LogitBias *biases; // owned
    Stagecoach__V1__LogitBias **bias_pointers;
};

// The last entry of a key is the one that counts, as maps of protobuf have it.
static void keep_bias(struct translation *t, uint32_t token_id, float bias) {
    size_t at = 0;
    while (at < t->sampling.n_logit_bias && t->biases[at].token_id != token_id)
        at++;
    stagecoach__v1__logit_bias__init(&t->biases[at]);
    t->biases[at].token_id = token_id;
    t->biases[at].bias = bias;
    t->bias_pointers[at] = &t->biases[at];
    if (at == t->sampling.n_logit_bias) t->sampling.n_logit_bias++;
}

static enum status translate_biases(const sampling_message *s, struct translation *t,
                                    struct error *error) {
    size_t count = s->n_logit_bias;
    if (count == 0) return STATUS_OK;
    if (count > REQUEST_LOGIT_BIAS_COUNT_MAX)
        return error_set_field(error, STATUS_INVALID,
                               "sampling_params.logit_bias has %zu entries, the limit is %d", count,
                               REQUEST_LOGIT_BIAS_COUNT_MAX);
    t->biases = memory_array(count, sizeof(*t->biases));
    t->bias_pointers = memory_array(count, sizeof(*t->bias_pointers));
    if (t->biases == NULL || t->bias_pointers == NULL)
        return error_set(error, STATUS_NO_MEMORY, "no memory");
    for (size_t i = 0; i < count; i++) {
        if (s->logit_bias[i]->key < 0)
            return error_set_field(error, STATUS_INVALID,
                                   "sampling_params.logit_bias has token %" PRId32
                                   ", tokens are counted from 0",
                                   s->logit_bias[i]->key);
        keep_bias(t, (uint32_t)s->logit_bias[i]->key, s->logit_bias[i]->value);
    }
    t->sampling.logit_bias = t->bias_pointers;
    return STATUS_OK;
}

static void translate_prompt(const generate_message *m, struct translation *t) {
    stagecoach__v1__token_ids__init(&t->token_ids);
    if (m->input_case == VLLM__GRPC__ENGINE__GENERATE_REQUEST__INPUT_TEXT) {
        t->request.prompt_case = STAGECOACH__V1__GENERATE_REQUEST__PROMPT_TEXT;
        t->request.text = m->text;
        return;
    }
    t->token_ids.n_ids = m->tokenized->n_input_ids;
    t->token_ids.ids = m->tokenized->input_ids;
    t->request.prompt_case = STAGECOACH__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS;
    t->request.token_ids = &t->token_ids;
}

static void translate_stop(const sampling_message *s, struct translation *t) {
    stagecoach__v1__stop__init(&t->stop);
    if (s->max_tokens_presence_case != 0) t->stop.max_tokens = s->max_tokens;
    t->stop.n_strings = s->n_stop;
    t->stop.strings = s->stop;
    t->stop.n_token_ids = s->n_stop_token_ids;
    t->stop.token_ids = s->stop_token_ids;
    t->stop.ignore_eos = s->ignore_eos;
    t->request.stop = &t->stop;
}

static void translate_sampling(const sampling_message *s, struct translation *t) {
    stagecoach__v1__sampling__init(&t->sampling);
    t->sampling.temperature = s->temperature_presence_case != 0 ? s->temperature : 1;
    t->sampling.top_p = s->top_p;
    t->sampling.top_k = s->top_k;
    t->sampling.min_p = s->min_p;
    t->sampling.repetition_penalty = s->repetition_penalty;
    t->sampling.presence_penalty = s->presence_penalty;
    t->sampling.frequency_penalty = s->frequency_penalty;
    if (s->seed_presence_case != 0 && s->seed != -1) {
        t->sampling.seed_presence_case = STAGECOACH__V1__SAMPLING__SEED_PRESENCE_SEED;
        t->sampling.seed = (uint64_t)(int64_t)s->seed;
    }
    if (s->logprobs_presence_case != 0) {
        t->request.logprobs_presence_case =
            STAGECOACH__V1__GENERATE_REQUEST__LOGPROBS_PRESENCE_LOGPROBS;
        t->request.logprobs = (uint32_t)s->logprobs;
    }
    t->request.sampling = &t->sampling;
}

static enum status translate(const generate_message *m, struct translation *t,
                             struct error *error) {
    static const sampling_message defaults = VLLM__GRPC__ENGINE__SAMPLING_PARAMS__INIT;
    const sampling_message *s = m->sampling_params != NULL ? m->sampling_params : &defaults;
    stagecoach__v1__generate_request__init(&t->request);
    t->request.request_id = m->request_id;
    t->request.keep_special_tokens = !s->skip_special_tokens;
    t->request.n = s->n;
    translate_prompt(m, t);
    translate_stop(s, t);
    translate_sampling(s, t);
    return translate_biases(s, t, error);
}

// -- names in sentences ---------------------------------------------------------------------------

// What Inference calls a field and what it is called here; a name that ends in '.' is the beginning
// of several.
static const struct field_name {
    const char *inference, *vllm;
} field_names[] = {
    {"sampling.", "sampling_params."},
    {"stop.max_tokens", "sampling_params.max_tokens"},
    {"stop.strings", "sampling_params.stop"},
    {"stop.token_ids", "sampling_params.stop_token_ids"},
    {"token_ids", "tokenized.input_ids"},
    {"logprobs", "sampling_params.logprobs"},
    {"n", "sampling_params.n"},
};

// The one that the text begins with.
static const struct field_name *name_at(const char *text) {
    for (size_t i = 0; i < sizeof(field_names) / sizeof(field_names[0]); i++) {
        const struct field_name *name = &field_names[i];
        size_t size_bytes = strlen(name->inference);
        if (strncmp(text, name->inference, size_bytes) != 0) continue;
        bool is_whole = !islower((unsigned char)text[size_bytes]) && text[size_bytes] != '_';
        if (is_whole || name->inference[size_bytes - 1] == '.') return name;
    }
    return NULL;
}

static void rename_at(char *text, size_t capacity_bytes, size_t at) {
    const struct field_name *name = name_at(text + at);
    if (name == NULL) return;
    char after[sizeof(((struct error *)NULL)->text)];
    snprintf(after, sizeof(after), "%s", text + at + strlen(name->inference));
    snprintf(text + at, capacity_bytes - at, "%s%s", name->vllm, after);
}

// The field that a sentence of request_open() names first gets the name that the caller used.
static void rename_field(struct error *error) {
    rename_at(error->field, sizeof(error->field), 0);
    size_t at = 0;
    while (error->text[at] != '\0' &&
           (name_at(error->text + at) == NULL || (at > 0 && error->text[at - 1] != ' ')))
        at++;
    rename_at(error->text, sizeof(error->text), at);
}

enum status vllm_request_open(const struct request_rules *rules, const generate_message *message,
                              uint64_t arrived_ns, struct request **request_out,
                              struct error *error) {
    enum status status = refuse_unsupported(message, error);
    if (status != STATUS_OK) return status;
    struct translation t = {0};
    status = translate(message, &t, error);
    if (status != STATUS_OK) goto free_biases;
    struct request_rules own_rules = *rules;
    own_rules.clamps_max_tokens = true;
    struct request *request;
    status = request_open(&own_rules, &t.request, arrived_ns, &request, error);
    if (status != STATUS_OK) {
        rename_field(error);
        goto free_biases;
    }
    request->is_abortable = true;
    request->wants_deltas = message->stream;
    for (uint32_t i = 0; i < request->answer_count; i++)
        request->answers[i].completion.drops_text = true;
    *request_out = request;
free_biases:
    free(t.bias_pointers);
    free(t.biases);
    return status;
}
