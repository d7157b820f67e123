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

bool sequence_reserve_blocks(struct sequence *sequence, uint32_t block_count) {
    if (block_count <= sequence->block_capacity_count) return true;
    uint32_t *grown = memory_resize(sequence->blocks, block_count, sizeof(*grown));
    if (grown == NULL) return false;
    sequence->blocks = grown;
    sequence->block_capacity_count = block_count;
    return true;
}

bool sequence_take_blocks(struct sequence *sequence, struct kv_blocks *blocks,
                          uint32_t position_count) {
    uint32_t wanted_count = kv_blocks_for(position_count);
    if (wanted_count > sequence->block_capacity_count &&
        !sequence_reserve_blocks(sequence, wanted_count * 2))
        return false;
    while (sequence->block_count < wanted_count) {
        if (kv_blocks_free_count(blocks) == 0) return false;
        sequence->blocks[sequence->block_count++] = kv_blocks_take(blocks);
    }
    return true;
}

void sequence_give_blocks(struct sequence *sequence, struct kv_blocks *blocks) {
    while (sequence->block_count > 0)
        kv_blocks_give(blocks, sequence->blocks[--sequence->block_count]);
    sequence->known_count = 0;
}

// What block `index` of the sequence holds; the blocks before it are known.
static struct kv_block_key key_of(const struct sequence *sequence, uint32_t index) {
    return (struct kv_block_key){
        .parent_id = index == 0 ? KV_BLOCK_NONE : sequence->blocks[index - 1],
        .salt = sequence->cache_salt,
        .tokens = &sequence->tokens[index * KV_BLOCK_POSITION_COUNT],
    };
}

uint32_t sequence_take_cached(struct sequence *sequence, struct kv_blocks *blocks) {
    // The next row begins a block, and the cache knows what comes before it.
    if (sequence->issued_count != sequence->known_count * KV_BLOCK_POSITION_COUNT) return 0;
    uint32_t known_count_max = (sequence->token_count - 1) / KV_BLOCK_POSITION_COUNT;
    if (!sequence_reserve_blocks(sequence, known_count_max)) return 0;
    uint32_t index = sequence->known_count;
    for (; index < known_count_max; index++) {
        struct kv_block_key key = key_of(sequence, index);
        uint32_t block_id = kv_blocks_find(blocks, &key);
        if (block_id == KV_BLOCK_NONE) break;
        if (index < sequence->block_count)
            kv_blocks_give(blocks, sequence->blocks[index]);
        else
            sequence->block_count++;
        sequence->blocks[index] = block_id;
    }
    uint32_t position_count = (index - sequence->known_count) * KV_BLOCK_POSITION_COUNT;
    sequence->known_count = index;
    sequence->issued_count += position_count;
    return position_count;
}

void sequence_publish(struct sequence *sequence, struct kv_blocks *blocks) {
    uint32_t position_count = sequence->issued_count < sequence->token_count
                                  ? sequence->issued_count
                                  : sequence->token_count;
    uint32_t full_count = position_count / KV_BLOCK_POSITION_COUNT;
    while (sequence->known_count < full_count) {
        uint32_t index = sequence->known_count++;
        struct kv_block_key key = key_of(sequence, index);
        sequence->blocks[index] = kv_blocks_publish(blocks, &key, sequence->blocks[index]);
    }
}
