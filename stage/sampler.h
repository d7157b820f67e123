// sampler: from a row of logits to a token, as a pure function. The random number is keyed by
// (seed, position), so a replay draws the same token.
#pragma once

#include "proto/frame.h"

// Work space for one thread, for a vocabulary of this size: 20 bytes a token, of which most are not
// touched by usual settings.
struct sampler;
MUST_USE enum status sampler_open(uint32_t vocabulary_size, struct sampler **sampler_out);
void sampler_close(struct sampler *sampler); // NULL allowed

// Draws the token that follows the last row of `sequence`.
//   logits: (vocabulary_size) f32, not changed.   position: of the new token.
//   frame: its biases, history and tokens; the sequence says which entries are its own. With a
//   token_lag, the token of the sequence's row counts as one more of the output than history has.
//   top_out: room for sequence->top_logprob_count entries; most likely first, ties by lower id.
//   Written, like the log-probability, only when the sequence asks for FRAME_LOGPROBS.
//   sample_out: top_count entries are in top_out; top_first is left 0 for the caller to set.
//   FRAME_SAMPLE_NOT_FINITE: a logit is NaN or +infinity, or all are -infinity.
// Parameters are in the ranges that frame_parse() allows.
// Order: repetition penalty (Keskar et al. 2019: positive logits are divided, negative multiplied),
// presence and frequency penalties (OpenAI: logit -= presence*(count>0) + frequency*count), bias,
// temperature, top-k, top-p, min-p, draw. Logits after penalties, and after each bias, are rounded
// to f32. Greedy (temperature 0) takes the largest, the lowest id on a tie. Log-probabilities are
// of the logits before all of it. Filters keep, of equal logits, lower ids first; the set kept and
// the draw do not depend on how the vocabulary is walked, nor on the processor.
void sampler_draw(struct sampler *sampler, const float *logits,
                  const struct frame_sequence *sequence, uint64_t position,
                  const struct frame_view *frame, struct frame_sample *sample_out,
                  struct frame_top *top_out);
