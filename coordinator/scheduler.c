#include "coordinator/scheduler.h"

#include <math.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/memory.h"
#include "coordinator/scheduler_sizes.h"
#include "coordinator/sequence_heap.h"

struct scheduler {
    struct scheduler_config config;
    struct kv_blocks *blocks;
    struct cost cost;
    struct sequence_heap waiting; // first in rank; without those that wait for a leader
    uint32_t parked_count;        // these
    // Running sequences are in one of two places.
    struct sequence_heap prompts;      // first in rank
    struct sequence_heap prompts_rest; // the same ones, the fewest rows left first
    struct scheduler_prompt_load prompt_load;
    struct sequence_list decoding; // least recently picked first
    struct scheduler_decode_load decode_load;
    uint32_t group_count; // over which the decode rows are split
    // The first chunks that are cut by cost have 32, 64, 128 ... rows: from chunks that all take
    // equal time nobody could tell the fixed part from the others.
    uint32_t first_chunk_row_count; // of the next one of these; 0: they are done
    uint64_t arrival_next;
    uint64_t run_id_next;
    uint64_t pick_number; // of the last microbatch, or the one being made
    uint64_t preempted_count;
    // That microbatch's sequences; NULL where one has left since.
    struct sequence **picked;
    uint32_t picked_count;
    struct sequence **candidates; // decode rows that may go into it
    // The first of those waiting did not fit into so many free blocks.
    const struct sequence *blocked;
    uint32_t blocked_free_count;
};

// -- life -----------------------------------------------------------------------------------------

static bool is_before(const struct sequence *a, const struct sequence *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->arrival < b->arrival;
}

static bool has_less_left(const struct sequence *a, const struct sequence *b) {
    uint32_t left_a = sequence_remaining_count(a), left_b = sequence_remaining_count(b);
    return left_a != left_b ? left_a < left_b : is_before(a, b);
}

static enum status open_parts(struct scheduler *scheduler) {
    const struct scheduler_config *config = &scheduler->config;
    // What runs may have to wait again.
    enum status status = sequence_heap_init(&scheduler->waiting,
                                            config->waiting_count_max + config->running_count_max,
                                            SEQUENCE_HEAP_RANK, is_before);
    if (status == STATUS_OK)
        status = sequence_heap_init(&scheduler->prompts, config->running_count_max,
                                    SEQUENCE_HEAP_RANK, is_before);
    if (status == STATUS_OK)
        status = sequence_heap_init(&scheduler->prompts_rest, config->running_count_max,
                                    SEQUENCE_HEAP_REST, has_less_left);
    if (status != STATUS_OK) return status;
    scheduler->picked = memory_array(config->sequence_count_max, sizeof(struct sequence *));
    scheduler->candidates = memory_array(config->sequence_count_max, sizeof(struct sequence *));
    return scheduler->picked == NULL || scheduler->candidates == NULL ? STATUS_NO_MEMORY
                                                                      : STATUS_OK;
}

enum status scheduler_open(const struct scheduler_config *config, struct kv_blocks *blocks,
                           struct scheduler **scheduler_out) {
    CHECK(config->chunk_row_count <= config->row_count_max && config->row_count_max > 0);
    CHECK(config->sequence_count_max > 0 && config->in_flight_max > 0);
    struct scheduler *scheduler = calloc(1, sizeof(*scheduler));
    if (scheduler == NULL) return STATUS_NO_MEMORY;
    scheduler->config = *config;
    scheduler->blocks = blocks;
    cost_init(&scheduler->cost, &config->cost_prior);
    TAILQ_INIT(&scheduler->decoding);
    scheduler->first_chunk_row_count = KV_BLOCK_POSITION_COUNT;
    if (open_parts(scheduler) != STATUS_OK) {
        scheduler_close(scheduler);
        return STATUS_NO_MEMORY;
    }
    *scheduler_out = scheduler;
    return STATUS_OK;
}

void scheduler_close(struct scheduler *scheduler) {
    if (scheduler == NULL) return;
    sequence_heap_fini(&scheduler->waiting);
    sequence_heap_fini(&scheduler->prompts);
    sequence_heap_fini(&scheduler->prompts_rest);
    free(scheduler->picked);
    free(scheduler->candidates);
    free(scheduler);
}

// -- places of running sequences ------------------------------------------------------------------

static uint64_t attended_by(uint64_t row_count) {
    return row_count * (row_count + 1) / 2;
}

// By the rows it has next.
static void place(struct scheduler *scheduler, struct sequence *sequence) {
    CHECK(sequence->place == SEQUENCE_PLACE_NONE);
    if (sequence_remaining_count(sequence) >= 2) {
        sequence->place = SEQUENCE_PLACE_PROMPT;
        sequence_heap_add(&scheduler->prompts, sequence);
        sequence_heap_add(&scheduler->prompts_rest, sequence);
        scheduler->prompt_load.row_count += sequence->token_count;
        scheduler->prompt_load.attended_count += attended_by(sequence->token_count);
        return;
    }
    sequence->place = SEQUENCE_PLACE_DECODE;
    sequence->counted_count = sequence->issued_count + 1;
    TAILQ_INSERT_TAIL(&scheduler->decoding, sequence, link);
    scheduler->decode_load.row_count++;
    scheduler->decode_load.attended_count += sequence->counted_count;
}

static void displace(struct scheduler *scheduler, struct sequence *sequence) {
    CHECK(sequence->place != SEQUENCE_PLACE_NONE);
    if (sequence->place == SEQUENCE_PLACE_PROMPT) {
        sequence_heap_remove(&scheduler->prompts, sequence);
        sequence_heap_remove(&scheduler->prompts_rest, sequence);
        scheduler->prompt_load.row_count -= sequence->token_count;
        scheduler->prompt_load.attended_count -= attended_by(sequence->token_count);
    } else {
        TAILQ_REMOVE(&scheduler->decoding, sequence, link);
        scheduler->decode_load.row_count--;
        scheduler->decode_load.attended_count -= sequence->counted_count;
    }
    sequence->place = SEQUENCE_PLACE_NONE;
}

// -- coming and going -----------------------------------------------------------------------------

static void wait_for_room(struct scheduler *scheduler, struct sequence *sequence) {
    sequence->state = SEQUENCE_WAITING;
    sequence->leader = NULL;
    sequence_heap_add(&scheduler->waiting, sequence);
}

static void wait_for_leader(struct scheduler *scheduler, struct sequence *sequence) {
    sequence->state = SEQUENCE_WAITING;
    sequence->is_parked = true;
    LIST_INSERT_HEAD(&sequence->leader->followers, sequence, follower_link);
    scheduler->parked_count++;
}

static void stop_waiting_for_leader(struct scheduler *scheduler, struct sequence *sequence) {
    LIST_REMOVE(sequence, follower_link);
    sequence->is_parked = false;
    sequence->leader = NULL;
    scheduler->parked_count--;
}

static void release_followers(struct scheduler *scheduler, struct sequence *leader) {
    struct sequence *sequence;
    while ((sequence = LIST_FIRST(&leader->followers)) != NULL) {
        stop_waiting_for_leader(scheduler, sequence);
        wait_for_room(scheduler, sequence);
    }
}

enum status scheduler_add(struct scheduler *scheduler, struct sequence *sequence) {
    CHECK(sequence->state == SEQUENCE_IDLE && LIST_EMPTY(&sequence->followers));
    if (scheduler_waiting_count(scheduler) >= scheduler->config.waiting_count_max)
        return STATUS_EXHAUSTED;
    sequence->arrival = scheduler->arrival_next++;
    sequence->rank =
        (int64_t)sequence->arrival - (int64_t)sequence->priority * SCHEDULER_PRIORITY_LEAD;
    const struct sequence *leader = sequence->leader;
    if (leader != NULL && leader->state != SEQUENCE_IDLE &&
        leader->issued_count < leader->prompt_count)
        wait_for_leader(scheduler, sequence);
    else
        wait_for_room(scheduler, sequence);
    return STATUS_OK;
}

static void stop_running(struct scheduler *scheduler, struct sequence *sequence, bool is_void) {
    displace(scheduler, sequence);
    if (sequence->pick_number == scheduler->pick_number)
        scheduler->picked[sequence->pick_index] = NULL;
    // Whatever it has issued was sent: it has no part in a microbatch that is being made.
    if (!is_void) sequence_publish(sequence, scheduler->blocks);
    sequence_give_blocks(sequence, scheduler->blocks);
}

static void leave(struct scheduler *scheduler, struct sequence *sequence, bool is_void) {
    if (sequence->state == SEQUENCE_RUNNING)
        stop_running(scheduler, sequence, is_void);
    else if (sequence->is_parked)
        stop_waiting_for_leader(scheduler, sequence);
    else if (sequence->state == SEQUENCE_WAITING)
        sequence_heap_remove(&scheduler->waiting, sequence);
    sequence->state = SEQUENCE_IDLE;
    sequence->issued_count = 0;
    sequence->run_id = 0;
    sequence->pick_number = 0;
    scheduler->blocked = NULL;
}

void scheduler_remove(struct scheduler *scheduler, struct sequence *sequence) {
    leave(scheduler, sequence, false);
    release_followers(scheduler, sequence);
}

static void send_back(struct scheduler *scheduler, struct sequence *sequence, bool is_void) {
    leave(scheduler, sequence, is_void);
    wait_for_room(scheduler, sequence);
}

static struct sequence *any_running(struct scheduler *scheduler) {
    struct sequence *sequence = TAILQ_FIRST(&scheduler->decoding);
    return sequence != NULL ? sequence : sequence_heap_first(&scheduler->prompts);
}

uint32_t scheduler_reset(struct scheduler *scheduler) {
    uint32_t count = 0;
    struct sequence *sequence;
    while ((sequence = any_running(scheduler)) != NULL) {
        sequence->replay_count++;
        send_back(scheduler, sequence, true);
        count++;
    }
    kv_blocks_forget(scheduler->blocks);
    cost_age(&scheduler->cost);
    return count;
}

// -- admission ------------------------------------------------------------------------------------

// Takes its blocks: those that are cached, and others for all its known tokens. Some stay free for
// the sequences that run.
static bool take_first_blocks(struct scheduler *scheduler, struct sequence *sequence) {
    uint32_t running_count = scheduler_running_count(scheduler);
    uint32_t spare_count = running_count == 0 ? 0 : 1 + running_count / 8;
    uint32_t longest = sequence->token_count_max > sequence->token_count ? sequence->token_count_max
                                                                         : sequence->token_count;
    if (!sequence_reserve_blocks(sequence, kv_blocks_for(longest))) return false;
    uint32_t cached_count = sequence_take_cached(sequence, scheduler->blocks);
    uint32_t wanted_count = kv_blocks_for(sequence->token_count) - sequence->block_count;
    if (kv_blocks_free_count(scheduler->blocks) < wanted_count + spare_count) {
        sequence_give_blocks(sequence, scheduler->blocks);
        sequence->issued_count = 0;
        return false;
    }
    if (sequence->run_count == 0) sequence->cached_count = cached_count;
    bool is_taken = sequence_take_blocks(sequence, scheduler->blocks, sequence->token_count);
    CHECK(is_taken);
    return true;
}

// Starts waiting sequences, first in rank first, while they fit.
static void admit(struct scheduler *scheduler) {
    struct sequence *sequence;
    while ((sequence = sequence_heap_first(&scheduler->waiting)) != NULL &&
           scheduler_running_count(scheduler) < scheduler->config.running_count_max) {
        uint32_t free_count = kv_blocks_free_count(scheduler->blocks);
        if (sequence == scheduler->blocked && free_count <= scheduler->blocked_free_count) return;
        if (!take_first_blocks(scheduler, sequence)) {
            scheduler->blocked = sequence;
            scheduler->blocked_free_count = free_count;
            return;
        }
        scheduler->blocked = NULL;
        sequence_heap_remove(&scheduler->waiting, sequence);
        sequence->state = SEQUENCE_RUNNING;
        sequence->run_id = ++scheduler->run_id_next;
        sequence->run_count++;
        place(scheduler, sequence);
    }
}

// -- blocks while running -------------------------------------------------------------------------

static struct sequence *last_in_rank(struct scheduler *scheduler) {
    struct sequence *last = any_running(scheduler), *sequence;
    TAILQ_FOREACH(sequence, &scheduler->decoding, link) {
        if (is_before(last, sequence)) last = sequence;
    }
    for (uint32_t i = 0; i < scheduler->prompts.count; i++)
        if (is_before(last, scheduler->prompts.sequences[i]))
            last = scheduler->prompts.sequences[i];
    return last;
}

// Blocks for the first position_count positions of the sequence, preempting the last in rank. False
// when that would take blocks from a sequence that is part of this microbatch, or from this one
// itself, which then waits again.
static bool make_room(struct scheduler *scheduler, struct sequence *sequence,
                      uint32_t position_count) {
    while (!sequence_take_blocks(sequence, scheduler->blocks, position_count)) {
        struct sequence *victim = last_in_rank(scheduler);
        if (victim->pick_number == scheduler->pick_number) return false;
        scheduler->preempted_count++;
        send_back(scheduler, victim, false);
        if (victim == sequence) return false;
    }
    return true;
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
    scheduler->picked[making->pick_count] = sequence;
    sequence->pick_index = making->pick_count;
    sequence->pick_number = scheduler->pick_number;
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
    displace(scheduler, sequence);
    sequence->issued_count = position_end;
    place(scheduler, sequence);
    return true;
}

// What was issued is sent by now: others may share it.
static void publish_picked(struct scheduler *scheduler) {
    for (uint32_t i = 0; i < scheduler->picked_count; i++) {
        struct sequence *sequence = scheduler->picked[i];
        if (sequence == NULL) continue;
        sequence_publish(sequence, scheduler->blocks);
        if (sequence->issued_count >= sequence->prompt_count)
            release_followers(scheduler, sequence);
    }
    scheduler->picked_count = 0;
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
    scheduler->group_count = scheduler_sizes_groups(&scheduler->cost, &scheduler->decode_load,
                                                    stage_count, count_max, scheduler->group_count);
}

// Whether its next row can be issued. A row ahead goes no sooner than a round after the one that
// draws its token: other rows that can be computed come before it.
static bool can_decode(const struct scheduler *scheduler, const struct sequence *sequence) {
    if (sequence->issued_count < sequence->token_count) return true;
    return scheduler->config.runs_ahead && !scheduler->config.is_naive &&
           sequence->issued_count == sequence->token_count &&
           sequence->issued_count + 1 < sequence->token_count_max &&
           scheduler->pick_number - sequence->pick_number >= scheduler->group_count;
}

// How many sequences and rows of a microbatch may be decode rows: some are left to prompts.
static uint32_t decode_limit(const struct scheduler *scheduler) {
    uint32_t sequences = scheduler->config.sequence_count_max;
    uint32_t rows = scheduler->config.row_count_max;
    if (scheduler->prompts.count > 0) {
        sequences -= (sequences + 7) / 8;
        rows -= (rows + 3) / 4;
    }
    return sequences < rows ? sequences : rows;
}

// A group's share of what the rows that decode cost.
struct share {
    double cost;
    double row_cost; // of the average row
    uint32_t row_count;
};

static struct share share_of(const struct scheduler *scheduler) {
    const struct scheduler_decode_load *load = &scheduler->decode_load;
    const struct cost_terms *terms = &scheduler->cost.slowest;
    double cost = terms->row * load->row_count + terms->attended * (double)load->attended_count;
    uint32_t groups = scheduler->group_count;
    return (struct share){
        .cost = cost / groups,
        .row_cost = cost / load->row_count,
        .row_count = (load->row_count + groups - 1) / groups,
    };
}

static bool is_full(const struct share *share, uint32_t row_count, double cost) {
    return cost >= share->cost - 1e-3 * share->row_cost ||
           (row_count >= share->row_count && cost >= 0.75 * share->cost);
}

// Those of which a row goes into this microbatch, least recently picked first.
static uint32_t choose_decode(struct scheduler *scheduler) {
    if (scheduler->decode_load.row_count == 0) return 0;
    choose_group_count(scheduler);
    struct share share = share_of(scheduler);
    const struct cost_terms *terms = &scheduler->cost.slowest;
    uint32_t count = 0, count_max = decode_limit(scheduler);
    bool has_skipped = false;
    double cost = 0;
    struct sequence *sequence;
    TAILQ_FOREACH(sequence, &scheduler->decoding, link) {
        if (count == count_max || is_full(&share, count, cost)) return count;
        if (!can_decode(scheduler, sequence)) continue;
        double row_cost = terms->row + terms->attended * (double)sequence->counted_count;
        // A row that costs much more than others leaves its place to them, and comes first later.
        if (count > 0 && cost + row_cost > share.cost + share.row_cost) {
            has_skipped = true;
            continue;
        }
        cost += row_cost;
        scheduler->candidates[count++] = sequence;
    }
    // The others are in flight. A few rows alone are not worth a microbatch: they join those that
    // come next.
    bool is_few = count < scheduler->decode_load.row_count && cost < share.cost / 2;
    return is_few && !has_skipped && scheduler->prompts.count == 0 ? 0 : count;
}

static void pick_decode(struct scheduler *scheduler, struct making *making) {
    uint32_t count = choose_decode(scheduler);
    for (uint32_t i = 0; i < count; i++) {
        struct sequence *sequence = scheduler->candidates[i];
        if (sequence->state != SEQUENCE_RUNNING) continue; // preempted just now
        uint32_t position_end = sequence->issued_count + 1;
        bool is_ahead = sequence->issued_count == sequence->token_count;
        bool has_room = is_ahead ? sequence_take_blocks(sequence, scheduler->blocks, position_end)
                                 : make_room(scheduler, sequence, position_end);
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
                                         budget, is_first && scheduler->prompts.count == 1);
    }
    return row_count < room ? row_count : room;
}

// Of what the microbatch may cost, the part that decode rows leave; a quarter at least.
static double chunk_budget(const struct scheduler *scheduler, const struct making *making) {
    double whole =
        scheduler_sizes_chunk(&scheduler->cost, &scheduler->prompt_load, stage_count_of(scheduler),
                              scheduler->config.row_count_max);
    double rest = fmax(whole - making->cost, whole / 4);
    if (scheduler->first_chunk_row_count == 0) return rest;
    double first = cost_of_rows(&scheduler->cost.slowest, 0, scheduler->first_chunk_row_count);
    return fmin(rest, first);
}

// More of its prompt may be cached by now than when it started.
static void take_cached(struct scheduler *scheduler, struct sequence *sequence) {
    uint32_t count = sequence_take_cached(sequence, scheduler->blocks);
    if (count == 0) return;
    if (sequence->run_count == 1) sequence->cached_count += count;
    displace(scheduler, sequence);
    place(scheduler, sequence);
}

static void pick_prompts(struct scheduler *scheduler, struct making *making) {
    if (scheduler->prompts.count == 0) return;
    const struct sequence_heap *heap =
        scheduler->pick_number % 2 == 0 ? &scheduler->prompts : &scheduler->prompts_rest;
    double budget_end = making->cost + chunk_budget(scheduler, making);
    while (making->pick_count < scheduler->config.sequence_count_max) {
        struct sequence *sequence = sequence_heap_first(heap);
        if (sequence == NULL || sequence->pick_number == scheduler->pick_number) return;
        take_cached(scheduler, sequence);
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
    scheduler->pick_number++;
    pick_decode(scheduler, &making);
    pick_prompts(scheduler, &making);
    if (making.chunk_row_count > 0 && scheduler->first_chunk_row_count > 0)
        grow_first_chunk(scheduler, &making);
    scheduler->picked_count = making.pick_count;
    if (making.pick_count == 0) scheduler->pick_number--;
    return making.pick_count;
}

uint32_t scheduler_pick(struct scheduler *scheduler, struct scheduler_pick *picks_out) {
    publish_picked(scheduler);
    admit(scheduler);
    for (;;) {
        uint64_t preempted_count = scheduler->preempted_count;
        uint32_t pick_count = pick_once(scheduler, picks_out);
        // A sequence that gave up its own blocks may have made room for another one. Each round
        // takes one out of the running, so this ends.
        if (pick_count > 0 || scheduler->preempted_count == preempted_count) return pick_count;
    }
}

void scheduler_observe(struct scheduler *scheduler, const struct step_cost *cost) {
    cost_observe(&scheduler->cost, cost);
}

void scheduler_observe_hop(struct scheduler *scheduler, uint64_t hop_ns) {
    cost_observe_hop(&scheduler->cost, hop_ns);
}

uint32_t scheduler_running_count(const struct scheduler *scheduler) {
    return scheduler->decode_load.row_count + scheduler->prompts.count;
}

uint32_t scheduler_waiting_count(const struct scheduler *scheduler) {
    return scheduler->waiting.count + scheduler->parked_count;
}

uint64_t scheduler_preempted_count(const struct scheduler *scheduler) {
    return scheduler->preempted_count;
}
