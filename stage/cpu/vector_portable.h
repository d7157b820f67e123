// vector_portable: 4 lanes in the compilers' own vector types, for any processor. Included by
// vector.h.
#pragma once

#include <stdint.h>
#include <string.h>

#include "base/dtype.h"
#include "stage/cpu/vector_fn.h"

enum { LANES = 4, TILE_ROWS = 3, TILE_QUERIES = 4, I8_ROWS = 2, I8_BLOCKS = 1 };

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi_ __attribute__((vector_size(16)));
typedef uint32_t vu_ __attribute__((vector_size(16)));
typedef uint16_t vh_ __attribute__((vector_size(8)));

VECTOR_FN vf vf_set(float x) {
    return (vf){x, x, x, x};
}
VECTOR_FN vf vf_zero(void) {
    return vf_set(0.0f);
}
VECTOR_FN vf vf_load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof(v));
    return v;
}
VECTOR_FN void vf_store(float *p, vf v) {
    memcpy(p, &v, sizeof(v));
}
VECTOR_FN vf vf_add(vf a, vf b) {
    return a + b;
}
VECTOR_FN vf vf_sub(vf a, vf b) {
    return a - b;
}
VECTOR_FN vf vf_mul(vf a, vf b) {
    return a * b;
}
VECTOR_FN vf vf_div(vf a, vf b) {
    return a / b;
}
VECTOR_FN vf vf_choose_(vi_ mask, vf a, vf b) {
    return (vf)(((vi_)a & mask) | ((vi_)b & ~mask));
}
VECTOR_FN vf vf_max(vf a, vf b) {
    return vf_choose_(a > b, a, b);
}
VECTOR_FN vf vf_min(vf a, vf b) {
    return vf_choose_(a < b, a, b);
}
VECTOR_FN vf vf_fma(vf a, vf b, vf c) {
    return a * b + c;
}
// Adding 1.5 * 2^23 leaves no bits for a fraction; the processor rounds to nearest even.
VECTOR_FN vf vf_round(vf v) {
    return (v + vf_set(0x1.8p23f)) - vf_set(0x1.8p23f);
}
// In two factors, so that each is a normal number and only the last product is rounded.
VECTOR_FN vf vf_scale(vf v, vf n) {
    // Converting a NaN is undefined; v is NaN then, whatever the factors are.
    vi_ whole = __builtin_convertvector(vf_choose_(n < vf_set(1024.0f), n, vf_zero()), vi_);
    vi_ first = whole >> 1;
    vi_ second = whole - first;
    return v * (vf)((first + 127) << 23) * (vf)((second + 127) << 23);
}

VECTOR_FN vf vf_load_bf16(const uint16_t *p) {
    vh_ half;
    memcpy(&half, p, sizeof(half));
    return (vf)(__builtin_convertvector(half, vu_) << 16);
}
VECTOR_FN void vf_load_bf16_pairs(const uint16_t *p, vf *even_out, vf *odd_out) {
    vu_ pairs;
    memcpy(&pairs, p, sizeof(pairs));
    *even_out = (vf)(pairs << 16);
    *odd_out = (vf)(pairs & 0xffff0000u);
}
VECTOR_FN vf vf_load_f16(const uint16_t *p) {
    return (vf){f16_to_f32(p[0]), f16_to_f32(p[1]), f16_to_f32(p[2]), f16_to_f32(p[3])};
}
VECTOR_FN void vf_store_bf16(uint16_t *p, vf v) {
    for (int i = 0; i < LANES; i++) {
        p[i] = f32_to_bf16(v[i]);
    }
}
VECTOR_FN void vf_store_f16(uint16_t *p, vf v) {
    for (int i = 0; i < LANES; i++) {
        p[i] = f32_to_f16(v[i]);
    }
}

VECTOR_FN float vf_sum(vf v) {
    return (v[0] + v[2]) + (v[1] + v[3]);
}
VECTOR_FN void vf_sum4(vf a, vf b, vf c, vf d, float *out) {
    out[0] = vf_sum(a);
    out[1] = vf_sum(b);
    out[2] = vf_sum(c);
    out[3] = vf_sum(d);
}
VECTOR_FN float vf_largest(vf v) {
    float a = v[0] > v[2] ? v[0] : v[2];
    float b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
}

enum { VI_DOT_OFFSET = 0 };

typedef vi_ vi;
typedef struct {
    vi_ weights[4]; // one of each lane's four
} vq;

VECTOR_FN vi vi_set(int32_t n) {
    return (vi){n, n, n, n};
}
VECTOR_FN vi vi_add(vi a, vi b) {
    return a + b;
}
VECTOR_FN vf vi_to_f32(vi v) {
    return __builtin_convertvector(v, vf);
}
VECTOR_FN vq vq_load(const uint8_t *p) {
    vq weights;
    for (int n = 0; n < 4; n++) {
        weights.weights[n] = (vi_){p[n], p[4 + n], p[8 + n], p[12 + n]} - 128;
    }
    return weights;
}
VECTOR_FN vi vi_dot(vi sums, vq weights, int32_t four) {
    int8_t values[4];
    memcpy(values, &four, sizeof(values));
    for (int n = 0; n < 4; n++) {
        sums += weights.weights[n] * values[n];
    }
    return sums;
}
VECTOR_FN vf vf_load_byte(const uint8_t *p, size_t n) {
    return __builtin_convertvector((vi_){p[n], p[4 + n], p[8 + n], p[12 + n]} - 128, vf);
}
