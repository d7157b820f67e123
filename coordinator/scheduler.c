#include "coordinator/scheduler.h"

#include <stdlib.h>

#include "base/check.h"
#include "base/limits.h"

struct scheduler {
    struct scheduler_config config;
    struct kv_blocks *blocks;
    // Oldest first: arrival order is kept when a sequence comes back from running.
    struct sequence_list waiting;
    // Least recently picked first.
    struct sequence_list running;
    uint32_t waiting_count;
    uint32_t running_count;
    uint64_t arrival_next;
    uint64_t run_id_next;
    uint64_t pick_number; // of the microbatch being made
    uint64_t preempted_count;
};

// What one microbatch has used so far.
struct budget {
    uint32_t row_count;
    uint32_t chunk_row_count;
    uint64_t block_count, bias_count, history_count; // frame table entries
};

enum status scheduler_open(const struct scheduler_config *config, struct kv_blocks *blocks,
                           struct scheduler **scheduler_out) {
    CHECK(config->chunk_row_count > 0 && config->chunk_row_count <= config->row_count_max);
    CHECK(config->sequence_count_max > 0 && config->in_flight_max > 0);
    struct scheduler *scheduler = calloc(1, sizeof(*scheduler));
    if (scheduler == NULL) return STATUS_NO_MEMORY;
    scheduler->config = *config;
    scheduler->blocks = blocks;
    TAILQ_INIT(&scheduler->waiting);
    TAILQ_INIT(&scheduler->running);
    *scheduler_out = scheduler;
    return STATUS_OK;
}

void scheduler_close(struct scheduler *scheduler) {
    free(scheduler);
}

static void insert_waiting(struct scheduler *scheduler, struct sequence *sequence) {
    struct sequence *after = TAILQ_LAST(&scheduler->waiting, sequence_list);
    while (after != NULL && after->arrival > sequence->arrival)
        after = TAILQ_PREV(after, sequence_list, link);
    if (after == NULL)
        TAILQ_INSERT_HEAD(&scheduler->waiting, sequence, link);
    else
        TAILQ_INSERT_AFTER(&scheduler->waiting, after, sequence, link);
    sequence->state = SEQUENCE_WAITING;
    scheduler->waiting_count++;
}

enum status scheduler_add(struct scheduler *scheduler, struct sequence *sequence) {
    CHECK(sequence->state == SEQUENCE_IDLE);
    if (scheduler->waiting_count >= scheduler->config.waiting_count_max) return STATUS_EXHAUSTED;
    sequence->arrival = scheduler->arrival_next++;
    insert_waiting(scheduler, sequence);
    return STATUS_OK;
}

static void leave(struct scheduler *scheduler, struct sequence *sequence) {
    if (sequence->state == SEQUENCE_WAITING) {
        TAILQ_REMOVE(&scheduler->waiting, sequence, link);
        scheduler->waiting_count--;
    } else if (sequence->state == SEQUENCE_RUNNING) {
        TAILQ_REMOVE(&scheduler->running, sequence, link);
        scheduler->running_count--;
        sequence_give_blocks(sequence, scheduler->blocks);
    }
    sequence->state = SEQUENCE_IDLE;
    sequence->issued_count = 0;
    sequence->run_id = 0;
}

void scheduler_remove(struct scheduler *scheduler, struct sequence *sequence) {
    leave(scheduler, sequence);
}

static void send_back(struct scheduler *scheduler, struct sequence *sequence) {
    leave(scheduler, sequence);
    insert_waiting(scheduler, sequence);
}

uint32_t scheduler_reset(struct scheduler *scheduler) {
    uint32_t count = 0;
    struct sequence *sequence;
    while ((sequence = TAILQ_FIRST(&scheduler->running)) != NULL) {
        sequence->replay_count++;
        send_back(scheduler, sequence);
        count++;
    }
    return count;
}

// Starts waiting sequences, oldest first, while a whole prompt and one more block fit.
static void admit(struct scheduler *scheduler) {
    struct sequence *sequence;
    while ((sequence = TAILQ_FIRST(&scheduler->waiting)) != NULL &&
           scheduler->running_count < scheduler->config.running_count_max) {
        uint32_t total_count = kv_blocks_total_count(scheduler->blocks);
        uint32_t wanted_count = kv_blocks_for(sequence->token_count) + 1;
        if (wanted_count > total_count) wanted_count = total_count;
        if (kv_blocks_free_count(scheduler->blocks) < wanted_count) return;
        leave(scheduler, sequence);
        sequence->state = SEQUENCE_RUNNING;
        sequence->run_id = ++scheduler->run_id_next;
        TAILQ_INSERT_TAIL(&scheduler->running, sequence, link);
        scheduler->running_count++;
    }
}

static struct sequence *youngest(struct scheduler *scheduler) {
    struct sequence *found = NULL, *sequence;
    TAILQ_FOREACH(sequence, &scheduler->running, link) {
        if (found == NULL || sequence->arrival > found->arrival) found = sequence;
    }
    return found;
}

// Blocks for the first position_count positions of the sequence, preempting the youngest others.
// False when that would take blocks from a sequence that is older, or part of this microbatch.
static bool make_room(struct scheduler *scheduler, struct sequence *sequence,
                      uint32_t position_count) {
    while (!sequence_take_blocks(sequence, scheduler->blocks, position_count)) {
        struct sequence *victim = youngest(scheduler);
        if (victim->pick_number == scheduler->pick_number) return false;
        scheduler->preempted_count++;
        send_back(scheduler, victim);
        if (victim == sequence) return false;
    }
    return true;
}

// Whether the frame's tables have room for this sequence's entries; takes them if so.
static bool take_tables(struct budget *budget, const struct sequence *sequence,
                        uint32_t position_count, bool is_sample) {
    uint64_t blocks = budget->block_count + kv_blocks_for(position_count);
    uint64_t biases = budget->bias_count + (is_sample ? sequence->bias_count : 0);
    uint64_t history = budget->history_count + (is_sample ? sequence->history.entry_count : 0);
    if (blocks > FRAME_BLOCK_COUNT_MAX || biases > FRAME_BIAS_COUNT_MAX ||
        history > FRAME_HISTORY_COUNT_MAX)
        return false;
    budget->block_count = blocks;
    budget->bias_count = biases;
    budget->history_count = history;
    return true;
}

// Adds rows of `sequence`; returns whether it did.
static bool pick_rows(struct scheduler *scheduler, struct sequence *sequence, uint32_t row_count,
                      struct budget *budget, struct scheduler_pick *picks, uint32_t *pick_count) {
    uint32_t position_end = sequence->issued_count + row_count;
    bool is_sample = position_end == sequence->token_count;
    struct budget after = *budget;
    if (!take_tables(&after, sequence, position_end, is_sample)) return false;
    if (!make_room(scheduler, sequence, position_end)) return false;
    *budget = after;
    budget->row_count += row_count;
    picks[(*pick_count)++] = (struct scheduler_pick){
        .sequence = sequence,
        .run_id = sequence->run_id,
        .position_first = sequence->issued_count,
        .row_count = row_count,
        .is_sample = is_sample,
    };
    sequence->issued_count = position_end;
    sequence->pick_number = scheduler->pick_number;
    TAILQ_REMOVE(&scheduler->running, sequence, link);
    TAILQ_INSERT_TAIL(&scheduler->running, sequence, link);
    return true;
}

// How many rows of the sequence this pass may add now; 0: none.
typedef uint32_t rows_wanted_fn(const struct scheduler *scheduler, const struct sequence *sequence,
                                const struct budget *budget);

static uint32_t decode_rows(const struct scheduler *scheduler, const struct sequence *sequence,
                            const struct budget *budget) {
    if (sequence_remaining_count(sequence) != 1) return 0;
    return budget->row_count < scheduler->config.row_count_max ? 1 : 0;
}

static uint32_t chunk_rows(const struct scheduler *scheduler, const struct sequence *sequence,
                           const struct budget *budget) {
    uint32_t remaining_count = sequence_remaining_count(sequence);
    if (remaining_count <= 1) return 0;
    uint32_t room = scheduler->config.row_count_max - budget->row_count;
    uint32_t chunk_room = scheduler->config.chunk_row_count - budget->chunk_row_count;
    if (chunk_room < room) room = chunk_room;
    return remaining_count < room ? remaining_count : room;
}

// Walks the sequences that run now, least recently picked first; each at most once.
static void pick_each(struct scheduler *scheduler, rows_wanted_fn *rows_wanted, uint32_t count_max,
                      struct budget *budget, struct scheduler_pick *picks, uint32_t *pick_count) {
    uint32_t picked_count = 0;
    struct sequence *sequence = TAILQ_FIRST(&scheduler->running);
    while (sequence != NULL && picked_count < count_max) {
        // A picked sequence moves to the tail, so the walk ends when it meets one.
        if (sequence->pick_number == scheduler->pick_number) break;
        struct sequence *next = TAILQ_NEXT(sequence, link);
        uint32_t row_count = rows_wanted(scheduler, sequence, budget);
        if (row_count > 0) {
            uint64_t preempted_count = scheduler->preempted_count;
            if (pick_rows(scheduler, sequence, row_count, budget, picks, pick_count)) {
                picked_count++;
                if (rows_wanted == chunk_rows) budget->chunk_row_count += row_count;
            }
            // `next` may have been preempted: stop, the next microbatch begins at the head.
            if (scheduler->preempted_count != preempted_count) break;
        }
        sequence = next;
    }
}

static uint32_t pick_once(struct scheduler *scheduler, struct scheduler_pick *picks_out) {
    const struct scheduler_config *config = &scheduler->config;
    struct budget budget = {0};
    uint32_t pick_count = 0;
    uint32_t share = (scheduler->running_count + config->in_flight_max - 1) / config->in_flight_max;
    if (share > config->sequence_count_max) share = config->sequence_count_max;
    scheduler->pick_number++;
    pick_each(scheduler, decode_rows, share, &budget, picks_out, &pick_count);
    pick_each(scheduler, chunk_rows, config->sequence_count_max - pick_count, &budget, picks_out,
              &pick_count);
    return pick_count;
}

uint32_t scheduler_pick(struct scheduler *scheduler, struct scheduler_pick *picks_out) {
    admit(scheduler);
    for (;;) {
        uint64_t preempted_count = scheduler->preempted_count;
        uint32_t pick_count = pick_once(scheduler, picks_out);
        // A sequence that gave up its own blocks may have made room for an older one. Each round
        // takes one out of the running, so this ends.
        if (pick_count > 0 || scheduler->preempted_count == preempted_count) return pick_count;
    }
}

void scheduler_observe(struct scheduler *scheduler, const struct step_cost *cost) {
    (void)scheduler, (void)cost;
}

void scheduler_observe_hop(struct scheduler *scheduler, uint64_t hop_ns) {
    (void)scheduler, (void)hop_ns;
}

uint32_t scheduler_running_count(const struct scheduler *scheduler) {
    return scheduler->running_count;
}

uint32_t scheduler_waiting_count(const struct scheduler *scheduler) {
    return scheduler->waiting_count;
}

uint64_t scheduler_preempted_count(const struct scheduler *scheduler) {
    return scheduler->preempted_count;
}
