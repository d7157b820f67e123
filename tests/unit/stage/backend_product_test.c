// Matrix products of every variant that this processor has, with inputs as they are and rounded,
// against formulas in double; and that a row's bits depend on nothing but the row.
#include "stage/cpu/kernels.h"
#include "tests/unit/stage/backend_fixture.h"

// int8, as backend.h says: groups of so many inputs have one scale.
enum { GROUP_INPUTS = 128 };

// A matrix as the product sees it: exact values of what it was rounded to.
struct exact {
    uint32_t row_count, column_count;
    double *values;
};

static struct exact exact_make(uint32_t row_count, uint32_t column_count) {
    struct exact exact = {row_count, column_count,
                          calloc((size_t)row_count * column_count, sizeof(double))};
    assert_non_null(exact.values);
    return exact;
}

// The group's largest magnitude becomes 127. Computed in f32, as the scales are.
static void group_round(double *values, size_t count) {
    float largest = 0;
    for (size_t i = 0; i < count; i++) {
        largest = fmaxf(largest, fabsf((float)values[i]));
    }
    float scale = largest / 127.0f, inverse = largest > 0 ? 127.0f / largest : 0;
    for (size_t i = 0; i < count; i++) {
        values[i] = (double)nearbyintf((float)values[i] * inverse) * (double)scale;
    }
}

static void exact_round(struct exact *exact, enum dtype dtype) {
    size_t width = exact->column_count;
    for (size_t i = 0; i < exact->row_count * width; i++) {
        if (dtype != DTYPE_I8) {
            exact->values[i] = (double)value_rounded((float)exact->values[i], dtype);
        } else if (i % width % GROUP_INPUTS == 0) {
            size_t left = width - i % width;
            group_round(&exact->values[i], left < GROUP_INPUTS ? left : GROUP_INPUTS);
        }
    }
}

static struct exact exact_of_tensor(const struct tensor *tensor) {
    struct exact exact = exact_make(tensor->row_count, tensor->column_count);
    for (size_t i = 0; i < (size_t)tensor->row_count * tensor->column_count; i++) {
        exact.values[i] = (double)value_at(tensor->data, tensor->dtype, i);
    }
    return exact;
}

static struct exact exact_of_rows(const float *x, uint32_t row_count, uint32_t column_count) {
    struct exact exact = exact_make(row_count, column_count);
    for (size_t i = 0; i < (size_t)row_count * column_count; i++) {
        exact.values[i] = (double)x[i];
    }
    return exact;
}

// A kind of product: the dtype of the weights in the file, whether they are quantized, and what
// inputs are rounded to.
struct kind {
    enum dtype weight_dtype;
    bool is_quantized;
    enum dtype x_dtype;
};

static const struct kind kinds[] = {
    {DTYPE_F32, false, DTYPE_F32},   {DTYPE_BF16, false, DTYPE_F32}, {DTYPE_F16, false, DTYPE_F32},
    {DTYPE_BF16, false, DTYPE_BF16}, {DTYPE_F16, false, DTYPE_BF16}, {DTYPE_F32, false, DTYPE_BF16},
    {DTYPE_BF16, true, DTYPE_I8},    {DTYPE_F16, true, DTYPE_F32},   {DTYPE_F32, true, DTYPE_I8},
    {DTYPE_BF16, true, DTYPE_F32},
};
enum { KIND_COUNT = sizeof(kinds) / sizeof(kinds[0]) };

// The weights as backend_linear() takes them; `memory` of quantized ones is freed by the caller.
static struct tensor operand_make(struct backend *backend, const struct kind *kind,
                                  const struct tensor *weight, void **memory_out,
                                  size_t *bytes_out) {
    *memory_out = NULL;
    *bytes_out = 0;
    if (!kind->is_quantized) return *weight;
    *bytes_out = backend_quantized_bytes(weight->row_count, weight->column_count);
    *memory_out = guarded_alloc(*bytes_out);
    return backend_quantize(backend, weight, *memory_out);
}

static void operand_free(void *memory, size_t size_bytes) {
    if (memory != NULL) guarded_free(memory, size_bytes);
}

static struct backend *product_backend(const char *variant, uint32_t thread_count) {
    struct backend *backend = backend_make(variant, thread_count);
    struct error error;
    assert_int_equal(backend_reserve(backend, 400, 14000, &error), STATUS_OK);
    return backend;
}

// A sum of n products in f32 is within (n + 2) 2^-24 of the products' absolute sum; lanes make it
// shorter, never longer.
static void product_compare(const struct exact *weight, const struct tensor *bias,
                            const struct exact *x, const float *out, uint32_t out_stride) {
    uint32_t width = weight->column_count;
    for (uint32_t r = 0; r < x->row_count; r++) {
        for (uint32_t o = 0; o < weight->row_count; o++) {
            double sum = 0, magnitude = 0;
            for (uint32_t i = 0; i < width; i++) {
                double product =
                    x->values[(size_t)r * width + i] * weight->values[(size_t)o * width + i];
                sum += product;
                magnitude += fabs(product);
            }
            if (bias->data != NULL) {
                double value = (double)value_at(bias->data, bias->dtype, o);
                sum += value;
                magnitude += fabs(value);
            }
            double bound = (width / 4.0 + 8) * 0x1p-24 * magnitude;
            assert_true(fabs((double)out[(size_t)r * out_stride + o] - sum) <= bound);
        }
    }
}

static void product_check(struct backend *backend, const struct kind *kind, uint32_t row_count,
                          uint32_t inputs, uint32_t outputs) {
    struct tensor weight = tensor_random(kind->weight_dtype, outputs, inputs);
    struct tensor bias = {0};
    if (random_count(0, 1) == 1) {
        bias = tensor_random(fixture_dtypes[random_count(0, 2)], 1, outputs);
    }
    uint32_t stride = outputs + random_count(0, 3);
    float *x = guarded_random((size_t)row_count * inputs);
    size_t out_bytes = ((size_t)(row_count - 1) * stride + outputs) * sizeof(float);
    float *out = guarded_alloc(out_bytes);
    for (size_t i = 0; i < out_bytes / sizeof(float); i++) {
        out[i] = 12345.0f;
    }
    void *memory;
    size_t memory_bytes;
    struct tensor operand = operand_make(backend, kind, &weight, &memory, &memory_bytes);
    backend_linear(backend, &operand, &bias, x, kind->x_dtype, row_count, out, stride);
    struct exact exact_weight = exact_of_tensor(&weight);
    struct exact exact_x = exact_of_rows(x, row_count, inputs);
    if (kind->is_quantized) exact_round(&exact_weight, DTYPE_I8);
    exact_round(&exact_x, kind->x_dtype);
    product_compare(&exact_weight, &bias, &exact_x, out, stride);
    for (uint32_t r = 0; r + 1 < row_count; r++) {
        for (uint32_t o = outputs; o < stride; o++) {
            assert_true(out[(size_t)r * stride + o] == 12345.0f);
        }
    }
    free(exact_weight.values);
    free(exact_x.values);
    operand_free(memory, memory_bytes);
    guarded_free(out, out_bytes);
    guarded_free(x, (size_t)row_count * inputs * sizeof(float));
    if (bias.data != NULL) tensor_free(&bias);
    tensor_free(&weight);
}

static void linear_is_the_product_of_every_shape_and_dtype(void **state) {
    (void)state;
    for (VARIANTS(variant)) {
        struct backend *backend = product_backend(*variant, 3);
        for (size_t k = 0; k < KIND_COUNT; k++) {
            for (uint32_t row_count = 1; row_count <= 17; row_count++) {
                uint32_t inputs = random_count(1, 300), outputs = random_count(1, 70);
                product_check(backend, &kinds[k], row_count, inputs, outputs);
            }
            product_check(backend, &kinds[k], 1, 1, 1);
            product_check(backend, &kinds[k], 40, 64, 48);
            product_check(backend, &kinds[k], 100, 37, 21);
            // More rows than are packed at a time, and more inputs than one pass takes.
            product_check(backend, &kinds[k], 200, 40, 37);
            product_check(backend, &kinds[k], 26, 6144 + 13, 5);
        }
        backend_close(backend);
    }
}

// Any cut of the rows into calls, and any number of threads, gives the bytes of one row at a time.
static void product_cut(const char *variant, const struct kind *kind, const struct tensor *weight,
                        const struct tensor *bias, const float *x, uint32_t row_count,
                        const float *expected) {
    uint32_t inputs = weight->column_count, outputs = weight->row_count;
    struct backend *backend = product_backend(variant, random_count(1, 5));
    float *out = calloc((size_t)row_count * outputs, sizeof(float));
    assert_non_null(out);
    for (uint32_t row = 0; row < row_count;) {
        uint32_t count = random_count(1, row_count - row);
        backend_linear(backend, weight, bias, x + (size_t)row * inputs, kind->x_dtype, count,
                       out + (size_t)row * outputs, outputs);
        row += count;
    }
    assert_memory_equal(out, expected, (size_t)row_count * outputs * sizeof(float));
    free(out);
    backend_close(backend);
}

static void product_cuts(const char *variant, const struct kind *kind, bool is_wide) {
    struct backend *one = product_backend(variant, 1);
    uint32_t inputs = is_wide ? random_count(6150, 13000) : random_count(1, 700);
    uint32_t outputs = is_wide ? random_count(1, 20) : random_count(1, 90);
    uint32_t row_count = random_count(1, is_wide ? 60 : 230);
    struct tensor source = tensor_random(kind->weight_dtype, outputs, inputs);
    struct tensor bias = tensor_random(DTYPE_F32, 1, outputs);
    float *x = guarded_random((size_t)row_count * inputs);
    float *expected = calloc((size_t)row_count * outputs, sizeof(float));
    assert_non_null(expected);
    void *memory;
    size_t memory_bytes;
    struct tensor weight = operand_make(one, kind, &source, &memory, &memory_bytes);
    for (uint32_t r = 0; r < row_count; r++) {
        backend_linear(one, &weight, &bias, x + (size_t)r * inputs, kind->x_dtype, 1,
                       expected + (size_t)r * outputs, outputs);
    }
    for (int cut = 0; cut < 3; cut++) {
        product_cut(variant, kind, &weight, &bias, x, row_count, expected);
    }
    operand_free(memory, memory_bytes);
    free(expected);
    guarded_free(x, (size_t)row_count * inputs * sizeof(float));
    tensor_free(&bias);
    tensor_free(&source);
    backend_close(one);
}

static void linear_row_never_depends_on_other_rows_or_threads(void **state) {
    (void)state;
    for (VARIANTS(variant)) {
        for (size_t k = 0; k < KIND_COUNT; k++) {
            product_cuts(*variant, &kinds[k], false);
            product_cuts(*variant, &kinds[k], false);
            if (k % 3 == 0) product_cuts(*variant, &kinds[k], true);
        }
    }
}

// Integer sums are exact: quantized weights are the same bytes for every variant, and products of
// those with the same vector length are the same bits, whatever multiplies.
static void quantize_gives_the_same_bytes_with_every_variant(void **state) {
    (void)state;
    uint32_t outputs = 37, inputs = 333;
    struct tensor weight = tensor_random(DTYPE_BF16, outputs, inputs);
    size_t size_bytes = backend_quantized_bytes(outputs, inputs);
    void *first = NULL;
    for (VARIANTS(variant)) {
        struct backend *backend = backend_make(*variant, 2);
        void *memory = calloc(1, size_bytes);
        assert_non_null(memory);
        struct tensor quantized = backend_quantize(backend, &weight, memory);
        assert_int_equal(quantized.dtype, DTYPE_I8);
        assert_int_equal(quantized.row_count, outputs);
        assert_int_equal(quantized.column_count, inputs);
        if (first == NULL) {
            first = memory;
        } else {
            assert_memory_equal(memory, first, size_bytes);
            free(memory);
        }
        backend_close(backend);
    }
    free(first);
    tensor_free(&weight);
}

#if defined(__x86_64__)
// AVX-512 without VNNI has its own way to multiply bytes, which backends do not choose here.
static void int8_products_without_vnni_are_the_same_bits(void **state) {
    (void)state;
    const struct kernels *kernels = &kernels_avx512;
    if (!kernels->is_supported() || !__builtin_cpu_supports("avx512vnni")) {
        skip();
        return;
    }
    struct backend *backend = product_backend("avx512", 1);
    for (uint32_t row_count = 1; row_count <= 20; row_count++) {
        uint32_t inputs = random_count(1, 600), outputs = random_count(1, 90);
        struct tensor source = tensor_random(DTYPE_BF16, outputs, inputs);
        void *memory;
        size_t memory_bytes;
        const struct kind kind = {DTYPE_BF16, true, DTYPE_I8};
        struct tensor weight = operand_make(backend, &kind, &source, &memory, &memory_bytes);
        float *x = guarded_random((size_t)row_count * inputs);
        size_t size_bytes = (size_t)row_count * outputs * sizeof(float);
        float *out = guarded_alloc(size_bytes), *expected = guarded_alloc(size_bytes);
        size_t packed_bytes = row_count * i8_group_count(inputs) * sizeof(struct i8_inputs);
        void *packed = guarded_alloc(packed_bytes);
        const struct tensor bias = {0};
        struct linear_job job = {&weight, &bias, x, row_count, out, outputs, packed, packed};
        kernels->pack_i8(&job, 0, row_count);
        kernels->linear_i8(&job, 0, outputs, NULL);
        backend_linear(backend, &weight, &bias, x, DTYPE_I8, row_count, expected, outputs);
        assert_memory_equal(out, expected, size_bytes);
        guarded_free(packed, packed_bytes);
        guarded_free(expected, size_bytes);
        guarded_free(out, size_bytes);
        guarded_free(x, (size_t)row_count * inputs * sizeof(float));
        operand_free(memory, memory_bytes);
        tensor_free(&source);
    }
    backend_close(backend);
}
#endif

// What is not finite must stay visible: the sampler refuses such logits.
static void int8_rows_that_are_not_finite_give_nan(void **state) {
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (VARIANTS(variant)) {
        struct backend *backend = product_backend(*variant, 1);
        struct tensor weight = tensor_random(DTYPE_BF16, 20, 200);
        void *memory;
        size_t memory_bytes;
        const struct kind kind = {DTYPE_BF16, true, DTYPE_I8};
        struct tensor operand = operand_make(backend, &kind, &weight, &memory, &memory_bytes);
        float *x = guarded_random(3 * 200);
        float out[3][20];
        for (size_t b = 0; b < 3; b++) {
            x[200 + 60 * b] = bad[b];
            backend_linear(backend, &operand, &(struct tensor){0}, x, DTYPE_I8, 3, out[0], 20);
            for (int o = 0; o < 20; o++) {
                assert_true(isfinite(out[0][o]));
                assert_true(isnan(out[1][o]));
                assert_true(isfinite(out[2][o]));
            }
            x[200 + 60 * b] = 0.5f;
        }
        guarded_free(x, 3 * 200 * sizeof(float));
        operand_free(memory, memory_bytes);
        tensor_free(&weight);
        backend_close(backend);
    }
}

static void int8_of_zeros_and_tiny_values_is_zero(void **state) {
    (void)state;
    for (VARIANTS(variant)) {
        struct backend *backend = product_backend(*variant, 1);
        struct tensor weight = tensor_random(DTYPE_F32, 16, 256);
        void *memory;
        size_t memory_bytes;
        const struct kind kind = {DTYPE_F32, true, DTYPE_I8};
        struct tensor operand = operand_make(backend, &kind, &weight, &memory, &memory_bytes);
        float x[256] = {[3] = 0x1p-140f, [200] = -0x1p-110f}, out[16];
        backend_linear(backend, &operand, &(struct tensor){0}, x, DTYPE_I8, 1, out, 16);
        for (int o = 0; o < 16; o++) {
            assert_true(out[o] == 0.0f);
        }
        operand_free(memory, memory_bytes);
        tensor_free(&weight);
        backend_close(backend);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_is_the_product_of_every_shape_and_dtype),
        cmocka_unit_test(linear_row_never_depends_on_other_rows_or_threads),
        cmocka_unit_test(quantize_gives_the_same_bytes_with_every_variant),
#if defined(__x86_64__)
        cmocka_unit_test(int8_products_without_vnni_are_the_same_bits),
#endif
        cmocka_unit_test(int8_rows_that_are_not_finite_give_nan),
        cmocka_unit_test(int8_of_zeros_and_tiny_values_is_zero),
    };
    return cmocka_run_group_tests(tests, fixture_seed, NULL);
}
