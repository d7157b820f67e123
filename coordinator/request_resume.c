#include <inttypes.h>
#include <stdio.h>

#include "coordinator/request_parts.h"

typedef Stagecoach__V1__GenerateRequest generate_message;
typedef Stagecoach__V1__ResumedAnswer resumed_answer;

// A drawn seed is in every message: who has tokens has it too, and without it the rest would not
// belong to them.
static enum status check_seed(const generate_message *m, struct error *error) {
    if (m->sampling != NULL &&
        m->sampling->seed_presence_case == STAGECOACH__V1__SAMPLING__SEED_PRESENCE_SEED)
        return STATUS_OK;
    return error_set_field(
        error, STATUS_INVALID,
        "sampling.seed is missing, resume needs the seed of the call that broke");
}

static enum status check_entries(const generate_message *m, const struct request *request,
                                 struct error *error) {
    if (m->n_resume != request->answer_count)
        return error_set_field(error, STATUS_INVALID,
                               "resume has %zu entries, it must have n, which is %" PRIu32,
                               m->n_resume, request->answer_count);
    for (size_t i = 0; i < m->n_resume; i++)
        if (!m->resume[i]->complete) return STATUS_OK;
    return error_set_field(error, STATUS_INVALID,
                           "resume has %zu answers and all are complete, at least one must not be",
                           m->n_resume);
}

static enum status check_token_ids(const struct request_rules *rules, const resumed_answer *resumed,
                                   const char *field, uint32_t count_max, struct error *error) {
    enum status status = request_check_length(field, resumed->n_token_ids, count_max, error);
    for (size_t i = 0; i < resumed->n_token_ids && status == STATUS_OK; i++)
        status = request_check_token_id(rules, field, i, resumed->token_ids[i], error);
    return status;
}

// Nothing of it is computed; its tokens are counted.
static void set_complete(struct answer *answer, const resumed_answer *resumed) {
    answer->completion.token_count = (uint32_t)resumed->n_token_ids;
    answer->is_ended = answer->is_last_sent = true;
    answer->request->running_count--;
    answer->request->unsent_count--;
}

// As if its tokens had been drawn and sent just now.
static enum status advance(struct answer *answer, const resumed_answer *resumed, const char *field,
                           struct error *error) {
    for (size_t i = 0; i < resumed->n_token_ids; i++) {
        if (answer->completion.finish_reason != FINISH_NONE)
            return error_set_field(error, STATUS_INVALID,
                                   "%s has %zu tokens, but token %" PRIu32
                                   " at %zu ends the answer",
                                   field, resumed->n_token_ids, resumed->token_ids[i - 1], i - 1);
        enum status status = sequence_append(&answer->sequence, resumed->token_ids[i]);
        if (status == STATUS_OK)
            status = completion_advance(&answer->completion, resumed->token_ids[i]);
        if (status != STATUS_OK) return error_set(error, status, "no memory for %s", field);
    }
    return STATUS_OK;
}

static enum status resume_answer(const struct request_rules *rules, const resumed_answer *resumed,
                                 struct answer *answer, struct error *error) {
    char field[48];
    (void)snprintf(field, sizeof(field), "resume[%" PRIu32 "].token_ids", answer->index);
    // A complete one may have ended under other limits of the KV memory.
    uint32_t count_max =
        resumed->complete ? rules->position_count_max : answer->request->stop.max_token_count;
    enum status status = check_token_ids(rules, resumed, field, count_max, error);
    if (status != STATUS_OK) return status;
    if (!resumed->complete) return advance(answer, resumed, field, error);
    if (resumed->n_token_ids == 0)
        return error_set_field(error, STATUS_INVALID, "%s is empty, a complete answer has tokens",
                               field);
    set_complete(answer, resumed);
    return STATUS_OK;
}

enum status request_resume(const struct request_rules *rules, const generate_message *m,
                           struct request *request, struct error *error) {
    if (m->n_resume == 0) return STATUS_OK;
    enum status status = check_entries(m, request, error);
    if (status == STATUS_OK) status = check_seed(m, error);
    for (uint32_t i = 0; i < request->answer_count && status == STATUS_OK; i++)
        status = resume_answer(rules, m->resume[i], &request->answers[i], error);
    return status;
}
