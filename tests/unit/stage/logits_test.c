// The passes over logits: every variant against formulas in long double, and bit for bit against
// each other, for every length of the last, short vector.
#include "stage/cpu/logits.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/rng.h"

enum { COUNT = LOGITS_MASS_COUNT };

static void fill(float *logits, double spread, float largest) {
    for (uint64_t i = 0; i < COUNT; i++)
        logits[i] = (float)((double)largest - spread * rng_uniform(11, i));
    logits[COUNT / 3] = largest;
    logits[COUNT / 2] = -INFINITY;
}

static void keys_have_the_order_of_the_logits(void **state) {
    (void)state;
    const float rising[] = {-NAN,   -INFINITY, -3e38f, -1,       -1e-45f, 0,
                            1e-45f, 1,         3e38f,  INFINITY, NAN};
    for (size_t i = 1; i < sizeof(rising) / sizeof(rising[0]); i++)
        assert_true(logits_key(rising[i - 1]) < logits_key(rising[i]));
    assert_int_equal(logits_key(-0.0f), logits_key(0.0f));
}

static void maxima_are_the_largest_keys_of_blocks(void **state) {
    (void)state;
    static float logits[COUNT];
    fill(logits, 20, 3);
    for (const struct logits_passes *const *p = logits_passes_supported(); *p != NULL; p++) {
        for (size_t count = 1; count <= 4 * LOGITS_BLOCK_COUNT; count++) {
            int32_t maxima[5] = {7, 7, 7, 7, 7};
            int32_t least = (*p)->maxima(logits, count, maxima);
            int32_t expected_least = INT32_MAX;
            int32_t expected[4] = {INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN};
            for (size_t i = 0; i < count; i++) {
                int32_t key = logits_key(logits[i]);
                if (key < expected_least) expected_least = key;
                if (key > expected[i / LOGITS_BLOCK_COUNT]) expected[i / LOGITS_BLOCK_COUNT] = key;
            }
            assert_int_equal(least, expected_least);
            for (size_t b = 0; b < 4; b++)
                assert_int_equal(maxima[b], b * LOGITS_BLOCK_COUNT < count ? expected[b] : 7);
            assert_int_equal(maxima[4], 7);
        }
    }
}

static void weights_are_rounded_exponentials(void **state) {
    (void)state;
    static float logits[COUNT];
    static uint64_t weights[COUNT];
    const double spreads[] = {0, 1e-6, 1, 45, 1e30};
    const double scales[] = {0.01, 1, 1 / 0.7, 1e6, 1e44};
    for (const struct logits_passes *const *p = logits_passes_supported(); *p != NULL; p++) {
        for (size_t i = 0; i < 25; i++) {
            fill(logits, spreads[i / 5], 17.3f);
            struct logits_scale scale = {.largest = (double)17.3f, .scale = scales[i % 5]};
            (*p)->weigh(logits, COUNT, scale, weights);
            for (size_t t = 0; t < COUNT; t++) {
                double v = ((double)logits[t] - scale.largest) * scale.scale;
                long double expected = expl((long double)v) * 0x1p52L;
                long double error = fabsl((long double)weights[t] - expected);
                assert_true(error <= 0.5L + expected * 0x1p-50L);
            }
            assert_true(weights[COUNT / 3] == (uint64_t)1 << LOGITS_WEIGHT_BITS);
            assert_true(weights[COUNT / 2] == 0);
        }
    }
}

static void variants_give_the_same_bits(void **state) {
    (void)state;
    static float logits[COUNT];
    static uint64_t weights[COUNT], others[COUNT];
    const struct logits_passes *const *all = logits_passes_supported();
    fill(logits, 45, -2);
    struct logits_scale scale = {.largest = -2, .scale = 1 / 0.7};
    for (size_t count = 1; count <= COUNT; count += count < 100 ? 1 : 97) {
        all[0]->weigh(logits, count, scale, weights);
        uint64_t mass = 0;
        for (size_t t = 0; t < count; t++)
            mass += weights[t];
        for (const struct logits_passes *const *p = all; *p != NULL; p++) {
            (*p)->weigh(logits, count, scale, others);
            assert_memory_equal(weights, others, count * sizeof(weights[0]));
            assert_true((*p)->mass(logits, count, scale) == mass);
        }
    }
}

static void the_mass_of_equal_logits_fits(void **state) {
    (void)state;
    static float logits[COUNT];
    struct logits_scale scale = {.largest = 0, .scale = 1};
    for (const struct logits_passes *const *p = logits_passes_supported(); *p != NULL; p++)
        assert_true((*p)->mass(logits, COUNT, scale) == (uint64_t)COUNT << LOGITS_WEIGHT_BITS);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_have_the_order_of_the_logits),
        cmocka_unit_test(maxima_are_the_largest_keys_of_blocks),
        cmocka_unit_test(weights_are_rounded_exponentials),
        cmocka_unit_test(variants_give_the_same_bits),
        cmocka_unit_test(the_mass_of_equal_logits_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
