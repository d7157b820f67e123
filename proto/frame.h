// frame: the data-plane message, one fixed little-endian layout (this header is its definition).
//
//   header (128 bytes) | tables | zero padding to 64 | payload
//
//   payload_offset + payload_bytes is the size of all of it.
//
//   STEP    tables: sequences, tokens (u32 per row), blocks (u32), biases, history
//           payload: activations, (row_count, hidden_size) of `dtype`, row-major; empty to stage 0
//   RESULT  tables: samples, top_logprobs; no payload
//
// A STEP is one microbatch. Its rows are the rows of its sequences one after the other; row r of a
// sequence is the token at position position_first + r. Every table can be used in place.
//
// A STEP may be sent before one of its tokens is known: that sequence has one row, and names the
// earlier step that draws the token. Stage 0 gets the RESULTs too, and writes the token into the
// table before it computes the step, so that later stages have it.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"

enum {
    FRAME_MAGIC = 0x43475453, // "STGC"
    FRAME_VERSION = 3,
    FRAME_ALIGNMENT = 64, // of the buffer, the payload offset and the payload
};

enum frame_kind { FRAME_STEP = 1, FRAME_RESULT = 2 };

struct frame_header {
    uint32_t magic;
    uint16_t version;
    uint16_t kind;          // enum frame_kind
    uint64_t epoch;         // of the pipeline configuration; another one is dropped
    uint64_t step;          // counts the microbatches of an epoch from 1; the same at every stage
    uint64_t link_sequence; // counts the frames of a link from 1; written by the link
    uint32_t row_count;
    uint32_t sequence_count;
    uint32_t block_count;
    uint32_t bias_count;
    uint32_t history_count;
    uint32_t sample_count;
    uint32_t top_count;
    uint32_t hidden_size;    // 0 without payload
    uint16_t dtype;          // enum dtype of the payload; DTYPE_NONE without payload
    uint16_t flags;          // zero
    uint32_t payload_offset; // from the start of the header
    uint64_t payload_bytes;
    uint64_t compute_ns; // time the stages so far spent computing this step, summed on its way
    uint64_t slowest_ns; // of the stage that spent most of it
    // Written by the link that sends, checked and set to zero by the link that receives; zero where
    // links have no key. proto/link_wire.h says how they are made.
    uint8_t payload_tag[16]; // of all that follows the header, when that is encrypted
    uint8_t mac[16];         // of the header before it
};
_Static_assert(sizeof(struct frame_header) == 128, "frame header is 128 bytes on the wire");

enum frame_sequence_flags {
    FRAME_SAMPLE = 1,   // draw a token after the last row
    FRAME_LOGPROBS = 2, // with its log-probability and top_count alternatives
};

// One sequence of a STEP: its rows, its KV blocks, and how to draw its next token.
struct frame_sequence {
    uint64_t sequence_id;
    uint64_t seed;
    uint32_t row_first;
    uint32_t row_count;      // at least 1
    uint32_t position_first; // of row_first
    uint32_t block_first;    // in the block table; entry b holds positions b*32 .. b*32+31
    uint32_t block_count;    // exactly enough for position_first + row_count positions
    uint32_t flags;          // enum frame_sequence_flags
    uint32_t bias_first, bias_count;
    uint32_t history_first, history_count;
    uint32_t top_k; // 0: off
    uint32_t top_logprob_count;
    float temperature;        // 0: greedy
    float top_p;              // 1: off
    float min_p;              // 0: off
    float repetition_penalty; // 1: off
    float presence_penalty;
    float frequency_penalty;
    // 0: the tokens are known. Otherwise the token of the one row is what step `step - token_lag`
    // drew: sample token_sample of its RESULT, which is of the same sequence_id. The history then
    // leaves this token out.
    uint32_t token_lag;
    uint32_t token_sample;
};
_Static_assert(sizeof(struct frame_sequence) == 96, "frame sequence is 96 bytes on the wire");

struct frame_bias {
    uint32_t token_id;
    float bias;
};
_Static_assert(sizeof(struct frame_bias) == 8, "frame bias is 8 bytes on the wire");

// A distinct token of prompt or output, for sequences with penalties.
struct frame_history {
    uint32_t token_id;
    uint32_t output_count; // 0: in the prompt only
};
_Static_assert(sizeof(struct frame_history) == 8, "frame history is 8 bytes on the wire");

enum frame_sample_outcome {
    FRAME_SAMPLE_DRAWN = 0,
    FRAME_SAMPLE_NOT_FINITE = 1, // the logits hold NaN or only infinities; token_id is 0
};

struct frame_sample {
    uint64_t sequence_id;
    uint32_t token_id;
    uint32_t outcome; // enum frame_sample_outcome
    float logprob;    // 0 when not asked for
    uint32_t top_first;
    uint32_t top_count;
    uint32_t reserved; // zero
};
_Static_assert(sizeof(struct frame_sample) == 32, "frame sample is 32 bytes on the wire");

struct frame_top {
    uint32_t token_id;
    float logprob;
};
_Static_assert(sizeof(struct frame_top) == 8, "frame top is 8 bytes on the wire");

// A frame in memory: one buffer, allocated once, used again.
struct frame {
    uint8_t *data; // FRAME_ALIGNMENT aligned
    size_t size_bytes;
    size_t capacity_bytes;
    void *owner;          // for the pool or link that lends it
    uint64_t received_ns; // when it arrived (clock_now_ns); of received ones only
};

MUST_USE enum status frame_open(size_t capacity_bytes, struct frame **frame_out);
void frame_close(struct frame *frame); // NULL allowed

// Typed pointers into a frame's buffer; valid as long as the buffer is.
struct frame_view {
    struct frame_header *header;
    struct frame_sequence *sequences;
    uint32_t *tokens;
    uint32_t *blocks;
    struct frame_bias *biases;
    struct frame_history *history;
    struct frame_sample *samples;
    struct frame_top *tops;
    uint8_t *payload;
};

// Writes header and zeroed tables for the counts, kind, hidden_size and dtype in `wanted` (its
// magic, version, offsets and sizes are ignored and computed). STATUS_EXHAUSTED when the frame's
// capacity is too small.
MUST_USE enum status frame_format(struct frame *frame, const struct frame_header *wanted,
                                  struct frame_view *view_out);

// What a receiver holds a frame against; every count of the frame must be at most its limit.
struct frame_limits {
    uint64_t epoch;
    uint32_t row_count_max;
    uint32_t sequence_count_max;
    uint32_t position_count_max; // of a sequence
    uint32_t kv_block_count;     // block ids are below it
    uint32_t vocabulary_size;    // token ids are below it
    uint32_t token_lag_max;      // of a STEP's sequences; 0: all tokens are known
    uint32_t hidden_size;
    enum dtype dtype; // of activations
    bool has_payload; // STEP with activations (every stage but the first)
    enum frame_kind kind;
};

// Checks every field of the bytes in frame->data against the layout and `limits`, and gives the
// pointers. STATUS_UNAVAILABLE: another epoch (drop and count it). STATUS_INVALID: names the field,
// the value and the limit.
MUST_USE enum status frame_parse(struct frame *frame, const struct frame_limits *limits,
                                 struct frame_view *view_out, struct error *error);

// The largest frame, of either kind, that `limits` allow: the capacity of buffers. Most of it is
// for tables that are rarely full; pages that no frame touches take no memory.
size_t frame_capacity_bytes(const struct frame_limits *limits);
