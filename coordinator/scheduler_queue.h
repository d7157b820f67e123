// scheduler_queue: which sequences wait and which run, in which order, and who gives blocks back
// when there are too few. Part of the scheduler, which says what rows they get.
#pragma once

#include "coordinator/scheduler_sizes.h"
#include "coordinator/sequence_heap.h"

struct scheduler_queue_config {
    uint32_t running_count_max;
    uint32_t waiting_count_max;
    uint32_t sequence_count_max; // of one microbatch
};

struct scheduler_queue {
    struct scheduler_queue_config config;
    struct kv_blocks *blocks;
    struct sequence_heap waiting; // first in rank; without those that wait for a leader
    uint32_t parked_count;        // these
    // Running sequences are in one of two places.
    struct sequence_heap prompts;      // first in rank
    struct sequence_heap prompts_rest; // the same ones, the fewest rows left first
    struct scheduler_prompt_load prompt_load;
    struct sequence_list decoding; // least recently picked first
    struct scheduler_decode_load decode_load;
    uint64_t arrival_next;
    uint64_t run_id_next;
    uint64_t preempted_count;
    // The last microbatch, or the one being made: its sequences; NULL where one has left since.
    uint64_t pick_number;
    struct sequence **picked;
    uint32_t picked_count;
    // The first of those waiting did not fit into so many free blocks.
    const struct sequence *blocked;
    uint32_t blocked_free_count;
};

// STATUS_NO_MEMORY. `blocks` is borrowed until fini.
MUST_USE enum status scheduler_queue_init(struct scheduler_queue *queue,
                                          const struct scheduler_queue_config *config,
                                          struct kv_blocks *blocks);
void scheduler_queue_fini(struct scheduler_queue *queue);

// As scheduler_add, scheduler_remove and scheduler_reset.
MUST_USE enum status scheduler_queue_add(struct scheduler_queue *queue, struct sequence *sequence);
void scheduler_queue_remove(struct scheduler_queue *queue, struct sequence *sequence);
uint32_t scheduler_queue_reset(struct scheduler_queue *queue);

// The last microbatch was sent: others may share the blocks that it fills, and those that wait for
// its sequences' prompts need wait no longer.
void scheduler_queue_publish(struct scheduler_queue *queue);
// Starts waiting sequences, first in rank first, while they fit.
void scheduler_queue_admit(struct scheduler_queue *queue);
// More of its prompt may be cached by now than when it started.
void scheduler_queue_take_cached(struct scheduler_queue *queue, struct sequence *sequence);

// Blocks for the first position_count positions of a running sequence, preempting the last in rank.
// False when that would take blocks from a sequence that is part of this microbatch, or from this
// one itself, which then waits again.
MUST_USE bool scheduler_queue_make_room(struct scheduler_queue *queue, struct sequence *sequence,
                                        uint32_t position_count);
// Its next rows, for which it has blocks, are part of microbatch pick_number.
void scheduler_queue_issued(struct scheduler_queue *queue, struct sequence *sequence,
                            uint32_t row_count);

static inline uint32_t scheduler_queue_running_count(const struct scheduler_queue *queue) {
    return queue->decode_load.row_count + queue->prompts.count;
}
static inline uint32_t scheduler_queue_waiting_count(const struct scheduler_queue *queue) {
    return queue->waiting.count + queue->parked_count;
}
