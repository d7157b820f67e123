// logits: passes over a row of logits, for the sampler. They are compiled for each instruction set
// from one plain source in which nothing depends on the set, not even by rounding: a token does not
// depend on the processor that drew it.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    // Logits of a block: largest values are kept for each.
    LOGITS_BLOCK_COUNT = 128,
    // Logits whose weights are summed at once: the sum fits in 64 bits.
    LOGITS_MASS_COUNT = 2048,
    // The largest logit of a row has the weight 2^LOGITS_WEIGHT_BITS.
    LOGITS_WEIGHT_BITS = 52,
};

// Maps numbers to whole numbers of the same order. Both zeros have the same key, a NaN is above
// +infinity or below -infinity.
static inline int32_t logits_key(float logit) {
    int32_t bits;
    logit += 0.0f; // -0 becomes +0
    memcpy(&bits, &logit, sizeof(bits));
    return bits ^ (int32_t)((uint32_t)(bits >> 31) >> 1);
}

// Weights are 2^52 * exp((logit - largest) * scale), rounded to whole numbers: sums of them are
// exact, whatever their order. Logits are -infinity or finite, and at most `largest`; scale > 0.
struct logits_scale {
    double largest;
    double scale;
};

struct logits_passes {
    const char *name;
    // maxima_out[b]: the largest key of block b, the last of which may be short. Returns the
    // smallest key of all.
    int32_t (*maxima)(const float *logits, size_t count, int32_t *maxima_out);
    // The sum of the weights, count at most LOGITS_MASS_COUNT.
    uint64_t (*mass)(const float *logits, size_t count, struct logits_scale scale);
    void (*weigh)(const float *logits, size_t count, struct logits_scale scale,
                  uint64_t *weights_out);
};

extern const struct logits_passes logits_passes_portable;
extern const struct logits_passes logits_passes_avx2;
extern const struct logits_passes logits_passes_avx512;

// Those that this processor can run, best first, NULL at the end.
const struct logits_passes *const *logits_passes_supported(void);
