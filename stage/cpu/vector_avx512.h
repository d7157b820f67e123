// vector_avx512: 16 lanes, AVX-512 F, BW, DQ and VL. Included by vector.h.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>
#include <stdint.h>

#include "stage/cpu/vector_fn.h"

enum { LANES = 16, TILE_ROWS = 6, TILE_QUERIES = 8, I8_ROWS = 6, I8_BLOCKS = 2 };

typedef __m512 vf;

VECTOR_FN vf vf_zero(void) {
    return _mm512_setzero_ps();
}
VECTOR_FN vf vf_set(float x) {
    return _mm512_set1_ps(x);
}
VECTOR_FN vf vf_load(const float *p) {
    return _mm512_loadu_ps(p);
}
VECTOR_FN void vf_store(float *p, vf v) {
    _mm512_storeu_ps(p, v);
}
VECTOR_FN vf vf_add(vf a, vf b) {
    return _mm512_add_ps(a, b);
}
VECTOR_FN vf vf_sub(vf a, vf b) {
    return _mm512_sub_ps(a, b);
}
VECTOR_FN vf vf_mul(vf a, vf b) {
    return _mm512_mul_ps(a, b);
}
VECTOR_FN vf vf_div(vf a, vf b) {
    return _mm512_div_ps(a, b);
}
VECTOR_FN vf vf_max(vf a, vf b) {
    return _mm512_max_ps(a, b);
}
VECTOR_FN vf vf_min(vf a, vf b) {
    return _mm512_min_ps(a, b);
}
VECTOR_FN vf vf_fma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}
VECTOR_FN vf vf_round(vf v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VECTOR_FN vf vf_scale(vf v, vf n) {
    return _mm512_scalef_ps(v, n);
}

VECTOR_FN vf vf_load_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
VECTOR_FN void vf_load_bf16_pairs(const uint16_t *p, vf *even_out, vf *odd_out) {
    __m512i pairs = _mm512_loadu_si512(p);
    *even_out = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    *odd_out = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
}
VECTOR_FN vf vf_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
// Round to nearest even; a NaN keeps its upper bits and becomes quiet, as f32_to_bf16().
VECTOR_FN void vf_store_bf16(uint16_t *p, vf v) {
    __m512i bits = _mm512_castps_si512(v);
    __m512i upper = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
    __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i rounded = _mm512_srli_epi32(sum, 16);
    __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, is_nan, upper, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(rounded));
}
// As f32_to_f16(): every NaN becomes the quiet NaN of its sign.
VECTOR_FN void vf_store_f16(uint16_t *p, vf v) {
    __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    __m256i quiet = _mm256_and_si256(half, _mm256_set1_epi16((short)0x8000));
    quiet = _mm256_or_si256(quiet, _mm256_set1_epi16(0x7e00));
    half = _mm256_mask_mov_epi16(half, is_nan, quiet);
    _mm256_storeu_si256((__m256i *)p, half);
}

VECTOR_FN __m128 vf_quarter_(vf v) {
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
VECTOR_FN float vf_sum(vf v) {
    __m128 quarter = vf_quarter_(v);
    __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
VECTOR_FN void vf_sum4(vf a, vf b, vf c, vf d, float *out) {
    __m128 row0 = vf_quarter_(a), row1 = vf_quarter_(b);
    __m128 row2 = vf_quarter_(c), row3 = vf_quarter_(d);
    _MM_TRANSPOSE4_PS(row0, row1, row2, row3);
    _mm_storeu_ps(out, _mm_add_ps(_mm_add_ps(row0, row2), _mm_add_ps(row1, row3)));
}
VECTOR_FN float vf_largest(vf v) {
    return _mm512_reduce_max_ps(v);
}

typedef __m512i vi;

VECTOR_FN vi vi_set(int32_t n) {
    return _mm512_set1_epi32(n);
}
VECTOR_FN vi vi_add(vi a, vi b) {
    return _mm512_add_epi32(a, b);
}
VECTOR_FN vf vi_to_f32(vi v) {
    return _mm512_cvtepi32_ps(v);
}

#if defined(__AVX512VNNI__)
enum { VI_DOT_OFFSET = 128 };

typedef __m512i vq;

VECTOR_FN vq vq_load(const uint8_t *p) {
    return _mm512_loadu_si512(p);
}
VECTOR_FN vi vi_dot(vi sums, vq weights, int32_t four) {
    return _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(four));
}
#else
enum { VI_DOT_OFFSET = 0 };

// Magnitudes, so that a pair of products, at most 2 * 127 * 127, fits 16 bits; signs go to the
// values.
typedef struct {
    __m512i magnitudes;
    __mmask64 is_negative;
} vq;

VECTOR_FN vq vq_load(const uint8_t *p) {
    __m512i weights = _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8((char)0x80));
    return (vq){_mm512_abs_epi8(weights), _mm512_movepi8_mask(weights)};
}
VECTOR_FN vi vi_dot(vi sums, vq weights, int32_t four) {
    __m512i values = _mm512_set1_epi32(four);
    values = _mm512_mask_sub_epi8(values, weights.is_negative, _mm512_setzero_si512(), values);
    __m512i pairs = _mm512_maddubs_epi16(weights.magnitudes, values);
    return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
#endif

VECTOR_FN vf vf_load_byte(const uint8_t *p, size_t n) {
    __m512i weights = _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8((char)0x80));
    __m512i upper = _mm512_sllv_epi32(weights, _mm512_set1_epi32((int)(24 - 8 * n)));
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(upper, 24));
}
#endif
