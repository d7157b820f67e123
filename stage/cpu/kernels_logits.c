// kernels_logits: the passes over logits. Each loop's iterations are independent, or meet in whole
// numbers, so that the compiler may take as many at once as it likes.
#include "stage/cpu/kernels_vector.h"
#include "stage/cpu/logits.h"

static int32_t variant_maxima(const float *logits, size_t count, int32_t *maxima_out) {
    int32_t least = INT32_MAX;
    for (; count > 0; maxima_out++) {
        size_t block_count = count < LOGITS_BLOCK_COUNT ? count : LOGITS_BLOCK_COUNT;
        int32_t largest = INT32_MIN;
        for (size_t i = 0; i < block_count; i++) {
            int32_t key = logits_key(logits[i]);
            largest = key > largest ? key : largest;
            least = key < least ? key : least;
        }
        *maxima_out = largest;
        logits += block_count;
        count -= block_count;
    }
    return least;
}

// Within 2^-50 of the exact value before it is rounded to a whole number.
//   e^v = 2^n e^r with n = round(v / ln 2), |r| <= ln(2) / 2 (ln 2 in two parts, the first with few
//   bits so that n times it is exact), e^r = 1 + r + r^2 P(r), P a minimax polynomial.
static ALWAYS_INLINE uint64_t weight_of(float logit, struct logits_scale scale) {
    // Adding it leaves no bits for a fraction: the sum is rounded, with n in its lowest bits.
    const double rounder = 0x1.8p52;
    double v = ((double)logit - scale.largest) * scale.scale;
    double shifted = v * 0x1.71547652b82fep0 + rounder;
    double n = shifted - rounder;
    double r = (v - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
    double r2 = r * r, r4 = r2 * r2;
    double p01 = 0x1.ffffffffffed2p-2 + 0x1.55555555507b5p-3 * r;
    double p23 = 0x1.555555558916dp-5 + 0x1.11111125b70f3p-7 * r;
    double p45 = 0x1.6c16c0c817e77p-10 + 0x1.a0198d4c751b0p-13 * r;
    double p67 = 0x1.a01b7c764dab7p-16 + 0x1.72e9289b365cbp-19 * r;
    double p = (p01 + p23 * r2) + r4 * ((p45 + p67 * r2) + r4 * 0x1.27079ad709a8ap-22);
    p = (p * r2 + r) + 1;
    // n + 52 into the exponent; what is above its bits leaves at the top.
    uint64_t bits, n_bits;
    memcpy(&bits, &p, sizeof(bits));
    memcpy(&n_bits, &shifted, sizeof(n_bits));
    bits += (n_bits + LOGITS_WEIGHT_BITS) << 52;
    double weight;
    memcpy(&weight, &bits, sizeof(weight));
    // From 2^52 on neighbours differ by 1, so rounding leaves the whole number in the lowest bits.
    weight += 0x1p52;
    memcpy(&bits, &weight, sizeof(bits));
    bits -= (uint64_t)(1023 + 52) << 52;
    // For v <= -64, far below what rounds to 0, the steps above give anything. This is a mask made
    // of bits, since of a branch or a comparison compilers make much slower loops.
    uint64_t distance;
    memcpy(&distance, &v, sizeof(distance));
    distance = (distance & INT64_MAX) - ((uint64_t)(1023 + 6) << 52); // negative for |v| < 64
    return bits & -(distance >> 63);
}

static uint64_t variant_mass(const float *logits, size_t count, struct logits_scale scale) {
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += weight_of(logits[i], scale);
    return sum;
}

static void variant_weigh(const float *logits, size_t count, struct logits_scale scale,
                          uint64_t *weights_out) {
    for (size_t i = 0; i < count; i++)
        weights_out[i] = weight_of(logits[i], scale);
}

#define TEXT_(name) #name
#define TEXT(name) TEXT_(name)
#define TABLE_(variant) logits_passes_##variant
#define TABLE(variant) TABLE_(variant)

const struct logits_passes TABLE(KERNELS_VARIANT) = {
    .name = TEXT(KERNELS_VARIANT),
    .maxima = variant_maxima,
    .mass = variant_mass,
    .weigh = variant_weigh,
};
