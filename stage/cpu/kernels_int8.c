// kernels_int8: products with int8 weights, and quantization, of one variant.
//
// i8 inputs: the products of a group are summed in 32-bit integers, exactly: 128 * 127 * 127 fits.
// Each (row, output) has one f32 sum to which the groups' sums, times both scales, are added in
// order. So all variants get the same integers, and the bits depend on nothing but the row and the
// weights.
//
// f32 inputs: each (row, output) has one f32 sum for a group, over inputs in order, and one over
// groups.
#include <assert.h>
#include <math.h>

#include "base/check.h"
#include "stage/cpu/kernels_vector.h"

enum {
    I8_VECTORS = I8_BLOCK_OUTPUTS / LANES, // vectors of sums in a block
    // Blocks of a tile. One for few rows: memory is read fastest in one line. More for f32 inputs,
    // whose sums must be taken one after the other.
    I8_BLOCKS_FEW = 1,
    I8_BLOCKS_FEW_F32 = 4 / I8_VECTORS,
    I8_BLOCKS_MAX = 4,
    I8_TILE_VECTORS = I8_VECTORS * I8_BLOCKS_MAX,
    // How far ahead, and again twice as far, a single tile asks for weights: near for one row,
    // which needs them as fast as they come, so that the processor's own prefetching sees one line;
    // far for more, where the time between two lines would let the memory idle.
    I8_AHEAD_BYTES_ONE = 1024,
    I8_AHEAD_BYTES_FEW = 8192,
    I8_STEPS = I8_GROUP_INPUTS / 4,
};

// Rows and blocks that are computed together.
struct i8_tile {
    const void *inputs;  // of the first row
    size_t input_stride; // bytes to the next row
    size_t input_count;
    size_t group_count;
    const struct i8_weights *blocks[I8_BLOCKS_MAX];
    // Weights that are asked for early: so many bytes behind those in use, in two places; 0: none.
    size_t ahead_bytes[2];
};

static ALWAYS_INLINE const struct i8_inputs *i8_inputs_of(const struct i8_tile *tile, int row,
                                                          size_t group) {
    const char *inputs = (const char *)tile->inputs + (size_t)row * tile->input_stride;
    return (const struct i8_inputs *)inputs + group;
}

static ALWAYS_INLINE const uint8_t *step_weights(const struct i8_tile *tile, size_t group,
                                                 size_t step, int v) {
    const struct i8_weights *weights = tile->blocks[v / I8_VECTORS] + group;
    return weights->weights[step][v % I8_VECTORS * LANES];
}

static ALWAYS_INLINE void ask_ahead(const struct i8_tile *tile, const void *address) {
    for (int i = 0; i < 2; i++) {
        if (tile->ahead_bytes[i] > 0) prefetch((uintptr_t)address + tile->ahead_bytes[i]);
    }
}

static ALWAYS_INLINE void step_multiply(const struct i8_tile *tile, size_t group, size_t step,
                                        const int8_t *const values[I8_ROWS], int row_count,
                                        int vector_count, vi sums[I8_ROWS][I8_TILE_VECTORS]) {
    vq weights[I8_TILE_VECTORS];
    for (int v = 0; v < vector_count; v++) {
        const uint8_t *address = step_weights(tile, group, step, v);
        weights[v] = vq_load(address);
        if (v == 0) ask_ahead(tile, address);
    }
    for (int r = 0; r < row_count; r++) {
        int32_t four;
        memcpy(&four, values[r] + 4 * step, sizeof(four));
        for (int v = 0; v < vector_count; v++) {
            sums[r][v] = vi_dot(sums[r][v], weights[v], four);
        }
    }
}

// sums[r][v] of a group in integers. Even and odd steps have sums of their own where there are few,
// so that they need not wait for each other.
static ALWAYS_INLINE void group_multiply(const struct i8_tile *tile, size_t group, int row_count,
                                         int vector_count, vi sums[I8_ROWS][I8_TILE_VECTORS]) {
    const int8_t *values[I8_ROWS];
    vi odd[I8_ROWS][I8_TILE_VECTORS];
    bool is_apart = row_count * vector_count <= 4;
    for (int r = 0; r < row_count; r++) {
        const struct i8_inputs *inputs = i8_inputs_of(tile, r, group);
        values[r] = inputs->values;
        for (int v = 0; v < vector_count; v++) {
            sums[r][v] = vi_set(-VI_DOT_OFFSET * inputs->sum);
            odd[r][v] = vi_set(0);
        }
    }
    for (size_t s = 0; s < I8_STEPS; s += 2) {
        step_multiply(tile, group, s, values, row_count, vector_count, sums);
        step_multiply(tile, group, s + 1, values, row_count, vector_count, is_apart ? odd : sums);
    }
    if (!is_apart) return;
    for (int r = 0; r < row_count; r++) {
        for (int v = 0; v < vector_count; v++) {
            sums[r][v] = vi_add(sums[r][v], odd[r][v]);
        }
    }
}

static ALWAYS_INLINE void sums_clear(int row_count, int vector_count,
                                     vf sums[I8_ROWS][I8_TILE_VECTORS]) {
    for (int r = 0; r < row_count; r++) {
        for (int v = 0; v < vector_count; v++) {
            sums[r][v] = vf_zero();
        }
    }
}

static ALWAYS_INLINE vf group_scale(const struct i8_tile *tile, size_t group, int v) {
    return vf_load((tile->blocks[v / I8_VECTORS] + group)->scales + v % I8_VECTORS * LANES);
}

static ALWAYS_INLINE void tile_multiply(const struct i8_tile *tile, int row_count, int vector_count,
                                        vf sums[I8_ROWS][I8_TILE_VECTORS]) {
    sums_clear(row_count, vector_count, sums);
    for (size_t g = 0; g < tile->group_count; g++) {
        vi group[I8_ROWS][I8_TILE_VECTORS];
        group_multiply(tile, g, row_count, vector_count, group);
        for (int r = 0; r < row_count; r++) {
            vf input_scale = vf_set(i8_inputs_of(tile, r, g)->scale);
            for (int v = 0; v < vector_count; v++) {
                vf scale = vf_mul(group_scale(tile, g, v), input_scale);
                sums[r][v] = vf_fma(vi_to_f32(group[r][v]), scale, sums[r][v]);
            }
        }
    }
}

// One input of each row, x for the first.
static ALWAYS_INLINE void step_multiply_f32(const struct i8_tile *tile, size_t group, size_t step,
                                            size_t byte, const float *x, int row_count,
                                            int vector_count, vf sums[I8_ROWS][I8_TILE_VECTORS]) {
    for (int v = 0; v < vector_count; v++) {
        const uint8_t *address = step_weights(tile, group, step, v);
        vf weight = vf_load_byte(address, byte);
        if (byte == 0 && v % I8_VECTORS == 0) ask_ahead(tile, address);
        for (int r = 0; r < row_count; r++) {
            vf input = vf_set(x[(size_t)r * tile->input_stride / sizeof(*x)]);
            sums[r][v] = vf_fma(input, weight, sums[r][v]);
        }
    }
}

// The same for f32 inputs.
static ALWAYS_INLINE void tile_multiply_f32(const struct i8_tile *tile, int row_count,
                                            int vector_count, vf sums[I8_ROWS][I8_TILE_VECTORS]) {
    sums_clear(row_count, vector_count, sums);
    const float *inputs = tile->inputs;
    for (size_t g = 0; g < tile->group_count; g++) {
        vf group[I8_ROWS][I8_TILE_VECTORS];
        sums_clear(row_count, vector_count, group);
        size_t left = tile->input_count - g * I8_GROUP_INPUTS;
        size_t count = left < I8_GROUP_INPUTS ? left : I8_GROUP_INPUTS;
        const float *x = inputs + g * I8_GROUP_INPUTS;
        for (size_t s = 0; s < count / 4; s++) {
            for (size_t b = 0; b < 4; b++) {
                step_multiply_f32(tile, g, s, b, x + 4 * s + b, row_count, vector_count, group);
            }
        }
        for (size_t b = 0; b < count % 4; b++) {
            size_t s = count / 4;
            step_multiply_f32(tile, g, s, b, x + 4 * s + b, row_count, vector_count, group);
        }
        for (int r = 0; r < row_count; r++) {
            for (int v = 0; v < vector_count; v++) {
                sums[r][v] = vf_fma(group[r][v], group_scale(tile, g, v), sums[r][v]);
            }
        }
    }
}

// Where a tile's results go; as struct tile_output, but for blocks.
struct i8_output {
    const struct linear_job *job;
    uint32_t row;
    uint32_t output_first, output_end;
};

static ALWAYS_INLINE void results_write(const struct i8_output *output, int row_count,
                                        int vector_count, vf sums[I8_ROWS][I8_TILE_VECTORS]) {
    const struct linear_job *job = output->job;
    const struct tensor *bias = job->bias;
    for (int r = 0; r < row_count; r++) {
        float *out = job->out + (size_t)(output->row + (uint32_t)r) * job->out_stride;
        for (int v = 0; v < vector_count; v++) {
            uint32_t first = output->output_first + (uint32_t)v * LANES;
            if (first >= output->output_end) break;
            size_t count = output->output_end - first;
            if (bias->data != NULL) {
                vf values = count < LANES ? vf_load_part_as(bias->data, bias->dtype, first, count)
                                          : vf_load_as(bias->data, bias->dtype, first);
                sums[r][v] = vf_add(sums[r][v], values);
            }
            if (count < LANES) {
                vf_store_part(out + first, sums[r][v], count);
            } else {
                vf_store(out + first, sums[r][v]);
            }
        }
    }
}

static ALWAYS_INLINE void tile_run(const struct i8_tile *tile, const struct i8_output *output,
                                   int row_count, int vector_count, bool has_f32_inputs) {
    vf sums[I8_ROWS][I8_TILE_VECTORS];
    if (has_f32_inputs) {
        tile_multiply_f32(tile, row_count, vector_count, sums);
    } else {
        tile_multiply(tile, row_count, vector_count, sums);
    }
    results_write(output, row_count, vector_count, sums);
}

// A copy for each number of rows, so that the sums are registers.
#define I8_CASE(count)                                                                             \
    case count:                                                                                    \
        if (count <= I8_ROWS) tile_run(tile, output, count, vector_count, has_f32_inputs);         \
        break

static ALWAYS_INLINE void tile_rows(const struct i8_tile *tile, const struct i8_output *output,
                                    uint32_t row_count, int vector_count, bool has_f32_inputs) {
    static_assert(I8_ROWS <= 6, "a case for each number of rows");
    switch (row_count) {
        I8_CASE(1);
        I8_CASE(2);
        I8_CASE(3);
        I8_CASE(4);
        I8_CASE(5);
        I8_CASE(6);
    default:
        CHECK(false);
    }
}

typedef void tile_fn(const struct i8_tile *tile, const struct i8_output *output,
                     uint32_t row_count);

static __attribute__((noinline)) void tile_few(const struct i8_tile *tile,
                                               const struct i8_output *output, uint32_t row_count) {
    tile_rows(tile, output, row_count, I8_BLOCKS_FEW * I8_VECTORS, false);
}

static __attribute__((noinline)) void
tile_many(const struct i8_tile *tile, const struct i8_output *output, uint32_t row_count) {
    tile_rows(tile, output, row_count, I8_BLOCKS * I8_VECTORS, false);
}

static __attribute__((noinline)) void
tile_few_f32(const struct i8_tile *tile, const struct i8_output *output, uint32_t row_count) {
    tile_rows(tile, output, row_count, I8_BLOCKS_FEW_F32 * I8_VECTORS, true);
}

static __attribute__((noinline)) void
tile_many_f32(const struct i8_tile *tile, const struct i8_output *output, uint32_t row_count) {
    tile_rows(tile, output, row_count, I8_BLOCKS * I8_VECTORS, true);
}

// A single tile asks for its own weights. Of several, the first ones ask for the blocks after
// these: memory is at work as long as the processor is.
static void tile_ahead(struct i8_tile *tile, uint32_t t, uint32_t tile_count, uint32_t row_count,
                       uint32_t block_count) {
    size_t block_bytes = tile->group_count * sizeof(struct i8_weights);
    size_t few = row_count == 1 ? I8_AHEAD_BYTES_ONE : I8_AHEAD_BYTES_FEW;
    bool is_only = tile_count == 1;
    tile->ahead_bytes[0] = is_only ? few : t < block_count ? (block_count + t) * block_bytes : 0;
    tile->ahead_bytes[1] = is_only ? 2 * few : 0;
}

// Tiles of block_count blocks, all rows over the same weights. input_stride: bytes of a row.
static void linear_run(const struct linear_job *job, uint32_t output_first, uint32_t output_end,
                       size_t input_stride, uint32_t block_count, tile_fn *run) {
    size_t group_count = i8_group_count(job->weight->column_count);
    struct i8_tile tile = {.input_stride = input_stride,
                           .input_count = job->weight->column_count,
                           .group_count = group_count};
    uint32_t tile_count = (job->row_count + I8_ROWS - 1) / I8_ROWS;
    const struct i8_weights *weights = job->weight->data;
    uint32_t last_block = (output_end - 1) / I8_BLOCK_OUTPUTS;
    for (uint32_t o = output_first; o < output_end; o += block_count * I8_BLOCK_OUTPUTS) {
        for (uint32_t b = 0; b < block_count; b++) {
            // Behind the last block it is repeated; nobody reads these sums.
            uint32_t block = o / I8_BLOCK_OUTPUTS + b;
            tile.blocks[b] = weights + (block < last_block ? block : last_block) * group_count;
        }
        for (uint32_t t = 0; t < tile_count; t++) {
            uint32_t row = (uint32_t)((uint64_t)job->row_count * t / tile_count);
            uint32_t row_end = (uint32_t)((uint64_t)job->row_count * (t + 1) / tile_count);
            struct i8_output output = {job, row, o, output_end};
            tile.inputs = (const char *)job->inputs + row * input_stride;
            tile_ahead(&tile, t, tile_count, job->row_count, block_count);
            run(&tile, &output, row_end - row);
        }
    }
}

void VARIANT(linear_i8)(const struct linear_job *job, uint32_t output_first, uint32_t output_end,
                        void *scratch) {
    (void)scratch;
    size_t stride = i8_group_count(job->weight->column_count) * sizeof(struct i8_inputs);
    bool is_few = job->row_count <= I8_ROWS;
    linear_run(job, output_first, output_end, stride, is_few ? I8_BLOCKS_FEW : I8_BLOCKS,
               is_few ? tile_few : tile_many);
}

void VARIANT(linear_i8_weights)(const struct linear_job *job, uint32_t output_first,
                                uint32_t output_end, void *scratch) {
    (void)scratch;
    size_t stride = job->weight->column_count * sizeof(float);
    bool is_few = job->row_count <= I8_ROWS / 2;
    linear_run(job, output_first, output_end, stride, is_few ? I8_BLOCKS_FEW_F32 : I8_BLOCKS,
               is_few ? tile_few_f32 : tile_many_f32);
}

// -- quantization ---------------------------------------------------------------------------------

// The largest magnitude, or NaN when an x is not finite.
static float magnitude_of(const float x[I8_GROUP_INPUTS]) {
    vf largest = vf_zero(), check = vf_zero();
    for (size_t i = 0; i < I8_GROUP_INPUTS; i += LANES) {
        vf v = vf_load(x + i);
        largest = vf_max(largest, vf_max(v, vf_sub(vf_zero(), v)));
        check = vf_add(check, vf_sub(v, v));
    }
    return vf_sum(check) == 0.0f ? vf_largest(largest) : NAN;
}

// values[i] = x[i] * inverse, rounded. Returns their sum.
static int32_t group_round(const float x[I8_GROUP_INPUTS], float inverse,
                           int8_t values[I8_GROUP_INPUTS]) {
    float rounded[I8_GROUP_INPUTS];
    for (size_t i = 0; i < I8_GROUP_INPUTS; i += LANES) {
        vf_store(rounded + i, vf_round(vf_mul(vf_load(x + i), vf_set(inverse))));
    }
    int32_t sum = 0;
    for (size_t i = 0; i < I8_GROUP_INPUTS; i++) {
        values[i] = (int8_t)rounded[i];
        sum += (int32_t)rounded[i];
    }
    return sum;
}

void VARIANT(pack_i8)(const struct linear_job *job, uint32_t row_first, uint32_t row_end) {
    size_t width = job->weight->column_count;
    size_t group_count = i8_group_count(width);
    for (uint32_t r = row_first; r < row_end; r++) {
        struct i8_inputs *inputs = (struct i8_inputs *)job->packed + r * group_count;
        for (size_t g = 0; g < group_count; g++) {
            const float *x = job->x + r * width + g * I8_GROUP_INPUTS;
            size_t count = width - g * I8_GROUP_INPUTS;
            float filled[I8_GROUP_INPUTS] = {0};
            if (count < I8_GROUP_INPUTS) x = memcpy(filled, x, count * sizeof(*x));
            float largest = magnitude_of(x);
            if (largest != largest) {
                inputs[g] = (struct i8_inputs){.scale = NAN};
                continue;
            }
            inputs[g].scale = i8_scale(largest);
            inputs[g].sum = group_round(x, i8_inverse_scale(largest), inputs[g].values);
        }
    }
}

void VARIANT(quantize)(const struct tensor *source, uint32_t block_first, uint32_t block_end,
                       void *out) {
    size_t width = source->column_count;
    size_t group_count = i8_group_count(width);
    for (size_t n = block_first * group_count; n < block_end * group_count; n++) {
        struct i8_weights *group = (struct i8_weights *)out + n;
        size_t input_first = n % group_count * I8_GROUP_INPUTS;
        size_t count =
            width - input_first < I8_GROUP_INPUTS ? width - input_first : I8_GROUP_INPUTS;
        for (size_t o = 0; o < I8_BLOCK_OUTPUTS; o++) {
            size_t output = n / group_count * I8_BLOCK_OUTPUTS + o;
            float x[I8_GROUP_INPUTS] = {0};
            if (output < source->row_count) {
                vf_widen(source->data, source->dtype, output * width + input_first, count, x);
            }
            float largest = magnitude_of(x);
            int8_t values[I8_GROUP_INPUTS];
            group->scales[o] = i8_scale(largest);
            if (largest == largest) {
                group_round(x, i8_inverse_scale(largest), values);
            } else {
                memset(values, 0, sizeof(values));
            }
            for (size_t i = 0; i < I8_GROUP_INPUTS; i++) {
                group->weights[i / 4][o][i % 4] = (uint8_t)(values[i] + I8_OFFSET);
            }
        }
    }
}
