// dtype: number formats of weights, activations and KV cells, and exact conversions between them.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/status.h"

// The values cross the wire (frame header, control messages): never renumber.
enum dtype {
    DTYPE_NONE = 0,
    DTYPE_F32 = 1,
    DTYPE_BF16 = 2,
    DTYPE_F16 = 3,
    DTYPE_I8 = 4, // with scales, inside a stage only: never in a frame or a file
};

// 4, 2 or 2; 0 for DTYPE_I8, which is no element by itself, DTYPE_NONE and unknown values.
size_t dtype_size_bytes(enum dtype dtype);
// "f32", "bf16", "f16", "i8"; "none" otherwise.
const char *dtype_name(enum dtype dtype);
// Accepts "f32", "bf16", "f16". False for anything else.
MUST_USE bool dtype_parse(const char *text, enum dtype *dtype_out);

static inline float bf16_to_f32(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof(value));
    return value;
}

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
static inline uint16_t f32_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u);
    bits += 0x7fffu + ((bits >> 16) & 1u);
    return (uint16_t)(bits >> 16);
}

// IEEE 754 binary16, with subnormals; f32_to_f16 rounds to nearest, ties to even.
float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);
