// microbatch: writes the rows that the scheduler picked into a STEP frame for stage 0.
#pragma once

#include "coordinator/scheduler.h"
#include "proto/frame.h"

// A row that is ahead names its sequence's sampled_step and sampled_index in place of a token.
// STATUS_EXHAUSTED: the frame is too small (never, when it has frame_capacity_bytes()).
MUST_USE enum status microbatch_write(struct frame *frame, uint64_t epoch, uint64_t step,
                                      const struct scheduler_pick *picks, uint32_t pick_count);
