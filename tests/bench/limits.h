// limits: what this machine can do, measured in the process that holds something against it: memory
// read and the arithmetic peaks, by threads of their own, each pinned to a core.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum limit {
    LIMIT_READ, // bytes/s of memory read, from data well beyond the caches
    LIMIT_F32,  // FLOP/s of f32 multiply-adds, an FMA counted as two
    LIMIT_BF16, // FLOP/s of bf16 pairs summed in f32 (vdpbf16ps)
    LIMIT_INT8, // operations/s of int8 quadruples summed in int32 (vpdpbusd)
    LIMIT_COUNT,
};

struct limits;

// Finds the way of reading that is fastest here, which takes about a second. Call it before
// anything pins the calling thread: the cores are those that the caller may use then.
// STATUS_INVALID (more threads than cores), STATUS_NO_MEMORY.
MUST_USE enum status limits_open(uint32_t thread_count, struct limits **limits_out,
                                 struct error *error);
void limits_close(struct limits *limits); // NULL allowed

// Whether this processor, and this build for it, has the unit.
bool limits_has(enum limit limit);
// Measures once, for 10 to 30 ms; 0 for a unit that is missing.
double limits_measure(struct limits *limits, enum limit limit);

// "read", "f32", "bf16", "int8".
const char *limits_name(enum limit limit);
// Cores that this process may use.
uint32_t limits_core_count(void);

// The ways of reading, and the best of each when limits_open() tried them.
uint32_t limits_pattern_count(void);
double limits_pattern(const struct limits *limits, uint32_t index, char *name_out,
                      size_t name_bytes);
