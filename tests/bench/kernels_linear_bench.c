// Matrix products of the 1.1B shape, as a model asks for them: the weights come from memory, not
// from a cache, since between two uses of a matrix all the others were read.
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "tests/bench/kernels_bench.h"

enum {
    ROW_COUNT_MAX = 512,
    COPIES_BYTES = 512 << 20, // of the copies that take turns
};

struct shape {
    uint32_t input_count, output_count;
};

static const struct shape shapes[] = {
    {2048, 2048}, {2048, 256}, {2048, 5632}, {5632, 2048}, {2048, 32000},
};
static const uint32_t row_counts[] = {1, 4, 16, 64, 256, ROW_COUNT_MAX};

enum {
    SHAPE_COUNT = sizeof(shapes) / sizeof(shapes[0]),
    ROWS_COUNT = sizeof(row_counts) / sizeof(row_counts[0]),
    INPUT_COUNT_MAX = 5632,
    OUTPUT_COUNT_MAX = 32000,
};

struct linear_bench {
    const struct kernels_bench *bench;
    struct tensor weight; // its data is set for each call
    char *copies;
    size_t copy_bytes;
    uint64_t copy_count;
    uint32_t row_count;
    float *x;
    float *out;
};

static void linear_call(void *ctx, uint64_t index) {
    struct linear_bench *linear = ctx;
    linear->weight.data = linear->copies + index % linear->copy_count * linear->copy_bytes;
    backend_linear(linear->bench->backend, &linear->weight, &(struct tensor){0}, linear->x,
                   linear->bench->x_dtype, linear->row_count, linear->out,
                   linear->weight.row_count);
}

static struct work linear_work(const struct linear_bench *linear) {
    double weight_count = (double)linear->weight.row_count * linear->weight.column_count;
    return (struct work){.bytes = (double)linear->copy_bytes,
                         .operations = 2 * weight_count * linear->row_count};
}

static json_t *linear_report(const struct linear_bench *linear, const struct measurement *m) {
    uint32_t inputs = linear->weight.column_count, outputs = linear->weight.row_count;
    printf("%5u x %5u  %4u ", inputs, outputs, linear->row_count);
    measurement_print(m);
    json_t *json = measurement_json(m);
    json_add(json, "inputs", json_integer(inputs));
    json_add(json, "outputs", json_integer(outputs));
    json_add(json, "rows", json_integer(linear->row_count));
    return json;
}

// Random values in every copy; int8 is made once and then copied.
static void copies_fill(struct linear_bench *linear, struct shape shape) {
    struct backend *backend = linear->bench->backend;
    enum dtype dtype = linear->weight.dtype == DTYPE_I8 ? DTYPE_BF16 : linear->weight.dtype;
    size_t count = (size_t)shape.output_count * shape.input_count;
    struct tensor source = {bench_random(backend, dtype, count), dtype, shape.output_count,
                            shape.input_count};
    memcpy(linear->copies, source.data, linear->copy_bytes);
    if (linear->weight.dtype == DTYPE_I8) {
        struct tensor quantized = backend_quantize(backend, &source, linear->copies);
        CHECK(quantized.data == linear->copies);
    }
    for (uint64_t i = 1; i < linear->copy_count; i++)
        memcpy(linear->copies + i * linear->copy_bytes, linear->copies, linear->copy_bytes);
    bench_random_free(backend, (void *)source.data, dtype, count);
}

static void shape_set(struct linear_bench *linear, struct shape shape) {
    enum dtype dtype = linear->bench->weight_dtype;
    linear->weight = (struct tensor){
        .dtype = dtype, .row_count = shape.output_count, .column_count = shape.input_count};
    if (dtype == DTYPE_I8)
        linear->copy_bytes = backend_quantized_bytes(shape.output_count, shape.input_count);
    else
        linear->copy_bytes =
            (size_t)shape.output_count * shape.input_count * dtype_size_bytes(dtype);
    linear->copy_count = COPIES_BYTES / linear->copy_bytes;
    CHECK(linear->copy_count > 0);
    copies_fill(linear, shape);
}

static void shape_run(struct linear_bench *linear, json_t *points) {
    for (uint32_t r = 0; r < ROWS_COUNT; r++) {
        linear->row_count = row_counts[r];
        struct work work = linear_work(linear);
        struct measure_plan plan = {.limits = linear->bench->limits,
                                    .unit = linear->bench->unit,
                                    .pieces = &work,
                                    .piece_count = 1,
                                    .is_short = true,
                                    .seconds = linear->bench->seconds,
                                    .call = linear_call,
                                    .ctx = linear};
        struct measurement m;
        measure(&plan, &m);
        CHECK(json_array_append_new(points, linear_report(linear, &m)) == 0);
    }
}

json_t *bench_linear(const struct kernels_bench *bench) {
    size_t x_count = (size_t)ROW_COUNT_MAX * INPUT_COUNT_MAX;
    size_t out_count = (size_t)ROW_COUNT_MAX * OUTPUT_COUNT_MAX;
    struct error error;
    struct linear_bench linear = {
        .bench = bench,
        .copies = backend_alloc(bench->backend, COPIES_BYTES),
        .x = bench_random(bench->backend, DTYPE_F32, x_count),
        .out = bench_random(bench->backend, DTYPE_F32, out_count),
    };
    json_t *points = json_array();
    CHECK(points != NULL && linear.copies != NULL);
    CHECK(backend_reserve(bench->backend, ROW_COUNT_MAX, INPUT_COUNT_MAX, &error) == STATUS_OK);
    printf(
        "\nlinear, %s weights, inputs as %s, unit %s (shares in %%; medians, and the roofline also "
        "of the bests)\ninputs x outputs rows %s\n",
        dtype_name(bench->weight_dtype), dtype_name(bench->x_dtype), limits_name(bench->unit),
        measurement_heading);
    for (uint32_t s = 0; s < SHAPE_COUNT; s++) {
        shape_set(&linear, shapes[s]);
        shape_run(&linear, points);
    }
    bench_random_free(bench->backend, linear.out, DTYPE_F32, out_count);
    bench_random_free(bench->backend, linear.x, DTYPE_F32, x_count);
    backend_free(bench->backend, linear.copies, COPIES_BYTES);
    return points;
}
