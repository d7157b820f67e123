#include "coordinator/vllm_request.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { VOCABULARY = 1000, EOS = 7, CONTEXT = 64, KV = 48, DRAWN = 5 };

static const struct model_config MODEL = {
    .vocabulary_size = VOCABULARY, .eos_count = 1, .eos_ids = {EOS}};

static uint64_t draw(void *ctx) {
    (void)ctx;
    return DRAWN;
}

static const struct request_rules RULES = {
    .model = &MODEL, .position_count_max = CONTEXT, .kv_position_count = KV, .draw = draw};

static uint32_t prompt[CONTEXT];

struct ask {
    Vllm__Grpc__Engine__GenerateRequest message;
    Vllm__Grpc__Engine__TokenizedInput prompt;
    Vllm__Grpc__Engine__SamplingParams sampling;
};

static void ask_init(struct ask *ask) {
    vllm__grpc__engine__generate_request__init(&ask->message);
    vllm__grpc__engine__tokenized_input__init(&ask->prompt);
    vllm__grpc__engine__sampling_params__init(&ask->sampling);
    ask->prompt.input_ids = prompt;
    ask->prompt.n_input_ids = 3;
    ask->message.input_case = VLLM__GRPC__ENGINE__GENERATE_REQUEST__INPUT_TOKENIZED;
    ask->message.tokenized = &ask->prompt;
    ask->message.sampling_params = &ask->sampling;
}

static struct request *open_ask(const struct ask *ask) {
    struct request *request = NULL;
    struct error error;
    enum status status = vllm_request_open(&RULES, &ask->message, 1, &request, &error);
    if (status != STATUS_OK) fail_msg("%s", error.text);
    return request;
}

static void expect_refusal(const struct ask *ask, enum status status, const char *field,
                           const char *text) {
    struct request *request;
    struct error error = {0};
    assert_int_equal(vllm_request_open(&RULES, &ask->message, 1, &request, &error), status);
    assert_string_equal(error.text, text);
    assert_string_equal(error.field, field);
}

static void defaults_are_those_of_the_interface(void **state) {
    (void)state;
    struct ask ask;
    ask_init(&ask);
    ask.message.sampling_params = NULL;
    struct request *request = open_ask(&ask);
    const struct frame_sequence *sampling = &request->answers[0].sequence.sampling;
    assert_true(sampling->temperature == 1 && sampling->top_p == 1 && sampling->top_k == 0);
    assert_true(sampling->min_p == 0 && sampling->repetition_penalty == 1);
    assert_int_equal(sampling->seed, DRAWN);
    assert_int_equal(request->answer_count, 1);
    assert_int_equal(request->stop.max_token_count, KV - 3);
    assert_false(request->wants_logprobs);
    assert_false(request->wants_deltas);
    assert_true(request->is_abortable);
    request_close(request);
}

static void more_tokens_than_fit_are_cut_off(void **state) {
    (void)state;
    struct ask ask;
    ask_init(&ask);
    ask.sampling.max_tokens_presence_case =
        VLLM__GRPC__ENGINE__SAMPLING_PARAMS__MAX_TOKENS_PRESENCE_MAX_TOKENS;
    static const uint32_t cases[][2] = {
        {KV - 3, KV - 3}, {KV - 2, KV - 3}, {CONTEXT, KV - 3}, {UINT32_MAX, KV - 3}, {1, 1}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ask.sampling.max_tokens = cases[i][0];
        struct request *request = open_ask(&ask);
        assert_int_equal(request->stop.max_token_count, cases[i][1]);
        request_close(request);
    }
    ask.prompt.n_input_ids = KV;
    struct request *request;
    struct error error;
    assert_int_equal(vllm_request_open(&RULES, &ask.message, 1, &request, &error),
                     STATUS_EXHAUSTED);
}

static void seeds_are_sign_extended(void **state) {
    (void)state;
    static const struct {
        int32_t seed;
        uint64_t expected;
    } cases[] = {
        {0, 0}, {7, 7}, {-2, UINT64_MAX - 1}, {INT32_MIN, 0xffffffff80000000u}, {-1, DRAWN}};
    struct ask ask;
    ask_init(&ask);
    ask.sampling.seed_presence_case = VLLM__GRPC__ENGINE__SAMPLING_PARAMS__SEED_PRESENCE_SEED;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ask.sampling.seed = cases[i].seed;
        struct request *request = open_ask(&ask);
        assert_true(request->answers[0].sequence.sampling.seed == cases[i].expected);
        request_close(request);
    }
}

static void last_bias_of_a_token_counts(void **state) {
    (void)state;
    Vllm__Grpc__Engine__SamplingParams__LogitBiasEntry entries[3], *pointers[3];
    static const struct {
        int32_t key;
        float value;
    } biases[] = {{4, 1}, {9, 2}, {4, 3}};
    for (size_t i = 0; i < 3; i++) {
        vllm__grpc__engine__sampling_params__logit_bias_entry__init(&entries[i]);
        entries[i].key = biases[i].key;
        entries[i].value = biases[i].value;
        pointers[i] = &entries[i];
    }
    struct ask ask;
    ask_init(&ask);
    ask.sampling.logit_bias = pointers;
    ask.sampling.n_logit_bias = 3;
    struct request *request = open_ask(&ask);
    const struct sequence *sequence = &request->answers[0].sequence;
    assert_int_equal(sequence->bias_count, 2);
    assert_int_equal(sequence->biases[0].token_id, 4);
    assert_true(sequence->biases[0].bias == 3 && sequence->biases[1].bias == 2);
    request_close(request);
    entries[1].key = -1;
    expect_refusal(&ask, STATUS_INVALID, "sampling_params.logit_bias",
                   "sampling_params.logit_bias has token -1, tokens are counted from 0");
}

static void refusals_name_the_fields_of_the_caller(void **state) {
    (void)state;
    struct ask ask;
    ask_init(&ask);
    ask.sampling.n = 65;
    expect_refusal(&ask, STATUS_INVALID, "sampling_params.n",
                   "sampling_params.n is 65, the limit is 64");
    ask.sampling.n = 1;
    char *strings[] = {(char *)"a"};
    ask.sampling.stop = strings;
    ask.sampling.n_stop = 1;
    expect_refusal(&ask, STATUS_INVALID, "sampling_params.stop",
                   "sampling_params.stop: this model has no tokenizer.json: send token_ids, and "
                   "read token_ids");
    ask.sampling.n_stop = 0;
    ask.sampling.top_p = 2;
    expect_refusal(&ask, STATUS_INVALID, "sampling_params.top_p",
                   "sampling_params.top_p is 2, it must be from 0 to 1");
    ask.sampling.top_p = 0;
    uint32_t ids[] = {1, VOCABULARY};
    ask.prompt.input_ids = ids;
    ask.prompt.n_input_ids = 2;
    expect_refusal(&ask, STATUS_INVALID, "tokenized.input_ids[1]",
                   "tokenized.input_ids[1] is token 1000, the vocabulary of the model ends at 999");
    ask.message.request_id = (char *)"n token_ids";
    expect_refusal(&ask, STATUS_INVALID, "request_id",
                   "request_id has byte 0x20 at 1, it must be printable ASCII");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_the_interface),
        cmocka_unit_test(more_tokens_than_fit_are_cut_off),
        cmocka_unit_test(seeds_are_sign_extended),
        cmocka_unit_test(last_bias_of_a_token_counts),
        cmocka_unit_test(refusals_name_the_fields_of_the_caller),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
