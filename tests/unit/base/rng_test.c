// Random numbers: known answers, and the statistics of fixed seeds, so that a test cannot flicker.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "base/rng.h"

enum { DRAW_COUNT = 1 << 16, BIN_COUNT = 64, BIT_COUNT = 53 };

static const uint64_t seeds[] = {0, 1, 42, 0x8000000000000000u, UINT64_MAX};
enum { SEED_COUNT = sizeof(seeds) / sizeof(*seeds) };

// Known answers that the authors publish with the Random123 library.
static void philox_gives_the_known_answers(void **state) {
    (void)state;
    static const struct {
        uint64_t key;
        uint32_t counter[4], expected[4];
    } cases[] = {
        {0, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT64_MAX,
         {UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822,
         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        uint32_t words[4];
        rng_philox(cases[i].key, cases[i].counter, words);
        assert_memory_equal(words, cases[i].expected, sizeof(words));
        memcpy(words, cases[i].counter, sizeof(words));
        rng_philox(cases[i].key, words, words); // in place
        assert_memory_equal(words, cases[i].expected, sizeof(words));
    }
}

static void uniform_has_the_moments_of_a_uniform_number(void **state) {
    (void)state;
    for (int s = 0; s < SEED_COUNT; s++) {
        double sum = 0, squares = 0;
        for (uint64_t i = 0; i < DRAW_COUNT; i++) {
            double u = rng_uniform(seeds[s], i);
            assert_true(u >= 0 && u < 1);
            sum += u;
            squares += (u - 0.5) * (u - 0.5);
        }
        double mean_error = sqrt(1.0 / 12 / DRAW_COUNT);
        double variance_error = sqrt(1.0 / 180 / DRAW_COUNT);
        assert_true(fabs(sum / DRAW_COUNT - 0.5) < 4 * mean_error);
        assert_true(fabs(squares / DRAW_COUNT - 1.0 / 12) < 4 * variance_error);
    }
}

// With 63 degrees of freedom chi-square lies in 28..117 but for one time in 10^4 on each side.
static void expect_even_bins(const uint32_t *counts) {
    double expected = (double)DRAW_COUNT / BIN_COUNT, chi_square = 0;
    for (int i = 0; i < BIN_COUNT; i++)
        chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
    if (chi_square < 28 || chi_square > 117) fail_msg("chi-square is %g", chi_square);
}

static void uniform_fills_bins_evenly(void **state) {
    (void)state;
    for (int s = 0; s < SEED_COUNT; s++) {
        uint32_t by_value[BIN_COUNT] = {0}, by_pair[BIN_COUNT] = {0}, by_tail[BIN_COUNT] = {0};
        double previous = rng_uniform(seeds[s], UINT64_MAX);
        for (uint64_t i = 0; i < DRAW_COUNT; i++) {
            double u = rng_uniform(seeds[s], i);
            by_value[(int)(u * BIN_COUNT)]++;
            by_pair[(int)(u * 8) * 8 + (int)(previous * 8)]++;
            by_tail[(uint64_t)(u * 0x1p53) % BIN_COUNT]++;
            previous = u;
        }
        expect_even_bins(by_value);
        expect_even_bins(by_pair);
        expect_even_bins(by_tail);
    }
}

// Counts for each bit, and for each pair of bits, how often (both) are one.
static void uniform_has_53_independent_bits(void **state) {
    (void)state;
    static uint32_t ones[BIT_COUNT], equal[BIT_COUNT][BIT_COUNT];
    for (uint64_t i = 0; i < DRAW_COUNT; i++) {
        double scaled = rng_uniform(7, i) * 0x1p53;
        uint64_t bits = (uint64_t)scaled;
        assert_true((double)bits == scaled); // nothing below the last bit
        for (int a = 0; a < BIT_COUNT; a++) {
            ones[a] += bits >> a & 1;
            for (int b = 0; b < a; b++)
                equal[a][b] += (bits >> a & 1) == (bits >> b & 1);
        }
    }
    double deviation = sqrt(DRAW_COUNT) / 2;
    for (int a = 0; a < BIT_COUNT; a++) {
        assert_true(fabs(ones[a] - DRAW_COUNT / 2.0) < 5 * deviation);
        for (int b = 0; b < a; b++)
            assert_true(fabs(equal[a][b] - DRAW_COUNT / 2.0) < 5 * deviation);
    }
}

static void every_bit_of_seed_and_position_matters(void **state) {
    (void)state;
    for (int s = 0; s < SEED_COUNT; s++) {
        for (uint64_t position = 0; position < 100; position += 33) {
            double u = rng_uniform(seeds[s], position);
            assert_true(u == rng_uniform(seeds[s], position));
            for (int bit = 0; bit < 64; bit++) {
                assert_true(u != rng_uniform(seeds[s] ^ 1ull << bit, position));
                assert_true(u != rng_uniform(seeds[s], position ^ 1ull << bit));
            }
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_known_answers),
        cmocka_unit_test(uniform_has_the_moments_of_a_uniform_number),
        cmocka_unit_test(uniform_fills_bins_evenly),
        cmocka_unit_test(uniform_has_53_independent_bits),
        cmocka_unit_test(every_bit_of_seed_and_position_matters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
