#include "coordinator/scheduler_queue.h"

#include <stdlib.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/memory.h"

// -- life -----------------------------------------------------------------------------------------

static bool is_before(const struct sequence *a, const struct sequence *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->arrival < b->arrival;
}

static bool has_less_left(const struct sequence *a, const struct sequence *b) {
    uint32_t left_a = sequence_remaining_count(a), left_b = sequence_remaining_count(b);
    return left_a != left_b ? left_a < left_b : is_before(a, b);
}

static enum status open_parts(struct scheduler_queue *queue) {
    const struct scheduler_queue_config *config = &queue->config;
    // What runs may have to wait again.
    enum status status =
        sequence_heap_init(&queue->waiting, config->waiting_count_max + config->running_count_max,
                           SEQUENCE_HEAP_RANK, is_before);
    if (status == STATUS_OK)
        status = sequence_heap_init(&queue->prompts, config->running_count_max, SEQUENCE_HEAP_RANK,
                                    is_before);
    if (status == STATUS_OK)
        status = sequence_heap_init(&queue->prompts_rest, config->running_count_max,
                                    SEQUENCE_HEAP_REST, has_less_left);
    if (status != STATUS_OK) return status;
    queue->picked = memory_array(config->sequence_count_max, sizeof(struct sequence *));
    return queue->picked == NULL ? STATUS_NO_MEMORY : STATUS_OK;
}

enum status scheduler_queue_init(struct scheduler_queue *queue,
                                 const struct scheduler_queue_config *config,
                                 struct kv_blocks *blocks) {
    *queue = (struct scheduler_queue){.config = *config, .blocks = blocks};
    TAILQ_INIT(&queue->decoding);
    enum status status = open_parts(queue);
    if (status != STATUS_OK) scheduler_queue_fini(queue);
    return status;
}

void scheduler_queue_fini(struct scheduler_queue *queue) {
    sequence_heap_fini(&queue->waiting);
    sequence_heap_fini(&queue->prompts);
    sequence_heap_fini(&queue->prompts_rest);
    free(queue->picked);
    *queue = (struct scheduler_queue){0};
}

// -- places of running sequences ------------------------------------------------------------------

static uint64_t attended_by(uint64_t row_count) {
    return row_count * (row_count + 1) / 2;
}

// By the rows it has next.
static void place(struct scheduler_queue *queue, struct sequence *sequence) {
    CHECK(sequence->place == SEQUENCE_PLACE_NONE);
    if (sequence_remaining_count(sequence) >= 2) {
        sequence->place = SEQUENCE_PLACE_PROMPT;
        sequence_heap_add(&queue->prompts, sequence);
        sequence_heap_add(&queue->prompts_rest, sequence);
        queue->prompt_load.row_count += sequence->token_count;
        queue->prompt_load.attended_count += attended_by(sequence->token_count);
        return;
    }
    sequence->place = SEQUENCE_PLACE_DECODE;
    sequence->counted_count = sequence->issued_count + 1;
    TAILQ_INSERT_TAIL(&queue->decoding, sequence, link);
    queue->decode_load.row_count++;
    queue->decode_load.attended_count += sequence->counted_count;
}

static void displace(struct scheduler_queue *queue, struct sequence *sequence) {
    CHECK(sequence->place != SEQUENCE_PLACE_NONE);
    if (sequence->place == SEQUENCE_PLACE_PROMPT) {
        sequence_heap_remove(&queue->prompts, sequence);
        sequence_heap_remove(&queue->prompts_rest, sequence);
        queue->prompt_load.row_count -= sequence->token_count;
        queue->prompt_load.attended_count -= attended_by(sequence->token_count);
    } else {
        TAILQ_REMOVE(&queue->decoding, sequence, link);
        queue->decode_load.row_count--;
        queue->decode_load.attended_count -= sequence->counted_count;
    }
    sequence->place = SEQUENCE_PLACE_NONE;
}

// -- coming and going -----------------------------------------------------------------------------

static void wait_for_room(struct scheduler_queue *queue, struct sequence *sequence) {
    sequence->state = SEQUENCE_WAITING;
    sequence->leader = NULL;
    sequence_heap_add(&queue->waiting, sequence);
}

static void wait_for_leader(struct scheduler_queue *queue, struct sequence *sequence) {
    sequence->state = SEQUENCE_WAITING;
    sequence->is_parked = true;
    LIST_INSERT_HEAD(&sequence->leader->followers, sequence, follower_link);
    queue->parked_count++;
}

static void stop_waiting_for_leader(struct scheduler_queue *queue, struct sequence *sequence) {
    LIST_REMOVE(sequence, follower_link);
    sequence->is_parked = false;
    sequence->leader = NULL;
    queue->parked_count--;
}

static void release_followers(struct scheduler_queue *queue, struct sequence *leader) {
    struct sequence *sequence;
    while ((sequence = LIST_FIRST(&leader->followers)) != NULL) {
        stop_waiting_for_leader(queue, sequence);
        wait_for_room(queue, sequence);
    }
}

enum status scheduler_queue_add(struct scheduler_queue *queue, struct sequence *sequence) {
    CHECK(sequence->state == SEQUENCE_IDLE && LIST_EMPTY(&sequence->followers));
    if (scheduler_queue_waiting_count(queue) >= queue->config.waiting_count_max)
        return STATUS_EXHAUSTED;
    sequence->arrival = queue->arrival_next++;
    sequence->rank =
        (int64_t)sequence->arrival - (int64_t)sequence->priority * SCHEDULER_PRIORITY_LEAD;
    const struct sequence *leader = sequence->leader;
    if (leader != NULL && leader->state != SEQUENCE_IDLE &&
        leader->issued_count < leader->prompt_count)
        wait_for_leader(queue, sequence);
    else
        wait_for_room(queue, sequence);
    return STATUS_OK;
}

static void stop_running(struct scheduler_queue *queue, struct sequence *sequence, bool is_void) {
    displace(queue, sequence);
    if (sequence->pick_number == queue->pick_number) queue->picked[sequence->pick_index] = NULL;
    // Whatever it has issued was sent: it has no part in a microbatch that is being made.
    if (!is_void) sequence_publish(sequence, queue->blocks);
    sequence_give_blocks(sequence, queue->blocks);
}

static void leave(struct scheduler_queue *queue, struct sequence *sequence, bool is_void) {
    if (sequence->state == SEQUENCE_RUNNING)
        stop_running(queue, sequence, is_void);
    else if (sequence->is_parked)
        stop_waiting_for_leader(queue, sequence);
    else if (sequence->state == SEQUENCE_WAITING)
        sequence_heap_remove(&queue->waiting, sequence);
    sequence->state = SEQUENCE_IDLE;
    sequence->issued_count = 0;
    sequence->run_id = 0;
    sequence->pick_number = 0;
    queue->blocked = NULL;
}

void scheduler_queue_remove(struct scheduler_queue *queue, struct sequence *sequence) {
    leave(queue, sequence, false);
    release_followers(queue, sequence);
}

static void send_back(struct scheduler_queue *queue, struct sequence *sequence, bool is_void) {
    leave(queue, sequence, is_void);
    wait_for_room(queue, sequence);
}

static struct sequence *any_running(struct scheduler_queue *queue) {
    struct sequence *sequence = TAILQ_FIRST(&queue->decoding);
    return sequence != NULL ? sequence : sequence_heap_first(&queue->prompts);
}

uint32_t scheduler_queue_reset(struct scheduler_queue *queue) {
    uint32_t count = 0;
    struct sequence *sequence;
    while ((sequence = any_running(queue)) != NULL) {
        sequence->replay_count++;
        send_back(queue, sequence, true);
        count++;
    }
    kv_blocks_forget(queue->blocks);
    return count;
}

// -- admission ------------------------------------------------------------------------------------

// Takes its blocks: those that are cached, and others for all its known tokens. Some stay free for
// the sequences that run.
static bool take_first_blocks(struct scheduler_queue *queue, struct sequence *sequence) {
    uint32_t running_count = scheduler_queue_running_count(queue);
    uint32_t spare_count = running_count == 0 ? 0 : 1 + running_count / 8;
    uint32_t longest = sequence->token_count_max > sequence->token_count ? sequence->token_count_max
                                                                         : sequence->token_count;
    if (!sequence_reserve_blocks(sequence, kv_blocks_for(longest))) return false;
    uint32_t cached_count = sequence_take_cached(sequence, queue->blocks);
    uint32_t wanted_count = kv_blocks_for(sequence->token_count) - sequence->block_count;
    if (kv_blocks_free_count(queue->blocks) < wanted_count + spare_count) {
        sequence_give_blocks(sequence, queue->blocks);
        sequence->issued_count = 0;
        return false;
    }
    if (sequence->run_count == 0) sequence_note_cached(sequence, cached_count);
    bool is_taken = sequence_take_blocks(sequence, queue->blocks, sequence->token_count);
    CHECK(is_taken);
    return true;
}

// Starts waiting sequences, first in rank first, while they fit.
void scheduler_queue_admit(struct scheduler_queue *queue) {
    struct sequence *sequence;
    while ((sequence = sequence_heap_first(&queue->waiting)) != NULL &&
           scheduler_queue_running_count(queue) < queue->config.running_count_max) {
        uint32_t free_count = kv_blocks_free_count(queue->blocks);
        if (sequence == queue->blocked && free_count <= queue->blocked_free_count) return;
        if (!take_first_blocks(queue, sequence)) {
            queue->blocked = sequence;
            queue->blocked_free_count = free_count;
            return;
        }
        queue->blocked = NULL;
        sequence_heap_remove(&queue->waiting, sequence);
        sequence->state = SEQUENCE_RUNNING;
        sequence->run_id = ++queue->run_id_next;
        sequence->run_count++;
        place(queue, sequence);
    }
}

// -- blocks while running -------------------------------------------------------------------------

static struct sequence *last_in_rank(struct scheduler_queue *queue) {
    struct sequence *last = any_running(queue), *sequence;
    TAILQ_FOREACH(sequence, &queue->decoding, link) {
        if (is_before(last, sequence)) last = sequence;
    }
    for (uint32_t i = 0; i < queue->prompts.count; i++)
        if (is_before(last, queue->prompts.sequences[i])) last = queue->prompts.sequences[i];
    return last;
}

// Blocks for the first position_count positions of the sequence, preempting the last in rank. False
// when that would take blocks from a sequence that is part of this microbatch, or from this one
// itself, which then waits again.
bool scheduler_queue_make_room(struct scheduler_queue *queue, struct sequence *sequence,
                               uint32_t position_count) {
    while (!sequence_take_blocks(sequence, queue->blocks, position_count)) {
        struct sequence *victim = last_in_rank(queue);
        if (victim->pick_number == queue->pick_number) return false;
        queue->preempted_count++;
        send_back(queue, victim, false);
        if (victim == sequence) return false;
    }
    return true;
}

// -- rows -----------------------------------------------------------------------------------------

void scheduler_queue_issued(struct scheduler_queue *queue, struct sequence *sequence,
                            uint32_t row_count) {
    CHECK(sequence->pick_number != queue->pick_number);
    displace(queue, sequence);
    sequence->issued_count += row_count;
    sequence->pick_number = queue->pick_number;
    sequence->pick_index = queue->picked_count;
    queue->picked[queue->picked_count++] = sequence;
    place(queue, sequence);
}

// What was issued is sent by now: others may share it.
void scheduler_queue_publish(struct scheduler_queue *queue) {
    for (uint32_t i = 0; i < queue->picked_count; i++) {
        struct sequence *sequence = queue->picked[i];
        if (sequence == NULL) continue;
        sequence_publish(sequence, queue->blocks);
        if (sequence->issued_count >= sequence->prompt_count) release_followers(queue, sequence);
    }
    queue->picked_count = 0;
}

// More of its prompt may be cached by now than when it started.
void scheduler_queue_take_cached(struct scheduler_queue *queue, struct sequence *sequence) {
    uint32_t count = sequence_take_cached(sequence, queue->blocks);
    if (count == 0) return;
    if (sequence->run_count == 1) sequence_note_cached(sequence, count);
    displace(queue, sequence);
    place(queue, sequence);
}
