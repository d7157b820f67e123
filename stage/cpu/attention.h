// attention: what kernels compute of it: the queries of a job against a span of positions.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "stage/backend.h"

enum {
    // Queries (a row's head each) of one sequence and KV head that are computed together, so that a
    // block of keys and values is read once for all of them.
    ATTENTION_QUERY_COUNT = 32,
    // Positions are walked in spans of so many blocks, counted from position 0. A span's partial
    // result is computed on its own and the partials are merged in order, so this is part of the
    // order of summation.
    ATTENTION_SPAN_BLOCK_COUNT = 16,
    ATTENTION_SPAN_POSITION_COUNT = ATTENTION_SPAN_BLOCK_COUNT * KV_BLOCK_POSITION_COUNT,
    // States of queries begin at multiples of so many floats; whole vectors of every variant.
    ATTENTION_STATE_UNIT = 16,
};

// Queries query_first .. query_first + query_count - 1 of a sequence and KV head. Query i is head
// kv_head * group + i % group of the sequence's row i / group, group = heads / KV heads.
struct attention_job {
    const struct attention_shape *shape;
    const struct batch_sequence *sequence;
    const struct kv_layer *kv;
    const float *q;
    float *out;
    uint32_t kv_head;
    uint32_t query_first;
    uint32_t query_count; // at most ATTENTION_QUERY_COUNT
};

// What a job's queries have of one span, or of all spans up to one. For query i, over the positions
// t of the span that it sees:
//   largest[i] = max score[t]     sum[i] = sum of exp(score[t] - largest[i])
//   state[i * attention_stride()] = sum of exp(score[t] - largest[i]) * value[t]
// A variant may keep scores to another base than e.
struct attention_partial {
    float *state; // 64-byte aligned
    float *largest;
    float *sum;
};

// Where a block's cells of one KV head begin, in elements, in both `keys` and `values`. Inside,
// values are (position, head_size) and keys (head_size, position): so the scores of neighbouring
// positions are neighbouring lanes, and a lane beyond the last position cannot touch the others.
static inline size_t kv_block_offset(const struct attention_shape *shape, uint32_t block,
                                     uint32_t kv_head) {
    return ((size_t)block * shape->kv_head_count + kv_head) * KV_BLOCK_POSITION_COUNT *
           shape->head_size;
}

static inline size_t attention_stride(uint32_t head_size) {
    return (head_size + ATTENTION_STATE_UNIT - 1) / ATTENTION_STATE_UNIT * ATTENTION_STATE_UNIT;
}

// Floats of a partial of ATTENTION_QUERY_COUNT queries or fewer.
static inline size_t attention_partial_count(uint32_t head_size, uint32_t query_count) {
    return query_count * attention_stride(head_size) + 2 * ATTENTION_QUERY_COUNT;
}

static inline struct attention_partial attention_partial_at(float *memory, uint32_t head_size,
                                                            uint32_t query_count) {
    float *behind = memory + query_count * attention_stride(head_size);
    return (struct attention_partial){
        .state = memory, .largest = behind, .sum = behind + ATTENTION_QUERY_COUNT};
}

// Heads that share a KV head.
static inline uint32_t attention_group(const struct attention_shape *shape) {
    return shape->head_count / shape->kv_head_count;
}

// Position of the job's query i.
static inline uint32_t attention_position(const struct attention_job *job, uint32_t i) {
    uint32_t row = (job->query_first + i) / attention_group(job->shape);
    return job->sequence->position_first + row;
}

// Offset of the job's query i in q and out.
static inline size_t attention_offset(const struct attention_job *job, uint32_t i) {
    const struct attention_shape *shape = job->shape;
    uint32_t group = attention_group(shape);
    size_t row = job->sequence->row_first + (job->query_first + i) / group;
    size_t head = job->kv_head * group + (job->query_first + i) % group;
    return (row * shape->head_count + head) * shape->head_size;
}

// The first of the job's queries that sees something of the span; query_count if none does.
static inline uint32_t attention_first_query(const struct attention_job *job, uint32_t span) {
    uint32_t i = 0;
    while (i < job->query_count &&
           attention_position(job, i) / ATTENTION_SPAN_POSITION_COUNT < span) {
        i++;
    }
    return i;
}

// Spans that the job's last query sees.
static inline uint32_t attention_span_count(const struct attention_job *job) {
    return attention_position(job, job->query_count - 1) / ATTENTION_SPAN_POSITION_COUNT + 1;
}
