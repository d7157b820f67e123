// vector_avx2: 8 lanes, AVX2, FMA and F16C. Included by vector.h.
#pragma once

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#include <stdint.h>

#include "stage/cpu/vector_fn.h"

enum { LANES = 8, TILE_ROWS = 3, TILE_QUERIES = 4, I8_ROWS = 3, I8_BLOCKS = 1 };

typedef __m256 vf;

VECTOR_FN vf vf_zero(void) {
    return _mm256_setzero_ps();
}
VECTOR_FN vf vf_set(float x) {
    return _mm256_set1_ps(x);
}
VECTOR_FN vf vf_load(const float *p) {
    return _mm256_loadu_ps(p);
}
VECTOR_FN void vf_store(float *p, vf v) {
    _mm256_storeu_ps(p, v);
}
VECTOR_FN vf vf_add(vf a, vf b) {
    return _mm256_add_ps(a, b);
}
VECTOR_FN vf vf_sub(vf a, vf b) {
    return _mm256_sub_ps(a, b);
}
VECTOR_FN vf vf_mul(vf a, vf b) {
    return _mm256_mul_ps(a, b);
}
VECTOR_FN vf vf_div(vf a, vf b) {
    return _mm256_div_ps(a, b);
}
VECTOR_FN vf vf_max(vf a, vf b) {
    return _mm256_max_ps(a, b);
}
VECTOR_FN vf vf_min(vf a, vf b) {
    return _mm256_min_ps(a, b);
}
VECTOR_FN vf vf_fma(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
}
VECTOR_FN vf vf_round(vf v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// In two factors, so that each is a normal number and only the last product is rounded.
VECTOR_FN vf vf_scale(vf v, vf n) {
    __m256i whole = _mm256_cvtps_epi32(n);
    __m256i first = _mm256_srai_epi32(whole, 1);
    __m256i second = _mm256_sub_epi32(whole, first);
    __m256i bias = _mm256_set1_epi32(127);
    __m256i a = _mm256_slli_epi32(_mm256_add_epi32(first, bias), 23);
    __m256i b = _mm256_slli_epi32(_mm256_add_epi32(second, bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(v, _mm256_castsi256_ps(a)), _mm256_castsi256_ps(b));
}

VECTOR_FN vf vf_load_bf16(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
VECTOR_FN void vf_load_bf16_pairs(const uint16_t *p, vf *even_out, vf *odd_out) {
    __m256i pairs = _mm256_loadu_si256((const __m256i *)p);
    *even_out = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    *odd_out = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
}
VECTOR_FN vf vf_load_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
// Round to nearest even; a NaN keeps its upper bits and becomes quiet, as f32_to_bf16().
VECTOR_FN void vf_store_bf16(uint16_t *p, vf v) {
    __m256i bits = _mm256_castps_si256(v);
    __m256i upper = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i rounded = _mm256_srli_epi32(sum, 16);
    __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, quiet, is_nan);
    __m128i narrow =
        _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    _mm_storeu_si128((__m128i *)p, narrow);
}
// As f32_to_f16(): every NaN becomes the quiet NaN of its sign.
VECTOR_FN void vf_store_f16(uint16_t *p, vf v) {
    __m256 sign = _mm256_and_ps(v, _mm256_set1_ps(-0.0f));
    __m256 quiet = _mm256_or_ps(sign, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)));
    v = _mm256_blendv_ps(v, quiet, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

VECTOR_FN __m128 vf_half_(vf v) {
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}
VECTOR_FN float vf_sum(vf v) {
    __m128 half = vf_half_(v);
    __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
VECTOR_FN void vf_sum4(vf a, vf b, vf c, vf d, float *out) {
    __m128 row0 = vf_half_(a), row1 = vf_half_(b), row2 = vf_half_(c), row3 = vf_half_(d);
    _MM_TRANSPOSE4_PS(row0, row1, row2, row3);
    _mm_storeu_ps(out, _mm_add_ps(_mm_add_ps(row0, row2), _mm_add_ps(row1, row3)));
}
VECTOR_FN float vf_largest(vf v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

enum { VI_DOT_OFFSET = 0 };

typedef __m256i vi;
// Magnitudes, so that a pair of products, at most 2 * 127 * 127, fits 16 bits; signs go to the
// values.
typedef struct {
    __m256i magnitudes;
    __m256i weights;
} vq;

VECTOR_FN vi vi_set(int32_t n) {
    return _mm256_set1_epi32(n);
}
VECTOR_FN vi vi_add(vi a, vi b) {
    return _mm256_add_epi32(a, b);
}
VECTOR_FN vf vi_to_f32(vi v) {
    return _mm256_cvtepi32_ps(v);
}
VECTOR_FN __m256i vq_weights_(const uint8_t *p) {
    __m256i bytes = _mm256_loadu_si256((const __m256i *)p);
    return _mm256_xor_si256(bytes, _mm256_set1_epi8((char)0x80));
}
VECTOR_FN vq vq_load(const uint8_t *p) {
    __m256i weights = vq_weights_(p);
    return (vq){_mm256_abs_epi8(weights), weights};
}
VECTOR_FN vi vi_dot(vi sums, vq weights, int32_t four) {
    __m256i values = _mm256_sign_epi8(_mm256_set1_epi32(four), weights.weights);
    __m256i pairs = _mm256_maddubs_epi16(weights.magnitudes, values);
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
VECTOR_FN vf vf_load_byte(const uint8_t *p, size_t n) {
    __m256i upper = _mm256_sllv_epi32(vq_weights_(p), _mm256_set1_epi32((int)(24 - 8 * n)));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(upper, 24));
}
#endif
