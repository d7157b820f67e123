// timeline: when each microbatch was sent, received, computed and answered, and where the time of
// every stage went. Pure: times are arguments, all on the coordinator's clock; memory is fixed.
//
// The time of a stage is split step by step. A stage is busy from begin to end; what lies between
// the end of one step and the begin of the next (k) is idle, for one of these reasons:
//
//   quiet      no request was unfinished
//   wire       frame k was on its way: sent by the neighbour, and not yet taken up by the stage.
//              (A stage never waits for room for what it makes: credits cover all in flight.)
//   starved    nothing was sent: the coordinator sent frame k late, or the token that it needs was
//              not drawn yet although even the busiest stage had time left
//   imbalance  another stage had more to do: the neighbour still computed, or the ring was full
//              because of a stage that was busy all the time
//
// Reasons pass down the ring. What a stage waited because its neighbour had waited has the
// neighbour's reasons. Stage 0 waits for an earlier step j, which frees a place in the ring or
// draws the token of k: as long as every later stage was idle before j, more microbatches would
// have helped (starved; wire, as far as those stages waited for frames); the rest is imbalance.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct timeline;

MUST_USE enum status timeline_open(uint32_t stage_count, uint64_t now_ns,
                                   struct timeline **timeline_out);
void timeline_close(struct timeline *timeline); // NULL allowed

// -- what happened --------------------------------------------------------------------------------

// Steps count from 1 again; those of the former epoch that are not complete are lost.
void timeline_begin_epoch(struct timeline *timeline, uint64_t epoch);

// The next step, from 1 on.
struct timeline_send {
    uint64_t sent_ns;
    uint64_t token_step; // the last step that draws a token for its rows after it was sent; 0: none
    uint32_t row_count, sequence_count;
};
void timeline_sent(struct timeline *timeline, const struct timeline_send *send);
// The result of the oldest step that had none.
void timeline_result(struct timeline *timeline, uint64_t now_ns);

// Whether no request is unfinished; quiet at first.
void timeline_set_quiet(struct timeline *timeline, bool is_quiet, uint64_t now_ns);

// What a stage recorded, in the order of its steps. Wrong or late ones are ignored: that step is
// lost.
struct timeline_record {
    uint64_t step;
    uint64_t received_ns, begin_ns, end_ns;
};
void timeline_record(struct timeline *timeline, uint32_t stage_index,
                     const struct timeline_record *record);

// -- what is so -----------------------------------------------------------------------------------

// Sums over steps. The idle ones and busy_ns together are the time from the stage's first step to
// its last, without quiet time and lost steps.
struct timeline_times {
    uint64_t busy_ns;
    uint64_t starved_ns, wire_ns, imbalance_ns; // idle
    uint64_t queued_ns;                         // frames waited at the stage, summed over frames
    uint64_t hop_ns; // frames were on their way to the stage, summed over frames
    uint64_t step_count;
};
struct timeline_sums {
    uint64_t step_count;
    uint64_t row_count;
    uint64_t passage_ns; // from sent to result, summed over steps
};
struct timeline_summary {
    struct timeline_sums sums;
    uint64_t length_ns;        // of the window
    double bubble_ratio;       // idle part of all stages' time, quiet time left out; 0: no steps
    double bubble_ratio_ideal; // (P-1)/(P-1+M), M: microbatches from one quiet time to the next
};

// Since the coordinator started.
void timeline_total(const struct timeline *timeline, uint32_t stage_index,
                    struct timeline_times *times_out);
// The last TIMELINE_WINDOW_S seconds of what the stages have reported.
void timeline_window(const struct timeline *timeline, uint64_t now_ns, uint32_t stage_index,
                     struct timeline_times *times_out);
void timeline_total_sums(const struct timeline *timeline, struct timeline_sums *sums_out);
void timeline_summarize(const struct timeline *timeline, uint64_t now_ns,
                        struct timeline_summary *summary_out);

uint64_t timeline_quiet_ns(const struct timeline *timeline, uint64_t now_ns);
// How long ago the oldest microbatch in flight was sent; 0: none is.
uint64_t timeline_oldest_age_ns(const struct timeline *timeline, uint64_t now_ns);
// Steps that a stage did not report; their time is in no sum.
uint64_t timeline_lost_count(const struct timeline *timeline);

// -- one by one, for traces -----------------------------------------------------------------------

struct timeline_step {
    uint64_t epoch, step;
    uint64_t sent_ns, result_ns;
    uint32_t row_count, sequence_count;
    bool is_whole; // every stage reported it; else stages that did not have end_ns 0
};
struct timeline_stage_step {
    uint64_t received_ns, begin_ns, end_ns;
    uint64_t starved_ns, wire_ns, imbalance_ns; // idle before it
};
// A place after everything that is known by now.
uint64_t timeline_cursor(const struct timeline *timeline);
// The next step at the cursor, which moves behind it; NULL when there is none yet. Steps that have
// been overwritten are skipped. *stages_out has stage_count entries; both stay valid until the
// timeline is told something.
const struct timeline_step *timeline_next(const struct timeline *timeline, uint64_t *cursor,
                                          const struct timeline_stage_step **stages_out);
