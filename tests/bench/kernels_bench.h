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

// Does each operation on elements `call_count` times with ELEMENTS_COUNTED_ROWS rows and measures
// nothing, for a program that counts instructions (count.py); gives {"OPERATION": elements}, where
// OPERATION_call is the name of a function that does nothing else.
enum { ELEMENTS_COUNTED_ROWS = 16 };
json_t *bench_elements_calls(const struct kernels_bench *bench, uint64_t call_count);

// `count` numbers in -1 .. 1 of dtype, the same in every run. Aborts when there is no memory.
void *bench_random(struct backend *backend, enum dtype dtype, size_t count);
void bench_random_free(struct backend *backend, void *data, enum dtype dtype, size_t count);
