// kernels_vector: norms, activations and conversions of one variant, and its table.
//
// A lane computes its element alone, and the elements behind the last whole vector go through the
// same instructions, so an element's place cannot change its bits.
#include "stage/cpu/kernels_vector.h"

#include <math.h>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

#if defined(__AVX512F__)
void kernels_avx512bf16_linear_i8(const struct linear_job *job, uint32_t output_first,
                                  uint32_t output_end, void *scratch);
#endif

static bool variant_is_supported(void) {
#if defined(__AVX512BF16__)
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#elif defined(__AVX512F__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#elif defined(__AVX2__)
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
#else
    return true;
#endif
}

// Intel's processors with the instructions multiply pairs of bf16 at half the speed of f32
// (measured on the Sapphire Rapids kind), AMD's at twice.
static bool variant_is_slow(void) {
#if defined(__AVX512BF16__)
    return __builtin_cpu_is("intel");
#else
    return false;
#endif
}

// One accumulator: lane j sums the squares of elements j, j + LANES, ...
static float mean_square(const float *x, size_t width) {
    size_t i = 0;
    vf sum = vf_zero();
    for (; i + LANES <= width; i += LANES) {
        vf v = vf_load(x + i);
        sum = vf_fma(v, v, sum);
    }
    if (i < width) {
        vf v = vf_load_part(x + i, width - i);
        sum = vf_fma(v, v, sum);
    }
    return vf_sum(sum) / (float)width;
}

// out[r][c] = x[r][c] * scale[r] * weight[c], scale[r] = 1 / sqrt(mean(x[r]^2) + epsilon)
static void variant_rms_norm(const struct tensor *weight, float epsilon, const float *x,
                             uint32_t row_count, float *out) {
    size_t width = weight->column_count;
    for (uint32_t r = 0; r < row_count; r++, x += width, out += width) {
        vf scale = vf_set(1.0f / sqrtf(mean_square(x, width) + epsilon));
        size_t i = 0;
        for (; i + LANES <= width; i += LANES) {
            vf w = vf_load_as(weight->data, weight->dtype, i);
            vf_store(out + i, vf_mul(vf_mul(vf_load(x + i), scale), w));
        }
        if (i == width) continue;
        vf w = vf_load_part_as(weight->data, weight->dtype, i, width - i);
        vf v = vf_load_part(x + i, width - i);
        vf_store_part(out + i, vf_mul(vf_mul(v, scale), w), width - i);
    }
}

static ALWAYS_INLINE void add_as(float *x, const float *delta, size_t count, enum dtype dtype) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vf sum = vf_add(vf_load(x + i), vf_load(delta + i));
        vf_store(x + i, vf_round_to(sum, dtype));
    }
    if (i == count) return;
    size_t part = count - i;
    vf sum = vf_add(vf_load_part(x + i, part), vf_load_part(delta + i, part));
    vf_store_part(x + i, vf_round_to(sum, dtype), part);
}

static void variant_add(float *x, const float *delta, size_t count, enum dtype round_dtype) {
    if (round_dtype == DTYPE_BF16) {
        add_as(x, delta, count, DTYPE_BF16);
    } else if (round_dtype == DTYPE_F16) {
        add_as(x, delta, count, DTYPE_F16);
    } else {
        add_as(x, delta, count, DTYPE_F32);
    }
}

static void variant_rotate(const float *cosines, const float *sines, uint32_t half, float *x) {
    uint32_t j = 0;
    for (; j + LANES <= half; j += LANES) {
        vf cosine = vf_load(cosines + j), sine = vf_load(sines + j);
        vf a = vf_load(x + j), b = vf_load(x + j + half);
        vf_store(x + j, vf_sub(vf_mul(a, cosine), vf_mul(b, sine)));
        vf_store(x + j + half, vf_add(vf_mul(b, cosine), vf_mul(a, sine)));
    }
    for (; j < half; j++) {
        float a = x[j], b = x[j + half];
        x[j] = a * cosines[j] - b * sines[j];
        x[j + half] = b * cosines[j] + a * sines[j];
    }
}

static ALWAYS_INLINE vf swiglu(vf gate, vf up) {
    vf one = vf_set(1.0f);
    vf denominator = vf_add(one, vf_exp(vf_sub(vf_zero(), gate)));
    return vf_mul(vf_div(gate, denominator), up);
}

// out = gate / (1 + exp(-gate)) * up
static void variant_swiglu(const float *gate, const float *up, size_t count, float *out) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vf_store(out + i, swiglu(vf_load(gate + i), vf_load(up + i)));
    }
    if (i == count) return;
    size_t part = count - i;
    vf_store_part(out + i, swiglu(vf_load_part(gate + i, part), vf_load_part(up + i, part)), part);
}

static void variant_widen(const void *x, enum dtype dtype, size_t count, float *out) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vf_store(out + i, vf_load_as(x, dtype, i));
    }
    if (i < count) vf_store_part(out + i, vf_load_part_as(x, dtype, i, count - i), count - i);
}

static void variant_narrow(const float *x, size_t count, enum dtype dtype, void *out) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        vf_store_as(out, dtype, i, vf_load(x + i));
    }
    if (i < count) vf_store_part_as(out, dtype, i, vf_load_part(x + i, count - i), count - i);
}

#define TEXT_(name) #name
#define TEXT(name) TEXT_(name)
#define TABLE_(variant) kernels_##variant
#define TABLE(variant) TABLE_(variant)

const struct kernels TABLE(KERNELS_VARIANT) = {
    .name = TEXT(KERNELS_VARIANT),
    .is_supported = variant_is_supported,
    .is_slow = variant_is_slow,
    .linear = VARIANT(linear),
#if defined(__AVX512BF16__)
    .pack_bf16 = VARIANT(pack_bf16),
    .linear_bf16 = VARIANT(linear_bf16),
#endif
    .pack_i8 = VARIANT(pack_i8),
    .linear_i8 = VARIANT(linear_i8),
#if defined(__AVX512F__)
    .linear_i8_vnni = kernels_avx512bf16_linear_i8,
#endif
    .linear_i8_weights = VARIANT(linear_i8_weights),
    .quantize = VARIANT(quantize),
    .rotate = variant_rotate,
    .attention_span = VARIANT(attention_span),
    .attention_merge = VARIANT(attention_merge),
    .attention_finish = VARIANT(attention_finish),
    .rms_norm = variant_rms_norm,
    .add = variant_add,
    .swiglu = variant_swiglu,
    .widen = variant_widen,
    .narrow = variant_narrow,
    .scratch_bytes = sizeof(struct linear_scratch) > sizeof(struct attention_scratch)
                         ? sizeof(struct linear_scratch)
                         : sizeof(struct attention_scratch),
};
