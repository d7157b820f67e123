// kernels_reference: the formulas as they are written, with sums in double. Slow; the other
// variants are tested against it.
#include <math.h>

#include "stage/cpu/kernels.h"

static bool reference_is_supported(void) {
    return true;
}

static bool reference_is_slow(void) {
    return false; // there is none after it
}

// out[r][o] = sum over i of x[r][i] * weight[o][i] + bias[o]
static void reference_linear(const struct linear_job *job, uint32_t output_first,
                             uint32_t output_end, void *scratch) {
    (void)scratch;
    const struct tensor *weight = job->weight;
    const float *x = job->inputs;
    size_t width = weight->column_count;
    for (uint32_t r = 0; r < job->row_count; r++) {
        for (uint32_t o = output_first; o < output_end; o++) {
            double sum = 0;
            for (size_t i = 0; i < width; i++) {
                sum += (double)x[r * width + i] *
                       (double)element_f32(weight->data, weight->dtype, o * width + i);
            }
            if (job->bias->data != NULL) {
                sum += (double)element_f32(job->bias->data, job->bias->dtype, o);
            }
            job->out[(size_t)r * job->out_stride + o] = (float)sum;
        }
    }
}

// Reads what quantize and pack_i8 write: weight (o, i), and input (r, i).
static double reference_weight(const struct tensor *weight, size_t o, size_t i) {
    const struct i8_weights *group = weight->data;
    group += o / I8_BLOCK_OUTPUTS * i8_group_count(weight->column_count) + i / I8_GROUP_INPUTS;
    i %= I8_GROUP_INPUTS;
    int value = group->weights[i / 4][o % I8_BLOCK_OUTPUTS][i % 4] - I8_OFFSET;
    return value * (double)group->scales[o % I8_BLOCK_OUTPUTS];
}

static double reference_input(const struct linear_job *job, size_t r, size_t i) {
    const struct i8_inputs *group = job->inputs;
    group += r * i8_group_count(job->weight->column_count) + i / I8_GROUP_INPUTS;
    return group->values[i % I8_GROUP_INPUTS] * (double)group->scale;
}

static void reference_linear_any(const struct linear_job *job, uint32_t output_first,
                                 uint32_t output_end, bool has_f32_inputs) {
    size_t width = job->weight->column_count;
    for (uint32_t r = 0; r < job->row_count; r++) {
        for (uint32_t o = output_first; o < output_end; o++) {
            double sum = 0;
            for (size_t i = 0; i < width; i++) {
                double x = has_f32_inputs ? (double)((const float *)job->inputs)[r * width + i]
                                          : reference_input(job, r, i);
                sum += x * reference_weight(job->weight, o, i);
            }
            if (job->bias->data != NULL) {
                sum += (double)element_f32(job->bias->data, job->bias->dtype, o);
            }
            job->out[(size_t)r * job->out_stride + o] = (float)sum;
        }
    }
}

static void reference_linear_i8(const struct linear_job *job, uint32_t output_first,
                                uint32_t output_end, void *scratch) {
    (void)scratch;
    reference_linear_any(job, output_first, output_end, false);
}

static void reference_linear_i8_weights(const struct linear_job *job, uint32_t output_first,
                                        uint32_t output_end, void *scratch) {
    (void)scratch;
    reference_linear_any(job, output_first, output_end, true);
}

// The largest magnitude of a group, or NaN when an element is not finite.
static float reference_magnitude(const float *x, size_t count) {
    float largest = 0;
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(x[i])) return NAN;
        largest = fmaxf(largest, fabsf(x[i]));
    }
    return largest;
}

// The group of int8 values nearest to x, and its scale.
static float reference_round(const float *x, size_t count, int8_t *values) {
    float largest = reference_magnitude(x, count);
    for (size_t i = 0; i < I8_GROUP_INPUTS; i++) {
        bool is_zero = i >= count || isnan(largest);
        values[i] = is_zero ? 0 : (int8_t)nearbyintf(x[i] * i8_inverse_scale(largest));
    }
    return i8_scale(largest);
}

static void reference_pack_i8(const struct linear_job *job, uint32_t row_first, uint32_t row_end) {
    size_t width = job->weight->column_count;
    struct i8_inputs *group = (struct i8_inputs *)job->packed + row_first * i8_group_count(width);
    for (size_t r = row_first; r < row_end; r++) {
        for (size_t i = 0; i < width; i += I8_GROUP_INPUTS, group++) {
            size_t count = width - i < I8_GROUP_INPUTS ? width - i : I8_GROUP_INPUTS;
            group->scale = reference_round(job->x + r * width + i, count, group->values);
            group->sum = 0;
            for (size_t j = 0; j < I8_GROUP_INPUTS; j++) {
                group->sum += group->values[j];
            }
        }
    }
}

static void reference_quantize(const struct tensor *source, uint32_t block_first,
                               uint32_t block_end, void *out) {
    size_t width = source->column_count;
    for (size_t o = block_first * I8_BLOCK_OUTPUTS; o < block_end * I8_BLOCK_OUTPUTS; o++) {
        for (size_t i = 0; i < width; i += I8_GROUP_INPUTS) {
            struct i8_weights *group = out;
            group += o / I8_BLOCK_OUTPUTS * i8_group_count(width) + i / I8_GROUP_INPUTS;
            float x[I8_GROUP_INPUTS] = {0};
            for (size_t j = 0; j < I8_GROUP_INPUTS && i + j < width && o < source->row_count; j++) {
                x[j] = element_f32(source->data, source->dtype, o * width + i + j);
            }
            int8_t values[I8_GROUP_INPUTS];
            group->scales[o % I8_BLOCK_OUTPUTS] = reference_round(x, I8_GROUP_INPUTS, values);
            for (size_t j = 0; j < I8_GROUP_INPUTS; j++) {
                group->weights[j / 4][o % I8_BLOCK_OUTPUTS][j % 4] =
                    (uint8_t)(values[j] + I8_OFFSET);
            }
        }
    }
}

static void reference_rotate(const float *cosines, const float *sines, uint32_t half, float *x) {
    for (uint32_t j = 0; j < half; j++) {
        float a = x[j], b = x[j + half];
        x[j] = a * cosines[j] - b * sines[j];
        x[j + half] = b * cosines[j] + a * sines[j];
    }
}

// Scores of one query: score[t] = q . key[t] / sqrt(head_size), t in 0..position_count-1 of a
// block.
static void reference_scores(const struct attention_job *job, const float *query, size_t cell,
                             uint32_t position_count, double *scores) {
    uint32_t head_size = job->shape->head_size;
    for (uint32_t t = 0; t < position_count; t++) {
        double sum = 0;
        for (uint32_t d = 0; d < head_size; d++) {
            size_t index = cell + (size_t)d * KV_BLOCK_POSITION_COUNT + t;
            sum += (double)query[d] * (double)element_f32(job->kv->keys, job->kv->dtype, index);
        }
        scores[t] = sum / sqrt((double)head_size);
    }
}

// One query over its positions of a span, counted from the span's first.
static void reference_query(const struct attention_job *job, uint32_t span, uint32_t position_count,
                            const float *query, float *largest_out, float *sum_out,
                            float *state_out) {
    uint32_t head_size = job->shape->head_size;
    const uint32_t *blocks = job->sequence->blocks + span * ATTENTION_SPAN_BLOCK_COUNT;
    double scores[ATTENTION_SPAN_POSITION_COUNT], largest = -INFINITY, sum = 0;
    for (uint32_t t = 0; t < position_count; t += KV_BLOCK_POSITION_COUNT) {
        uint32_t count = position_count - t;
        if (count > KV_BLOCK_POSITION_COUNT) count = KV_BLOCK_POSITION_COUNT;
        size_t cell =
            kv_block_offset(job->shape, blocks[t / KV_BLOCK_POSITION_COUNT], job->kv_head);
        reference_scores(job, query, cell, count, scores + t);
    }
    for (uint32_t t = 0; t < position_count; t++) {
        if (scores[t] > largest) largest = scores[t];
    }
    for (uint32_t t = 0; t < position_count; t++) {
        scores[t] = exp(scores[t] - largest);
        sum += scores[t];
    }
    for (uint32_t d = 0; d < head_size; d++) {
        double state = 0;
        for (uint32_t t = 0; t < position_count; t++) {
            size_t cell =
                kv_block_offset(job->shape, blocks[t / KV_BLOCK_POSITION_COUNT], job->kv_head);
            size_t index = cell + (size_t)(t % KV_BLOCK_POSITION_COUNT) * head_size + d;
            state += scores[t] * (double)element_f32(job->kv->values, job->kv->dtype, index);
        }
        state_out[d] = (float)state;
    }
    *largest_out = (float)largest;
    *sum_out = (float)sum;
}

static void reference_attention_span(const struct attention_job *job, uint32_t span,
                                     const struct attention_partial *partial, void *scratch) {
    (void)scratch;
    size_t stride = attention_stride(job->shape->head_size);
    for (uint32_t i = attention_first_query(job, span); i < job->query_count; i++) {
        uint32_t count = attention_position(job, i) + 1 - span * ATTENTION_SPAN_POSITION_COUNT;
        if (count > ATTENTION_SPAN_POSITION_COUNT) count = ATTENTION_SPAN_POSITION_COUNT;
        reference_query(job, span, count, job->q + attention_offset(job, i), partial->largest + i,
                        partial->sum + i, partial->state + i * stride);
    }
}

// The greater maximum m' of two partials rescales what the other has by exp(m - m').
static void reference_attention_merge(const struct attention_job *job, uint32_t span,
                                      const struct attention_partial *merged,
                                      const struct attention_partial *partial) {
    uint32_t head_size = job->shape->head_size;
    for (uint32_t i = attention_first_query(job, span); i < job->query_count; i++) {
        double largest = (double)fmaxf(merged->largest[i], partial->largest[i]);
        double before = exp((double)merged->largest[i] - largest);
        double now = exp((double)partial->largest[i] - largest);
        size_t state = i * attention_stride(head_size);
        for (size_t d = state; d < state + head_size; d++) {
            merged->state[d] =
                (float)((double)merged->state[d] * before + (double)partial->state[d] * now);
        }
        merged->sum[i] = (float)((double)merged->sum[i] * before + (double)partial->sum[i] * now);
        merged->largest[i] = (float)largest;
    }
}

static void reference_attention_finish(const struct attention_job *job,
                                       const struct attention_partial *merged) {
    uint32_t head_size = job->shape->head_size;
    for (uint32_t i = 0; i < job->query_count; i++) {
        float *out = job->out + attention_offset(job, i);
        for (uint32_t d = 0; d < head_size; d++) {
            out[d] = merged->state[i * attention_stride(head_size) + d] / merged->sum[i];
        }
    }
}

// out[r][c] = x[r][c] / sqrt(mean(x[r]^2) + epsilon) * weight[c]
static void reference_rms_norm(const struct tensor *weight, float epsilon, const float *x,
                               uint32_t row_count, float *out) {
    size_t width = weight->column_count;
    for (size_t r = 0; r < row_count; r++) {
        double sum = 0;
        for (size_t c = 0; c < width; c++) {
            sum += (double)x[r * width + c] * (double)x[r * width + c];
        }
        double scale = 1 / sqrt(sum / (double)width + (double)epsilon);
        for (size_t c = 0; c < width; c++) {
            double factor = scale * (double)element_f32(weight->data, weight->dtype, c);
            out[r * width + c] = (float)((double)x[r * width + c] * factor);
        }
    }
}

static float round_to(float value, enum dtype dtype) {
    if (dtype == DTYPE_BF16) return bf16_to_f32(f32_to_bf16(value));
    if (dtype == DTYPE_F16) return f16_to_f32(f32_to_f16(value));
    return value;
}

static void reference_add(float *x, const float *delta, size_t count, enum dtype round_dtype) {
    for (size_t i = 0; i < count; i++) {
        x[i] = round_to(x[i] + delta[i], round_dtype);
    }
}

// out = gate / (1 + exp(-gate)) * up
static void reference_swiglu(const float *gate, const float *up, size_t count, float *out) {
    for (size_t i = 0; i < count; i++) {
        double a = (double)gate[i];
        out[i] = (float)(a / (1 + exp(-a)) * (double)up[i]);
    }
}

static void reference_widen(const void *x, enum dtype dtype, size_t count, float *out) {
    for (size_t i = 0; i < count; i++) {
        out[i] = element_f32(x, dtype, i);
    }
}

static void reference_narrow(const float *x, size_t count, enum dtype dtype, void *out) {
    for (size_t i = 0; i < count; i++) {
        if (dtype == DTYPE_BF16) {
            ((uint16_t *)out)[i] = f32_to_bf16(x[i]);
        } else if (dtype == DTYPE_F16) {
            ((uint16_t *)out)[i] = f32_to_f16(x[i]);
        } else {
            ((float *)out)[i] = x[i];
        }
    }
}

const struct kernels kernels_reference = {
    .name = "reference",
    .is_supported = reference_is_supported,
    .is_slow = reference_is_slow,
    .linear = reference_linear,
    .pack_i8 = reference_pack_i8,
    .linear_i8 = reference_linear_i8,
    .linear_i8_weights = reference_linear_i8_weights,
    .quantize = reference_quantize,
    .rotate = reference_rotate,
    .attention_span = reference_attention_span,
    .attention_merge = reference_attention_merge,
    .attention_finish = reference_attention_finish,
    .rms_norm = reference_rms_norm,
    .add = reference_add,
    .swiglu = reference_swiglu,
    .widen = reference_widen,
    .narrow = reference_narrow,
    .scratch_bytes = 0,
};
