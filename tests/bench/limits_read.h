// limits_read: ways of reading memory in order, on the calling thread.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct read_pattern {
    uint32_t stream_count; // 1, 4 or 8 rows that follow each other in memory are read together
    uint32_t row_bytes;    // of each; a power of two, and so many of them READ_BLOCK_BYTES_MAX
    uint32_t ahead_bytes;  // how far ahead lines are asked for, and twice that; 0: not at all
};

enum { READ_BLOCK_BYTES_MAX = 1 << 20 };

extern const struct read_pattern read_patterns[];
uint32_t read_pattern_count(void);

// Reads size_bytes, a multiple of READ_BLOCK_BYTES_MAX, at a multiple of 64.
void read_run(const struct read_pattern *pattern, const char *data, size_t size_bytes);
