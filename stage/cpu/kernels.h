// kernels: what one instruction set must provide. Each function computes a part of an operation on
// the calling thread; backend.c cuts operations into parts. How they are cut never shows in the
// results (law 2).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "stage/backend.h"

enum {
    // Queries (a row's head each) of one sequence and KV head that are computed together, so that a
    // block of keys and values is read once for all of them.
    ATTENTION_QUERY_COUNT = 32,
};

// out[r][o] = sum over i of x[r][i] * weight[o][i] + bias[o]; shapes as in backend_linear().
struct linear_job {
    const struct tensor *weight;
    const struct tensor *bias; // bias->data may be NULL
    const float *x;
    uint32_t row_count;
    float *out;
    uint32_t out_stride;
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

struct kernels {
    const char *name;
    bool (*is_supported)(void); // by this processor

    // Outputs output_first .. output_end - 1 of all rows.
    void (*linear)(const struct linear_job *job, uint32_t output_first, uint32_t output_end,
                   void *scratch);
    void (*attention)(const struct attention_job *job, void *scratch);
    // Rows of backend_rms_norm().
    void (*rms_norm)(const struct tensor *weight, float epsilon, const float *x, uint32_t row_count,
                     float *out);
    void (*add)(float *x, const float *delta, size_t count, enum dtype round_dtype);
    void (*swiglu)(const float *gate, const float *up, size_t count, float *out);
    void (*widen)(const void *x, enum dtype dtype, size_t count, float *out);
    void (*narrow)(const float *x, size_t count, enum dtype dtype, void *out);

    size_t scratch_bytes; // of each thread, 64-byte aligned; no content is kept between calls
};

extern const struct kernels kernels_reference;
extern const struct kernels kernels_portable;
extern const struct kernels kernels_avx2;
extern const struct kernels kernels_avx512;

// Where a block's cells of one KV head begin, in elements, in both `keys` and `values`. Inside,
// values are (position, head_size) and keys (head_size, position): so the scores of neighbouring
// positions are neighbouring lanes, and a lane beyond the last position cannot touch the others.
static inline size_t kv_block_offset(const struct attention_shape *shape, uint32_t block,
                                     uint32_t kv_head) {
    return ((size_t)block * shape->kv_head_count + kv_head) * KV_BLOCK_POSITION_COUNT *
           shape->head_size;
}

// Element `index` of a vector of any dtype.
static inline float element_f32(const void *data, enum dtype dtype, size_t index) {
    if (dtype == DTYPE_BF16) return bf16_to_f32(((const uint16_t *)data)[index]);
    if (dtype == DTYPE_F16) return f16_to_f32(((const uint16_t *)data)[index]);
    return ((const float *)data)[index];
}
