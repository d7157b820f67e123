// frame_fixture: valid frames at random, and parsing of bytes that end where the frame ends.
#pragma once

#include <math.h>

#include "base/limits.h"
#include "proto/frame.h"

static uint64_t random_state;

static inline uint32_t random_below(uint32_t limit) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % limit);
}

static const struct frame_limits step_limits = {
    .epoch = 5,
    .row_count_max = 40,
    .sequence_count_max = 6,
    .position_count_max = 200,
    .kv_block_count = 90,
    .vocabulary_size = 1000,
    .token_lag_max = 9,
    .hidden_size = 24,
    .dtype = DTYPE_BF16,
    .has_payload = true,
    .kind = FRAME_STEP,
};

static inline struct frame_limits limits_of(enum frame_kind kind, bool has_payload) {
    struct frame_limits limits = step_limits;
    limits.kind = kind;
    limits.has_payload = has_payload;
    return limits;
}

// -- valid frames ---------------------------------------------------------------------------------

// Now and then its one row's token is what an earlier step draws.
static inline void fill_lag(struct frame_sequence *s, uint64_t step,
                            const struct frame_limits *limits) {
    if (step == 1 || s->position_first == 0 || random_below(2) == 0) return;
    s->row_count = 1;
    s->block_count = s->position_first / 32 + 1;
    s->token_lag =
        1 + random_below(step > limits->token_lag_max ? limits->token_lag_max : (uint32_t)step - 1);
    s->token_sample = random_below(limits->sequence_count_max);
}

static inline void fill_sequence(struct frame_sequence *s, const struct frame_limits *limits) {
    s->sequence_id = random_below(UINT32_MAX);
    s->seed = random_below(UINT32_MAX);
    s->row_count = 1 + random_below(6);
    s->position_first = random_below(limits->position_count_max - s->row_count + 1);
    s->block_count = (s->position_first + s->row_count + 31) / 32;
    s->flags = random_below(4);
    s->bias_count = random_below(3);
    s->history_count = random_below(4);
    s->top_k = random_below(2000);
    s->top_logprob_count = random_below(21);
    s->temperature = (float)random_below(101);
    s->top_p = (float)random_below(101) / 100;
    s->min_p = (float)random_below(101) / 100;
    s->repetition_penalty = 0.01f + (float)random_below(99);
    s->presence_penalty = (float)random_below(401) / 100 - 2;
    s->frequency_penalty = (float)random_below(401) / 100 - 2;
}

static inline void fill_tables(const struct frame_view *view, const struct frame_limits *limits) {
    const struct frame_header *h = view->header;
    for (uint32_t i = 0; i < h->row_count; i++)
        view->tokens[i] = random_below(limits->vocabulary_size);
    for (uint32_t i = 0; i < h->block_count; i++)
        view->blocks[i] = random_below(limits->kv_block_count);
    for (uint32_t i = 0; i < h->bias_count; i++)
        view->biases[i] =
            (struct frame_bias){random_below(limits->vocabulary_size), (float)random_below(9) - 4};
    for (uint32_t i = 0; i < h->history_count; i++)
        view->history[i] = (struct frame_history){random_below(limits->vocabulary_size), i};
    for (uint64_t i = 0; i < h->payload_bytes; i++)
        view->payload[i] = (uint8_t)random_below(256);
}

static inline struct frame *random_step(const struct frame_limits *limits,
                                        uint32_t sequence_count) {
    struct frame_header wanted = {.kind = FRAME_STEP,
                                  .epoch = limits->epoch,
                                  .step = 1 + random_below(1000),
                                  .link_sequence = 1 + random_below(1000),
                                  .sequence_count = sequence_count,
                                  .compute_ns = random_below(1000),
                                  .slowest_ns = random_below(1000)};
    struct frame_sequence sequences[8] = {0};
    for (uint32_t i = 0; i < sequence_count; i++) {
        struct frame_sequence *s = &sequences[i];
        fill_sequence(s, limits);
        fill_lag(s, wanted.step, limits);
        s->row_first = wanted.row_count;
        s->block_first = wanted.block_count;
        s->bias_first = wanted.bias_count;
        s->history_first = wanted.history_count;
        wanted.row_count += s->row_count;
        wanted.block_count += s->block_count;
        wanted.bias_count += s->bias_count;
        wanted.history_count += s->history_count;
    }
    wanted.hidden_size = limits->has_payload ? limits->hidden_size : 0;
    wanted.dtype = limits->has_payload ? (uint16_t)limits->dtype : DTYPE_NONE;
    struct frame *frame;
    struct frame_view view;
    assert_int_equal(frame_open(frame_capacity_bytes(limits), &frame), STATUS_OK);
    assert_int_equal(frame_format(frame, &wanted, &view), STATUS_OK);
    memcpy(view.sequences, sequences, sequence_count * sizeof(*sequences));
    fill_tables(&view, limits);
    return frame;
}

static inline struct frame *random_result(const struct frame_limits *limits,
                                          uint32_t sample_count) {
    struct frame_header wanted = {.kind = FRAME_RESULT,
                                  .epoch = limits->epoch,
                                  .step = 1 + random_below(1000),
                                  .row_count = limits->row_count_max,
                                  .sequence_count = limits->sequence_count_max,
                                  .sample_count = sample_count,
                                  .compute_ns = random_below(1000),
                                  .slowest_ns = random_below(1000)};
    struct frame_sample samples[8] = {0};
    for (uint32_t i = 0; i < sample_count; i++) {
        bool is_drawn = random_below(4) > 0;
        samples[i] = (struct frame_sample){
            .sequence_id = random_below(UINT32_MAX),
            .token_id = is_drawn ? random_below(limits->vocabulary_size) : 0,
            .outcome = is_drawn ? FRAME_SAMPLE_DRAWN : FRAME_SAMPLE_NOT_FINITE,
            .logprob = -(float)random_below(20),
            .top_first = wanted.top_count,
            .top_count = random_below(4),
        };
        wanted.top_count += samples[i].top_count;
    }
    struct frame *frame;
    struct frame_view view;
    assert_int_equal(frame_open(frame_capacity_bytes(limits), &frame), STATUS_OK);
    assert_int_equal(frame_format(frame, &wanted, &view), STATUS_OK);
    memcpy(view.samples, samples, sample_count * sizeof(*samples));
    for (uint32_t i = 0; i < wanted.top_count; i++)
        view.tops[i] = (struct frame_top){random_below(limits->vocabulary_size), -INFINITY};
    return frame;
}

// -- parsing --------------------------------------------------------------------------------------

static volatile uint64_t read_sum; // keeps what is read from being optimized away

static inline uint64_t sum_of(const void *data, uint64_t size_bytes) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < size_bytes; i++)
        sum = sum * 31 + ((const uint8_t *)data)[i];
    return sum;
}

// Reads every byte that the view promises.
static inline uint64_t read_all(const struct frame_view *view) {
    const struct frame_header *h = view->header;
    uint64_t sum = sum_of(view->payload, h->payload_bytes);
    if (h->kind == FRAME_RESULT) {
        sum += sum_of(view->samples, h->sample_count * sizeof(*view->samples));
        return sum + sum_of(view->tops, h->top_count * sizeof(*view->tops));
    }
    sum += sum_of(view->tokens, h->row_count * sizeof(*view->tokens));
    for (uint32_t i = 0; i < h->sequence_count; i++) {
        const struct frame_sequence *s = &view->sequences[i];
        sum += sum_of(&view->tokens[s->row_first], s->row_count * sizeof(*view->tokens));
        sum += sum_of(&view->blocks[s->block_first], s->block_count * sizeof(*view->blocks));
        sum += sum_of(&view->biases[s->bias_first], s->bias_count * sizeof(*view->biases));
        sum += sum_of(&view->history[s->history_first], s->history_count * sizeof(*view->history));
    }
    return sum;
}

// Parses a copy that ends where the frame ends, so that a sanitizer sees what is read beyond.
static inline enum status parse_bytes(const void *data, size_t size_bytes,
                                      const struct frame_limits *limits) {
    void *copy = NULL;
    assert_int_equal(posix_memalign(&copy, FRAME_ALIGNMENT, size_bytes == 0 ? 1 : size_bytes), 0);
    memcpy(copy, data, size_bytes);
    struct frame frame = {.data = copy, .size_bytes = size_bytes, .capacity_bytes = size_bytes};
    struct frame_view view = {0};
    struct error error = {0};
    enum status status = frame_parse(&frame, limits, &view, &error);
    if (status == STATUS_OK) {
        read_sum += read_all(&view);
        assert_int_equal(error.text[0], '\0');
    } else {
        assert_null(view.header);
        assert_int_equal(strncmp(error.text, "frame: ", 7), 0);
        assert_int_equal(frame_parse(&frame, limits, &view, NULL), status);
    }
    free(copy);
    return status;
}

static inline enum status parse(const struct frame *frame, const struct frame_limits *limits) {
    return parse_bytes(frame->data, frame->size_bytes, limits);
}

// The frame with `size` bytes at `offset` replaced.
static inline enum status parse_with(const struct frame *frame, const struct frame_limits *limits,
                                     size_t offset, const void *value, size_t size) {
    uint8_t saved[16];
    assert_true(size <= sizeof(saved) && offset + size <= frame->size_bytes);
    memcpy(saved, frame->data + offset, size);
    memcpy(frame->data + offset, value, size);
    enum status status = parse(frame, limits);
    memcpy(frame->data + offset, saved, size);
    return status;
}

static inline uint64_t value_at(const struct frame *frame, size_t offset, size_t size) {
    uint64_t value = 0;
    memcpy(&value, frame->data + offset, size);
    return value;
}

#define FIELD(type, name)                                                                          \
    { #name, offsetof(struct type, name), sizeof(((struct type *)0)->name) }

struct field {
    const char *name;
    size_t offset, size;
};
