// kv_blocks: which KV blocks are free. One id means the same block in every stage's memory. Pure
// accounting: the memory itself is the stages'.
//
// A block that is given back may be taken again at once, though frames that write to it are still
// in flight: frames pass every stage in order, so the old writes come first.
#pragma once

#include <stdint.h>

#include "base/status.h"

struct kv_blocks;

MUST_USE enum status kv_blocks_open(uint32_t block_count, struct kv_blocks **blocks_out);
void kv_blocks_close(struct kv_blocks *blocks); // NULL allowed

uint32_t kv_blocks_total_count(const struct kv_blocks *blocks);
uint32_t kv_blocks_free_count(const struct kv_blocks *blocks);

// One block. Call only while kv_blocks_free_count() > 0.
uint32_t kv_blocks_take(struct kv_blocks *blocks);
// CHECKs that the id was taken: a block never has two owners.
void kv_blocks_give(struct kv_blocks *blocks, uint32_t block_id);

// Blocks for so many positions.
uint32_t kv_blocks_for(uint32_t position_count);
