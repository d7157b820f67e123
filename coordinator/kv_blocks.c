#include "coordinator/kv_blocks.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "base/check.h"
#include "base/memory.h"

// The table has at least this many buckets a block, so that chains are short.
enum { BUCKETS_PER_BLOCK = 2 };

struct block {
    uint32_t reference_count;
    bool is_known;        // the fields below say what it holds
    uint32_t parent_id;   // KV_BLOCK_NONE: the root, of salts[id]
    uint32_t child_count; // known blocks that continue this one
    uint32_t bucket;
    uint32_t bucket_next_id;
    TAILQ_ENTRY(block) link; // while cached
};
TAILQ_HEAD(block_list, block);

typedef uint32_t block_tokens[KV_BLOCK_POSITION_COUNT];
typedef char block_salt[REQUEST_CACHE_SALT_BYTES_MAX + 1];

struct kv_blocks {
    uint32_t total_count;
    uint32_t blank_count;
    uint32_t cached_count;
    uint32_t *blank_ids; // a stack: the block used last is taken first, while its memory is warm
    struct block *blocks;
    // The cache; NULL without one. Pages that no known block needed take no memory.
    block_tokens *tokens;     // by block
    block_salt *salts;        // by block, of roots
    uint32_t *buckets;        // the first block of each chain
    uint32_t bucket_mask;     // their number is a power of two
    struct block_list cached; // least recently used first
    uint64_t hash_seed;
};

// -- life -----------------------------------------------------------------------------------------

static bool open_accounting(struct kv_blocks *blocks, uint32_t block_count) {
    blocks->blank_ids = memory_array(block_count, sizeof(*blocks->blank_ids));
    blocks->blocks = memory_array(block_count, sizeof(*blocks->blocks));
    if (blocks->blank_ids == NULL || blocks->blocks == NULL) return false;
    blocks->total_count = blocks->blank_count = block_count;
    for (uint32_t i = 0; i < block_count; i++)
        blocks->blank_ids[i] = block_count - 1 - i;
    TAILQ_INIT(&blocks->cached);
    return true;
}

static bool open_cache(struct kv_blocks *blocks, uint64_t hash_seed) {
    uint32_t bucket_count = 1;
    while (bucket_count < blocks->total_count * (uint64_t)BUCKETS_PER_BLOCK &&
           bucket_count < UINT32_MAX / 2)
        bucket_count *= 2;
    blocks->tokens = memory_array(blocks->total_count, sizeof(*blocks->tokens));
    blocks->salts = memory_array(blocks->total_count, sizeof(*blocks->salts));
    blocks->buckets = memory_array(bucket_count, sizeof(*blocks->buckets));
    if (blocks->tokens == NULL || blocks->salts == NULL || blocks->buckets == NULL) return false;
    blocks->bucket_mask = bucket_count - 1;
    blocks->hash_seed = hash_seed;
    kv_blocks_forget(blocks);
    return true;
}

static enum status open_blocks(uint32_t block_count, const uint64_t *hash_seed,
                               struct kv_blocks **blocks_out) {
    struct kv_blocks *blocks = calloc(1, sizeof(*blocks));
    if (blocks == NULL) return STATUS_NO_MEMORY;
    if (!open_accounting(blocks, block_count) ||
        (hash_seed != NULL && !open_cache(blocks, *hash_seed))) {
        kv_blocks_close(blocks);
        return STATUS_NO_MEMORY;
    }
    *blocks_out = blocks;
    return STATUS_OK;
}

enum status kv_blocks_open(uint32_t block_count, struct kv_blocks **blocks_out) {
    return open_blocks(block_count, NULL, blocks_out);
}

enum status kv_blocks_open_cached(uint32_t block_count, uint64_t hash_seed,
                                  struct kv_blocks **blocks_out) {
    return open_blocks(block_count, &hash_seed, blocks_out);
}

void kv_blocks_close(struct kv_blocks *blocks) {
    if (blocks == NULL) return;
    free(blocks->blank_ids);
    free(blocks->blocks);
    free(blocks->tokens);
    free(blocks->salts);
    free(blocks->buckets);
    free(blocks);
}

uint32_t kv_blocks_total_count(const struct kv_blocks *blocks) {
    return blocks->total_count;
}

uint32_t kv_blocks_free_count(const struct kv_blocks *blocks) {
    return blocks->blank_count + blocks->cached_count;
}

uint32_t kv_blocks_cached_count(const struct kv_blocks *blocks) {
    return blocks->cached_count;
}

uint32_t kv_blocks_reference_count(const struct kv_blocks *blocks, uint32_t block_id) {
    CHECK(block_id < blocks->total_count);
    return blocks->blocks[block_id].reference_count;
}

uint32_t kv_blocks_for(uint32_t position_count) {
    return position_count / KV_BLOCK_POSITION_COUNT +
           (position_count % KV_BLOCK_POSITION_COUNT != 0 ? 1 : 0);
}

// -- what blocks hold -----------------------------------------------------------------------------

static uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
    return hash ^ (hash >> 29);
}

static uint32_t bucket_of(const struct kv_blocks *blocks, const struct kv_block_key *key) {
    uint64_t hash = mix(blocks->hash_seed, key->parent_id);
    if (key->parent_id == KV_BLOCK_NONE)
        for (const char *c = key->salt != NULL ? key->salt : ""; *c != '\0'; c++)
            hash = mix(hash, (unsigned char)*c);
    for (uint32_t i = 0; i < KV_BLOCK_POSITION_COUNT; i++)
        hash = mix(hash, key->tokens[i]);
    return (uint32_t)(mix(hash, blocks->hash_seed) >> 32) & blocks->bucket_mask;
}

static bool holds(const struct kv_blocks *blocks, uint32_t block_id,
                  const struct kv_block_key *key) {
    if (blocks->blocks[block_id].parent_id != key->parent_id) return false;
    if (memcmp(blocks->tokens[block_id], key->tokens, sizeof(block_tokens)) != 0) return false;
    if (key->parent_id != KV_BLOCK_NONE) return true;
    return strcmp(blocks->salts[block_id], key->salt != NULL ? key->salt : "") == 0;
}

static uint32_t look_up(const struct kv_blocks *blocks, uint32_t bucket,
                        const struct kv_block_key *key) {
    uint32_t block_id = blocks->buckets[bucket];
    while (block_id != KV_BLOCK_NONE && !holds(blocks, block_id, key))
        block_id = blocks->blocks[block_id].bucket_next_id;
    return block_id;
}

static void know(struct kv_blocks *blocks, uint32_t block_id, uint32_t bucket,
                 const struct kv_block_key *key) {
    struct block *block = &blocks->blocks[block_id];
    block->is_known = true;
    block->parent_id = key->parent_id;
    block->child_count = 0;
    block->bucket = bucket;
    block->bucket_next_id = blocks->buckets[bucket];
    blocks->buckets[bucket] = block_id;
    memcpy(blocks->tokens[block_id], key->tokens, sizeof(block_tokens));
    if (key->parent_id != KV_BLOCK_NONE) {
        blocks->blocks[key->parent_id].child_count++;
        return;
    }
    const char *salt = key->salt != NULL ? key->salt : "";
    CHECK(strlen(salt) < sizeof(block_salt));
    memcpy(blocks->salts[block_id], salt, strlen(salt) + 1);
}

static void unknow(struct kv_blocks *blocks, uint32_t block_id) {
    struct block *block = &blocks->blocks[block_id];
    CHECK(block->is_known && block->child_count == 0);
    uint32_t *next_id = &blocks->buckets[block->bucket];
    while (*next_id != block_id)
        next_id = &blocks->blocks[*next_id].bucket_next_id;
    *next_id = block->bucket_next_id;
    if (block->parent_id != KV_BLOCK_NONE) blocks->blocks[block->parent_id].child_count--;
    block->is_known = false;
}

void kv_blocks_forget(struct kv_blocks *blocks) {
    CHECK(kv_blocks_free_count(blocks) == blocks->total_count);
    if (blocks->buckets == NULL) return;
    for (uint64_t i = 0; i <= blocks->bucket_mask; i++)
        blocks->buckets[i] = KV_BLOCK_NONE;
    struct block *block;
    while ((block = TAILQ_FIRST(&blocks->cached)) != NULL) {
        TAILQ_REMOVE(&blocks->cached, block, link);
        blocks->blank_ids[blocks->blank_count++] = (uint32_t)(block - blocks->blocks);
    }
    blocks->cached_count = 0;
    for (uint32_t i = 0; i < blocks->total_count; i++)
        blocks->blocks[i].is_known = false;
}

// -- references -----------------------------------------------------------------------------------

static void forget_oldest(struct kv_blocks *blocks) {
    struct block *block = TAILQ_FIRST(&blocks->cached);
    CHECK(block != NULL && block->reference_count == 0);
    TAILQ_REMOVE(&blocks->cached, block, link);
    blocks->cached_count--;
    uint32_t block_id = (uint32_t)(block - blocks->blocks);
    unknow(blocks, block_id);
    blocks->blank_ids[blocks->blank_count++] = block_id;
}

uint32_t kv_blocks_take(struct kv_blocks *blocks) {
    CHECK(kv_blocks_free_count(blocks) > 0);
    if (blocks->blank_count == 0) forget_oldest(blocks);
    uint32_t block_id = blocks->blank_ids[--blocks->blank_count];
    struct block *block = &blocks->blocks[block_id];
    CHECK(block->reference_count == 0 && !block->is_known);
    block->reference_count = 1;
    return block_id;
}

void kv_blocks_give(struct kv_blocks *blocks, uint32_t block_id) {
    CHECK(block_id < blocks->total_count);
    struct block *block = &blocks->blocks[block_id];
    CHECK(block->reference_count > 0);
    if (--block->reference_count > 0) return;
    if (block->is_known) {
        TAILQ_INSERT_TAIL(&blocks->cached, block, link);
        blocks->cached_count++;
    } else {
        blocks->blank_ids[blocks->blank_count++] = block_id;
    }
}

static void refer(struct kv_blocks *blocks, uint32_t block_id) {
    struct block *block = &blocks->blocks[block_id];
    if (block->reference_count++ > 0) return;
    TAILQ_REMOVE(&blocks->cached, block, link);
    blocks->cached_count--;
}

uint32_t kv_blocks_find(struct kv_blocks *blocks, const struct kv_block_key *key) {
    if (blocks->buckets == NULL) return KV_BLOCK_NONE;
    uint32_t block_id = look_up(blocks, bucket_of(blocks, key), key);
    if (block_id != KV_BLOCK_NONE) refer(blocks, block_id);
    return block_id;
}

uint32_t kv_blocks_publish(struct kv_blocks *blocks, const struct kv_block_key *key,
                           uint32_t block_id) {
    if (blocks->buckets == NULL) return block_id;
    CHECK(block_id < blocks->total_count);
    // A block that is written has one owner.
    CHECK(blocks->blocks[block_id].reference_count == 1 && !blocks->blocks[block_id].is_known);
    CHECK(key->parent_id == KV_BLOCK_NONE || blocks->blocks[key->parent_id].is_known);
    uint32_t bucket = bucket_of(blocks, key);
    uint32_t first_id = look_up(blocks, bucket, key);
    if (first_id == KV_BLOCK_NONE) {
        know(blocks, block_id, bucket, key);
        return block_id;
    }
    refer(blocks, first_id);
    kv_blocks_give(blocks, block_id);
    return first_id;
}
