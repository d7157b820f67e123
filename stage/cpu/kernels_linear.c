// kernels_linear: matrix products of one variant.
//
// Each (row, output) has one vector of sums of its own: lane j adds the products of inputs j,
// j + LANES, ... in this order, and vf_sum() adds the lanes at the end. Tiles, passes and threads
// only decide which of these vectors are in registers at a time; a vector that must wait is kept
// whole in memory. So the bits depend on nothing but the row and the weights.
//
// Few rows: the weights stream from memory once, are widened in registers and used by all rows; the
// memory's speed is the limit. More rows: the first tile of rows does the same and keeps the
// widened weights of the pass in the scratch, from where the other tiles read them.
#include <assert.h>

#include "base/check.h"
#include "stage/cpu/kernels_vector.h"

static_assert(LINEAR_INPUT_COUNT % LANES == 0 && LINEAR_OUTPUT_COUNT % TILE_OUTPUTS == 0 &&
                  LINEAR_ROW_COUNT % TILE_ROWS == 0,
              "passes are whole tiles");

// Rows of x and of weights, from a common first input on.
struct tile {
    const float *x;
    size_t x_stride;
    // Weights of TILE_OUTPUTS outputs: either rows of the tensor ...
    const void *weights[TILE_OUTPUTS];
    // ... or widened by an earlier tile: for each vector of inputs the TILE_OUTPUTS vectors of
    // weights.
    float *widened;
    size_t input_count;
    // From these weights to those of the next tile. They are asked for early, and twice, because a
    // processor drops such wishes when its queues are full: reading is up to twice as fast so.
    size_t ahead_bytes;
};

enum weight_source {
    FROM_TENSOR, // widened in registers
    KEEP,        // the same, and written to tile->widened
    WIDENED,     // read from tile->widened
};

// sums[r][o] += x[r][i..] * weight[o][i..] for all whole vectors of inputs. Everything but the tile
// is constant where this is inlined, so the sums are registers.
static ALWAYS_INLINE void tile_run(const struct tile *tile, int row_count,
                                   enum weight_source source, enum dtype dtype,
                                   vf sums[TILE_ROWS][TILE_OUTPUTS]) {
    const struct tile t = *tile;
    const size_t dtype_bytes = dtype == DTYPE_F32 ? 4 : 2;
    for (size_t i = 0; i + LANES <= t.input_count; i += LANES) {
        vf weights[TILE_OUTPUTS];
        for (int o = 0; o < TILE_OUTPUTS; o++) {
            size_t kept = i * TILE_OUTPUTS + (size_t)o * LANES;
            if (source == WIDENED) {
                weights[o] = vf_load(t.widened + kept);
            } else {
                weights[o] = vf_load_as(t.weights[o], dtype, i);
                uintptr_t next = (uintptr_t)t.weights[o] + i * dtype_bytes + t.ahead_bytes;
                prefetch(next);
                prefetch(next + t.ahead_bytes);
            }
            if (source == KEEP) vf_store(t.widened + kept, weights[o]);
        }
        for (int r = 0; r < row_count; r++) {
            vf x = vf_load(t.x + (size_t)r * t.x_stride + i);
            for (int o = 0; o < TILE_OUTPUTS; o++) {
                sums[r][o] = vf_fma(x, weights[o], sums[r][o]);
            }
        }
    }
}

// The same for the inputs behind the last whole vector, on sums in memory. Rare: most widths are
// whole vectors.
static __attribute__((noinline)) void tile_run_part(const struct tile *tile, int row_count,
                                                    enum weight_source source, enum dtype dtype,
                                                    float *sums) {
    size_t i = tile->input_count / LANES * LANES;
    size_t part = tile->input_count - i;
    for (int o = 0; o < TILE_OUTPUTS; o++) {
        size_t kept = i * TILE_OUTPUTS + (size_t)o * LANES;
        vf weight = source == WIDENED ? vf_load(tile->widened + kept)
                                      : vf_load_part_as(tile->weights[o], dtype, i, part);
        if (source == KEEP) vf_store(tile->widened + kept, weight);
        for (int r = 0; r < row_count; r++) {
            vf x = vf_load_part(tile->x + (size_t)r * tile->x_stride + i, part);
            float *sum = sums + (r * TILE_OUTPUTS + o) * LANES;
            vf_store(sum, vf_fma(x, weight, vf_load(sum)));
        }
    }
}

static ALWAYS_INLINE void sums_clear(int row_count, vf sums[TILE_ROWS][TILE_OUTPUTS]) {
    for (int r = 0; r < row_count; r++) {
        for (int o = 0; o < TILE_OUTPUTS; o++) {
            sums[r][o] = vf_zero();
        }
    }
}

static ALWAYS_INLINE void sums_load(const float *memory, int row_count,
                                    vf sums[TILE_ROWS][TILE_OUTPUTS]) {
    for (int r = 0; r < row_count; r++) {
        for (int o = 0; o < TILE_OUTPUTS; o++) {
            sums[r][o] = vf_load(memory + (r * TILE_OUTPUTS + o) * LANES);
        }
    }
}

static ALWAYS_INLINE void sums_store(float *memory, int row_count,
                                     vf sums[TILE_ROWS][TILE_OUTPUTS]) {
    for (int r = 0; r < row_count; r++) {
        for (int o = 0; o < TILE_OUTPUTS; o++) {
            vf_store(memory + (r * TILE_OUTPUTS + o) * LANES, sums[r][o]);
        }
    }
}

// One tile of one pass: goes on from `unfinished` unless it is the first pass, and ends there
// unless it is the last.
struct tile_pass {
    struct tile tile;
    struct tile_output output;
    float *unfinished;
    bool is_first;
    bool is_last;
};

static ALWAYS_INLINE void pass_run(const struct tile_pass *pass, int row_count,
                                   enum weight_source source, enum dtype dtype) {
    vf sums[TILE_ROWS][TILE_OUTPUTS];
    if (pass->is_first) {
        sums_clear(row_count, sums);
    } else {
        sums_load(pass->unfinished, row_count, sums);
    }
    tile_run(&pass->tile, row_count, source, dtype, sums);
    if (!pass->is_last) {
        sums_store(pass->unfinished, row_count, sums);
        return;
    }
    if (pass->tile.input_count % LANES != 0) {
        float memory[TILE_ROWS * TILE_OUTPUTS * LANES];
        sums_store(memory, row_count, sums);
        tile_run_part(&pass->tile, row_count, source, dtype, memory);
        sums_load(memory, row_count, sums);
    }
    tile_output_write(&pass->output, row_count, sums);
}

// A function for each number of rows, so that the sums are registers.
#define PASS_ROWS(row_count, source, dtype)                                                        \
    case row_count:                                                                                \
        if (row_count <= TILE_ROWS) pass_run(pass, row_count, source, dtype);                      \
        break

static ALWAYS_INLINE void pass_rows(const struct tile_pass *pass, uint32_t row_count,
                                    enum weight_source source, enum dtype dtype) {
    switch (row_count) {
        PASS_ROWS(1, source, dtype);
        PASS_ROWS(2, source, dtype);
        PASS_ROWS(3, source, dtype);
        PASS_ROWS(4, source, dtype);
        PASS_ROWS(5, source, dtype);
        PASS_ROWS(6, source, dtype);
    default:
        CHECK(false);
    }
}

static __attribute__((noinline)) void pass_bf16(const struct tile_pass *pass, uint32_t row_count) {
    pass_rows(pass, row_count, FROM_TENSOR, DTYPE_BF16);
}

static __attribute__((noinline)) void pass_f16(const struct tile_pass *pass, uint32_t row_count) {
    pass_rows(pass, row_count, FROM_TENSOR, DTYPE_F16);
}

static __attribute__((noinline)) void pass_f32(const struct tile_pass *pass, uint32_t row_count) {
    pass_rows(pass, row_count, FROM_TENSOR, DTYPE_F32);
}

static __attribute__((noinline)) void pass_widened(const struct tile_pass *pass,
                                                   uint32_t row_count) {
    pass_rows(pass, row_count, WIDENED, DTYPE_F32);
}

static __attribute__((noinline)) void pass_keep(const struct tile_pass *pass, enum dtype dtype) {
    if (dtype == DTYPE_BF16) {
        pass_run(pass, TILE_ROWS, KEEP, DTYPE_BF16);
    } else if (dtype == DTYPE_F16) {
        pass_run(pass, TILE_ROWS, KEEP, DTYPE_F16);
    } else {
        pass_run(pass, TILE_ROWS, KEEP, DTYPE_F32);
    }
}

static void pass_from_tensor(const struct tile_pass *pass, uint32_t row_count, enum dtype dtype) {
    if (dtype == DTYPE_BF16) {
        pass_bf16(pass, row_count);
    } else if (dtype == DTYPE_F16) {
        pass_f16(pass, row_count);
    } else {
        pass_f32(pass, row_count);
    }
}

// The rows of `tile->weights`, from input `input_first` on. Behind the last output its weights are
// repeated; nobody reads these sums.
static void tile_weights(const struct tensor *weight, uint32_t output_first, uint32_t output_end,
                         size_t input_first, struct tile *tile) {
    size_t row_bytes = weight->column_count * dtype_size_bytes(weight->dtype);
    const char *data = (const char *)weight->data + input_first * dtype_size_bytes(weight->dtype);
    tile->ahead_bytes = TILE_OUTPUTS * row_bytes;
    for (uint32_t o = 0; o < TILE_OUTPUTS; o++) {
        uint32_t output = output_first + o < output_end ? output_first + o : output_end - 1;
        tile->weights[o] = data + output * row_bytes;
    }
}

// Up to LINEAR_FEW_ROW_COUNT rows: all tiles of rows over the same weights, which the first of them
// brought into the caches, and all inputs in one pass.
static void linear_few_rows(const struct linear_job *job, uint32_t output_first,
                            uint32_t output_end) {
    size_t width = job->weight->column_count;
    uint32_t tile_count = (job->row_count + TILE_ROWS - 1) / TILE_ROWS;
    struct tile_pass pass = {.is_first = true, .is_last = true};
    pass.tile.x_stride = width;
    pass.tile.input_count = width;
    for (uint32_t o = output_first; o < output_end; o += TILE_OUTPUTS) {
        tile_weights(job->weight, o, output_end, 0, &pass.tile);
        for (uint32_t t = 0; t < tile_count; t++) {
            uint32_t row = job->row_count * t / tile_count;
            uint32_t row_end = job->row_count * (t + 1) / tile_count;
            pass.tile.x = (const float *)job->inputs + row * width;
            pass.output = tile_output(job, row, o, output_end);
            pass_from_tensor(&pass, row_end - row, job->weight->dtype);
        }
    }
}

// Part of a product: rows, outputs and inputs of one pass.
struct pass_range {
    uint32_t row_first, row_end;
    uint32_t output_first, output_end;
    uint32_t input_first, input_end;
};

static void linear_pass(const struct linear_job *job, const struct pass_range *range,
                        struct linear_scratch *scratch) {
    const struct tensor *weight = job->weight;
    struct tile_pass pass = {
        .is_first = range->input_first == 0,
        .is_last = range->input_end == weight->column_count,
        .unfinished = scratch->sums,
    };
    pass.tile.x_stride = weight->column_count;
    pass.tile.input_count = range->input_end - range->input_first;
    for (uint32_t row = range->row_first; row < range->row_end; row += TILE_ROWS) {
        uint32_t rows = range->row_end - row < TILE_ROWS ? range->row_end - row : TILE_ROWS;
        pass.tile.x =
            (const float *)job->inputs + (size_t)row * weight->column_count + range->input_first;
        pass.tile.widened = scratch->weights;
        for (uint32_t o = range->output_first; o < range->output_end; o += TILE_OUTPUTS) {
            pass.output = tile_output(job, row, o, range->output_end);
            if (row == range->row_first) {
                tile_weights(weight, o, range->output_end, range->input_first, &pass.tile);
                pass_keep(&pass, weight->dtype);
            } else {
                pass_widened(&pass, rows);
            }
            pass.tile.widened += TILE_OUTPUTS * LINEAR_INPUT_COUNT;
            pass.unfinished += TILE_ROWS * TILE_OUTPUTS * LANES;
        }
    }
}

static uint32_t smaller(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

// Rows row_first .. row_end - 1, at least TILE_ROWS of them and at most LINEAR_ROW_COUNT.
static void linear_row_block(const struct linear_job *job, struct pass_range range,
                             struct linear_scratch *scratch) {
    uint32_t output_end = range.output_end;
    uint32_t input_count = job->weight->column_count;
    // Passes of about the same size, of whole vectors except the last.
    uint64_t vector_count = (input_count + LANES - 1) / LANES;
    uint64_t pass_count = (vector_count * LANES + LINEAR_INPUT_COUNT - 1) / LINEAR_INPUT_COUNT;
    for (; range.output_first < output_end; range.output_first = range.output_end) {
        range.output_end = smaller(range.output_first + LINEAR_OUTPUT_COUNT, output_end);
        for (uint64_t p = 0; p < pass_count; p++) {
            range.input_first = (uint32_t)(vector_count * p / pass_count * LANES);
            range.input_end = (uint32_t)(vector_count * (p + 1) / pass_count * LANES);
            range.input_end = smaller(range.input_end, input_count);
            linear_pass(job, &range, scratch);
        }
    }
}

void VARIANT(linear)(const struct linear_job *job, uint32_t output_first, uint32_t output_end,
                     void *scratch) {
    struct linear_job part = *job;
    uint32_t row = 0;
    while (row < job->row_count) {
        uint32_t left = job->row_count - row;
        part.inputs = (const float *)job->inputs + (size_t)row * job->weight->column_count;
        part.out = job->out + (size_t)row * job->out_stride;
        part.row_count = left;
        if (left <= LINEAR_FEW_ROW_COUNT) {
            linear_few_rows(&part, output_first, output_end);
            return;
        }
        // Blocks of about the same size, of whole tiles except the last.
        uint32_t block_count = (left + LINEAR_ROW_COUNT - 1) / LINEAR_ROW_COUNT;
        uint32_t rows = (left + block_count - 1) / block_count;
        rows = smaller((rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS, left);
        struct pass_range range = {
            .row_end = rows, .output_first = output_first, .output_end = output_end};
        linear_row_block(&part, range, scratch);
        row += rows;
    }
}
