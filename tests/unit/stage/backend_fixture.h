// backend_fixture: what the backend's tests share: random numbers from a printed seed, and memory
// whose end is followed by a page that must not be touched.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "stage/backend.h"

static uint64_t fixture_state;

// SEED=n in the environment repeats a run.
static inline int fixture_seed(void **state) {
    (void)state;
    const char *text = getenv("SEED");
    fixture_state = text != NULL ? strtoull(text, NULL, 10) : (uint64_t)time(NULL);
    printf("SEED=%llu\n", (unsigned long long)fixture_state);
    return 0;
}

static inline uint64_t random_bits(void) {
    // splitmix64 (Steele et al. 2014)
    uint64_t z = fixture_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// In minimum .. maximum.
static inline uint32_t random_count(uint32_t minimum, uint32_t maximum) {
    return minimum + (uint32_t)(random_bits() % (maximum - minimum + 1));
}

// In -1 .. 1.
static inline float random_float(void) {
    return (float)((double)(int64_t)random_bits() * 0x1p-63);
}

// size_bytes that end where an unreadable page begins. Freed with guarded_free.
static inline void *guarded_alloc(size_t size_bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t whole = (size_bytes + page - 1) / page * page;
    char *memory =
        mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    assert_int_equal(mprotect(memory + whole, page, PROT_NONE), 0);
    return memory + whole - size_bytes;
}

static inline void guarded_free(void *data, size_t size_bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t whole = (size_bytes + page - 1) / page * page;
    assert_int_equal(munmap((char *)data - (whole - size_bytes), whole + page), 0);
}

static inline float *guarded_random(size_t count) {
    float *x = guarded_alloc(count * sizeof(float));
    for (size_t i = 0; i < count; i++) {
        x[i] = random_float();
    }
    return x;
}

static inline float value_at(const void *data, enum dtype dtype, size_t index) {
    if (dtype == DTYPE_BF16) return bf16_to_f32(((const uint16_t *)data)[index]);
    if (dtype == DTYPE_F16) return f16_to_f32(((const uint16_t *)data)[index]);
    return ((const float *)data)[index];
}

static inline float value_rounded(float value, enum dtype dtype) {
    if (dtype == DTYPE_BF16) return bf16_to_f32(f32_to_bf16(value));
    if (dtype == DTYPE_F16) return f16_to_f32(f32_to_f16(value));
    return value;
}

static inline struct tensor tensor_random(enum dtype dtype, uint32_t row_count,
                                          uint32_t column_count) {
    size_t count = (size_t)row_count * column_count;
    void *data = guarded_alloc(count * dtype_size_bytes(dtype));
    for (size_t i = 0; i < count; i++) {
        float value = random_float();
        if (dtype == DTYPE_BF16) {
            ((uint16_t *)data)[i] = f32_to_bf16(value);
        } else if (dtype == DTYPE_F16) {
            ((uint16_t *)data)[i] = f32_to_f16(value);
        } else {
            ((float *)data)[i] = value;
        }
    }
    return (struct tensor){data, dtype, row_count, column_count};
}

static inline void tensor_free(struct tensor *tensor) {
    size_t count = (size_t)tensor->row_count * tensor->column_count;
    guarded_free((void *)tensor->data, count * dtype_size_bytes(tensor->dtype));
}

static inline struct backend *backend_make(const char *variant, uint32_t thread_count) {
    struct backend_config config = {.variant = variant, .thread_count = thread_count};
    struct backend *backend;
    struct error error;
    assert_int_equal(backend_cpu_open(&config, &backend, &error), STATUS_OK);
    return backend;
}

static const enum dtype fixture_dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};

// A stack of backends for each variant of this processor: `for (VARIANTS(variant))`.
#define VARIANTS(name)                                                                             \
    const char *const *name = backend_cpu_variants();                                              \
    *name != NULL;                                                                                 \
    name++
