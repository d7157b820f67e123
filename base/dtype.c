#include "base/dtype.h"

size_t dtype_size_bytes(enum dtype dtype) {
    switch (dtype) {
    case DTYPE_F32:
        return 4;
    case DTYPE_BF16:
    case DTYPE_F16:
        return 2;
    case DTYPE_I8:
    case DTYPE_NONE:
        break;
    }
    return 0;
}

const char *dtype_name(enum dtype dtype) {
    switch (dtype) {
    case DTYPE_F32:
        return "f32";
    case DTYPE_BF16:
        return "bf16";
    case DTYPE_F16:
        return "f16";
    case DTYPE_I8:
        return "i8";
    case DTYPE_NONE:
        break;
    }
    return "none";
}

bool dtype_parse(const char *text, enum dtype *dtype_out) {
    static const enum dtype all[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        if (strcmp(text, dtype_name(all[i])) != 0) continue;
        *dtype_out = all[i];
        return true;
    }
    return false;
}

float f16_to_f32(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    uint32_t exponent = (bits >> 10) & 0x1fu;
    uint32_t fraction = bits & 0x3ffu;
    uint32_t wide;
    if (exponent == 0x1f) {
        wide = sign | 0x7f800000u | (fraction << 13);
    } else if (exponent != 0) {
        wide = sign | ((exponent + 112) << 23) | (fraction << 13);
    } else if (fraction == 0) {
        wide = sign;
    } else {
        int shift = __builtin_clz(fraction) - 21;
        fraction = (fraction << shift) & 0x3ffu;
        wide = sign | ((uint32_t)(113 - shift) << 23) | (fraction << 13);
    }
    float value;
    memcpy(&value, &wide, sizeof(value));
    return value;
}

uint16_t f32_to_f16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7e00u;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u; // 65520 and above round to infinity
    if (magnitude < 0x33000001u) return sign;            // 2^-25 and below round to zero
    int exponent = (int)(magnitude >> 23) - 127;
    uint32_t fraction = (magnitude & 0x7fffffu) | 0x800000u;
    int shift = exponent < -14 ? 13 + (-14 - exponent) : 13;
    uint32_t kept = fraction >> shift;
    uint32_t lost = fraction & ((1u << shift) - 1);
    uint32_t half = 1u << (shift - 1);
    if (lost > half || (lost == half && (kept & 1u))) kept++;
    // A subnormal that rounds up to 0x400 is the smallest normal number by the same bits.
    if (exponent < -14) return sign | (uint16_t)kept;
    return sign | (uint16_t)(((uint32_t)(exponent + 14) << 10) + kept);
}
