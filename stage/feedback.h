// feedback: the tokens that recent steps drew, kept at stage 0 for the steps that were sent before
// these were known. One thread.
#pragma once

#include "proto/frame.h"

struct feedback;

// For one epoch, whose steps count from 1. Keeps the last LINK_CREDIT_COUNT_MAX steps, of at most
// `sample_count_max` samples each.
MUST_USE enum status feedback_open(uint32_t sample_count_max, struct feedback **feedback_out);
void feedback_close(struct feedback *feedback); // NULL allowed

// Keeps the samples of a RESULT that frame_parse() let pass, of at most sample_count_max sequences.
// STATUS_INVALID: it is not of the step after the last one.
MUST_USE enum status feedback_keep(struct feedback *feedback, const struct frame_view *result,
                                   struct error *error);

// Whether the samples have come that the sequences of a STEP name.
bool feedback_has(const struct feedback *feedback, const struct frame_view *step);

// Writes these tokens into the STEP's table; a sample that is not finite counts as token 0. Only
// when feedback_has(). STATUS_INVALID: a sample is not of its sequence, or no longer kept.
MUST_USE enum status feedback_write(const struct feedback *feedback, const struct frame_view *step,
                                    struct error *error);
