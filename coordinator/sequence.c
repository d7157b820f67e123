#include "coordinator/sequence.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/memory.h"

enum status sequence_init(struct sequence *sequence, const uint32_t *prompt,
                          uint32_t prompt_count) {
    CHECK(prompt_count > 0);
    *sequence = (struct sequence){0};
    uint32_t *tokens = memory_array((size_t)prompt_count + 64, sizeof(*tokens));
    if (tokens == NULL) return STATUS_NO_MEMORY;
    memcpy(tokens, prompt, prompt_count * sizeof(*tokens));
    sequence->tokens = tokens;
    sequence->token_capacity_count = prompt_count + 64;
    sequence->token_count = sequence->prompt_count = prompt_count;
    history_init(&sequence->history);
    return STATUS_OK;
}

void sequence_fini(struct sequence *sequence) {
    CHECK(sequence->block_count == 0);
    CHECK(sequence->in_flight_count == 0);
    free(sequence->tokens);
    free(sequence->blocks);
    free(sequence->biases);
    history_fini(&sequence->history);
}

enum status sequence_begin_history(struct sequence *sequence) {
    const struct frame_sequence *s = &sequence->sampling;
    sequence->has_penalties = s->repetition_penalty != 1.0f || s->presence_penalty != 0.0f ||
                              s->frequency_penalty != 0.0f;
    if (!sequence->has_penalties) return STATUS_OK;
    for (uint32_t i = 0; i < sequence->prompt_count; i++) {
        enum status status = history_add(&sequence->history, sequence->tokens[i], false);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

enum status sequence_append(struct sequence *sequence, uint32_t token_id) {
    if (sequence->token_count == sequence->token_capacity_count) {
        size_t capacity_count = (size_t)sequence->token_capacity_count * 2;
        uint32_t *grown = memory_resize(sequence->tokens, capacity_count, sizeof(*grown));
        if (grown == NULL) return STATUS_NO_MEMORY;
        sequence->tokens = grown;
        sequence->token_capacity_count = (uint32_t)capacity_count;
    }
    if (sequence->has_penalties) {
        enum status status = history_add(&sequence->history, token_id, true);
        if (status != STATUS_OK) return status;
    }
    sequence->tokens[sequence->token_count++] = token_id;
    return STATUS_OK;
}

bool sequence_take_blocks(struct sequence *sequence, struct kv_blocks *blocks,
                          uint32_t position_count) {
    uint32_t wanted_count = kv_blocks_for(position_count);
    if (wanted_count > sequence->block_capacity_count) {
        uint32_t capacity_count = wanted_count * 2;
        uint32_t *grown = memory_resize(sequence->blocks, capacity_count, sizeof(*grown));
        if (grown == NULL) return false;
        sequence->blocks = grown;
        sequence->block_capacity_count = capacity_count;
    }
    while (sequence->block_count < wanted_count) {
        if (kv_blocks_free_count(blocks) == 0) return false;
        sequence->blocks[sequence->block_count++] = kv_blocks_take(blocks);
    }
    return true;
}

void sequence_give_blocks(struct sequence *sequence, struct kv_blocks *blocks) {
    while (sequence->block_count > 0)
        kv_blocks_give(blocks, sequence->blocks[--sequence->block_count]);
}
