#include "stage/feedback.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/memory.h"

// A step names one that is less than the credits of a link behind it, and its own RESULT comes
// later: what it needs is never overwritten.
enum { STEP_COUNT = LINK_CREDIT_COUNT_MAX };

struct drawn {
    uint64_t sequence_id;
    uint32_t token_id;
};

struct feedback {
    uint64_t step_last; // the last one kept; 0: none
    uint32_t sample_count_max;
    uint32_t sample_counts[STEP_COUNT]; // of step s at s % STEP_COUNT
    struct drawn *drawn;                // (STEP_COUNT, sample_count_max)
};

enum status feedback_open(uint32_t sample_count_max, struct feedback **feedback_out) {
    struct feedback *feedback = calloc(1, sizeof(*feedback));
    if (feedback == NULL) return STATUS_NO_MEMORY;
    feedback->sample_count_max = sample_count_max;
    feedback->drawn = memory_array((size_t)STEP_COUNT * sample_count_max, sizeof(*feedback->drawn));
    if (feedback->drawn == NULL) {
        free(feedback);
        return STATUS_NO_MEMORY;
    }
    *feedback_out = feedback;
    return STATUS_OK;
}

void feedback_close(struct feedback *feedback) {
    if (feedback == NULL) return;
    free(feedback->drawn);
    free(feedback);
}

static struct drawn *drawn_of(const struct feedback *feedback, uint64_t step) {
    return &feedback->drawn[step % STEP_COUNT * feedback->sample_count_max];
}

enum status feedback_keep(struct feedback *feedback, const struct frame_view *result,
                          struct error *error) {
    const struct frame_header *header = result->header;
    CHECK(header->sample_count <= feedback->sample_count_max);
    if (header->step != feedback->step_last + 1)
        return error_set(error, STATUS_INVALID,
                         "feedback: result is of step %" PRIu64 ", step %" PRIu64 " is next",
                         header->step, feedback->step_last + 1);
    feedback->step_last = header->step;
    feedback->sample_counts[header->step % STEP_COUNT] = header->sample_count;
    struct drawn *drawn = drawn_of(feedback, header->step);
    for (uint32_t i = 0; i < header->sample_count; i++)
        drawn[i] = (struct drawn){result->samples[i].sequence_id, result->samples[i].token_id};
    return STATUS_OK;
}

bool feedback_has(const struct feedback *feedback, const struct frame_view *step) {
    for (uint32_t i = 0; i < step->header->sequence_count; i++) {
        uint32_t lag = step->sequences[i].token_lag;
        if (lag > 0 && step->header->step - lag > feedback->step_last) return false;
    }
    return true;
}

static enum status write_token(const struct feedback *feedback, const struct frame_sequence *s,
                               uint64_t step, uint32_t *token_out, struct error *error) {
    CHECK(step <= feedback->step_last);
    if (feedback->step_last - step >= STEP_COUNT)
        return error_set(error, STATUS_INVALID,
                         "feedback: the samples of step %" PRIu64 " are no longer kept", step);
    const struct drawn *drawn = &drawn_of(feedback, step)[s->token_sample];
    if (s->token_sample >= feedback->sample_counts[step % STEP_COUNT] ||
        drawn->sequence_id != s->sequence_id)
        return error_set(error, STATUS_INVALID,
                         "feedback: sample %" PRIu32 " of step %" PRIu64
                         " is not of sequence %" PRIu64,
                         s->token_sample, step, s->sequence_id);
    *token_out = drawn->token_id;
    return STATUS_OK;
}

enum status feedback_write(const struct feedback *feedback, const struct frame_view *step,
                           struct error *error) {
    for (uint32_t i = 0; i < step->header->sequence_count; i++) {
        const struct frame_sequence *s = &step->sequences[i];
        if (s->token_lag == 0) continue;
        enum status status = write_token(feedback, s, step->header->step - s->token_lag,
                                         &step->tokens[s->row_first], error);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}
