#include "coordinator/request.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { VOCABULARY = 1000, EOS = 7, CONTEXT = 64 };

static const struct model_config MODEL = {
    .vocabulary_size = VOCABULARY, .eos_count = 1, .eos_ids = {EOS}};

static uint64_t draw(void *ctx) {
    (void)ctx;
    return 5;
}

static const struct request_rules RULES = {
    .model = &MODEL, .position_count_max = CONTEXT, .kv_position_count = 1024, .draw = draw};

static uint32_t prompt[] = {1, 2, 3};

// A request of token ids whose answers are to go on, and what its pointers point to.
struct ask {
    Stagecoach__V1__GenerateRequest message;
    Stagecoach__V1__TokenIds prompt;
    Stagecoach__V1__Sampling sampling;
    Stagecoach__V1__Stop stop;
    Stagecoach__V1__ResumedAnswer resumed[REQUEST_ANSWER_COUNT_MAX];
    Stagecoach__V1__ResumedAnswer *pointers[REQUEST_ANSWER_COUNT_MAX];
};

static void ask_init(struct ask *ask, uint32_t n) {
    stagecoach__v1__generate_request__init(&ask->message);
    stagecoach__v1__token_ids__init(&ask->prompt);
    stagecoach__v1__sampling__init(&ask->sampling);
    stagecoach__v1__stop__init(&ask->stop);
    ask->prompt.ids = prompt;
    ask->prompt.n_ids = 3;
    ask->message.prompt_case = STAGECOACH__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS;
    ask->message.token_ids = &ask->prompt;
    ask->sampling.seed_presence_case = STAGECOACH__V1__SAMPLING__SEED_PRESENCE_SEED;
    ask->sampling.seed = 11;
    ask->message.sampling = &ask->sampling;
    ask->stop.max_tokens = 10;
    ask->message.stop = &ask->stop;
    ask->message.n = n;
    for (uint32_t i = 0; i < n; i++) {
        stagecoach__v1__resumed_answer__init(&ask->resumed[i]);
        ask->pointers[i] = &ask->resumed[i];
    }
    ask->message.resume = ask->pointers;
    ask->message.n_resume = n;
}

static void give(struct ask *ask, uint32_t index, uint32_t *ids, size_t count, bool complete) {
    ask->resumed[index].token_ids = ids;
    ask->resumed[index].n_token_ids = count;
    ask->resumed[index].complete = complete;
}

static struct request *open_request(struct ask *ask) {
    struct request *request = NULL;
    struct error error;
    enum status status = request_open(&RULES, &ask->message, 0, &request, &error);
    if (status != STATUS_OK) print_error("%s\n", error.text);
    assert_int_equal(status, STATUS_OK);
    return request;
}

static void expect_refusal(struct ask *ask, const char *sentence) {
    struct request *request = NULL;
    struct error error;
    assert_int_equal(request_open(&RULES, &ask->message, 0, &request, &error), STATUS_INVALID);
    assert_string_equal(error.text, sentence);
    assert_null(request);
}

static void resumed_tokens_follow_the_prompt_and_are_counted(void **state) {
    (void)state;
    struct ask ask;
    ask_init(&ask, 1);
    uint32_t ids[] = {40, 41, 40};
    give(&ask, 0, ids, 3, false);
    ask.sampling.presence_penalty = 1;
    struct request *request = open_request(&ask);
    const struct answer *answer = &request->answers[0];
    const struct sequence *sequence = &answer->sequence;
    assert_int_equal(sequence->prompt_count, 3);
    assert_int_equal(sequence->token_count, 6);
    assert_memory_equal(sequence->tokens, prompt, sizeof(prompt));
    assert_memory_equal(sequence->tokens + 3, ids, sizeof(ids));
    assert_int_equal(sequence->token_count_max, 13);
    assert_int_equal(answer->completion.token_count, 3);
    assert_false(completion_has_news(&answer->completion));
    // Penalties see them as output: five different tokens, one of them twice.
    assert_int_equal(sequence->history.entry_count, 5);
    assert_int_equal(sequence->history.entries[3].token_id, 40);
    assert_int_equal(sequence->history.entries[3].output_count, 2);
    request_close(request);
}

static void complete_answers_are_not_computed_and_lead_nobody(void **state) {
    (void)state;
    struct ask ask;
    ask_init(&ask, 4);
    uint32_t ids[] = {40, EOS}, some[] = {50};
    give(&ask, 0, ids, 2, true);
    give(&ask, 1, ids, 2, false); // its finish reason is missing
    give(&ask, 3, some, 1, false);
    struct request *request = open_request(&ask);
    struct answer *answers = request->answers;
    assert_true(answers[0].is_ended && answers[0].is_last_sent);
    assert_int_equal(answers[0].completion.token_count, 2);
    assert_int_equal(request->running_count, 3);
    assert_int_equal(request->unsent_count, 3);
    assert_int_equal(answers[1].completion.finish_reason, FINISH_STOP);
    assert_int_equal(answers[1].completion.stop_token_id, EOS);
    assert_int_equal(answers[1].completion.unsent_count, 0);
    assert_ptr_equal(request->leader, &answers[2]);
    assert_null(answers[2].sequence.leader);
    assert_ptr_equal(answers[3].sequence.leader, &answers[2].sequence);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(answers[i].sequence.sampling.seed, request_seed(11, i));
    request_close(request);
}

static void answers_may_end_where_their_tokens_end(void **state) {
    (void)state;
    struct ask ask;
    ask_init(&ask, 1);
    uint32_t ids[] = {40, 41, 42, 43, 44, 45, 46, 47, 48, 49};
    give(&ask, 0, ids, 10, false);
    struct request *request = open_request(&ask);
    assert_int_equal(request->answers[0].completion.finish_reason, FINISH_LENGTH);
    assert_false(request->answers[0].is_ended);
    request_close(request);
}

static void tokens_beyond_an_end_or_a_limit_are_refused(void **state) {
    (void)state;
    struct ask ask;
    ask_init(&ask, 2);
    uint32_t ids[] = {40, EOS, 42, 43, 44, 45, 46, 47, 48, 49, 50};
    give(&ask, 1, ids, 3, false);
    expect_refusal(&ask, "resume[1].token_ids has 3 tokens, but token 7 at 1 ends the answer");
    uint32_t stop_ids[] = {40};
    ask.stop.token_ids = stop_ids;
    ask.stop.n_token_ids = 1;
    give(&ask, 1, ids, 2, false);
    expect_refusal(&ask, "resume[1].token_ids has 2 tokens, but token 40 at 0 ends the answer");
    ask.stop.n_token_ids = 0;
    give(&ask, 1, ids, 11, false);
    expect_refusal(&ask, "resume[1].token_ids has 11 entries, the limit is 10");
    // What is complete is not held against stop conditions, only against what any answer can be.
    give(&ask, 1, ids, 11, true);
    request_close(open_request(&ask));
    static uint32_t many[CONTEXT + 1];
    give(&ask, 1, many, CONTEXT + 1, true);
    expect_refusal(&ask, "resume[1].token_ids has 65 entries, the limit is 64");
}

static void ids_beyond_the_vocabulary_are_refused(void **state) {
    (void)state;
    uint32_t ids[] = {40, VOCABULARY};
    for (int complete = 0; complete < 2; complete++) {
        struct ask ask;
        ask_init(&ask, 2);
        give(&ask, 1, ids, 2, complete != 0);
        expect_refusal(&ask, "resume[1].token_ids[1] is token 1000, the vocabulary of the model "
                             "ends at 999");
    }
}

static void resume_needs_its_seed_and_an_entry_for_each_answer(void **state) {
    (void)state;
    struct ask ask;
    ask_init(&ask, 2);
    ask.message.n_resume = 1;
    expect_refusal(&ask, "resume has 1 entries, it must have n, which is 2");
    ask.message.n = 0;
    request_close(open_request(&ask)); // n = 0 is one answer
    ask.message.n = 2;
    ask.message.n_resume = 2;
    ask.sampling.seed_presence_case = STAGECOACH__V1__SAMPLING__SEED_PRESENCE__NOT_SET;
    static const char no_seed[] =
        "sampling.seed is missing, resume needs the seed of the call that broke";
    expect_refusal(&ask, no_seed);
    ask.message.sampling = NULL;
    expect_refusal(&ask, no_seed);
}

static void something_must_be_left_to_do(void **state) {
    (void)state;
    struct ask ask;
    ask_init(&ask, 2);
    uint32_t ids[] = {40};
    give(&ask, 0, ids, 1, true);
    give(&ask, 1, ids, 1, true);
    expect_refusal(&ask, "resume has 2 answers and all are complete, at least one must not be");
    give(&ask, 0, NULL, 0, true);
    give(&ask, 1, NULL, 0, false);
    expect_refusal(&ask, "resume[0].token_ids is empty, a complete answer has tokens");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resumed_tokens_follow_the_prompt_and_are_counted),
        cmocka_unit_test(complete_answers_are_not_computed_and_lead_nobody),
        cmocka_unit_test(answers_may_end_where_their_tokens_end),
        cmocka_unit_test(tokens_beyond_an_end_or_a_limit_are_refused),
        cmocka_unit_test(ids_beyond_the_vocabulary_are_refused),
        cmocka_unit_test(resume_needs_its_seed_and_an_entry_for_each_answer),
        cmocka_unit_test(something_must_be_left_to_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
