// Built with -O3, so that the streams of a pattern are unrolled.
#include "tests/bench/limits_read.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))

enum { LINE_BYTES = 64, SECOND_LEVEL = 2 };

typedef uint64_t line __attribute__((vector_size(LINE_BYTES)));

const struct read_pattern read_patterns[] = {
    {1, 4096, 0},     {1, 4096, 1024}, {4, 4096, 0},      {4, 4096, 16384}, {4, 65536, 0},
    {4, 65536, 1024}, {4, 262144, 0},  {4, 262144, 1024}, {8, 65536, 1024},
};

uint32_t read_pattern_count(void) {
    return sizeof(read_patterns) / sizeof(read_patterns[0]);
}

static ALWAYS_INLINE void stream_read(const struct read_pattern *pattern, uint32_t stream_count,
                                      const char *data, size_t size_bytes) {
    size_t row_bytes = pattern->row_bytes, ahead_bytes = pattern->ahead_bytes;
    size_t block_bytes = row_bytes * stream_count;
    line sum = {0};
    for (size_t block = 0; block + block_bytes <= size_bytes; block += block_bytes) {
        for (size_t i = 0; i < row_bytes; i += LINE_BYTES) {
            for (uint32_t s = 0; s < stream_count; s++) {
                const char *at = data + block + s * row_bytes + i;
                sum ^= *(const line *)at;
                // Numbers, not pointers: behind the end they point nowhere, and nothing happens.
                uintptr_t ahead = (uintptr_t)at + ahead_bytes;
                if (ahead_bytes == 0) continue;
                __builtin_prefetch((const void *)ahead, 0, SECOND_LEVEL);
                __builtin_prefetch((const void *)(ahead + ahead_bytes), 0, SECOND_LEVEL);
            }
        }
    }
    __asm__ volatile("" : : "r"(&sum) : "memory");
}

static ALWAYS_INLINE void pattern_read(const struct read_pattern *pattern, const char *data,
                                       size_t size_bytes) {
    if (pattern->stream_count == 1) stream_read(pattern, 1, data, size_bytes);
    if (pattern->stream_count == 4) stream_read(pattern, 4, data, size_bytes);
    if (pattern->stream_count == 8) stream_read(pattern, 8, data, size_bytes);
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void read_avx512(const struct read_pattern *pattern,
                                                           const char *data, size_t size_bytes) {
    pattern_read(pattern, data, size_bytes);
}

__attribute__((target("avx2"))) static void read_avx2(const struct read_pattern *pattern,
                                                      const char *data, size_t size_bytes) {
    pattern_read(pattern, data, size_bytes);
}
#endif

void read_run(const struct read_pattern *pattern, const char *data, size_t size_bytes) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        read_avx512(pattern, data, size_bytes);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        read_avx2(pattern, data, size_bytes);
        return;
    }
#endif
    pattern_read(pattern, data, size_bytes);
}
