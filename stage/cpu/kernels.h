// kernels: what one instruction set must provide. Each function computes a part of an operation on
// the calling thread; backend.c cuts operations into parts. How they are cut never shows in the
// results (law 2).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "stage/backend.h"
#include "stage/cpu/attention.h"

// out[r][o] = sum over i of x[r][i] * weight[o][i] + bias[o]; shapes as in backend_linear().
struct linear_job {
    const struct tensor *weight;
    const struct tensor *bias; // bias->data may be NULL
    const float *x;
    uint32_t row_count;
    float *out;
    uint32_t out_stride;
    const void *inputs; // x, or what a pack function made of it
    void *packed;       // where a pack function writes
};

enum {
    // int8 weights and inputs have one scale for so many neighbouring inputs. The last group of a
    // row
    // is filled up with zeros.
    I8_GROUP_INPUTS = 128,
    // Outputs whose weights lie together.
    I8_BLOCK_OUTPUTS = 16,
    // Weights are kept as unsigned bytes, this much above their value, which is in -127 .. 127.
    I8_OFFSET = 128,
};

// int8 weights: for each block of outputs its groups, one after the other. Inputs 4 s .. 4 s + 3 of
// an output are neighbours, as instructions want them.
struct i8_weights {
    uint8_t weights[I8_GROUP_INPUTS / 4][I8_BLOCK_OUTPUTS][4];
    float scales[I8_BLOCK_OUTPUTS]; // weight = (byte - I8_OFFSET) * scale
};

// int8 inputs: for each row its groups.
struct i8_inputs {
    float scale; // x = value * scale; NaN when one of the x is not finite
    int32_t sum; // of the values
    int8_t values[I8_GROUP_INPUTS];
};

static inline size_t i8_group_count(size_t column_count) {
    return (column_count + I8_GROUP_INPUTS - 1) / I8_GROUP_INPUTS;
}

typedef void linear_fn(const struct linear_job *job, uint32_t output_first, uint32_t output_end,
                       void *scratch);
// Rows row_first .. row_end - 1 of job->x into job->packed.
typedef void pack_fn(const struct linear_job *job, uint32_t row_first, uint32_t row_end);

struct kernels {
    const char *name;
    bool (*is_supported)(void); // by this processor
    // Of those that are supported: slower on this processor than the next in line.
    bool (*is_slow)(void);

    // Products: outputs output_first .. output_end - 1 of all rows. Of f32 inputs, with weights of
    // any dtype but i8:
    linear_fn *linear;
    // Of inputs rounded to bf16 with bf16 weights, and the packing of rows for it; NULL where it
    // would not be faster than linear() with rounded inputs.
    pack_fn *pack_bf16;
    linear_fn *linear_bf16;
    // Of i8 inputs with i8 weights, in integers within a group, and the packing of rows for it.
    // The outputs begin at a whole block.
    pack_fn *pack_i8;
    linear_fn *linear_i8;
    linear_fn *linear_i8_vnni; // the same bits for processors that have AVX-512 VNNI; or NULL
    // Of f32 inputs with i8 weights.
    linear_fn *linear_i8_weights;
    // Blocks block_first .. block_end - 1 of backend_quantize().
    void (*quantize)(const struct tensor *source, uint32_t block_first, uint32_t block_end,
                     void *out);
    // Rotates a head by the angles of its position:
    //   a = x[j], b = x[j + half]:   x[j] = a * cosines[j] - b * sines[j],
    //                                x[j + half] = b * cosines[j] + a * sines[j]
    void (*rotate)(const float *cosines, const float *sines, uint32_t half, float *x);
    // The partial of one span. Queries whose position is before it are left out here and below:
    // theirs are neither read nor written.
    void (*attention_span)(const struct attention_job *job, uint32_t span,
                           const struct attention_partial *partial, void *scratch);
    // Adds the partial of `span` to the one of all spans before it.
    void (*attention_merge)(const struct attention_job *job, uint32_t span,
                            const struct attention_partial *merged,
                            const struct attention_partial *partial);
    // The job's queries in `out`, when all spans are merged.
    void (*attention_finish)(const struct attention_job *job,
                             const struct attention_partial *merged);
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
extern const struct kernels kernels_avx512bf16;

// Where quantization rounds: |x| <= largest goes to -127 .. 127. Values below 2^-100 are zeros.
static inline float i8_scale(float largest) {
    return largest < 0x1p-100f ? 0.0f : largest / 127.0f;
}
static inline float i8_inverse_scale(float largest) {
    return largest < 0x1p-100f ? 0.0f : 127.0f / largest;
}

// Element `index` of a vector of any dtype.
static inline float element_f32(const void *data, enum dtype dtype, size_t index) {
    if (dtype == DTYPE_BF16) return bf16_to_f32(((const uint16_t *)data)[index]);
    if (dtype == DTYPE_F16) return f16_to_f32(((const uint16_t *)data)[index]);
    return ((const float *)data)[index];
}
