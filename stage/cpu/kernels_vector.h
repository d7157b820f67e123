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

// Head sizes are padded to whole vectors here; MODEL_HEAD_SIZE_MAX is a whole number of them.
struct attention_scratch {
    _Alignas(64) float keys[MODEL_HEAD_SIZE_MAX * KV_BLOCK_POSITION_COUNT];
    _Alignas(64) float values[KV_BLOCK_POSITION_COUNT * MODEL_HEAD_SIZE_MAX];
    _Alignas(64) float state[ATTENTION_QUERY_COUNT * MODEL_HEAD_SIZE_MAX];
    _Alignas(64) float scores[TILE_QUERIES][KV_BLOCK_POSITION_COUNT];
    float largest[ATTENTION_QUERY_COUNT];
    float sum[ATTENTION_QUERY_COUNT];
    float shrink[ATTENTION_QUERY_COUNT];
};

void VARIANT(linear)(const struct linear_job *job, uint32_t output_first, uint32_t output_end,
                     void *scratch);
void VARIANT(attention)(const struct attention_job *job, void *scratch);
