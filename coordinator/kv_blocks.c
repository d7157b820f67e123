#include "coordinator/kv_blocks.h"

#include <stdbool.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/memory.h"

struct kv_blocks {
    uint32_t total_count;
    uint32_t free_count;
    uint32_t *free_ids; // a stack: the block used last is taken first, while its memory is warm
    bool *taken;
};

enum status kv_blocks_open(uint32_t block_count, struct kv_blocks **blocks_out) {
    struct kv_blocks *blocks = calloc(1, sizeof(*blocks));
    if (blocks == NULL) return STATUS_NO_MEMORY;
    blocks->free_ids = memory_array(block_count, sizeof(*blocks->free_ids));
    blocks->taken = memory_array(block_count, sizeof(*blocks->taken));
    if (blocks->free_ids == NULL || blocks->taken == NULL) {
        kv_blocks_close(blocks);
        return STATUS_NO_MEMORY;
    }
    blocks->total_count = blocks->free_count = block_count;
    for (uint32_t i = 0; i < block_count; i++)
        blocks->free_ids[i] = block_count - 1 - i;
    *blocks_out = blocks;
    return STATUS_OK;
}

void kv_blocks_close(struct kv_blocks *blocks) {
    if (blocks == NULL) return;
    free(blocks->free_ids);
    free(blocks->taken);
    free(blocks);
}

uint32_t kv_blocks_total_count(const struct kv_blocks *blocks) {
    return blocks->total_count;
}

uint32_t kv_blocks_free_count(const struct kv_blocks *blocks) {
    return blocks->free_count;
}

uint32_t kv_blocks_take(struct kv_blocks *blocks) {
    CHECK(blocks->free_count > 0);
    uint32_t block_id = blocks->free_ids[--blocks->free_count];
    CHECK(!blocks->taken[block_id]);
    blocks->taken[block_id] = true;
    return block_id;
}

void kv_blocks_give(struct kv_blocks *blocks, uint32_t block_id) {
    CHECK(block_id < blocks->total_count && blocks->taken[block_id]);
    blocks->taken[block_id] = false;
    blocks->free_ids[blocks->free_count++] = block_id;
}

uint32_t kv_blocks_for(uint32_t position_count) {
    return position_count / KV_BLOCK_POSITION_COUNT +
           (position_count % KV_BLOCK_POSITION_COUNT != 0 ? 1 : 0);
}
