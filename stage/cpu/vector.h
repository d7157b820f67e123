// vector: LANES floats at once, on the instruction set that the including file is compiled for. One
// source of the kernels serves all of them; what differs is here. Each set provides
//
//   LANES             floats in a vector
//   TILE_ROWS         rows of a matrix product whose sums fit into registers, by TILE_OUTPUTS (4)
//   TILE_QUERIES      queries of attention whose scores fit into registers, at most 8
//   vf                the vector
//   vf_zero() vf_set(x) vf_load(p) vf_store(p, v)
//   vf_load_bf16(p) vf_load_f16(p) vf_store_bf16(p, v) vf_store_f16(p, v)
//   vf_load_bf16_pairs(p, even, odd)  2 * LANES elements: those of even index, and the others; half
//                     the instructions of two vf_load_bf16()
//   vf_add vf_sub vf_mul vf_div vf_max(a, b)
//   vf_fma(a, b, c)   a * b + c; whether it is rounded once or twice is the set's own, but fixed
//   vf_round(v)       to the nearest whole number, |v| < 2^22
//   vf_scale(v, n)    v * 2^n for whole n in -252..252
//   vf_sum(v)         the lanes' sum by a fixed tree: halves added until one lane is left
//   vf_sum4(a, b, c, d, out)  the four sums, by the same tree
//   vf_largest(v)     the largest lane
//
// and, for int8 (see kernels_int8.c):
//
//   I8_ROWS, I8_BLOCKS  rows, and blocks of outputs, whose sums fit into registers
//   vi                LANES 32-bit integers
//   vi_set(n) vi_add(a, b) vi_to_f32(v)
//   vq, vq_load(p)    LANES times 4 weights: bytes, I8_OFFSET above their value
//   vi_dot(sums, weights, four)   adds to each lane its 4 weights times the 4 int8 values packed in
//                     `four`; too much by VI_DOT_OFFSET times the values' sum
//   vf_load_byte(p, n)  weight n of each lane's 4
//
// Loads and stores need no alignment beyond the element's. Nothing outside the lanes is touched.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/dtype.h"
#include "stage/cpu/vector_fn.h"

// kernels_<variant>_<name>: the same source is compiled once for each variant.
#define VARIANT_PASTE_(variant, name) kernels_##variant##_##name
#define VARIANT_PASTE(variant, name) VARIANT_PASTE_(variant, name)
#define VARIANT(name) VARIANT_PASTE(KERNELS_VARIANT, name)

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "stage/cpu/vector_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "stage/cpu/vector_avx2.h"
#else
#include "stage/cpu/vector_portable.h"
#endif

enum { TILE_OUTPUTS = 4 };

// The first `count` < LANES elements at p, zero in the other lanes.
VECTOR_FN vf vf_load_part(const float *p, size_t count) {
    float lanes[LANES] = {0};
    memcpy(lanes, p, count * sizeof(lanes[0]));
    return vf_load(lanes);
}

VECTOR_FN void vf_store_part(float *p, vf v, size_t count) {
    float lanes[LANES];
    vf_store(lanes, v);
    memcpy(p, lanes, count * sizeof(lanes[0]));
}

// LANES elements of `dtype` from element `index` on, widened; a constant dtype costs no branch.
VECTOR_FN vf vf_load_as(const void *p, enum dtype dtype, size_t index) {
    if (dtype == DTYPE_BF16) return vf_load_bf16((const uint16_t *)p + index);
    if (dtype == DTYPE_F16) return vf_load_f16((const uint16_t *)p + index);
    return vf_load((const float *)p + index);
}

VECTOR_FN vf vf_load_part_as(const void *p, enum dtype dtype, size_t index, size_t count) {
    if (dtype == DTYPE_F32) return vf_load_part((const float *)p + index, count);
    uint16_t lanes[LANES] = {0};
    memcpy(lanes, (const uint16_t *)p + index, count * sizeof(lanes[0]));
    return dtype == DTYPE_BF16 ? vf_load_bf16(lanes) : vf_load_f16(lanes);
}

VECTOR_FN void vf_store_as(void *p, enum dtype dtype, size_t index, vf v) {
    if (dtype == DTYPE_BF16) {
        vf_store_bf16((uint16_t *)p + index, v);
    } else if (dtype == DTYPE_F16) {
        vf_store_f16((uint16_t *)p + index, v);
    } else {
        vf_store((float *)p + index, v);
    }
}

VECTOR_FN void vf_store_part_as(void *p, enum dtype dtype, size_t index, vf v, size_t count) {
    if (dtype == DTYPE_F32) {
        vf_store_part((float *)p + index, v, count);
        return;
    }
    uint16_t lanes[LANES];
    if (dtype == DTYPE_BF16) {
        vf_store_bf16(lanes, v);
    } else {
        vf_store_f16(lanes, v);
    }
    memcpy((uint16_t *)p + index, lanes, count * sizeof(lanes[0]));
}

// `count` elements of `dtype` from element `first` on.
VECTOR_FN void vf_widen(const void *p, enum dtype dtype, size_t first, size_t count, float *out) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vf_store(out + i, vf_load_as(p, dtype, first + i));
    }
    if (i < count)
        vf_store_part(out + i, vf_load_part_as(p, dtype, first + i, count - i), count - i);
}

// v as `dtype` holds it.
VECTOR_FN vf vf_round_to(vf v, enum dtype dtype) {
    if (dtype == DTYPE_F32) return v;
    uint16_t lanes[LANES];
    if (dtype == DTYPE_BF16) {
        vf_store_bf16(lanes, v);
        return vf_load_bf16(lanes);
    }
    vf_store_f16(lanes, v);
    return vf_load_f16(lanes);
}

// e^v, at most 2 units in the last place from the exact value, subnormal results included; 0 below
// -104, infinity above 89, NaN for NaN.
//   e^v = 2^n e^r with n = round(v / ln 2), |r| <= ln(2) / 2 (ln 2 in two parts, the first with few
//   bits so that n times it is exact), e^r = 1 + r + r^2 P(r), P a minimax polynomial.
VECTOR_FN vf vf_exp(vf v) {
    v = vf_max(vf_set(-104.0f), v); // with a NaN, vf_max gives its second operand
    v = vf_min(vf_set(89.0f), v);
    vf n = vf_round(vf_mul(v, vf_set(0x1.715476p+0f)));
    vf r = vf_fma(n, vf_set(-0.693359375f), v);
    r = vf_fma(n, vf_set(0x1.bd0106p-13f), r);
    vf p = vf_set(0x1.6d117cp-10f);
    p = vf_fma(p, r, vf_set(0x1.120be2p-7f));
    p = vf_fma(p, r, vf_set(0x1.555518p-5f));
    p = vf_fma(p, r, vf_set(0x1.5554dcp-3f));
    p = vf_fma(p, r, vf_set(0.5f));
    p = vf_fma(p, vf_mul(r, r), r);
    return vf_scale(vf_add(p, vf_set(1.0f)), n);
}

// 2^v for v <= 0, at most 2 units in the last place from the exact value; 0 below -150, NaN for
// NaN.
//   2^v = 2^n 2^r with n = round(v), |r| <= 1/2, 2^r = 1 + r P(r), P a minimax polynomial.
VECTOR_FN vf vf_exp2(vf v) {
    v = vf_max(vf_set(-160.0f), v); // with a NaN, vf_max gives its second operand
    vf n = vf_round(v);
    vf r = vf_sub(v, n);
    vf p = vf_set(0x1.470b4ap-13f);
    p = vf_fma(p, r, vf_set(0x1.5f7276p-10f));
    p = vf_fma(p, r, vf_set(0x1.3b270ep-7f));
    p = vf_fma(p, r, vf_set(0x1.c6ae72p-5f));
    p = vf_fma(p, r, vf_set(0x1.ebfbe2p-3f));
    p = vf_fma(p, r, vf_set(0x1.62e432p-1f));
    p = vf_fma(p, r, vf_set(1.0f));
    return vf_scale(p, n);
}
