// kernels_dot: products of bf16 weights with inputs rounded to bf16, by an instruction that
// multiplies pairs and adds them to f32 sums (vdpbf16ps). Compiled for the variants that have it.
//
// As in kernels_linear.c, each (row, output) has one vector of sums: lane j adds the products of
// inputs 2 j, 2 j + 1, 2 j + 32, 2 j + 33, ... in this order, and vf_sum4() adds the lanes at the
// end. Weights are read from the tensor as they are; inputs are packed by tile, because rows that
// lie a power of two apart would push each other out of the first-level cache.
#include "stage/cpu/kernels_vector.h"

#if defined(__AVX512BF16__)
#include <assert.h>
#include <immintrin.h>

#include "base/check.h"

enum {
    DOT_INPUTS = 2 * LANES, // that one instruction takes for each vector of sums
    // Outputs that all tiles of rows go over before the next ones: their weights stay in the
    // second-level cache.
    DOT_OUTPUT_COUNT = 16,
};

typedef __m512bh vd;

static ALWAYS_INLINE vd vd_load(const uint16_t *p) {
    return (vd)_mm512_loadu_si512(p);
}

static ALWAYS_INLINE vd vd_load_part(const uint16_t *p, size_t count) {
    return (vd)_mm512_maskz_loadu_epi16((__mmask32)((1u << count) - 1), p);
}

struct dot_tile {
    const uint16_t *x; // (inputs / DOT_INPUTS, row_count, DOT_INPUTS)
    const uint16_t *weights[TILE_OUTPUTS];
    size_t input_count;
    // Weights that are asked for early: of each output those so many bytes behind, in two places as
    // in kernels_linear.c; or, when several tiles share the work, one whole row of weights; or
    // none.
    size_t ahead_bytes;
    const uint16_t *ahead_row;
    struct tile_output output;
};

static ALWAYS_INLINE void dot_step(const vd weights[TILE_OUTPUTS], const uint16_t *x, int row_count,
                                   vf sums[TILE_ROWS][TILE_OUTPUTS]) {
    for (int r = 0; r < row_count; r++) {
        vd inputs = vd_load(x + r * DOT_INPUTS);
        for (int o = 0; o < TILE_OUTPUTS; o++) {
            sums[r][o] = _mm512_dpbf16_ps(sums[r][o], inputs, weights[o]);
        }
    }
}

enum ahead { AHEAD_NONE, AHEAD_OUTPUTS, AHEAD_ROW };

static ALWAYS_INLINE void ask_ahead(const struct dot_tile *tile, size_t i, enum ahead ahead) {
    if (ahead == AHEAD_ROW) prefetch((uintptr_t)(tile->ahead_row + i));
    if (ahead != AHEAD_OUTPUTS) return;
    for (int o = 0; o < TILE_OUTPUTS; o++) {
        uintptr_t next = (uintptr_t)(tile->weights[o] + i) + tile->ahead_bytes;
        prefetch(next);
        prefetch(next + tile->ahead_bytes);
    }
}

static ALWAYS_INLINE void dot_run(const struct dot_tile *tile, int row_count, enum ahead ahead) {
    vf sums[TILE_ROWS][TILE_OUTPUTS];
    for (int r = 0; r < row_count; r++) {
        for (int o = 0; o < TILE_OUTPUTS; o++) {
            sums[r][o] = vf_zero();
        }
    }
    const struct dot_tile t = *tile;
    vd weights[TILE_OUTPUTS];
    size_t i = 0;
    for (; i + DOT_INPUTS <= t.input_count; i += DOT_INPUTS) {
        for (int o = 0; o < TILE_OUTPUTS; o++) {
            weights[o] = vd_load(t.weights[o] + i);
        }
        ask_ahead(&t, i, ahead);
        dot_step(weights, t.x + i * (size_t)row_count, row_count, sums);
    }
    if (i < t.input_count) {
        for (int o = 0; o < TILE_OUTPUTS; o++) {
            weights[o] = vd_load_part(t.weights[o] + i, t.input_count - i);
        }
        dot_step(weights, t.x + i * (size_t)row_count, row_count, sums);
    }
    tile_output_write(&t.output, row_count, sums);
}

// A function for each number of rows, so that the sums are registers.
#define DOT_ROWS(row_count)                                                                        \
    case row_count:                                                                                \
        if (tile->ahead_bytes > 0) {                                                               \
            dot_run(tile, row_count, AHEAD_OUTPUTS);                                               \
        } else if (tile->ahead_row != NULL) {                                                      \
            dot_run(tile, row_count, AHEAD_ROW);                                                   \
        } else {                                                                                   \
            dot_run(tile, row_count, AHEAD_NONE);                                                  \
        }                                                                                          \
        break

static __attribute__((noinline)) void dot_dispatch(const struct dot_tile *tile,
                                                   uint32_t row_count) {
    static_assert(TILE_ROWS == 6, "a case for each number of rows");
    switch (row_count) {
        DOT_ROWS(1);
        DOT_ROWS(2);
        DOT_ROWS(3);
        DOT_ROWS(4);
        DOT_ROWS(5);
        DOT_ROWS(6);
    default:
        CHECK(false);
    }
}

static uint32_t tile_count_of(uint32_t row_count) {
    return (row_count + TILE_ROWS - 1) / TILE_ROWS;
}

// First row of tile t: tiles differ by at most one row.
static uint32_t tile_row(uint32_t row_count, uint32_t t) {
    return (uint32_t)((uint64_t)row_count * t / tile_count_of(row_count));
}

static size_t packed_width(size_t width) {
    return (width + DOT_INPUTS - 1) / DOT_INPUTS * DOT_INPUTS;
}

void VARIANT(pack_bf16)(const struct linear_job *job, uint32_t row_first, uint32_t row_end) {
    size_t width = job->weight->column_count;
    uint32_t tile_count = tile_count_of(job->row_count);
    for (uint32_t t = 0; t < tile_count; t++) {
        uint32_t tile_first = tile_row(job->row_count, t);
        uint32_t tile_rows = tile_row(job->row_count, t + 1) - tile_first;
        uint16_t *tile = (uint16_t *)job->packed + tile_first * packed_width(width);
        for (uint32_t r = 0; r < tile_rows; r++) {
            uint32_t row = tile_first + r;
            if (row < row_first || row >= row_end) continue;
            const float *x = job->x + row * width;
            uint16_t *out = tile + r * DOT_INPUTS;
            for (size_t i = 0; i < width; i += LANES) {
                vf v = width - i < LANES ? vf_load_part(x + i, width - i) : vf_load(x + i);
                vf_store_bf16(out + i / DOT_INPUTS * DOT_INPUTS * tile_rows + i % DOT_INPUTS, v);
            }
            if ((width + LANES - 1) / LANES % 2 == 0) continue;
            size_t last = packed_width(width) - DOT_INPUTS;
            vf_store_bf16(out + last * tile_rows + LANES, vf_zero());
        }
    }
}

// Behind the last output its weights are repeated; nobody reads these sums.
static void dot_weights(const struct tensor *weight, uint32_t output, uint32_t output_end,
                        struct dot_tile *tile) {
    for (uint32_t i = 0; i < TILE_OUTPUTS; i++) {
        uint32_t o = output + i < output_end ? output + i : output_end - 1;
        tile->weights[i] = (const uint16_t *)weight->data + (size_t)o * weight->column_count;
    }
}

void VARIANT(linear_bf16)(const struct linear_job *job, uint32_t output_first, uint32_t output_end,
                          void *scratch) {
    (void)scratch;
    const struct tensor *weight = job->weight;
    size_t width = weight->column_count;
    uint32_t tile_count = tile_count_of(job->row_count);
    // Few tiles are short of time, not of cache: each weight is used as soon as it is there.
    bool is_few = tile_count < DOT_OUTPUT_COUNT / TILE_OUTPUTS;
    uint32_t step = is_few ? TILE_OUTPUTS : DOT_OUTPUT_COUNT;
    struct dot_tile tile = {.input_count = width};
    for (uint32_t o = output_first; o < output_end; o += step) {
        uint32_t ahead = o + step;
        for (uint32_t t = 0; t < tile_count; t++) {
            uint32_t row = tile_row(job->row_count, t);
            tile.x = (const uint16_t *)job->packed + row * packed_width(width);
            tile.ahead_bytes = is_few && t == 0 ? TILE_OUTPUTS * width * sizeof(uint16_t) : 0;
            for (uint32_t p = o; p < o + step && p < output_end; p += TILE_OUTPUTS) {
                bool has_ahead = !is_few && ahead < o + 2 * step && ahead < output_end;
                tile.ahead_row =
                    has_ahead ? (const uint16_t *)weight->data + ahead++ * width : NULL;
                tile.output = tile_output(job, row, p, output_end);
                dot_weights(weight, p, output_end, &tile);
                dot_dispatch(&tile, tile_row(job->row_count, t + 1) - row);
            }
        }
    }
}
#endif
