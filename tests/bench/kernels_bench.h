// kernels_bench: what the parts of the benchmark of the kernels share.
#pragma once

#include "stage/backend.h"
#include "tests/bench/measure.h"

struct kernels_bench {
    struct backend *backend;
    struct limits *limits;
    enum dtype weight_dtype; // DTYPE_I8: made with backend_quantize()
    enum dtype x_dtype;      // what products round their inputs to
    enum limit unit;         // what computes such products here
    enum dtype kv_dtype;
    double seconds; // for each point
};

// Each prints its table as it goes, and gives a JSON array with an object for each point.
json_t *bench_linear(const struct kernels_bench *bench);
json_t *bench_attention(const struct kernels_bench *bench);
json_t *bench_elements(const struct kernels_bench *bench);

// `count` numbers in -1 .. 1 of dtype, the same in every run. Aborts when there is no memory.
void *bench_random(struct backend *backend, enum dtype dtype, size_t count);
void bench_random_free(struct backend *backend, void *data, enum dtype dtype, size_t count);
