// Matrix products of the 1.1B shape, as a model asks for them: the weights come from memory, not
// from a cache, since between two uses of a matrix all the others were read.
#include <stdio.h>

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
    struct backend *backend;
    struct tensor weight; // its data is set for each call
    const char *copies;
    size_t copy_bytes;
    uint64_t copy_count;
    uint32_t row_count;
    const float *x;
    float *out;
};

static void linear_call(void *ctx, uint64_t index) {
    struct linear_bench *linear = ctx;
    linear->weight.data = linear->copies + index % linear->copy_count * linear->copy_bytes;
    backend_linear(linear->backend, &linear->weight, &(struct tensor){0}, linear->x,
                   linear->row_count, linear->out, linear->weight.row_count);
}

static struct work linear_work(const struct linear_bench *linear) {
    double weight_count = (double)linear->weight.row_count * linear->weight.column_count;
    return (struct work){.bytes = (double)linear->copy_bytes,
                         .operations = 2 * weight_count * linear->row_count,
                         .unit = LIMIT_F32};
}

static json_t *linear_report(const struct linear_bench *linear, const struct measurement *m) {
    uint32_t inputs = linear->weight.column_count, outputs = linear->weight.row_count;
    printf("%5u x %5u  %4u  %9.1f  %6.1f  %5.1f  %7.1f  %5.1f  %6.1f %6.1f\n", inputs, outputs,
           linear->row_count, measurement_seconds(m).median * 1e6,
           measurement_bytes_rate(m).median * 1e-9, measurement_share_of_read(m).median * 100,
           measurement_operations_rate(m).median * 1e-9, measurement_share_of_peak(m).median * 100,
           measurement_share(m).median * 100, measurement_share(m).best * 100);
    fflush(stdout);
    json_t *json = measurement_json(m);
    json_add(json, "inputs", json_integer(inputs));
    json_add(json, "outputs", json_integer(outputs));
    json_add(json, "rows", json_integer(linear->row_count));
    return json;
}

static void shape_set(struct linear_bench *linear, struct shape shape, enum dtype dtype) {
    linear->weight = (struct tensor){
        .dtype = dtype, .row_count = shape.output_count, .column_count = shape.input_count};
    linear->copy_bytes = (size_t)shape.output_count * shape.input_count * dtype_size_bytes(dtype);
    linear->copy_count = COPIES_BYTES / linear->copy_bytes;
    CHECK(linear->copy_count > 0);
}

json_t *bench_linear(const struct kernels_bench *bench) {
    size_t weight_count = COPIES_BYTES / dtype_size_bytes(bench->weight_dtype);
    size_t x_count = (size_t)ROW_COUNT_MAX * INPUT_COUNT_MAX;
    size_t out_count = (size_t)ROW_COUNT_MAX * OUTPUT_COUNT_MAX;
    void *copies = bench_random(bench->backend, bench->weight_dtype, weight_count);
    float *x = bench_random(bench->backend, DTYPE_F32, x_count);
    float *out = bench_random(bench->backend, DTYPE_F32, out_count);
    struct linear_bench linear = {.backend = bench->backend, .copies = copies, .x = x, .out = out};
    json_t *points = json_array();
    CHECK(points != NULL);
    printf("\nlinear, %s weights (shares in %%; medians, and the roofline also of the bests)\n"
           "inputs x outputs rows         us    GB/s  read   GFLOP/s    f32  roofline  best\n",
           dtype_name(bench->weight_dtype));
    for (uint32_t s = 0; s < SHAPE_COUNT; s++) {
        shape_set(&linear, shapes[s], bench->weight_dtype);
        for (uint32_t r = 0; r < ROWS_COUNT; r++) {
            linear.row_count = row_counts[r];
            struct work work = linear_work(&linear);
            struct measurement m;
            measure(bench->limits, bench->seconds, &work, linear_call, &linear, &m);
            CHECK(json_array_append_new(points, linear_report(&linear, &m)) == 0);
        }
    }
    bench_random_free(bench->backend, out, DTYPE_F32, out_count);
    bench_random_free(bench->backend, x, DTYPE_F32, x_count);
    bench_random_free(bench->backend, copies, bench->weight_dtype, weight_count);
    return points;
}
