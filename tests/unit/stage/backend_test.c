// Norms, activations and conversions of every variant that this processor has,
// against formulas in double; and that a row's bits depend on nothing but the row.
#include <float.h>

#include "stage/cpu/vector.h"
#include "tests/unit/stage/backend_fixture.h"

// -- rows and elements ----------------------------------------------------------------------------

static void embed_copies_rows_of_the_table(void **state) {
    (void)state;
    for (VARIANTS(variant)) {
        struct backend *backend = backend_make(*variant, 2);
        for (size_t d = 0; d < 3; d++) {
            uint32_t hidden = random_count(1, 900);
            struct tensor table = tensor_random(fixture_dtypes[d], 23, hidden);
            uint32_t tokens[60];
            for (uint32_t r = 0; r < 60; r++) {
                tokens[r] = random_count(0, 22);
            }
            tokens[7] = 22;
            float *out = guarded_alloc(60 * hidden * sizeof(float));
            backend_embed(backend, &table, tokens, 60, out);
            for (size_t i = 0; i < (size_t)60 * hidden; i++) {
                size_t index = (size_t)tokens[i / hidden] * hidden + i % hidden;
                assert_true(out[i] == value_at(table.data, table.dtype, index));
            }
            guarded_free(out, 60 * hidden * sizeof(float));
            tensor_free(&table);
        }
        backend_close(backend);
    }
}

static void rms_norm_check(struct backend *backend, struct backend *one, uint32_t row_count,
                           uint32_t width, enum dtype dtype) {
    struct tensor weight = tensor_random(dtype, 1, width);
    size_t size_bytes = (size_t)row_count * width * sizeof(float);
    float *x = guarded_random((size_t)row_count * width);
    float *out = guarded_alloc(size_bytes);
    backend_rms_norm(backend, &weight, 0.01f, x, row_count, out);
    for (uint32_t r = 0; r < row_count; r++) {
        const float *row = x + (size_t)r * width;
        double square = 0;
        for (uint32_t c = 0; c < width; c++) {
            square += (double)row[c] * row[c];
        }
        double scale = 1 / sqrt(square / width + (double)0.01f);
        for (uint32_t c = 0; c < width; c++) {
            double expected = row[c] * scale * value_at(weight.data, dtype, c);
            double bound = fabs(expected) * (width / 4.0 + 8) * 0x1p-24;
            assert_true(fabs(out[(size_t)r * width + c] - expected) <= bound);
        }
    }
    // In place, one row at a time and on one thread: the same bits.
    for (uint32_t r = 0; r < row_count; r++) {
        float *row = x + (size_t)r * width;
        backend_rms_norm(one, &weight, 0.01f, row, 1, row);
    }
    assert_memory_equal(x, out, size_bytes);
    guarded_free(out, size_bytes);
    guarded_free(x, size_bytes);
    tensor_free(&weight);
}

static void rms_norm_scales_each_row_alone(void **state) {
    (void)state;
    for (VARIANTS(variant)) {
        struct backend *backend = backend_make(*variant, 3);
        struct backend *one = backend_make(*variant, 1);
        for (int round = 0; round < 9; round++) {
            rms_norm_check(backend, one, random_count(1, 40), random_count(1, 1300),
                           fixture_dtypes[round % 3]);
        }
        backend_close(one);
        backend_close(backend);
    }
}

static void add_rounds_the_sum_to_the_activation_dtype(void **state) {
    (void)state;
    for (VARIANTS(variant)) {
        struct backend *backend = backend_make(*variant, 2);
        for (size_t d = 0; d < 3; d++) {
            uint32_t row_count = random_count(1, 70), width = random_count(1, 1000);
            size_t count = (size_t)row_count * width;
            float *x = guarded_random(count), *delta = guarded_random(count);
            float *expected = malloc(count * sizeof(float));
            assert_non_null(expected);
            for (size_t i = 0; i < count; i++) {
                expected[i] = value_rounded(x[i] + delta[i], fixture_dtypes[d]);
            }
            backend_add(backend, x, delta, row_count, width, fixture_dtypes[d]);
            assert_memory_equal(x, expected, count * sizeof(float));
            free(expected);
            guarded_free(delta, count * sizeof(float));
            guarded_free(x, count * sizeof(float));
        }
        backend_close(backend);
    }
}

// The portable set's; the others run the same source. Every 1000th f32 from -110 to 90.
static void exp_is_within_two_units_in_the_last_place(void **state) {
    (void)state;
    for (uint32_t sign = 0; sign < 2; sign++) {
        for (uint32_t bits = 0; bits < 0x42dc0000u; bits += 1000) {
            uint32_t signed_bits = bits | sign << 31;
            float x, lanes[LANES];
            memcpy(&x, &signed_bits, sizeof(x));
            vf_store(lanes, vf_exp(vf_set(x)));
            double exact = exp((double)x);
            float rounded = (float)exact;
            if (isinf(rounded)) {
                assert_true(lanes[0] == INFINITY);
                continue;
            }
            double unit = (double)(nextafterf(rounded, INFINITY) - rounded);
            assert_true(fabs((double)lanes[0] - exact) <= 2 * unit);
            if (x < -104) assert_true(lanes[0] == 0);
        }
    }
    float lanes[LANES];
    vf_store(lanes, vf_exp(vf_set(-INFINITY)));
    assert_true(lanes[0] == 0);
    vf_store(lanes, vf_exp(vf_set(NAN)));
    assert_true(isnan(lanes[0]));
}

// silu's relative error: 2 units in the last place from the exponential, half a unit each from the
// sum and the quotient. Beyond exp's range silu is 0 to within 1e-36.
static void swiglu_is_accurate_over_the_whole_range(void **state) {
    (void)state;
    enum { COUNT = 200003 };
    float *gate = malloc(COUNT * sizeof(float)), *out = malloc(COUNT * sizeof(float));
    float *up = malloc(COUNT * sizeof(float));
    assert_true(gate != NULL && out != NULL && up != NULL);
    for (VARIANTS(variant)) {
        struct backend *backend = backend_make(*variant, 2);
        for (int i = 0; i < COUNT; i++) {
            gate[i] = -110.0f + 220.0f * ((float)i + random_float()) / COUNT;
            up[i] = 1.0f;
        }
        gate[0] = -INFINITY, gate[1] = INFINITY, gate[2] = NAN, gate[3] = 0, gate[4] = 1e-40f;
        gate[5] = -FLT_MAX, gate[6] = FLT_MAX, up[7] = -3.0f;
        backend_swiglu(backend, gate, up, 1, COUNT, out);
        assert_true(isnan(out[0]) || out[0] == 0); // -inf / inf, by the formula
        assert_true(out[1] == INFINITY);
        assert_true(isnan(out[2]));
        for (int i = 3; i < COUNT; i++) {
            double a = gate[i];
            double expected = a / (1 + exp(-a)) * up[i];
            double bound = 3.0 * 0x1p-23 * fabs(expected) + 1e-36;
            assert_true(fabs(out[i] - expected) <= bound);
        }
        // An element's place does not change its bits.
        float alone[3];
        for (int i = 3; i < 3000; i += 3) {
            backend_swiglu(backend, gate + i, up + i, 1, 3, alone);
            assert_memory_equal(alone, out + i, sizeof(alone));
        }
        // Nor does it matter whether the gate is written over.
        backend_swiglu(backend, gate, up, 1, COUNT, gate);
        assert_memory_equal(gate, out, COUNT * sizeof(float));
        backend_close(backend);
    }
    free(up);
    free(out);
    free(gate);
}

// -- conversions ----------------------------------------------------------------------------------

static bool same_float(float a, float b) {
    return (isnan(a) && isnan(b)) || memcmp(&a, &b, sizeof(a)) == 0;
}

static void from_wire_widens_every_value(void **state) {
    (void)state;
    enum { COUNT = 65536 };
    uint16_t *wire = guarded_alloc(COUNT * sizeof(uint16_t));
    float *out = guarded_alloc(COUNT * sizeof(float));
    for (uint32_t i = 0; i < COUNT; i++) {
        wire[i] = (uint16_t)i;
    }
    for (VARIANTS(variant)) {
        struct backend *backend = backend_make(*variant, 2);
        for (size_t d = 1; d < 3; d++) {
            backend_from_wire(backend, wire, COUNT, fixture_dtypes[d], out);
            for (uint32_t i = 0; i < COUNT; i++) {
                assert_true(same_float(out[i], value_at(wire, fixture_dtypes[d], i)));
            }
        }
        backend_close(backend);
    }
    guarded_free(out, COUNT * sizeof(float));
    guarded_free(wire, COUNT * sizeof(uint16_t));
}

// Random bits, and numbers next to and between those of 16 bits, where rounding is decided.
static void wire_values(float *x, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)random_bits();
        memcpy(&x[i], &bits, sizeof(bits));
        if (i % 3 == 1) x[i] = f16_to_f32((uint16_t)bits);
        if (i % 3 == 2) {
            uint32_t edge = (bits & 0xffff0000u) + 0x8000u + i % 5 - 2;
            if (i % 2 == 1) edge = (0x38000000u + (bits & 0x0fffe000u)) + 0x1000u + i % 5 - 2;
            memcpy(&x[i], &edge, sizeof(edge));
        }
    }
}

static void to_wire_rounds_to_nearest_even(void **state) {
    (void)state;
    enum { COUNT = 100003 };
    float *x = guarded_alloc(COUNT * sizeof(float));
    uint16_t *wire = guarded_alloc(COUNT * sizeof(uint16_t));
    for (VARIANTS(variant)) {
        struct backend *backend = backend_make(*variant, 2);
        wire_values(x, COUNT);
        backend_to_wire(backend, x, COUNT, DTYPE_BF16, wire);
        for (uint32_t i = 0; i < COUNT; i++) {
            assert_int_equal(wire[i], f32_to_bf16(x[i]));
        }
        backend_to_wire(backend, x, COUNT, DTYPE_F16, wire);
        for (uint32_t i = 0; i < COUNT; i++) {
            assert_int_equal(wire[i], f32_to_f16(x[i]));
        }
        float copy[37];
        backend_to_wire(backend, x, 37, DTYPE_F32, copy);
        assert_memory_equal(copy, x, sizeof(copy));
        backend_close(backend);
    }
    guarded_free(wire, COUNT * sizeof(uint16_t));
    guarded_free(x, COUNT * sizeof(float));
}

// -- the backend itself ---------------------------------------------------------------------------

static void open_refuses_unknown_variants_and_names_the_known(void **state) {
    (void)state;
    struct backend_config config = {.variant = "abacus", .thread_count = 1};
    struct backend *backend = NULL;
    struct error error;
    assert_int_equal(backend_cpu_open(&config, &backend, &error), STATUS_UNSUPPORTED);
    assert_null(backend);
    assert_non_null(strstr(error.text, "abacus"));
    assert_non_null(strstr(error.text, "portable"));
    assert_non_null(strstr(error.text, "reference"));
}

static void auto_is_the_best_variant_and_all_cores(void **state) {
    (void)state;
    struct backend *backend = backend_make("auto", 0);
    // On some processors the first, which rounds to bf16 by instructions of its own, is slow.
    const char *best = backend_cpu_variants()[0];
    if (strcmp(backend_variant(backend), best) != 0) {
        assert_string_equal(best, "avx512bf16");
        assert_string_equal(backend_variant(backend), backend_cpu_variants()[1]);
    }
    assert_true(backend_thread_count(backend) >= 1);
    backend_close(backend);
    backend_close(NULL);
}

static void alloc_is_zeroed_and_aligned(void **state) {
    (void)state;
    struct backend *backend = backend_make("portable", 1);
    char *memory = backend_alloc(backend, 100001);
    assert_non_null(memory);
    assert_int_equal((uintptr_t)memory % 64, 0);
    for (size_t i = 0; i < 100001; i++) {
        assert_int_equal(memory[i], 0);
    }
    backend_free(backend, memory, 100001);
    backend_free(backend, NULL, 0);
    assert_null(backend_alloc(backend, SIZE_MAX / 2));
    backend_close(backend);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embed_copies_rows_of_the_table),
        cmocka_unit_test(rms_norm_scales_each_row_alone),
        cmocka_unit_test(add_rounds_the_sum_to_the_activation_dtype),
        cmocka_unit_test(exp_is_within_two_units_in_the_last_place),
        cmocka_unit_test(swiglu_is_accurate_over_the_whole_range),
        cmocka_unit_test(from_wire_widens_every_value),
        cmocka_unit_test(to_wire_rounds_to_nearest_even),
        cmocka_unit_test(open_refuses_unknown_variants_and_names_the_known),
        cmocka_unit_test(auto_is_the_best_variant_and_all_cores),
        cmocka_unit_test(alloc_is_zeroed_and_aligned),
    };
    return cmocka_run_group_tests(tests, fixture_seed, NULL);
}
