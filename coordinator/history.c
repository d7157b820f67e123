#include "coordinator/history.h"

#include <stdlib.h>

#include "base/memory.h"

void history_init(struct history *history) {
    *history = (struct history){0};
}

void history_fini(struct history *history) {
    free(history->entries);
    free(history->slots);
    *history = (struct history){0};
}

// The slot of the token, or the empty one where it belongs.
static uint32_t *slot_of(const struct history *history, uint32_t token_id) {
    uint32_t mask = history->slot_count - 1;
    uint32_t at = (token_id * 2654435769u) & mask;
    while (history->slots[at] != 0 && history->entries[history->slots[at] - 1].token_id != token_id)
        at = (at + 1) & mask;
    return &history->slots[at];
}

static enum status grow(struct history *history) {
    uint32_t capacity_count =
        history->entry_capacity_count == 0 ? 64 : history->entry_capacity_count * 2;
    uint32_t *slots = memory_array((size_t)capacity_count * 2, sizeof(*slots));
    if (slots == NULL) return STATUS_NO_MEMORY;
    struct frame_history *entries =
        memory_resize(history->entries, capacity_count, sizeof(*entries));
    if (entries == NULL) {
        free(slots);
        return STATUS_NO_MEMORY;
    }
    free(history->slots);
    history->entries = entries;
    history->entry_capacity_count = capacity_count;
    history->slots = slots;
    history->slot_count = capacity_count * 2;
    for (uint32_t i = 0; i < history->entry_count; i++)
        *slot_of(history, entries[i].token_id) = i + 1;
    return STATUS_OK;
}

enum status history_add(struct history *history, uint32_t token_id, bool is_output) {
    if (history->entry_count == history->entry_capacity_count) {
        enum status status = grow(history);
        if (status != STATUS_OK) return status;
    }
    uint32_t *slot = slot_of(history, token_id);
    if (*slot == 0) {
        history->entries[history->entry_count] = (struct frame_history){.token_id = token_id};
        *slot = ++history->entry_count;
    }
    history->entries[*slot - 1].output_count += is_output ? 1 : 0;
    return STATUS_OK;
}
