// sequence: a growing list of tokens, how far it is computed, its KV blocks, and how its next token
// is drawn. Knows nothing of clients.
#pragma once

#include <stdbool.h>
#include <sys/queue.h>

#include "coordinator/history.h"
#include "coordinator/kv_blocks.h"
#include "proto/frame.h"

enum sequence_state {
    SEQUENCE_IDLE,    // not (or no longer) with the scheduler
    SEQUENCE_WAITING, // for room, or for its leader; owns no blocks
    SEQUENCE_RUNNING, // owns blocks; rows are being computed
};

// Which rows a running sequence has next.
enum sequence_place {
    SEQUENCE_PLACE_NONE,   // does not run
    SEQUENCE_PLACE_PROMPT, // two or more known tokens: a chunk
    SEQUENCE_PLACE_DECODE, // the last known token, or one that is awaited
};

// The heaps that a sequence can be in; one of each kind at once.
enum sequence_heap_kind {
    SEQUENCE_HEAP_RANK, // waiting ones, or prompts: the first in rank
    SEQUENCE_HEAP_REST, // prompts: the fewest rows left
    SEQUENCE_HEAP_KIND_COUNT,
};

struct sequence {
    // -- the owner's, set before scheduler_add
    int32_t priority; // higher ones are started first and preempted last
    void *owner;      // whose it is; only the owner looks at it
    // Started only when the whole prompt of this sequence was issued (or it has ended), so that its
    // blocks are shared. NULL: waits for none.
    struct sequence *leader;
    // The prompt and the most tokens that may be made; no row is issued ahead for a token beyond
    // it. 0: none is issued ahead.
    uint32_t token_count_max;
    // Sequences share cached blocks only when their salts are equal. NULL: the empty salt. Borrowed
    // while the scheduler has the sequence.
    const char *cache_salt;
    struct frame_sequence sampling; // seed and sampling fields; the rest is written per step
    struct frame_bias *biases;      // the sequence owns them
    uint32_t bias_count;
    bool has_penalties;
    struct history history; // of tokens[0..token_count-1], when has_penalties

    uint32_t *tokens; // the prompt, then the output
    uint32_t token_count;
    uint32_t token_capacity_count;
    uint32_t prompt_count;

    // -- this run
    enum sequence_state state;
    // Names this run in frames; a new one each time the sequence starts or is replayed, so that
    // results of an earlier run are told apart.
    uint64_t run_id;
    // Positions sent down the pipeline in this run; at most token_count + 1: the last one may be
    // ahead, for a token that is not known yet.
    uint32_t issued_count;
    uint32_t *blocks; // ids, in position order
    uint32_t block_count;
    uint32_t block_capacity_count;
    uint32_t known_count; // of these blocks, from the first, that the prefix cache knows
    // Where the token of the row ahead comes from: the step that draws it, and which of its samples
    // it is. Written when a row that draws is sent.
    uint64_t sampled_step;
    uint32_t sampled_index;
    uint32_t in_flight_count; // steps in flight that point at this sequence: free it at 0 only

    // -- over all runs
    uint32_t run_count;    // times that it was started
    uint32_t cached_count; // positions of the prompt taken from the prefix cache in the first run
    uint32_t replay_count; // times that a lost pipeline made it start again

    // -- the scheduler's
    uint64_t arrival;       // counts sequences as they are added
    int64_t rank;           // lower ones are started first and preempted last; then by arrival
    uint64_t pick_number;   // the last microbatch that has rows of it in this run; 0: none
    uint32_t pick_index;    // where it is in that one
    uint64_t counted_count; // positions it counts for among those attended to in decode
    enum sequence_place place;
    TAILQ_ENTRY(sequence) link; // of those that decode
    uint32_t heap_index[SEQUENCE_HEAP_KIND_COUNT];
    bool is_parked; // waits for its leader, in that one's list of followers
    LIST_HEAD(, sequence) followers;
    LIST_ENTRY(sequence) follower_link;
};
TAILQ_HEAD(sequence_list, sequence);

// Copies the prompt (at least one token).
MUST_USE enum status sequence_init(struct sequence *sequence, const uint32_t *prompt,
                                   uint32_t prompt_count);
void sequence_fini(struct sequence *sequence); // must own no blocks

// Tells the history of the prompt; call once, when sampling is set. STATUS_NO_MEMORY.
MUST_USE enum status sequence_begin_history(struct sequence *sequence);

// Appends a drawn token: one for each row that draws, in the order in which they were issued.
// STATUS_NO_MEMORY: nothing changed.
MUST_USE enum status sequence_append(struct sequence *sequence, uint32_t token_id);

// Makes room for the ids of so many blocks, so that taking them allocates nothing. False: no
// memory.
MUST_USE bool sequence_reserve_blocks(struct sequence *sequence, uint32_t block_count);
// Takes blocks until positions 0..position_count-1 have theirs. False when none is free; those
// taken so far are kept.
MUST_USE bool sequence_take_blocks(struct sequence *sequence, struct kv_blocks *blocks,
                                   uint32_t position_count);
void sequence_give_blocks(struct sequence *sequence, struct kv_blocks *blocks);

// Continues with cached blocks that hold the tokens after the issued ones, as far as there are any,
// and gives back its own in their place; never with one that holds the last token. They count as
// issued. Returns their positions.
uint32_t sequence_take_cached(struct sequence *sequence, struct kv_blocks *blocks);
// In its first run: so many more positions were cached. Only the prompt's are counted.
static inline void sequence_note_cached(struct sequence *sequence, uint32_t count) {
    uint32_t left_count = sequence->prompt_count - sequence->cached_count;
    sequence->cached_count += count < left_count ? count : left_count;
}
// Tells the prefix cache of full blocks whose tokens are known and whose rows were sent: no frame
// that was not sent yet may write to them. Where another block holds the same, takes that one.
void sequence_publish(struct sequence *sequence, struct kv_blocks *blocks);

// Rows of known tokens not yet sent: 0 while the next token is awaited.
static inline uint32_t sequence_remaining_count(const struct sequence *sequence) {
    if (sequence->issued_count >= sequence->token_count) return 0;
    return sequence->token_count - sequence->issued_count;
}
