// Number formats, against arithmetic in double, where every step is exact.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "base/dtype.h"

static float f32_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

// The number that binary16 `bits` stand for, by the definition of the format.
static double f16_value(uint16_t bits) {
    double sign = bits & 0x8000u ? -1.0 : 1.0;
    int exponent = bits >> 10 & 0x1f;
    int fraction = bits & 0x3ff;
    if (exponent == 0x1f) return fraction == 0 ? sign * INFINITY : NAN;
    if (exponent == 0) return sign * ldexp(fraction, -24);
    return sign * ldexp(1024 + fraction, exponent - 25);
}

// `value` to the nearest multiple of its unit in the last place, ties to even, by rint().
static double rounded(double value, int fraction_bits, int exponent_min, double overflow) {
    if (value == 0 || isnan(value)) return value;
    if (fabs(value) >= overflow) return copysign(INFINITY, value);
    int exponent = ilogb(value);
    if (exponent < exponent_min) exponent = exponent_min;
    double unit = ldexp(1, exponent - fraction_bits);
    return rint(value / unit) * unit;
}

// 65520 lies halfway between the largest finite number, 65504, and the next power of two.
static double f16_rounded(double value) {
    return rounded(value, 10, -14, 65520.0);
}

static double bf16_rounded(double value) {
    return rounded(value, 7, -126, ldexp(511, 119));
}

static void expect_rounding(uint32_t bits) {
    float value = f32_of(bits);
    uint16_t f16 = f32_to_f16(value);
    uint16_t bf16 = f32_to_bf16(value);
    bool is_right;
    if (isnan(value)) {
        is_right = isnan(f16_value(f16)) && isnan(bf16_to_f32(bf16)) && (f16 & 0x200) != 0 &&
                   (bf16 & 0x40) != 0;
    } else {
        is_right = f16_value(f16) == f16_rounded(value) &&
                   (double)bf16_to_f32(bf16) == bf16_rounded(value);
    }
    bool is_signed = bits >> 31 == (uint32_t)f16 >> 15 && bits >> 31 == (uint32_t)bf16 >> 15;
    if (!is_right || !is_signed)
        fail_msg("%a (0x%08x) gives f16 0x%04x and bf16 0x%04x", (double)value, bits, f16, bf16);
}

static void every_f16_is_widened_exactly_and_comes_back(void **state) {
    (void)state;
    for (uint32_t i = 0; i <= UINT16_MAX; i++) {
        uint16_t bits = (uint16_t)i;
        float value = f16_to_f32(bits);
        double expected = f16_value(bits);
        assert_int_equal(signbit(value) != 0, bits >> 15);
        if (isnan(expected)) {
            assert_true(isnan(value));
            assert_true(isnan(f16_value(f32_to_f16(value))));
            continue;
        }
        assert_true((double)value == expected);
        assert_int_equal(f32_to_f16(value), bits);
    }
}

static void every_bf16_is_widened_exactly_and_comes_back(void **state) {
    (void)state;
    for (uint32_t i = 0; i <= UINT16_MAX; i++) {
        float value = bf16_to_f32((uint16_t)i);
        assert_int_equal(bits_of(value), i << 16);
        assert_int_equal(f32_to_bf16(value), isnan(value) ? (i | 0x40) : i);
    }
}

// Halfway between neighbours is where rounding goes wrong.
static void f32_is_rounded_to_nearest_even_around_every_midpoint(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 0x7c00; i++) {
        double next = i == 0x7bff ? 65536.0 : f16_value((uint16_t)(i + 1));
        float middle = (float)((f16_value((uint16_t)i) + next) / 2);
        for (int step = -2; step <= 2; step++) {
            expect_rounding(bits_of(middle) + (uint32_t)step);
            expect_rounding((bits_of(middle) + (uint32_t)step) | 0x80000000u);
        }
    }
    static const uint32_t low[] = {0, 1, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff};
    for (uint32_t i = 0; i <= UINT16_MAX; i++)
        for (size_t j = 0; j < sizeof(low) / sizeof(*low); j++)
            expect_rounding(i << 16 | low[j]);
}

static void f32_is_rounded_to_nearest_even_at_random(void **state) {
    (void)state;
    uint64_t random = 1;
    for (int i = 0; i < 1000000; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        expect_rounding((uint32_t)(random >> 32));
        // Exponents that f16 has.
        uint32_t exponent = 100 + (uint32_t)(random >> 40) % 45;
        expect_rounding(((uint32_t)(random >> 32) & 0x807fffffu) | exponent << 23);
    }
}

static void dtype_names_are_parsed_and_have_a_size(void **state) {
    (void)state;
    static const struct {
        const char *name;
        enum dtype dtype;
        size_t size_bytes;
    } all[] = {{"f32", DTYPE_F32, 4}, {"bf16", DTYPE_BF16, 2}, {"f16", DTYPE_F16, 2}};
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
        enum dtype dtype = DTYPE_NONE;
        assert_true(dtype_parse(all[i].name, &dtype));
        assert_int_equal(dtype, all[i].dtype);
        assert_string_equal(dtype_name(dtype), all[i].name);
        assert_int_equal(dtype_size_bytes(dtype), all[i].size_bytes);
    }
    static const char *const wrong[] = {"", "none", "F32", "f3", "f322", "int8"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        enum dtype dtype = DTYPE_F16;
        assert_false(dtype_parse(wrong[i], &dtype));
        assert_int_equal(dtype, DTYPE_F16);
    }
    assert_string_equal(dtype_name((enum dtype)99), "none");
    assert_int_equal(dtype_size_bytes(DTYPE_NONE), 0);
    assert_int_equal(dtype_size_bytes((enum dtype)99), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_f16_is_widened_exactly_and_comes_back),
        cmocka_unit_test(every_bf16_is_widened_exactly_and_comes_back),
        cmocka_unit_test(f32_is_rounded_to_nearest_even_around_every_midpoint),
        cmocka_unit_test(f32_is_rounded_to_nearest_even_at_random),
        cmocka_unit_test(dtype_names_are_parsed_and_have_a_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
