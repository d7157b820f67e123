// kernels_vector: the vectorised kernels, compiled once for each variant under its own names.
#pragma once

#include "stage/cpu/kernels.h"
#include "stage/cpu/vector.h"

#ifndef KERNELS_VARIANT
#define KERNELS_VARIANT portable
#endif

// Blocking of matrix products. None of these changes a sum, only when its parts are computed.
enum {
    // Outputs and inputs of a pass: their widened weights fit into the second-level cache. One pass
    // over all inputs is best: between passes the unfinished sums, LANES floats each, wait in
    // memory.
    LINEAR_OUTPUT_COUNT = 16,
    LINEAR_INPUT_COUNT = 6144,
    // Rows of a pass: so often are the weights read again.
    LINEAR_ROW_COUNT = 96,
    // Up to this many rows widen the weights themselves instead of keeping them widened.
    LINEAR_FEW_ROW_COUNT = 4 * TILE_ROWS,
};

// Widened weights of a pass, and unfinished sums as vectors.
struct linear_scratch {
    _Alignas(64) float weights[LINEAR_OUTPUT_COUNT * LINEAR_INPUT_COUNT];
    _Alignas(64) float sums[LINEAR_ROW_COUNT * LINEAR_OUTPUT_COUNT * LANES];
};

enum {
    // Between the rows of the scratch: rows of a power of two would compete for few cache sets.
    ATTENTION_QUERY_STRIDE = MODEL_HEAD_SIZE_MAX + 16,
    ATTENTION_SCORE_STRIDE = ATTENTION_SPAN_POSITION_COUNT + 16,
};

// Of the queries of a tile: themselves times log2(e) / sqrt(head_size), and their scores of a span.
struct attention_scratch {
    _Alignas(64) float queries[TILE_QUERIES][ATTENTION_QUERY_STRIDE];
    _Alignas(64) float scores[TILE_QUERIES][ATTENTION_SCORE_STRIDE];
};

enum { PREFETCH_SECOND_LEVEL = 2 }; // __builtin_prefetch: into the second-level cache

// A number, not a pointer: behind a tensor's end it points nowhere, and nothing happens.
VECTOR_FN void prefetch(uintptr_t address) {
    __builtin_prefetch((const void *)address, 0, PREFETCH_SECOND_LEVEL);
}

// Where the outputs of a tile of rows go.
struct tile_output {
    float *out; // of the first row and output
    size_t out_stride;
    const struct tensor *bias;
    uint32_t output_first;
    uint32_t output_count; // at most TILE_OUTPUTS
};

VECTOR_FN struct tile_output tile_output(const struct linear_job *job, uint32_t row,
                                         uint32_t output_first, uint32_t output_end) {
    uint32_t count = output_end - output_first;
    return (struct tile_output){
        .out = job->out + (size_t)row * job->out_stride + output_first,
        .out_stride = job->out_stride,
        .bias = job->bias,
        .output_first = output_first,
        .output_count = count < TILE_OUTPUTS ? count : TILE_OUTPUTS,
    };
}

// Adds the bias, and leaves out what is behind the last output.
static __attribute__((noinline, unused)) void
tile_output_finish(const struct tile_output *output, float *out,
                   const float results[TILE_OUTPUTS]) {
    const struct tensor *bias = output->bias;
    for (uint32_t o = 0; o < output->output_count; o++) {
        out[o] = results[o];
        if (bias->data == NULL) continue;
        out[o] += element_f32(bias->data, bias->dtype, output->output_first + o);
    }
}

VECTOR_FN void tile_output_write(const struct tile_output *output, int row_count,
                                 vf sums[TILE_ROWS][TILE_OUTPUTS]) {
    float *out = output->out;
    bool is_plain = output->bias->data == NULL && output->output_count == TILE_OUTPUTS;
    for (int r = 0; r < row_count; r++, out += output->out_stride) {
        float results[TILE_OUTPUTS];
        vf_sum4(sums[r][0], sums[r][1], sums[r][2], sums[r][3], is_plain ? out : results);
        if (!is_plain) tile_output_finish(output, out, results);
    }
}

void VARIANT(linear)(const struct linear_job *job, uint32_t output_first, uint32_t output_end,
                     void *scratch);
void VARIANT(pack_bf16)(const struct linear_job *job, uint32_t row_first, uint32_t row_end);
void VARIANT(linear_bf16)(const struct linear_job *job, uint32_t output_first, uint32_t output_end,
                          void *scratch);
void VARIANT(pack_i8)(const struct linear_job *job, uint32_t row_first, uint32_t row_end);
void VARIANT(linear_i8)(const struct linear_job *job, uint32_t output_first, uint32_t output_end,
                        void *scratch);
void VARIANT(linear_i8_weights)(const struct linear_job *job, uint32_t output_first,
                                uint32_t output_end, void *scratch);
void VARIANT(quantize)(const struct tensor *source, uint32_t block_first, uint32_t block_end,
                       void *out);
void VARIANT(attention_span)(const struct attention_job *job, uint32_t span,
                             const struct attention_partial *partial, void *scratch);
void VARIANT(attention_merge)(const struct attention_job *job, uint32_t span,
                              const struct attention_partial *merged,
                              const struct attention_partial *partial);
void VARIANT(attention_finish)(const struct attention_job *job,
                               const struct attention_partial *merged);
