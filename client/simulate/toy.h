// toy: a model of integers in place of a network, whose every token depends on every input and on
// every cell of the KV memory that it should depend on, and on nothing else.
//
//   value(p)   = start(token at p)
//   each layer:  cell(p) = mix(value, layer);  value = mix(value + sum over q <= p of cell(q) *
//   odd(q)) token      = mix(value, seed, sampling, biases, history) mod vocabulary
//
// The chained form is for long prompts: cell(p) = mix(cell(p - 1), value), value = mix(value,
// cell).
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "proto/frame.h"

// Where the cells of one sequence lie: cell of position q is at blocks[q / 32] * 32 + q % 32.
// `blocks` NULL: at q.
struct toy_cells {
    uint64_t *cells; // of one layer
    const uint32_t *blocks;
};

uint64_t toy_mix(uint64_t a, uint64_t b);
uint64_t toy_start(uint32_t token_id);
// One layer over the row at `position`: writes its cell, returns its new value.
uint64_t toy_layer(const struct toy_cells *cells, uint32_t layer, uint32_t position, uint64_t value,
                   bool is_chained);

// What a draw depends on beside the value of its row.
struct toy_draw {
    const struct frame_sequence *sampling; // seed and numbers; counts and offsets are not looked at
    uint64_t bias_sum;                     // of toy_bias
    uint64_t history_sum;                  // of toy_history
    uint32_t vocabulary_size;
};
uint64_t toy_bias(const struct frame_bias *bias);
// Sums of these do not depend on the order of tokens.
uint64_t toy_history(uint32_t token_id, uint32_t output_count);
uint32_t toy_token(const struct toy_draw *draw, uint64_t value);

// One sequence alone, on one stage with all layers: the tokens that come after `prompt`.
struct toy_alone {
    uint32_t layer_count;
    uint32_t position_count; // prompt_count + token_count
    uint32_t vocabulary_size;
    bool is_chained;
    bool has_penalties;
    const struct frame_sequence *sampling;
    const struct frame_bias *biases;
    uint32_t bias_count;
};
// tokens: position_count of them, the first prompt_count are given, the others are written.
// scratch: layer_count * position_count cells, then vocabulary_size counts.
void toy_alone(const struct toy_alone *alone, uint32_t prompt_count, uint32_t *tokens,
               uint64_t *scratch);
