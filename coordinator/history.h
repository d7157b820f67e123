// history: the distinct tokens of a sequence with their counts, kept up to date token by token, for
// sequences that ask for penalties.
#pragma once

#include "proto/frame.h"

struct history {
    struct frame_history *entries; // in order of first appearance
    uint32_t entry_count;
    uint32_t entry_capacity_count;
    uint32_t *slots;     // hash table of entry index + 1; 0 is empty
    uint32_t slot_count; // a power of two, at least twice entry_count
};

void history_init(struct history *history);
void history_fini(struct history *history);
// STATUS_NO_MEMORY: nothing changed.
MUST_USE enum status history_add(struct history *history, uint32_t token_id, bool is_output);
