// scheduler: which rows go into the next microbatch. Pure decisions over sequences and free blocks;
// no clock, no I/O, no clients.
//
// Each microbatch takes decode rows first: an even share of the running sequences, so that the
// microbatches in flight are alike. What is left of the row budget goes to prompt chunks; chunks of
// one prompt follow one another without waiting for results. When blocks run out, the youngest
// running sequence gives its blocks back and is computed again later from its tokens (replay).
#pragma once

#include "coordinator/cost.h"
#include "coordinator/kv_blocks.h"
#include "coordinator/sequence.h"

struct scheduler;

struct scheduler_config {
    uint32_t running_count_max;  // sequences that own blocks
    uint32_t waiting_count_max;  // scheduler_add refuses more
    uint32_t sequence_count_max; // of one microbatch
    uint32_t row_count_max;      // of one microbatch
    uint32_t chunk_row_count;    // prompt rows of one microbatch
    uint32_t in_flight_max;      // microbatches in flight that the share is computed for
    uint32_t stage_count;        // 0: not known
    bool runs_ahead;             // decode rows are issued before their token is known
    bool is_naive;               // one microbatch of everything at a time, for comparison
};

// One sequence's part of a microbatch.
struct scheduler_pick {
    struct sequence *sequence;
    uint64_t run_id;
    uint32_t position_first;
    uint32_t row_count;
    bool is_sample; // its last row is the sequence's last token: a new token comes back
    bool is_ahead;  // its one row's token is not known yet: sequence->sampled_step draws it
};

MUST_USE enum status scheduler_open(const struct scheduler_config *config, struct kv_blocks *blocks,
                                    struct scheduler **scheduler_out);
void scheduler_close(struct scheduler *scheduler); // NULL allowed; sequences are their owner's

// The sequence waits for room. Borrowed until scheduler_remove. STATUS_EXHAUSTED: waiting_count_max
// sequences wait already.
MUST_USE enum status scheduler_add(struct scheduler *scheduler, struct sequence *sequence);
// It has ended or was cancelled: its blocks are free at once. Nothing to do when it is idle.
void scheduler_remove(struct scheduler *scheduler, struct sequence *sequence);
// The pipeline was lost: everything computed is void; all running sequences wait again, oldest
// first. Returns how many will be replayed.
uint32_t scheduler_reset(struct scheduler *scheduler);

// Fills at most config.sequence_count_max entries; they count as issued. 0: nothing can be sent
// now.
uint32_t scheduler_pick(struct scheduler *scheduler, struct scheduler_pick *picks_out);

// What a finished step cost, and how long a frame takes from one stage to the next: from these the
// scheduler learns how many rows a microbatch should have.
void scheduler_observe(struct scheduler *scheduler, const struct step_cost *cost);
void scheduler_observe_hop(struct scheduler *scheduler, uint64_t hop_ns);

uint32_t scheduler_running_count(const struct scheduler *scheduler);
uint32_t scheduler_waiting_count(const struct scheduler *scheduler);
uint64_t scheduler_preempted_count(const struct scheduler *scheduler);
