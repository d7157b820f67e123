#include "tests/bench/limits_peak.h"

#include <stddef.h>

enum { SUM_COUNT = 12 }; // independent: a latency of 4 cycles on two units would need 8

#if defined(__x86_64__)

#define EACH_SUM(instruction, sum)                                                                 \
    instruction sum "0\n\t" instruction sum "1\n\t" instruction sum "2\n\t" instruction sum        \
                    "3\n\t" instruction sum "4\n\t" instruction sum "5\n\t" instruction sum        \
                    "6\n\t" instruction sum "7\n\t" instruction sum "8\n\t" instruction sum        \
                    "9\n\t" instruction sum "10\n\t" instruction sum "11\n\t"

// In assembly, because compilers keep so many sums in memory. Registers 12 and 13 hold the factors,
// each 32 bits of them alike. Needs no compiler flags: the caller knows that the processor has it.
#define PEAK_LOOP(name, instruction, sum, first, second)                                           \
    static void name(uint64_t round_count) {                                                       \
        const uint32_t factors[2] = {first, second};                                               \
        if (round_count == 0) return;                                                              \
        __asm__ volatile("vbroadcastss %1, " sum "12\n\t"                                          \
                         "vbroadcastss %2, " sum                                                   \
                         "13\n\t" EACH_SUM("vmovaps " sum "12, ", sum) "1:\n\t" EACH_SUM(          \
                             instruction " " sum "12, " sum "13, ", sum) "dec %0\n\t"              \
                                                                         "jnz 1b\n\t"              \
                                                                         "vzeroupper"              \
                         : "+r"(round_count)                                                       \
                         : "m"(factors[0]), "m"(factors[1])                                        \
                         : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",   \
                           "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13");                    \
    }

enum { F32_HALF = 0x3f000000, BF16_HALVES = 0x3f003f00, INT8_BYTES = 0x05030703 };

PEAK_LOOP(f32_avx512, "vfmadd132ps", "%%zmm", F32_HALF, F32_HALF) // sum = sum / 2 + 1/2
PEAK_LOOP(f32_avx2, "vfmadd132ps", "%%ymm", F32_HALF, F32_HALF)
PEAK_LOOP(bf16_avx512, "vdpbf16ps", "%%zmm", BF16_HALVES, BF16_HALVES)
PEAK_LOOP(int8_avx512, "vpdpbusd", "%%zmm", INT8_BYTES, INT8_BYTES)

#endif

// Plain C over lanes that the compiler turns into the vectors of the build's baseline.
static void f32_portable(uint64_t round_count) {
    enum { LANE_COUNT = 4 };
    float sums[SUM_COUNT][LANE_COUNT] = {{1}};
    for (uint64_t round = 0; round < round_count; round++) {
        for (int i = 0; i < SUM_COUNT; i++) {
            for (int lane = 0; lane < LANE_COUNT; lane++) {
#ifdef __FP_FAST_FMAF
                sums[i][lane] = __builtin_fmaf(sums[i][lane], 0.5f, 0.5f);
#else
                sums[i][lane] = sums[i][lane] * 0.5f + 0.5f;
#endif
            }
        }
    }
    __asm__ volatile("" : : "r"(sums) : "memory");
}

struct peak peak_find(enum limit limit) {
#if defined(__x86_64__)
    bool has_512 = __builtin_cpu_supports("avx512f");
    if (limit == LIMIT_BF16 && has_512 && __builtin_cpu_supports("avx512bf16"))
        return (struct peak){bf16_avx512, SUM_COUNT * 32 * 2};
    if (limit == LIMIT_INT8 && has_512 && __builtin_cpu_supports("avx512vnni"))
        return (struct peak){int8_avx512, SUM_COUNT * 64 * 2};
    if (limit == LIMIT_F32 && has_512) return (struct peak){f32_avx512, SUM_COUNT * 16 * 2};
    if (limit == LIMIT_F32 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return (struct peak){f32_avx2, SUM_COUNT * 8 * 2};
#endif
    if (limit == LIMIT_F32) return (struct peak){f32_portable, (double)SUM_COUNT * 4 * 2};
    return (struct peak){NULL, 0};
}
