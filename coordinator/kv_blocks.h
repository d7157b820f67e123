// kv_blocks: who refers to which KV block, and what the blocks hold (the prefix cache). One id
// means the same block in every stage's memory. Pure accounting: the memory itself is the stages'.
//
// A block is used (sequences refer to it), cached (none does, but what it holds is known and may be
// used again) or blank. Cached and blank blocks are free: any of them can be taken; blank ones go
// first, then the cached one that was used least recently.
//
// A block is known by the tokens at its positions and by the block before it: the root of the chain
// is a salt. Both are compared exactly; the hash only finds the bucket. Sequences give blocks from
// the last to the first, so that a block always leaves the cache before the one it continues.
//
// A block that is given back may be taken again at once, though frames that write to it are still
// in flight: frames pass every stage in order, so the old writes come first.
#pragma once

#include <stdint.h>

#include "base/limits.h"
#include "base/status.h"

#define KV_BLOCK_NONE UINT32_MAX

struct kv_blocks;

// What a block holds.
struct kv_block_key {
    uint32_t parent_id;     // the block of the positions before, itself known; or KV_BLOCK_NONE
    const char *salt;       // at the root, up to REQUEST_CACHE_SALT_BYTES_MAX; NULL is ""
    const uint32_t *tokens; // KV_BLOCK_POSITION_COUNT of them
};

// Without a cache: nothing is found, nothing is cached.
MUST_USE enum status kv_blocks_open(uint32_t block_count, struct kv_blocks **blocks_out);
// With one. `hash_seed` is secret, so that nobody can make prompts whose hashes collide.
MUST_USE enum status kv_blocks_open_cached(uint32_t block_count, uint64_t hash_seed,
                                           struct kv_blocks **blocks_out);
void kv_blocks_close(struct kv_blocks *blocks); // NULL allowed

uint32_t kv_blocks_total_count(const struct kv_blocks *blocks);
uint32_t kv_blocks_free_count(const struct kv_blocks *blocks);   // cached or blank
uint32_t kv_blocks_cached_count(const struct kv_blocks *blocks); // of the free ones
uint32_t kv_blocks_reference_count(const struct kv_blocks *blocks, uint32_t block_id);

// One block with one reference, to write to. Call only while kv_blocks_free_count() > 0.
uint32_t kv_blocks_take(struct kv_blocks *blocks);
// Drops a reference; CHECKs that there was one.
void kv_blocks_give(struct kv_blocks *blocks, uint32_t block_id);

// The block that holds this, with one more reference; KV_BLOCK_NONE when none is known to. Nobody
// writes to it.
uint32_t kv_blocks_find(struct kv_blocks *blocks, const struct kv_block_key *key);
// Says what the caller's block holds, once the rows that fill it are on their way. Returns the
// block that is known to hold this: block_id, or another that was first, to which the caller's
// reference moves. Nobody writes to it any more.
uint32_t kv_blocks_publish(struct kv_blocks *blocks, const struct kv_block_key *key,
                           uint32_t block_id);
// The stages' memory is void: nothing is known any more. CHECKs that no references are left.
void kv_blocks_forget(struct kv_blocks *blocks);

// Blocks for so many positions.
uint32_t kv_blocks_for(uint32_t position_count);
