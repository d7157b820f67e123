// kernels_attention: causal attention of one variant.
//
// A block's keys lie (head_size, position): LANES neighbouring positions are the lanes of a vector,
// and a score is a sum over d = 0, 1, .. in its own lane. A lane beyond the query's position holds
// whatever the cell holds, but its score is replaced before anything is summed, and values are read
// only up to the query's position. So cells beyond it have no influence, whatever they hold, and
// neither have the other queries of a tile.
//
// Keys and values are widened in registers, once for the queries of a tile. In prefill the tiles of
// a job find a span's cells in the second-level cache; in decode there is one tile, and the blocks
// behind the one in use are fetched meanwhile: they are anywhere, no processor could guess where.
#include <assert.h>
#include <math.h>

#include "base/check.h"
#include "stage/cpu/kernels_vector.h"

enum {
    BLOCK_VECTORS = KV_BLOCK_POSITION_COUNT / LANES,
    // Vectors of scores, and of a value, whose sums are in registers at a time for each query; for
    // half of TILE_QUERIES twice as many of a value.
    SCORE_VECTORS = 2, // a pair
    VALUE_VECTORS = 2,
    // Positions whose values are summed before the sums go back to memory.
    VALUE_POSITION_COUNT = 2 * KV_BLOCK_POSITION_COUNT,
    CACHE_LINE_BYTES = 64,
    // Blocks ahead that are fetched: early, and twice, because a processor drops such wishes when
    // its queues are full.
    AHEAD_COUNT = 2,
};

static_assert(BLOCK_VECTORS % SCORE_VECTORS == 0, "a block is whole parts");
static_assert(ATTENTION_STATE_UNIT % LANES == 0, "a state is whole vectors");

// The cells of a span in the order of their use: its blocks' keys, their values, and some that are
// used after them.
struct span {
    const char *cells[2 * ATTENTION_SPAN_BLOCK_COUNT + AHEAD_COUNT];
    uint32_t block_count;
    uint32_t head_size;
    enum dtype dtype;
};

// Queries that are computed together, in order of position.
struct query_tile {
    struct attention_scratch *scratch;
    uint32_t query_count;
    uint32_t position_counts[TILE_QUERIES]; // of the span, seen by the query; at least 1
    float *states;                          // of the first query; others follow at state_stride
    size_t state_stride;
};

// As dtype_size_bytes(), but a constant where the dtype is one.
static ALWAYS_INLINE size_t element_bytes(enum dtype dtype) {
    return dtype == DTYPE_F32 ? sizeof(float) : sizeof(uint16_t);
}

// 2 * LANES elements as two vectors, in the order that is cheapest: element i of them is in lane
// pair_place(i) of both. So are the scores of a block and the elements of a state.
static ALWAYS_INLINE void pair_load(const char *data, enum dtype dtype, vf *out) {
    if (dtype == DTYPE_BF16) {
        vf_load_bf16_pairs((const uint16_t *)data, out, out + 1);
        return;
    }
    out[0] = vf_load_as(data, dtype, 0);
    out[1] = vf_load_as(data, dtype, LANES);
}

static ALWAYS_INLINE uint32_t pair_place(uint32_t i, enum dtype dtype) {
    if (dtype != DTYPE_BF16) return i;
    uint32_t first = i / (2 * LANES) * (2 * LANES);
    return first + i % 2 * LANES + i % (2 * LANES) / 2;
}

static ALWAYS_INLINE void prefetch_ahead(const char *const *cells, size_t offset,
                                         size_t size_bytes) {
    for (int i = 1; i <= AHEAD_COUNT; i++) {
        for (size_t byte = 0; byte < size_bytes; byte += CACHE_LINE_BYTES) {
            prefetch((uintptr_t)(cells[i] + offset + byte));
        }
    }
}

// scores[q][t] = queries[q] . keys[.][t] for SCORE_VECTORS vectors of a block, first_byte bytes
// into each of its rows. The same places of the blocks ahead are fetched.
static ALWAYS_INLINE void part_scores(const struct attention_scratch *scratch,
                                      const char *const *cells, size_t first_byte,
                                      uint32_t head_size, enum dtype dtype, int query_count,
                                      float *scores) {
    const char *keys = cells[0];
    size_t row_bytes = KV_BLOCK_POSITION_COUNT * element_bytes(dtype);
    vf sums[TILE_QUERIES][SCORE_VECTORS];
    UNROLL for (int q = 0; q < query_count; q++) {
        UNROLL for (int v = 0; v < SCORE_VECTORS; v++) {
            sums[q][v] = vf_zero();
        }
    }
    size_t offset = first_byte;
    for (uint32_t d = 0; d < head_size; d++, offset += row_bytes) {
        vf key[SCORE_VECTORS];
        pair_load(keys + offset, dtype, key);
        prefetch_ahead(cells, offset, SCORE_VECTORS * LANES * element_bytes(dtype));
        UNROLL for (int q = 0; q < query_count; q++) {
            vf x = vf_set(scratch->queries[q][d]);
            UNROLL for (int v = 0; v < SCORE_VECTORS; v++) {
                sums[q][v] = vf_fma(x, key[v], sums[q][v]);
            }
        }
    }
    UNROLL for (int q = 0; q < query_count; q++) {
        UNROLL for (int v = 0; v < SCORE_VECTORS; v++) {
            vf_store(scores + q * ATTENTION_SCORE_STRIDE + v * LANES, sums[q][v]);
        }
    }
}

static ALWAYS_INLINE void tile_scores(const struct query_tile *tile, const struct span *span,
                                      int query_count, enum dtype dtype) {
    uint32_t position_count = tile->position_counts[query_count - 1];
    size_t part_bytes = SCORE_VECTORS * LANES * element_bytes(dtype);
    for (uint32_t b = 0; b * KV_BLOCK_POSITION_COUNT < position_count; b++) {
        float *scores = tile->scratch->scores[0] + b * KV_BLOCK_POSITION_COUNT;
        for (int part = 0; part < BLOCK_VECTORS / SCORE_VECTORS; part++) {
            part_scores(tile->scratch, span->cells + b, part * part_bytes, span->head_size, dtype,
                        query_count, scores + part * SCORE_VECTORS * LANES);
        }
    }
}

// Turns a query's scores into 2^(score - largest), 0 for positions of its last pair of vectors that
// it does not see.
static void query_softmax(float *scores, uint32_t position_count, enum dtype dtype,
                          float *largest_out, float *sum_out) {
    uint32_t padded_count = (position_count + 2 * LANES - 1) / (2 * LANES) * (2 * LANES);
    for (uint32_t t = position_count; t < padded_count; t++) {
        scores[pair_place(t, dtype)] = -INFINITY;
    }
    vf best = vf_load(scores);
    for (uint32_t t = LANES; t < padded_count; t += LANES) {
        best = vf_max(best, vf_load(scores + t));
    }
    float largest = vf_largest(best);
    vf offset = vf_set(largest);
    vf sum = vf_zero();
    for (uint32_t t = 0; t < padded_count; t += LANES) {
        vf weight = vf_exp2(vf_sub(vf_load(scores + t), offset));
        vf_store(scores + t, weight);
        sum = vf_add(sum, weight);
    }
    *largest_out = largest;
    *sum_out = vf_sum(sum);
}

// Positions first .. end - 1 of the span for query_count queries from query `query` on:
//   state[q] += sum over t of scores[q][t] * values[t], t rising
// for vector_count vectors from element d on, or a `part` of one. The same places of the blocks
// ahead are fetched.
static ALWAYS_INLINE void part_values(const struct query_tile *tile, const struct span *span,
                                      int query, uint32_t first, uint32_t end, size_t d,
                                      size_t part, enum dtype dtype, int query_count,
                                      int vector_count) {
    size_t row_bytes = span->head_size * element_bytes(dtype);
    vf sums[TILE_QUERIES][2 * VALUE_VECTORS];
    float *states = tile->states + query * tile->state_stride + d;
    UNROLL for (int q = 0; q < query_count; q++) {
        UNROLL for (int v = 0; v < vector_count; v++) {
            sums[q][v] = vf_load(states + q * tile->state_stride + v * LANES);
        }
    }
    const float *scores = tile->scratch->scores[query];
    while (first < end) {
        uint32_t block_end = (first / KV_BLOCK_POSITION_COUNT + 1) * KV_BLOCK_POSITION_COUNT;
        if (block_end > end) block_end = end;
        const char *const *cells =
            span->cells + span->block_count + first / KV_BLOCK_POSITION_COUNT;
        const char *values = cells[0];
        size_t offset = first % KV_BLOCK_POSITION_COUNT * row_bytes + d * element_bytes(dtype);
        for (; first < block_end; first++, offset += row_bytes) {
            uint32_t place = pair_place(first, dtype);
            vf value[2 * VALUE_VECTORS];
            if (part != 0) {
                value[0] = vf_load_part_as(values + offset, dtype, 0, part);
            } else if (vector_count == 1) {
                value[0] = vf_load_as(values + offset, dtype, 0);
            }
            UNROLL for (int v = 0; v + 1 < vector_count; v += 2) {
                pair_load(values + offset + v * LANES * element_bytes(dtype), dtype, value + v);
            }
            prefetch_ahead(cells, offset, vector_count * LANES * element_bytes(dtype));
            UNROLL for (int q = 0; q < query_count; q++) {
                vf weight = vf_set(scores[q * ATTENTION_SCORE_STRIDE + place]);
                UNROLL for (int v = 0; v < vector_count; v++) {
                    sums[q][v] = vf_fma(weight, value[v], sums[q][v]);
                }
            }
        }
    }
    UNROLL for (int q = 0; q < query_count; q++) {
        UNROLL for (int v = 0; v < vector_count; v++) {
            vf_store(states + q * tile->state_stride + v * LANES, sums[q][v]);
        }
    }
}

static ALWAYS_INLINE void range_values(const struct query_tile *tile, const struct span *span,
                                       int query, uint32_t first, uint32_t end, enum dtype dtype,
                                       int query_count) {
    size_t size = span->head_size;
    size_t d = 0;
    if (2 * query_count <= TILE_QUERIES) {
        for (; d + 2 * VALUE_VECTORS * LANES <= size; d += 2 * VALUE_VECTORS * LANES) {
            part_values(tile, span, query, first, end, d, 0, dtype, query_count, 2 * VALUE_VECTORS);
        }
    }
    for (; d + VALUE_VECTORS * LANES <= size; d += VALUE_VECTORS * LANES) {
        part_values(tile, span, query, first, end, d, 0, dtype, query_count, VALUE_VECTORS);
    }
    for (; d + LANES <= size; d += LANES) {
        part_values(tile, span, query, first, end, d, 0, dtype, query_count, 1);
    }
    if (d == size) return;
    part_values(tile, span, query, first, end, d, size - d, dtype, query_count, 1);
}

static __attribute__((noinline)) void query_values(const struct query_tile *tile,
                                                   const struct span *span, int query,
                                                   uint32_t first, enum dtype dtype) {
    range_values(tile, span, query, first, tile->position_counts[query], dtype, 1);
}

// Positions that all queries see are done together, then the rest of each query.
static ALWAYS_INLINE void tile_values(const struct query_tile *tile, const struct span *span,
                                      int query_count, enum dtype dtype) {
    uint32_t common = tile->position_counts[0];
    for (uint32_t first = 0; first < common; first += VALUE_POSITION_COUNT) {
        uint32_t end = first + VALUE_POSITION_COUNT;
        if (end > common) end = common;
        range_values(tile, span, 0, first, end, dtype, query_count);
    }
    for (int q = 1; q < query_count; q++) {
        if (tile->position_counts[q] > common) query_values(tile, span, q, common, dtype);
    }
}

// A copy for each number of queries, so that the sums are registers, and each dtype.
#define TILE_CASE(work, count, dtype)                                                              \
    if (count <= TILE_QUERIES && tile->query_count == count) work(tile, span, count, dtype)
#define TILE_FUNCTION(work, name, dtype)                                                           \
    static __attribute__((noinline)) void work##_##name(const struct query_tile *tile,             \
                                                        const struct span *span) {                 \
        TILE_CASE(work, 1, dtype);                                                                 \
        TILE_CASE(work, 2, dtype);                                                                 \
        TILE_CASE(work, 3, dtype);                                                                 \
        TILE_CASE(work, 4, dtype);                                                                 \
        TILE_CASE(work, 5, dtype);                                                                 \
        TILE_CASE(work, 6, dtype);                                                                 \
        TILE_CASE(work, 7, dtype);                                                                 \
        TILE_CASE(work, 8, dtype);                                                                 \
    }
TILE_FUNCTION(tile_scores, f32, DTYPE_F32)
TILE_FUNCTION(tile_scores, bf16, DTYPE_BF16)
TILE_FUNCTION(tile_scores, f16, DTYPE_F16)
TILE_FUNCTION(tile_values, f32, DTYPE_F32)
TILE_FUNCTION(tile_values, bf16, DTYPE_BF16)
TILE_FUNCTION(tile_values, f16, DTYPE_F16)
static_assert(TILE_QUERIES <= 8, "every count has its copy");

static void tile_attend(const struct query_tile *tile, const struct span *span, float *largest_out,
                        float *sum_out) {
    if (span->dtype == DTYPE_BF16) {
        tile_scores_bf16(tile, span);
    } else if (span->dtype == DTYPE_F16) {
        tile_scores_f16(tile, span);
    } else {
        tile_scores_f32(tile, span);
    }
    for (uint32_t q = 0; q < tile->query_count; q++) {
        query_softmax(tile->scratch->scores[q], tile->position_counts[q], span->dtype,
                      largest_out + q, sum_out + q);
    }
    if (span->dtype == DTYPE_BF16) {
        tile_values_bf16(tile, span);
    } else if (span->dtype == DTYPE_F16) {
        tile_values_f16(tile, span);
    } else {
        tile_values_f32(tile, span);
    }
}

static const char *block_cells(const struct attention_job *job, const void *memory,
                               uint32_t block_index) {
    uint32_t block = job->sequence->blocks[block_index];
    size_t offset = kv_block_offset(job->shape, block, job->kv_head);
    return (const char *)memory + offset * element_bytes(job->kv->dtype);
}

static struct span span_open(const struct attention_job *job, uint32_t index) {
    const struct kv_layer *kv = job->kv;
    struct span span = {.head_size = job->shape->head_size, .dtype = kv->dtype};
    uint32_t last = attention_position(job, job->query_count - 1) / KV_BLOCK_POSITION_COUNT;
    uint32_t first = index * ATTENTION_SPAN_BLOCK_COUNT;
    uint32_t count = last - first + 1;
    if (count > ATTENTION_SPAN_BLOCK_COUNT) count = ATTENTION_SPAN_BLOCK_COUNT;
    for (uint32_t b = 0; b < count; b++) {
        span.cells[b] = block_cells(job, kv->keys, first + b);
        span.cells[count + b] = block_cells(job, kv->values, first + b);
    }
    for (uint32_t b = 0; b < AHEAD_COUNT; b++) {
        uint32_t next = first + count + b;
        span.cells[2 * count + b] = block_cells(job, kv->keys, next < last ? next : last);
    }
    span.block_count = count;
    return span;
}

// Scores are to the base of 2: e^x = 2^(x log2(e)).
static void query_scale(const float *query, uint32_t head_size, float *out) {
    float scale = 0x1.715476p+0f / sqrtf((float)head_size); // log2(e)
    for (uint32_t d = 0; d < head_size; d++) {
        out[d] = query[d] * scale;
    }
}

void VARIANT(attention_span)(const struct attention_job *job, uint32_t index,
                             const struct attention_partial *partial, void *memory) {
    struct attention_scratch *scratch = memory;
    struct span span = span_open(job, index);
    struct query_tile tile = {.scratch = scratch, .state_stride = attention_stride(span.head_size)};
    uint32_t position_first = index * ATTENTION_SPAN_POSITION_COUNT;
    uint32_t i = attention_first_query(job, index);
    for (; i < job->query_count; i += tile.query_count) {
        tile.query_count = job->query_count - i;
        if (tile.query_count > TILE_QUERIES) tile.query_count = TILE_QUERIES;
        for (uint32_t q = 0; q < tile.query_count; q++) {
            uint32_t count = attention_position(job, i + q) + 1 - position_first;
            if (count > ATTENTION_SPAN_POSITION_COUNT) count = ATTENTION_SPAN_POSITION_COUNT;
            tile.position_counts[q] = count;
            query_scale(job->q + attention_offset(job, i + q), span.head_size, scratch->queries[q]);
        }
        tile.states = partial->state + i * tile.state_stride;
        memset(tile.states, 0, tile.query_count * tile.state_stride * sizeof(float));
        tile_attend(&tile, &span, partial->largest + i, partial->sum + i);
    }
}

// A greater maximum m' makes 2^(m - m') of what was summed under the maximum m.
static void query_merge(size_t state_count, const float *state, float largest, float sum,
                        float *merged_state, float *merged_largest, float *merged_sum) {
    float before = *merged_largest;
    float greatest = largest > before ? largest : before;
    vf merged_scale = vf_exp2(vf_set(before - greatest));
    vf scale = vf_exp2(vf_set(largest - greatest));
    for (size_t d = 0; d < state_count; d += LANES) {
        vf merged = vf_mul(vf_load(merged_state + d), merged_scale);
        vf_store(merged_state + d, vf_fma(vf_load(state + d), scale, merged));
    }
    float lanes[LANES];
    vf_store(lanes, vf_fma(vf_set(sum), scale, vf_mul(vf_set(*merged_sum), merged_scale)));
    *merged_sum = lanes[0];
    *merged_largest = greatest;
}

void VARIANT(attention_merge)(const struct attention_job *job, uint32_t span,
                              const struct attention_partial *merged,
                              const struct attention_partial *partial) {
    size_t stride = attention_stride(job->shape->head_size);
    for (uint32_t i = attention_first_query(job, span); i < job->query_count; i++) {
        query_merge(stride, partial->state + i * stride, partial->largest[i], partial->sum[i],
                    merged->state + i * stride, merged->largest + i, merged->sum + i);
    }
}

// out = state / sum, every element in its own place.
static ALWAYS_INLINE void query_finish(const float *state, float sum, uint32_t head_size,
                                       enum dtype dtype, float *out) {
    vf divisor = vf_set(sum);
    uint32_t d = 0;
    for (; d + 2 * LANES <= head_size; d += 2 * LANES) {
        float lanes[2 * LANES];
        vf_store(lanes, vf_div(vf_load(state + d), divisor));
        vf_store(lanes + LANES, vf_div(vf_load(state + d + LANES), divisor));
        UNROLL for (uint32_t i = 0; i < 2 * LANES; i++) {
            out[d + i] = lanes[pair_place(i, dtype)];
        }
    }
    for (; d < head_size; d++) {
        out[d] = state[d] / sum;
    }
}

void VARIANT(attention_finish)(const struct attention_job *job,
                               const struct attention_partial *merged) {
    uint32_t head_size = job->shape->head_size;
    for (uint32_t i = 0; i < job->query_count; i++) {
        const float *state = merged->state + i * attention_stride(head_size);
        float *out = job->out + attention_offset(job, i);
        if (job->kv->dtype == DTYPE_BF16) {
            query_finish(state, merged->sum[i], head_size, DTYPE_BF16, out);
        } else {
            query_finish(state, merged->sum[i], head_size, DTYPE_F32, out);
        }
    }
}
