#include "coordinator/scheduler.h"

#include <math.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/memory.h"
#include "coordinator/scheduler_queue.h"

struct scheduler {
    struct scheduler_config config;
    struct scheduler_queue queue;
    struct cost cost;
    uint32_t group_count; // over which the decode rows are split
    // The first chunks that are cut by cost have 32, 64, 128 ... rows: from chunks that all take
    // equal time nobody could tell the fixed part from the others.
    uint32_t first_chunk_row_count; // of the next one of these; 0: they are done
    struct sequence **candidates;   // decode rows that may go into the microbatch
};

// A group may cost so much more than its share, for sequences are not equally long.
static const double GROUP_SLACK = 1.05;

// -- life -----------------------------------------------------------------------------------------

enum status scheduler_open(const struct scheduler_config *config, struct kv_blocks *blocks,
                           struct scheduler **scheduler_out) {
    CHECK(config->chunk_row_count <= config->row_count_max && config->row_count_max > 0);
    CHECK(config->sequence_count_max > 0 && config->in_flight_max > 0);
    struct scheduler *scheduler = calloc(1, sizeof(*scheduler));
    if (scheduler == NULL) return STATUS_NO_MEMORY;
    scheduler->config = *config;
    cost_init(&scheduler->cost, &config->cost_prior);
    scheduler->first_chunk_row_count = KV_BLOCK_POSITION_COUNT;
    struct scheduler_queue_config queue = {.running_count_max = config->running_count_max,
                                           .waiting_count_max = config->waiting_count_max,
                                           .sequence_count_max = config->sequence_count_max};
    enum status status = scheduler_queue_init(&scheduler->queue, &queue, blocks);
    scheduler->candidates = memory_array(config->sequence_count_max, sizeof(struct sequence *));
    if (status != STATUS_OK || scheduler->candidates == NULL) {
        scheduler_close(scheduler);
        return STATUS_NO_MEMORY;
    }
    *scheduler_out = scheduler;
    return STATUS_OK;
}

void scheduler_close(struct scheduler *scheduler) {
    if (scheduler == NULL) return;
    scheduler_queue_fini(&scheduler->queue);
    free(scheduler->candidates);
    free(scheduler);
}

// -- sequences ------------------------------------------------------------------------------------

enum status scheduler_add(struct scheduler *scheduler, struct sequence *sequence) {
    return scheduler_queue_add(&scheduler->queue, sequence);
}

void scheduler_remove(struct scheduler *scheduler, struct sequence *sequence) {
    scheduler_queue_remove(&scheduler->queue, sequence);
}

uint32_t scheduler_reset(struct scheduler *scheduler) {
    // Who computes next may be slower or faster.
    cost_age(&scheduler->cost);
    return scheduler_queue_reset(&scheduler->queue);
}

// -- a microbatch ---------------------------------------------------------------------------------

struct making {
    struct scheduler_pick *picks;
    uint32_t pick_count;
    uint32_t row_count;
    uint32_t chunk_row_count;                        // of these, in chunks
    double cost;                                     // of all rows, for the slowest stage
    uint64_t block_count, bias_count, history_count; // entries of the frame's tables
};

// Whether the frame's tables have room for this sequence's entries; takes them if so.
static bool take_tables(struct making *making, const struct sequence *sequence,
                        uint32_t position_count, bool is_sample) {
    uint64_t blocks = making->block_count + kv_blocks_for(position_count);
    uint64_t biases = making->bias_count + (is_sample ? sequence->bias_count : 0);
    uint64_t history = making->history_count + (is_sample ? sequence->history.entry_count : 0);
    if (blocks > FRAME_BLOCK_COUNT_MAX || biases > FRAME_BIAS_COUNT_MAX ||
        history > FRAME_HISTORY_COUNT_MAX)
        return false;
    making->block_count = blocks;
    making->bias_count = biases;
    making->history_count = history;
    return true;
}

// Adds the sequence's next rows, for which it has blocks. False: the tables are full.
static bool issue(struct scheduler *scheduler, struct making *making, struct sequence *sequence,
                  uint32_t row_count) {
    uint32_t position_end = sequence->issued_count + row_count;
    bool is_sample = position_end >= sequence->token_count;
    if (!take_tables(making, sequence, position_end, is_sample)) return false;
    making->picks[making->pick_count++] = (struct scheduler_pick){
        .sequence = sequence,
        .run_id = sequence->run_id,
        .position_first = sequence->issued_count,
        .row_count = row_count,
        .is_sample = is_sample,
        .is_ahead = sequence->issued_count == sequence->token_count,
    };
    making->row_count += row_count;
    making->cost += cost_of_rows(&scheduler->cost.slowest, sequence->issued_count, row_count);
    scheduler_queue_issued(&scheduler->queue, sequence, row_count);
    return true;
}

// -- decode rows ----------------------------------------------------------------------------------

static uint32_t stage_count_of(const struct scheduler *scheduler) {
    const struct scheduler_config *config = &scheduler->config;
    return config->stage_count > 0 ? config->stage_count : config->in_flight_max;
}

static void choose_group_count(struct scheduler *scheduler) {
    const struct scheduler_config *config = &scheduler->config;
    uint32_t stage_count = stage_count_of(scheduler), count_max = config->in_flight_max;
    // One microbatch beyond the groups is where rows ahead wait for their tokens.
    if (config->runs_ahead && count_max > stage_count) count_max--;
    if (config->is_naive) count_max = 1;
    scheduler->group_count = scheduler_sizes_groups(&scheduler->cost, &scheduler->queue.decode_load,
                                                    stage_count, count_max, scheduler->group_count);
}

// Whether its next row can be issued. A row ahead goes no sooner than a round after the one that
// draws its token: other rows that can be computed come before it.
static bool can_decode(const struct scheduler *scheduler, const struct sequence *sequence) {
    if (sequence->issued_count < sequence->token_count) return true;
    return scheduler->config.runs_ahead && !scheduler->config.is_naive &&
           sequence->issued_count == sequence->token_count &&
           sequence->issued_count + 1 < sequence->token_count_max &&
           scheduler->queue.pick_number - sequence->pick_number >= scheduler->group_count;
}

// How many sequences and rows of a microbatch may be decode rows: some are left to prompts.
static uint32_t decode_limit(const struct scheduler *scheduler) {
    uint32_t sequences = scheduler->config.sequence_count_max;
    uint32_t rows = scheduler->config.row_count_max;
    if (scheduler->queue.prompts.count > 0) {
        sequences -= (sequences + 7) / 8;
        rows -= (rows + 3) / 4;
    }
    return sequences < rows ? sequences : rows;
}

// What the decode rows of a microbatch may cost: an even share, and as much more as it takes that
// whole rows of average cost fit into all groups together.
static double group_cost(const struct scheduler *scheduler) {
    const struct scheduler_decode_load *load = &scheduler->queue.decode_load;
    const struct cost_terms *terms = &scheduler->cost.slowest;
    double cost = terms->row * load->row_count + terms->attended * (double)load->attended_count;
    uint32_t row_count = (load->row_count + scheduler->group_count - 1) / scheduler->group_count;
    return cost / load->row_count * row_count;
}

// Whether rows of `count` sequences, which are all that can go, wait for others to join them: a few
// rows are not worth a microbatch, nor are more microbatches than groups. The others are in flight,
// so they come.
static bool should_wait(const struct scheduler *scheduler, uint32_t count, bool is_few) {
    if (count == scheduler->queue.decode_load.row_count || scheduler->queue.prompts.count > 0)
        return false;
    if (is_few || scheduler->config.runs_ahead) return is_few; // rows ahead keep their turns anyway
    uint32_t in_flight_count = 0;
    uint64_t number = 0;
    const struct sequence *sequence;
    TAILQ_FOREACH(sequence, &scheduler->queue.decoding, link) {
        if (can_decode(scheduler, sequence) || sequence->pick_number == number) continue;
        number = sequence->pick_number;
        in_flight_count++;
    }
    return in_flight_count >= scheduler->group_count;
}

// Those of which a row goes into this microbatch, least recently picked first.
static uint32_t choose_decode(struct scheduler *scheduler) {
    if (scheduler->queue.decode_load.row_count == 0) return 0;
    choose_group_count(scheduler);
    const struct cost_terms *terms = &scheduler->cost.slowest;
    double cost = 0, cost_max = group_cost(scheduler);
    uint32_t count = 0, count_max = decode_limit(scheduler);
    bool has_skipped = false;
    struct sequence *sequence;
    TAILQ_FOREACH(sequence, &scheduler->queue.decoding, link) {
        if (count == count_max) return count;
        if (!can_decode(scheduler, sequence)) continue;
        double row_cost = terms->row + terms->attended * (double)sequence->counted_count;
        if (count > 0 && cost + row_cost > cost_max * GROUP_SLACK) {
            if (cost * GROUP_SLACK > cost_max * 0.95) return count;
            // It costs much more than others: they take its place, and it comes first later.
            has_skipped = true;
            continue;
        }
        cost += row_cost;
        scheduler->candidates[count++] = sequence;
    }
    return !has_skipped && should_wait(scheduler, count, cost < cost_max / 2) ? 0 : count;
}

static void pick_decode(struct scheduler *scheduler, struct making *making) {
    uint32_t count = choose_decode(scheduler);
    for (uint32_t i = 0; i < count; i++) {
        struct sequence *sequence = scheduler->candidates[i];
        if (sequence->state != SEQUENCE_RUNNING) continue; // preempted just now
        uint32_t position_end = sequence->issued_count + 1;
        bool is_ahead = sequence->issued_count == sequence->token_count;
        bool has_room = is_ahead
                            ? sequence_take_blocks(sequence, scheduler->queue.blocks, position_end)
                            : scheduler_queue_make_room(&scheduler->queue, sequence, position_end);
        if (has_room && !issue(scheduler, making, sequence, 1)) return;
    }
}

// -- prompt rows ----------------------------------------------------------------------------------

// Rows of the sequence's next chunk; 0: the microbatch is full. `budget`: what chunks may cost.
static uint32_t chunk_rows(const struct scheduler *scheduler, const struct making *making,
                           const struct sequence *sequence, double budget) {
    const struct scheduler_config *config = &scheduler->config;
    uint32_t room = config->row_count_max - making->row_count;
    uint32_t row_count = sequence_remaining_count(sequence);
    if (config->chunk_row_count > 0) {
        uint32_t chunk_room = config->chunk_row_count - making->chunk_row_count;
        if (chunk_room < room) room = chunk_room;
    } else if (!config->is_naive) {
        bool is_first = making->chunk_row_count == 0;
        if (!is_first && budget <= 0) return 0;
        row_count = scheduler_sizes_rows(&scheduler->cost, sequence->issued_count, row_count,
                                         budget, is_first && scheduler->queue.prompts.count == 1);
    }
    return row_count < room ? row_count : room;
}

// Of what the microbatch may cost, the part that decode rows leave; a quarter at least.
static double chunk_budget(const struct scheduler *scheduler, const struct making *making) {
    double whole =
        scheduler_sizes_chunk(&scheduler->cost, &scheduler->queue.prompt_load,
                              stage_count_of(scheduler), scheduler->config.row_count_max);
    double rest = fmax(whole - making->cost, whole / 4);
    if (scheduler->first_chunk_row_count == 0) return rest;
    double first = cost_of_rows(&scheduler->cost.slowest, 0, scheduler->first_chunk_row_count);
    return fmin(rest, first);
}

static void pick_prompts(struct scheduler *scheduler, struct making *making) {
    if (scheduler->queue.prompts.count == 0) return;
    const struct sequence_heap *heap = scheduler->queue.pick_number % 2 == 0
                                           ? &scheduler->queue.prompts
                                           : &scheduler->queue.prompts_rest;
    double budget_end = making->cost + chunk_budget(scheduler, making);
    while (making->pick_count < scheduler->config.sequence_count_max) {
        struct sequence *sequence = sequence_heap_first(heap);
        if (sequence == NULL || sequence->pick_number == scheduler->queue.pick_number) return;
        scheduler_queue_take_cached(&scheduler->queue, sequence);
        uint32_t row_count = chunk_rows(scheduler, making, sequence, budget_end - making->cost);
        if (row_count == 0 || !issue(scheduler, making, sequence, row_count)) return;
        making->chunk_row_count += row_count;
    }
}

// A chunk as large as the first ones may be: the next is twice that, up to the usual size.
static void grow_first_chunk(struct scheduler *scheduler, const struct making *making) {
    if (making->chunk_row_count < scheduler->first_chunk_row_count / 2) return;
    uint32_t row_count = scheduler->first_chunk_row_count * 2;
    scheduler->first_chunk_row_count = row_count < CHUNK_ROW_COUNT_MAX / 2 ? row_count : 0;
}

// -- picking --------------------------------------------------------------------------------------

static uint32_t pick_once(struct scheduler *scheduler, struct scheduler_pick *picks_out) {
    struct making making = {.picks = picks_out};
    scheduler->queue.pick_number++;
    pick_decode(scheduler, &making);
    pick_prompts(scheduler, &making);
    if (making.chunk_row_count > 0 && scheduler->first_chunk_row_count > 0)
        grow_first_chunk(scheduler, &making);
    if (making.pick_count == 0) scheduler->queue.pick_number--;
    return making.pick_count;
}

uint32_t scheduler_pick(struct scheduler *scheduler, struct scheduler_pick *picks_out) {
    scheduler_queue_publish(&scheduler->queue);
    scheduler_queue_admit(&scheduler->queue);
    for (;;) {
        uint64_t preempted_count = scheduler->queue.preempted_count;
        uint32_t pick_count = pick_once(scheduler, picks_out);
        // A sequence that gave up its own blocks may have made room for another one. Each round
        // takes one out of the running, so this ends.
        if (pick_count > 0 || scheduler->queue.preempted_count == preempted_count)
            return pick_count;
    }
}

void scheduler_observe(struct scheduler *scheduler, const struct step_cost *cost) {
    cost_observe(&scheduler->cost, cost);
}

void scheduler_observe_hop(struct scheduler *scheduler, uint64_t hop_ns) {
    cost_observe_hop(&scheduler->cost, hop_ns);
}

uint32_t scheduler_running_count(const struct scheduler *scheduler) {
    return scheduler_queue_running_count(&scheduler->queue);
}

uint32_t scheduler_waiting_count(const struct scheduler *scheduler) {
    return scheduler_queue_waiting_count(&scheduler->queue);
}

uint64_t scheduler_preempted_count(const struct scheduler *scheduler) {
    return scheduler->queue.preempted_count;
}
