#include "client/resume.h"

static void describe_answers(struct resume *resume, const struct generation *generation) {
    for (uint32_t i = 0; i < generation->answer_count; i++) {
        const struct answer *answer = &generation->answers[i];
        Stagecoach__V1__ResumedAnswer *entry = &resume->entries[i];
        stagecoach__v1__resumed_answer__init(entry);
        entry->token_ids = answer->token_ids;
        entry->n_token_ids = answer->token_id_count;
        entry->complete =
            answer->finish_reason != STAGECOACH__V1__FINISH_REASON__FINISH_REASON_NONE;
        resume->pointers[i] = entry;
    }
    resume->message.resume = resume->pointers;
    resume->message.n_resume = generation->answer_count;
}

const Stagecoach__V1__GenerateRequest *
resume_request(struct resume *resume, const Stagecoach__V1__GenerateRequest *request,
               const struct generation *generation) {
    if (!generation->has_seed) return request;
    resume->message = *request;
    if (request->sampling != NULL)
        resume->sampling = *request->sampling;
    else
        stagecoach__v1__sampling__init(&resume->sampling);
    resume->sampling.seed_presence_case = STAGECOACH__V1__SAMPLING__SEED_PRESENCE_SEED;
    resume->sampling.seed = generation->seed;
    resume->message.sampling = &resume->sampling;
    // One name in the logs for all attempts.
    if (generation->request_id[0] != '\0')
        resume->message.request_id = (char *)generation->request_id;
    describe_answers(resume, generation);
    return &resume->message;
}
