// scheduler: which rows go into the next microbatch. Pure decisions over sequences, free blocks and
// measured costs; no clock, no I/O, no clients.
//
// Decode: the sequences that decode are split by cost over as many microbatches as keep all stages
// busy (scheduler_sizes_groups). Each microbatch takes the share that was picked least recently, so
// that shares stay even while sequences come and end. With runs_ahead a sequence's next row is
// issued before its token is known, at most one such row a sequence.
//
// Prompts: the rest of the microbatch goes to chunks, up to a cost (scheduler_sizes_chunk) that
// makes microbatches alike although later rows attend to more positions; at least a quarter of that
// however many rows decode. Chunks of one prompt follow one another without waiting for results.
//
// Who goes first: waiting sequences start in order of rank, which is the order of arrival moved
// forward by SCHEDULER_PRIORITY_LEAD places for each level of priority. So nobody is overtaken for
// ever, whatever the priorities are. Of the prompts that run, every other microbatch takes the
// first in rank first, and every other one those with the fewest rows left: a long prompt gets at
// least half of the chunks from when it is the first in rank, and short ones do not wait for it.
//
// Blocks for all known tokens are taken when a sequence starts. When they run out later, the last
// in rank of the running sequences gives its blocks back and is computed again from its tokens
// (replay), as far as the prefix cache has not kept them.
#pragma once

#include "coordinator/cost.h"
#include "coordinator/kv_blocks.h"
#include "coordinator/sequence.h"

struct scheduler;

struct scheduler_config {
    uint32_t running_count_max;   // sequences that own blocks
    uint32_t waiting_count_max;   // scheduler_add refuses more
    uint32_t sequence_count_max;  // of one microbatch
    uint32_t row_count_max;       // of one microbatch
    uint32_t chunk_row_count;     // prompt rows of one microbatch; 0: by cost
    uint32_t in_flight_max;       // microbatches in flight
    uint32_t stage_count;         // 0: not known
    bool runs_ahead;              // decode rows are issued before their token is known
    bool is_naive;                // one microbatch of everything at a time, for comparison
    struct cost_prior cost_prior; // until costs are measured
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
// The pipeline was lost: everything computed is void; all running sequences wait again, in order of
// rank. Returns how many will be replayed.
uint32_t scheduler_reset(struct scheduler *scheduler);

// Fills at most config.sequence_count_max entries; they count as issued, and must be sent before
// the next call. 0: nothing can be sent now.
uint32_t scheduler_pick(struct scheduler *scheduler, struct scheduler_pick *picks_out);

// What a finished step cost, and how long a frame takes from one stage to the next: from these the
// scheduler learns how many rows a microbatch should have.
void scheduler_observe(struct scheduler *scheduler, const struct step_cost *cost);
void scheduler_observe_hop(struct scheduler *scheduler, uint64_t hop_ns);

uint32_t scheduler_running_count(const struct scheduler *scheduler);
uint32_t scheduler_waiting_count(const struct scheduler *scheduler);
uint64_t scheduler_preempted_count(const struct scheduler *scheduler);
