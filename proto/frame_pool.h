// frame_pool: frames of one size, allocated once, lent and given back. One thread.
#pragma once

#include "proto/frame.h"

struct frame_pool;

MUST_USE enum status frame_pool_open(uint32_t frame_count, size_t capacity_bytes,
                                     struct frame_pool **pool_out);
// Frees all frames, also those that are lent: nobody may use them any more. NULL allowed.
void frame_pool_close(struct frame_pool *pool);

// NULL when all are lent.
struct frame *frame_pool_take(struct frame_pool *pool);
void frame_pool_give(struct frame_pool *pool, struct frame *frame);

uint32_t frame_pool_free_count(const struct frame_pool *pool);
uint32_t frame_pool_count(const struct frame_pool *pool);
size_t frame_pool_capacity_bytes(const struct frame_pool *pool);
