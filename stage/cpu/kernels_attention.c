// kernels_attention: causal attention of one variant.
//
// A block's keys lie (head_size, position): LANES neighbouring positions are the lanes of a vector,
// and a score is a sum over d = 0, 1, .. in its own lane. A lane beyond the query's position holds
// whatever the cell holds, but its score is replaced before anything is summed, and values are read
// only up to the query's position. So cells beyond it have no influence, whatever they hold, and
// neither have the other queries of a tile.
#include <assert.h>
#include <math.h>

#include "base/check.h"
#include "stage/cpu/kernels_vector.h"

enum {
    BLOCK_VECTORS = KV_BLOCK_POSITION_COUNT / LANES,
    // Vectors of a value whose sums are in registers at a time, for each query of a tile.
    VALUE_VECTORS = 4,
};

static_assert(KV_BLOCK_POSITION_COUNT % LANES == 0, "a block is whole vectors");
static_assert(MODEL_HEAD_SIZE_MAX % LANES == 0, "padded head sizes fit");

// Queries that are computed together, in order of position, against one block.
struct query_tile {
    const float *queries[TILE_QUERIES];     // head_size each
    uint32_t position_counts[TILE_QUERIES]; // of the block, seen by the query; at least 1
    float *states[TILE_QUERIES];            // padded head_size each: the weighted sum of values
    float *largest;                         // one a query, as sum and shrink
    float *sum;
    float *shrink;
    float (*scores)[KV_BLOCK_POSITION_COUNT];
};

// A block as f32.
struct f32_block {
    const float *keys;   // (head_size, KV_BLOCK_POSITION_COUNT)
    const float *values; // (position, value_stride)
    size_t value_stride; // whole vectors
    uint32_t head_size;
};

// scores[q][t] = queries[q] . keys[.][t] / sqrt(head_size)
static ALWAYS_INLINE void tile_scores(const struct query_tile *tile, const struct f32_block *block,
                                      int query_count) {
    vf sums[TILE_QUERIES][BLOCK_VECTORS];
    for (int q = 0; q < query_count; q++) {
        for (int v = 0; v < BLOCK_VECTORS; v++) {
            sums[q][v] = vf_zero();
        }
    }
    const float *keys = block->keys;
    for (uint32_t d = 0; d < block->head_size; d++, keys += KV_BLOCK_POSITION_COUNT) {
        for (int q = 0; q < query_count; q++) {
            vf x = vf_set(tile->queries[q][d]);
            for (int v = 0; v < BLOCK_VECTORS; v++) {
                sums[q][v] = vf_fma(x, vf_load(keys + v * LANES), sums[q][v]);
            }
        }
    }
    vf scale = vf_set(1.0f / sqrtf((float)block->head_size));
    for (int q = 0; q < query_count; q++) {
        for (int v = 0; v < BLOCK_VECTORS; v++) {
            vf_store(tile->scores[q] + v * LANES, vf_mul(sums[q][v], scale));
        }
    }
}

// Turns a query's scores into exp(score - largest so far), 0 for positions that it does not see,
// and corrects the sum; shrink is what earlier sums must be multiplied by.
static void query_softmax(const struct query_tile *tile, int q) {
    float *scores = tile->scores[q];
    for (uint32_t t = tile->position_counts[q]; t < KV_BLOCK_POSITION_COUNT; t++) {
        scores[t] = -INFINITY;
    }
    vf best = vf_load(scores);
    for (int v = 1; v < BLOCK_VECTORS; v++) {
        best = vf_max(best, vf_load(scores + v * LANES));
    }
    float before = tile->largest[q];
    float largest = vf_largest(best);
    if (before > largest) largest = before;
    float shrink[LANES];
    vf_store(shrink, vf_exp(vf_set(before - largest)));
    vf sum = vf_zero();
    for (int v = 0; v < BLOCK_VECTORS; v++) {
        vf weight = vf_exp(vf_sub(vf_load(scores + v * LANES), vf_set(largest)));
        vf_store(scores + v * LANES, weight);
        sum = vf_add(sum, weight);
    }
    tile->sum[q] = tile->sum[q] * shrink[0] + vf_sum(sum);
    tile->largest[q] = largest;
    tile->shrink[q] = shrink[0];
}

// states[q] = states[q] * shrink[q] + sum over t of scores[q][t] * values[t], for vector_count
// vectors from element d on. Positions that all queries see are done together, then the rest of
// each query; t rises for all.
static ALWAYS_INLINE void tile_values_part(const struct query_tile *tile,
                                           const struct f32_block *block, size_t d, int query_count,
                                           int vector_count) {
    vf sums[TILE_QUERIES][VALUE_VECTORS];
    for (int q = 0; q < query_count; q++) {
        for (int v = 0; v < vector_count; v++) {
            vf state = vf_load(tile->states[q] + d + v * LANES);
            sums[q][v] = vf_mul(state, vf_set(tile->shrink[q]));
        }
    }
    uint32_t common_count = tile->position_counts[0];
    for (uint32_t t = 0; t < common_count; t++) {
        const float *value = block->values + t * block->value_stride + d;
        for (int q = 0; q < query_count; q++) {
            vf weight = vf_set(tile->scores[q][t]);
            for (int v = 0; v < vector_count; v++) {
                sums[q][v] = vf_fma(weight, vf_load(value + v * LANES), sums[q][v]);
            }
        }
    }
    for (int q = 0; q < query_count; q++) {
        for (uint32_t t = common_count; t < tile->position_counts[q]; t++) {
            const float *value = block->values + t * block->value_stride + d;
            vf weight = vf_set(tile->scores[q][t]);
            for (int v = 0; v < vector_count; v++) {
                sums[q][v] = vf_fma(weight, vf_load(value + v * LANES), sums[q][v]);
            }
        }
        for (int v = 0; v < vector_count; v++) {
            vf_store(tile->states[q] + d + v * LANES, sums[q][v]);
        }
    }
}

static ALWAYS_INLINE void tile_attend(const struct query_tile *tile, const struct f32_block *block,
                                      int query_count) {
    tile_scores(tile, block, query_count);
    for (int q = 0; q < query_count; q++) {
        query_softmax(tile, q);
    }
    size_t d = 0;
    for (; d + VALUE_VECTORS * LANES <= block->value_stride; d += VALUE_VECTORS * LANES) {
        tile_values_part(tile, block, d, query_count, VALUE_VECTORS);
    }
    for (; d < block->value_stride; d += LANES) {
        tile_values_part(tile, block, d, query_count, 1);
    }
}

// A copy for each number of queries, so that the sums are registers.
static __attribute__((noinline)) void
tile_dispatch(const struct query_tile *tile, const struct f32_block *block, uint32_t query_count) {
    if (query_count == 1) {
        tile_attend(tile, block, 1);
        return;
    }
#define TILE_CASE(count)                                                                           \
    if (count <= TILE_QUERIES && query_count == count) tile_attend(tile, block, count)
    TILE_CASE(2);
    TILE_CASE(3);
    TILE_CASE(4);
#undef TILE_CASE
}

static void widen(const void *data, enum dtype dtype, size_t first, size_t count, float *out) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vf_store(out + i, vf_load_as(data, dtype, first + i));
    }
    if (i == count) return;
    vf_store(out + i, vf_load_part_as(data, dtype, first + i, count - i));
}

// The block that holds position `first`, widened into the scratch unless it can be read in place.
// position_count of its positions are seen by some query.
static struct f32_block block_open(const struct attention_job *job, uint32_t first,
                                   uint32_t position_count, struct attention_scratch *scratch) {
    const struct kv_layer *kv = job->kv;
    uint32_t head_size = job->shape->head_size;
    uint32_t id = job->sequence->blocks[first / KV_BLOCK_POSITION_COUNT];
    size_t cell = kv_block_offset(job->shape, id, job->kv_head);
    struct f32_block block = {.head_size = head_size};
    block.value_stride = (head_size + LANES - 1) / LANES * LANES;
    if (kv->dtype == DTYPE_F32) {
        block.keys = (const float *)kv->keys + cell;
    } else {
        size_t count = (size_t)head_size * KV_BLOCK_POSITION_COUNT;
        widen(kv->keys, kv->dtype, cell, count, scratch->keys);
        block.keys = scratch->keys;
    }
    if (kv->dtype == DTYPE_F32 && block.value_stride == head_size) {
        block.values = (const float *)kv->values + cell;
        return block;
    }
    for (uint32_t t = 0; t < position_count; t++) {
        size_t value = cell + (size_t)t * head_size;
        widen(kv->values, kv->dtype, value, head_size, scratch->values + t * block.value_stride);
    }
    block.values = scratch->values;
    return block;
}

// Position of the job's query i.
static uint32_t query_position(const struct attention_job *job, uint32_t i) {
    uint32_t group = job->shape->head_count / job->shape->kv_head_count;
    return job->sequence->position_first + (job->query_first + i) / group;
}

// Offset of the job's query i in q and out.
static size_t query_offset(const struct attention_job *job, uint32_t i) {
    const struct attention_shape *shape = job->shape;
    uint32_t group = shape->head_count / shape->kv_head_count;
    size_t row = job->sequence->row_first + (job->query_first + i) / group;
    size_t head = job->kv_head * group + (job->query_first + i) % group;
    return (row * shape->head_count + head) * shape->head_size;
}

// All queries that see position `first`, against its block.
static void block_attend(const struct attention_job *job, uint32_t first,
                         struct attention_scratch *scratch) {
    uint32_t seen = query_position(job, job->query_count - 1) - first + 1;
    if (seen > KV_BLOCK_POSITION_COUNT) seen = KV_BLOCK_POSITION_COUNT;
    struct f32_block block = block_open(job, first, seen, scratch);
    uint32_t i = 0;
    while (query_position(job, i) < first) {
        i++;
    }
    while (i < job->query_count) {
        uint32_t count = job->query_count - i < TILE_QUERIES ? job->query_count - i : TILE_QUERIES;
        struct query_tile tile = {.largest = scratch->largest + i,
                                  .sum = scratch->sum + i,
                                  .shrink = scratch->shrink + i,
                                  .scores = scratch->scores};
        for (uint32_t q = 0; q < count; q++) {
            uint32_t positions = query_position(job, i + q) - first + 1;
            tile.position_counts[q] =
                positions < KV_BLOCK_POSITION_COUNT ? positions : KV_BLOCK_POSITION_COUNT;
            tile.queries[q] = job->q + query_offset(job, i + q);
            tile.states[q] = scratch->state + (i + q) * block.value_stride;
        }
        tile_dispatch(&tile, &block, count);
        i += count;
    }
}

void VARIANT(attention)(const struct attention_job *job, void *memory) {
    struct attention_scratch *scratch = memory;
    uint32_t head_size = job->shape->head_size;
    size_t stride = (head_size + LANES - 1) / LANES * LANES;
    for (uint32_t i = 0; i < job->query_count; i++) {
        scratch->largest[i] = -INFINITY;
        scratch->sum[i] = 0;
    }
    memset(scratch->state, 0, job->query_count * stride * sizeof(float));
    uint32_t last = query_position(job, job->query_count - 1);
    for (uint32_t first = 0; first <= last; first += KV_BLOCK_POSITION_COUNT) {
        block_attend(job, first, scratch);
    }
    for (uint32_t i = 0; i < job->query_count; i++) {
        const float *state = scratch->state + i * stride;
        float *out = job->out + query_offset(job, i);
        for (uint32_t d = 0; d < head_size; d++) {
            out[d] = state[d] / scratch->sum[i];
        }
    }
}
