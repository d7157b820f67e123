#include "proto/frame_pool.h"

#include <stdlib.h>

#include "base/check.h"
#include "base/memory.h"

struct frame_pool {
    struct frame **frames;      // all
    struct frame **free_frames; // a stack: the frame used last is in the caches
    uint32_t frame_count;
    uint32_t free_count;
    size_t capacity_bytes;
};

enum status frame_pool_open(uint32_t frame_count, size_t capacity_bytes,
                            struct frame_pool **pool_out) {
    struct frame_pool *pool = calloc(1, sizeof(*pool));
    if (pool == NULL) return STATUS_NO_MEMORY;
    pool->capacity_bytes = capacity_bytes;
    pool->frames = memory_array(frame_count, sizeof(*pool->frames));
    pool->free_frames = memory_array(frame_count, sizeof(*pool->free_frames));
    if (pool->frames == NULL || pool->free_frames == NULL) goto close_pool;
    while (pool->frame_count < frame_count) {
        struct frame *frame;
        if (frame_open(capacity_bytes, &frame) != STATUS_OK) goto close_pool;
        frame->owner = pool;
        pool->frames[pool->frame_count++] = frame;
        pool->free_frames[pool->free_count++] = frame;
    }
    *pool_out = pool;
    return STATUS_OK;
close_pool:
    frame_pool_close(pool);
    return STATUS_NO_MEMORY;
}

void frame_pool_close(struct frame_pool *pool) {
    if (pool == NULL) return;
    for (uint32_t i = 0; i < pool->frame_count; i++)
        frame_close(pool->frames[i]);
    free(pool->frames);
    free(pool->free_frames);
    free(pool);
}

struct frame *frame_pool_take(struct frame_pool *pool) {
    return pool->free_count == 0 ? NULL : pool->free_frames[--pool->free_count];
}

void frame_pool_give(struct frame_pool *pool, struct frame *frame) {
    CHECK(frame->owner == pool && pool->free_count < pool->frame_count);
    pool->free_frames[pool->free_count++] = frame;
}

uint32_t frame_pool_free_count(const struct frame_pool *pool) {
    return pool->free_count;
}

uint32_t frame_pool_count(const struct frame_pool *pool) {
    return pool->frame_count;
}

size_t frame_pool_capacity_bytes(const struct frame_pool *pool) {
    return pool->capacity_bytes;
}
