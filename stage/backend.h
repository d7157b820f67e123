// backend: the operations of a transformer layer on one kind of device. Every call is made by the
// stage's compute thread and is complete when it returns; inside, a team of threads may share it.
//
// Law 2: each output element is computed in an order that depends only on the shapes of the weights
// and on the element's own position, never on row_count, on the other rows or on the thread count.
//
// Activations inside a layer are f32, row-major (row_count, width). Memory comes from
// backend_alloc(), 64-byte aligned.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"
#include "proto/model_config.h"
#include "stage/weights.h"

struct backend;

struct core_request;

struct backend_config {
    uint32_t thread_count;            // 0: the default of stage/cpu/cores.h
    const struct core_request *cores; // where threads are pinned; NULL: not pinned
    // "auto", or a variant that the processor has: "avx512bf16", "avx512", "avx2", "portable",
    // "reference" (plain C, the one that the others are tested against).
    const char *variant;
};

// STATUS_UNSUPPORTED: the processor lacks the variant, or its name is unknown (the sentence lists
// those it has). STATUS_INVALID: the request's cores cannot be had. STATUS_NO_MEMORY, STATUS_IO
// (threads).
MUST_USE enum status backend_cpu_open(const struct backend_config *config,
                                      struct backend **backend_out, struct error *error);
void backend_close(struct backend *backend); // NULL allowed

const char *backend_variant(const struct backend *backend);
uint32_t backend_thread_count(const struct backend *backend);
// Processors that the threads are pinned to, such as "0-3,8"; NULL: not pinned.
const char *backend_cores(const struct backend *backend);
// Called once by the thread that makes all further calls, before them: it computes too, and is
// pinned as the backend's own threads are.
void backend_enter(struct backend *backend);
// Names of the variants this processor has, best first, NULL at the end.
const char *const *backend_cpu_variants(void);

// Zeroed; pages are not touched before use. NULL when there is no memory.
MUST_USE void *backend_alloc(struct backend *backend, size_t size_bytes);
void backend_free(struct backend *backend, void *memory, size_t size_bytes);

// Runs fn(ctx, index, thread_index) for each index < count, spread over the team: threads take the
// next index when they are done with one, so nothing may depend on who runs what.
//   thread_index: below backend_thread_count(), so that each thread can have its own work space.
//   work: elements touched in all, about; when they are few, the calling thread runs everything.
typedef void backend_fn(void *ctx, uint32_t index, uint32_t thread_index);
void backend_parallel(struct backend *backend, uint32_t count, uint64_t work, backend_fn *fn,
                      void *ctx);

// out[r][c] = table[tokens[r]][c].   table: (vocabulary, hidden).  out: (row_count, hidden).
// Token ids are below table->row_count: checked by the caller.
void backend_embed(struct backend *backend, const struct tensor *table, const uint32_t *tokens,
                   uint32_t row_count, float *out);

// out[r][c] = x[r][c] / sqrt(mean(x[r]^2) + epsilon) * weight[c].   x, out: (row_count, width), may
// alias; width = weight->column_count. (Zhang and Sennrich 2019; as in the Llama reference.)
void backend_rms_norm(struct backend *backend, const struct tensor *weight, float epsilon,
                      const float *x, uint32_t row_count, float *out);

// Memory for products whose inputs are rounded: of up to row_count rows of up to column_count
// inputs. Grows, never shrinks. STATUS_NO_MEMORY names the bytes.
MUST_USE enum status backend_reserve(struct backend *backend, uint32_t row_count,
                                     uint32_t column_count, struct error *error);

// out[r][o] = sum over i of x[r][i] * weight[o][i], plus bias[o] when bias->data is not NULL.
//   x: (row_count, weight->column_count).   out: (row_count, out_stride) with columns
//   0..weight->row_count-1 written; out_stride >= weight->row_count.
// x is rounded to x_dtype first: f32 (not at all), bf16, or i8, for which the weights must be i8
// too (bf16 does not go with i8 weights). Rounded inputs need backend_reserve(). Sums are f32; i8
// with i8 is summed in integers over each group of inputs that has one scale.
void backend_linear(struct backend *backend, const struct tensor *weight, const struct tensor *bias,
                    const float *x, enum dtype x_dtype, uint32_t row_count, float *out,
                    uint32_t out_stride);

// The matrix as int8, in an order of the backend's own, with one scale for each output and group of
// 128 inputs: the group's largest magnitude becomes 127. A group with a value that is not finite
// becomes NaN. Written to `memory` of backend_quantized_bytes(), which the result borrows.
struct tensor backend_quantize(struct backend *backend, const struct tensor *source, void *memory);
size_t backend_quantized_bytes(uint32_t row_count, uint32_t column_count);

// x[r][c] += delta[r][c], then rounded to `dtype` (f32: not at all).   both (row_count, width)
void backend_add(struct backend *backend, float *x, const float *delta, uint32_t row_count,
                 uint32_t width, enum dtype round_dtype);

// out[r][c] = silu(gate[r][c]) * up[r][c], silu(a) = a / (1 + exp(-a)).   all (row_count, width);
// out may be gate or up.
void backend_swiglu(struct backend *backend, const float *gate, const float *up, uint32_t row_count,
                    uint32_t width, float *out);

// Converts (count) elements between f32 and an activation dtype, as on the wire.
void backend_to_wire(struct backend *backend, const float *x, size_t count, enum dtype dtype,
                     void *out);
void backend_from_wire(struct backend *backend, const void *x, size_t count, enum dtype dtype,
                       float *out);

// One layer's paged KV memory. Block b holds KV_BLOCK_POSITION_COUNT positions:
//   keys, values: (block_count, kv_head_count, KV_BLOCK_POSITION_COUNT, head_size) of dtype
// (a backend may order the elements inside a block differently, always the same for a position).
struct kv_layer {
    void *keys;
    void *values;
    enum dtype dtype;
};

// Where the rows of a microbatch are: rows of one sequence follow each other, positions too.
struct batch_sequence {
    uint32_t row_first;
    uint32_t row_count;
    uint32_t position_first;
    const uint32_t *blocks; // block ids by position / KV_BLOCK_POSITION_COUNT
};
struct batch {
    uint32_t row_count;
    uint32_t sequence_count;
    const struct batch_sequence *sequences;
};

struct attention_shape {
    uint32_t head_count;
    uint32_t kv_head_count;
    uint32_t head_size;
};

// Rotates queries and keys in place by their positions, and writes keys and values of all rows into
// the cache.   q: (row_count, head_count * head_size);  k, v: (row_count, kv_head_count *
// head_size)
//   For pair j < head_size/2 of a head (the "rotate half" layout of Hugging Face checkpoints):
//     a = x[j], b = x[j + head_size/2], angle = position * inverse_frequencies[j]
//     x[j] = a cos(angle) - b sin(angle);  x[j + head_size/2] = b cos(angle) + a sin(angle)
//   rotations: (position_count_max, head_size/2) pairs {cos, sin}, made by rope_table_fill().
// (Su et al. 2021, RoFormer.)
void backend_rope_and_store(struct backend *backend, const struct attention_shape *shape,
                            const struct batch *batch, const float *rotations, float *q, float *k,
                            const float *v, struct kv_layer *kv);

// Causal attention over the cache: row at position p of a sequence sees positions 0..p.
//   out[r][h] = sum over t <= p of softmax_t(q[r][h] . key[t][h / group] / sqrt(head_size)) *
//   value[t] q, out: (row_count, head_count * head_size), may not alias.
// Positions are cut into spans of a fixed length, counted from position 0. Each has its own maximum
// and sum, and they are merged in order (Milakov and Gimelshein 2018), so that chunks, batches and
// threads cannot change the sums.
void backend_attention(struct backend *backend, const struct attention_shape *shape,
                       const struct batch *batch, const float *q, const struct kv_layer *kv,
                       float *out);

// cos and sin of position * inverse frequency, for the RoPE kinds of `config`: head_size/2 pairs a
// position, (position_count, head_size/2, 2) f32. Frequencies and angles are rounded to f32 step by
// step as in Hugging Face transformers; cos and sin of the rounded angle are exact to f32.
void rope_table_fill(const struct model_config *config, uint32_t position_count, float *out);
