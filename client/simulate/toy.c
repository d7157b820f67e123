#include "client/simulate/toy.h"

#include <string.h>

#include "base/limits.h"

// The finalizer of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
// generators", OOPSLA 2014).
static uint64_t scramble(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t toy_mix(uint64_t a, uint64_t b) {
    return scramble(a + 0x9e3779b97f4a7c15u * (scramble(b) + 1));
}

uint64_t toy_start(uint32_t token_id) {
    return toy_mix(0x7374616765636f61u, token_id);
}

static uint64_t odd(uint32_t position) {
    return (uint64_t)position * 0x9e3779b97f4a7c16u + 1;
}

static uint64_t attend(const struct toy_cells *cells, uint32_t position) {
    uint64_t sum = 0;
    for (uint32_t first = 0; first <= position; first += KV_BLOCK_POSITION_COUNT) {
        uint32_t left = position + 1 - first;
        uint32_t count = left < KV_BLOCK_POSITION_COUNT ? left : KV_BLOCK_POSITION_COUNT;
        const uint64_t *at =
            cells->blocks == NULL
                ? &cells->cells[first]
                : &cells->cells[(uint64_t)cells->blocks[first / KV_BLOCK_POSITION_COUNT] *
                                KV_BLOCK_POSITION_COUNT];
        for (uint32_t i = 0; i < count; i++)
            sum += at[i] * odd(first + i);
    }
    return sum;
}

static uint64_t *cell_of(const struct toy_cells *cells, uint32_t position) {
    if (cells->blocks == NULL) return &cells->cells[position];
    uint64_t block_id = cells->blocks[position / KV_BLOCK_POSITION_COUNT];
    return &cells->cells[block_id * KV_BLOCK_POSITION_COUNT + position % KV_BLOCK_POSITION_COUNT];
}

uint64_t toy_layer(const struct toy_cells *cells, uint32_t layer, uint32_t position, uint64_t value,
                   bool is_chained) {
    uint64_t *cell = cell_of(cells, position);
    if (is_chained) {
        uint64_t before = position == 0 ? layer : *cell_of(cells, position - 1);
        *cell = toy_mix(before, value);
        return toy_mix(value, *cell);
    }
    *cell = toy_mix(value, layer);
    return toy_mix(value, attend(cells, position));
}

uint64_t toy_bias(const struct frame_bias *bias) {
    uint32_t bits;
    memcpy(&bits, &bias->bias, sizeof(bits));
    return toy_mix(bias->token_id, bits);
}

uint64_t toy_history(uint32_t token_id, uint32_t output_count) {
    return toy_mix(token_id + 0x6869u, output_count);
}

uint32_t toy_token(const struct toy_draw *draw, uint64_t value) {
    const struct frame_sequence *s = draw->sampling;
    const float numbers[] = {
        s->temperature,      s->top_p, s->min_p, s->repetition_penalty, s->presence_penalty,
        s->frequency_penalty};
    uint64_t hash = toy_mix(value, s->seed);
    for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        uint32_t bits;
        memcpy(&bits, &numbers[i], sizeof(bits));
        hash = hash * 31 + bits;
    }
    hash = toy_mix(hash, draw->bias_sum);
    hash = toy_mix(hash, draw->history_sum);
    return (uint32_t)(hash % draw->vocabulary_size);
}

// Counts each distinct token: output_counts[t] is 0 for unseen ones, 1 + times in the output.
static void see(uint32_t token_id, bool is_output, uint64_t *counts, uint64_t *sum) {
    uint64_t *count = &counts[token_id];
    if (*count != 0) *sum -= toy_history(token_id, (uint32_t)*count - 1);
    if (*count == 0) *count = 1;
    *count += is_output ? 1 : 0;
    *sum += toy_history(token_id, (uint32_t)*count - 1);
}

void toy_alone(const struct toy_alone *alone, uint32_t prompt_count, uint32_t *tokens,
               uint64_t *scratch) {
    uint64_t *counts = scratch + (uint64_t)alone->layer_count * alone->position_count;
    struct toy_draw draw = {.sampling = alone->sampling, .vocabulary_size = alone->vocabulary_size};
    memset(counts, 0, alone->vocabulary_size * sizeof(*counts));
    for (uint32_t i = 0; i < alone->bias_count; i++)
        draw.bias_sum += toy_bias(&alone->biases[i]);
    for (uint32_t p = 0; p + 1 < alone->position_count; p++) {
        if (alone->has_penalties) see(tokens[p], p >= prompt_count, counts, &draw.history_sum);
        uint64_t value = toy_start(tokens[p]);
        for (uint32_t layer = 0; layer < alone->layer_count; layer++) {
            struct toy_cells cells = {scratch + (uint64_t)layer * alone->position_count, NULL};
            value = toy_layer(&cells, layer, p, value, alone->is_chained);
        }
        if (p + 1 >= prompt_count) tokens[p + 1] = toy_token(&draw, value);
    }
}
